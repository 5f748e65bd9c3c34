"""Scores on held-out tasks: their means after 0 … k inner steps, with 95 % intervals over tasks.

Knows no domain: a score is a return, an error or an accuracy, one number per task and step.
"""

import csv
import gzip
import io
import itertools
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ..training.files import write_atomically

CONFIDENCE = 0.95
GROUPS = 4
"""The largest number of lines in the table by task."""


class Interval(NamedTuple):
    """A mean and the half-width of its confidence interval."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:.2f}{self.margin(2)}"

    def margin(self, digits: int) -> str:
        """Return " ± half-width", to print after the mean; "" where a single value has no interval."""
        return "" if math.isnan(self.half_width) else f" ± {self.half_width:.{digits}f}"


def mean_interval(values: np.ndarray) -> Interval:
    """Student's t interval of a mean: x̄ ± t_{0.975, n−1} s / √n.

    Args:
        values: (n,), independent; with n = 1 the half-width is NaN.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values must be a non-empty list of numbers, got an array of shape {values.shape}")
    if len(values) == 1:
        return Interval(float(values[0]), float("nan"))
    quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)
    return Interval(float(values.mean()), float(quantile * values.std(ddof=1) / np.sqrt(len(values))))


@dataclass(frozen=True)
class Evaluation:
    """Scores of one trained model on held-out tasks."""

    scores: np.ndarray
    """(N, k + 1): the score of every task, before adaptation and after 1 … k steps."""
    protocol: Mapping[str, Any]
    """How the scores were measured: environment, tasks, episodes, seed. Evaluations with one protocol can be paired."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """The model that was measured: run, method, checkpoint, later step sizes."""
    tasks: np.ndarray | None = None
    """(N, ...): the tasks, where they are numbers."""
    score: str = "return"
    """Name of the score, such as return, mse or accuracy."""
    digits: int = 2
    """Decimals of the score that are worth printing."""

    def intervals(self) -> list[Interval]:
        """Return the mean over tasks and its interval, after 0 … k steps."""
        return [mean_interval(column) for column in self.scores.T]

    def table(self) -> str:
        """Return a plain-text table, one line per step, and one per group of tasks where there are groups."""
        numbered, digits = enumerate(self.intervals()), self.digits
        rows = [f"{k:>5}  {interval.mean:>9.{digits}f}{interval.margin(digits)}" for k, interval in numbered]
        heading = f"steps  {self.score} (mean over {len(self.scores)} held-out tasks ± 95 % interval)"
        return "\n".join([heading, *rows, *self._table_by_task()])

    def _table_by_task(self) -> list[str]:
        """Return lines with the mean of every group of tasks, so that no average hides a task that fails."""
        groups = task_groups(self.tasks) if self.tasks is not None else {}
        if len(groups) < 2:
            return []
        width = max(len(label) for label in groups)
        steps = "".join(f"{f'{step} steps':>10}" for step in range(self.scores.shape[1]))
        return [
            f"{'task':<{width}}  tasks{steps}",
            *(
                f"{label:<{width}}  {mask.sum():>5}" + "".join(f"{mean:>10.2f}" for mean in self.scores[mask].mean(0))
                for label, mask in groups.items()
            ),
        ]

    def save(self, path: Path) -> None:
        """Write evaluation.json: protocol, mean and interval by step, and every task's scores, with every digit."""
        content = {
            "protocol": dict(self.protocol),
            "model": dict(self.model),
            "score": self.score,
            "digits": self.digits,
            "mean": [interval.mean for interval in self.intervals()],
            "interval_95": [_finite(interval.half_width) for interval in self.intervals()],
            "scores": np.asarray(self.scores).tolist(),
            "tasks": None if self.tasks is None else np.asarray(self.tasks).tolist(),
        }
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def load_evaluation(path: Path) -> Evaluation:
    """Read what `Evaluation.save` wrote."""
    content = json.loads(Path(path).read_text())
    tasks, score = content.get("tasks"), content.get("score", "return")
    return Evaluation(
        np.array(content["scores"]),
        content["protocol"],
        content["model"],
        None if tasks is None else np.array(tasks),
        score,
        content.get("digits", 2 if score == "return" else 4),  # Version 0.1 did not write them.
    )


SCORES_FILE = "scores.csv.gz"


def write_scores(path: Path, columns: Sequence[str], evaluations: Mapping[tuple[str, ...], Evaluation]) -> None:
    """Write every task's scores of a study, from which its tables can be recomputed: gzipped csv, a line per task.

    Args:
        path: the file; the same evaluations give the same bytes.
        columns: names of the parts of the keys.
        evaluations: by what tells them apart, such as (method, episodes, run).
    """
    text, steps = io.StringIO(), max(one.scores.shape[1] for one in evaluations.values())
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "task", *(f"step_{step}" for step in range(steps))])
    for key, one in evaluations.items():
        tasks = [""] * len(one.scores) if one.tasks is None else map(json.dumps, np.asarray(one.tasks).tolist())
        # The shortest text that is read back as the same number.
        writer.writerows([*key, task, *map(repr, row)] for task, row in zip(tasks, one.scores.tolist(), strict=True))
    write_atomically(path, gzip.compress(text.getvalue().encode(), mtime=0))


def read_scores(path: Path) -> dict[tuple[str, ...], Evaluation]:
    """Read what `write_scores` wrote: evaluations by key, with an empty protocol.

    Raises:
        ValueError: the file is of another kind, or damaged.
    """
    try:
        names, *lines = csv.reader(io.StringIO(gzip.decompress(Path(path).read_bytes()).decode()))
        width, rows = names.index("task"), defaultdict(list)
        for line in lines:
            rows[tuple(line[:width])].append((line[width], [float(cell) for cell in line[width + 1 :]]))
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} holds no scores of a study ({error}); give a {SCORES_FILE} that one wrote") from error
    found = {}
    for key, entries in rows.items():
        tasks = np.array([json.loads(task) for task, _ in entries]) if entries[0][0] else None
        found[key] = Evaluation(np.array([scores for _, scores in entries]), {}, tasks=tasks)
    return found


def task_groups(tasks: np.ndarray) -> dict[str, np.ndarray]:
    """Group tasks that are single numbers: equal ones where there are few values, else by quarters of their range.

    Args:
        tasks: (N,); tasks of any other shape are not grouped.
    Returns:
        For every group that holds a task, by its name, a mask (N,).
    """
    tasks = np.asarray(tasks)
    if tasks.ndim != 1 or not np.issubdtype(tasks.dtype, np.number):
        return {}
    values = np.unique(tasks)
    if len(values) <= GROUPS:
        return {f"{value:g}": tasks == value for value in values}
    edges = np.linspace(values[0], values[-1], GROUPS + 1)
    quarter = np.clip(np.searchsorted(edges, tasks, side="right") - 1, 0, GROUPS - 1)
    names = [f"{low:.2f} to {high:.2f}" for low, high in itertools.pairwise(edges)]
    return {name: quarter == number for number, name in enumerate(names) if (quarter == number).any()}


def paired_differences(ours: Evaluation, theirs: Evaluation) -> list[Interval]:
    """Compute the mean of the task-by-task differences ours − theirs after 0 … k steps, with intervals over tasks.

    Raises:
        ValueError: the two were not measured under the same protocol on the same tasks.
    """
    if ours.protocol == theirs.protocol and ours.scores.shape != theirs.scores.shape:
        steps = [one.scores.shape[1] - 1 for one in (ours, theirs)]
        raise ValueError(f"paired evaluations must have as many steps, got {steps[0]} and {steps[1]}")
    if ours.protocol != theirs.protocol:
        raise ValueError(
            f"paired evaluations must share one protocol, got {dict(ours.protocol)} and {dict(theirs.protocol)}; "
            "evaluate both with the same tasks, episodes, steps and seed"
        )
    return [mean_interval(column) for column in (ours.scores - theirs.scores).T]


@dataclass(frozen=True)
class Comparison:
    """Two trained models on the same held-out tasks, compared task by task.

    Raises:
        ValueError: the two were not measured under the same protocol on the same tasks.
    """

    ours: Evaluation
    """The evaluation of the first model, A."""
    theirs: Evaluation
    """The evaluation of the second model, B."""
    names: tuple[str, str]
    """The names of the two models."""

    def __post_init__(self) -> None:
        paired_differences(self.ours, self.theirs)

    def differences(self) -> list[Interval]:
        """Return A − B after 0 … k steps: the mean over tasks, and its 95 % interval."""
        return paired_differences(self.ours, self.theirs)

    def table(self) -> str:
        """A plain-text table, one line per step."""
        digits = self.ours.digits
        columns = zip(self.ours.intervals(), self.theirs.intervals(), self.differences(), strict=True)
        rows = [
            f"{step:>5}" + "".join(f"  {f'{i.mean:.{digits}f}{i.margin(digits)}':>20}" for i in intervals)
            for step, intervals in enumerate(columns)
        ]
        return "\n".join(
            [
                f"A  {self.names[0]}",
                f"B  {self.names[1]}",
                f"{self.ours.score} on the same {len(self.ours.scores)} held-out tasks, mean ± 95 % interval",
                f"steps  {'A':>20}  {'B':>20}  {'A − B, paired':>20}",
                *rows,
            ]
        )

    def save(self, path: Path) -> None:
        """Write the comparison as json: protocol, both models and means, the differences and their intervals."""
        differences = self.differences()
        content = {
            "protocol": dict(self.ours.protocol),
            "score": self.ours.score,
            **{
                key: {"run": name, "model": dict(one.model), "mean": [interval.mean for interval in one.intervals()]}
                for key, name, one in zip("ab", self.names, (self.ours, self.theirs), strict=True)
            },
            "a_minus_b": [interval.mean for interval in differences],
            "interval_95": [_finite(interval.half_width) for interval in differences],
        }
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
