"""A rank that is killed: torchrun starts the group again, and the run ends as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metarl_l2f.training.checkpoint import load

NAVIGATION = Path(__file__).parents[2] / "launchers" / "navigation.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TINY = ["--tasks-per-batch", "4", "--episodes-per-task", "2", "--horizon", "5", "--hidden-sizes", "4"]
TINY += ["--tasks-per-shard", "1", "--threads", "1", "--inspect-every", "0", "--evaluation-tasks", "0"]


def content_of(folder):
    """Metrics without times, and the checkpoint's bytes but for the folder's name."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    state = load(folder / "checkpoint.pt")["experiment"]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines], state["learner"]


def test_a_killed_rank_costs_nothing_but_time(tmp_path, request):
    if not request.config.getoption("--thorough", default=False):
        pytest.skip("starts six processes; make test-faults runs it")
    # A rank is killed with SIGKILL in the middle of the run; torchrun starts the group again.
    killer = tmp_path / "killer.py"
    killer.write_text(
        "import os, pathlib, signal, sys\n"
        "from metarl_l2f.launchers import navigation\n"
        "from metarl_l2f.rl.experiment import MetaRL\n"
        "iterate, mark = MetaRL.iterate, pathlib.Path(sys.argv.pop(1))\n"
        "def wrapped(self, iteration):\n"
        "    if iteration == 3 and os.environ['RANK'] == '1' and not mark.exists():\n"
        "        mark.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return iterate(self, iteration)\n"
        "MetaRL.iterate = wrapped\n"
        "sys.exit(navigation.main())\n"
    )
    ranks = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    options = [*TINY, "--iterations", "5", "--validate-every", "2"]
    broken = [*ranks, str(killer), str(tmp_path / "mark"), *options, "--log-dir", str(tmp_path / "broken")]
    subprocess.run(broken, check=True, capture_output=True, timeout=600)
    assert (tmp_path / "mark").exists()
    unbroken = [sys.executable, str(NAVIGATION), *options]
    subprocess.run([*unbroken, "--log-dir", str(tmp_path / "whole")], check=True, capture_output=True, timeout=600)
    (lines, learner), (expected_lines, expected) = content_of(tmp_path / "broken"), content_of(tmp_path / "whole")
    assert all(torch.equal(learner[name], value) for name, value in expected.items())
    for line, whole in zip(lines, expected_lines, strict=True):
        assert line == pytest.approx(whole, rel=1e-6)
