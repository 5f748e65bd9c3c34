"""A whole run in miniature: what an iteration reports, what it depends on, and what its checkpoints refuse."""

import gymnasium
import numpy as np
import pytest
import torch

from metarl_l2f.core import Attenuation, InnerLoop
from metarl_l2f.rl.experiment import MetaRL, MetaRLSettings, PolicyNetwork
from metarl_l2f.training.checkpoint import CheckpointError

NAVIGATION = "metarl_l2f/Navigation2D-v0"


def experiment(threads=1, hidden=(4,), **options):
    settings = MetaRLSettings(
        tasks_per_batch=3, episodes_per_task=2, horizon=6, policy=PolicyNetwork(hidden, "tanh", 0.2), **options
    )
    return MetaRL(NAVIGATION, settings, {"horizon": 6}, threads)


def without_times(metrics):
    return {tag: value for tag, value in metrics.items() if not tag.startswith("time/")}


def test_an_iteration_reports_every_promised_tag():
    metrics = experiment(inner=InnerLoop(inner_steps=2, learn_inner_lr=True)).iterate(1)
    for tag in (
        "env_steps",
        "return/step_0",
        "return/step_1",
        "return/step_2",
        "surrogate",
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


def test_a_state_continues_exactly():
    unbroken = experiment()
    for i in (1, 2):
        unbroken.iterate(i)
    state = unbroken.state_dict()
    resumed = experiment()
    resumed.load_state_dict(state)
    assert without_times(resumed.iterate(3)) == without_times(unbroken.iterate(3))


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
    sample = run.meta.sampler.sample_tasks
    run.meta.sampler.sample_tasks = lambda *arguments: seen.append(sample(*arguments)) or seen[-1]
    run.iterate(1)
    run.validate(1)
    seen.append(run.held_out_tasks(3, seed=run.settings.seed))
    assert len({tasks.tobytes() for tasks in seen}) == 3


def test_sigma_is_adapted_but_attenuated_only_when_asked():
    assert "log_std" not in experiment().learner.attenuated_names
    assert "log_std" in experiment().learner.adapted_names
    assert "log_std" in experiment(initial_std_gamma=0.2).learner.attenuated_names


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
        ({"method": "maml"}, "attenuator.0.weight is missing, expected"),
        ({"attenuation": Attenuation(scope="network")}, "attenuator.0.weight is"),
    ],
)
def test_a_checkpoint_of_another_shape_or_method_is_refused(other, named):
    with pytest.raises(CheckpointError, match=named):
        experiment().load_state_dict(experiment(**other).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon must be a positive number of steps, got 0"),
        ({"tasks_per_batch": -1}, "tasks_per_batch must be a positive number of tasks, got -1"),
        ({"method": "reptile"}, "method must be 'l2f' or 'maml', got 'reptile'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MetaRLSettings(**options)
