"""Policies that adaptation hands over do what training did with observations and actions; and they can be kept."""

import io
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

from metarl_l2f import MetaRL, MetaRLSettings, PolicyNetwork, load_policy
from metarl_l2f.networks.pictures import as_numbers
from metarl_l2f.rl.spaces import Reader, from_plain, taken, to_plain
from metarl_l2f.training.checkpoint import CheckpointError, save
from metarl_l2f.training.seeding import Stream, generator


class Dial(gymnasium.Env):
    """Pays minus the distance between the action and the task, and refuses actions outside its space."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Box(0, 1, (1,), np.float32)

    def sample_tasks(self, number, generator):
        return generator.uniform(0, 1, (number, 1))

    def seen(self):
        return np.full(1, 0.5, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if options and "task" in options:
            self.task = options["task"]
        return self.seen(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action)), action
        return self.seen(), -float(np.abs(np.asarray(action, float) - self.task).sum()), False, False, {}


class Table(Dial):
    """An action is a row of a table."""

    action_space = Box(0, 9, (1,), np.int64)
    rows = np.linspace(0, 1, 10)

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.seen(), -abs(self.rows[action[0]] - float(self.task[0])), False, False, {}


class Number(Dial):
    """A Box without an axis."""

    action_space = Box(0.25, 0.75, (), np.float32)


class Choice(Dial):
    action_space = Discrete(3, start=-1)


class Parts(Dial):
    """Dictionaries that are not quite in their space: float64, a hair outside, and with one key more."""

    observation_space = Dict(at=Box(-1, 1, (2,)), room=Discrete(3), also=Tuple([Box(-1, 1, (1,)), MultiBinary(2)]))
    action_space = Box(-1, 1, (2,))

    def seen(self):
        at, also = np.array([1.0000001, -0.25]), (np.array([0.5]), np.array([1, 0]))
        return {"at": at, "room": 2, "also": also, "speed": 3.0}


class Camera(Dial):
    """Shows a picture of two shades, one of them the task's."""

    observation_space = Box(0, 255, (6, 7, 3), np.uint8)

    def seen(self):
        picture = np.full((6, 7, 3), 51, np.uint8)
        picture[:, 3:] = 255 * self.task
        return picture


def run_on(env, **options):
    settings = MetaRLSettings(
        "maml", tasks_per_batch=2, episodes_per_task=3, horizon=6, policy=PolicyNetwork((4,), "tanh"), **options
    )
    return MetaRL(env, settings)


@pytest.fixture
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_reported_is_achieved(env):
    run, task = run_on(env), np.array([0.3])
    run.iterate(1)
    adapted = run.adapt(env, task=task, steps=2, episodes=1, seed=5)
    for phase, (policy, reported) in enumerate(zip(adapted.policies, adapted.returns, strict=True)):
        noise, total, environment = generator(5, Stream.EVALUATION, 1, 0, phase), 0.0, env()
        seed = int(noise.integers(2**31, size=1)[0])  # The episode's, which training draws first.
        seen, _ = environment.reset(seed=seed, options={"task": task})
        for _ in range(6):
            seen, reward, *_ = environment.step(policy(seen, noise))
            total += reward
        assert total == pytest.approx(reported, abs=1e-4)
    return adapted.policy


@pytest.mark.parametrize("env", [Dial, Table, Number, Choice, Parts, Camera])
def test_a_policy_achieves_what_adapt_reports_with_the_same_noise(env):
    assert_reported_is_achieved(env)


@pytest.mark.parametrize("env", [Dial, Choice, Parts])
def test_a_policy_of_double_precision_does_too(env, double_precision):
    policy = assert_reported_is_achieved(env)
    assert policy.params[next(iter(policy.params))].dtype == torch.float64
    assert env.action_space.contains(policy(env().reset(options={"task": 0.3})[0]))


def test_drawn_actions_stay_in_the_episodes_and_clipped_ones_go_to_the_environment():
    handed = []

    class Watched(Dial):
        def step(self, action):
            handed.append(action)
            return super().step(action)

    run = run_on(Watched)
    (episodes, *_) = run.evaluate(np.zeros((1, 1)), episodes=40, steps=1, seed=0).episodes
    drawn = episodes.actions[0].transpose(0, 1).flatten().numpy()  # By step, as the environments are.
    assert (drawn < 0).any() and (drawn > 1).any()
    assert np.array_equal(np.concatenate(handed[: len(drawn)]), drawn.clip(0, 1))


def test_integer_boxes_get_the_nearest_integer_inside_the_bounds():
    found = taken(Box(0, 9, (2,), np.int64), np.array([[-3.0, 0.49], [3.51, 9.7], [2.5, 3.5]], np.float32))
    assert found.dtype == np.int64
    assert found.tolist() == [[0, 0], [4, 9], [2, 4]]  # Halves go to the even neighbour, as numpy rounds.


def test_a_box_keeps_its_dtype_and_bounds():
    space = Box(-0.1, 0.1, (1,), np.float64)
    assert taken(space, np.array([[5.0], [-5.0], [0.05]], np.float32)).tolist() == [[0.1], [-0.1], [np.float32(0.05)]]
    assert space.contains(taken(space, np.array([5.0], np.float32)))


def test_discrete_spaces_count_from_their_start():
    assert taken(Discrete(3, start=-1), np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])).tolist() == [0, -1]


# --- Observations ---


def test_a_reader_takes_parts_that_are_not_quite_in_their_space():
    seen = Parts().seen()
    # at (2), room 2 of 3 one-hot, also (1 + 2); the dictionary's keys are in the order of the space's.
    expected = {"also": [0.5, 1, 0], "at": [1.0000001, -0.25], "room": [0, 0, 1]}
    flat = np.concatenate([expected[key] for key in Parts.observation_space]).astype(np.float32)
    reader = Reader(Parts.observation_space)
    assert np.array_equal(reader(seen), flat)
    assert np.array_equal(reader(flat), flat)
    assert np.array_equal(reader(flat.tolist()), flat)


def test_a_reader_names_what_is_missing():
    with pytest.raises(ValueError, match=r"observation must be one of Dict.*KeyError"):
        Reader(Parts.observation_space)({"at": np.zeros(2)})


def test_pictures_are_read_from_0_to_1_alone_or_in_a_dictionary():
    picture = Box(0, 255, (2, 2), np.uint8)
    shown = np.array([[0, 51], [102, 255]], np.uint8)
    scaled = np.array([0.0, 0.2, 0.4, 1.0], np.float32)
    assert np.array_equal(Reader(picture)(shown), scaled)
    both = Reader(Dict(picture=picture, speed=Box(-9, 9, (1,))))
    assert np.array_equal(both({"picture": shown, "speed": [3.0]}), [*scaled, 3.0])
    bytes_of_a_memory = Box(0, 255, (4,), np.uint8)
    assert np.array_equal(Reader(bytes_of_a_memory)(shown.ravel()), [0, 51, 102, 255])


def test_training_reads_pictures_as_policies_do_and_says_that_they_are_flattened(caplog):
    run = run_on(Camera)
    assert "Camera: observations are pictures, which the policy reads as 126 numbers" in caplog.text
    (episodes, *_) = run.evaluate(np.array([[0.2]]), episodes=1, steps=1, seed=0).episodes
    assert episodes.observations.dtype == torch.uint8 and (episodes.observations == 51).all()  # And 255 · 0.2.
    policy, seen = run.adaptation.policy, episodes.observations[0, 0, :1]
    params = dict(policy.named_parameters())
    scaled = torch.from_numpy(run.sampler.reader(seen[0].reshape(6, 7, 3).numpy()))
    assert torch.equal(policy(params, seen).mean, policy(params, scaled.unsqueeze(0)).mean)


def test_torch_and_numpy_scale_every_byte_alike():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    read = as_numbers(torch.from_numpy(every), torch.float32)
    assert np.array_equal(read.numpy().ravel(), Reader(Box(0, 255, (16, 16), np.uint8))(every))
    assert read.flatten()[[0, 51, 255]].tolist() == [0, np.float32(0.2), 1]


def test_large_pictures_need_no_more_memory_than_they_have():
    # 2 · 12,288 + 4 features; their products alone would be 4.8 GB a task.
    class Large(Camera):
        observation_space = Box(0, 255, (64, 64, 3), np.uint8)

        def seen(self):
            return np.full((64, 64, 3), 51, np.uint8)

    resource = pytest.importorskip("resource")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rollouts = run_on(Large).evaluate(np.array([[0.2], [0.4]]), episodes=3, steps=1, seed=0)
    assert rollouts.episodes[0].observations.shape == (2, 3, 6, 12288)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 2e6  # kB


# --- Files ---


@pytest.mark.parametrize("env", [Dial, Table, Choice, Parts, Camera])
def test_a_policy_survives_pickle_torch_and_its_own_file(env, tmp_path):
    policy = run_on(env).adapt(env, task=np.array([0.3]), episodes=2).policy
    file = io.BytesIO()
    torch.save(policy, file)
    file.seek(0)
    policy.save(tmp_path / "policy.pt")
    seen, _ = env().reset(options={"task": np.array([0.3])})
    for kept in (
        pickle.loads(pickle.dumps(policy)),
        torch.load(file, weights_only=False),
        load_policy(tmp_path / "policy.pt"),
    ):
        for noise in (None, 3):
            ours, theirs = (p(seen, noise and np.random.default_rng(noise)) for p in (policy, kept))
            assert np.array_equal(ours, theirs) and type(ours) is type(theirs)
        assert kept.action_space == env.action_space and kept.reader.space == env.observation_space


def test_saving_a_policy_leaves_out_what_others_learned_since(tmp_path):
    run = run_on(Dial)
    policy = run.adapt(Dial, task=np.array([0.3]), episodes=2).policy
    before = pickle.dumps(policy)
    run.iterate(1)
    assert pickle.dumps(policy) == before


@pytest.mark.parametrize("change", ["params", "policy", "actions", "observations", "shape", "kind", "space"])
def test_a_file_that_holds_no_policy_is_named(change, tmp_path):
    policy, path = run_on(Dial).adapt(Dial, task=np.array([0.3]), episodes=2).policy, tmp_path / "policy.pt"
    content = {
        "policy": {"kind": "GaussianPolicy", "sizes": [1, 4, 1], "activation": "tanh"},
        "params": dict(policy.params),
        "observations": to_plain(Dial.observation_space),
        "actions": to_plain(Dial.action_space),
    }
    save(path, content)
    assert load_policy(path)(np.zeros(1)) == policy(np.zeros(1))
    if change == "shape":
        content["policy"]["sizes"] = [1, 5, 1]
    elif change == "kind":
        content["policy"]["kind"] = "Module"
    elif change == "space":
        content["actions"] = to_plain(Dict(a=Discrete(2)))
    else:
        del content[change]
    save(path, content)
    with pytest.raises(CheckpointError, match=r"policy.pt holds no adapted policy .*; give a file that policy.save"):
        load_policy(path)


@pytest.mark.parametrize(
    "space",
    [
        Box(-np.inf, np.array([1.0, 2.0]), (2,), np.float64),
        Box(0, 255, (2, 3), np.uint8),
        Discrete(4, start=2),
        MultiDiscrete([2, 3], start=[1, 0]),
        MultiBinary([2, 3]),
        Dict(b=Discrete(2), a=Tuple([Box(-1, 1, ()), Dict(c=MultiBinary(2))])),
    ],
    ids=str,
)
def test_spaces_are_the_same_after_a_file(space, tmp_path):
    save(tmp_path / "space.pt", to_plain(space))
    found = from_plain(torch.load(tmp_path / "space.pt", weights_only=True)["state"])
    assert found == space and found.dtype == space.dtype


def test_a_space_that_is_no_plain_data_is_named():
    with pytest.raises(ValueError, match=r"observations of Text\(.*cannot be saved as plain data.*use torch.save"):
        to_plain(Text(5))
