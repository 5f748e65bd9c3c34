"""Few-shot tasks: a support set to adapt to and a query set to be judged on; N-way K-shot episodes of images."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Task(NamedTuple):
    """One supervised task D; stacked over tasks, every tensor has a leading axis (N, ...)."""

    support: Tensor
    """(S, ...), inputs the inner loop adapts to."""
    support_targets: Tensor
    """(S, ...), values (regression) or class numbers (classification)."""
    query: Tensor
    """(Q, ...), inputs the adapted network is judged on."""
    query_targets: Tensor
    """(Q, ...)"""
    prototype: Tensor
    """(E,), an embedding of the task that γ may be conditioned on (Table 5); E = 0 where the domain has none."""


@dataclass(frozen=True)
class Images:
    """One split of an image data set, all in memory: images of one size, in the order of their classes.

    Raises:
        ValueError: shapes, labels and names do not fit each other.
    """

    pixels: Tensor
    """(n, C, H, W) uint8, C = 1 or 3."""
    labels: Tensor
    """(n,) int64, ascending class numbers from 0."""
    classes: tuple[str, ...]
    """The classes' names, each once."""
    where: str = ""
    """Where they come from, for messages."""

    def __post_init__(self) -> None:
        counted = torch.bincount(self.labels, minlength=len(self.classes))
        if self.pixels.ndim != 4 or self.pixels.dtype != torch.uint8 or len(self.pixels) != len(self.labels):
            raise ValueError(
                f"pixels must be bytes (n, C, H, W), one image per label, got {self.pixels.dtype} "
                f"{tuple(self.pixels.shape)} for {len(self.labels)} labels"
            )
        if len(counted) != len(self.classes) or not counted.all() or (self.labels.diff() < 0).any():
            raise ValueError("labels must ascend from 0, and every class must have an image")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must have different names")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def counts(self) -> Tensor:
        """(classes,), images of each class."""
        return torch.bincount(self.labels)


class Labelled(Protocol):
    """Rows in the order of their classes: images, or embeddings of them."""

    @property
    def where(self) -> str:
        """Where they come from, for messages."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names."""

    @property
    def counts(self) -> Tensor:
        """(classes,), rows of each class."""


@dataclass(frozen=True)
class Shape:
    """What an N-way K-shot episode consists of.

    Raises:
        ValueError: a number is out of range.
    """

    ways: int = 5
    """Classes N per episode."""
    shots: int = 1
    """Support images K per class."""
    queries: int = 15
    """Query images per class."""

    def __post_init__(self) -> None:
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")

    def check(self, data: Labelled, split: str) -> None:
        """Refuse a split that such episodes cannot be drawn from.

        Raises:
            ValueError: it has too few classes, or too few rows of a class.
        """
        counts, needed = data.counts, self.shots + self.queries
        part = f"{split} of {data.where}" if data.where else split
        if len(counts) < self.ways:
            raise ValueError(
                f"{self.ways}-way episodes need {self.ways} classes, but {part} has {len(counts)}; lower ways"
            )
        if int(counts.min()) < needed:
            fewest = int(counts.argmin())
            raise ValueError(
                f"{self.shots} shots and {self.queries} queries need {needed} images of every class, but "
                f"{data.classes[fewest]!r} in {part} has {int(counts[fewest])}; lower shots or queries"
            )

    def targets(self, number: int) -> tuple[Tensor, Tensor]:
        """Support and query targets of so many episodes, each class's number within its episode, class by class."""
        support, query = (torch.arange(self.ways).repeat_interleave(each) for each in (self.shots, self.queries))
        return support.expand(number, -1), query.expand(number, -1)


def draw_rows(data: Labelled, shape: Shape, generator: np.random.Generator, number: int) -> tuple[Tensor, Tensor]:
    """Which rows episodes consist of: classes without repetition, and of each class rows without repetition.

    Args:
        data: the split.
        shape: of an episode.
        generator: draws everything, episode after episode.
        number: of episodes.
    Returns:
        Rows of the support sets (number, N·K) and of the query sets (number, N·queries), class by class.
    """
    counts = data.counts.cpu().numpy()
    first = counts.cumsum() - counts
    rows = np.empty((number, shape.ways, shape.shots + shape.queries), np.int64)
    for episode in rows:
        for row, chosen in zip(episode, generator.choice(len(counts), shape.ways, replace=False), strict=True):
            row[:] = first[chosen] + generator.choice(counts[chosen], len(row), replace=False)
    drawn = torch.from_numpy(rows)
    return drawn[:, :, : shape.shots].flatten(1), drawn[:, :, shape.shots :].flatten(1)


def draw_episodes(images: Images, shape: Shape, generator: np.random.Generator, number: int) -> Task:
    """N-way K-shot episodes of images.

    Args:
        images: the split.
        shape: of an episode.
        generator: draws everything.
        number: of episodes.
    Returns:
        Stacked over episodes: images (number, N·K or N·queries, C, H, W) float32 in [0, 1], class by class; targets
        int64, each class's number within the episode.
    """
    (support, query), targets = draw_rows(images, shape, generator, number), shape.targets(number)
    shown = [images.pixels[rows].float() / 255 for rows in (support, query)]
    return Task(shown[0], targets[0], shown[1], targets[1], torch.empty(number, 0))
