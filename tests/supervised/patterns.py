"""Images of a few classes, each a pattern of its own, and a small problem that classifies them."""

import numpy as np
import torch

from metarl_l2f.core.learner import meta_learner
from metarl_l2f.core.update_rules import InnerLoop
from metarl_l2f.networks.images import Conv4
from metarl_l2f.supervised.classification import Classifier, ImageProblem, in_inner_loop
from metarl_l2f.supervised.episodes import Images, Shape
from metarl_l2f.supervised.meta_loss import MetaLoss


def images(classes=6, each=5, size=16, channels=1, seed=0):
    """Every class a pattern of its own, every image a noisy copy; the first pixel tells class and image."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.randint(0, 200, (classes, 1, channels, size, size), generator=random)
    noise = torch.randint(0, 50, (classes, each, channels, size, size), generator=random)
    pixels = (patterns + noise).to(torch.uint8).flatten(0, 1)
    pixels[:, 0, 0, 0] = torch.arange(classes * each, dtype=torch.uint8)
    labels = torch.arange(classes).repeat_interleave(each)
    return Images(pixels, labels, tuple(f"class {i}" for i in range(classes)))


DATA = {"train": images(), "val": images(seed=1), "test": images(seed=2)}
SMALL = Classifier(filters=4)


def problem(shape=None, classifier=SMALL, **arguments):
    return ImageProblem(DATA, shape or Shape(3, 1, 2), classifier, 2, **arguments)


def params_of(network):
    return dict(network.named_parameters())


def build(attenuation=None, inner=None, context_size=0, **how):
    solved = problem()
    learner = meta_learner(
        Conv4((1, 16, 16), 3, 3, "max", 3, torch.Generator().manual_seed(0), context_size=context_size),
        attenuation,
        inner or InnerLoop(2, 0.1),
        adapted=in_inner_loop,
        attenuated=in_inner_loop,
        generator=torch.Generator().manual_seed(1),
    ).double()
    tasks = solved.sample("train", np.random.default_rng(0), 3)
    tasks = tasks._replace(support=tasks.support.double(), query=tasks.query.double())
    return MetaLoss(learner, solved, **({"batching": "loop", "task_chunk": 1} | how)), tasks
