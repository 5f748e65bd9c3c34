"""Few-shot image classification as `MetaSupervised` trains it: N classes from K images each (Sec. 4.1 of L2F)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choices, check_count
from ..core.parameters import Params
from ..networks.images import Conv4, Pooling, ResNet12, is_norm
from .data.augmentation import distort
from .episodes import Images, Shape, Split, Task, draw_episodes

Backbone = Literal["conv4", "resnet12"]
Statistics = Literal["batch", "running"]
ImageNetwork = Conv4 | ResNet12


class Embedding(Protocol):
    """A trained network that embeds images, such as a prototypical network (prototypes.py)."""

    @property
    def embedding_size(self) -> int:
        """E, the length of an embedding."""

    def embed(self, images: Tensor) -> Tensor:
        """Map images (n, C, H, W) in [0, 1] to embeddings (n, E)."""


@dataclass(frozen=True)
class Classifier:
    """Options of the network that classifies.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    backbone: Backbone = "conv4"
    """The architecture, Conv4 or ResNet12."""
    filters: int = 64
    """Filters of each of Conv4's convolutions; ResNet12 has 1, 2, 4 and 8 times as many in its four blocks."""
    pooling: Pooling = "stride"
    """How Conv4 shrinks images: by `max` pooling (official code, 48 filters), or by convolutions of `stride` 2 (MAML's
    network for 28×28 images)."""
    per_step_norm: bool = False
    """Give every inner step its own scales and shifts of the normalisation (MAML++), instead of one set for all."""
    statistics: Statistics = "batch"
    """The means and variances that normalise query images when a model is judged: those of the `batch`, whose images
    are then classified together (official codes), or `running` ones of each inner step, which training collects."""

    def __post_init__(self) -> None:
        check_choices(self, backbone=Backbone, statistics=Statistics, pooling=Pooling)
        check_count("filters", self.filters)

    def build(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        inner_steps: int,
        generator: torch.Generator | None = None,
        context_size: int = 0,
    ) -> ImageNetwork:
        """Build a new network.

        Args:
            image_shape: (C, H, W) of the images.
            classes: the number of classes.
            inner_steps: the number of trained inner steps, each of which may have a normalisation of its own.
            generator: the source of the initial weights.
            context_size: the length of a task's context (CAVIA); 0 for none.
        Raises:
            ValueError: the images are too small for the network, or a ResNet12 is to read a context.
        """
        norm_steps = inner_steps + 1 if self.per_step_norm else 1
        tracked_steps = inner_steps + 1 if self.statistics == "running" else 0
        if self.backbone == "resnet12" and context_size:
            raise ValueError(
                f"backbone='resnet12' has no place where a context enters, got context_size={context_size}; choose "
                "backbone='conv4' for cavia, or another method"
            )
        if self.backbone == "resnet12":
            widths = tuple(self.filters * factor for factor in (1, 2, 4, 8))
            return ResNet12(image_shape, classes, widths, norm_steps, generator, tracked_steps)
        return Conv4(
            image_shape, classes, self.filters, self.pooling, norm_steps, generator, tracked_steps, context_size
        )


class ImageProblem:
    """N-way K-shot classification of images.

    Args:
        data: the images of each split.
        shape: the numbers of classes and images of an episode.
        classifier: the options of the network.
        inner_steps: the number of trained inner steps, each of which may have a normalisation of its own.
        prototypical: a trained prototypical network, or None. A task's prototype is the mean of its classes'
            prototypes, which is the mean of its support embeddings (Table 5).
        distorted: whether the images of training tasks are distorted (`augmentation.distort`).
        context_size: the length of a task's context (CAVIA), which modulates features of Conv4; 0 for none.
    Raises:
        ValueError: a split has too few classes, or too few images of a class.
    """

    score_name = "accuracy"
    score_digits = 4
    higher_is_better = True
    captions: Mapping[str, str] = {
        "episode": "One held-out episode: the images that were learned from, and how new ones were classified."
    }
    slow_to_draw = True

    def __init__(
        self,
        data: Mapping[Split, Images],
        shape: Shape,
        classifier: Classifier,
        inner_steps: int,
        prototypical: Embedding | None = None,
        distorted: bool = False,
        context_size: int = 0,
    ) -> None:
        for split, images in data.items():
            shape.check(images, split)
        self.data, self.shape, self.classifier, self.inner_steps = data, shape, classifier, inner_steps
        self.prototypical, self.distorted, self.context_size = prototypical, distorted, context_size
        self.embedding_size = None if prototypical is None else prototypical.embedding_size

    def network(self, generator: torch.Generator) -> ImageNetwork:
        shape, ways = self.data["train"].shape, self.shape.ways
        return self.classifier.build(shape, ways, self.inner_steps, generator, self.context_size)

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
        """Compute the mean cross-entropy of logits (n, classes) and class numbers (n,)."""
        return F.cross_entropy(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the accuracy, the fraction of images classified correctly."""
        return (outputs.argmax(-1) == targets).to(outputs.dtype).mean()


def in_inner_loop(name: str) -> bool:
    """Tell whether a parameter is adapted and attenuated: all but those of the normalisation are (official code)."""
    return not is_norm(name)


def is_head(name: str) -> bool:
    """Tell whether a parameter belongs to the last layer, the only one that ANIL adapts (Raghu et al. 2020)."""
    return name.startswith("head.")
