"""Learning curves: a score over training, of one run or of several methods with several seeds each."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from ..checks import check_count
from ..training import metrics
from ..training.metrics import Log
from .evaluation import mean_interval
from .style import (
    BEFORE,
    COLOURS,
    FEW_POINTS,
    INK,
    SMALL_SIZE,
    TEXT,
    TICKS,
    finish_open_panel,
    legend_above,
    marker,
    step_colour,
    step_name,
)

Run = str | os.PathLike[str] | Log

SMOOTHED_SHARE = 0.05  # The part of a run that a point of its smoothed curve averages.
LEFT_OUT = 4  # Per cent of the lowest scores that panels of several methods leave out.


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

    A single run shows the score before adaptation and after every inner step, as logged (faint) and as running means,
    and the validation after the last step (circles). Several runs show the running means before adaptation (dashed) and
    after the last step. Runs with the same label are seeds of one method and give one curve, their mean at each
    iteration with its 95 % t-interval, which ends where the shortest of them does.

    Args:
        runs: each a run's folder, its metrics.jsonl, or the lines as `metrics.read` returns them.
        labels: one per run, such as its method. Without labels every run has its own curve, named after its folder.
        score: the tags SCORE/step_0 … SCORE/step_k are drawn, for example `return` or `validation/accuracy`.
        window: iterations in a running mean, an even number counting as the next odd one; by default 5 % of the run.
        width: width of the picture, inches; the height is two thirds of it.

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
    if window is not None:
        check_count("window", window, unit="iterations")
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
    alone = len(runs) == 1
    legend_above(figure, handles, 3 if alone else 2, title=labels[0] if labels and alone else None)
    return figure


def learning_panels(
    methods: Mapping[str, Sequence[Run]],
    reference: str,
    *,
    score: str = "return",
    before: bool = False,
    columns: int = 5,
    size: tuple[float, float] = (1.5, 1.35),
) -> Figure:
    """Draw a panel for each method: its score after the last inner step, beside that of a reference (grey).

    Every run has a thin curve, its running mean over 5 % of the run, and every method a thick one, the mean of these at
    the iterations that all its runs have. The lowest LEFT_OUT per cent of all values, mostly of the first iterations,
    are below the picture.

    Args:
        methods: the runs of each method, by its label; each run as in `learning_curve`.
        reference: the label that every panel shows in grey; it has a panel of its own only if no other method is given.
        score: as in `learning_curve`.
        before: whether the scores before adaptation are drawn as well, dashed, as means over runs.
        columns: panels in a row.
        size: width and height of a panel, inches.

    Raises:
        ValueError: the reference has no runs, or a run has no such score.
    """
    if reference not in methods:
        raise ValueError(f"methods must name the reference {reference!r}, got {', '.join(methods) or 'none'}")
    panels = [label for label in methods if label != reference] or [reference]
    curves = {label: _before_and_after(runs, score) for label, runs in methods.items()}
    rows = -(-len(panels) // columns)
    columns = min(columns, len(panels))
    figure = Figure(figsize=(size[0] * columns, 0.6 + size[1] * rows), layout="constrained")
    places = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, label in zip(places, panels, strict=False):
        for shown, colour in ({reference: BEFORE} | {label: COLOURS[0]}).items():
            _draw_runs(axes, curves[shown][1], color=colour)
            if before:
                _draw_mean_alone(axes, curves[shown][0], linestyle="--", linewidth=0.9, color=colour)
        axes.set_title(label, **TEXT)
        finish_open_panel(axes)
        axes.xaxis.set(major_locator=MaxNLocator(5, steps=[1, 2, 4, 10]), major_formatter=EngFormatter(sep=""))
    drawn = [curve.y for pair in curves.values() for curve in (*(pair[0] if before else ()), *pair[1])]
    low, high = np.percentile(np.concatenate(drawn), (LEFT_OUT, 100))
    places[0].set_ylim(low, high + 0.04 * (high - low))
    for axes in places[max(0, len(panels) - columns) : len(panels)]:  # The lowest panel of every column.
        axes.tick_params(labelbottom=True)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("environment steps", **TEXT)
    figure.supylabel(f"mean {score.removeprefix('validation/').replace('_', ' ')}", **TEXT)
    named = {"the panel's method" if len(panels) > 1 else panels[0]: COLOURS[0], reference: BEFORE}
    handles = [Line2D([], [], color=colour, label=name) for name, colour in list(named.items())[: len(methods)]]
    if before:
        handles.append(Line2D([], [], color=INK, linestyle="--", label="before adaptation"))
    legend_above(figure, handles, 3)
    return figure


def _before_and_after(runs: Sequence[Run], score: str) -> tuple[list[_Curve], list[_Curve]]:
    """The running means of each run before adaptation, and after its last inner step."""
    before, after = [], []
    for run, name in zip(runs, _names(runs), strict=True):
        log = _read(run, name, score)
        before.append(_smoothed(_curve(log, f"{score}/step_0", "env_steps"), None))
        after.append(_smoothed(_curve(log, f"{score}/step_{_steps(log, score)[-1]}", "env_steps"), None))
    return before, after


def _draw_runs(axes: Axes, curves: list[_Curve], **style: Any) -> None:
    """Draw each run's curve, and their mean."""
    for curve in curves if len(curves) > 1 else []:
        axes.plot(curve.x, curve.y, linewidth=0.5, alpha=0.5, **style)
    _draw_mean_alone(axes, curves, linewidth=1.4, **style)


def _draw_mean_alone(axes: Axes, curves: list[_Curve], **style: Any) -> None:
    """Draw the mean of the runs' curves at the iterations that all of them have."""
    x, y = _in_common(curves)
    axes.plot(x.mean(0), y.mean(0), marker=marker(x[0]), markersize=3, **style)


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
        colour = step_colour(step)
        axes.plot(raw.x, raw.y, color=colour, linewidth=0.6, alpha=0.35)
        handles += axes.plot(
            smooth.x, smooth.y, color=colour, linewidth=1.6, marker=marker(raw.x), markersize=4, label=step_name(step)
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
    last = step_name(last_steps.pop()) if len(last_steps) == 1 else "after the last step"
    return [
        *handles,
        Line2D([], [], color=INK, label=step_name(0), **dashed),
        Line2D([], [], color=INK, linewidth=1.6, label=last),
    ]


def _draw_mean(axes: Axes, curves: list[_Curve], **style: Any) -> list[Line2D]:
    """Draw the mean of the runs' curves at the iterations that all of them have, and of several runs its interval."""
    all_x, all_y = _in_common(curves)
    x = all_x.mean(0)
    mean, half_width = np.array([mean_interval(y) for y in all_y.T]).reshape(-1, 2).T
    if len(curves) > 1 and len(x) <= FEW_POINTS:
        axes.errorbar(x, mean, half_width, fmt="none", ecolor=style["color"], elinewidth=0.8, capsize=3)
    elif len(curves) > 1:
        axes.fill_between(x, mean - half_width, mean + half_width, color=style["color"], alpha=0.2, linewidth=0)
    return axes.plot(x, mean, marker=marker(x), **style)


def _in_common(curves: list[_Curve]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of runs at the iterations that all of them have, (runs, points) each."""
    common = sorted(set.intersection(*(set(curve.iterations.tolist()) for curve in curves)))
    rows = [np.isin(curve.iterations, common) for curve in curves]
    pairs = [(curve.x[row], curve.y[row]) for curve, row in zip(curves, rows, strict=True)]
    return np.stack([x for x, _ in pairs]), np.stack([y for _, y in pairs])


def _curve(log: Log, key: str, x_key: str) -> _Curve:
    lines = [line for line in log if line.get(key) is not None]
    columns = [[line[name] for line in lines] for name in ("iteration", x_key, key)]
    return _Curve(*(np.array(column, dtype=float) for column in columns))


def _smoothed(curve: _Curve, window: int | None) -> _Curve:
    return curve._replace(y=running_mean(curve.y, window or round(SMOOTHED_SHARE * len(curve.y))))


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
    axes.set_ylabel(f"mean {score.removeprefix('validation/').replace('_', ' ')}", **TEXT)
    finish_open_panel(axes)
    if x_key == "iteration":
        axes.set_xlabel("meta-iteration", **TEXT)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    else:
        axes.set_xlabel("environment steps", **TEXT)
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
    above.tick_params(**TICKS)
