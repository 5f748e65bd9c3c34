"""Speeds of runners: how fast bodies run over time, and against what their tasks pay for (L2F, Figure 5)."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..rl.episodes import Episodes
from .style import FEW_POINTS, FRAME, INK, TEXT, finish_open_panel, step_title

SPEED_COLOURS = matplotlib.colormaps["viridis"]  # From the backward or slowest task to the fastest, …
BRIGHTEST = 0.85  # … which stays darker than the end of the map, too light for a line on white.


def running_speeds(
    episodes: Sequence[Episodes],
    tasks: ArrayLike,
    *,
    speed_column: int,
    task_name: str,
    goals_are_speeds: bool = False,
    width: float | None = None,
) -> Figure:
    """Draw how fast bodies run, a column for every number of inner steps, a colour for every task.

    The upper panels show the forward speed over time, one line a task, averaged over its episodes. The lower panels
    show the mean speed of the second half of the episodes against the task, one dot a task; a body that runs one way
    whatever its task gives a flat row of dots. The title of each column gives the mean return over all tasks.

    Args:
        episodes: before adaptation, then after 1 … k steps; as `MetaRL.evaluate` returns them, on N tasks.
        tasks: (N,), the tasks as numbers: directions, or goal speeds in m/s.
        speed_column: the index of the forward speed, in m/s, among an observation's numbers.
        task_name: the name of the tasks' axis, with its unit.
        goals_are_speeds: whether to draw the line on which speed and goal agree.
        width: width of the picture, inches; by default 1.9 a column and 0.4 more.

    Raises:
        ValueError: the tasks are not one number for each task of the episodes, or there is no such column.
    """
    tasks = np.asarray(tasks, dtype=float)
    shapes = sorted({tuple(batch.observations.shape) for batch in episodes})
    if not shapes or tasks.shape != (shapes[0][0],) or len(shapes) > 1 or not 0 <= speed_column < shapes[0][-1]:
        raise ValueError(
            "tasks must be (N,), one number for each task of the episodes, and speed_column one of the observations' "
            f"columns; got tasks of shape {tasks.shape}, observations of shapes {shapes}, and column {speed_column}"
        )
    speeds = [_mean_speeds(batch, speed_column) for batch in episodes]
    figure = Figure(figsize=(1.9 * len(episodes) + 0.4 if width is None else width, 3.6), layout="constrained")
    panels = figure.subplots(2, len(episodes), sharey=True, sharex="row", squeeze=False)
    low, high = tasks.min(), tasks.max()
    colours = SPEED_COLOURS(BRIGHTEST * (tasks - low) / (high - low if high > low else 1.0))
    for step, (batch, speed) in enumerate(zip(episodes, speeds, strict=True)):
        above, below = panels[:, step]
        for line, colour in zip(speed, colours, strict=True):
            above.plot(line, color=colour, linewidth=0.7, alpha=0.8)
        half = speed.shape[1] // 2
        if goals_are_speeds:
            below.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
        below.scatter(tasks, _mean_of_running(speed[:, half:]), s=10, c=colours, zorder=2)
        above.set_title(step_title(step, float(batch.returns().mean())), **TEXT)
        above.set_xlabel("time step", **TEXT)
        below.set_xlabel(task_name, **TEXT)
        if not goals_are_speeds and len(np.unique(tasks)) <= FEW_POINTS:
            below.set(xticks=np.unique(tasks), xlim=(low - 0.6, high + 0.6))
        for axes in (above, below):
            axes.axhline(0.0, color=FRAME, linewidth=0.6, zorder=0)
            finish_open_panel(axes)
    panels[0, 0].set_ylabel("forward speed, m/s", **TEXT)
    panels[1, 0].set_ylabel("mean speed,\nsecond half, m/s", **TEXT)
    return figure


def _mean_speeds(batch: Episodes, column: int) -> np.ndarray:
    """Mean speeds over the episodes that still run, (N, T); NaN where none does."""
    mask = batch.mask.numpy()
    total = (batch.observations[..., column].numpy() * mask).sum(1)
    running = mask.sum(1)
    return np.where(running > 0, total / np.maximum(running, 1), np.nan)


def _mean_of_running(speeds: np.ndarray) -> np.ndarray:
    """Means over the steps in which an episode ran, (N, T) → (N,); NaN, which is not drawn, where none did."""
    return np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in speeds])
