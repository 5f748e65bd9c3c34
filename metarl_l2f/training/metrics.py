"""What a run measured: one JSON object per meta-iteration in metrics.jsonl, and the same numbers in TensorBoard."""

import contextlib
import json
import math
import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, SupportsFloat

import numpy as np

from .files import write_atomically, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS_FILE = "metrics.jsonl"

Log = Sequence[Mapping[str, Any]]
"""The lines of a run's metrics, as `read` returns them."""

BOARD = {
    "Scores": {
        "return by inner step": ["Multiline", [r"^return/step_"]],
        "validation by inner step": ["Multiline", [r"^validation/(return|mse|accuracy)/step_"]],
    },
    "Meta-update": {
        "change of the surrogate": ["Multiline", [r"^surrogate/change$"]],
        "KL of the adapted policies": ["Multiline", [r"^kl$", r"^kl/epoch_"]],
        "norm of the meta-gradient": ["Multiline", [r"^gradient_norm$"]],
        "fraction of samples that are clipped": ["Multiline", [r"^clip_fraction$"]],
        "KL of the inner steps' policies": ["Multiline", [r"^inner_kl/"]],
        "weights of the penalties on it": ["Multiline", [r"^inner_kl_weight/"]],
        "residual of conjugate gradient": ["Multiline", [r"^cg_residual$"]],
        "line search": ["Multiline", [r"^line_search/"]],
    },
    "Policies": {
        "entropy, nats": ["Multiline", [r"^entropy/"]],
        "action noise σ": ["Multiline", [r"^policy/std$"]],
        "variance of returns that the baseline explains": ["Multiline", [r"^explained_variance/"]],
    },
    "Update rule": {
        "step sizes": ["Multiline", [r"^step_size/"]],
        "decays": ["Multiline", [r"^decay/"]],
    },
    "Attenuation": {
        "γ by tensor, mean over tasks": ["Multiline", [r"^gamma/.*/mean$"]],
        "γ by tensor, standard deviation over tasks": ["Multiline", [r"^gamma/.*/std$"]],
    },
    "Conflict": {
        "conflict by layer, radians": ["Multiline", [r"^conflict/"]],
        "conflict of the meta-gradients, radians": ["Multiline", [r"^meta_conflict/"]],
        "cosine of gradients before and after adaptation": ["Multiline", [r"^gradient_cosine/"]],
    },
    "Landscape of the inner loss": {
        "range of the loss": ["Multiline", [r"^landscape/loss_range$"]],
        "range of the gradient's change": ["Multiline", [r"^landscape/gradient_change_range$"]],
        "smoothness": ["Multiline", [r"^landscape/smoothness$"]],
    },
    "Time": {"seconds": ["Multiline", [r"^time/"]]},
}
"""The charts in TensorBoard's tab of custom scalars, by chapter, each with the tags that it gathers."""


class Shown(NamedTuple):
    """Results of an inspection during training, beyond the metrics of every iteration."""

    metrics: Mapping[str, SupportsFloat]
    """Further numbers of the iteration, by tag."""
    histograms: Mapping[str, np.ndarray]
    """Arrays by tag, shown by TensorBoard alone."""
    pictures: Mapping[str, "Figure"]
    """Figures by tag, shown by TensorBoard alone."""


class MetricsLog:
    """Appends one line per iteration, which is on disk when `write` returns; a context manager.

    Args:
        directory: the run's folder, which exists.
        resume_from: None for a new run, else the iteration after which it continues: later lines and later points of
            TensorBoard are dropped, because their iterations are about to run again.

    Raises:
        FileExistsError: the run is new, but the folder already has metrics.
        ValueError: the run is resumed, and its metrics are damaged elsewhere than in the last line.
    """

    def __init__(self, directory: str | os.PathLike[str], resume_from: int | None) -> None:
        self._path = Path(directory) / METRICS_FILE
        if resume_from is None:
            self._path.touch(exist_ok=False)
        elif self._path.exists():
            kept = [line for line, entry in _entries(self._path) if entry["iteration"] <= resume_from]
            with writing(self._path):
                write_atomically(self._path, "".join(line + "\n" for line in kept).encode())
        from torch.utils.tensorboard import SummaryWriter  # It takes half a second, which only training needs.

        with self._writing_board():
            self._board = SummaryWriter(directory, purge_step=None if resume_from is None else resume_from + 1)
            if resume_from is None:
                self._board.add_custom_scalars(BOARD)

    def write(self, iteration: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Log one iteration.

        Args:
            iteration: its number, from 1.
            metrics: numbers by tag, written in their order; NaN and infinities become null in the JSON.

        Raises:
            TypeError: a metric is not a number.
            OSError: the line could not be written, for instance because the disk is full.
        """
        values = {tag: _number(tag, value) for tag, value in metrics.items()}
        finite = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        line = json.dumps({"iteration": iteration} | finite, allow_nan=False)
        with writing(self._path), open(self._path, "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with self._writing_board():
            for tag, value in values.items():
                self._board.add_scalar(tag, value, iteration)
            self._board.flush()

    def show(self, iteration: int, found: Shown) -> None:
        """Put histograms and pictures into TensorBoard; the metrics are for `write`."""
        with self._writing_board():
            for tag, values in found.histograms.items():
                self._board.add_histogram(tag, np.asarray(values), iteration)
            for tag, figure in found.pictures.items():
                self._board.add_figure(tag, figure, iteration, close=False)
            self._board.flush()

    def close(self) -> None:
        """Close the TensorBoard file; metrics.jsonl is open only while a line is written."""
        with self._writing_board():
            self._board.close()

    def _writing_board(self) -> contextlib.AbstractContextManager[None]:
        return writing(self._path.with_name("events.out.tfevents.*"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first; a last line that was cut short by a crash is left out.

    Args:
        path: the file, or the run's folder.

    Returns:
        One dict per iteration: "iteration", then numbers by tag, None where one was not finite.

    Raises:
        ValueError: the file is missing, or a line before the last is not a JSON object with an iteration.
    """
    path = Path(path)
    path = path / METRICS_FILE if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"{path.parent} has no {path.name}; put it back, or give a folder that training wrote")
    return [entry for _, entry in _entries(path)]


def gap(lines: Sequence[Mapping[str, Any]], until: int, every: int) -> str | None:
    """Describe which lines a run's metrics lack; None if they are whole.

    Args:
        lines: the lines, as `read` returns them.
        until: the number of iterations that are done.
        every: the number of iterations between two lines.
    """
    found = {line["iteration"] for line in lines}
    lacking = [iteration for iteration in range(every, until + 1, every) if iteration not in found]
    if not lacking:
        return None
    return (
        f"{METRICS_FILE} lacks {len(lacking)} of the {until // every} lines up to iteration {until}, "
        f"the first of them that of iteration {lacking[0]}"
    )


def _entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each whole line, as text and as data."""
    lines = path.read_bytes().splitlines()
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode()
            entry = json.loads(text)
            if not isinstance(entry, dict) or not isinstance(entry.get("iteration"), int):
                raise ValueError("it has no iteration number")
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(
                f"line {number} of {path} is damaged ({error}); every line must be a JSON object with an iteration: "
                "delete that line, then try again"
            ) from error
        entries.append((text, entry))
    return entries


def _number(tag: str, value: SupportsFloat) -> int | float:
    if isinstance(value, numbers.Integral):
        return int(value)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the metric {tag!r} must be one number, got {value!r}; log its mean or its entries") from error
