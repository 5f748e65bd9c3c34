"""Prototypical networks, by hand, and γ that is conditioned on their prototypes."""

import numpy as np
import pytest
import torch

from metarl_l2f.core.attenuation import Attenuation
from metarl_l2f.supervised.classification import Classifier, in_inner_loop
from metarl_l2f.supervised.episodes import Shape
from metarl_l2f.supervised.experiment import MetaSupervised
from metarl_l2f.supervised.prototypes import (
    PrototypeSettings,
    PrototypicalNetwork,
    class_prototypes,
    distance_logits,
)
from metarl_l2f.supervised.settings import SupervisedSettings
from metarl_l2f.training import checkpoint
from metarl_l2f.training.checkpoint import CheckpointError
from metarl_l2f.training.loop import train

from .patterns import DATA, SMALL, problem


def test_prototypes_and_distances_by_hand():
    vectors = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [0.0, 6.0]])
    prototypes = class_prototypes(vectors, 2)
    torch.testing.assert_close(prototypes, torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    # From (1, 2): squared distances 4 and 1 + 9
    torch.testing.assert_close(distance_logits(torch.tensor([[1.0, 2.0]]), prototypes), torch.tensor([[-4.0, -10.0]]))


def settings(**changes):
    return PrototypeSettings(
        **({"ways": 4, "queries": 2, "classifier": SMALL, "validation_ways": 3, "validation_tasks": 10} | changes)
    )


def test_a_prototypical_network_that_is_resumed_is_the_unbroken_one(tmp_path):
    how = {
        "config": {},
        "validate_every": 2,
        "validation_key": "validation/accuracy/step_0",
        "progress_key": "accuracy/step_0",
    }
    for name, iterations, resume in (("unbroken", 4, False), ("broken", 2, False), ("broken", 4, True)):
        network = PrototypicalNetwork(DATA, settings())
        train(network, tmp_path / name, iterations=iterations, resume=resume, **how)
    states = [checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("unbroken", "broken")]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_tasks_prototype_is_the_mean_of_its_classes():
    network = PrototypicalNetwork(DATA, settings())
    solved = problem(Shape(3, 2, 2), prototypical=network)
    task = solved.sample("train", np.random.default_rng(0), 2)
    by_class = class_prototypes(network.embed(task.support[1]), 3)
    torch.testing.assert_close(task.prototype[1], by_class.mean(0))
    assert solved.embedding_size == network.embedding_size == task.prototype.shape[1] == 4


def test_gamma_read_off_prototypes_differs_between_tasks():
    network = PrototypicalNetwork(DATA, settings())
    run = MetaSupervised(
        problem(prototypical=network),
        SupervisedSettings(tasks_per_batch=4, attenuation=Attenuation(conditioning="prototype")),
        batching="loop",
        adapted=in_inner_loop,
        attenuated=in_inner_loop,
    )
    tasks = run.problem.sample("train", np.random.default_rng(0), 4)
    adaptation, gradient = run.meta_loss.gradient(tasks, (1.0,))
    assert adaptation.gamma.std(0).max() > 1e-4
    assert all(g.isfinite().all() for g in gradient)


def test_another_networks_state_is_refused():
    other = PrototypicalNetwork(DATA, settings(classifier=Classifier(filters=5)))
    with pytest.raises(CheckpointError, match="the checkpoint is of another network"):
        PrototypicalNetwork(DATA, settings()).load_state_dict(other.state_dict())
