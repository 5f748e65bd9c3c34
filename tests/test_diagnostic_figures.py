"""Pictures of the diagnostics: what is drawn is what was given."""

import numpy as np
import pytest

from metarl_l2f.diagnostic_figures import by_layer, landscape_curves, manual_attenuation, scores_by_step
from metarl_l2f.figures import COLUMN, save


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
    results = {"L2F": {"a": [1.0, 2.0], "b": [3.0, 4.0]}, "MAML": {"a": [5.0, 6.0]}}
    figure = manual_attenuation(results, (0.5, 1.0), "return")
    drawn = [[line.get_ydata().tolist() for line in axes.lines] for axes in figure.axes]
    assert drawn == [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]]
    assert [axes.get_title() for axes in figure.axes] == ["L2F", "MAML"]


def lines(*values):
    keys = ("landscape/loss_range", "landscape/gradient_change_range", "landscape/smoothness")
    return [{"iteration": 1}, *({"iteration": 10 * (i + 1), **dict.fromkeys(keys, v)} for i, v in enumerate(values))]


def test_the_landscape_is_drawn_where_all_seeds_measured_it():
    figure = landscape_curves({"L2F": [lines(1.0, 2.0, 3.0), lines(3.0, 4.0)]})
    assert [marks(axes) for axes in figure.axes] == [[([10, 20], [2.0, 3.0])]] * 3
    figure = landscape_curves({"L2F": [lines(1.0)], "MAML": [lines(9.0)]})
    assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 9 for axes in figure.axes)
    with pytest.raises(ValueError, match="MAML has no landscape/loss_range in its metrics; train with --inspect-every"):
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


def test_pictures_fit_a_column_of_a_paper(tmp_path):
    picture = by_layer({"L2F": [{f"layers.{i}.weight": 0.5 for i in range(8)}]}, "γ", width=COLUMN)
    save(picture, tmp_path / "gamma.pdf")
    figure = picture
    figure.draw_without_rendering()
    assert figure.get_tightbbox().width <= COLUMN + 0.01
