"""Ctrl-C in training: the run ends with status 130 and prints a command, which goes on to the run's end."""

import re

import pytest

from . import programs, promises, table

LAUNCHERS = ("navigation", "cheetah_dir", "cheetah_vel", "ant", "rand_params", "sinusoid", "image_classification")
LAUNCHERS += ("prototypes", "leo")
LONG = {"--iterations": "3000", "--checkpoint-every": "1", "--validate-every": "3000"}


def goes_on_as_printed(outcome, folder, environment):
    """The command that an interrupted program printed, typed into a shell as it is, for one more iteration."""
    assert outcome.returncode == 130, outcome.stdout
    assert "Traceback" not in outcome.stdout, outcome.stdout
    (hint,) = (line.strip() for line in outcome.stdout.splitlines() if "--resume" in line)
    done = int(re.search(r"after iteration (\d+)", outcome.stdout)[1])
    again = programs.run(["bash", "-c", f"{hint} --iterations {done + 1}"], folder, environment)
    promises.ended_well(again)
    return again


@pytest.mark.parametrize(
    "launcher", [pytest.param(name, marks=[] if name == "navigation" else pytest.mark.journey) for name in LAUNCHERS]
)
def test_an_interrupted_run_goes_on_with_the_printed_command(launcher, folder, environment, furnish):
    script = f"launchers/{launcher}.py"
    words = ["python", script, "--log-dir", "my runs/a run"]
    if launcher == "leo":
        furnish({"embeddings": ("embeddings",)})
        words += ["--embeddings", "embeddings"]
    if launcher == "image_classification":
        words += ["--schedule", "constant"]  # The default one spans the planned iterations, which then may not change.
    words = table.shortened(table.shortened(words, table.JOURNEYS[script].short), LONG)
    begun = folder / "my runs" / "a run"
    program = programs.started(words, folder, environment)
    outcome = programs.interrupted(program, lambda: (begun / "checkpoint.pt").exists())
    goes_on_as_printed(outcome, folder, environment)
    promises.holds_a_run(begun)


@pytest.mark.journey
def test_make_prints_a_command_that_goes_on(folder, environment):
    """make starts the environment's Python without activating the environment: the command names it by its path."""
    words = ["navigation", f"ARGS={' '.join(table.shortened([], table.REINFORCEMENT | LONG))}"]
    plain = environment | {"PATH": "/usr/bin:/bin"}
    program = programs.started(["make", "-o", ".venv/installed", *words], folder, plain)
    outcome = programs.interrupted(program, lambda: bool(list(folder.glob("runs/navigation/*/checkpoint.pt"))))
    assert outcome.returncode != 0
    (hint,) = (line.strip() for line in outcome.stdout.splitlines() if "--resume" in line)
    stopped = int(re.search(r"after iteration (\d+)", outcome.stdout)[1])
    promises.ended_well(programs.run(["bash", "-c", f"{hint} --iterations {stopped + 1}"], folder, plain))
    (run,) = folder.glob("runs/navigation/*")
    promises.holds_a_run(run)
