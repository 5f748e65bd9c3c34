"""What programs print of errors: one line, with the flags that the library does not know."""

import pytest
from PIL import Image

from metarl_l2f.parallel.ranks import StoppedError
from metarl_l2f.runs.command_line import fail
from metarl_l2f.supervised.data.images import load_images
from metarl_l2f.supervised.data.pictures import UnlikeError
from metarl_l2f.training.run_folder import RunExistsError


def test_an_error_of_a_runs_folder_names_the_flags_that_concern_it(capsys):
    assert fail(RunExistsError("runs/a already holds a run")) == 2
    hint = "--resume names a run to continue, --log-dir the folder of a new one"
    assert capsys.readouterr().err == f"error: runs/a already holds a run; {hint}\n"


def test_images_that_differ_are_answered_with_the_flags_that_make_them_alike(tmp_path, capsys):
    for split, size in (("train", 4), ("val", 4), ("test", 5)):
        (tmp_path / split / split).mkdir(parents=True)
        Image.new("RGB", (size, size)).save(tmp_path / split / split / "a.png")
    with pytest.raises(UnlikeError) as caught:
        load_images(tmp_path)
    assert "--" not in str(caught.value)
    assert fail(caught.value) == 2
    assert capsys.readouterr().err.endswith("to make them all grey or RGB; --image-size and --channels do so\n")


def test_notes_of_an_error_are_printed_behind_it(capsys):
    error = ValueError("horizon must be a whole number, 1 or more, got 0")
    error.add_note("see --help")
    assert fail(error) == 2
    assert capsys.readouterr().err == "error: horizon must be a whole number, 1 or more, got 0; see --help\n"


def test_a_rank_that_stops_because_rank_0_did_says_nothing(capsys):
    assert fail(StoppedError("rank 1 stopped")) == 2
    assert capsys.readouterr().err == ""
