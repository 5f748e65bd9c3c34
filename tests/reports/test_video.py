"""Videos: panels that say what they show, and files that are whole or not there."""

import gc
import os
import re
import tempfile
import warnings
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageSequence

from metarl_l2f.reports import video


def clip(title: str, *greys: int, size=(60, 60)) -> video.Clip:
    return video.Clip(
        title, [Image.new("RGB", size, (grey,) * 3) for grey in greys], list(map(float, range(len(greys))))
    )


def test_an_ended_episode_stays_on_its_last_frame():
    short, long = clip("short", 10, 20), clip("long", 110, 120, 130)
    frames = [np.asarray(image)[-30] for image in video.side_by_side([short, long], "", "", "", hold=1)]
    # In one row of pixels, paper apart, stand the two panels' greys.
    assert [set(row[:, 0].tolist()) & {10, 20, 110, 120, 130} for row in frames] == [
        *({10, 110}, {20, 120}, {20, 130}, {20, 130}),
    ]


def test_a_word_stands_still_while_its_number_grows():
    returns = [0.0, -9.9, 12345.6]
    growing = video.Clip("a", clip("a", 0, 0, 0, size=(200, 200)).frames, returns)
    images = [np.asarray(image).astype(int) for image in video.side_by_side([growing], "", "", "")]
    changed = np.flatnonzero((images[0] != images[2]).any((0, 2)))
    word = np.flatnonzero((images[0][:, : changed[0]] < 250).any((0, 2)) & (np.arange(changed[0]) > 60))
    assert word.size > 0  # Left of all that changes there is more than the title: "return".


def test_text_that_is_too_long_is_cut_off():
    (image,) = video.side_by_side([clip("a", 0, size=(200, 200))], "H" * 200, "s" * 200, "MAML")
    (short,) = video.side_by_side([clip("a", 0, size=(200, 200))], "H", "s", "MAML")
    assert image.size == short.size
    assert (np.asarray(image)[:, -4:] == 255).all()


def test_widths_and_heights_are_even_whatever_the_panels():
    for size in ((201, 203), (200, 201), (333, 250)):
        (image,) = video.side_by_side([clip("a", 0, size=size)], "", "", "")
        assert image.width % 2 == image.height % 2 == 0


def test_frames_are_scaled_in_proportion():
    assert video.shown(np.zeros((100, 150, 3), np.uint8), 200).size == (300, 200)


@pytest.mark.parametrize("fps", [12.5, 60, 125])
def test_a_gif_lasts_as_long_as_it_should(tmp_path, fps):
    frames = [Image.new("RGB", (8, 8), (2 * number,) * 3) for number in range(100)]
    video.save(frames, tmp_path / "a.gif", fps)
    with Image.open(tmp_path / "a.gif") as image:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
    # One frame more or less, and a hundredth of a second for rounding.
    assert sum(durations) / 1000 == pytest.approx(100 / fps, abs=2 / fps + 0.01)
    assert min(durations) >= 20


def said_of_failing(frames, path):
    """The text of the OSError of an ffmpeg that ended early, whose writer leaves a pipe open, of which Python warns."""
    said = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            video.save(frames, path, 20)
        except OSError as error:
            said = str(error)
        gc.collect()  # Everything of the writer is gone with its error.
    return said


@pytest.mark.parametrize("number", [1, 500])  # Fewer than wait in the pipe to ffmpeg, and more.
def test_a_full_disk_ends_a_video_and_leaves_nothing_behind(tmp_path, monkeypatch, capfd, number):
    class Full(tempfile.TemporaryDirectory):
        def __enter__(self):
            os.symlink("/dev/full", Path(self.name) / "video.mp4")  # A device that fails as a full disk does.
            return super().__enter__()

    monkeypatch.setattr(tempfile, "TemporaryDirectory", Full)
    said = said_of_failing([Image.new("RGB", (64, 64))] * number, tmp_path / "a.mp4")
    assert re.search("^ffmpeg could not write the video into .*, for the reason that it printed; .* TMPDIR", said)
    assert "No space left on device" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, capfd):
    frames = [Image.new("RGB", (8, 8))]
    with pytest.raises(ValueError, match="clips must have frames of one size, got"):
        video.save(video.side_by_side([clip("a", 1), clip("b", 2, size=(8, 8))], "", "", ""), tmp_path / "a.mp4", 20)
    said = said_of_failing([Image.new("RGB", (9, 9))], tmp_path / "a.mp4")  # Odd sizes H.264 refuses.
    assert re.search(r"^ffmpeg could not write the video .*a \.gif needs no ffmpeg$", said)
    assert "not divisible by 2" in capfd.readouterr().err
    with pytest.raises(ValueError, match="a video must have one frame or more, got none"):
        video.save([], tmp_path / "a.gif", 20)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: (_ for _ in ()).throw(RuntimeError("No ffmpeg.")))
    with pytest.raises(OSError, match=r"No ffmpeg\. A \.gif needs no ffmpeg"):
        video.save(frames, tmp_path / "a.mp4", 20)
    assert list(tmp_path.iterdir()) == []


def test_a_frame_that_is_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"a frame must be \(H, W, 3\) of uint8, got shape \(4, 4\) of float64"):
        video.shown(np.zeros((4, 4)), 200)
