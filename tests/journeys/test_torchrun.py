"""Every kind of run on two processes, to its evaluation, its report and status 0."""

import pytest

from . import programs, promises, table

KINDS = {
    "navigation": [],
    "cheetah_dir": [],
    "ant": ["--goals", "velocity"],
    "rand_params": ["--body", "hopper"],
    "sinusoid": [],
    "image_classification": [],
    "leo": ["--embeddings", "embeddings"],
}


@pytest.mark.journey
@pytest.mark.parametrize("launcher", KINDS)
def test_two_ranks_train_evaluate_and_report(launcher, folder, environment, furnish):
    if launcher == "leo":
        furnish({"embeddings": ("embeddings",)})
    script = f"launchers/{launcher}.py"
    words = table.to_run(["torchrun", "--standalone", "--nproc-per-node", "2", script, *KINDS[launcher]])
    outcome = programs.run(words, folder, environment)
    promises.ended_well(outcome)
    table.trains(outcome.stdout, folder, words)
    # Started again, a run that is done ends at once.
    run = promises.run_of(outcome.stdout, folder)
    before = {path.name: path.read_bytes() for path in run.glob("*.pt")}
    again = programs.run([*words, "--log-dir", str(run.relative_to(folder))], folder, environment)
    promises.ended_well(again)
    assert {path.name: path.read_bytes() for path in run.glob("*.pt")} == before


@pytest.mark.journey
def test_prototypes_refuse_ranks_with_one_line(folder, environment):
    words = table.to_run(["torchrun", "--standalone", "--nproc-per-node", "2", "launchers/prototypes.py"])
    outcome = programs.run(words, folder, environment)
    assert outcome.returncode != 0
    assert "error: prototypes.py learns from one episode at a time" in outcome.stderr
