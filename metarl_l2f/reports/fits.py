"""What supervised networks learned from a few examples: fits of sinusoids (L2F, Figure 4), and episodes of images."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ..supervised.episodes import Task
from .style import BEFORE, INK, LEGEND_HEIGHT, NARROW, TEXT, finish_panel, legend_above, step_colour, step_name

SINUSOID_PANEL = 1.5  # Inches of height.
SHOTS_SHOWN, QUERIES_SHOWN = 2, 10  # Images of each class at most.
RIGHT, WRONG = "#0072B2", "#D55E00"  # Frames of images that were classified correctly, and wrongly.


def sinusoid_fit(tasks: Task, fits: Mapping[str, Tensor], *, width: float | None = None) -> Figure:
    """Draw how networks fit a few points of a sinusoid, before and after each inner step (Figure 4).

    Every sinusoid has a column and every network a row (in a narrow picture the other way round). A panel shows the
    points adapted to, the curve they are from, and the fits.

    Args:
        tasks: N sinusoids, their query points in the order of x.
        fits: for each network, by name, its outputs at the n query points after 0 … k steps, (N, k + 1, n, 1).
        width: width of the picture, inches; by default 7.
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
                axes.plot(x, fit, color=step_colour(step), linewidth=1.2, linestyle=dashes)
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
        (of_network[0].set_title if upright else of_network[0].set_ylabel)(name, **TEXT)
    handles = [
        Line2D([], [], color=INK, linestyle="none", marker="o", markersize=4, label="given points"),
        Line2D([], [], color=INK, linewidth=3.0, alpha=0.2, label="curve"),
        Line2D([], [], color=BEFORE, linewidth=1.2, linestyle=(0, (3, 1.5)), label=step_name(0)),
        *(Line2D([], [], color=step_colour(s), linewidth=1.2, label=step_name(s)) for s in range(1, most + 1)),
    ]
    legend_above(figure, handles, 3 if upright else 5)
    return figure


def few_shot_episode(task: Task, outputs: Tensor, *, width: float | None = None) -> Figure:
    """Draw one N-way K-shot episode: a row a class, with the images learned from and how new images were classified.

    Args:
        task: stacked episodes, of which the first is drawn; images and class numbers are ordered by class.
        outputs: logits of the query images before adaptation and after 1 … k steps, (episodes, k + 1, Q, N).
        width: width of the picture, inches; by default 7.
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
    handles = [
        Line2D([], [], color=INK, linewidth=1.0, label="learned from"),
        Line2D([], [], color=RIGHT, linewidth=2.0, label="correct"),
        Line2D([], [], color=WRONG, linewidth=2.0, label="wrong"),
    ]
    title = f"accuracy in this episode: {accuracies[0]} before adaptation, {accuracies[1]} after"
    legend_above(figure, handles, 3, title)
    return figure
