"""A whole run in miniature: what an iteration reports, what it depends on, and what its checkpoints refuse."""

import dataclasses
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch

from metarl_l2f.core.attenuation import Attenuation
from metarl_l2f.core.update_rules import InnerLoop
from metarl_l2f.networks.policies import CategoricalPolicy
from metarl_l2f.rl.experiment import MetaRL
from metarl_l2f.rl.settings import MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.trpo import TrustRegion
from metarl_l2f.rl.vectorise import vectorise
from metarl_l2f.training.checkpoint import CheckpointError

NAVIGATION = "metarl_l2f/Navigation2D-v0"


def experiment(threads=1, hidden=(4,), network=None, **options):
    policy = PolicyNetwork(hidden, "tanh", 0.2, **(network or {}))
    settings = MetaRLSettings(tasks_per_batch=3, episodes_per_task=2, horizon=6, policy=policy, **options)
    return MetaRL(NAVIGATION, settings, {"horizon": 6}, threads)


class Doors(gymnasium.Env):
    """Three doors, numbered from 1; the task says behind which one lies a reward of 1, every step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2, 1))
    action_space = gymnasium.spaces.Discrete(3, start=1)

    def __init__(self, door=3):
        self.door = door

    def sample_tasks(self, number, generator):
        return generator.integers(1, 4, number)

    def reset(self, *, seed=None, options=None):
        if options is not None and "task" in options:
            self.door = options["task"]
        return np.ones((2, 1), np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return np.ones((2, 1), np.float32), float(action == self.door), False, False, {}


def doors(**options):
    settings = MetaRLSettings(
        tasks_per_batch=3, episodes_per_task=10, horizon=5, policy=PolicyNetwork((4,), "tanh"), **options
    )
    return MetaRL(Doors, settings)


def without_times(metrics):
    return {tag: value for tag, value in metrics.items() if not tag.startswith("time/")}


def test_an_iteration_reports_every_promised_tag():
    metrics = experiment(inner=InnerLoop(inner_steps=2, learn_inner_lr=True)).iterate(1)
    for tag in (
        "env_steps",
        "return/step_0",
        "return/step_1",
        "return/step_2",
        "kl",
        "cg_residual",
        "line_search/backtracks",
        "line_search/accepted",
        "gamma/mean.layers.0.weight/mean",
        "gamma/mean.layers.0.weight/std",
        "conflict/mean.layers.0",
        "conflict/network",
        "step_size/log_std/1",
        "time/iteration",
        "time/sampling",
        "time/update",
    ):
        assert isinstance(metrics[tag], float | int), tag


def test_maml_reports_no_gamma_but_the_same_conflict():
    maml, l2f = experiment(method="maml").iterate(1), experiment(method="l2f").iterate(1)
    assert not any(tag.startswith("gamma/") for tag in maml)
    conflict = {tag: value for tag, value in maml.items() if tag.startswith("conflict/")}
    assert conflict == pytest.approx({tag: value for tag, value in l2f.items() if tag.startswith("conflict/")})


def test_two_methods_with_one_seed_meet_the_same_tasks_and_noise():
    # before any update their initialisations are the same, so the first rollouts are too
    assert experiment(method="maml").iterate(1)["return/step_0"] == experiment().iterate(1)["return/step_0"]


def test_gammas_differ_between_tasks_in_the_default_configuration():
    metrics = experiment().iterate(1)
    assert max(value for tag, value in metrics.items() if tag.endswith("/std") and "gamma" in tag) > 1e-3


def test_the_number_of_threads_changes_no_metric():
    runs = []
    for threads in (1, 2):
        run = experiment(threads=threads)
        runs.append([without_times(run.iterate(i)) | run.validate(i) for i in (1, 2, 3)])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("network", [{}, {"state_dependent_std": True}], ids=str)
def test_a_state_continues_exactly(network):
    unbroken = experiment(network=network, initial_std_gamma=0.5)
    for i in (1, 2):
        unbroken.iterate(i)
    state = unbroken.state_dict()
    resumed = experiment(network=network, initial_std_gamma=0.5)
    resumed.load_state_dict(state)
    assert without_times(resumed.iterate(3)) == without_times(unbroken.iterate(3))


def test_a_sigma_of_each_state_is_attenuated_in_all_states_alike():
    run = experiment(network={"state_dependent_std": True}, initial_std_gamma=0.5)
    policy, learner = run.adaptation.policy, run.learner
    rollouts, _ = run.validation_rollouts()
    seen = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    params = {name: values[0] for name, values in rollouts.start.params.items()}
    gamma = learner.gammas_by_tensor(rollouts.start.gamma[0])["log_std"]
    assert gamma.item() == pytest.approx(0.5, abs=0.1)
    kept = params | {"log_std": learner.theta["log_std"]}
    ratio = policy(params, seen).log_std.exp() / policy(kept, seen).log_std.exp()
    torch.testing.assert_close(ratio, gamma.expand(20, 2))


def test_a_sigma_of_each_state_needs_box_actions():
    settings = MetaRLSettings(policy=PolicyNetwork(state_dependent_std=True))
    with pytest.raises(ValueError, match="state_dependent_std concerns the noise σ of Box actions; Doors has Discrete"):
        MetaRL(Doors, settings)


def test_validation_and_evaluation_leave_the_state_alone():
    run = experiment()
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    assert run.validate(1) == run.validate(2)
    tasks = run.held_out_tasks(4, seed=0)
    run.evaluate(tasks, episodes=2, steps=3, seed=0)
    for name, value in run.learner.state_dict().items():
        assert torch.equal(value, before[name])
    assert run.env_steps == 0


def test_evaluation_takes_any_number_of_tasks_and_steps():
    run = experiment()
    rollouts = run.evaluate(run.held_out_tasks(5, seed=0), episodes=3, steps=2, seed=0)
    assert [tuple(e.rewards.shape) for e in rollouts.episodes] == [(5, 3, 6)] * 3


def test_training_validation_and_evaluation_tasks_come_from_different_streams():
    run = experiment()
    seen = []
    sample = run.sampler.sample_tasks
    run.sampler.sample_tasks = lambda *arguments: seen.append(sample(*arguments)) or seen[-1]
    run.iterate(1)
    run.validate(1)
    seen.append(run.held_out_tasks(3, seed=run.settings.seed))
    assert len({tasks.tobytes() for tasks in seen}) == 3


def test_sigma_is_adapted_but_attenuated_only_when_asked():
    assert "log_std" not in experiment().learner.attenuator.names
    assert "log_std" in experiment().learner.rule.names
    assert "log_std" in experiment(initial_std_gamma=0.2).learner.attenuator.names


def test_discrete_actions_are_learned_without_sigma():
    run = doors(inner=InnerLoop(inner_lr=0.5), region=TrustRegion(fisher_fraction=1.0))
    assert isinstance(run.learner.network, CategoricalPolicy)
    metrics = run.iterate(1)
    assert metrics["line_search/accepted"] == 1.0
    assert "gamma/logits.layers.0.weight/mean" in metrics
    assert not any("std" in tag.split("/") and "gamma" not in tag for tag in metrics)


def test_attenuated_sigma_is_refused_where_there_is_none():
    message = "initial_std_gamma attenuates .* of Box actions; Doors has Discrete actions: leave it None, got 0.2"
    with pytest.raises(ValueError, match=message):
        doors(initial_std_gamma=0.2)


def returns_of(rollouts):
    return [float(episodes.returns().mean()) for episodes in rollouts.episodes]


@pytest.mark.parametrize(("run", "task"), [(experiment, np.array([0.3, -0.4])), (doors, 2)])
def test_adapting_to_a_task_gives_the_returns_of_its_evaluation(run, task):
    run = run(attenuation=Attenuation(initial_gamma=0.8))
    adapted = run.adapt(task=task, steps=2, episodes=4, seed=7)
    evaluated = run.evaluate([task], episodes=4, steps=2, seed=7)
    assert adapted.returns == returns_of(evaluated)
    assert len(adapted.returns) == 3
    gammas = run.learner.gammas_by_tensor(evaluated.start.gamma)
    assert adapted.gammas == {name: float(gamma.mean()) for name, gamma in gammas.items()}
    observation = np.zeros(run.sampler.observation_shape, np.float32)
    assert adapted.policy.action_space.contains(adapted.policy(observation))


def test_maml_adapts_without_gammas():
    assert experiment(method="maml").adapt(task=np.array([0.3, -0.4]), episodes=2).gammas == {}


@pytest.mark.parametrize("method", ["l2f", "maml"])
@pytest.mark.parametrize("door", [1, 2, 3])
def test_adapting_finds_the_door_that_pays_in_an_environment_of_ones_own(method, door):
    # hardly any preference before the step: 5 steps × ⅓ of them rewarded; after a long step nearly all of them are
    run = doors(method=method, inner=InnerLoop(inner_lr=20.0))
    adapted = run.adapt(lambda: Doors(door))
    assert adapted.policy(np.ones((2, 1), np.float32)) == door
    before, after = adapted.returns
    assert before == pytest.approx(5 / 3, abs=0.6)
    assert after > 4.5


def test_an_environment_of_ones_own_may_be_given_a_task():
    run = doors(inner=InnerLoop(inner_lr=20.0))
    assert run.adapt(Doors, task=1).policy(np.ones((2, 1), np.float32)) == 1


def test_adapting_and_training_leave_each_other_alone():
    run = experiment()
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    policy = run.adapt(task=np.array([0.3, -0.4]), episodes=2).policy
    for name, value in run.learner.state_dict().items():
        assert torch.equal(value, before[name])
    observation = np.array([0.1, 0.2], np.float32)
    action = policy(observation)
    run.iterate(1)
    assert np.array_equal(policy(observation), action)


def test_an_adapted_policy_stays_within_the_bounds_of_its_actions():
    policy = experiment().adapt(task=np.array([0.3, -0.4]), episodes=2).policy
    params = policy.params | {"mean.layers.1.bias": torch.tensor([50.0, -50.0])}
    action = dataclasses.replace(policy, params=params)(np.zeros(2))
    space = policy.action_space
    assert action.dtype == space.dtype
    assert action.tolist() == [space.high[0], space.low[1]]


def test_an_adapted_policy_takes_one_observation_of_its_environment():
    policy = doors().adapt(Doors).policy
    with pytest.raises(
        ValueError,
        match=r"observation must be one of Box.*shape \(2, 1\) .* got shape \(4, 2, 1\) and dtype float64; give one",
    ):
        policy(np.ones((4, 2, 1)))


class Rooms(Doors):
    """`Doors` whose observation is a dictionary."""

    observation_space = gymnasium.spaces.Dict(room=gymnasium.spaces.Discrete(3), clock=gymnasium.spaces.Box(0, 9))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        return {"room": 2, "clock": np.array([1.0], np.float32)}, {}

    def step(self, action):
        _, *rest = super().step(action)
        return {"room": 1, "clock": np.array([2.0], np.float32)}, *rest


def test_an_adapted_policy_takes_what_the_environment_gives_or_the_same_flattened():
    settings = MetaRLSettings(tasks_per_batch=2, episodes_per_task=3, horizon=4, policy=PolicyNetwork((4,)))
    run = MetaRL(Rooms, settings)
    policy = run.adapt(Rooms).policy
    # The room as one of three, then the clock.
    assert policy.reader({"room": 2, "clock": np.array([1.0], np.float32)}).tolist() == [0.0, 0.0, 1.0, 1.0]
    observation, _ = Rooms().reset()
    assert policy(observation) == policy(np.array([0.0, 0.0, 1.0, 1.0])) in Rooms.action_space
    run.close()


def test_a_generator_draws_actions_as_training_does():
    settings = MetaRLSettings(tasks_per_batch=2, episodes_per_task=3, horizon=4, policy=PolicyNetwork((4,)))
    run = MetaRL("metarl_l2f/Navigation2D-v0", settings)
    adapted = run.adapt(task=np.array([0.3, 0.1]), steps=2)
    assert len(adapted.policies) == len(adapted.returns) == 3
    first = adapted.policies[0]
    # σ = 1 at the start: nearly every draw leaves the box of ±0.1 and is clipped to it; the mean does not.
    drawn = np.array([first(np.zeros(2), np.random.default_rng(seed)) for seed in range(50)])
    assert (np.abs(drawn) == np.float32(0.1)).mean() > 0.8
    assert np.abs(first(np.zeros(2))).max() < 0.05
    run.close()


def test_adapting_to_an_environment_with_other_spaces_is_refused():
    found, trained = "of size 2 and 3 Discrete actions", "of size 2 and Box actions of size 2"
    message = f"Doors has observations {found}, but .*Navigation2D-v0, with observations {trained}; adapt to"
    with pytest.raises(ValueError, match=message):
        experiment().adapt(Doors)


@pytest.mark.parametrize("name", ["steps", "episodes"])
def test_adapting_takes_at_least_one_step_and_episode(name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, 1 or more, got 0"):
        doors().adapt(Doors, **{name: 0})


def test_adapting_needs_an_environment_or_a_task():
    with pytest.raises(ValueError, match=r"needs a task of the run's environment, or an env .*; got neither"):
        doors().adapt()


@pytest.mark.parametrize(
    "env",
    [f"metarl_l2f:{NAVIGATION}", gymnasium.spec(NAVIGATION), partial(gymnasium.make, NAVIGATION, horizon=5)],
    ids=["module", "spec", "partial"],
)
def test_every_way_to_name_an_environment_has_its_domains_settings(env):
    run = MetaRL(env)
    assert run.settings == MetaRLSettings.for_domain("navigation") != MetaRLSettings()
    run.close()


def test_environments_are_made_as_the_run_was_told(monkeypatch):
    made, other = [], lambda: Doors(2)

    def recorded(env, num_envs, **options):
        made.append((env, num_envs, options))
        return vectorise(env, num_envs)

    monkeypatch.setattr("metarl_l2f.rl.experiment.vectorise", recorded)
    settings = MetaRLSettings(tasks_per_batch=3, episodes_per_task=2, horizon=2)
    run = MetaRL(Doors, settings, {"door": 1}, threads=2, workers=4, timeout=9.0)
    run.evaluate([1, 2], episodes=3, steps=1, seed=0)
    run.adapt(task=1, episodes=5)
    run.adapt(other, task=1, episodes=5)
    given = {"workers": 4, "timeout": 9.0, "threads": 2}
    own = [(Doors, number, {**given, "door": 1}) for number in (6, 6, 5)]
    assert made == [*own, (other, 5, given)]
    run.close()


class Indifferent(gymnasium.Env):
    """Every action earns the same: there is nothing to learn."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def sample_tasks(self, number, generator):
        return np.zeros(number)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


def test_a_rejected_update_says_why_and_training_goes_on(caplog):
    run = MetaRL(Indifferent, MetaRLSettings(tasks_per_batch=2, episodes_per_task=2, horizon=3))
    before = [p.detach().clone() for p in run.learner.parameters()]
    metrics = run.iterate(1)
    assert metrics["line_search/accepted"] == 0.0
    assert "iteration 1: the update was rejected: the gradient is zero" in caplog.text
    assert all(p.equal(old) for p, old in zip(run.learner.parameters(), before, strict=True))
    assert run.iterate(2)["return/step_1"] == 3.0


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"hidden": (5,)}, r"network.mean.layers.0.weight is \(5, 2\), expected \(4, 2\)"),
        ({"method": "maml"}, "attenuator.mlp.0.weight is missing, expected"),
        ({"attenuation": Attenuation(scope="network")}, "attenuator.mlp.0.weight is"),
    ],
)
def test_a_checkpoint_of_another_shape_or_method_is_refused(other, named):
    with pytest.raises(CheckpointError, match=named):
        experiment().load_state_dict(experiment(**other).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon must be a whole number, 1 or more, got 0"),
        ({"tasks_per_batch": -1}, "tasks_per_batch must be a whole number, 1 or more, got -1"),
        ({"method": "reptile"}, "method must be one of l2f, maml, .*got 'reptile'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MetaRLSettings(**options)
