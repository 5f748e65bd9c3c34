"""Random dynamics: what a task scales, and that batch and single environment simulate the same model."""

import mujoco
import numpy as np
import pytest

from metarl_l2f.envs import rand_params

from .bodies import FACTS, batch, rand_params_environments, random_actions, single

SCALED = ("body_mass", "body_inertia", "dof_damping", "geom_friction")
DERIVED = ("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0")


def scaled_task(masses: list[float], dampings: list[float], friction: float) -> np.ndarray:
    return np.log([*masses, *dampings, friction])


def test_a_task_scales_the_models_own_values():
    env, original = single("HopperRandParams"), rand_params.Hopper().model
    for _ in range(3):  # Again and again: factors do not pile up.
        env.reset(seed=0, options={"task": scaled_task([2, 3, 4, 5], [0.5, 1, 3], 0.25)})
    factors = np.array([1, 2, 3, 4, 5])  # The world's stays.
    np.testing.assert_allclose(env.model.body_mass, factors * original.body_mass)
    np.testing.assert_allclose(env.model.body_inertia, factors[:, None] * original.body_inertia)
    np.testing.assert_allclose(env.model.dof_damping, [0, 0, 0, 0.5, 1, 3])  # In the model: 1 at each joint.
    np.testing.assert_allclose(env.model.geom_friction, 0.25 * original.geom_friction)
    # What follows from them follows: the whole body's mass.
    assert env.model.body_subtreemass[1] == pytest.approx(factors[1:] @ original.body_mass[1:])


def test_twice_the_mass_takes_half_the_speed_from_the_same_force():
    # In the air, pushed along x with 10 N for one time step: Σ m v = 10 N · 0.008 s, whatever the joints do.
    for factor in (1, 2, 0.5):
        env = single("HopperRandParams", reset_noise_scale=0.0)
        env.reset(seed=0, options={"task": scaled_task([factor] * 4, [1] * 3, 1)})
        env.data.qpos[1], env.data.qfrc_applied[0] = 5.0, 10.0
        env.step(np.array([0.3, -0.2, 0.1]))
        mujoco.mj_forward(env.model, env.data)
        mujoco.mj_subtreeVel(env.model, env.data)
        mass = factor * rand_params.Hopper().model.body_mass.sum()
        assert env.data.subtree_linvel[1, 0] == pytest.approx(10 * 0.008 / mass, rel=1e-6)


def test_a_contacts_friction_is_scaled_exactly():
    env = single("HopperRandParams")
    env.reset(seed=0, options={"task": scaled_task([1] * 4, [1] * 3, 0.1)})
    while not env.data.ncon:
        assert not env.step(np.zeros(3))[3]
    # The foot's friction, 2, is larger than the floor's, 1.
    np.testing.assert_allclose(env.data.contact.friction[:, 0], 0.1 * 2)


@rand_params_environments
def test_the_batch_simulates_the_single_environments_models(name):
    many, one = batch(name, 3), single(name)
    for seed in range(2):
        tasks = many.sample_tasks(3, np.random.default_rng(seed))
        many.reset(seed=0, options={"task": tasks})
        for i, task in enumerate(tasks):
            one.reset(options={"task": task})
            model = many._batch.get_model(i)
            for name_of_field in (*SCALED, *DERIVED):
                np.testing.assert_array_equal(getattr(model, name_of_field), getattr(one.model, name_of_field))


@rand_params_environments
def test_task_zero_is_the_original_again_after_any_other(name):
    zero, other = FACTS[name].task, FACTS[name].another_task
    actions = random_actions(name, 8, 2)
    env, fresh = batch(name, 2), batch(name, 2)
    for task in (other, zero):
        env.reset(seed=0, options={"task": task})
    fresh.reset(seed=0, options={"task": zero})
    for action in actions:
        for values, same in zip(env.step(action)[:4], fresh.step(action)[:4], strict=True):
            np.testing.assert_array_equal(values, same)
    one, original = single(name), rand_params.Hopper().model if "Hopper" in name else rand_params.Walker2d().model
    for task in (other, zero):
        one.reset(seed=0, options={"task": task})
    for name_of_field in (*SCALED, *DERIVED):
        np.testing.assert_array_equal(getattr(one.model, name_of_field), getattr(original, name_of_field))
        np.testing.assert_array_equal(getattr(env._batch.get_model(1), name_of_field), getattr(original, name_of_field))


@rand_params_environments
def test_other_dynamics_lead_elsewhere(name):
    env = batch(name, 3)
    env.reset(
        seed=[4, 4, 4], options={"task": np.stack([FACTS[name].task, FACTS[name].another_task, FACTS[name].task])}
    )
    observation = env.step(np.tile(random_actions(name), (3, 1)))[0]
    np.testing.assert_array_equal(observation[0], observation[2])
    assert np.abs(observation[0] - observation[1]).max() > 0.01


def test_a_masked_reset_leaves_the_dynamics_of_the_others_alone():
    env = batch("HopperRandParams", 2)
    tasks = np.stack([scaled_task([2] * 4, [1] * 3, 1), scaled_task([3] * 4, [1] * 3, 1)])
    env.reset(seed=0, options={"task": tasks})
    env.reset(options={"task": np.zeros(8), "reset_mask": np.array([True, False])})
    own = rand_params.Hopper().model.body_mass
    np.testing.assert_allclose(env._batch.get_model(0).body_mass, own)
    np.testing.assert_allclose(env._batch.get_model(1).body_mass[1:], 3 * own[1:])
