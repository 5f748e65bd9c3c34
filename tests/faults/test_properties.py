"""Whatever shapes, lengths, settings and command lines: every input works, or raises one of our named errors."""

import contextlib
import io
import math
import re
import tempfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from metarl_l2f import Attenuation, InnerLoop, MetaRL, MetaRLSettings, PolicyNetwork
from metarl_l2f.launchers import navigation, sinusoid
from metarl_l2f.rl.adaptation import PolicyGradient
from metarl_l2f.rl.episodes import Episodes, discounted_returns, generalised_advantages, standardise, to_batch
from metarl_l2f.rl.trpo import TrustRegion
from metarl_l2f.runs.load import read_config
from metarl_l2f.training import metrics
from metarl_l2f.training.config import from_json, to_json

FRACTIONS = st.sampled_from([0.0, 0.5, 0.9, 1.0])


@st.composite
def masked(draw):
    """Numbers of steps that happened, a mask of them (N, B, T), and a generator for what fills it."""
    tasks, episodes, steps = (draw(st.integers(1, most)) for most in (3, 4, 7))
    lengths = draw(st.lists(st.integers(1, steps), min_size=tasks * episodes, max_size=tasks * episodes))
    mask = torch.arange(steps) < torch.tensor(lengths).reshape(tasks, episodes, 1)
    return lengths, mask.double(), torch.Generator().manual_seed(draw(st.integers(0, 999)))


# --- Episodes ---


@given(masked(), FRACTIONS, FRACTIONS)
def test_returns_and_advantages_are_their_sums_written_out(case, discount, gae_lambda):
    lengths, mask, random = case
    rewards, values = (torch.randn(mask.shape, generator=random, dtype=torch.float64) * mask for _ in range(2))
    returns = discounted_returns(rewards, discount).flatten(0, 1)
    advantages = generalised_advantages(rewards, values, discount, gae_lambda).flatten(0, 1)
    for row, length in enumerate(lengths):
        r, v = (x.flatten(0, 1)[row, :length].tolist() for x in (rewards, values))
        delta = [r[t] + discount * (v[t + 1] if t + 1 < length else 0.0) - v[t] for t in range(length)]
        for t in range(length):
            later = range(length - t)
            assert returns[row, t].item() == pytest.approx(sum(discount**k * r[t + k] for k in later), abs=1e-9)
            by_hand = sum((discount * gae_lambda) ** k * delta[t + k] for k in later)
            assert advantages[row, t].item() == pytest.approx(by_hand, abs=1e-9)


@given(masked(), st.sampled_from([1e-3, 1.0, 1e6]))
def test_standardised_values_have_mean_0_and_deviation_1_over_the_steps_that_happened(case, scale):
    _, mask, random = case
    values = scale * torch.randn(mask.shape, generator=random, dtype=torch.float64)
    found = standardise(values, mask)
    assert not found[mask == 0].any()
    for task in range(len(mask)):
        happened, before = found[task][mask[task] == 1], values[task][mask[task] == 1]
        deviation = before.std(correction=0).item()  # 1e-8 is added to it, which nearly equal values notice.
        assert happened.mean().item() == pytest.approx(0, abs=1e-6)
        assert len(happened) == 1 or happened.std(correction=0).item() == pytest.approx(
            deviation / (deviation + 1e-8), abs=1e-9
        )


@given(masked())
def test_a_batch_weighs_every_step_that_happened_alike(case):
    lengths, mask, random = case
    observations, actions = (torch.randn(*mask.shape, size, generator=random) for size in (3, 2))
    batch = to_batch(Episodes(observations, actions, mask, mask), mask)
    steps = torch.tensor(lengths).reshape(len(mask), -1).sum(1)
    torch.testing.assert_close(batch.weights.sum(1), torch.ones(len(mask), dtype=torch.float64))
    for task, number in enumerate(steps.tolist()):
        weights = batch.weights[task]
        torch.testing.assert_close(weights[weights > 0], torch.full((number,), 1 / number, dtype=torch.float64))
    assert batch.observations.shape == (len(mask), mask[0].numel(), 3)


# --- Settings ---


class Walk(gymnasium.Env):
    """A walk whose episodes end by chance."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, actions=None):
        self.action_space = spaces.Box(-1, 1, (2,), np.float32) if actions is None else spaces.Discrete(actions)

    def sample_tasks(self, number, generator):
        return generator.uniform(size=number)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = options["task"]
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        ended = self.np_random.uniform() < 0.2
        return self.np_random.normal(size=2).astype(np.float32), float(np.sum(action) * self.task), ended, False, {}


ATTENUATIONS = st.builds(
    Attenuation,
    st.sampled_from(["network", "layer", "tensor", "filter", "weight"]),
    st.sampled_from(["gradient", "none", "prototype"]),
    st.sampled_from(["attenuate", "scale", "affine"]),
    st.sampled_from(["raw", "normalised", "standardised"]),
)
SETTINGS = st.builds(
    MetaRLSettings,
    method=st.sampled_from(["l2f", "maml"]),
    tasks_per_batch=st.integers(1, 3),
    episodes_per_task=st.integers(1, 3),
    horizon=st.integers(1, 5),
    policy=st.builds(
        PolicyNetwork,
        st.lists(st.integers(1, 3), max_size=2).map(tuple),
        st.sampled_from(["tanh", "relu", "leaky_relu", "elu", "silu"]),
        state_dependent_std=st.booleans(),
        normalise_observations=st.booleans(),
    ),
    attenuation=ATTENUATIONS,
    initial_std_gamma=st.sampled_from([None, 0.5]),
    inner=st.builds(
        InnerLoop,
        inner_steps=st.integers(1, 2),
        learn_inner_lr=st.booleans(),
        inner_lr_scope=st.sampled_from(["tensor", "weight"]),
        first_order=st.booleans(),
    ),
    gradient=st.builds(
        PolicyGradient,
        discount=FRACTIONS,
        gae_lambda=FRACTIONS,
        estimator=st.sampled_from(["reinforce", "lvc", "dice"]),
        inner_data=st.sampled_from(["reuse", "gradient_at_init", "resample"]),
        initial_weight=st.sampled_from([0.0, 0.1]),
    ),
    region=st.builds(TrustRegion, fisher_fraction=st.sampled_from([0.1, 1.0])),
)


def check_settings(chosen, actions):
    """One iteration works, or says why these settings do not."""
    try:
        run = MetaRL(Walk, chosen, {"actions": actions})
    except ValueError as error:
        assert re.search("prototype|initial_std_gamma|state_dependent_std", str(error)), error
        return
    try:
        found = run.iterate(1)
    finally:
        run.close()
    assert all(p.isfinite().all() for p in run.learner.parameters())
    phases = chosen.inner.inner_steps + 1
    phases += chosen.method == "l2f" and chosen.gradient.inner_data == "resample"
    episodes = chosen.tasks_per_batch * chosen.episodes_per_task * phases
    assert episodes <= found["env_steps"] <= episodes * chosen.horizon
    assert found["kl"] <= chosen.region.max_kl


@pytest.mark.parametrize("actions", [None, 3])
def test_every_combination_of_settings_works_or_says_why_not(actions, amount, record_property):
    number = amount(8, 150)
    settings(max_examples=number, database=None)(given(SETTINGS)(lambda chosen: check_settings(chosen, actions)))()
    record_property(f"properties/settings tried, {'Box' if actions is None else 'Discrete'} actions", number)


@given(SETTINGS)
def test_settings_survive_their_file(chosen):
    assert from_json(MetaRLSettings, to_json(chosen)) == chosen


# --- Command lines ---

TINY = [
    *("--iterations", "1", "--tasks-per-batch", "2", "--hidden-sizes", "3", "--validate-every", "1"),
    *("--evaluation-tasks", "2", "--evaluation-steps", "1", "--inspect-every", "0", "--threads", "1"),
]
TINIEST = {
    navigation: [*TINY, "--episodes-per-task", "2", "--horizon", "3"],
    sinusoid: [*TINY, "--evaluation-repeats", "1", "--validation-tasks", "2"],
}
VALUES = ["-1", "0", "1", "2", "0.5", "1e-300", "1e300", "nan", "inf", "-inf", "x", "", "None", "True", "é"]


def flags_of(program):
    with contextlib.redirect_stdout(io.StringIO()) as help_text, contextlib.suppress(SystemExit):
        program.main(["--help"])
    return sorted(set(re.findall("--[a-z][a-z0-9-]*", help_text.getvalue())) - {"--help", "--log-dir", "--resume"})


def check_command_line(program, arguments):
    """The program ends well, or with status 2 and one message; a traceback fails the test."""
    said = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        try:
            status = program.main([*TINIEST[program], *arguments, "--log-dir", str(Path(folder) / "run")])
        except SystemExit as stopped:
            status = stopped.code
    assert status in (0, 2), (arguments, said.getvalue())
    assert status == 0 or said.getvalue().strip(), arguments


@pytest.mark.parametrize("program", [navigation, sinusoid], ids=["navigation", "sinusoid"])
def test_every_command_line_works_or_is_refused(program, amount, record_property):
    number = amount(10, 200)
    pairs = st.lists(st.tuples(st.sampled_from(flags_of(program)), st.sampled_from(VALUES)), min_size=1, max_size=3)
    lines = pairs.map(lambda found: [word for pair in found for word in pair])
    check = given(lines)(lambda arguments: check_command_line(program, arguments))
    settings(max_examples=number, database=None)(check)()
    record_property(f"properties/command lines tried, {program.__name__.rpartition('.')[2]}", number)


# --- Files that people edit ---

LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([math.inf, 0.5]) | st.text(max_size=3)
JSON = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.sampled_from(["options", "seed", "inner"]), LEAVES)


@given(JSON)
def test_any_json_is_settings_or_refused(data):
    with contextlib.suppress(ValueError):
        assert isinstance(from_json(MetaRLSettings, data), MetaRLSettings)


@given(SETTINGS, st.data())
def test_any_edit_of_settings_is_settings_or_refused(chosen, data):
    edited = to_json(chosen)
    place = edited
    while isinstance(place, dict):
        name = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[name], dict) or data.draw(st.booleans()):
            place[name] = data.draw(JSON)
            break
        place = place[name]
    with contextlib.suppress(ValueError):
        assert isinstance(from_json(MetaRLSettings, edited), MetaRLSettings)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_metrics_and_a_configuration_or_refused(content):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "metrics.jsonl").write_bytes(content)
        (folder / "config.json").write_bytes(content)
        with contextlib.suppress(ValueError):
            assert all(isinstance(line["iteration"], int) for line in metrics.read(folder))
        with contextlib.suppress(ValueError):
            assert "options" in read_config(folder)
