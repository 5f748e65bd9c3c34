"""Videos: episodes of several policies side by side, each with its name and its return so far.

Text is set in the font that matplotlib brings along, and ffmpeg comes with a package, so a video needs nothing from the
system. What the episodes show, the environments draw.
"""

import contextlib
import io
import itertools
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..training.files import write_atomically
from .style import FRAME, INK, minus

FORMATS = (".mp4", ".gif")
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
PAPER = "#FFFFFF"
FAINT = "#707070"  # Text that does not change, beside what does.

TEXT_SIZE = 0.042  # Of a panel's height; below 11 pixels nobody reads it.
SMALLEST_TEXT = 11
HEADING_SIZE = 1.25  # Of the text's.
MARGIN = 0.05  # Of a panel's height; around everything, and between panels.

CRF = 18  # H.264's constant quality; 18 shows no loss.
PALETTE_SIZE = 256
SHORTEST_GIF_FRAME = 2  # Hundredths of a second; browsers slow down what is shorter.


@dataclass(frozen=True)
class Clip:
    """One policy's episode."""

    title: str
    """The name of the policy, such as "after 1 step"."""
    frames: Sequence[Image.Image]
    """The pictures before the first time step and after each, all of one size."""
    returns: Sequence[float]
    """The return so far, one for each frame."""


def shown(frame: np.ndarray, height: int) -> Image.Image:
    """An environment's picture, scaled to a height in pixels.

    Args:
        frame: (H, W, 3), uint8.
        height: the height of the result; its width is in proportion.
    Raises:
        ValueError: the frame has another shape or type.
    """
    if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"a frame must be (H, W, 3) of uint8, got shape {frame.shape} of {frame.dtype}")
    image = Image.fromarray(np.ascontiguousarray(frame))
    size = (max(1, round(image.width * height / image.height)), height)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def side_by_side(clips: Sequence[Clip], heading: str, subject: str, note: str, hold: int = 0) -> Iterator[Image.Image]:
    """Yield the frames of a video, with even width and height, as H.264 needs them.

    An episode that ends before the others stays on its last frame.

    Args:
        clips: the clips from left to right, with frames of one size.
        heading: the line above everything, in bold.
        subject: the line below the heading; a line that is too long for the picture ends in "…".
        note: a remark at the heading's right.
        hold: the number of times that the last frame is repeated.
    Raises:
        ValueError: there are no clips, or their frames differ in size.
    """
    sizes = {frame.size for clip in clips for frame in clip.frames}
    if len(sizes) != 1:
        raise ValueError(f"clips must have frames of one size, got {sorted(sizes)}; render all of them alike")
    sheet = _Sheet(clips, *sizes.pop())
    still = sheet.still(heading, subject, note)
    length = max(len(clip.frames) for clip in clips)
    for step in itertools.chain(range(length), itertools.repeat(length - 1, hold)):
        yield sheet.with_panels(still, step)


class _Sheet:
    """Where everything stands, in pixels."""

    def __init__(self, clips: Sequence[Clip], width: int, height: int) -> None:
        self.clips, self.panel = clips, (width, height)
        text_size = max(SMALLEST_TEXT, round(TEXT_SIZE * height))
        self.text, self.bold = _font("DejaVuSans", text_size), _font("DejaVuSans-Bold", text_size)
        self.heading = _font("DejaVuSans-Bold", round(HEADING_SIZE * text_size))
        self.margin = max(8, round(MARGIN * height))
        # Baselines of the three lines of text, then the panels.
        self.heading_y = self.margin + round(HEADING_SIZE * text_size)
        self.subject_y = self.heading_y + round(1.6 * text_size)
        self.title_y = self.subject_y + self.margin + round(1.2 * text_size)
        self.top = self.title_y + round(0.65 * text_size)
        self.lefts = [self.margin + column * (width + self.margin) for column in range(len(clips))]
        self.right = self.lefts[-1] + width
        # Numbers end at a panel's right edge, and the word before them makes room for the widest.
        numbers = {_number(value) for clip in clips for value in clip.returns}
        self.number_width = math.ceil(max(self.bold.getlength(number) for number in numbers))

    def still(self, heading: str, subject: str, note: str) -> Image.Image:
        """What does not change."""
        size = (_even(self.right + self.margin), _even(self.top + self.panel[1] + self.margin))
        image = Image.new("RGB", size, PAPER)
        draw = ImageDraw.Draw(image)
        draw.text((self.right, self.heading_y), note, FAINT, self.text, anchor="rs")
        room = self.right - self.margin
        beside_note = room - self.text.getlength(note) - self.margin
        draw.text(
            (self.margin, self.heading_y), _cut(heading, self.heading, beside_note), INK, self.heading, anchor="ls"
        )
        draw.text((self.margin, self.subject_y), _cut(subject, self.text, room), FAINT, self.text, anchor="ls")
        for clip, left in zip(self.clips, self.lefts, strict=True):
            right = left + self.panel[0]
            draw.text((left, self.title_y), clip.title, INK, self.text, anchor="ls")
            before_number = right - self.number_width - self.text.getlength(" ")
            draw.text((before_number, self.title_y), "return", FAINT, self.text, anchor="rs")
            draw.rectangle((left - 1, self.top - 1, right, self.top + self.panel[1]), outline=FRAME)
        return image

    def with_panels(self, still: Image.Image, step: int) -> Image.Image:
        """The picture of one time step."""
        image = still.copy()
        draw = ImageDraw.Draw(image)
        for clip, left in zip(self.clips, self.lefts, strict=True):
            now = min(step, len(clip.frames) - 1)
            image.paste(clip.frames[now], (left, self.top))
            place = (left + self.panel[0], self.title_y)
            draw.text(place, _number(clip.returns[now]), INK, self.bold, anchor="rs")
        return image


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / f"{name}.ttf", size)


def _number(value: float) -> str:
    return minus(f"{value:.1f}")


def _even(pixels: int) -> int:
    return pixels + pixels % 2


def _cut(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip(' ,(')}…"


# --- Files ---


def save(frames: Iterable[Image.Image], path: str | os.PathLike[str], fps: float) -> None:
    """Write a video in one step, so that the file is always a whole video.

    Args:
        frames: the pictures, all of one size, at least one.
        path: a path that ends in .mp4 (H.264) or .gif (which repeats for ever, at 50 frames a second or fewer); an
            existing file is replaced, its folder exists.
        fps: frames per second.
    Raises:
        ValueError: the path ends in something else, or there are no frames.
        OSError: the file could not be written, or ffmpeg is missing or failed; ffmpeg prints its reason itself.
    """
    path = checked_path(path)
    first, frames = _first(frames)
    content = _mp4(first, frames, fps) if path.suffix.lower() == ".mp4" else _gif(first, frames, fps)
    write_atomically(path, content)


def checked_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a video.

    Raises:
        ValueError: it does not end in .mp4 or .gif.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"a video must end in {' or '.join(FORMATS)}, got {str(path)!r}; rename it")
    return path


def _first(frames: Iterable[Image.Image]) -> tuple[Image.Image, Iterator[Image.Image]]:
    """The first frame, and all of them."""
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError("a video must have one frame or more, got none")
    return first, itertools.chain([first], iterator)


def _mp4(first: Image.Image, frames: Iterator[Image.Image], fps: float) -> bytes:
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise OSError(f"{error} A .gif needs no ffmpeg.") from error
    # Into a file, not a pipe: ffmpeg goes back to the beginning to write down where everything is.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        writer = imageio_ffmpeg.write_frames(
            file,
            first.size,
            fps=fps,
            codec="libx264",
            quality=None,
            macro_block_size=1,  # Sizes stay as they are; H.264 needs no more than even ones.
            ffmpeg_log_level="error",
            output_params=["-crf", str(CRF), "-movflags", "+faststart"],
        )
        with contextlib.closing(writer):
            writer.send(None)  # Starts ffmpeg.
            sent = 0
            for frame in frames:
                with _ffmpeg_failing(folder):
                    writer.send(frame.tobytes())
                sent += 1
        with _ffmpeg_failing(folder):  # The writer does not look at ffmpeg's exit status.
            if (found := imageio_ffmpeg.count_frames_and_secs(file)[0]) != sent:
                raise RuntimeError(f"{found} of {sent} frames")
        return file.read_bytes()


@contextlib.contextmanager
def _ffmpeg_failing(folder: str) -> Iterator[None]:
    """Name a failure of ffmpeg, which has written its reason to standard error."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"ffmpeg could not write the video into {folder}, for the reason that it printed; if there is no room, "
            "choose another folder with TMPDIR; a .gif needs no ffmpeg"
        ) from error


def _gif(first: Image.Image, frames: Iterator[Image.Image], fps: float) -> bytes:
    stride = max(1, math.ceil(SHORTEST_GIF_FRAME / 100 * fps))
    kept = list(itertools.islice(frames, 0, None, stride))
    # One palette for all, lest colours flicker.
    ends = Image.new("RGB", (first.width, 2 * first.height))
    ends.paste(first, (0, 0))
    ends.paste(kept[-1], (0, first.height))
    palette = ends.quantize(PALETTE_SIZE)
    reduced = [_reduced(frame, palette) for frame in kept]
    # What stands for the paper is an average of all that is nearly white.
    paper = _reduced(Image.new("RGB", (1, 1), PAPER), palette).tobytes()[0]
    colours = list(palette.getpalette() or [])
    colours[3 * paper : 3 * paper + 3] = ImageColor.getrgb(PAPER)
    for image in reduced:
        image.putpalette(colours)
    # GIF counts in hundredths of a second: each frame ends at the nearest, so that rounding does not add up.
    ends_at = [round(100 * stride * number / fps) for number in range(len(kept) + 1)]
    durations = [10 * (end - begin) for begin, end in itertools.pairwise(ends_at)]
    content = io.BytesIO()
    reduced[0].save(
        content, "GIF", save_all=True, append_images=reduced[1:], duration=durations, loop=0, optimize=False, disposal=1
    )
    return content.getvalue()


def _reduced(image: Image.Image, palette: Image.Image) -> Image.Image:
    return image.quantize(palette=palette, dither=Image.Dither.NONE)
