"""Policies that see pictures: their trunk against plain PyTorch, its choice, and runs that learn from pictures."""

import contextlib
import dataclasses
import re
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from parallel.groups import by_ranks
from torch import nn

from metarl_l2f import MetaRL, MetaRLSettings, PolicyNetwork, load_policy
from metarl_l2f.networks.pictures import PictureTrunk
from metarl_l2f.networks.policies import CategoricalPolicy, GaussianPolicy, policy_from_layout
from metarl_l2f.rl.policy import policy_for
from metarl_l2f.training.checkpoint import CheckpointError

SHAPE = (18, 33, 3)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def some_pictures(*leading):
    return torch.randint(256, (*leading, 18 * 33 * 3), dtype=torch.uint8, generator=random(1))


# --- The network ---


@torch.no_grad()
@pytest.mark.parametrize("kind", [GaussianPolicy, CategoricalPolicy])
def test_a_policy_is_four_strided_convolutions_and_an_mlp(kind):
    policy = kind(18 * 33 * 3, 2, (7,), "tanh", generator=random(), picture=SHAPE, filters=5)
    params = {name: p + 0.2 * torch.randn(p.shape, generator=random()) for name, p in policy.named_parameters()}
    policy.load_state_dict(params)
    seen = some_pictures(4)
    layers = []
    for block in policy.trunk.blocks:
        conv = nn.Conv2d(block.conv.in_channels, 5, 3, stride=2, padding=1)
        conv.load_state_dict(block.conv.state_dict())
        layers += [conv, nn.ReLU()]
    # 18 → 9 → 5 → 3 → 2 and 33 → 17 → 9 → 5 → 3 pixels: 5 · 2 · 3 features.
    first, last = policy.mlp.layers
    assert first.in_features == 30
    pixels = seen.reshape(4, *SHAPE).permute(0, 3, 1, 2) / 255
    expected = last(torch.tanh(first(nn.Sequential(*layers)(pixels).flatten(1))))
    torch.testing.assert_close(policy(params, seen)[0], expected)
    torch.testing.assert_close(policy(params, seen[2])[0], expected[2])  # One observation, without an axis before it.


@torch.no_grad()
def test_what_one_task_sees_does_not_depend_on_how_many_there_are():
    policy = GaussianPolicy(18 * 33 * 3, 2, (4,), generator=random(), picture=SHAPE, filters=3)
    params = {name: torch.randn(3, *p.shape, generator=random()) for name, p in policy.named_parameters()}
    seen = some_pictures(3, 5)
    together = policy(params, seen).mean
    torch.testing.assert_close(together, torch.func.vmap(policy)(params, seen).mean)
    for task in range(3):
        own = slice(task, task + 1)
        assert torch.equal(policy({name: p[own] for name, p in params.items()}, seen[own]).mean[0], together[task])


@pytest.mark.parametrize("kind", [GaussianPolicy, CategoricalPolicy])
def test_a_policy_with_a_trunk_is_built_anew_from_its_layout(kind):
    policy = kind(18 * 33 * 3, 2, (3,), picture=SHAPE, filters=5)
    twin = policy_from_layout(policy.layout())
    assert twin.layout() == policy.layout() and twin.trunk.shape == SHAPE
    twin.load_state_dict(policy.state_dict())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((15, 64, 3), "pictures of 15×64 vanish in the four halvings .* needs 16×16 pixels; choose trunk='mlp'"),
        ((10, 12, 14), "pictures of 10×12 vanish in the four halvings"),
        ((3, 64, 64), r"got \(3, 64, 64\), which looks like \(channels, height, width\); move channels last"),
        ((64, 64), r"\(height, width, channels\), got \(64, 64\); choose trunk='mlp', or add the axis"),
        ((4,), r"\(height, width, channels\), got \(4,\); choose trunk='mlp'"),
        ((4, 64, 64, 3), r"\(height, width, channels\), got \(4, 64, 64, 3\)"),
    ],
)
def test_what_is_no_picture_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        PictureTrunk(shape, 4)


def test_filters_must_be_some_and_the_sizes_agree():
    with pytest.raises(ValueError, match="filters must be a whole number, 1 or more, got 0"):
        PictureTrunk(SHAPE, 0)
    with pytest.raises(ValueError, match=r"pictures of \(18, 33, 3\) have another number of numbers than 9"):
        GaussianPolicy(9, 2, picture=SHAPE)


# --- Its choice ---


def chosen(shape, **network):
    size = int(np.prod(shape))
    sampler = SimpleNamespace(observation_size=size, observation_shape=shape, action_size=2, discrete=False, name="odd")
    return policy_for(PolicyNetwork((3,), filters=2, **network), sampler, random()).trunk


@pytest.mark.parametrize(
    ("shape", "found"),
    [((16, 16, 1), True), ((64, 48, 12), True), ((15, 16, 3), False), ((3, 64, 64), False), ((64, 64), False)],
)
def test_auto_takes_convolutions_for_pictures_that_are_large_enough(shape, found):
    assert (chosen(shape) is not None) is found
    assert chosen(shape, trunk="mlp") is None


def test_convolutions_where_there_are_no_pictures_are_refused_by_name():
    with pytest.raises(ValueError, match=r"odd: a convolutional trunk reads pictures .*, got \(4,\)"):
        chosen((4,), trunk="conv")
    with pytest.raises(ValueError, match=r"trunk must be one of .*, got 'resnet'"):
        PolicyNetwork(trunk="resnet")


# --- Runs ---


class Halves(gymnasium.Env):
    """Shows which half of a picture is bright; pays 1 for naming it, in other tasks for naming the dark one, else −1.

    A policy that does not see, or does not adapt, gets 0 on average.
    """

    observation_space = Box(0, 255, (16, 16, 1), np.uint8)
    action_space = Discrete(2)

    def sample_tasks(self, number, generator):
        return np.arange(number) % 2

    def seen(self):
        self.right = int(self.np_random.integers(2))
        picture = np.zeros((16, 16, 1), np.uint8)
        picture[:, 8 * self.right : 8 * self.right + 8] = 255
        return picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = int(options["task"])
        return self.seen(), {}

    def step(self, action):
        reward = 1.0 if (action == self.right) == bool(self.task) else -1.0
        return self.seen(), reward, False, False, {}


class Aim(Halves):
    """Pays for pointing at a half with a Box action."""

    action_space = Box(-1, 1, (1,))

    def step(self, action):
        return super().step(int(action[0] > 0))


def settings_for(method, inner_lr=1.0, **changes):
    settings = MetaRLSettings.for_domain(None, method)
    network = dataclasses.replace(settings.policy, hidden_sizes=(16,), activation="tanh", filters=4)
    return dataclasses.replace(
        settings,
        **{"tasks_per_batch": 4, "episodes_per_task": 4, "horizon": 10, "policy": network} | changes,
        gradient=dataclasses.replace(settings.gradient, discount=0.0),
        region=dataclasses.replace(settings.region, fisher_fraction=1.0),
        vanilla=dataclasses.replace(settings.vanilla, vpg_lr=0.03),
        inner=dataclasses.replace(settings.inner, inner_lr=inner_lr),
    )


@pytest.fixture(scope="module")
def trained():
    run = MetaRL(Halves, settings_for("maml-vpg"))
    for iteration in range(1, 9):
        run.iterate(iteration)
    return run


def test_a_policy_learns_to_adapt_by_what_it_sees(trained):
    evaluated = trained.evaluate(np.arange(2), episodes=20, steps=1, seed=0)
    before, after = (episodes.returns().mean(1) for episodes in evaluated.episodes)
    assert abs(before.mean()) < 2 and (after > 9).all()  # Of 10.
    assert evaluated.episodes[0].observations.dtype == evaluated.data.post.observations.dtype == torch.uint8


def test_an_adapted_policy_is_the_same_after_a_file(trained, tmp_path):
    policy = trained.adapt(task=1, episodes=4).policy
    policy.save(tmp_path / "policy.pt")
    loaded, env = load_policy(tmp_path / "policy.pt"), Halves()
    assert loaded.network.trunk.shape == (16, 16, 1)
    seen, _ = env.reset(seed=0, options={"task": 1})
    for _ in range(10):
        assert policy(seen) == loaded(seen)
        seen, reward, *_ = env.step(loaded(seen))
        assert reward == 1


@pytest.mark.parametrize("method", ["l2f", "anil", "boil", "cavia", "promp"])
def test_every_part_of_the_family_moves_what_it_should_of_a_policy_that_sees(method):
    run = MetaRL(Aim, settings_for(method, 0.1, tasks_per_batch=2, episodes_per_task=3, horizon=4))
    rollouts, _ = run.validation_rollouts()
    start, adapted = rollouts.start.params, rollouts.params[-1]
    moved = {name for name in adapted if not torch.equal(adapted[name], start[name].expand_as(adapted[name]))}
    conv, last, context = "trunk.blocks.0.conv.weight", "mean.layers.1.weight", "mean.context"
    expected = {"anil": {last}, "boil": {conv}, "cavia": {context}}.get(method, {conv, last})
    assert moved & {conv, last, context} == expected
    if method in ("l2f", "promp"):  # A trust region and Adam.
        before = {name: p.detach().clone() for name, p in run.learner.named_parameters()}
        made = run.outer.update(run.adaptation, rollouts)
        changed = {name for name, p in run.learner.named_parameters() if not torch.equal(p, before[name])}
        assert not made.rejected and {f"network.{conv}", f"network.{last}"} <= changed


@pytest.mark.parametrize("space", [Box(0, 255, (16, 1, 16), np.uint8), Box(0, 255, (16, 16, 1), np.float32)])
def test_a_policy_that_sees_adapts_to_pictures_of_its_own_kind_alone(space, trained):
    class Other(Halves):
        observation_space = space

    with pytest.raises(ValueError, match=r"trained on Halves, with observations of shape \(16, 16, 1\), uint8, and"):
        trained.adapt(Other, task=1)


def of_ranks(group, threads=1):
    with contextlib.closing(
        MetaRL(Halves, settings_for("maml-vpg"), group=group, threads=threads, tasks_per_shard=2)
    ) as run:
        metrics = [run.iterate(iteration) for iteration in (1, 2)]
    shown = [{tag: x for tag, x in line.items() if not tag.startswith(("time/", "conflict/"))} for line in metrics]
    return shown, {name: value.numpy().copy() for name, value in run.learner.state_dict().items()}


def assert_same(one, other):
    assert one[0] == other[0]
    for name, value in one[1].items():
        np.testing.assert_array_equal(value, other[1][name])


def test_threads_ranks_and_resuming_change_no_bit():
    alone = of_ranks(None)
    assert_same(of_ranks(None, threads=2), alone)
    for found in by_ranks(of_ranks, 2):
        assert_same(found, alone)
    resumed, unbroken = (MetaRL(Halves, settings_for("maml-vpg")) for _ in range(2))
    unbroken.iterate(1)
    resumed.load_state_dict(unbroken.state_dict())
    resumed.iterate(2)
    for name, value in resumed.learner.state_dict().items():
        np.testing.assert_array_equal(value, alone[1][name])


def test_a_state_of_version_0_1_whose_pictures_were_flattened_loads_as_an_mlp():
    flat = settings_for("maml", policy=PolicyNetwork((16,), trunk="mlp"))
    old = MetaRL(Halves, flat).state_dict()
    with pytest.raises(CheckpointError, match=r"version 0.1; load it with PolicyNetwork\(trunk='mlp'\)"):
        MetaRL(Halves, settings_for("maml")).load_state_dict(old)
    MetaRL(Halves, flat).load_state_dict(old)


# --- Warnings ---


@pytest.mark.parametrize(
    ("space", "network", "message"),
    [
        (Box(0, 255, (16, 16, 1), np.uint8), {}, None),
        (Box(0, 1, (16, 16, 1), np.float32), {}, None),
        (Box(0, 255, (16, 16, 1), np.float32), {}, "pictures of float32 from 0 to 255 are read as they are"),
        (Box(0, 255, (16, 16, 1), np.float32), {"normalise_observations": True}, None),
        (Box(0, 255, (16, 16, 1), np.uint8), {"trunk": "mlp"}, "as 256 numbers in a row, scaled .*trunk='conv'"),
        (Box(0, 255, (1, 16, 16), np.uint8), {}, r"\(1, 16, 16\) looks like \(channels, height, width\)"),
        (Box(0, 1, (1, 16, 16), np.float32), {}, r"numbers in a row: .* looks like \(channels, height, width\)"),
    ],
)
def test_pictures_that_are_flattened_turned_or_far_from_1_are_named(space, network, message, caplog):
    class Other(Halves):
        observation_space = space

    MetaRL(Other, MetaRLSettings("maml", policy=PolicyNetwork((3,), filters=2, **network))).close()
    assert bool(caplog.text) is bool(message) and re.search(message or "", caplog.text)


def test_numbers_of_another_kind_are_no_pictures():
    run = MetaRL(Halves, settings_for("maml", tasks_per_batch=1, episodes_per_task=1))
    step = run.sampler.envs.step
    run.sampler.envs.step = lambda actions: (step(actions)[0] / 2, *step(actions)[1:])
    with pytest.raises(ValueError, match=r"observations at step 1 have .*float64, expected bytes of shape"):
        run.iterate(1)
