"""A small LEO for tests: embeddings of a few classes, settings, and one meta-batch with its noise."""

import numpy as np
import torch
from torch.nn import functional as F

from metarl_l2f.supervised.episodes import SPLITS
from metarl_l2f.supervised.leo.embeddings import Embeddings, draw_tasks
from metarl_l2f.supervised.leo.equations import Noise
from metarl_l2f.supervised.leo.experiment import LEO, LEOSettings, draw_noise

SIZE = 5
TINY = LEOSettings(
    ways=3,
    shots=2,
    queries=2,
    tasks_per_batch=4,
    validation_tasks=6,
    latent_size=4,
    inner_steps=2,
    finetuning_steps=2,
    finetuning_lr=0.1,
    dropout=0.25,
    kl=0.3,
    encoder_penalty=0.2,
    orthogonality=0.1,
    l2=0.01,
)
METHODS = ("leo", "l2f")


def random(seed=0):
    return np.random.default_rng(seed)


def data(classes=6, rows=8, size=SIZE, spread=0.3, seed=0):
    """Embeddings of classes that lie apart."""
    centres = random(seed).standard_normal((classes, 1, size))
    vectors = torch.from_numpy(centres + spread * random(seed + 1).standard_normal((classes, rows, size))).float()
    labels = torch.arange(classes).repeat_interleave(rows)
    return Embeddings(F.normalize(vectors.flatten(0, 1), dim=1), labels, tuple(f"class {i}" for i in range(classes)))


def splits(**changes):
    return {split: data(seed=10 * i, **changes) for i, split in enumerate(SPLITS)}


def instance(settings=TINY):
    """A model, a meta-batch and its noise, in float64."""
    model = LEO(SIZE, settings).double()
    tasks = draw_tasks(data(), settings.shape, random(2), settings.tasks_per_batch)
    noise = draw_noise(settings, SIZE, random(3))
    doubled = type(tasks)(*(part.double() if part.is_floating_point() else part for part in tasks))
    return model, doubled, Noise(*(part.double() for part in noise))


def first(stacked):
    """The first task of a stack."""
    return type(stacked)(*(part[0] for part in stacked))
