"""A run's folder: one process holds it, the right run goes into it, and its best states are kept."""

import errno
import fcntl
import math
import os
import subprocess
import sys

import pytest

from metarl_l2f.training import checkpoint
from metarl_l2f.training.run_folder import RunExistsError, RunFolder, RunLockedError, RunMissingError, ranked


def claim(directory, resume=False):
    with RunFolder(directory).claimed(resume):
        pass


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoint.pt", "best.pt"])
def test_any_file_of_a_run_makes_a_run(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(RunExistsError, match=rf"already holds a run \({name}\)"):
        claim(tmp_path)
    claim(tmp_path, resume=True)


def test_only_a_run_can_be_resumed(tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunMissingError, match=r"holds no run to resume.* or start a new run"):
            claim(directory, resume=True)
    assert not list(tmp_path.iterdir())


# --- The lock ---


def test_a_lock_held_by_another_process_is_respected(tmp_path):
    with open(tmp_path / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunLockedError, match="another process is training into"):
            claim(tmp_path)
    claim(tmp_path)


def test_a_forked_process_that_outlives_the_run_does_not_hold_its_lock(tmp_path, monkeypatch):
    flock = fcntl.flock
    inherited = []

    def flock_and_fork(lock, operation):
        flock(lock, operation)
        inherited.append(os.dup(lock))  # the same open file, as a forked process has it

    monkeypatch.setattr(fcntl, "flock", flock_and_fork)
    claim(tmp_path)
    claim(tmp_path)
    assert inherited
    for descriptor in inherited:
        os.close(descriptor)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_gone_on_with_and_named(tmp_path, monkeypatch, capsys, number):
    def refuse(lock, operation):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        claim(tmp_path)
    said = capsys.readouterr().err
    assert f"training without a lock, for {tmp_path / '.lock'} cannot have one: {os.strerror(number)}" in said
    claim(tmp_path)  # Nothing is left behind that would bar the next.
    assert capsys.readouterr().err == ""


def test_another_fault_of_a_lock_is_named(tmp_path, monkeypatch):
    def fail(lock, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match=r"Input/output error \(make room.*\.lock"):
        claim(tmp_path)


def test_a_python_without_posix_modules_trains_without_a_lock(tmp_path):
    program = (
        "import sys\n"
        "for name in ('fcntl', 'resource', 'termios', 'pwd', 'grp', 'tty', 'pty', 'syslog'):\n"
        "    sys.modules[name] = None\n"
        "from metarl_l2f.launchers.navigation import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    flags = ["--tasks-per-batch", "2", "--episodes-per-task", "2", "--horizon", "5", "--evaluation-tasks", "0"]
    flags += ["--iterations", "1", "--threads", "1", "--log-dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'run' / '.lock'} cannot have one: Function not implemented" in done.stderr


# --- The best states ---


@pytest.mark.parametrize(
    ("values", "higher_is_better", "expected"),
    [
        ([1.0, 3.0, 3.0, 2.0], True, [2, 3, 4, 1]),  # of equals the earlier first
        ([3.0, 1.0, 2.0, 1.0], False, [2, 4, 3, 1]),
        ([math.nan, -math.inf, math.nan, -5.0], True, [4, 2]),
        ([math.nan], True, []),
    ],
)
def test_a_ranking_has_the_best_first_and_no_nan(values, higher_is_better, expected):
    ranking = []
    for iteration, value in enumerate(values, start=1):
        ranking = ranked(ranking, iteration, value, higher_is_better)
    assert [entry["iteration"] for entry in ranking] == expected
    assert all(entry["value"] == values[entry["iteration"] - 1] for entry in ranking)


def test_the_states_of_a_ranking_are_kept_and_no_others(tmp_path):
    for name in ("best.pt", "best_1.pt", "best_7.pt"):
        (tmp_path / name).touch()
    ranking = [{"iteration": 9, "value": 2.0}, {"iteration": 7, "value": 1.0}]
    RunFolder(tmp_path).keep_ranked(ranking, 9, lambda path: path.write_bytes(b"state"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "best_7.pt", "best_9.pt"]
    assert (tmp_path / "best_9.pt").read_bytes() == b"state"
    # One that is not among the best is not written.
    RunFolder(tmp_path).keep_ranked(ranking, 10, lambda path: pytest.fail(f"wrote {path}"))


def test_the_newest_checkpoint_is_the_one_before_where_the_last_is_damaged(tmp_path):
    folder = RunFolder(tmp_path)
    checkpoint.save(folder.checkpoint, {"iteration": 1})
    folder.set_aside()
    checkpoint.save(folder.checkpoint, {"iteration": 2})
    assert folder.newest() == folder.checkpoint
    assert checkpoint.load(folder.previous) == {"iteration": 1}
    folder.checkpoint.write_bytes(b"")
    assert folder.newest() == folder.previous
    folder.previous.unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoint\.pt is truncated"):
        folder.newest()


def test_files_that_a_resumed_run_lacks_are_named(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n{"iteration": 3}\n')
    lacking, gap = folder.missing(3, [{"iteration": 2, "value": 1.0}], 1)
    assert lacking.startswith(f"{folder.best} is missing, the state after iteration 2, whose validation is the best")
    assert gap.startswith(
        f"in {tmp_path} metrics.jsonl lacks 1 of the 3 lines up to iteration 3, the first of them that"
    )
    folder.best.touch()
    assert folder.missing(1, [{"iteration": 1, "value": 1.0}], 1) == []
