"""How every picture looks, and how it becomes a file.

Pictures are built as objects, without pyplot: nothing stays open, and any thread may draw. The colours are those of
Okabe and Ito, which colour-blind readers can tell apart. Sizes suit a README and, with `width=COLUMN`, a column of a
paper.
"""

import io
import os
import threading
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from ..training.files import write_atomically

COLUMN = 3.3  # Inches: one column of a paper.
NARROW = 4.5  # Inches: below, panels that would stand in a row stand in a column, and legends have more lines.
LEGEND_HEIGHT = 0.5  # Inches above the panels.
PNG_DPI = 200
FORMATS = (".png", ".pdf")

# Okabe and Ito, without their yellow, which is too light for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#333333"  # Axes, text, and all that stands for no run, step or task.
BEFORE = "#8C8C8C"  # The policy before adaptation.
FRAME = "#B0B0B0"
GRID = "#E8E8E8"

TEXT_SIZE = 8  # Points.
SMALL_SIZE = 7  # Points, for numbers and legends.
TEXT: dict[str, Any] = {"fontsize": TEXT_SIZE, "color": INK}
TICKS: dict[str, Any] = {"labelsize": SMALL_SIZE, "labelcolor": INK, "color": FRAME, "width": 0.8, "length": 3}

FEW_POINTS = 10  # A curve of at most so many points shows each one: a single point would be no line at all.

# Which fonts a PDF gets is a global setting of matplotlib: one thread at a time may change and restore it.
_GLOBAL_SETTINGS = threading.Lock()


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a picture in one step, so that the file is always a whole picture.

    Args:
        figure: the picture.
        path: ends in .png (200 pixels an inch) or .pdf (vectors); an existing file is replaced, its folder exists.

    Raises:
        ValueError: the path ends in something else.
        OSError: the file could not be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"path must end in {' or '.join(FORMATS)}, got {str(path)!r}; rename the picture")
    content = io.BytesIO()
    # TrueType, as many publishers refuse matplotlib's default, Type 3.
    with _GLOBAL_SETTINGS, matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(content, format=suffix.removeprefix("."), dpi=PNG_DPI)
    write_atomically(path, content.getvalue())


def finish_panel(axes: Axes) -> None:
    """Give a panel the house's frame, numbers and a grid of both directions."""
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    finish_frame(axes)


def finish_open_panel(axes: Axes) -> None:
    """Give a panel the house's numbers, a frame that is open above and to the right, and horizontal grid lines."""
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["right", "top"]].set_visible(False)
    finish_frame(axes)


def finish_frame(axes: Axes) -> None:
    """Give a panel the house's frame and numbers."""
    axes.spines[:].set(color=FRAME, linewidth=0.8)
    axes.tick_params(**TICKS)


def legend_above(figure: Figure, handles: Sequence[Artist], columns: int, title: str | None = None) -> Legend:
    """Put a legend above the panels of a picture.

    Args:
        figure: with a constrained layout, which makes room for the legend.
        handles: labelled artists, in the order of the legend.
        columns: the largest number of entries in a row.
        title: a line above the entries.
    """
    legend = figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), columns),
        title=title,
        title_fontsize=SMALL_SIZE if figure.get_figwidth() < NARROW else TEXT_SIZE,
        fontsize=SMALL_SIZE,
        labelcolor=INK,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.2,
    )
    legend.get_title().set_color(INK)
    return legend


def marker(points: Sized) -> str:
    """The marker of a curve: a dot where it has few points, else none."""
    return "o" if len(points) <= FEW_POINTS else ""


def step_colour(step: int) -> str:
    """The colour of what was measured after a number of inner steps."""
    return BEFORE if step == 0 else COLOURS[(step - 1) % len(COLOURS)]


def step_name(step: int) -> str:
    """What a legend calls a number of inner steps."""
    return "before adaptation" if step == 0 else f"after {step} step{'s' if step > 1 else ''}"


def step_title(step: int, mean_return: float) -> str:
    """The two lines above a panel: the number of inner steps and the mean return after them."""
    return f"{'before' if step == 0 else step_name(step)}\nreturn {minus(f'{mean_return:.1f}')}"


def minus(text: str) -> str:
    """A number's text with a minus sign instead of a hyphen, and no sign before zero."""
    return text.replace("-", "−") if float(text) else text.removeprefix("-")
