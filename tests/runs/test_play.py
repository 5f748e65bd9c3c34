"""Films: what launchers/play.py leaves and prints, and how it fails, with a screen or without."""

import subprocess
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageSequence

from metarl_l2f.envs import navigation as plane
from metarl_l2f.launchers import cheetah_dir, navigation, play
from metarl_l2f.runs import film
from metarl_l2f.runs.reinforcement import load_policy

from .viewed import without_screen

ROOT = Path(__file__).parents[2]
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


# --- Without a screen ---


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
