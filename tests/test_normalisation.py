"""Running moments of observations, by hand and against NumPy; and runs whose policies normalise by them."""

import contextlib

import gymnasium
import numpy as np
import pytest
import torch
from parallel.groups import by_ranks

from metarl_l2f import MetaRL, MetaRLSettings, PolicyNetwork, load_policy
from metarl_l2f.networks.normalisation import Moments, Normalisation, merged, moments
from metarl_l2f.training.checkpoint import CheckpointError


class Units(gymnasium.Env):
    """Walks in the plane; position in thousandths, a constant, and a component that leaps now and then."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float32)

    def sample_tasks(self, number, generator):
        return generator.uniform(-0.5, 0.5, (number, 2))

    def seen(self):
        return np.array([*(1000 * self.position + 7), 3.0, 50 * (self.steps == 2)], np.float32)

    def reset(self, *, seed=None, options=None):
        self.position, self.goal, self.steps = np.zeros(2), options["task"], 0
        return self.seen(), {}

    def step(self, action):
        self.position, self.steps = self.position + np.clip(action, -0.1, 0.1), self.steps + 1
        ended = bool(abs(self.position).max() > 0.25)
        return self.seen(), -np.square(self.position - self.goal).sum(), ended, False, {}


def run_of(group=None, threads=1, workers=0, normalise=True, tasks=5):
    settings = MetaRLSettings(
        tasks_per_batch=tasks,
        episodes_per_task=3,
        horizon=5,
        policy=PolicyNetwork((8,), "tanh", 0.2, normalise_observations=normalise),
    )
    return MetaRL(Units, settings, group=group, threads=threads, workers=workers, tasks_per_shard=2)


def without_times(metrics):
    return {tag: value for tag, value in metrics.items() if not tag.startswith("time/")}


def state_of(run):
    return {name: value.clone() for name, value in run.learner.state_dict().items()}


def moments_of(run):
    normalisation = run.adaptation.policy.normalisation
    return Moments(normalisation.number, normalisation.mean, normalisation.deviations)


def assert_same(states, others):
    assert states.keys() == others.keys()
    for name, value in states.items():
        assert torch.equal(value, others[name]), name


def test_moments_by_hand():
    # The values 1, 3 and 8, of which the last did not happen: mean 2, deviations 1 + 1.
    count, mean, deviations = moments(torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([1.0, 1.0, 0.0]))
    assert (count.item(), mean.tolist(), deviations.tolist()) == (2, [2], [2])


def test_moments_of_nothing_change_nothing():
    some = moments(torch.tensor([[1.0], [3.0]]), torch.ones(2))
    none = moments(torch.zeros(4, 1), torch.zeros(4))
    for together in (merged(some, none), merged(none, some)):
        assert [values.tolist() for values in together] == [2, [2], [2]]


def test_merged_moments_are_those_of_all_observations():
    random = np.random.default_rng(0)
    parts = [random.normal(1e4, 0.1, (number, 3)) for number in (5, 1, 200)]
    running = Normalisation(3)
    for part in parts:
        running.absorb(moments(torch.from_numpy(part), torch.ones(len(part))))
    together = np.concatenate(parts)
    assert running.number == 206
    np.testing.assert_allclose(running.mean, together.mean(0), rtol=1e-14)
    np.testing.assert_allclose(running.deviations, 206 * together.var(0), rtol=1e-9)
    seen = torch.from_numpy(together)
    expected = (together - together.mean(0)) / np.sqrt(together.var(0) + 1e-8)
    np.testing.assert_allclose(running(seen), expected, atol=1e-6)


def test_it_begins_as_the_identity_and_clips_to_ten_deviations():
    assert Normalisation(2)(torch.tensor([-0.5, 30.0])).tolist() == [-0.5, 10.0]


def test_a_constant_component_becomes_0_and_no_division_by_0():
    running = Normalisation(1)
    for _ in range(3):
        running.absorb(moments(torch.full((7, 1), 0.1), torch.ones(7)))
    assert running(torch.tensor([0.1])).tolist() == [0.0]
    assert running(torch.tensor([5.0])).tolist() == [10.0]


def test_moments_are_those_of_the_steps_that_happened_in_all_phases_and_move_after_the_update():
    run, kept = run_of(), []
    collect, update = run.adaptation.collect, run.outer.update

    def collecting(*given):
        kept.append(collect(*given))
        return kept[-1]

    def updating(*given):
        assert run.adaptation.policy.normalisation.number == sum(r.env_steps for r in kept[:-1])
        return update(*given)

    run.adaptation.collect, run.outer.update = collecting, updating
    for iteration in (1, 2):
        run.iterate(iteration)
    seen = [e.observations[e.mask > 0].double() for rollouts in kept for e in rollouts.episodes]
    together = torch.cat(seen)
    assert len(together) < 2 * 2 * 5 * 3 * 5  # Some episodes ended early.
    count, mean, deviations = moments_of(run)
    assert count == len(together)
    torch.testing.assert_close(mean, together.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(deviations, (together - together.mean(0)).square().sum(0), rtol=1e-10, atol=1e-10)
    assert deviations[2] == 0


def test_the_policy_reads_normalised_observations():
    run = run_of()
    run.iterate(1)
    policy, seen = run.adaptation.policy, torch.tensor([[507.0, -493.0, 3.0, 0.0]])
    read = policy.normalisation(seen)
    assert abs(read).max() < 10 and read[0, 2] == 0
    params = dict(policy.named_parameters())
    torch.testing.assert_close(policy(params, seen).mean, policy.mlp(params, read, "mean."))


def test_validation_evaluation_and_adaptation_leave_the_moments_alone():
    run = run_of()
    run.iterate(1)
    before = state_of(run)
    rollouts, _ = run.validation_rollouts()
    run.validate(1)
    run.adaptation.inspect(rollouts)
    run.evaluate(run.held_out_tasks(2, 0), episodes=2, steps=2, seed=0)
    run.adapt(task=np.zeros(2), episodes=2)
    assert_same(state_of(run), before)


def test_a_resumed_run_is_the_unbroken_one():
    unbroken = run_of()
    for iteration in (1, 2):
        unbroken.iterate(iteration)
    resumed = run_of()
    resumed.load_state_dict(unbroken.state_dict())
    assert without_times(resumed.iterate(3)) == without_times(unbroken.iterate(3))
    assert_same(state_of(resumed), state_of(unbroken))


def test_a_state_without_moments_is_refused():
    with pytest.raises(CheckpointError, match="normalisation"):
        run_of().load_state_dict(run_of(normalise=False).state_dict())


def trained(group, **options):
    with contextlib.closing(run_of(group, **options)) as run:
        metrics = [without_times(run.iterate(iteration)) for iteration in (1, 2, 3)]
        return metrics, {name: value.numpy() for name, value in state_of(run).items()}


@pytest.fixture(scope="module")
def alone():
    return trained(None)


@pytest.mark.parametrize("options", [{"threads": 2}, {"workers": 2}])
def test_threads_and_workers_change_no_bit(options, alone):
    metrics, state = trained(None, **options)
    assert metrics == alone[0]
    for name, value in state.items():
        np.testing.assert_array_equal(value, alone[1][name])


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_change_no_bit(size, alone):
    for metrics, state in by_ranks(trained, size):
        for line, expected in zip(metrics, alone[0], strict=True):
            differing = {tag for tag in expected if line[tag] != expected[tag]}
            assert all(tag.startswith("conflict/") for tag in differing)  # They move no parameter.
        for name, value in state.items():
            np.testing.assert_array_equal(value, alone[1][name])


def test_saved_policies_keep_the_moments(tmp_path):
    run = run_of()
    run.iterate(1)
    policy = run.adapt(task=np.array([0.2, 0.1]), episodes=2).policy
    policy.save(tmp_path / "policy.pt")
    loaded = load_policy(tmp_path / "policy.pt")
    run.iterate(2)  # Further training changes neither.
    for seen in (np.array([507, -493, 3, 0], np.float32), np.array([-93, 7, 3, 50], np.float32)):
        np.testing.assert_array_equal(loaded(seen), policy(seen))
    assert loaded.network.normalisation.number == policy.network.normalisation.number > 0
    assert run.adaptation.policy.normalisation.number > policy.network.normalisation.number
