"""What domains say of their tasks is what their environments do."""

import gymnasium
import numpy as np
import pytest

from metarl_l2f.envs import DOMAINS, domain_of
from metarl_l2f.reports.domains import NAMES, domain_captions

LOCOMOTION = [name for name in DOMAINS if domain_of(name).task_kind in ("direction", "speed")]


@pytest.mark.parametrize("env_id", DOMAINS)
def test_an_environment_is_built_from_the_domain_that_is_registered(env_id):
    one = gymnasium.make(env_id, horizon=3, disable_env_checker=True).unwrapped
    many = gymnasium.make_vec(env_id, num_envs=2, horizon=3)
    assert one.domain == many.domain == domain_of(env_id, horizon=3)


@pytest.mark.parametrize(
    ("env_id", "arguments"), [*((name, {}) for name in LOCOMOTION), ("AntVel", {"positions": True})]
)
def test_the_speed_column_holds_the_torsos_speed(env_id, arguments):
    env_id = env_id if "/" in env_id else f"metarl_l2f/{env_id}-v0"
    env = gymnasium.make(env_id, disable_env_checker=True, **arguments).unwrapped
    env.reset(seed=0)
    observation, *_ = env.step(np.ones(env.action_space.shape))
    assert observation[env.domain.speed_column] == env.data.qvel[0] != 0


@pytest.mark.parametrize("env_id", [name for name in DOMAINS if domain_of(name).task_kind])
def test_tasks_lie_within_their_bounds_and_have_a_name_for_each_number(env_id):
    domain = domain_of(env_id)
    tasks = domain.sample_tasks(50, np.random.default_rng(0)).reshape(50, -1)
    low, high = domain.task_bounds
    assert low <= tasks.min() < tasks.max() <= high
    assert tasks.shape[1] == len(domain.task_names)


def test_a_domain_with_a_kind_has_a_caption_for_its_picture():
    for env_id in DOMAINS:
        domain = domain_of(env_id)
        captions = domain_captions(domain)
        assert captions == ({NAMES[domain.task_kind]: domain.caption} if domain.task_kind else {})
        assert all(captions.values())
