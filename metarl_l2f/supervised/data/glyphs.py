"""Glyphs: letters of many scripts as a few-shot data set, drawn from the fonts that come with matplotlib.

A class is a letter, and its instances are drawn in different typefaces, each turned, sheared, scaled and shifted a
little. Training, validation and test share no script and no look-alikes. docs/glyphs.md describes the set and its uses.
"""

import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font, LoadFlags
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from ...training.seeding import Stream, generator
from ..episodes import Images, Split

SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("LATIN", "GREEK", "CYRILLIC", "COPTIC", "CANADIAN SYLLABICS"),
    "val": ("ARMENIAN", "HEBREW", "LAO", "NKO"),
    "test": ("GEORGIAN", "ARABIC", "TIFINAGH"),
}
"""The scripts of each split, as Unicode's names of letters begin. Of two look-alikes, the first in this order stays."""
SCRIPTS = [script for scripts in SPLITS.values() for script in scripts]

UNICODE_TYPEFACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
"""Font files whose glyphs are numbered by Unicode."""
TEX_TYPEFACES = ("cmr10", "cmb10", "cmss10", "cmtt10", "cmmi10")
"""Computer Modern, whose glyphs are numbered as in TeX: only A to Z and a to z have Unicode's numbers."""

LETTER_CATEGORIES = ("Lu", "Ll", "Lo")  # upper case, lower case, neither; not marks, modifiers, digits or symbols
NOT_ONE_LETTER = ("FRAGMENT", "LIGATURE")  # words in the names of characters that are less or more than a letter
MIN_TYPEFACES = 2  # Instances of a letter in one typeface alone would be distortions of a single drawing.
INSTANCES = 24  # per class: at least one for each of 21 typefaces; equally many for each of 2, 4, 8 or 12 typefaces

SIZE = 28  # px, side of an image
BOX = 17  # px, longer side of an upright letter; its size and place in the font do not matter

# Distortions, all uniform. At their worst a corner of the box lies 8.5 (1 + 0.2) cos 20° + 8.5 sin 20° + 1.5 = 13.99 px
# from the middle along an axis: no ink ever leaves the image.
MAX_TURN = np.pi / 9  # rad, either way
MAX_SHEAR = 0.2  # px sideways per px up, either way
MIN_SCALE = 0.7  # of width and height, each up to 1
MAX_SHIFT = 1.5  # px along each axis, either way

FINENESS = 2  # Letters are compared on a grid this many times finer than the images.
LOOK_ALIKE = 9.0  # px² of the images; with less stray ink two letters look alike

SCANLINES = 4  # for each row of an image; along a scanline, coverage is exact

LINE, CURVE = 2, 3  # codes of an outline's segments: LINETO and CURVE3 of matplotlib.path.Path
# A quadratic curve becomes four straight edges, between where it is at t = 0, ¼, ½, ¾ and 1: (1 − t)², 2 t (1 − t) and
# t² of its start, control point and end.
BEND = np.array([[16, 0, 0], [9, 6, 1], [4, 8, 4], [1, 6, 9], [0, 0, 16]]) / 16

Array = NDArray[np.float64]


class Typeface(NamedTuple):
    """One font file."""

    font: FT2Font
    letters: frozenset[str]
    """The letters of SCRIPTS that the file has a glyph for."""


def load_glyphs(seed: int = 0) -> dict[Split, Images]:
    """Draw the data set; a seed gives the same images on every machine.

    Args:
        seed: the seed of the distortions, 0 or more; the classes do not depend on it.
    Returns:
        The splits "train", "val" and "test", each with 24 images (1, 28, 28) per class, bright on black. Classes are
        named by the Unicode names of their letters and ordered by script, as in SPLITS, then by code point.
    Raises:
        ValueError: a font file is missing, or the seed is not an integer of 0 or more.
    """
    classes = choose_classes(open_typefaces())
    return {split: _draw(seed, {c: classes[c] for c in classes if script_of(c) in SPLITS[split]}) for split in SPLITS}


def _draw(seed: int, classes: dict[str, list[Array]]) -> Images:
    drawn = [
        draw_instances(outlines, generator(seed, Stream.DATA, ord(letter))) for letter, outlines in classes.items()
    ]
    return Images(
        pixels=torch.from_numpy(np.concatenate(drawn)[:, None]),
        labels=torch.arange(len(classes)).repeat_interleave(INSTANCES),
        classes=tuple(map(unicodedata.name, classes)),
        where="Glyphs",
    )


def open_typefaces() -> list[Typeface]:
    """Open matplotlib's own font files; fonts of the system are not used.

    Raises:
        ValueError: a file is missing.
    """
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    typefaces = []
    for name in UNICODE_TYPEFACES + TEX_TYPEFACES:
        path = folder / f"{name}.ttf"
        if not path.is_file():
            raise ValueError(
                f"Glyphs is drawn from matplotlib's own fonts, but {path} is missing; reinstall matplotlib"
            )
        font = FT2Font(str(path))
        characters = set(map(chr, font.get_charmap()))
        if name in TEX_TYPEFACES:
            characters &= set(string.ascii_letters)
        typefaces.append(Typeface(font, frozenset(filter(script_of, characters))))
    return typefaces


def script_of(character: str) -> str:
    """Return a letter's script, one of SCRIPTS, or "" for accented letters, ligatures and all other characters."""
    name = unicodedata.name(character, "")
    if (
        unicodedata.category(character) not in LETTER_CATEGORIES
        or unicodedata.decomposition(character)
        or any(word in name for word in NOT_ONE_LETTER)
    ):
        return ""
    return next((script for script in SCRIPTS if name.startswith(f"{script} ")), "")


def choose_classes(typefaces: Sequence[Typeface]) -> dict[str, list[Array]]:
    """Choose the letters that become classes.

    Typeface by typeface, a letter is dropped if it looks like an earlier one that was kept. So no two of the remaining
    letters look alike in any typeface.

    Args:
        typefaces: the font files.
    Returns:
        The outlines of each letter, in order, one for every typeface that has the letter.
    """
    holders = Counter(letter for typeface in typefaces for letter in typeface.letters)
    letters = [letter for letter, number in holders.items() if number >= MIN_TYPEFACES]
    letters.sort(key=lambda letter: (SCRIPTS.index(script_of(letter)), letter))
    classes: dict[str, list[Array]] = {letter: [] for letter in letters}
    for font, held in typefaces:
        outlines = {letter: outline(font, letter) for letter in classes if letter in held}
        for letter in look_alikes(outlines):
            del classes[letter], outlines[letter]
        for letter, edges in outlines.items():
            classes[letter].append(edges)
    return classes


def look_alikes(outlines: dict[str, Array]) -> list[str]:
    """List the letters of one typeface that look like an earlier letter, which is itself no look-alike.

    Args:
        outlines: the outline of each letter; their order decides which letter is the earlier one.
    """
    alike = stray_ink(list(outlines.values())) < LOOK_ALIKE
    found = []
    taken = torch.zeros(len(outlines), dtype=torch.bool)
    for number, letter in enumerate(outlines):
        if taken[number]:
            found.append(letter)
        else:
            taken |= alike[number]
    return found


def stray_ink(outlines: Sequence[Array]) -> Tensor:
    """Measure how much letters differ: the area of one letter's ink that is not near the ink of the other.

    Of the two letters' areas the larger one counts. Letters are upright and stretched to fill the box, because a
    distortion changes how slender a letter is. Ink is near within a cell of the finer grid, which is half a pixel of
    the images. The measure is an area, not a fraction, so a dot makes the same difference to a bold letter as to a
    light one.

    Args:
        outlines: the outlines of n letters.
    Returns:
        (n, n) in px² of the images, symmetric.
    """
    side = FINENESS * (BOX + 2)  # a pixel around the box for what is near it
    stretched = [FINENESS * BOX * edges / np.ptp(edges, axis=(0, 1)) + side / 2 for edges in outlines]
    ink = torch.from_numpy(coverage(stretched, side, SCANLINES // FINENESS)).float()
    near = max_pool2d(ink[:, None], kernel_size=3, stride=1, padding=1)
    stray = ink.flatten(1) @ (1 - near).flatten(1).T / FINENESS**2
    return torch.maximum(stray, stray.T)


def draw_instances(outlines: Sequence[Array], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one class: its typefaces in turn, each instance distorted in its own way.

    Args:
        outlines: the letter's outline in each of its typefaces.
        rng: the class's own generator.
    Returns:
        (INSTANCES, SIZE, SIZE), from 0 for black to 255 for ink.
    """
    turn = rng.uniform(-MAX_TURN, MAX_TURN, INSTANCES)
    shear = rng.uniform(-MAX_SHEAR, MAX_SHEAR, INSTANCES)
    width, height = rng.uniform(MIN_SCALE, 1, (2, INSTANCES))
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, (INSTANCES, 2))
    cos, sin = np.cos(turn), np.sin(turn)
    # The turn times the shear times the scales: [cos −sin; sin cos] [1 shear; 0 1] [width 0; 0 height].
    matrix = np.array([[cos * width, (cos * shear - sin) * height], [sin * width, (sin * shear + cos) * height]])
    placed = [BOX * outlines[i % len(outlines)] @ matrix[:, :, i].T + shift[i] + SIZE / 2 for i in range(INSTANCES)]
    return np.rint(255 * coverage(placed, SIZE, SCANLINES)).astype(np.uint8)


def outline(font: FT2Font, letter: str) -> Array:
    """Read the edges around a letter's ink, scaled to a box about the origin whose longer side is 1; y points down.

    Outlines are read unscaled and unhinted, and filled by `coverage`, so that FreeType's version makes no difference.

    Args:
        font: the font file.
        letter: the letter.
    Returns:
        (edges, 2, 2), each edge from (x, y) to (x, y); its direction distinguishes ink from holes.
    """
    font.load_char(ord(letter), flags=LoadFlags.NO_SCALE | LoadFlags.IGNORE_TRANSFORM)
    points, codes = font.get_path()
    ends = np.flatnonzero(codes == LINE)
    lines = np.stack([points[ends - 1], points[ends]], axis=1)
    controls = np.flatnonzero(codes == CURVE)[::2]  # A curve is two rows: its control point, its end.
    bends = np.tensordot(BEND, np.stack([points[controls - 1], points[controls], points[controls + 1]]), axes=1)
    edges = np.concatenate([lines, np.stack([bends[:-1], bends[1:]], axis=2).reshape(-1, 2, 2)])
    low, high = edges.min(axis=(0, 1)), edges.max(axis=(0, 1))
    return (edges - (low + high) / 2) / (high - low).max() * [1, -1]


def coverage(outlines: Sequence[Array], side: int, scanlines: int) -> Array:
    """Fill outlines, and compute the fraction of every pixel that is ink.

    Along a scanline, every edge that leads down raises the winding number of all that follows by one, and every edge
    that leads up lowers it; ink is where the winding number is not zero.

    Args:
        outlines: n arrays (edges, 2, 2), in px, closed and inside the image.
        side: the side of an image, in px.
        scanlines: the number of scanlines for each row of pixels.
    Returns:
        (n, side, side), each in [0, 1].
    """
    start, end = np.concatenate(outlines).transpose(1, 2, 0)  # (2, edges) each
    image = np.repeat(np.arange(len(outlines)), [len(edges) for edges in outlines])
    # Scanline s lies at a height of (s + ½) / scanlines; an edge crosses those from its `first` up to its `last`.
    levels = np.ceil(np.stack([start[1], end[1]]) * scanlines - 0.5).astype(np.int64)
    first, last = levels.min(axis=0), levels.max(axis=0)
    # From here on there is a row for every crossing.
    edge = np.repeat(np.arange(len(image)), last - first)
    scanline = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
    (x, y), (run, rise) = start[:, edge], (end - start)[:, edge]
    place = x + ((scanline + 0.5) / scanlines - y) * run / rise
    column = place.astype(np.int64)
    # Of its own pixel an edge covers the part to its right, and all of the pixels beyond. There are two columns more
    # than pixels, for edges on the very border.
    right = column + 1 - place
    shape = (len(outlines), side, scanlines, side + 2)
    cell = (image[edge] * side * scanlines + scanline) * (side + 2) + column
    direction = np.sign(rise)
    steps = np.bincount(cell, direction * right, np.prod(shape))
    steps += np.bincount(cell + 1, direction * (1 - right), np.prod(shape))
    # Outlines are closed, so that every scanline ends at zero and one running sum serves them all.
    winding = steps.cumsum().reshape(shape)[..., :side]
    return np.abs(winding).clip(max=1).mean(axis=2)
