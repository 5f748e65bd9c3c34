"""Paths of 2D navigation: where the policy walks before and after adaptation."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from ..checks import check_count
from ..envs.navigation import move
from ..rl.episodes import Episodes
from .style import COLOURS, INK, TEXT, finish_frame, step_title

PANELS_A_ROW = 4
PANEL_SIZE = 1.6  # Inches.
SMALLEST_PANEL = 1.0  # Inches: narrower pictures have more rows.
HEADING_SIZE = 0.35  # Inches: the two lines of text above a panel.
TASKS_SHOWN = 5
FARTHEST = 1.5  # Panels end so many times as far out as the farthest goal, lest one stray path dwarf the rest.


def navigation_paths(
    episodes: Sequence[Episodes],
    goals: ArrayLike,
    *,
    tasks: Sequence[int] | None = None,
    episodes_shown: int = 5,
    width: float | None = None,
) -> Figure:
    """Draw the paths of 2D navigation, a panel for every number of inner steps, a colour for every task.

    Stars are goals, dots are starts. The first episode of every task is drawn strongly, further ones faintly. The title
    of each panel gives the mean return over all tasks and episodes, including those that are not drawn.

    Args:
        episodes: before adaptation, then after 1 … k steps; as `MetaRL.evaluate` returns them, on N tasks.
        goals: (N, 2), the goals of the tasks.
        tasks: indices of the tasks to draw; by default the first five.
        episodes_shown: the largest number of episodes drawn for each task, 1 or more.
        width: width of the picture, inches; by default 1.6 a panel.

    Raises:
        ValueError: the observations are no positions on a plane, the goals do not belong to the episodes' tasks, or
            there is nothing to draw.
    """
    goals = _checked_goals(goals, episodes)
    shown = list(range(min(len(goals), TASKS_SHOWN))) if tasks is None else list(tasks)
    if not shown or not all(0 <= task < len(goals) for task in shown):
        raise ValueError(f"tasks must be some of the numbers 0 … {len(goals) - 1}, got {shown}; name at least one")
    check_count("episodes_shown", episodes_shown)
    paths = [
        [[walked(batch, task, b) for b in range(min(episodes_shown, batch.mask.shape[1]))] for task in shown]
        for batch in episodes
    ]

    fitting = PANELS_A_ROW if width is None else max(1, int(width / SMALLEST_PANEL))
    rows = math.ceil(len(episodes) / min(fitting, PANELS_A_ROW))
    columns = math.ceil(len(episodes) / rows)
    width = columns * PANEL_SIZE if width is None else width
    figure = Figure(figsize=(width, rows * (width / columns + HEADING_SIZE)), layout="constrained")
    limit = _limit(paths, goals)
    # One round number to either side, 1, 2 or 5 times a power of ten, shows the scale.
    power = 10.0 ** math.floor(math.log10(limit))
    tick = max(number for number in (power, 2 * power, 5 * power) if number <= limit)
    ticks = [-tick, 0, tick]
    for step, batch in enumerate(episodes):
        axes = figure.add_subplot(rows, columns, step + 1)
        _draw_paths(axes, paths[step], goals[shown])
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=ticks, yticks=ticks, aspect="equal")
        axes.tick_params(labelleft=step % columns == 0, labelbottom=step + columns >= len(episodes))
        axes.set_title(step_title(step, float(batch.returns().mean())), **TEXT)
    return figure


def _checked_goals(goals: ArrayLike, episodes: Sequence[Episodes]) -> np.ndarray:
    if not episodes:
        raise ValueError("episodes must hold those before adaptation at least, got none")
    for batch in episodes:
        shape = tuple(batch.observations.shape)
        if len(shape) != 4 or shape[-1] != 2:
            raise ValueError(
                f"observations must be positions on a plane, (N, B, T, 2), got shape {shape}; "
                "only episodes of 2D navigation have paths to draw"
            )
    counts = sorted({len(batch.observations) for batch in episodes})
    goals = np.asarray(goals, dtype=float)
    if len(counts) > 1 or goals.shape != (counts[0], 2):
        raise ValueError(
            f"goals must be (N, 2), one for each task of the episodes (N = {', '.join(map(str, counts))}), "
            f"got shape {goals.shape}; give the tasks that were evaluated"
        )
    return goals


def walked(batch: Episodes, task: int, episode: int) -> np.ndarray:
    """The positions of one episode of S steps, (S + 1, 2), with the one after the last move, which is not observed."""
    steps = int(batch.mask[task, episode].sum())
    seen = batch.observations[task, episode, :steps].numpy()
    return np.concatenate([seen, move(seen[-1:], batch.actions[task, episode, steps - 1 : steps].numpy())])


def _limit(paths: list[list[list[np.ndarray]]], goals: np.ndarray) -> float:
    """Half the side of every panel: around the origin, wide enough for all goals and for paths that do not stray."""
    goal = float(np.abs(goals).max())
    path = max(float(np.abs(path).max()) for panel in paths for task in panel for path in task)
    inside = max(goal, min(path, FARTHEST * goal)) if goal > 0 else path
    return 1.05 * inside if inside > 0 else 1.0


def _draw_paths(axes: Axes, paths: list[list[np.ndarray]], goals: np.ndarray) -> None:
    for number, (episodes, goal) in enumerate(zip(paths, goals, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        for path in episodes[1:]:
            axes.plot(*path.T, color=colour, linewidth=0.4, alpha=0.4, zorder=2)
        axes.plot(*episodes[0].T, color=colour, linewidth=0.8, zorder=3)
        axes.plot(*episodes[0][0], "o", color=INK, markersize=3.5, zorder=5)
        (star,) = axes.plot(*goal, "*", color=colour, markersize=9, markeredgecolor=INK, markeredgewidth=0.6, zorder=4)
        star.set_path_effects([withStroke(linewidth=2.2, foreground="white")])
    finish_frame(axes)
