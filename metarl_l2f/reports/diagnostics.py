"""Pictures of what L2F argues about: conflict, γ, the landscape, attenuation by hand (Figures 2, 3 and 5 of the paper).

Several runs under one label are seeds of one method, drawn as means over seeds with 95 % t-intervals.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from torch import Tensor

from ..training.metrics import Log
from .evaluation import mean_interval
from .style import COLOURS, FEW_POINTS, INK, LEGEND_HEIGHT, NARROW, SMALL_SIZE, TEXT, finish_panel, legend_above

MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # One more than colours: together they tell many lines apart.
SPREAD = 0.24  # The methods' marks of one layer are spread over this part of the distance between two layers.
HEATMAP_ROW = 0.18  # Inches of height.

BySeed = Mapping[str, Sequence[Mapping[str, float]]]
"""By label, for each seed, a number by layer or tensor."""


def scores_by_step(scores: Mapping[str, Sequence[np.ndarray]], score: str, *, width: float = 3.6) -> Figure:
    """Scores against gradient steps (Figure 5).

    Args:
        scores: by label, for each seed, the mean score after 0 … k steps, (k + 1,).
        score: the name of the score, for the axis.
        width: width of the picture, inches.
    """
    figure, axes = _panel(width)
    longest = 0
    for (label, seeds), colour, marker in zip(_checked(scores).items(), COLOURS, MARKERS, strict=False):
        steps = min(len(values) for values in seeds)
        longest = max(longest, steps)
        intervals = [mean_interval(np.array([values[step] for values in seeds])) for step in range(steps)]
        _draw_intervals(axes, np.arange(steps), intervals, colour, marker, _named(label, len(seeds)), joined=True)
    axes.set_xticks(range(longest))
    _name_axes(axes, "gradient steps", f"mean {score}")
    return _with_legend(figure, len(scores))


def by_layer(values: BySeed, name: str, *, reference: float | None = None, width: float = 4.6) -> Figure:
    """A number for every layer, methods side by side: conflict (Figure 3a, c) or γ (Figure 3d).

    Args:
        values: by label, for each seed, a number by layer; a layer that a seed of a method lacks is left out there.
        name: the name of the number, with its unit.
        reference: a value to mark by a line, such as the conflict of unrelated gradients.
        width: width of the picture, inches.
    """
    figure, axes = _panel(width, height=2.4)
    layers = list(dict.fromkeys(layer for seeds in _checked(values).values() for seed in seeds for layer in seed))
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(values)) if len(values) > 1 else [0.0]
    for (label, seeds), colour, marker, offset in zip(values.items(), COLOURS, MARKERS, offsets, strict=False):
        places = [place for place, layer in enumerate(layers) if all(layer in seed for seed in seeds)]
        intervals = [mean_interval(np.array([seed[layers[place]] for seed in seeds])) for place in places]
        _draw_intervals(axes, np.array(places) + offset, intervals, colour, marker, _named(label, len(seeds)))
    if reference is not None:
        axes.axhline(reference, color=INK, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
    axes.set_xticks(range(len(layers)), layers, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(layers) - 0.4)
    _name_axes(axes, "", name)
    return _with_legend(figure, len(values))


def manual_attenuation(
    results: Mapping[str, Sequence[Mapping[str, Sequence[float]]]],
    factors: Sequence[float],
    score: str,
    *,
    width: float = 5.6,
) -> Figure:
    """The adapted score when one layer is shrunk by hand: a panel a method, a line a layer (Figure 3b).

    Args:
        results: by label, for each seed, by layer, the score for every factor.
        factors: the factors by which a layer was multiplied.
        score: the name of the score, for the axis.
        width: width of the picture, inches.
    """
    figure = Figure(figsize=(width, 2.2 + LEGEND_HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(_checked(results)), sharey=True, squeeze=False)[0]
    for axes, (label, seeds) in zip(panels, results.items(), strict=True):
        for layer, colour, marker in zip(seeds[0], itertools.cycle(COLOURS), itertools.cycle(MARKERS)):
            intervals = [
                mean_interval(np.array(values)) for values in zip(*(seed[layer] for seed in seeds), strict=True)
            ]
            _draw_intervals(axes, np.array(factors), intervals, colour, marker, layer, joined=True)
        axes.set_title(_named(label, len(seeds)), **TEXT)
        _name_axes(axes, "factor on one layer", f"mean {score}" if axes is panels[0] else "")
    return _with_legend(figure, 2 if width < NARROW else 3)


LANDSCAPE = {
    "landscape/loss_range": "range of the loss",
    "landscape/gradient_change_range": "range of the gradient's change",
    "landscape/smoothness": "largest ‖Δ∇L‖ / ‖Δθ‖",
}


def landscape_curves(logs: Mapping[str, Sequence[Log]], *, width: float = 7.0) -> Figure:
    """How rough the inner loss is along the first inner step, over training: three measures, low is smooth (Figure 2).

    Args:
        logs: by label, for each seed, the lines of its metrics.
        width: width of the picture, inches.
    Raises:
        ValueError: a run lacks the measures.
    """
    rows, columns = (len(LANDSCAPE), 1) if width < NARROW else (1, len(LANDSCAPE))
    figure = Figure(figsize=(width, 1.9 * rows + LEGEND_HEIGHT), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for (label, seeds), colour, marker in zip(_checked(logs).items(), COLOURS, MARKERS, strict=False):
        for axes, (key, name) in zip(panels, LANDSCAPE.items(), strict=True):
            curves = [{line["iteration"]: line[key] for line in log if line.get(key) is not None} for log in seeds]
            iterations = sorted(set.intersection(*(set(curve) for curve in curves)))
            if not iterations:
                raise ValueError(f"{label} has no {key} in its metrics; train with inspect_every above 0")
            intervals = [mean_interval(np.array([curve[i] for curve in curves])) for i in iterations]
            named = _named(label, len(seeds))
            _draw_intervals(axes, np.array(iterations), intervals, colour, marker, named, joined=True)
            _name_axes(axes, "meta-iteration" if rows == 1 or axes is panels[-1] else "", name)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in panels:
        axes.set_ylim(0, 1.05 * axes.dataLim.y1 or None)  # Only now: it ends the automatic scale.
    return _with_legend(figure, len(logs))


def gamma_heatmap(gamma: Mapping[str, Tensor], *, width: float = 5.0) -> Figure:
    """Draw how much of each tensor is kept for each task: a row a tensor, a column a task, in order of their mean γ.

    The numbers at the right are each row's mean over tasks ± the standard deviation.

    Args:
        gamma: by tensor, (N, entries); the mean over the entries is drawn.
        width: width of the picture, inches.
    Raises:
        ValueError: there is no γ.
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
    axes.set_xlabel(f"{rows.shape[1]} tasks, in order of their mean γ", **TEXT)
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


def _checked(values: Mapping) -> Mapping:
    if not values or not all(values.values()):
        raise ValueError("there is nothing to draw; give at least one run under every label")
    if len(values) > len(COLOURS):
        raise ValueError(f"a picture holds at most {len(COLOURS)} methods, got {', '.join(values)}; draw several")
    return values


def _named(label: str, seeds: int) -> str:
    return label if seeds == 1 else f"{label} ({seeds} runs)"


def _panel(width: float, height: float = 2.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _draw_intervals(
    axes: Axes, x: np.ndarray, intervals: Sequence, colour: str, marker: str, label: str, joined: bool = False
) -> None:
    """Draw marks with bars; where many marks are joined, a line with a band instead."""
    mean, half_width = np.array(intervals, dtype=float).reshape(-1, 2).T
    half_width = np.nan_to_num(half_width)
    if joined and len(x) > FEW_POINTS:
        axes.plot(x, mean, color=colour, linewidth=1.4, label=label)
        axes.fill_between(x, mean - half_width, mean + half_width, color=colour, alpha=0.2, linewidth=0)
        return
    axes.errorbar(
        x,
        mean,
        half_width,
        color=colour,
        marker=marker,
        markersize=4,
        linestyle="-" if joined else "none",
        linewidth=1.4,
        elinewidth=0.9,
        capsize=2.5,
        label=label,
    )


def _name_axes(axes: Axes, x: str, y: str) -> None:
    finish_panel(axes)
    axes.set_xlabel(x, **TEXT)
    axes.set_ylabel(y, **TEXT)


def _with_legend(figure: Figure, columns: int) -> Figure:
    handles, _ = figure.axes[0].get_legend_handles_labels()
    legend_above(figure, handles, min(columns, 3))
    return figure
