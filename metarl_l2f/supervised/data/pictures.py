"""Pictures of a data set, which are decoded one by one and stacked into one tensor."""

import contextlib
import functools
import io
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps

from ..episodes import Images
from .files import FORMATS, File, Unreadable

# 64 million pixels; larger images are no pictures of a data set but mistakes or attacks.
MAX_PIXELS = 2**26
MAKE_ALIKE = "pass size=... to resize them, channels=1 or 3 to make them all grey or RGB"


class UnlikeError(ValueError):
    """Images differ in size or mode, or have a mode that must be converted; the text names the arguments that help."""


class Picture(NamedTuple):
    """An image that is decoded when it is opened."""

    class_name: str
    """The name of its class."""
    where: str
    """Its path, for messages."""
    open: Callable[[], Image.Image]
    """Decodes the image."""


def stacked(pictures: list[Picture], size: int | None, channels: Literal[1, 3] | None, where: str) -> Images:
    """Decode pictures into one tensor.

    Args:
        pictures: n pictures, class by class.
        size: the height and width, in pixels, to resize to; None keeps the size.
        channels: 1 for grey, 3 for RGB, None for either, as stored.
        where: the path of the data set, for messages.
    Raises:
        ValueError: a picture cannot be read, or they differ in size or mode.
    """
    first = _decoded(pictures[0], size, channels)
    pixels = np.empty((len(pictures), *first.shape), np.uint8)
    for i, picture in enumerate(pictures):
        image = _decoded(picture, size, channels)
        if image.shape != first.shape:
            raise UnlikeError(
                f"images must have one size and mode, but {pictures[0].where} is {_shape(first)} and {picture.where} "
                f"is {_shape(image)}; {MAKE_ALIKE}"
            )
        pixels[i] = image
    counts = Counter(picture.class_name for picture in pictures)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(list(counts.values())))
    return Images(torch.from_numpy(pixels), labels, tuple(counts), where)


def _decoded(picture: Picture, size: int | None, channels: Literal[1, 3] | None) -> np.ndarray:
    """Decode a picture into bytes (C, H, W)."""
    try:
        image = picture.open()
        if not image.mode.startswith(("I", "F")) and (channels or image.mode in ("1", "L", "RGB")):
            image = on_white(image, {None: "RGB" if image.mode == "RGB" else "L", 1: "L", 3: "RGB"}[channels])
    except Unreadable:
        raise
    except Exception as error:  # a damaged file can fail anywhere in its decoder
        raise ValueError(f"{picture.where} cannot be read as an image: {error}; replace it") from error
    if image.mode not in ("L", "RGB"):
        raise UnlikeError(
            f"{picture.where} has the mode {image.mode!r}, and images are grey or RGB, 8 bits a channel; "
            "pass channels=1 or 3 to convert palettes and inks and lay transparent images on white, and "
            "convert other depths yourself"
        )
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def on_white(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to the mode "L" or "RGB", on a white background where it is transparent."""
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    return image.convert(mode)


def _shape(pixels: np.ndarray) -> str:
    channels, height, width = pixels.shape
    return f"{height}×{width} {'grey' if channels == 1 else 'RGB'}"


def image_file(content: Callable[[], bytes]) -> Image.Image:
    """Decode a file in any of FORMATS, whatever its name ends in, and turn the image as its orientation tag says.

    Of several images in one file, such as an animation, the first is decoded.

    Args:
        content: a function that reads the file.
    Raises:
        ValueError: the image is too large. Pillow's decoders raise errors of their own for damaged files.
    """
    image = Image.open(io.BytesIO(content()), formats=tuple(FORMATS))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it has {image.width}×{image.height} pixels, more than any image of a data set")
    if "transparency" in image.info:
        _scale_transparent_colour(image)
    image.load()
    if image.info:  # Tags are found here; most small pictures have none, which saves time.
        with contextlib.suppress(SyntaxError):  # Pillow's error for damaged tags; the picture may be whole.
            ImageOps.exif_transpose(image, in_place=True)
    return image


def _scale_transparent_colour(image: ImageFile.ImageFile) -> None:
    """Scale the colour that a PNG declares transparent to 8 bits, as its pixels are.

    Pillow stretches pixels of 2 and 4 bits and shortens those of 16 bits, but leaves this colour as it is in the file.
    """
    match image.info["transparency"], image.tile[0][3] if image.format == "PNG" and image.tile else None:
        case int(grey), "L;2" | "L;4" as raw:
            image.info["transparency"] = grey * {"L;2": 85, "L;4": 17}[raw]
        case tuple(colour), "RGB;16B":
            image.info["transparency"] = tuple(channel >> 8 for channel in colour)


def pictures_of(class_name: str, files: Iterable[File]) -> list[Picture]:
    """Turn the files of one class into pictures, which are decoded later."""
    return [Picture(class_name, file.where, functools.partial(image_file, file.content)) for file in files]
