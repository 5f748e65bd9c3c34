"""Few-shot image classification as `MetaSupervised` trains it: N classes from K images each (Sec. 4.1 of L2F)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Params
from ..networks.images import Conv4, Pooling, ResNet12, is_norm
from .data.augmentation import distort
from .episodes import Images, Shape, Split, Task, draw_episodes

Backbone = Literal["conv4", "resnet12"]
Statistics = Literal["batch", "running"]
ImageNetwork = Conv4 | ResNet12


class Embedding(Protocol):
    """What a prototypical network offers (prototypes.py)."""

    @property
    def embedding_size(self) -> int:
        """E."""

    def embed(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) in [0, 1] → embeddings (n, E)."""


@dataclass(frozen=True)
class Classifier:
    """The network that classifies."""

    backbone: Backbone = "conv4"
    """Conv4 or ResNet12."""
    filters: int = 64
    """Filters of each of Conv4's convolutions; ResNet12 has them 1, 2, 4 and 8 times as many in its four blocks."""
    pooling: Pooling = "stride"
    """Of Conv4: `max` pooling (official code, 48 filters), or convolutions of `stride` 2 (MAML's for 28×28 images)."""
    per_step_norm: bool = False
    """Give every inner step its own scales and shifts of the normalisation (MAML++), instead of one for all."""
    statistics: Statistics = "batch"
    """What normalises the query images that a model is judged on: the means and variances of that `batch`, which are
    then classified together (official codes), or `running` ones, each inner step's own, that training collects."""

    def __post_init__(self) -> None:
        for name, accepted in (("backbone", Backbone), ("statistics", Statistics)):
            if getattr(self, name) not in get_args(accepted):
                raise ValueError(f"{name} must be one of {get_args(accepted)}, got {getattr(self, name)!r}")

    def build(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        inner_steps: int,
        generator: torch.Generator | None = None,
    ) -> ImageNetwork:
        """A new network for images (C, H, W)."""
        norm_steps = inner_steps + 1 if self.per_step_norm else 1
        tracked_steps = inner_steps + 1 if self.statistics == "running" else 0
        if self.backbone == "resnet12":
            widths = tuple(self.filters * factor for factor in (1, 2, 4, 8))
            return ResNet12(image_shape, classes, widths, norm_steps, generator, tracked_steps)
        return Conv4(image_shape, classes, self.filters, self.pooling, norm_steps, generator, tracked_steps)


class ImageProblem:
    """N-way K-shot classification of images.

    Args:
        data: images of each split.
        shape: of an episode.
        classifier: the network.
        inner_steps: trained inner steps, each of which may have a normalisation of its own.
        prototypical: a trained prototypical network; a task's prototype is the mean of its classes' prototypes, that is
            of its support embeddings (Table 5).
        distorted: distort the images of training tasks (`augmentation.distort`).
    Raises:
        ValueError: a split has too few classes, or too few images of a class.
    """

    score_name = "accuracy"
    higher_is_better = True
    slow_to_draw = True

    def __init__(
        self,
        data: Mapping[Split, Images],
        shape: Shape,
        classifier: Classifier,
        inner_steps: int,
        prototypical: Embedding | None = None,
        distorted: bool = False,
    ) -> None:
        for split, images in data.items():
            shape.check(images, split)
        self.data, self.shape, self.classifier, self.inner_steps = data, shape, classifier, inner_steps
        self.prototypical, self.distorted = prototypical, distorted
        self.embedding_size = None if prototypical is None else prototypical.embedding_size

    def network(self, generator: torch.Generator) -> ImageNetwork:
        return self.classifier.build(self.data["train"].shape, self.shape.ways, self.inner_steps, generator)

    def sample(self, split: Split, generator: np.random.Generator, number: int) -> Task:
        task = draw_episodes(self.data[split], self.shape, generator, number)
        if self.distorted and split == "train":
            support, query = (
                distort(shown.flatten(0, 1), generator).view_as(shown) for shown in (task.support, task.query)
            )
            task = task._replace(support=support, query=query)
        if self.prototypical is None:
            return task
        return task._replace(prototype=torch.stack([self.prototypical.embed(one).mean(0) for one in task.support]))

    def outputs(self, network: Any, params: Params, inputs: Tensor, step: int) -> Tensor:
        return network(params, inputs, step)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Accuracy: the part of images whose likeliest class is theirs."""
        return (outputs.argmax(-1) == targets).to(outputs.dtype).mean()


def in_inner_loop(name: str) -> bool:
    """What the inner loop moves, and what is attenuated: everything but the normalisation (official code)."""
    return not is_norm(name)


def is_head(name: str) -> bool:
    """The last layer, which is all that ANIL adapts (Raghu et al. 2020)."""
    return name.startswith("head.")
