"""Pictures, and training without a library that draws them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metarl_l2f.envs import ant
from metarl_l2f.envs.mujoco_batch import MuJoCoEnv

from .bodies import single


def run_python(code: str, directory: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run code in a fresh process: which graphics library is used is settled at the first import."""
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True)


PROBE = """
import mujoco
context = mujoco.GLContext(64, 64)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_150.value)
"""
PICTURE = """
import gymnasium, numpy as np, metarl_l2f.envs
for name in ("HalfCheetahDir", "AntDir", "HopperRandParams", "Walker2dRandParams"):
    env = gymnasium.make(f"metarl_l2f/{name}-v0", render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (480, 480, 3) and first.dtype == np.uint8, (first.shape, first.dtype)
    assert first.std() > 5, "a picture of one colour"
    for _ in range(5):
        env.step(np.ones(env.action_space.shape))
    assert (env.render() != first).any(), "nothing moved"
    env.close()
small = gymnasium.make("metarl_l2f/AntDir-v0", render_mode="rgb_array", width=64, height=32).unwrapped
small.reset(seed=0)
assert small.render().shape == (32, 64, 3)
small.close()
"""


def test_pictures_show_the_body_move(tmp_path):
    errors = []
    for backend in ("egl", "osmesa"):
        probe = run_python(PROBE, tmp_path, MUJOCO_GL=backend)
        if probe.returncode == 0:
            picture = run_python(PICTURE, tmp_path, MUJOCO_GL=backend)
            assert picture.returncode == 0, picture.stderr
            return
        errors.append(f"{backend}: {probe.stderr.strip().splitlines()[-1]}")
    pytest.skip(f"no library draws without a screen here: {'; '.join(errors)}")


def test_training_needs_no_graphics_library(tmp_path):
    code = """
import sys
for name in ("glfw", "OpenGL", "imageio"):
    sys.modules[name] = None  # Importing it raises ImportError.
import gymnasium, metarl_l2f
for make in (gymnasium.make, gymnasium.make_vec):
    env = make("metarl_l2f/HalfCheetahDir-v0")
    env.reset(seed=0)
    env.step(env.action_space.sample())
"""
    run = run_python(code, tmp_path, MUJOCO_GL="disable")
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.iterdir()) == []


def test_rendering_without_a_mode_is_refused():
    with pytest.raises(
        ValueError, match="render needs a render_mode, got None; make the environment with render_mode='rgb"
    ):
        single("AntDir").render()
    with pytest.raises(ValueError, match="render_mode must be None, 'rgb_array' or 'human', got 'ansi'"):
        MuJoCoEnv(ant.Direction, render_mode="ansi")
