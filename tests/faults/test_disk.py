"""A disk that is full, or may not be written: one clear error, nothing lost, and on it goes once there is room.

The disks are real: small file systems in memory, mounted where nobody else sees them. That takes unprivileged user
namespaces, or root; without either the tests are skipped.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .runs import PATIENCE, left_by, starting

HERE = Path(__file__).parent
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]

# Runs in a mount namespace of its own: a run on a disk of each size, then with room, in one process.
FULL = """
import contextlib, io, json, pathlib, shutil, subprocess, sys
from metarl_l2f.launchers import navigation
disk, kept, arguments, sizes = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), *map(json.loads, sys.argv[3:])

def launch(arguments):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        return navigation.main(arguments), said.getvalue()

for size in sizes:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=True)
    status, said = launch([*arguments, "--log-dir", str(disk / "run")])
    subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
    begun = (disk / "run" / "config.json").exists()
    again, _ = launch(["--resume", str(disk / "run")] if begun else [*arguments, "--log-dir", str(disk / "run")])
    shutil.copytree(disk / "run", kept / str(size))
    (kept / f"{size}.json").write_text(json.dumps([status, said, again]))
    subprocess.run(["umount", disk], check=True)
"""

READ_ONLY = """
import pathlib, subprocess, sys
from metarl_l2f.launchers import evaluate, navigation
from metarl_l2f.training.metrics import read
program, folder, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
subprocess.run(["mount", "--bind", folder, folder], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
if program == "view":
    print(len(read(next(pathlib.Path(folder).iterdir()))))
sys.exit({"train": navigation.main, "view": evaluate.main}[program](arguments))
"""


@pytest.fixture(scope="module")
def namespace():
    """The start of a command that may mount."""
    probe = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here: neither root nor user namespaces")
    return NAMESPACE


def python(namespace, script, *arguments):
    command = [*namespace, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def run(tmp_path_factory, namespace):
    """An undisturbed run, alone in its folder."""
    folder = tmp_path_factory.mktemp("room")
    done = python(
        ["env"],
        "import sys; from metarl_l2f.launchers import navigation; sys.exit(navigation.main(sys.argv[1:]))",
        *starting(folder / "run", 6),
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_run_on_a_full_disk_ends_with_one_error_and_continues_once_there_is_room(
    run, tmp_path, namespace, amount, record_property
):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    # From too small for config.json to almost large enough for all; a page is 4 KiB.
    sizes = list(range(4, 64, amount(20, 4)))
    arguments = starting(run, 6)[:-2]
    done = python(namespace, FULL, disk, kept, json.dumps(arguments), json.dumps(sizes))
    assert done.returncode == 0, done.stderr
    full = 0
    for size in sizes:
        status, said, again = json.loads((kept / f"{size}.json").read_text())
        assert (status, again) in ((2, 0), (0, 0)), said
        if status:
            full += 1
            error = said.splitlines()[-1]
            assert "No space left on device" in error and "--resume" in error and f"{disk}/run" in error, said
        assert left_by(kept / str(size)) == left_by(run)
    assert full >= len(sizes) // 2
    record_property("disk/runs whose disk was full, one error each", full)
    record_property("disk/runs continued with room, all equal to the unbroken one", len(sizes))


def test_a_run_does_not_start_where_it_may_not_write(run, namespace):
    done = python(namespace, READ_ONLY, "train", run.parent, *starting(run.parent / "new", 2))
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "Read-only file system" in error and "--log-dir" in error and str(run.parent / "new") in error
    done = python(namespace, READ_ONLY, "train", run.parent, "--resume", run, "--iterations", "9")
    assert done.returncode == 2
    assert "Read-only file system" in done.stderr and ".lock" in done.stderr


def test_a_run_that_may_not_be_written_can_be_looked_at(run, tmp_path, namespace):
    out = tmp_path / "evaluation.json"
    done = python(namespace, READ_ONLY, "view", run.parent, run, "--tasks", "2", "--steps", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "6"
    assert len(json.loads(out.read_text())["mean"]) == 2
    done = python(namespace, READ_ONLY, "view", run.parent, run, "--tasks", "2", "--steps", "1")
    assert done.returncode == 2
    assert "Read-only file system" in done.stderr and "evaluation.json" in done.stderr
