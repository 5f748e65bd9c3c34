"""Videos: what launchers/play.py leaves and prints, how it fails, and how panels, files and 2D navigation are drawn."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image, ImageColor, ImageSequence

from metarl_l2f.envs import navigation as plane
from metarl_l2f.launchers import cheetah_dir, navigation, play
from metarl_l2f.runs import film
from metarl_l2f.runs.reinforcement import load_policy

ROOT = Path(__file__).parents[1]
HORIZON, SIZE = 6, 200
HOLD = plane.Navigation2D.metadata["render_fps"]  # One second.
TINY = [
    *("--iterations", "1", "--tasks-per-batch", "2", "--episodes-per-task", "2", "--horizon", str(HORIZON)),
    *("--hidden-sizes", "4", "--evaluation-tasks", "0", "--threads", "1"),
]
SMALL = ["--size", str(SIZE)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert navigation.main([*TINY, "--log-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def cheetah_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cheetah"
    assert cheetah_dir.main([*TINY, "--log-dir", str(folder)]) == 0
    return folder


def read_mp4(path: Path) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, f"{folder}/%04d.png"]
        subprocess.run(command, check=True)
        return [np.asarray(Image.open(frame)) for frame in sorted(Path(folder).iterdir())]


def read_gif(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """Frames, and their milliseconds; a writer may show one longer instead of the same one twice."""
    with Image.open(path) as image:
        shown = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(image)]
    frames, durations = zip(*shown, strict=True)
    return list(frames), list(durations)


# --- The program ---


def test_a_run_is_filmed_into_its_folder_and_the_returns_are_told(run, capsys):
    assert play.main([str(run), "--steps", "2", "--task", "0.3", "-0.2", *SMALL]) == 0
    frames = read_mp4(run / "play.mp4")
    assert len(frames) == HORIZON + 1 + HOLD
    height, width, _ = frames[0].shape
    assert height % 2 == width % 2 == 0
    assert width > 3 * SIZE  # Before adaptation, after one step, after two.
    assert (frames[0] != frames[HORIZON]).any()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"wrote {run / 'play.mp4'}; goal: (0.3, −0.2); return (in brackets: mean of 2 episodes) ")
    assert all(f"{name} -" in line for name in ("before adaptation", "after 1 step", "after 2 steps"))


def test_a_gif_shows_the_same_and_repeats_for_ever(run, tmp_path):
    arguments = [str(run), "--task", "0.3", "-0.2", *SMALL, "--fps", "10", "--out"]
    for name in ("a.gif", "a.mp4", "b.gif"):
        assert play.main([*arguments, str(tmp_path / name)]) == 0
    frames, durations = read_gif(tmp_path / "a.gif")
    assert sum(durations) == 100 * (HORIZON + 1 + 10)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0
    # Both formats lose colour, but white paper stays white.
    np.testing.assert_allclose(frames[0].astype(int), read_mp4(tmp_path / "a.mp4")[0].astype(int), atol=90)
    assert (frames[0][0, 0] == 255).all()
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_all_policies_begin_alike_and_then_differ(run):
    _, experiment = load_policy(run)
    task = film.chosen_task(experiment, (0.3, -0.2), 1)
    adapted = experiment.adapt(task=task, steps=1, episodes=2)
    env = film.filmable(experiment.env, experiment.env_kwargs, SIZE)
    before, after = film.film(env, adapted, task, HORIZON, seed=5, size=SIZE)
    experiment.close()
    env.close()
    assert (before.title, after.title) == ("before adaptation", "after 1 step")
    assert len(before.frames) == len(after.frames) == len(before.returns) == HORIZON + 1
    assert before.returns[0] == after.returns[0] == 0.0
    assert before.frames[0].tobytes() == after.frames[0].tobytes()
    assert before.frames[-1].tobytes() != after.frames[-1].tobytes()
    assert before.returns[-1] != after.returns[-1]


def test_without_a_task_the_seed_chooses_one(run, capsys, tmp_path):
    said = []
    for seed in ("1", "1", "2"):
        assert play.main([str(run), *SMALL, "--seed", seed, "--out", str(tmp_path / "a.gif")]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def failing(capsys, *arguments) -> str:
    """What a refused command line says; its exit status is 2, whoever noticed."""
    try:
        status = play.main(list(map(str, arguments)))
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "film.avi"], "a video must end in .mp4 or .gif, got 'film.avi'"),
        (["--out", "no/such/film.mp4"], "make no/such first"),
        (["--steps", "0"], "steps must be a whole number, 1 or more, got 0"),
        (["--episodes", "0"], "episodes must be a whole number, 1 or more, got 0"),
        (["--size", "20"], "size must be a whole number, 200 or more, got 20"),
        (["--fps", "0"], "fps must be positive and finite, got 0"),
        (["--task", "1"], "task must be 2 numbers for metarl_l2f/Navigation2D-v0, got 1; give them as in --task"),
        (["--task", "1", "2", "3"], "task must be 2 numbers for metarl_l2f/Navigation2D-v0, got 3"),
        (["--task", "nan", "1"], "task must be finite"),
        (["--task", "left"], "--task"),
    ],
)
def test_what_cannot_be_filmed_is_refused(run, capsys, flags, said):
    assert said in failing(capsys, run, *flags)


def test_filming_a_missing_run_says_so(tmp_path, capsys):
    assert "holds no run" in failing(capsys, tmp_path)


class Invisible(gymnasium.Env):
    def __init__(self):
        self.metadata = {"render_modes": ["ansi"]}


def test_an_environment_that_cannot_draw_itself_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Invisible-v0 cannot be filmed: .*'rgb_array', but \['ansi'\]; give it one"):
        gymnasium.register("Invisible-v0", entry_point=Invisible)
        try:
            film.filmable("Invisible-v0", {}, SIZE)
        finally:
            del gymnasium.registry["Invisible-v0"]


class Drawn:
    """Just enough of an experiment: tasks of some kind."""

    def __init__(self, task):
        self.env, self.task = "Drawn-v0", task

    def held_out_tasks(self, count, seed):
        return [self.task]


def test_numbers_become_a_task_of_the_environments_own_kind():
    task = film.chosen_task(Drawn(np.zeros((2, 2), np.float32)), (1, 2, 3, 4), 0)
    assert (task.dtype, task.tolist()) == (np.float32, [[1, 2], [3, 4]])
    assert film.chosen_task(Drawn(3), (5.0,), 0) == 5
    with pytest.raises(ValueError, match=r"task must be whole for Drawn-v0, got 0\.5"):
        film.chosen_task(Drawn(3), (0.5,), 0)
    with pytest.raises(ValueError, match="task cannot be given in numbers, for those of Drawn-v0 are like 'left'"):
        film.chosen_task(Drawn("left"), (1.0,), 0)
    assert film.chosen_task(Drawn("left"), None, 0) == "left"


@pytest.mark.parametrize(
    ("meaning", "task", "words"),
    [
        ("a goal", np.array([0.3, -0.2], np.float32), "goal: (0.3, −0.2)"),
        ("a goal (x, y)", np.array([0.0001, -0.0001]), "goal: (0, 0)"),
        ("a speed in m/s", 1.23456, "speed in m/s: 1.235"),
        ("an object", "cup", "object: cup"),
        (None, -1, "task: −1"),
    ],
)
def test_a_task_is_told_with_its_meaning(meaning, task, words):
    env = gymnasium.Env()
    if meaning is not None:
        env.domain = type("Domain", (), {"task_meaning": meaning})()
    assert film.in_words(task, env) == words


# --- Without a screen ---


def without_screen(**variables: str) -> dict[str, str]:
    removed = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")
    return {name: value for name, value in os.environ.items() if name not in removed} | variables


def test_a_cheetah_is_filmed_without_a_screen(cheetah_run, tmp_path):
    out = tmp_path / "cheetah.mp4"
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            ROOT / "launchers" / "play.py",
            cheetah_run,
            "--task",
            "-1",
            *SMALL,
            "--out",
            out,
        ],
        env=without_screen(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    if "MuJoCo cannot draw on this machine" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stderr) == (0, "")
    assert "−1; return (in brackets: mean of 2 episodes) before adaptation" in done.stdout
    frames = read_mp4(out)
    assert len(frames) == HORIZON + 1 + 20
    assert frames[0].std() > 5
    assert (frames[0] != frames[HORIZON]).any()
    assert [path.name for path in tmp_path.iterdir()] == ["cheetah.mp4"]


def test_a_machine_that_cannot_draw_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(film, "OPEN_GRAPHICS", "import sys; raise ImportError('no ' + sys.argv[1])")
    monkeypatch.setattr(os, "environ", without_screen())
    with pytest.raises(ValueError, match=r"GL=egl: ImportError: no egl; .*osmesa: .*no osmesa\)\. .* needs libEGL"):
        film.working_graphics()
    monkeypatch.setitem(os.environ, "MUJOCO_GL", "glx")
    with pytest.raises(ValueError, match=r"\(MUJOCO_GL=glx: ImportError: no glx\)"):
        film.working_graphics()


def test_the_first_graphics_that_work_are_taken(monkeypatch):
    monkeypatch.setattr(film, "OPEN_GRAPHICS", "import sys; sys.exit(sys.argv[1] != 'osmesa')")
    monkeypatch.setattr(os, "environ", without_screen())
    assert film.working_graphics() == "osmesa"


# --- 2D navigation ---


def begin(goal=(0.3, -0.2), **settings) -> gymnasium.Env:
    env = gymnasium.make("metarl_l2f/Navigation2D-v0", render_mode="rgb_array", **settings)
    env.reset(seed=0, options={"task": goal})
    return env


def pixel(picture: np.ndarray, point, sight: float) -> tuple[int, ...]:
    """The colour at a point of the plane; y points upwards."""
    side = len(picture)
    column, row = (round((0.5 + sign * x / (2 * sight)) * side) for sign, x in zip((1, -1), point, strict=True))
    return tuple(picture[row, column].tolist())


@pytest.mark.filterwarnings("ignore:.*A Box observation space m(in|ax)imum value is.*infin.*:UserWarning")
def test_gymnasium_accepts_the_environment_that_draws_itself():
    check_env(begin().unwrapped)


def test_goal_and_walker_stand_where_they_are():
    env = begin()
    first = env.render()
    assert (first.shape, first.dtype) == ((480, 480, 3), np.uint8)
    sight = plane.SIGHT * 0.5
    goal, walker = (ImageColor.getrgb(colour) for colour in (plane.GOAL, plane.WALKER))
    assert pixel(first, (0.3, -0.2), sight) == goal
    assert pixel(first, (0, 0), sight) == walker
    env.step(np.array([-0.1, 0.1], np.float32))
    second = env.render()
    assert pixel(second, (-0.1, 0.1), sight) == walker
    assert pixel(second, (-0.04, 0.04), sight) == walker  # The path.
    assert pixel(second, (0.04, 0.04), sight) != walker


def test_a_new_episode_begins_without_a_path():
    env = begin()
    first = env.render()
    env.step(np.array([0.1, 0.1], np.float32))
    assert (env.render() != first).any()
    env.reset()
    np.testing.assert_array_equal(env.render(), first)


def test_goals_outside_the_square_are_in_sight():
    picture = begin(goal=(3.0, -3.0)).render()
    assert pixel(picture, (3.0, -3.0), plane.SIGHT * 3.0) == ImageColor.getrgb(plane.GOAL)


def test_a_walker_that_left_the_picture_shows_on_its_edge():
    env = begin(goal_range=0.2, goal=(0.1, 0.1))
    for _ in range(20):
        env.step(np.array([0.1, 0.0], np.float32))
    right = env.render()[:, -30:].reshape(-1, 3).tolist()
    assert list(ImageColor.getrgb(plane.WALKER)) in right
    paths = [np.array([[0.0, 0.0], [x, 0.0]]) for x in (1e6, np.float32(3e38))]
    pictures = [plane.picture(path, np.array([0.1, 0.1]), 0.2) for path in paths]
    np.testing.assert_array_equal(*pictures)


def test_drawing_needs_a_mode_and_an_episode():
    with pytest.raises(ValueError, match="render needs a render_mode, got None; make the environment with render_mode"):
        plane.Navigation2D().render()
    with pytest.raises(ValueError, match="render_mode must be None or 'rgb_array', got 'human'"):
        plane.Navigation2D(render_mode="human")
    with pytest.raises(ValueError, match=r"render needs a running episode, got none; call reset\(\) first"):
        plane.Navigation2D(render_mode="rgb_array").render()
