"""Runs under torchrun, from its command to its exit status and files: undisturbed, and with a rank that is killed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarl_l2f.launchers import cheetah_vel, image_classification, leo, navigation, sinusoid
from metarl_l2f.supervised.leo.embeddings import save_embeddings
from metarl_l2f.training.checkpoint import load
from metarl_l2f.training.metrics import read

from .runs import PATIENCE

LAUNCHERS = Path(__file__).parents[2] / "launchers"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
# Either way, torchrun chooses a port that is free.
MEETING = (["--standalone"], ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"])
RL = "--tasks-per-batch 4 --tasks-per-shard 1 --episodes-per-task 2 --horizon 5 --hidden-sizes 8 --activation tanh"
SUPERVISED = "--log-every 1 --validation-tasks 2"
IMAGES = "--tasks-per-batch 3 --ways 2 --queries 2 --filters 4"
LEO = "--tasks-per-batch 2 --ways 2 --shots 1 --queries 2 --latent-size 4 --log-every 1 --validation-tasks 2"
SHORT = "--iterations 3 --validate-every 2 --evaluation-tasks 3"
INSPECTED = "--inspect-every 2 --threads 1"
PROGRAMS = {
    "navigation": (navigation, f"{RL} {INSPECTED}"),
    "cheetah_vel": (cheetah_vel, f"{RL} {INSPECTED}"),
    # With one task a meta-batch, the second rank has nothing to do.
    "sinusoid": (sinusoid, f"{SUPERVISED} {INSPECTED} --tasks-per-batch 1 --evaluation-repeats 2"),
    "image_classification": (image_classification, f"{SUPERVISED} {INSPECTED} {IMAGES} --data images"),
    "leo": (leo, f"{LEO} --embeddings embeddings"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a few images and a few embeddings, of noise, where runs are started."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        names = [f"{split}_{name}" for name in "abc"]
        for name in names:
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(0, 255, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{number}.png")
        vectors = random.standard_normal((12, 6)).astype(np.float32)
        save_embeddings(folder / "embeddings", split, vectors, [name for name in names for _ in range(4)])
    return folder


def left_by(folder):
    """The names of a run's files, its metrics but for times, its scores on held-out tasks, and what it learned."""
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    lines = [
        {tag: math.nan if value is None else value for tag, value in line.items() if not tag.startswith("time/")}
        for line in read(folder)
    ]
    scores = json.loads((folder / "evaluation.json").read_text())["scores"]
    return names, lines, np.array(scores), load(folder / "checkpoint.pt")["experiment"]


def check_equal(folder, whole):
    """A run of ranks has the files of one process's run, and its numbers; in reinforcement learning to the last bit."""
    (names, lines, scores, state), (all_names, all_lines, all_scores, all_state) = left_by(folder), left_by(whole)
    assert names == all_names and {"report.html", "evaluation.json", "learning_curve.png"} <= names
    for line, expected in zip(lines, all_lines, strict=True):
        assert line == pytest.approx(expected, rel=1e-2, abs=1e-3, nan_ok=True)
    np.testing.assert_allclose(scores, all_scores, rtol=1e-3, atol=1e-3)
    if "env_steps" in state:
        assert all(torch.equal(state["learner"][name], value) for name, value in all_state["learner"].items())


def under_torchrun(folder, *command):
    """What a command prints under torchrun, which must end with status 0."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*TORCHRUN, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def alone(monkeypatch, folder, name, run):
    """The same run of one process."""
    program, flags = PROGRAMS[name]
    monkeypatch.chdir(folder)
    assert program.main([*flags.split(), *SHORT.split(), "--log-dir", str(run)]) == 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_kind_of_run_ends_with_its_report(tmp_path, monkeypatch, data, name, amount, record_property):
    rounds = amount(0 if name == "navigation" else 1, 10)  # Navigation is trained below, too.
    if not rounds:
        pytest.skip("make test-faults runs it")
    alone(monkeypatch, data, name, tmp_path / "whole")
    flags = [*PROGRAMS[name][1].split(), *SHORT.split()]
    for number in range(rounds):
        folder = tmp_path / f"ranks{number}"
        printed = under_torchrun(data, *MEETING[number % 2], LAUNCHERS / f"{name}.py", *flags, "--log-dir", folder)
        check_equal(folder, tmp_path / "whole")
        assert printed.count("held-out tasks ±") == 1
        assert printed.count("1 of 2 ranks have nothing to do") == (name == "sinusoid")
    record_property(f"torchrun: runs of {name} that ended with status 0, all files and one process's numbers", rounds)


KILLER = """
import os, pathlib, signal, sys
from metarl_l2f.launchers import navigation
from metarl_l2f.rl.experiment import MetaRL
iterate = MetaRL.iterate
mark, rank, last = pathlib.Path(sys.argv.pop(1)), sys.argv.pop(1), int(sys.argv.pop(1))
def wrapped(self, iteration):
    if iteration == last and os.environ["RANK"] == rank and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return iterate(self, iteration)
MetaRL.iterate = wrapped
sys.exit(navigation.main())
"""


def test_a_killed_rank_costs_nothing_but_time(tmp_path, monkeypatch, data, amount, record_property):
    (tmp_path / "killer.py").write_text(KILLER)
    alone(monkeypatch, data, "navigation", tmp_path / "whole")
    flags = [*PROGRAMS["navigation"][1].split(), *SHORT.split()]
    rounds = amount(1, 12)
    for number in range(rounds):
        folder, mark = tmp_path / f"broken{number}", tmp_path / f"mark{number}"
        killed, at = 1 - number % 2, 2 + number // 2 % 2  # In the second or third of three iterations.
        command = [*MEETING[number // 4 % 2], "--max-restarts", "2", tmp_path / "killer.py", mark, killed, at]
        under_torchrun(data, *command, *flags, "--log-dir", folder)
        assert mark.exists()
        check_equal(folder, tmp_path / "whole")
    record_property("torchrun: runs with a rank killed that recovered with --max-restarts 2", rounds)
