"""Any number of ranks computes what one process computes."""

import contextlib
import re
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from metarl_l2f.core.attenuation import Attenuation
from metarl_l2f.core.update_rules import InnerLoop
from metarl_l2f.rl.experiment import MetaRL
from metarl_l2f.rl.settings import MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.trpo import TrustRegion
from metarl_l2f.supervised.classification import Classifier, ImageProblem
from metarl_l2f.supervised.episodes import SPLITS, Images, Shape
from metarl_l2f.supervised.experiment import MetaSupervised
from metarl_l2f.supervised.leo.embeddings import Embeddings
from metarl_l2f.supervised.leo.experiment import LEOExperiment, LEOSettings
from metarl_l2f.supervised.settings import SupervisedSettings
from metarl_l2f.supervised.sinusoid import Curves, SinusoidProblem

from .groups import Fake, by_ranks

ITERATIONS = 5


class Plane(gymnasium.Env):
    """Walk towards a point; in float64 all the way, as navigation is not."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float64)

    def sample_tasks(self, number, generator):
        return generator.uniform(-0.5, 0.5, (number, 2))

    def reset(self, *, seed=None, options=None):
        self.position, self.goal = np.zeros(2), options["task"]
        return self.position, {}

    def step(self, action):
        self.position = self.position + np.clip(action, -0.1, 0.1)
        return self.position, -np.square(self.position - self.goal).sum(), False, False, {}


def meta_rl(group, dtype):
    """Seven tasks in shards of two; L2F with all that it has to sum over ranks."""
    settings = MetaRLSettings(
        tasks_per_batch=7,
        episodes_per_task=3,
        horizon=5,
        policy=PolicyNetwork((8,), "tanh", 0.5),
        attenuation=Attenuation(initial_gamma=0.9),
        inner=InnerLoop(learn_inner_lr=True),
        region=TrustRegion(fisher_fraction=1.0),
    )
    env = Plane if dtype == torch.float64 else "metarl_l2f/Navigation2D-v0"
    return MetaRL(env, settings, {} if env is Plane else {"horizon": 5}, group=group, tasks_per_shard=2)


def supervised(group, dtype):
    curves = Curves()
    problem = SinusoidProblem(curves, curves, 5, 5, (8,))
    settings = SupervisedSettings(tasks_per_batch=7, validation_tasks=5, diagnostics_every=2)
    return MetaSupervised(problem, settings, group=group)


def classification(group, dtype):
    """Three classes a task, of noise: what is learned does not matter."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 1, 16, 16), generator=random, dtype=torch.uint8)
    images = Images(pixels, torch.arange(6).repeat_interleave(5), tuple("abcdef"))
    data = {"train": images, "val": images, "test": images}
    problem = ImageProblem(data, Shape(3, 1, 2), Classifier(filters=4), 1)
    settings = SupervisedSettings(tasks_per_batch=5, validation_tasks=3, diagnostics_every=2)
    return MetaSupervised(problem, settings, group=group)


def latent(group, dtype):
    """LEO + L2F on embeddings of noise."""
    vectors = torch.nn.functional.normalize(torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    data = Embeddings(vectors, torch.arange(6).repeat_interleave(5), tuple("abcdef"))
    settings = LEOSettings(
        method="l2f", ways=3, shots=1, queries=2, latent_size=4, tasks_per_batch=5, validation_tasks=3
    )
    return LEOExperiment(dict.fromkeys(SPLITS, data), settings, group=group)


def trained(build, dtype, group):
    """Metrics without times, and the parameters, after some iterations and a validation."""
    torch.set_default_dtype(dtype)
    experiment = build(group, dtype)
    with contextlib.ExitStack() as stack:
        if hasattr(experiment, "close"):
            stack.callback(experiment.close)
        lines = [experiment.iterate(number) for number in range(1, ITERATIONS + 1)]
        lines.append(experiment.validate(ITERATIONS))
    metrics = [{tag: value for tag, value in line.items() if not tag.startswith("time/")} for line in lines]
    learner = experiment.model if isinstance(experiment, LEOExperiment) else experiment.learner
    return metrics, parameters_to_vector(learner.parameters()).detach().numpy()


def of_one_process(build, dtype):
    try:
        return trained(build, dtype, None)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_of_reinforcement_learning_equal_one_process_to_the_last_digit(dtype, size):
    metrics, parameters = of_one_process(meta_rl, dtype)
    for found_metrics, found in by_ranks(partial(trained, meta_rl, dtype), size):
        np.testing.assert_array_equal(found, parameters)
        for line, expected in zip(found_metrics, metrics, strict=True):
            # The conflict is a sum over tasks in float64, whose order depends on the ranks; it moves no parameter.
            conflict = {tag: value for tag, value in expected.items() if tag.startswith("conflict/")}
            assert line == expected | {tag: pytest.approx(value, rel=1e-12) for tag, value in conflict.items()}


@pytest.mark.parametrize(("build", "sizes"), [(supervised, (2, 3, 4)), (classification, (3,)), (latent, (3,))])
def test_ranks_of_supervised_learning_equal_each_other_and_one_process_up_to_rounding(build, sizes):
    metrics, parameters = of_one_process(build, torch.float32)
    for size in sizes:
        ranks = by_ranks(partial(trained, build, torch.float32), size)
        for found_metrics, found in ranks:
            np.testing.assert_array_equal(found, ranks[0][1])
            np.testing.assert_allclose(found, parameters, rtol=0, atol=1e-5)
            for line, expected in zip(found_metrics, metrics, strict=True):
                assert line == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("build", [meta_rl, supervised, classification, latent])
def test_surplus_ranks_are_named_by_rank_0_alone(build, caplog):
    experiments = [build(Fake(rank, 9), torch.float32) for rank in range(2)]
    assert [re.sub(r"\d+", "n", record.getMessage())[:34] for record in caplog.records] == [
        "n of n ranks have nothing to do: t"
    ]
    tasks, shards = (7, 4) if build is meta_rl else (7, 7) if build is supervised else (5, 5)
    assert f"{9 - shards} of 9 ranks" in caplog.text and f"the {tasks} tasks of a meta-batch" in caplog.text
    for experiment in experiments:
        getattr(experiment, "close", lambda: None)()
