"""Figures: what is drawn is what was measured, the paths of navigation are those walked, and files come out whole."""

import json
import threading

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import image, pyplot
from matplotlib.figure import Figure

from metarl_l2f.reports import figures
from metarl_l2f.rl.episodes import Episodes
from metarl_l2f.supervised.episodes import Task


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
    figure = figures.learning_curve([log([-40, -41, -42], [-30, -20, -10])], window=1)
    drawn = lines_of(figure)
    assert list(drawn) == legend_of(figure) == ["before adaptation", "after 1 step"]
    assert data(drawn["before adaptation"]) == [[1000, 2000, 3000], [-40, -41, -42]]
    assert data(drawn["after 1 step"]) == [[1000, 2000, 3000], [-30, -20, -10]]
    assert figure.axes[0].get_xlabel() == "environment steps"


def test_the_returns_as_logged_are_faint_behind_their_running_mean():
    figure = figures.learning_curve([log([0, 3, 6, 0], [9, 9, 9, 9])], window=3)
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
    np.testing.assert_allclose(figures.running_mean(np.array([0.0, 10.0, 20.0, 0.0, 0.0]), window), expected)


def test_by_default_a_running_mean_takes_five_percent_of_the_run():
    zigzag = [0.0, 3.0] * 30
    smooth = lines_of(figures.learning_curve([log(zigzag, zigzag)]))["after 1 step"]
    # 5 % of 60 iterations are 3: (0 + 3 + 0) / 3, (3 + 0 + 3) / 3, ...
    np.testing.assert_allclose(data(smooth)[1][1:5], [1, 2, 1, 2])


def test_every_inner_step_has_a_curve():
    run = [{"iteration": 1, "env_steps": 10} | {f"return/step_{k}": -float(k) for k in range(11)}]
    names = ["before adaptation", "after 1 step", *(f"after {k} steps" for k in range(2, 11))]
    assert legend_of(figures.learning_curve([run])) == names


def test_validation_is_marked_where_it_happened():
    figure = figures.learning_curve([log([-40] * 4, [-20] * 4, validation={2: -19.0, 4: None})])
    marks = lines_of(figure)["validation"]
    assert data(marks) == [[2000], [-19.0]]
    assert (marks.get_linestyle(), marks.get_marker()) == ("None", "o")
    assert marks.get_markeredgecolor() == lines_of(figure)["after 1 step"].get_color()


def test_returns_that_were_not_finite_are_left_out():
    drawn = lines_of(figures.learning_curve([log([-4, None, -2], [None, -20, -10])], window=1))
    assert data(drawn["before adaptation"]) == [[1000, 3000], [-4, -2]]
    assert data(drawn["after 1 step"]) == [[2000, 3000], [-20, -10]]


def test_the_upper_edge_counts_the_iterations():
    (above,) = figures.learning_curve([log([0] * 40, [1] * 40, steps_per_iteration=250)]).axes[0].child_axes
    assert [label.get_text() for label in above.get_xticklabels()] == ["10", "20", "30", "40"]
    assert list(above.get_xticks()) == [2500, 5000, 7500, 10000]


def test_without_environment_steps_the_iterations_are_below():
    run = [{"iteration": i, "return/step_0": -1.0, "return/step_1": -0.5} for i in (1, 2, 3)]
    figure = figures.learning_curve([run])
    assert figure.axes[0].get_xlabel() == "meta-iteration"
    assert data(lines_of(figure)["after 1 step"])[0] == [1, 2, 3]
    assert figure.axes[0].child_axes == []


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_run_too_short_for_a_line_shows_its_points(iterations):
    for line in lines_of(figures.learning_curve([constant(-10.0, iterations)])).values():
        assert line.get_marker() == "o"
    assert lines_of(figures.learning_curve([constant(-10.0, 50)]))["after 1 step"].get_marker() == ""


def test_a_folder_and_its_metrics_file_are_the_same_run(tmp_path):
    folder = write(tmp_path / "run", constant(-10.0, 3))
    for run in (folder, str(folder), folder / "metrics.jsonl"):
        assert data(lines_of(figures.learning_curve([run]))["after 1 step"]) == [[1000, 2000, 3000], [-10] * 3]


def test_the_label_of_a_single_run_heads_the_legend():
    (legend,) = figures.learning_curve([constant(-10.0, 3)], ["L2F"]).legends
    assert legend.get_title().get_text() == "L2F"


# --- Several runs ---


def test_runs_with_the_same_label_are_averaged():
    runs = [log([-40, -30], [-4, -2]), log([-20, -10], [-8, -6]), log([-1, -1], [-3, -3])]
    figure = figures.learning_curve(runs, ["L2F", "L2F", "MAML"])
    drawn = lines_of(figure)
    assert data(drawn["L2F (2 runs)"]) == [[1000, 2000], [-6, -4]]
    assert data(drawn["MAML"]) == [[1000, 2000], [-3, -3]]
    assert legend_of(figure) == ["L2F (2 runs)", "MAML", "before adaptation", "after 1 step"]


def test_before_adaptation_is_dashed_in_the_colour_of_its_label():
    axes = drawn_in(figures.learning_curve([constant(-6.0, 20), constant(-4.0, 20)], ["a", "b"]))
    before_a, after_a, before_b, after_b = axes.lines
    assert [line.get_ydata()[0] for line in axes.lines] == [-16, -6, -14, -4]
    assert [line.is_dashed() for line in axes.lines] == [True, False, True, False]
    assert before_a.get_color() == after_a.get_color() != before_b.get_color() == after_b.get_color()


def test_the_band_is_the_t_interval_of_the_mean():
    figure = figures.learning_curve([constant(value, 20) for value in (1.0, 2.0, 3.0)], ["L2F"] * 3)
    _, band = drawn_in(figure).collections
    edges = np.unique(band.get_paths()[0].vertices[:, 1].round(3))
    # Mean 2, s = 1, n = 3, t₀.₉₇₅,₂ = 4.3027: 2 ± 4.3027 / √3 = 2 ± 2.4842
    np.testing.assert_allclose(edges[[0, -1]], [-0.484, 4.484], atol=1e-3)


def test_the_interval_of_a_short_run_is_a_bar():
    figure = figures.learning_curve([constant(value, 1) for value in (1.0, 2.0, 3.0)], ["L2F"] * 3)
    _, bars = drawn_in(figure).collections
    (segment,) = bars.get_segments()
    np.testing.assert_allclose(segment, [[1000, -0.4842], [1000, 4.4842]], atol=1e-3)


def test_a_run_alone_under_its_label_has_no_interval():
    (axes,) = figures.learning_curve([constant(1.0, 20), constant(2.0, 20)]).axes
    assert len(axes.collections) == 0


def test_the_mean_ends_where_the_shortest_run_does():
    figure = figures.learning_curve([constant(1.0, 3), constant(3.0, 2)], ["L2F", "L2F"], window=1)
    assert data(lines_of(figure)["L2F (2 runs)"]) == [[1000, 2000], [2, 2]]


def test_an_iteration_that_one_run_misses_is_left_out_of_the_mean():
    runs = [log([0, 0, 0], [1, None, 1]), log([0, 0, 0], [3, 3, 3])]
    figure = figures.learning_curve(runs, ["L2F", "L2F"], window=1)
    assert data(lines_of(figure)["L2F (2 runs)"]) == [[1000, 3000], [2, 2]]


def test_seeds_are_averaged_by_iteration_at_their_mean_environment_steps():
    runs = [constant(1.0, 2, steps_per_iteration=1000), constant(3.0, 2, steps_per_iteration=2000)]
    assert data(lines_of(figures.learning_curve(runs, ["L2F", "L2F"]))["L2F (2 runs)"]) == [[1500, 3000], [2, 2]]


def test_without_labels_runs_are_named_by_their_folders(tmp_path):
    runs = [write(tmp_path / "l2f", constant(1.0, 2)), write(tmp_path / "maml", constant(2.0, 2)), constant(3.0, 2)]
    assert list(lines_of(figures.learning_curve(runs))) == ["l2f", "maml", "run 3"]


def test_without_labels_folders_of_the_same_name_stay_apart(tmp_path):
    runs = [write(tmp_path / method / "seed_1", constant(1.0, 2)) for method in ("l2f", "maml")]
    assert list(lines_of(figures.learning_curve(runs))) == [str(run.resolve()) for run in runs]


def test_methods_may_differ_in_their_inner_steps():
    two = [{"iteration": 1, "env_steps": 5, "return/step_0": -3.0, "return/step_1": -2.0, "return/step_2": -1.0}]
    figure = figures.learning_curve([two, constant(-4.0, 1)], ["two", "one"])
    assert data(lines_of(figure)["two"])[1] == [-1]
    assert legend_of(figure)[-1] == "after the last step"


# --- What learning_curve refuses ---


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl; put it back, or give a folder that training wrote"):
        figures.learning_curve([tmp_path])


def test_a_run_before_its_first_iteration_is_refused(tmp_path):
    with pytest.raises(ValueError, match="early has no metrics yet; draw it after its first iteration"):
        figures.learning_curve([write(tmp_path / "early", [])])


def test_a_run_without_returns_is_refused():
    with pytest.raises(ValueError, match="run 1 has no return, no key return/step_0, but iteration, accuracy; give"):
        figures.learning_curve([[{"iteration": 1, "accuracy": 0.5}]])


def test_a_run_whose_returns_never_were_finite_is_refused():
    with pytest.raises(ValueError, match="run 1 has no finite return/step_1 in any of its 2 iterations"):
        figures.learning_curve([log([-1, -1], [None, None])])


def test_a_single_run_must_stand_in_a_list(tmp_path):
    for run in (tmp_path, str(tmp_path), constant(1.0, 3)):
        with pytest.raises(TypeError, match=r"runs must be a list of runs, got a single one; write \[run\]"):
            figures.learning_curve(run)


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="runs must name at least one run, got none"):
        figures.learning_curve([])


def test_labels_must_match_the_runs():
    with pytest.raises(ValueError, match="labels must be one per run, got 1 for 2 runs; repeat it for each seed"):
        figures.learning_curve([constant(1.0, 2)] * 2, ["L2F"])


def test_a_window_must_be_positive():
    with pytest.raises(ValueError, match="window must be a positive number of iterations, got 0"):
        figures.learning_curve([constant(1.0, 2)], window=0)


def test_more_labels_than_colours_are_refused():
    with pytest.raises(ValueError, match=r"at most 6 curves, got 7 \(run 1, .*\); give seeds of one method the same"):
        figures.learning_curve([constant(1.0, 2)] * 7)


def test_runs_with_one_label_must_take_the_same_inner_steps():
    none = [{"iteration": 1, "env_steps": 5, "return/step_0": -3.0}]
    with pytest.raises(ValueError, match=r"labelled 'L2F' must take equally many inner steps, got \[0, 1\]"):
        figures.learning_curve([none, constant(1.0, 1)], ["L2F", "L2F"])


# --- Paths ---

GOALS = [[0.5, 0.0], [0.0, -0.5], [-0.5, 0.5]]


def walks(velocities, steps=4, episodes=2, reward=-1.0):
    """Episodes of N tasks that walk from the origin with a constant velocity each, all steps of them done."""
    actions = torch.tensor(velocities)[:, None, None, :].expand(-1, episodes, steps, -1)
    observations = actions * torch.arange(steps)[:, None]
    filled = torch.ones(len(velocities), episodes, steps)
    return Episodes(observations, actions.clone(), reward * filled, filled)


def towards_goals(**settings):
    return walks([[0.1, 0.0], [0.0, -0.1], [-0.05, 0.05]], **settings)


def tracks(axes):
    """The drawn paths: everything that has a line."""
    return [line for line in axes.lines if line.get_linestyle() != "None"]


def grid_of(axes):
    return axes.get_subplotspec().get_gridspec().get_geometry()


def marks(axes, marker):
    return [tuple(np.concatenate(line.get_data())) for line in axes.lines if line.get_marker() == marker]


def test_every_number_of_inner_steps_has_a_panel_with_its_mean_return():
    figure = figures.navigation_paths([towards_goals(reward=-2.0), towards_goals(), towards_goals(reward=0.0)], GOALS)
    # Four steps of reward −2, −1 and 0.
    expected = ["before\nreturn −8.0", "after 1 step\nreturn −4.0", "after 2 steps\nreturn 0.0"]
    assert [axes.get_title() for axes in figure.axes] == expected


def test_a_path_holds_every_position_with_the_one_after_the_last_move():
    (axes,) = figures.navigation_paths([towards_goals()], GOALS, tasks=[1], episodes_shown=1).axes
    (path,) = tracks(axes)
    # Four moves of −0.1 along y lead through five positions.
    np.testing.assert_allclose(data(path), [[0.0] * 5, [0.0, -0.1, -0.2, -0.3, -0.4]], atol=1e-6)


def test_the_last_move_is_clipped_as_the_environment_clips_it():
    (axes,) = figures.navigation_paths([walks([[3.0, 0.0]], steps=1)], [[0.5, 0.0]], episodes_shown=1).axes
    (path,) = tracks(axes)
    np.testing.assert_allclose(data(path), [[0.0, 0.1], [0.0, 0.0]], atol=1e-6)


def test_a_path_ends_with_its_episode():
    episodes = towards_goals(episodes=1)
    episodes.mask[0, 0, 2:] = 0  # arrived with its second move
    episodes.observations[0, 0, 2:] = 0
    (axes,) = figures.navigation_paths([episodes], GOALS, tasks=[0]).axes
    (path,) = tracks(axes)
    np.testing.assert_allclose(data(path), [[0.0, 0.1, 0.2], [0.0, 0.0, 0.0]], atol=1e-6)


def test_a_task_has_one_strong_path_and_faint_ones_in_its_colour():
    (axes,) = figures.navigation_paths([towards_goals(episodes=9)], GOALS, tasks=[2], episodes_shown=4).axes
    paths = tracks(axes)
    strong = [path for path in paths if path.get_alpha() is None]
    assert (len(paths), len(strong)) == (4, 1)
    assert all(path.get_linewidth() < strong[0].get_linewidth() for path in paths if path is not strong[0])
    assert {path.get_color() for path in paths} == {figures.COLOURS[0]}


def test_goals_are_stars_and_starts_are_dots():
    for axes in figures.navigation_paths([towards_goals(), towards_goals()], GOALS, tasks=[2, 0]).axes:
        assert marks(axes, "*") == [(-0.5, 0.5), (0.5, 0.0)]
        assert marks(axes, "o") == [(0.0, 0.0), (0.0, 0.0)]


def test_by_default_the_first_five_tasks_are_drawn():
    goals = [[0.1 * i, 0.2] for i in range(8)]
    (axes,) = figures.navigation_paths([walks([[0.0, 0.1]] * 8)], np.array(goals)).axes
    np.testing.assert_allclose(marks(axes, "*"), goals[:5])


def test_the_mean_return_counts_the_tasks_that_are_not_drawn():
    episodes = towards_goals()
    episodes.rewards[2] = -4.0
    (axes,) = figures.navigation_paths([episodes], GOALS, tasks=[0]).axes
    # (−4 − 4 − 16) / 3
    assert axes.get_title() == "before\nreturn −8.0"


def test_all_panels_have_one_scale_that_holds_goals_and_paths():
    figure = figures.navigation_paths([walks([[0.0, 0.0]] * 3), walks([[0.0, -0.1]] * 3, steps=6)], GOALS)
    for axes in figure.axes:
        # The farthest anything is drawn is y = −0.6; 5 % more.
        np.testing.assert_allclose([axes.get_xlim(), axes.get_ylim()], [[-0.63, 0.63]] * 2, atol=1e-6)
        assert axes.get_aspect() == 1
        assert list(axes.get_xticks()) == list(axes.get_yticks()) == [-0.5, 0, 0.5]


def test_a_path_that_strays_does_not_set_the_scale():
    (axes,) = figures.navigation_paths([walks([[0.1, 0.0]], steps=100)], [[0.0, 0.5]]).axes
    # 1.5 × 0.5, the farthest goal, and 5 % more, though the path reaches 10.
    np.testing.assert_allclose(axes.get_xlim(), [-0.7875, 0.7875])


def test_a_goal_and_a_path_that_never_leave_the_origin_can_be_drawn():
    (axes,) = figures.navigation_paths([walks([[0.0, 0.0]])], [[0.0, 0.0]]).axes
    assert axes.get_xlim() == (-1, 1)


@pytest.mark.parametrize(
    ("panels", "width", "grid"),
    [(1, None, (1, 1)), (4, None, (1, 4)), (6, None, (2, 3)), (4, figures.COLUMN, (2, 2)), (3, 0.5, (3, 1))],
)
def test_panels_that_would_be_too_small_move_to_further_rows(panels, width, grid):
    figure = figures.navigation_paths([towards_goals()] * panels, GOALS, width=width)
    assert len(figure.axes) == panels
    assert {grid_of(axes) for axes in figure.axes} == {grid}


@pytest.mark.parametrize("shape", [(3, 2, 4, 3), (3, 4, 2)])
def test_episodes_that_are_not_on_a_plane_are_refused(shape):
    episodes = towards_goals()._replace(observations=torch.zeros(shape))
    with pytest.raises(ValueError, match=r"observations must be positions on a plane, \(N, B, T, 2\), got shape \(3, "):
        figures.navigation_paths([towards_goals(), episodes], GOALS)


def test_goals_must_be_those_of_the_episodes():
    with pytest.raises(ValueError, match=r"goals must be \(N, 2\), .* \(N = 3\), got shape \(2, 2\); give the tasks"):
        figures.navigation_paths([towards_goals()], GOALS[:2])
    with pytest.raises(ValueError, match=r"goals must be .* \(N = 1, 3\), got shape \(3, 2\)"):
        figures.navigation_paths([towards_goals(), walks([[0.1, 0.0]])], GOALS)


@pytest.mark.parametrize("tasks", [[3], [-1], []])
def test_tasks_must_exist(tasks):
    with pytest.raises(ValueError, match=r"tasks must be some of the numbers 0 … 2, got \["):
        figures.navigation_paths([towards_goals()], GOALS, tasks=tasks)


def test_there_must_be_episodes_to_draw():
    with pytest.raises(ValueError, match="episodes must hold those before adaptation at least, got none"):
        figures.navigation_paths([], GOALS)
    with pytest.raises(ValueError, match="episodes_shown must be a positive number of episodes, got 0"):
        figures.navigation_paths([towards_goals()], GOALS, episodes_shown=0)


# --- Files ---


def pictures():
    yield figures.learning_curve([constant(-10.0, 30)], width=4.0)
    yield figures.learning_curve([constant(-10.0, 30), constant(-9.0, 30)], width=4.0)
    yield figures.navigation_paths([towards_goals()] * 2, GOALS, width=4.0)


def test_a_png_has_200_pixels_an_inch(tmp_path):
    for number, figure in enumerate(pictures()):
        path = tmp_path / f"{number}.png"
        figures.save(figure, path)
        height, width, _ = image.imread(path).shape
        assert width == 800
        assert height == int(figure.get_figheight() * 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png"]


def test_a_pdf_has_fonts_that_publishers_accept(tmp_path):
    for number, figure in enumerate(pictures()):
        figures.save(figure, str(tmp_path / f"{number}.PDF"))
        content = (tmp_path / f"{number}.PDF").read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/FontFile2" in content and b"/Type3" not in content


def test_everything_drawn_fits_into_one_column_of_a_paper():
    runs = [constant(-10.0, 30, validation={30: -9.0}), constant(-9.0, 30)]
    for figure in (
        figures.learning_curve(runs[:1], width=figures.COLUMN),
        figures.learning_curve(runs, ["L2F, attenuated", "MAML"], width=figures.COLUMN),
        figures.navigation_paths([towards_goals()] * 4, GOALS, width=figures.COLUMN),
        speeds_figure(runs_at([0.0]), runs_at([1.0]), tasks=[1.0], width=figures.COLUMN),
        figures.sinusoid_fit(
            sinusoids(4), dict.fromkeys(("L2F", "MAML"), torch.zeros(4, 3, 9, 1)), width=figures.COLUMN
        ),
        figures.gamma_heatmap({"mean.layers.0.weight": torch.rand(20, 1)}, width=figures.COLUMN),
        figures.few_shot_episode(*an_episode(), width=figures.COLUMN),
    ):
        figure.draw_without_rendering()
        inside = figure.get_tightbbox()
        assert inside.x0 >= 0 and inside.y0 >= 0
        assert inside.x1 <= figure.get_figwidth() and inside.y1 <= figure.get_figheight()


@pytest.mark.parametrize("name", ["curve.jpg", "curve", "png"])
def test_other_formats_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"path must end in \.png or \.pdf, got .*; rename the picture"):
        figures.save(Figure(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_drawing_and_saving_leave_no_trace_in_matplotlib(tmp_path):
    before = dict(matplotlib.rcParams)

    def draw(number, suffix):
        for i, figure in enumerate(pictures()):
            figures.save(figure, tmp_path / f"{number}_{i}.{suffix}")

    threads = [threading.Thread(target=draw, args=work) for work in enumerate(["pdf", "pdf", "png"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.iterdir())) == 9
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


# --- Speeds ---


def runs_at(speeds, steps=4, episodes=2):
    """Episodes of one task a speed; observations hold (height, forward speed)."""
    observations = torch.zeros(len(speeds), episodes, steps, 2)
    observations[..., 1] = torch.tensor(speeds).view(-1, 1, 1)
    ones = torch.ones(len(speeds), episodes, steps)
    return Episodes(observations, torch.zeros(len(speeds), episodes, steps, 1), ones * 0.5, ones)


def speeds_figure(*batches, tasks, **settings):
    return figures.running_speeds(batches, tasks, speed_column=1, task_name="direction", **settings)


def test_speeds_stand_over_time_and_against_the_task():
    figure = speeds_figure(runs_at([0.0, 0.0]), runs_at([-2.0, 3.0]), tasks=[-1.0, 1.0])
    _, after, _, against = figure.axes
    assert [data(line)[1] for line in after.lines[:2]] == [[-2.0] * 4, [3.0] * 4]
    np.testing.assert_allclose(against.collections[0].get_offsets(), [[-1.0, -2.0], [1.0, 3.0]])
    # four steps of reward 0.5
    assert after.get_title() == "after 1 step\nreturn 2.0"


def test_the_mean_speed_counts_running_episodes_alone():
    episodes = runs_at([1.0])
    episodes.mask[0, 1, 2:] = 0  # the second episode ends after two steps, …
    episodes.observations[0, 1, 2:] = 0
    episodes.observations[0, 1, :2, 1] = 3.0  # … at speed 3
    (above, _) = speeds_figure(episodes, tasks=[1.0]).axes
    assert data(above.lines[0])[1] == [2.0, 2.0, 1.0, 1.0]


def test_goal_speeds_get_the_line_on_which_speed_and_goal_agree():
    _, against = speeds_figure(runs_at([0.5, 1.5]), tasks=[0.0, 2.0], goals_are_speeds=True).axes
    assert [[0.0, 2.0], [0.0, 2.0]] in [data(line) for line in against.lines]


@pytest.mark.parametrize(("tasks", "column"), [([1.0], 1), ([1.0, 2.0], 2), ([[1.0, 2.0]] * 2, 1)])
def test_speeds_need_a_number_per_task_and_a_column(tasks, column):
    with pytest.raises(ValueError, match=r"tasks must be \(N,\), one number for each task .* and column [12]"):
        figures.running_speeds([runs_at([0.0, 1.0])], tasks, speed_column=column, task_name="speed")


def test_a_task_whose_episodes_all_end_early_has_no_dot_and_no_warning():
    episodes = runs_at([1.0, 2.0])
    episodes.mask[0, :, 1:] = 0
    _, against = speeds_figure(episodes, tasks=[-1.0, 1.0]).axes
    offsets = np.ma.filled(against.collections[0].get_offsets(), np.nan)
    np.testing.assert_allclose(offsets[:, 1], [np.nan, 2.0])


# --- Sinusoids and images ---


def sinusoids(number=2, points=9):
    x = torch.linspace(-5, 5, points).expand(number, points).unsqueeze(-1)
    return Task(x[:, :3], x[:, :3].sin(), x, x.sin(), torch.empty(number, 0))


def test_a_row_a_network_a_column_a_curve():
    tasks = sinusoids()
    fits = {"L2F": torch.zeros(2, 3, 9, 1), "MAML": torch.ones(2, 2, 9, 1)}
    figure = figures.sinusoid_fit(tasks, fits)
    panels = figure.axes
    assert len(panels) == 4 and [panels[0].get_ylabel(), panels[2].get_ylabel()] == ["L2F", "MAML"]
    # The curve, a line per step, and the points.
    assert [len(axes.lines) for axes in panels] == [1 + 3 + 1, 1 + 3 + 1, 1 + 2 + 1, 1 + 2 + 1]
    np.testing.assert_allclose(panels[0].lines[0].get_ydata(), tasks.query_targets[0, :, 0])
    np.testing.assert_allclose(panels[3].lines[1].get_ydata(), np.ones(9))
    assert [text.get_text() for text in figure.legends[0].texts][-1] == "after 2 steps"


def test_a_narrow_picture_of_fits_has_a_column_a_network():
    tasks, outputs = sinusoids(3), {"L2F": torch.zeros(3, 2, 9, 1), "MAML": torch.ones(3, 2, 9, 1)}
    panels = figures.sinusoid_fit(tasks, outputs, width=figures.COLUMN).axes
    assert len(panels) == 6 and [axes.get_title() for axes in panels] == ["L2F", "MAML", "", "", "", ""]
    assert [axes.lines[1].get_ydata()[0] for axes in panels] == [0, 1, 0, 1, 0, 1]


def an_episode():
    targets = torch.tensor([[0, 0, 1, 1]])
    pictures = torch.rand(1, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    task = Task(pictures[:, :2], torch.tensor([[0, 1]]), pictures, targets, torch.empty(1, 0))
    after = torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]])  # the second image of class 0 is taken for class 1
    return task, torch.stack([after * 0 + torch.tensor([0.0, 1.0]), after]).unsqueeze(0)


def test_an_episode_shows_which_images_were_told_right():
    figure = figures.few_shot_episode(*an_episode())
    frames = [axes.spines["left"].get_edgecolor() for axes in figure.axes]
    right, wrong = (matplotlib.colors.to_rgba(colour) for colour in ("#0072B2", "#D55E00"))
    assert frames[1:3] == [right, wrong] and frames[4:] == [right, right]
    assert figure.legends[0].get_title().get_text() == "accuracy in this episode: 50 % before adaptation, 75 % after"


# --- Attenuation ---


def test_the_heatmap_has_a_row_a_tensor_and_its_tasks_in_order():
    gamma = {"a": torch.tensor([[0.9, 0.7], [0.2, 0.4], [0.5, 0.5]]), "b": torch.tensor([[0.3], [0.1], [0.2]])}
    axes = figures.gamma_heatmap(gamma).axes[0]
    # Means of a: 0.8, 0.3, 0.5; with b's: 0.55, 0.2, 0.35 a task, so the order is 1, 2, 0.
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.3, 0.5, 0.8], [0.1, 0.2, 0.3]], atol=1e-6)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    (beside,) = axes.child_axes
    assert [label.get_text() for label in beside.get_yticklabels()] == ["0.53 ± 0.21", "0.20 ± 0.08"]


def test_maml_has_no_heatmap():
    with pytest.raises(ValueError, match="MAML attenuates nothing; draw a run of L2F"):
        figures.gamma_heatmap({})
