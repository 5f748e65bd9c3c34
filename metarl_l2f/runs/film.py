"""Films of adapted policies: the task, an environment that draws itself, and an episode of every policy."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from ..reports.style import minus
from ..reports.video import Clip, shown
from ..rl.adapted import Adapted, AdaptedPolicy
from ..rl.experiment import MetaRL
from ..training.seeding import Stream, generator

USUAL_FPS = 30  # Where an environment does not say.
LAST_FRAME_SECONDS = 1.0  # Time to read the returns.

OPEN_GRAPHICS = """
import importlib, mujoco, sys
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(8, 8)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100).free()
context.free()
"""


# --- Tasks ---


def chosen_task(experiment: MetaRL, numbers: Sequence[float] | None, seed: int) -> Any:
    """The task that is given by numbers of the command line; without numbers, a held-out one.

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
    """A task in words, with its meaning where the environment has a domain: "goal: (0.3, −0.2)"."""
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
    """The name of the policy after a number of inner steps."""
    return "before adaptation" if step == 0 else f"after {step} step{'' if step == 1 else 's'}"
