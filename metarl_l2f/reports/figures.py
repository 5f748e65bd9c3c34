"""Every picture: learning curves from the metrics of runs, paths of 2D navigation, and speeds of runners (Figure 5).

Pictures are built as objects, without pyplot: nothing stays open, and any thread may draw. Colours are those of Okabe
and Ito, which colour-blind readers tell apart. Sizes suit a README and, with `width=COLUMN`, a column of a paper.
"""

import io
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

from ..envs.navigation import move
from ..rl.episodes import Episodes
from ..supervised.episodes import Task
from ..training import metrics
from ..training.checkpoint import write_atomically
from .evaluation import mean_interval

Run = str | os.PathLike[str] | Sequence[Mapping[str, Any]]
Log = Sequence[Mapping[str, Any]]

COLUMN = 3.3  # Inches: one column of a paper.
NARROW = 4.5  # Inches: below, panels that would stand in a row stand in a column, and legends have more lines.
PNG_DPI = 200
FORMATS = (".png", ".pdf")
TEXT_SIZE = 8  # Points; of what is less important, SMALL_SIZE.
SMALL_SIZE = 7

# Okabe and Ito, without their yellow, which is too light for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#333333"  # Axes, text, and all that stands for no run, step or task.
BEFORE = "#8C8C8C"  # The policy before adaptation.
SPEED_COLOURS = matplotlib.colormaps["viridis"]  # From the backward or slowest task to the fastest, …
BRIGHTEST = 0.85  # … which stays darker than the end of the map, too light for a line on white.
FRAME = "#B0B0B0"
GRID = "#E8E8E8"

SMOOTHED_SHARE = 0.05  # The part of a run that a point of its smoothed curve averages.
FEW_POINTS = 10  # A curve of no more points shows each one: a single point would be no line at all.

PANELS_A_ROW = 4
PANEL_SIZE = 1.6  # Inches.
SMALLEST_PANEL = 1.0  # Inches: narrower pictures have more rows.
HEADING_SIZE = 0.35  # Inches: the two lines of text above a panel.
TASKS_SHOWN = 5
SHOTS_SHOWN, QUERIES_SHOWN = 2, 10  # Images of each class at most.
RIGHT, WRONG = "#0072B2", "#D55E00"  # Frames of images that were told right, and wrong.
SINUSOID_PANEL = 1.5  # Inches of height.
HEATMAP_ROW = 0.18  # Inches of height.
LEGEND_HEIGHT = 0.5  # Inches above the panels.
FARTHEST = 1.5  # Panels end so many times as far out as the farthest goal, lest one stray path dwarf the rest.

# Which fonts a PDF gets is a global setting of matplotlib: one thread at a time may change and restore it.
_GLOBAL_SETTINGS = threading.Lock()


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a picture in one step, so that the file is always a whole picture.

    Args:
        figure: what a function of this module returned.
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


# --- Learning curves ---


class _Curve(NamedTuple):
    """One logged number over a run, where it was finite."""

    iterations: np.ndarray
    x: np.ndarray
    """Environment steps, or the iterations again."""
    y: np.ndarray


def learning_curve(
    runs: Sequence[Run],
    labels: Sequence[str] | None = None,
    *,
    score: str = "return",
    window: int | None = None,
    width: float = 5.0,
) -> Figure:
    """Draw a score over training, against environment steps (iterations, if a run did not count its steps).

    Of one run: the score before adaptation and after every inner step, as logged (faint) and as running means, and the
    validation after the last step (circles). Of several runs: the running means before adaptation (dashed) and after
    the last step. Runs with the same label are seeds of one method and give one curve, their mean at each iteration
    with its 95 % t-interval, which ends where the shortest of them does.

    Args:
        runs: of each, the folder, its metrics.jsonl, or the lines as `metrics.read` returns them.
        labels: one per run, such as its method. Without labels every run is drawn alone, under its folder's name.
        score: the tags SCORE/step_0 … SCORE/step_k are drawn: `return`, or `validation/accuracy` and its like.
        window: iterations in a running mean, an even number counting as the next odd one; by default 5 % of the run.
        width: of the picture, inches; the height is two thirds of it.

    Raises:
        TypeError: one run was given where a list of runs is due.
        ValueError: a run has no metrics or no such score; labels, window or the number of curves do not fit.
    """
    if isinstance(runs, str | os.PathLike) or any(isinstance(run, Mapping) for run in runs):
        raise TypeError("runs must be a list of runs, got a single one; write [run]")
    if not runs:
        raise ValueError("runs must name at least one run, got none; give folders that hold a metrics.jsonl")
    if labels is not None and len(labels) != len(runs):
        raise ValueError(f"labels must be one per run, got {len(labels)} for {len(runs)} runs; repeat it for each seed")
    if window is not None and window < 1:
        raise ValueError(f"window must be a positive number of iterations, got {window}")
    names = _names(runs)
    logs = [_read(run, name, score) for run, name in zip(runs, names, strict=True)]
    x_key = "env_steps" if all("env_steps" in line for log in logs for line in log) else "iteration"

    figure = Figure(figsize=(width, width * 2 / 3), layout="constrained")
    axes = figure.subplots()
    if len(runs) == 1:
        handles = _draw_run(axes, logs[0], score, x_key, window)
    else:
        groups = _grouped(logs, names if labels is None else labels, score)
        handles = _draw_groups(axes, groups, score, x_key, window)
    _finish_curves(axes, score, x_key)
    legend = figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=3 if len(runs) == 1 else 2,
        title=labels[0] if labels and len(runs) == 1 else None,
        title_fontsize=TEXT_SIZE,
        fontsize=SMALL_SIZE,
        labelcolor=INK,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.2,
    )
    legend.get_title().set_color(INK)
    return figure


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over up to h = window // 2 values to either side.

    At the start it reaches only as far ahead as it can look back, so that steep learning is not blurred and the first
    value stays. At the end it still looks back over h values, lest the last point show the noise of one value.

    Args:
        values: (n,).
        window: 1 leaves the values as they are.

    Returns:
        (n,).
    """
    reach = [min(window // 2, i) for i in range(len(values))]
    return np.array([values[i - r : i + r + 1].mean() for i, r in enumerate(reach)])


def _draw_run(axes: Axes, log: Log, score: str, x_key: str, window: int | None) -> list[Line2D]:
    handles = []
    steps = _steps(log, score)
    for step in steps:
        raw = _curve(log, f"{score}/step_{step}", x_key)
        smooth = _smoothed(raw, window)
        colour = _step_colour(step)
        axes.plot(raw.x, raw.y, color=colour, linewidth=0.6, alpha=0.35)
        handles += axes.plot(
            smooth.x, smooth.y, color=colour, linewidth=1.6, marker=_marker(raw.x), markersize=4, label=_step_name(step)
        )
    validation = _curve(log, f"validation/{score}/step_{steps[-1]}", x_key)
    if len(validation.x):
        handles += axes.plot(
            validation.x,
            validation.y,
            linestyle="none",
            marker="o",
            markersize=4,
            markerfacecolor="white",
            markeredgecolor=handles[-1].get_color(),
            markeredgewidth=1.0,
            zorder=3,
            label="validation",
        )
    if x_key != "iteration":
        _add_iterations(axes, _curve(log, "iteration", x_key))
    return handles


def _draw_groups(
    axes: Axes, groups: Mapping[str, list[Log]], score: str, x_key: str, window: int | None
) -> list[Line2D]:
    handles = []
    dashed: dict[str, Any] = {"linestyle": (0, (3, 1.5)), "linewidth": 1.0, "markerfacecolor": "white"}
    last_steps = {_steps(log, score)[-1] for logs in groups.values() for log in logs}
    for colour, (label, logs) in zip(COLOURS, groups.items(), strict=False):
        style: dict[str, Any] = {"color": colour, "markersize": 4}
        before = [_smoothed(_curve(log, f"{score}/step_0", x_key), window) for log in logs]
        after = [_smoothed(_curve(log, f"{score}/step_{_steps(log, score)[-1]}", x_key), window) for log in logs]
        _draw_mean(axes, before, **dashed, **style)
        (line,) = _draw_mean(axes, after, linewidth=1.6, **style)
        line.set_label(label if len(logs) == 1 else f"{label} ({len(logs)} runs)")
        handles.append(line)
    last = _step_name(last_steps.pop()) if len(last_steps) == 1 else "after the last step"
    return [
        *handles,
        Line2D([], [], color=INK, label=_step_name(0), **dashed),
        Line2D([], [], color=INK, linewidth=1.6, label=last),
    ]


def _draw_mean(axes: Axes, curves: list[_Curve], **style: Any) -> list[Line2D]:
    """Draw the mean of the runs' curves at the iterations that all of them have, and of several runs its interval."""
    common = sorted(set.intersection(*(set(curve.iterations.tolist()) for curve in curves)))
    rows = [np.isin(curve.iterations, common) for curve in curves]
    x = np.mean([curve.x[row] for curve, row in zip(curves, rows, strict=True)], axis=0)
    intervals = [mean_interval(y) for y in np.stack([c.y[row] for c, row in zip(curves, rows, strict=True)], axis=1)]
    mean, half_width = np.array(intervals).reshape(-1, 2).T
    if len(curves) > 1 and len(x) <= FEW_POINTS:
        axes.errorbar(x, mean, half_width, fmt="none", ecolor=style["color"], elinewidth=0.8, capsize=3)
    elif len(curves) > 1:
        axes.fill_between(x, mean - half_width, mean + half_width, color=style["color"], alpha=0.2, linewidth=0)
    return axes.plot(x, mean, marker=_marker(x), **style)


def _curve(log: Log, key: str, x_key: str) -> _Curve:
    lines = [line for line in log if line.get(key) is not None]
    columns = [[line[name] for line in lines] for name in ("iteration", x_key, key)]
    return _Curve(*(np.array(column, dtype=float) for column in columns))


def _smoothed(curve: _Curve, window: int | None) -> _Curve:
    return curve._replace(y=running_mean(curve.y, window or round(SMOOTHED_SHARE * len(curve.y))))


def _marker(points: np.ndarray) -> str:
    return "o" if len(points) <= FEW_POINTS else ""


def _step_name(step: int) -> str:
    return "before adaptation" if step == 0 else f"after {step} step{'s' if step > 1 else ''}"


def _steps(log: Log, score: str) -> list[int]:
    """The inner steps after which the score was logged, 0 … k."""
    keys = {key for line in log for key in line}
    pattern = re.compile(rf"{re.escape(score)}/step_(\d+)")
    return sorted(int(match[1]) for match in map(pattern.fullmatch, keys) if match)


def _names(runs: Sequence[Run]) -> list[str]:
    """What labels and errors call runs: their folders, or their numbers where they came without one."""
    paths = {i: Path(run).resolve() for i, run in enumerate(runs) if isinstance(run, str | os.PathLike)}
    folders = {i: path.parent if path.name == metrics.METRICS_FILE else path for i, path in paths.items()}
    alike = len({folder.name for folder in folders.values()}) < len(folders)
    names = {i: str(folder) if alike else folder.name for i, folder in folders.items()}
    return [names.get(i, f"run {i + 1}") for i in range(len(runs))]


def _read(run: Run, name: str, score: str) -> Log:
    log: Log = metrics.read(run) if isinstance(run, str | os.PathLike) else run
    if not log:
        raise ValueError(f"{name} has no metrics yet; draw it after its first iteration")
    steps = _steps(log, score)
    if not steps:
        raise ValueError(
            f"{name} has no {score}, no key {score}/step_0, but {', '.join(log[0])}; give a run that measured it"
        )
    last = f"{score}/step_{steps[-1]}"
    if all(line.get(last) is None for line in log):
        raise ValueError(f"{name} has no finite {last} in any of its {len(log)} iterations; there is nothing to draw")
    return log


def _grouped(logs: Sequence[Log], labels: Sequence[str], score: str) -> dict[str, list[Log]]:
    groups: dict[str, list[Log]] = {}
    for label, log in zip(labels, logs, strict=True):
        groups.setdefault(label, []).append(log)
    if len(groups) > len(COLOURS):
        raise ValueError(
            f"labels must name at most {len(COLOURS)} curves, got {len(groups)} ({', '.join(groups)}); "
            "give seeds of one method the same label, or draw several pictures"
        )
    for label, group in groups.items():
        lasts = sorted({_steps(log, score)[-1] for log in group})
        if len(lasts) > 1:
            raise ValueError(
                f"the runs labelled {label!r} must take equally many inner steps, got {lasts}; label them apart"
            )
    return groups


def _finish_curves(axes: Axes, score: str, x_key: str) -> None:
    axes.set_ylabel(f"mean {score.removeprefix('validation/').replace('_', ' ')}", fontsize=TEXT_SIZE, color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["right"].set_visible(False)
    axes.spines["top"].set_visible(False)
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.8)
    axes.tick_params(labelsize=SMALL_SIZE, labelcolor=INK, color=FRAME, width=0.8, length=3)
    if x_key == "iteration":
        axes.set_xlabel("meta-iteration", fontsize=TEXT_SIZE, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    else:
        axes.set_xlabel("environment steps", fontsize=TEXT_SIZE, color=INK)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _add_iterations(axes: Axes, curve: _Curve) -> None:
    """Write meta-iterations along the upper edge, each where its environment steps are."""
    at = dict(zip(curve.iterations.tolist(), curve.x.tolist(), strict=True))
    ticks = MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]).tick_values(curve.iterations[0], curve.iterations[-1])
    shown = [tick for tick in ticks if tick in at]
    above = axes.secondary_xaxis("top")
    above.set_xticks([at[tick] for tick in shown], [f"{tick:.0f}" for tick in shown])
    above.set_xlabel("meta-iteration", fontsize=SMALL_SIZE, color=INK)
    above.spines["top"].set_visible(False)
    above.tick_params(labelsize=SMALL_SIZE, labelcolor=INK, color=FRAME, width=0.8, length=3)


# --- Paths ---


def navigation_paths(
    episodes: Sequence[Episodes],
    goals: ArrayLike,
    *,
    tasks: Sequence[int] | None = None,
    episodes_shown: int = 5,
    width: float | None = None,
) -> Figure:
    """Draw where 2D navigation walks, a panel for every number of inner steps, a colour for every task.

    Stars are goals, dots are starts. Of every task one episode is strong, its first, and further ones are faint. Above
    each panel stands the mean return over all tasks and episodes given, those that are not drawn included.

    Args:
        episodes: before adaptation, then after 1 … k steps; as `MetaRL.evaluate` returns them, on N tasks.
        goals: (N, 2), what the tasks are.
        tasks: indices of those to draw; by default the first five.
        episodes_shown: of each task, at most.
        width: of the picture, inches; by default 1.6 a panel.

    Raises:
        ValueError: the observations are no positions on a plane, the goals are not theirs, or there is nothing to draw.
    """
    goals = _checked_goals(goals, episodes)
    shown = list(range(min(len(goals), TASKS_SHOWN))) if tasks is None else list(tasks)
    if not shown or not all(0 <= task < len(goals) for task in shown):
        raise ValueError(f"tasks must be some of the numbers 0 … {len(goals) - 1}, got {shown}; name at least one")
    if episodes_shown < 1:
        raise ValueError(f"episodes_shown must be a positive number of episodes, got {episodes_shown}")
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
        heading = "before" if step == 0 else _step_name(step)
        score = f"{float(batch.returns().mean()):.1f}".replace("-", "−")
        axes.set_title(f"{heading}\nreturn {score}", fontsize=TEXT_SIZE, color=INK)
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
    """Every position of one episode, (S + 1, 2), with the one after the last move, which no observation shows."""
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
    axes.tick_params(labelsize=SMALL_SIZE, labelcolor=INK, color=FRAME, width=0.8, length=3)
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.8)


# --- Speeds ---


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

    Above, forward speed over time, one line a task, averaged over its episodes; below, the mean speed of the second
    half of the episodes against the task, one dot a task. A body that runs one way whatever the task shows as a flat
    row of dots. Above each column stands the mean return over all tasks.

    Args:
        episodes: before adaptation, then after 1 … k steps; as `MetaRL.evaluate` returns them, on N tasks.
        tasks: (N,), what the tasks are: directions, or goal speeds in m/s.
        speed_column: where observations hold the forward speed, m/s.
        task_name: of the lower horizontal axis, with its unit.
        goals_are_speeds: draw the line on which speed and goal agree.
        width: of the picture, inches; by default 1.9 a column.

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
        score = f"{float(batch.returns().mean()):.1f}".replace("-", "−")
        above.set_title(f"{'before' if step == 0 else _step_name(step)}\nreturn {score}", fontsize=TEXT_SIZE, color=INK)
        above.set_xlabel("time step", fontsize=TEXT_SIZE, color=INK)
        below.set_xlabel(task_name, fontsize=TEXT_SIZE, color=INK)
        if not goals_are_speeds and len(np.unique(tasks)) <= FEW_POINTS:
            below.set(xticks=np.unique(tasks), xlim=(low - 0.6, high + 0.6))
        for axes in (above, below):
            axes.axhline(0.0, color=FRAME, linewidth=0.6, zorder=0)
            axes.grid(axis="y", color=GRID, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["right", "top"]].set_visible(False)
            axes.tick_params(labelsize=SMALL_SIZE, labelcolor=INK, color=FRAME, width=0.8, length=3)
            for spine in axes.spines.values():
                spine.set(color=FRAME, linewidth=0.8)
    panels[0, 0].set_ylabel("forward speed, m/s", fontsize=TEXT_SIZE, color=INK)
    panels[1, 0].set_ylabel("mean speed,\nsecond half, m/s", fontsize=TEXT_SIZE, color=INK)
    return figure


def _mean_speeds(batch: Episodes, column: int) -> np.ndarray:
    """Over the episodes that still run, (N, T); NaN where none does."""
    mask = batch.mask.numpy()
    total = (batch.observations[..., column].numpy() * mask).sum(1)
    running = mask.sum(1)
    return np.where(running > 0, total / np.maximum(running, 1), np.nan)


def _mean_of_running(speeds: np.ndarray) -> np.ndarray:
    """Over the steps in which an episode ran, (N, T) → (N,); NaN, which is not drawn, where none did."""
    return np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in speeds])


# --- Sinusoids ---


def sinusoid_fit(tasks: Task, fits: Mapping[str, Tensor], *, width: float | None = None) -> Figure:
    """Draw what networks make of a few points of a sinusoid, before and after each inner step (Figure 4).

    One column a curve, one row a network (in a narrow picture the other way round): the points adapted to, the curve
    they are from, and the fits.

    Args:
        tasks: N sinusoids, their query points in the order of x.
        fits: of each network, by name, its outputs at the query points after 0 … k steps, (N, k + 1, n, 1).
        width: of the picture, inches; by default 7.
    """
    number, most = len(tasks.query), max(outputs.shape[1] for outputs in fits.values()) - 1
    width = 7.0 if width is None else width
    upright = width < NARROW
    rows, columns = (number, len(fits)) if upright else (len(fits), number)
    figure = Figure(figsize=(width, SINUSOID_PANEL * rows + LEGEND_HEIGHT), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey="row" if upright else "col", squeeze=False)
    for (name, outputs), of_network in zip(fits.items(), panels.T if upright else panels, strict=True):
        for task, axes in enumerate(of_network):
            x = tasks.query[task, :, 0]
            axes.plot(x, tasks.query_targets[task, :, 0], color=INK, linewidth=3.0, alpha=0.2, solid_capstyle="round")
            for step, fit in enumerate(outputs[task, :, :, 0]):
                dashes = (0, (3, 1.5)) if step == 0 else "-"
                axes.plot(x, fit, color=_step_colour(step), linewidth=1.2, linestyle=dashes)
            axes.plot(
                tasks.support[task, :, 0],
                tasks.support_targets[task, :, 0],
                linestyle="none",
                marker="o",
                markersize=4,
                color=INK,
                markeredgecolor="white",
                markeredgewidth=0.6,
            )
            finish_panel(axes)
        (of_network[0].set_title if upright else of_network[0].set_ylabel)(name, fontsize=TEXT_SIZE, color=INK)
    handles = [
        Line2D([], [], color=INK, linestyle="none", marker="o", markersize=4, label="given points"),
        Line2D([], [], color=INK, linewidth=3.0, alpha=0.2, label="curve"),
        Line2D([], [], color=BEFORE, linewidth=1.2, linestyle=(0, (3, 1.5)), label=_step_name(0)),
        *(Line2D([], [], color=_step_colour(s), linewidth=1.2, label=_step_name(s)) for s in range(1, most + 1)),
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), 3 if upright else 5),
        fontsize=SMALL_SIZE,
        labelcolor=INK,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.2,
    )
    return figure


def _step_colour(step: int) -> str:
    return BEFORE if step == 0 else COLOURS[(step - 1) % len(COLOURS)]


def finish_panel(axes: Axes) -> None:
    """Give a panel the house's quiet grid, frame and numbers."""
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.8)
    axes.tick_params(labelsize=SMALL_SIZE, labelcolor=INK, color=FRAME, width=0.8, length=3)


# --- Attenuation ---


def gamma_heatmap(gamma: Mapping[str, Tensor], *, width: float = 5.0) -> Figure:
    """Draw how much of each tensor is kept for each task: a row a tensor, a column a task, in order of their mean.

    Beside each row stands its mean over tasks ± the standard deviation.

    Args:
        gamma: by tensor, (N, entries); the mean over its entries is drawn.
        width: of the picture, inches.
    """
    if not gamma:
        raise ValueError("gamma is empty: MAML attenuates nothing; draw a run of L2F")
    rows = torch.stack([values.mean(1) for values in gamma.values()]).numpy()
    rows = rows[:, rows.mean(0).argsort()]
    figure = Figure(figsize=(width, 1.3 + HEATMAP_ROW * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(rows, aspect="auto", cmap="viridis", vmin=min(0.0, rows.min()), vmax=max(1.0, rows.max()))
    axes.set_yticks(range(len(gamma)), list(gamma))
    axes.set_xticks([])
    axes.set_xlabel(f"{rows.shape[1]} tasks, in order of their mean γ", fontsize=TEXT_SIZE, color=INK)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(len(gamma)), [f"{row.mean():.2f} ± {row.std():.2f}" for row in rows])
    for one in (axes, beside):
        one.tick_params(labelsize=SMALL_SIZE, labelcolor=INK, length=0)
        one.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, location="bottom", pad=0.02, aspect=30)
    bar.set_label("γ: 1 keeps, 0 forgets", fontsize=SMALL_SIZE, color=INK)
    bar.ax.tick_params(labelsize=SMALL_SIZE, labelcolor=INK, length=2)
    bar.outline.set_visible(False)
    return figure


# --- Images ---


def few_shot_episode(task: Task, outputs: Tensor, *, width: float | None = None) -> Figure:
    """Draw one N-way K-shot episode: a row a class, what it was learned from, and how new images were judged.

    Args:
        task: stacked episodes, of which the first is drawn; images and class numbers class by class.
        outputs: (number, k + 1, Q, N), logits of the query images before adaptation and after 1 … k steps.
        width: of the picture, inches; by default 7.
    """
    width = 7.0 if width is None else width
    before, after = outputs[0, 0].argmax(-1), outputs[0, -1].argmax(-1)
    targets = task.query_targets[0]
    ways = int(targets.max()) + 1
    support, query = task.support[0].unflatten(0, (ways, -1)), task.query[0].unflatten(0, (ways, -1))
    shots, shown = min(support.shape[1], SHOTS_SHOWN), min(query.shape[1], QUERIES_SHOWN)
    columns = shots + shown
    figure = Figure(figsize=(width, width * ways / columns + LEGEND_HEIGHT), layout="constrained")
    panels = figure.subplots(ways, columns, squeeze=False)
    for way, row in enumerate(panels):
        for column, axes in enumerate(row):
            image = support[way, column] if column < shots else query[way, column - shots]
            axes.imshow(image.movedim(0, -1).squeeze(-1).numpy(), cmap="gray_r", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            verdict = INK
            if column >= shots:
                verdict = RIGHT if after.unflatten(0, (ways, -1))[way, column - shots] == way else WRONG
            for spine in axes.spines.values():
                spine.set(color=verdict, linewidth=1.0 if column < shots else 2.0)
    accuracies = [f"{100 * float((guess == targets).float().mean()):.0f} %" for guess in (before, after)]
    patches = [
        Line2D([], [], color=INK, linewidth=1.0, label="learned from"),
        Line2D([], [], color=RIGHT, linewidth=2.0, label="told right"),
        Line2D([], [], color=WRONG, linewidth=2.0, label="told wrong"),
    ]
    figure.legend(
        handles=patches,
        loc="outside upper center",
        ncols=3,
        fontsize=SMALL_SIZE,
        labelcolor=INK,
        frameon=False,
        title=f"accuracy in this episode: {accuracies[0]} before adaptation, {accuracies[1]} after",
        title_fontsize=SMALL_SIZE if width < NARROW else TEXT_SIZE,
    )
    return figure
