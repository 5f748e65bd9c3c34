"""A checkpoint that was damaged is refused or passed over; it never loads as something else."""

import random
import shutil

import pytest

from metarl_l2f.training import checkpoint
from metarl_l2f.training.checkpoint import CheckpointError

from .runs import continuing, ended, launched, left_by, starting


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four iterations."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert ended(launched(starting(folder, 4))) == 0
    return folder


def damaged(content, dice):
    """A file cut short, or with one bit, a few bits or a whole block of it changed."""
    kind = dice.choice(["cut", "bit", "bits", "block"])
    if kind == "cut":
        return content[: dice.randrange(len(content))]
    changed = bytearray(content)
    if kind == "block":
        start = dice.randrange(len(content))
        changed[start : start + 512] = dice.randbytes(len(changed[start : start + 512]))
    else:
        for _ in range(1 if kind == "bit" else dice.randint(2, 8)):
            changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def test_no_damaged_checkpoint_loads_other_numbers(run, tmp_path, amount, record_property):
    path = tmp_path / "checkpoint.pt"
    content = (run / "checkpoint.pt").read_bytes()
    whole = checkpoint._digest(checkpoint.load(run / "checkpoint.pt"))
    dice = random.Random(1)
    number, refused, harmless = amount(40, 300), 0, 0
    for _ in range(number):
        path.write_bytes(damaged(content, dice))
        try:
            state = checkpoint.load(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # The damage hit what means nothing, such as a time stamp.
            assert checkpoint._digest(state) == whole
            harmless += 1
    assert refused > harmless
    record_property("damaged/checkpoints", number)
    record_property("damaged/refused by name", refused)
    record_property("damaged/loaded every bit as written", harmless)
    record_property("damaged/loaded other numbers", number - refused - harmless)


def test_a_run_with_a_damaged_checkpoint_resumes_from_the_one_before(run, tmp_path, amount, record_property):
    dice = random.Random(2)
    number = amount(2, 20)
    for trial in range(number):
        folder = tmp_path / str(trial)
        shutil.copytree(run, folder)
        path = folder / "checkpoint.pt"
        path.write_bytes(damaged(path.read_bytes(), dice))
        assert ended(launched(continuing(folder))) == 0
        assert left_by(folder) == left_by(run)
    record_property("damaged/runs resumed, all equal to the unbroken one", number)


def test_a_run_whose_checkpoints_are_both_damaged_is_refused_and_left_alone(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("checkpoint.pt", "previous.pt"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert ended(launched(continuing(folder))) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
