"""Pictures of the diagnostics: what is drawn is what was given."""

import numpy as np
import pytest
import torch

from metarl_l2f.reports.diagnostics import by_layer, gamma_heatmap, landscape_curves, manual_attenuation, scores_by_step
from metarl_l2f.reports.style import COLUMN, save


def marks(axes):
    """x and y of every errorbar's marks."""
    return [(line[0].get_xdata().tolist(), line[0].get_ydata().tolist()) for line in axes.containers]


def test_scores_by_step_are_means_over_seeds():
    figure = scores_by_step({"L2F": [np.array([1.0, 3.0]), np.array([2.0, 5.0])], "MAML": [np.zeros(3)]}, "return")
    (axes,) = figure.axes
    assert marks(axes) == [([0, 1], [1.5, 4.0]), ([0, 1, 2], [0.0, 0.0, 0.0])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["L2F (2 runs)", "MAML"]
    # Half-width of two values 3 and 5: t(0.975, 1) · √2 / √2 = 12.706.
    low, high = axes.containers[0][1][0].get_ydata()[1], axes.containers[0][1][1].get_ydata()[1]
    assert (high - low) / 2 == pytest.approx(12.706, abs=1e-3)


def test_layers_stand_side_by_side_and_one_that_is_missing_is_left_out():
    figure = by_layer({"L2F": [{"a": 0.2, "b": 0.4}], "MAML": [{"b": 1.0}]}, "conflict, rad", reference=1.4)
    (axes,) = figure.axes
    (x0, y0), (x1, y1) = marks(axes)
    assert (y0, y1) == ([0.2, 0.4], [1.0])
    assert np.round(x0).tolist() == [0, 1] and np.round(x1).tolist() == [1] and x0[1] < 1 < x1[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]


def test_manual_attenuation_has_a_panel_a_method_and_a_line_a_layer():
    seeds = [{"a": [1.0, 2.0], "b": [3.0, 4.0]}, {"a": [2.0, 3.0], "b": [3.0, 6.0]}]
    figure = manual_attenuation({"L2F": seeds, "MAML": [{"a": [5.0, 6.0]}]}, (0.5, 1.0), "return")
    # means over seeds: (1 + 2) / 2, (2 + 3) / 2; (3 + 3) / 2, (4 + 6) / 2
    drawn = [[ys for _, ys in marks(axes)] for axes in figure.axes]
    assert drawn == [[[1.5, 2.5], [3.0, 5.0]], [[5.0, 6.0]]]
    assert [axes.get_title() for axes in figure.axes] == ["L2F (2 runs)", "MAML"]


def test_more_layers_than_colours_stay_apart():
    (axes,) = manual_attenuation({"L2F": [{str(i): [1.0] for i in range(13)}]}, (1.0,), "return").axes
    assert len({(line[0].get_color(), line[0].get_marker()) for line in axes.containers}) == 13


def lines(*values):
    keys = ("landscape/loss_range", "landscape/gradient_change_range", "landscape/smoothness")
    return [{"iteration": 1}, *({"iteration": 10 * (i + 1), **dict.fromkeys(keys, v)} for i, v in enumerate(values))]


def test_the_landscape_is_drawn_where_all_seeds_measured_it():
    figure = landscape_curves({"L2F": [lines(1.0, 2.0, 3.0), lines(3.0, 4.0)]})
    assert [marks(axes) for axes in figure.axes] == [[([10, 20], [2.0, 3.0])]] * 3
    figure = landscape_curves({"L2F": [lines(1.0)], "MAML": [lines(9.0)]})
    assert all(axes.get_ylim() == pytest.approx((0, 9.45)) for axes in figure.axes)
    with pytest.raises(ValueError, match="MAML has no landscape/loss_range in its metrics; train with inspect_every"):
        landscape_curves({"MAML": [lines()]})


@pytest.mark.parametrize("values", [{}, {"L2F": []}])
def test_nothing_to_draw_is_said(values):
    with pytest.raises(ValueError, match="there is nothing to draw"):
        by_layer(values, "γ")
    with pytest.raises(ValueError, match="there is nothing to draw"):
        scores_by_step(values, "return")


def test_too_many_methods_are_refused():
    with pytest.raises(ValueError, match="a picture holds at most 6 methods"):
        by_layer({str(i): [{"a": 1.0}] for i in range(7)}, "γ")


def test_a_landscape_looked_at_often_is_a_line_with_a_band():
    figure = landscape_curves({"L2F": [lines(*range(12)), lines(*range(1, 13))]}, width=COLUMN)
    assert len(figure.axes) == 3 and all(len(axes.collections) == 1 for axes in figure.axes)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), np.arange(12) + 0.5)


LAYERS = [f"mean.layers.{i}.weight" for i in range(8)]
ATTENUATED = ({layer: [1.0] for layer in LAYERS},)


@pytest.mark.parametrize(
    "picture",
    [
        scores_by_step({"L2F": [np.arange(4.0)] * 3, "MAML": [np.arange(4.0)] * 3}, "return", width=COLUMN),
        by_layer({"L2F": [dict.fromkeys(LAYERS, 0.5)], "MAML": [dict.fromkeys(LAYERS, 0.4)]}, "γ", width=COLUMN),
        manual_attenuation(dict.fromkeys(("L2F", "MAML"), ATTENUATED), (1.0,), "return", width=COLUMN),
        landscape_curves({"L2F": [lines(1.0, 2.0)], "MAML": [lines(1.0, 2.0)]}, width=COLUMN),
        gamma_heatmap({"mean.layers.0.weight": torch.rand(20, 1)}, width=COLUMN),
    ],
    ids=["scores by step", "by layer", "manual attenuation", "landscape", "γ"],
)
def test_pictures_fit_a_column_of_a_paper(picture, tmp_path, fits_its_page):
    save(picture, tmp_path / "picture.pdf")
    fits_its_page(picture)
    sizes = {text.get_fontsize() for axes in picture.axes for text in axes.get_xticklabels() + axes.get_yticklabels()}
    assert min(sizes) >= 7  # points, as printed


def test_the_heatmap_has_a_row_a_tensor_and_its_tasks_in_order():
    gamma = {"a": torch.tensor([[0.9, 0.7], [0.2, 0.4], [0.5, 0.5]]), "b": torch.tensor([[0.3], [0.1], [0.2]])}
    axes = gamma_heatmap(gamma).axes[0]
    # Means of a: 0.8, 0.3, 0.5; with b's: 0.55, 0.2, 0.35 a task, so the order is 1, 2, 0.
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.3, 0.5, 0.8], [0.1, 0.2, 0.3]], atol=1e-6)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    (beside,) = axes.child_axes
    assert [label.get_text() for label in beside.get_yticklabels()] == ["0.53 ± 0.21", "0.20 ± 0.08"]


def test_maml_has_no_heatmap():
    with pytest.raises(ValueError, match="MAML attenuates nothing; draw a run of L2F"):
        gamma_heatmap({})
