"""Simulations that diverge end alone, and keep their last good state."""

import logging
import math

import mujoco
import numpy as np
import pytest

from metarl_l2f.envs.mujoco_batch import MuJoCoEnv

from .bodies import batch, every_environment, random_actions, single


def assert_reports_its_end(one: MuJoCoEnv, last_good: np.ndarray, action: np.ndarray) -> None:
    observation, reward, terminated, truncated, info = one.step(action)
    np.testing.assert_array_equal(observation, last_good)
    assert (reward, terminated, truncated, info) == (0.0, True, False, {"diverged": True})


@every_environment
def test_a_diverged_simulation_ends_alone_and_keeps_its_last_good_state(name):
    actions = random_actions(name, 6, 4, scale=0.1)
    disturbed, calm = batch(name, 4, threads=2), batch(name, 4)
    others = [0, 2, 3]
    for seed in (0, None):  # Nothing of the first divergence is left in the second episode.
        last_good = disturbed.reset(seed=seed)[0]
        calm.reset(seed=seed)
        for time, action in enumerate(actions):
            if time == 3:
                disturbed._qpos[1, 0] = math.nan
            observation, reward, terminated, truncated, info = step = disturbed.step(action)
            for values, same in zip(step[:4], calm.step(action)[:4], strict=True):
                np.testing.assert_array_equal(values[others], same[others])
            assert terminated.tolist() == [False, time >= 3, False, False]
            assert not truncated.any()
            assert (list(info) == ["diverged"]) == (time == 3)
            if time == 3:
                assert info["diverged"].tolist() == [False, True, False, False]
            if time >= 3:
                assert reward[1] == 0
                np.testing.assert_array_equal(observation[1], last_good[1])
            last_good = observation


@every_environment
def test_a_single_diverged_simulation_ends_too(name):
    env = single(name)
    for seed in (0, None):
        env.reset(seed=seed)
        for action in random_actions(name, 3, scale=0.1):
            last_good, _, terminated, _, info = env.step(action)
            assert (terminated, info) == (False, {})
        env.data.qpos[0] = math.nan
        assert_reports_its_end(env, last_good, action)
        assert np.isfinite(env.data.qpos).all()  # A picture shows the last good state too.
        observation, *rest = env.step(action)
        np.testing.assert_array_equal(observation, last_good)
        assert rest == [0.0, True, False, {}]


def test_a_divergence_is_logged_once_and_leaves_no_file(caplog, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Where MuJoCo would write its own report, besides the terminal.
    many, one = batch("AntVel", 3), single("AntVel")
    many.reset(seed=0, options={"task": np.array([0, 1, 0])})
    one.reset(seed=0, options={"task": 3})
    many._qpos[1, 0] = one.data.qpos[0] = math.nan
    for _ in range(2):
        many.step(np.zeros((3, 8)))
        one.step(np.zeros(8))
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "simulations [1] diverged, in tasks [1.0]; their episodes end",
        "the simulation diverged in task 3.0; its episode ends",
    ]
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("quantity", "value"), [("qvel", 1e9), ("qfrc_applied", math.nan), ("qfrc_applied", 1e30)])
def test_speeds_and_forces_that_explode_are_found(quantity, value):
    many, one = batch("HalfCheetahVel", 3), single("HalfCheetahVel")
    start, _ = many.reset(seed=0)
    one.reset(seed=2)
    many._batch.bind(quantity)[2, 4] = getattr(one.data, quantity)[4] = value
    observation, reward, terminated, _, info = many.step(np.zeros((3, 6)))
    assert info["diverged"].tolist() == terminated.tolist() == [False, False, True]
    assert reward[2] == 0
    np.testing.assert_array_equal(observation[2], start[2])
    assert_reports_its_end(one, start[2], np.zeros(6))


def test_a_number_that_turns_bad_in_the_last_physics_step_is_found(monkeypatch):
    env = batch("HopperRandParams", 3)
    start, _ = env.reset(seed=0)
    step = env._batch.step

    def step_into_nan(*arguments) -> None:
        step(*arguments)
        env._qvel[2, 0] = math.nan

    monkeypatch.setattr(env._batch, "step", step_into_nan)
    observation, reward, terminated, _, info = env.step(np.zeros((3, 3)))
    assert info["diverged"].tolist() == terminated.tolist() == [False, False, True]
    np.testing.assert_array_equal(observation[2], start[2])
    assert reward[2] == 0

    one = single("HopperRandParams")
    start, _ = one.reset(seed=0)
    mj_step = mujoco.mj_step

    def one_step_into_nan(model, data, nstep) -> None:
        mj_step(model, data, nstep=nstep)
        data.qvel[0] = math.nan

    monkeypatch.setattr(mujoco, "mj_step", one_step_into_nan)
    assert_reports_its_end(one, start, np.zeros(3))
