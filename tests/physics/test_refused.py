"""Calls, tasks, arguments and models that are refused, each by name."""

import math
from functools import partial

import mujoco
import numpy as np
import pytest

from metarl_l2f.envs.mujoco_batch import GYMNASIUM_MODELS

from .bodies import FACTS, batch, every_environment, single


@every_environment
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_bad_calls_are_refused_by_name(name, many):
    env = batch(name, 2) if many else single(name)
    facts = FACTS[name]
    actions = np.zeros((2, facts.action) if many else facts.action)
    with pytest.raises(ValueError, match=r"step needs a running episode, got none; call reset\(\) first"):
        env.step(actions)
    with pytest.raises(
        ValueError, match=r"task must be .* of shape .*, got shape \(3, 3, 3\); sample_tasks\(\) draws tasks"
    ):
        env.reset(options={"task": np.zeros((3, 3, 3))})
    with pytest.raises(ValueError, match=r"task must be finite, got .*nan.*; check where it comes from"):
        env.reset(options={"task": np.full(np.shape(facts.task), math.nan)})
    with pytest.raises(ValueError, match=r"task must be .*, got 'fast'; sample_tasks\(\) draws tasks"):
        env.reset(options={"task": "fast"})
    env.reset(seed=0)
    with pytest.raises(
        ValueError, match=rf"action must have shape \({'2, ' if many else ''}{facts.action},?\), got \(4, 7\)"
    ):
        env.step(np.zeros((4, 7)))
    actions[..., -1] = math.nan
    with pytest.raises(
        ValueError, match=r"action must be finite, got NaN or infinity.*; check the policy's parameters"
    ):
        env.step(actions)


@pytest.mark.parametrize("name", ["HalfCheetahDir", "AntDir"])
def test_a_task_that_is_no_direction_is_refused(name):
    with pytest.raises(ValueError, match=r"task must be a direction, -1 \(backwards\) or 1 \(forwards\), got \[0.5\]"):
        single(name).reset(options={"task": 0.5})
    with pytest.raises(ValueError, match=r"task must be a direction.*, got \[-1.  0.  1.\]"):
        batch(name, 3).reset(options={"task": np.array([1.0, 0.0, -1.0])})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("HalfCheetahVel", {"min_speed": 2.5}, "got min_speed 2.5 and max_speed 2.0; the papers use 0 and 2"),
        ("AntVel", {"min_speed": 2.0, "max_speed": 1.0}, "the slowest first, .*; the papers use 0 and 3"),
        ("AntVel", {"max_speed": math.inf}, "goal speeds must be finite"),
        (
            "HopperRandParams",
            {"spread": 0.5},
            "spread must be finite and at least 1, got 0.5; .* 3.375 in the published",
        ),
        (
            "HopperRandParams",
            {"damping_spread": math.inf},
            "damping_spread must be finite .*, got inf; .* 2.197 in the",
        ),
        (
            "Walker2dRandParams",
            {"reset_noise_scale": -1.0},
            "reset_noise_scale must be finite and not negative, got -1",
        ),
        ("AntDir", {"horizon": 0}, "horizon must be a whole number of steps, 1 or more, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(name, arguments, message):
    for make in (single, partial(batch, num_envs=2)):
        with pytest.raises(ValueError, match=message):
            make(name, **arguments)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_that_are_no_positive_number_are_refused(threads):
    with pytest.raises(ValueError, match=f"threads must be a whole number of CPU threads, 1 or more, got {threads}"):
        batch("HopperRandParams", 2, threads=threads)


def test_new_threads_begin_anew():
    env = batch("HopperRandParams", 2)
    env.reset(seed=0)
    env.threads = 2
    with pytest.raises(ValueError, match="step needs a running episode, got none"):
        env.step(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="reset_mask must choose every environment at the first reset"):
        env.reset(options={"reset_mask": np.array([True, False])})


def test_a_model_of_the_users_own_is_used(tmp_path):
    path = tmp_path / "moon.xml"
    path.write_text((GYMNASIUM_MODELS / "hopper.xml").read_text().replace('timestep="0.002"', 'timestep="0.001"'))
    assert single("HopperRandParams", model_file=str(path)).domain.time_step == pytest.approx(0.004)


@every_environment
def test_a_model_that_does_not_fit_is_refused(name, tmp_path):
    missing, no_xml, pendulum = (
        tmp_path / "missing.xml",
        tmp_path / "text.xml",
        GYMNASIUM_MODELS / "inverted_pendulum.xml",
    )
    no_xml.write_text("a cheetah")
    version = mujoco.mj_versionString()
    with pytest.raises(
        ValueError, match=rf"{missing} does not load: .*; give an XML file that MuJoCo {version} compiles"
    ):
        single(name, model_file=str(missing))
    with pytest.raises(ValueError, match=rf"{no_xml} does not load: .*XML"):
        batch(name, 2, model_file=str(no_xml))
    with pytest.raises(
        ValueError, match=r"inverted_pendulum.xml has 2 positions, 2 velocities and 1 actuators; \w+ needs"
    ):
        single(name, model_file=str(pendulum))


def test_a_model_of_other_parts_is_refused(tmp_path):
    own = (GYMNASIUM_MODELS / "hopper.xml").read_text()
    hat = tmp_path / "hat.xml"
    hat.write_text(own.replace('<body name="thigh"', '<body pos="0 0 .3"><geom size=".05"/></body><body name="thigh"'))
    with pytest.raises(
        ValueError, match=r"hat.xml has 5 bodies and 3 damped joints; tasks of Hopper scale 4 and 3, as in hop"
    ):
        single("HopperRandParams", model_file=str(hat))
    unlimited = tmp_path / "unlimited.xml"
    limits = ['ctrllimited="true" ctrlrange="-1.0 1.0"', 'ctrllimited="false" ctrlrange="0 0"']
    unlimited.write_text(own.replace(*[f'{limit} gear="200.0" joint="leg_joint"' for limit in limits]))
    with pytest.raises(
        ValueError, match=r"unlimited.xml must give every actuator a ctrlrange, got none for actuators \[1\]"
    ):
        single("HopperRandParams", model_file=str(unlimited))
