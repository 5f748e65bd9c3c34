"""Film a trained run on one task: before adaptation and after 1 to k gradient steps, side by side."""

from metarl_l2f.program import as_program

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
import torch
import tyro

from metarl_l2f.launchers.meta_rl import USER_ERRORS, load_run
from metarl_l2f.launchers.run import fail, read_alone
from metarl_l2f.methods import label_of
from metarl_l2f.reports.style import minus
from metarl_l2f.reports.video import Clip, checked_path, save, shown, side_by_side
from metarl_l2f.rl.adapted import Adapted, AdaptedPolicy
from metarl_l2f.rl.experiment import MetaRL
from metarl_l2f.training.seeding import Stream, generator

SMALLEST_PANEL = 200  # Pixels: below, the text does not fit.
USUAL_FPS = 30  # Where an environment does not say.
LAST_FRAME_SECONDS = 1.0  # Time to read the returns.

OPEN_GRAPHICS = """
import importlib, mujoco, sys
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(8, 8)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100).free()
context.free()
"""


@dataclass(frozen=True)
class Options:
    """A video of a trained run on one task: its policy before adaptation and after each inner step, side by side.

    Every policy plays one episode, from the same start. Works without a screen.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    task: tuple[float, ...] | None = None
    """The task, one number or several, as in --task -1 or --task 0.3 -0.2; by default one from the evaluation's random
    stream."""
    steps: int = 1
    """Inner gradient steps."""
    episodes: int | None = None
    """Episodes before adaptation and after every step, to adapt on; by default as in training."""
    later_lr_factor: float | None = None
    """Step size of steps beyond the trained ones, relative to the last trained one; by default as in training."""
    seed: int | None = None
    """Seed of the task, the start and the noise; by default the run's own."""
    checkpoint: Literal["best", "latest"] = "best"
    """The best by validation, or the latest."""
    out: Path | None = None
    """The video, an .mp4 or a .gif; by default play.mp4 in the run's folder."""
    size: int = 360
    """Height of a panel, pixels."""
    fps: float | None = None
    """Frames per second; by default the environment's own, at which its time passes as it really does."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("episodes", 1), ("size", SMALLEST_PANEL)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"fps must be a positive number, got {self.fps}")
        folder = checked_path(self.video).parent
        if self.out is not None and not folder.is_dir():
            raise ValueError(f"out must lie in a folder that exists, got {self.out}; make {folder} first")

    @property
    def video(self) -> Path:
        """Where to write it."""
        return self.out or self.run / "play.mp4"


# --- Tasks ---


def chosen_task(experiment: MetaRL, numbers: Sequence[float] | None, seed: int) -> Any:
    """The task that numbers of the command line stand for; without them, a held-out one.

    Raises:
        ValueError: the environment's tasks are of other numbers, or of none.
    """
    example = experiment.held_out_tasks(1, seed)[0]
    if numbers is None:
        return example
    array = np.asarray(example)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"task cannot be given in numbers, for those of {experiment.env} are like {example!r}")
    if len(numbers) != array.size:
        usual = " ".join(_short(number) for number in array.ravel())
        raise ValueError(
            f"task must be {array.size} number{'' if array.size == 1 else 's'} for {experiment.env}, got "
            f"{len(numbers)}; give them as in --task {usual}"
        )
    given = np.reshape(numbers, array.shape)
    task = given.astype(array.dtype)
    if array.dtype.kind in "iu" and (task != given).any():
        raise ValueError(f"task must be whole for {experiment.env}, got {' '.join(map(str, numbers))}")
    return task[()]


def in_words(task: Any, env: gymnasium.Env) -> str:
    """A task with its meaning, if the environment tells it: "goal: (0.3, −0.2)"."""
    array = np.asarray(task)
    if array.dtype.kind in "iuf":
        numbers = [minus(_short(number)) for number in array.ravel()]
        value = numbers[0] if array.shape == () else f"({', '.join(numbers)})"
    else:
        value = str(task)
    meaning = getattr(getattr(env.unwrapped, "domain", None), "task_meaning", "a task")
    return f"{re.sub(r'^an? |,$| *[(].*[)],?$', '', meaning)}: {value}"


def _short(number: float) -> str:
    return f"{round(float(number), 3):g}"


# --- Episodes ---


def filmable(env_id: str, arguments: Mapping[str, Any], size: int) -> gymnasium.Env:
    """The environment as one that draws itself, at this size in pixels if it can.

    Raises:
        ValueError: it cannot draw itself, or nothing draws for it on this machine.
    """
    blind = gymnasium.make(env_id, disable_env_checker=True, **arguments)
    modes = blind.metadata.get("render_modes", [])
    blind.close()
    if "rgb_array" not in modes:
        raise ValueError(
            f"{env_id} cannot be filmed: it has no render mode 'rgb_array', but {modes}; give it one, whose render() "
            "returns the picture, (H, W, 3) of bytes, and name it in metadata['render_modes']"
        )
    if is_mujoco(blind):
        os.environ["MUJOCO_GL"] = working_graphics()
    takes_size = {"width", "height"} <= inspect.signature(type(blind.unwrapped)).parameters.keys()
    picture = {"width": size, "height": size} if takes_size else {}
    return gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True, **(picture | dict(arguments)))


def is_mujoco(env: gymnasium.Env) -> bool:
    """Whether MuJoCo simulates the environment, and so gymnasium's renderer draws it."""
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(getattr(env.unwrapped, "model", None), mujoco.MjModel)


def working_graphics() -> str:
    """The value of MUJOCO_GL with which MuJoCo can draw here: the user's, or the first that works.

    Each is tried in a process of its own, for one that fails leaves a library behind which keeps the next from working.

    Raises:
        ValueError: none does; says why.
    """
    screen = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    users = os.environ.get("MUJOCO_GL")
    reasons = []
    for name in [users] if users else [*(["glfw"] if screen else []), "egl", "osmesa"]:
        tried = subprocess.run(
            [sys.executable, "-c", OPEN_GRAPHICS, name],
            env=os.environ | {"MUJOCO_GL": "off"},  # MuJoCo opens none by itself.
            capture_output=True,
            text=True,
            errors="replace",
        )
        if tried.returncode == 0:
            return name
        reasons.append(f"MUJOCO_GL={name}: {(tried.stderr.strip().splitlines() or ['it crashed'])[-1].rstrip('.')}")
    raise ValueError(
        f"MuJoCo cannot draw on this machine ({'; '.join(reasons)}). Without a screen it draws with MUJOCO_GL=egl, "
        "which needs libEGL and a driver for it (Debian and Ubuntu: libegl1, and libegl-mesa0 or NVIDIA's), or with "
        f"MUJOCO_GL=osmesa, which needs libOSMesa; {'unset MUJOCO_GL, or ' if users else ''}install one of them"
    )


def episode(
    env: gymnasium.Env, policy: AdaptedPolicy, task: Any, horizon: int, seed: int, noise: np.random.Generator
) -> Iterator[tuple[np.ndarray, float]]:
    """Play one episode with noise, as in training: its S + 1 pictures, each with the return so far."""
    observation, _ = env.reset(seed=seed, options={"task": task})
    total = 0.0
    yield np.asarray(env.render()), total
    for _ in range(horizon):
        observation, reward, terminated, truncated, _ = env.step(policy(observation, noise))
        total += float(reward)
        yield np.asarray(env.render()), total
        if terminated or truncated:
            break


def film(env: gymnasium.Env, adapted: Adapted, task: Any, horizon: int, seed: int, size: int) -> list[Clip]:
    """An episode of every policy, from the same start; noise depends on the seed and on the number of steps alone."""
    env.reset(seed=seed, options={"task": task})
    env.render()  # The first picture of MuJoCo's renderer has other colours than those that follow.
    clips = []
    for step, policy in enumerate(adapted.policies):
        noise = generator(seed, Stream.EVALUATION, 2, step)
        moments = episode(env, policy, task, horizon, seed, noise)
        frames, returns = zip(*((shown(picture, size), total) for picture, total in moments), strict=True)
        clips.append(Clip(name_of(step), frames, returns))
    return clips


def name_of(step: int) -> str:
    """How many steps a policy was adapted."""
    return "before adaptation" if step == 0 else f"after {step} step{'' if step == 1 else 's'}"


# --- The program ---


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, adapt, film, save and print."""
    try:
        options = read_alone(Options, arguments)
        torch.set_num_threads(1)
        experiment = load_run(options.run, options.checkpoint, later_lr_factor=options.later_lr_factor)
        try:
            print(play(experiment, options))
        finally:
            experiment.close()
    except USER_ERRORS as error:
        return fail(error)
    return 0


def play(experiment: MetaRL, options: Options) -> str:
    """Adapt to the task, write the video, and tell the returns."""
    settings, name = experiment.settings, str(experiment.env)
    seed = settings.seed if options.seed is None else options.seed
    episodes = options.episodes or settings.episodes_per_task
    task = chosen_task(experiment, options.task, seed)
    env = filmable(name, experiment.env_kwargs, options.size)
    try:
        adapted = experiment.adapt(task=task, steps=options.steps, episodes=episodes, seed=seed)
        clips = film(env, adapted, task, settings.horizon, seed, options.size)
        subject = in_words(task, env)
        fps = options.fps or env.metadata.get("render_fps") or USUAL_FPS
    finally:
        env.close()
    heading = name.rpartition("/")[-1]
    frames = side_by_side(clips, heading, subject, label_of(settings.method), hold=round(LAST_FRAME_SECONDS * fps))
    save(frames, options.video, fps)
    returns = ", ".join(
        f"{clip.title} {clip.returns[-1]:.1f} ({mean:.1f})" for clip, mean in zip(clips, adapted.returns, strict=True)
    )
    mean_of = f"mean of {episodes} episodes" if episodes > 1 else "the episode adapted on"
    return f"wrote {options.video}; {subject}; return (in brackets: {mean_of}) {returns}"


if __name__ == "__main__":
    sys.exit(main())
