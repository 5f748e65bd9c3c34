"""Runs of methods whose meta-update keeps a state: resumed as unbroken, and alike on any number of ranks."""

import copy
import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from parallel.groups import by_ranks
from torch.nn.utils import parameters_to_vector

from metarl_l2f import MetaRL, MetaRLSettings, load_policy
from metarl_l2f.training import checkpoint

METHODS = ["promp", "promp+l2f", "maml-vpg", "e-maml", "alfa+l2f", "cavia", "maml-dice"]


def run_of(method, group=None, tasks_per_shard=2):
    settings = MetaRLSettings.for_domain("navigation", method)
    policy = dataclasses.replace(settings.policy, hidden_sizes=(8,))
    sizes = {"tasks_per_batch": 5, "episodes_per_task": 3, "horizon": 5}
    settings = dataclasses.replace(settings, policy=policy, **sizes)
    return MetaRL("metarl_l2f/Navigation2D-v0", settings, {"horizon": 5}, group=group, tasks_per_shard=tasks_per_shard)


def without_times(metrics):
    return {tag: value for tag, value in metrics.items() if not tag.startswith("time/")}


@pytest.mark.parametrize("tasks_per_shard", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_unbroken_one(method, tasks_per_shard, tmp_path):
    run_like = partial(run_of, method, tasks_per_shard=tasks_per_shard)
    unbroken = run_like()
    lines = [without_times(unbroken.iterate(number)) for number in range(1, 5)]
    first = run_like()
    for number in (1, 2):
        first.iterate(number)
    checkpoint.save(tmp_path / "checkpoint.pt", first.state_dict())
    resumed = run_like()
    resumed.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt"))
    assert [without_times(resumed.iterate(number)) for number in (3, 4)] == lines[2:]
    for run in (unbroken, first, resumed):
        run.close()


@pytest.mark.parametrize("method", ["promp", "maml-vpg"])
def test_the_optimisers_state_matters(method):
    run, other = run_of(method), run_of(method)
    run.iterate(1)
    other.load_state_dict(copy.deepcopy(run.state_dict()) | {"outer": other.state_dict()["outer"]})
    ours, theirs = run.iterate(2), other.iterate(2)
    assert ours["return/step_1"] == theirs["return/step_1"] and ours["kl"] != theirs["kl"]
    run.close()
    other.close()


def trained(method, group):
    run = run_of(method, group)
    lines = [without_times(run.iterate(number)) for number in range(1, 4)]
    run.close()
    return lines, parameters_to_vector(run.learner.parameters()).detach().numpy()


@pytest.mark.parametrize(
    ("method", "size"), [("promp+l2f", 2), ("promp+l2f", 3), ("maml-vpg", 2), ("e-maml", 3), ("alfa", 2)]
)
def test_ranks_equal_one_process_to_the_last_digit(method, size):
    lines, parameters = trained(method, None)
    for found_lines, found in by_ranks(partial(trained, method), size):
        np.testing.assert_array_equal(found, parameters)
        for line, expected in zip(found_lines, lines, strict=True):
            conflict = {tag: value for tag, value in expected.items() if tag.startswith("conflict/")}
            assert line == expected | {tag: pytest.approx(value, rel=1e-12) for tag, value in conflict.items()}


def test_an_update_that_is_not_finite_is_left_out_with_its_reason(caplog):
    run = run_of("promp")
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    update = run.outer.update

    def broken(adaptation, rollouts):
        post = rollouts.data.post
        post = post._replace(advantages=post.advantages * np.nan)
        return update(adaptation, rollouts._replace(data=rollouts.data._replace(post=post)))

    run.outer.update = broken
    metrics = run.iterate(1)
    assert "the update was rejected: the gradient of epoch 1 is not finite" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in run.learner.state_dict().items())
    assert metrics["env_steps"] > 0
    run.close()


def test_a_later_epoch_that_is_not_finite_takes_all_of_them_back(caplog):
    run = run_of("promp")
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    step = run.outer._step

    def exploding(gradient):
        step(gradient)
        with torch.no_grad():
            run.outer.parameters[0].fill_(np.nan)

    run.outer._step = exploding
    run.iterate(1)
    assert "the update was rejected: the gradient of epoch 2 is not finite" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in run.learner.state_dict().items())
    assert not run.outer.optimiser.state_dict()["state"]
    run.close()


@pytest.mark.parametrize(("ours", "theirs"), [("maml", "promp"), ("promp", "maml-vpg"), ("promp", "maml")])
def test_a_state_of_another_outer_update_is_refused(ours, theirs):
    run, other = run_of(ours), run_of(theirs)
    with pytest.raises(checkpoint.CheckpointError, match=r"the state is one of outer=.*, but the run has"):
        run.load_state_dict(other.state_dict())
    run.close()
    other.close()


def test_a_saved_policy_keeps_its_context(tmp_path):
    run = run_of("cavia")
    policy = run.adapt(task=np.array([0.3, -0.2]), episodes=2).policy
    policy.save(tmp_path / "policy.pt")
    observation = np.array([0.1, 0.2], np.float32)
    np.testing.assert_array_equal(load_policy(tmp_path / "policy.pt")(observation), policy(observation))
    assert policy.params["mean.context"].any()
    assert repr(policy) == "AdaptedPolicy(GaussianPolicy for Box(-0.1, 0.1, (2,), float32))"
    run.close()
