"""The package as others install it: a wheel in an environment of its own, used from an empty folder."""

import configparser
import html
import json
import os
import re
import shlex
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

from . import programs, promises, table
from .conftest import PARTS
from .documents import ROOT
from .test_interrupted import LONG, goes_on_as_printed

pytestmark = pytest.mark.journey

MODULE = ["python", "-m", "metarl_l2f.launchers.navigation"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment that holds the wheel; everything else it borrows from the environment that tests run in."""
    base = tmp_path_factory.mktemp("wheel")
    source, home = base / "source", base / "environment"
    source.mkdir()  # Building writes into its source.
    for name in PARTS:
        subprocess.run(["cp", "-r", str(ROOT / name), str(source / name)], check=True)
    offline = ["--no-build-isolation"] if can_build() else []
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", *offline, "--wheel-dir", str(base), str(source)], check=True)
    (wheel,) = base.glob("*.whl")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    target = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, *target, str(wheel)], check=True)
    # Folders that a .pth file names come last, and their own .pth files, the editable install's too, are not read.
    (packages,) = home.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return home


def can_build() -> bool:
    """Whether the setuptools at hand builds the package; else pip fetches one."""
    try:
        return int(metadata.version("setuptools").partition(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture
def outside(installed, environment):
    """The variables of a reader who activated that environment."""
    return environment | {"PATH": f"{installed}/bin{os.pathsep}/usr/bin:/bin", "VIRTUAL_ENV": str(installed)}


def test_the_package_is_the_wheels_and_whole(installed, outside, tmp_path):
    program = (
        "import metarl_l2f, metarl_l2f.runs.launch, metarl_l2f.runs.serving as viewer\n"
        "print(metarl_l2f.__file__, viewer.PAGE.exists())"
    )
    outcome = programs.run(["python", "-c", program], tmp_path, outside)
    promises.ended_well(outcome)
    path, page = outcome.stdout.split()
    assert Path(path).is_relative_to(installed) and page == "True"


def test_what_a_run_prints_and_reports_works_from_an_empty_folder(outside, tmp_path):
    words = [*MODULE, *table.shortened(["--log-dir", "my runs/one"], table.REINFORCEMENT)]
    outcome = programs.run(words, tmp_path, outside)
    promises.ended_well(outcome)
    promises.holds_a_run(tmp_path / "my runs" / "one")
    page = (tmp_path / "my runs" / "one" / "report.html").read_text("utf-8")
    (command,) = re.findall("<pre>(.*)</pre>", page)
    again = html.unescape(command)
    assert shlex.split(again) == words
    assert f"With metarl_l2f {version()}. " in page  # No commit: there is no working copy.
    # The same, elsewhere: typed as it stands, it makes the same run.
    (tmp_path / "elsewhere").mkdir()
    promises.ended_well(programs.run(["bash", "-c", again], tmp_path / "elsewhere", outside))
    ours, theirs = (
        (place / "my runs" / "one" / "evaluation.json").read_text("utf-8")
        for place in (tmp_path, tmp_path / "elsewhere")
    )
    assert json.loads(ours)["scores"] == json.loads(theirs)["scores"]


def version() -> str:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", "utf-8")
    return config["metadata"]["version"]


def test_an_interrupted_run_goes_on_with_the_printed_command(outside, tmp_path):
    words = [*MODULE, *table.shortened(["--log-dir", "my runs/one"], table.REINFORCEMENT | LONG)]
    begun = tmp_path / "my runs" / "one" / "checkpoint.pt"
    outcome = programs.interrupted(programs.started(words, tmp_path, outside), begun.exists)
    again = goes_on_as_printed(outcome, tmp_path, outside)
    assert "python -m metarl_l2f.launchers.navigation --resume 'my runs/one'" in outcome.stdout
    table.trains(again.stdout, tmp_path, words)


def test_its_other_programs_and_ranks_work_from_an_empty_folder(outside, tmp_path):
    run = ["--log-dir", "runs/one"]
    ranks = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", MODULE[-1]]
    promises.ended_well(programs.run([*ranks, *table.shortened(run, table.REINFORCEMENT)], tmp_path, outside))
    promises.holds_a_run(tmp_path / "runs" / "one")
    for name, words in (
        ("evaluate", ["runs/one"]),
        ("figures", ["runs/one", "--out", "pictures"]),
        ("play", ["runs/one"]),
    ):
        journey = table.JOURNEYS[f"launchers/{name}.py"]
        words = table.shortened(["python", "-m", f"metarl_l2f.launchers.{name}", *words], journey.short)
        outcome = programs.run(words, tmp_path, outside)
        promises.ended_well(outcome)
        journey.promise(outcome.stdout, tmp_path, words)


def test_a_mistake_is_answered_with_a_command_that_works(outside, tmp_path):
    words = [*MODULE, *table.shortened(["--log-dir", "runs/a b"], table.REINFORCEMENT | {"--evaluation-tasks": "0"})]
    promises.ended_well(programs.run(words, tmp_path, outside))
    figures = ["python", "-m", "metarl_l2f.launchers.figures", "runs/a b", "--out", "pictures"]
    outcome = programs.run(figures, tmp_path, outside)
    assert outcome.returncode == 2
    hint = outcome.stderr.strip().rpartition("run: ")[2]
    promises.ended_well(programs.run(["bash", "-c", f"{hint} --tasks 2"], tmp_path, outside))
    promises.ended_well(programs.run(figures, tmp_path, outside))
