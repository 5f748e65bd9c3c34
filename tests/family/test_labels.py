"""The methods that have a meaning where labels are learned from: gradients, and what they refuse."""

import dataclasses

import numpy as np
import pytest
import torch

from metarl_l2f import MetaSupervised, SupervisedSettings
from metarl_l2f.core.parameters import contexts
from metarl_l2f.networks.mlp import MLP
from metarl_l2f.parallel.trees import rows_of
from metarl_l2f.rl.outer import flat
from metarl_l2f.supervised.classification import Classifier, ImageProblem, in_inner_loop
from metarl_l2f.supervised.episodes import SPLITS, Images, Shape, Task
from metarl_l2f.supervised.meta_loss import meta_loss
from metarl_l2f.supervised.settings import WITH_LABELS
from metarl_l2f.supervised.sinusoid import Curves, SinusoidProblem

from .test_gradients import Held, assert_slopes

EVERY = [name + end for name in WITH_LABELS for end in ("", "+l2f") if name != "l2f-paper" or not end]


class Smooth(SinusoidProblem):
    """With tanh, for finite differences across a kink say nothing."""

    def network(self, generator):
        return MLP([1, *self.hidden_sizes, 1], "tanh", generator, self.context_size)


def experiment(method):
    settings = SupervisedSettings.for_problem("sinusoid", method)
    inner = dataclasses.replace(settings.inner, inner_steps=2, inner_lr=0.1)
    settings = dataclasses.replace(settings, inner=inner, tasks_per_batch=3)
    problem = Smooth(Curves(), Curves(), 4, 3, (5,), settings.context_size)
    run = MetaSupervised(problem, settings, task_chunk=2)
    run.learner.double()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in run.learner.network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype))
    tasks = problem.sample("train", np.random.default_rng(0), 3)
    return run, Task(*(values.double() for values in tasks))


@pytest.mark.parametrize("method", EVERY)
def test_the_meta_gradient(method, monkeypatch):
    run, tasks = experiment(method)
    run.learner.first_order = False
    _, gradient = run.meta_loss.gradient(tasks, (0.4, 0.6))
    held = Held(monkeypatch)

    def loop():
        held.calls = 0
        with torch.no_grad():
            losses = [
                meta_loss(run.learner, run.problem, rows_of(tasks, number), (0.4, 0.6)).loss for number in range(3)
            ]
        return float(sum(losses)) / 3

    assert_slopes(run.learner, flat(gradient), loop)
    run.close()


def test_cavia_learns_a_context_per_curve_of_the_size_that_it_was_given():
    run, tasks = experiment("cavia")
    assert run.learner.rule.names == ["context"] and run.learner.theta["context"].shape == (5,)
    assert not contexts(run.learner.network).keys() & set(run.learner.learned)
    before, _, _ = run.meta_loss.evaluate(tasks, 2)
    assert not torch.equal(before[:, 0], before[:, 2])
    run.close()


def images_of(method):
    settings = dataclasses.replace(SupervisedSettings.for_problem("image_classification", method), tasks_per_batch=2)
    pixels = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(4).repeat_interleave(2), tuple("abcd"))
    problem = ImageProblem(
        dict.fromkeys(SPLITS, images), Shape(2, 1, 1), Classifier(filters=4), 1, context_size=settings.context_size
    )
    return MetaSupervised(problem, settings, batching="loop", task_chunk=1, adapted=in_inner_loop)


def test_on_images_cavias_context_modulates_features_and_does_nothing_where_no_feature_reads_it():
    run = images_of("cavia")
    network, tasks = run.learner.network, run.problem.sample("train", np.random.default_rng(0), 3)
    assert run.learner.rule.names == ["blocks.2.film.context"]
    assert run.learner.theta["blocks.2.film.context"].shape == (100,)
    assert "blocks.2.film.context" not in run.learner.learned
    run.iterate(1)
    assert not network.blocks[2].film.context.any()  # It is a task's own, and a new one starts at 0.
    losses = run.meta_loss.evaluate(tasks, 2)[1]
    assert not torch.equal(losses[:, 0], losses[:, 1])
    with torch.no_grad():
        network.blocks[2].film.linear.weight.zero_()
    losses = run.meta_loss.evaluate(tasks, 2)[1]
    assert torch.equal(losses[:, 0], losses[:, 1]) and torch.equal(losses[:, 0], losses[:, 2])
    run.close()


def test_on_images_anil_moves_the_head_alone():
    anil = images_of("anil")
    assert anil.learner.rule.names == ["head.weight", "head.bias"]
    anil.close()


def test_a_context_that_nothing_adapts_or_that_is_missing_is_refused():
    with pytest.raises(ValueError, match=r"go together, got 'context' and 0; method 'cavia' sets both$"):
        dataclasses.replace(SupervisedSettings.for_problem("image_classification", "cavia"), context_size=0)
