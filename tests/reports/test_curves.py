"""Learning curves: what is drawn is what was measured."""

import json

import numpy as np
import pytest

from metarl_l2f.reports.curves import learning_curve, learning_panels, running_mean
from metarl_l2f.reports.style import COLUMN


def log(before, after, steps_per_iteration=1000, validation=None):
    """The lines of a run with one inner step; `validation` maps iterations to returns after it."""
    lines = []
    for iteration, returns in enumerate(zip(before, after, strict=True), start=1):
        line = {"iteration": iteration, "env_steps": iteration * steps_per_iteration}
        line |= {f"return/step_{step}": value for step, value in enumerate(returns)}
        if validation and iteration in validation:
            line["validation/return/step_1"] = validation[iteration]
        lines.append(line)
    return lines


def constant(value, iterations, **settings):
    return log([value - 10.0] * iterations, [value] * iterations, **settings)


def write(folder, lines):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def drawn_in(figure):
    """The axes of a picture that has only these."""
    (axes,) = figure.axes
    return axes


def lines_of(figure):
    """The labelled lines of the picture: label to line."""
    return {line.get_label(): line for line in drawn_in(figure).lines if not line.get_label().startswith("_")}


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def data(line):
    return [list(values) for values in line.get_data()]


# --- One run ---


def test_a_run_is_drawn_against_its_environment_steps_before_and_after_adaptation():
    figure = learning_curve([log([-40, -41, -42], [-30, -20, -10])], window=1)
    drawn = lines_of(figure)
    assert list(drawn) == legend_of(figure) == ["before adaptation", "after 1 step"]
    assert data(drawn["before adaptation"]) == [[1000, 2000, 3000], [-40, -41, -42]]
    assert data(drawn["after 1 step"]) == [[1000, 2000, 3000], [-30, -20, -10]]
    assert figure.axes[0].get_xlabel() == "environment steps"


def test_the_returns_as_logged_are_faint_behind_their_running_mean():
    figure = learning_curve([log([0, 3, 6, 0], [9, 9, 9, 9])], window=3)
    raw, smooth = drawn_in(figure).lines[:2]
    assert data(raw)[1] == [0, 3, 6, 0]
    # 0;  (0 + 3 + 6) / 3;  (3 + 6 + 0) / 3;  (6 + 0) / 2
    assert data(smooth)[1] == [0, 3, 3, 3]
    assert raw.get_alpha() < 1 and raw.get_linewidth() < smooth.get_linewidth()
    assert raw.get_color() == smooth.get_color()


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (1, [0, 10, 20, 0, 0]),
        (2, [0, 10, 10, 20 / 3, 0]),
        (3, [0, 10, 10, 20 / 3, 0]),
        # Two to either side, but no further ahead than back: 0; (0 + 10 + 20) / 3; 30 / 5; (10 + 20) / 4; 20 / 3
        (5, [0, 10, 6, 7.5, 20 / 3]),
        (99, [0, 10, 6, 6, 6]),
    ],
)
def test_the_running_mean_averages_fewer_values_at_the_ends(window, expected):
    np.testing.assert_allclose(running_mean(np.array([0.0, 10.0, 20.0, 0.0, 0.0]), window), expected)


def test_by_default_a_running_mean_takes_five_percent_of_the_run():
    zigzag = [0.0, 3.0] * 30
    smooth = lines_of(learning_curve([log(zigzag, zigzag)]))["after 1 step"]
    # 5 % of 60 iterations are 3: (0 + 3 + 0) / 3, (3 + 0 + 3) / 3, ...
    np.testing.assert_allclose(data(smooth)[1][1:5], [1, 2, 1, 2])


def test_every_inner_step_has_a_curve():
    run = [{"iteration": 1, "env_steps": 10} | {f"return/step_{k}": -float(k) for k in range(11)}]
    names = ["before adaptation", "after 1 step", *(f"after {k} steps" for k in range(2, 11))]
    assert legend_of(learning_curve([run])) == names


def test_validation_is_marked_where_it_happened():
    figure = learning_curve([log([-40] * 4, [-20] * 4, validation={2: -19.0, 4: None})])
    marks = lines_of(figure)["validation"]
    assert data(marks) == [[2000], [-19.0]]
    assert (marks.get_linestyle(), marks.get_marker()) == ("None", "o")
    assert marks.get_markeredgecolor() == lines_of(figure)["after 1 step"].get_color()


def test_returns_that_were_not_finite_are_left_out():
    drawn = lines_of(learning_curve([log([-4, None, -2], [None, -20, -10])], window=1))
    assert data(drawn["before adaptation"]) == [[1000, 3000], [-4, -2]]
    assert data(drawn["after 1 step"]) == [[2000, 3000], [-20, -10]]


def test_the_upper_edge_counts_the_iterations():
    (above,) = learning_curve([log([0] * 40, [1] * 40, steps_per_iteration=250)]).axes[0].child_axes
    assert [label.get_text() for label in above.get_xticklabels()] == ["10", "20", "30", "40"]
    assert list(above.get_xticks()) == [2500, 5000, 7500, 10000]


def test_without_environment_steps_the_iterations_are_below():
    run = [{"iteration": i, "return/step_0": -1.0, "return/step_1": -0.5} for i in (1, 2, 3)]
    figure = learning_curve([run])
    assert figure.axes[0].get_xlabel() == "meta-iteration"
    assert data(lines_of(figure)["after 1 step"])[0] == [1, 2, 3]
    assert figure.axes[0].child_axes == []


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_run_too_short_for_a_line_shows_its_points(iterations):
    for line in lines_of(learning_curve([constant(-10.0, iterations)])).values():
        assert line.get_marker() == "o"
    assert lines_of(learning_curve([constant(-10.0, 50)]))["after 1 step"].get_marker() == ""


def test_a_folder_and_its_metrics_file_are_the_same_run(tmp_path):
    folder = write(tmp_path / "run", constant(-10.0, 3))
    for run in (folder, str(folder), folder / "metrics.jsonl"):
        assert data(lines_of(learning_curve([run]))["after 1 step"]) == [[1000, 2000, 3000], [-10] * 3]


def test_the_label_of_a_single_run_heads_the_legend():
    (legend,) = learning_curve([constant(-10.0, 3)], ["L2F"]).legends
    assert legend.get_title().get_text() == "L2F"


# --- Several runs ---


def test_runs_with_the_same_label_are_averaged():
    runs = [log([-40, -30], [-4, -2]), log([-20, -10], [-8, -6]), log([-1, -1], [-3, -3])]
    figure = learning_curve(runs, ["L2F", "L2F", "MAML"])
    drawn = lines_of(figure)
    assert data(drawn["L2F (2 runs)"]) == [[1000, 2000], [-6, -4]]
    assert data(drawn["MAML"]) == [[1000, 2000], [-3, -3]]
    assert legend_of(figure) == ["L2F (2 runs)", "MAML", "before adaptation", "after 1 step"]


def test_before_adaptation_is_dashed_in_the_colour_of_its_label():
    axes = drawn_in(learning_curve([constant(-6.0, 20), constant(-4.0, 20)], ["a", "b"]))
    before_a, after_a, before_b, after_b = axes.lines
    assert [line.get_ydata()[0] for line in axes.lines] == [-16, -6, -14, -4]
    assert [line.is_dashed() for line in axes.lines] == [True, False, True, False]
    assert before_a.get_color() == after_a.get_color() != before_b.get_color() == after_b.get_color()


def test_the_band_is_the_t_interval_of_the_mean():
    figure = learning_curve([constant(value, 20) for value in (1.0, 2.0, 3.0)], ["L2F"] * 3)
    _, band = drawn_in(figure).collections
    edges = np.unique(band.get_paths()[0].vertices[:, 1].round(3))
    # Mean 2, s = 1, n = 3, t₀.₉₇₅,₂ = 4.3027: 2 ± 4.3027 / √3 = 2 ± 2.4842
    np.testing.assert_allclose(edges[[0, -1]], [-0.484, 4.484], atol=1e-3)


def test_the_interval_of_a_short_run_is_a_bar():
    figure = learning_curve([constant(value, 1) for value in (1.0, 2.0, 3.0)], ["L2F"] * 3)
    _, bars = drawn_in(figure).collections
    (segment,) = bars.get_segments()
    np.testing.assert_allclose(segment, [[1000, -0.4842], [1000, 4.4842]], atol=1e-3)


def test_a_run_alone_under_its_label_has_no_interval():
    (axes,) = learning_curve([constant(1.0, 20), constant(2.0, 20)]).axes
    assert len(axes.collections) == 0


def test_the_mean_ends_where_the_shortest_run_does():
    figure = learning_curve([constant(1.0, 3), constant(3.0, 2)], ["L2F", "L2F"], window=1)
    assert data(lines_of(figure)["L2F (2 runs)"]) == [[1000, 2000], [2, 2]]


def test_an_iteration_that_one_run_misses_is_left_out_of_the_mean():
    runs = [log([0, 0, 0], [1, None, 1]), log([0, 0, 0], [3, 3, 3])]
    figure = learning_curve(runs, ["L2F", "L2F"], window=1)
    assert data(lines_of(figure)["L2F (2 runs)"]) == [[1000, 3000], [2, 2]]


def test_seeds_are_averaged_by_iteration_at_their_mean_environment_steps():
    runs = [constant(1.0, 2, steps_per_iteration=1000), constant(3.0, 2, steps_per_iteration=2000)]
    assert data(lines_of(learning_curve(runs, ["L2F", "L2F"]))["L2F (2 runs)"]) == [[1500, 3000], [2, 2]]


def test_without_labels_runs_are_named_by_their_folders(tmp_path):
    runs = [write(tmp_path / "l2f", constant(1.0, 2)), write(tmp_path / "maml", constant(2.0, 2)), constant(3.0, 2)]
    assert list(lines_of(learning_curve(runs))) == ["l2f", "maml", "run 3"]


def test_without_labels_folders_of_the_same_name_stay_apart(tmp_path):
    runs = [write(tmp_path / method / "seed_1", constant(1.0, 2)) for method in ("l2f", "maml")]
    assert list(lines_of(learning_curve(runs))) == [str(run.resolve()) for run in runs]


def test_methods_may_differ_in_their_inner_steps():
    two = [{"iteration": 1, "env_steps": 5, "return/step_0": -3.0, "return/step_1": -2.0, "return/step_2": -1.0}]
    figure = learning_curve([two, constant(-4.0, 1)], ["two", "one"])
    assert data(lines_of(figure)["two"])[1] == [-1]
    assert legend_of(figure)[-1] == "after the last step"


# --- What learning_curve refuses ---


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl; put it back, or give a folder that training wrote"):
        learning_curve([tmp_path])


def test_a_run_before_its_first_iteration_is_refused(tmp_path):
    with pytest.raises(ValueError, match="early has no metrics yet; draw it after its first iteration"):
        learning_curve([write(tmp_path / "early", [])])


def test_a_run_without_returns_is_refused():
    with pytest.raises(ValueError, match="run 1 has no return, no key return/step_0, but iteration, accuracy; give"):
        learning_curve([[{"iteration": 1, "accuracy": 0.5}]])


def test_a_run_whose_returns_never_were_finite_is_refused():
    with pytest.raises(ValueError, match="run 1 has no finite return/step_1 in any of its 2 iterations"):
        learning_curve([log([-1, -1], [None, None])])


def test_a_single_run_must_stand_in_a_list(tmp_path):
    for run in (tmp_path, str(tmp_path), constant(1.0, 3)):
        with pytest.raises(TypeError, match=r"runs must be a list of runs, got a single one; write \[run\]"):
            learning_curve(run)


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="runs must name at least one run, got none"):
        learning_curve([])


def test_labels_must_match_the_runs():
    with pytest.raises(ValueError, match="labels must be one per run, got 1 for 2 runs; repeat it for each seed"):
        learning_curve([constant(1.0, 2)] * 2, ["L2F"])


def test_a_window_must_be_positive():
    with pytest.raises(ValueError, match="window must be a whole number of iterations, 1 or more, got 0"):
        learning_curve([constant(1.0, 2)], window=0)


def test_more_labels_than_colours_are_refused():
    with pytest.raises(ValueError, match=r"at most 6 curves, got 7 \(run 1, .*\); give seeds of one method the same"):
        learning_curve([constant(1.0, 2)] * 7)


def test_runs_with_one_label_must_take_the_same_inner_steps():
    none = [{"iteration": 1, "env_steps": 5, "return/step_0": -3.0}]
    with pytest.raises(ValueError, match=r"labelled 'L2F' must take equally many inner steps, got \[0, 1\]"):
        learning_curve([none, constant(1.0, 1)], ["L2F", "L2F"])


# --- In a paper ---


def test_curves_fit_a_column_of_a_paper(fits_its_page):
    runs = [constant(-10.0, 30, validation={30: -9.0}), constant(-9.0, 30)]
    fits_its_page(learning_curve(runs[:1], width=COLUMN))
    fits_its_page(learning_curve(runs, ["L2F, attenuated", "MAML"], width=COLUMN))


def test_every_panel_shows_its_method_beside_the_reference():
    methods = {
        "MAML": [constant(-20.0, 40), constant(-22.0, 40)],
        "ANIL": [constant(-30.0, 40)],
        "BOIL": [constant(-5.0, 40)],
    }
    figure = learning_panels(methods, "MAML", columns=2)
    assert [axes.get_title() for axes in figure.axes] == ["ANIL", "BOIL"]
    for axes, mean in zip(figure.axes, (-30.0, -5.0), strict=True):
        # MAML's two runs and their mean; a single run is its own mean.
        heights = [np.unique(line.get_ydata()).tolist() for line in axes.get_lines()]
        assert heights == [[-20.0], [-22.0], [-21.0], [mean]]


def test_panels_show_the_scores_before_adaptation_on_request_and_leave_out_the_lowest_values():
    falling = constant(-10.0, 100)
    for line in falling[:3]:
        line["return/step_1"] = -1000.0
    runs = [constant(-10.0, 100), falling]
    (axes,) = learning_panels({"MAML": runs}, "MAML", before=True).axes
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    before = [line["return/step_0"] for line in runs[0]]
    np.testing.assert_allclose(dashed[0].get_ydata(), before)
    assert min(before) - 1 < axes.get_ylim()[0] < -10


def test_panels_need_their_reference():
    with pytest.raises(ValueError, match="methods must name the reference 'MAML', got ANIL"):
        learning_panels({"ANIL": [constant(-1.0, 3)]}, "MAML")
