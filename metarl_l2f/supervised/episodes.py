"""Few-shot tasks, each with a support set to adapt to and a query set to judge by; N-way K-shot episodes of images."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from ..checks import check_count, check_counts

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Task(NamedTuple):
    """One supervised task D; stacked over tasks, every tensor has a leading axis (N, ...)."""

    support: Tensor
    """(S, ...), the inputs that the inner loop adapts to."""
    support_targets: Tensor
    """(S, ...), their values (regression) or class numbers (classification)."""
    query: Tensor
    """(Q, ...), the inputs that the adapted network is judged on."""
    query_targets: Tensor
    """(Q, ...), their values or class numbers."""
    prototype: Tensor
    """(E,), an embedding of the task that γ may be conditioned on (Table 5); E = 0 where the problem has none."""


@dataclass(frozen=True)
class Images:
    """One split of an image data set, whole in memory: images of one size, in the order of their classes.

    Raises:
        ValueError: shapes, labels and names do not fit each other.
    """

    pixels: Tensor
    """(n, C, H, W) uint8, C = 1 or 3."""
    labels: Tensor
    """(n,) int64, ascending class numbers from 0."""
    classes: tuple[str, ...]
    """The names of the classes, all different."""
    where: str = ""
    """The source of the images, for messages."""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != torch.uint8 or len(self.pixels) != len(self.labels):
            raise ValueError(
                f"pixels must be bytes (n, C, H, W), one image per label, got {self.pixels.dtype} "
                f"{tuple(self.pixels.shape)} for {len(self.labels)} labels"
            )
        check_labels(self.labels, self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def counts(self) -> Tensor:
        """(classes,), the number of images of each class."""
        return torch.bincount(self.labels)


class Labelled(Protocol):
    """Rows in the order of their classes: images, or embeddings of images."""

    @property
    def where(self) -> str:
        """The source of the rows, for messages."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""

    @property
    def counts(self) -> Tensor:
        """(classes,), the number of rows of each class."""


def check_labels(labels: Tensor, classes: tuple[str, ...]) -> None:
    """Refuse labels that do not ascend from 0 through all classes, and names that are not all different.

    Args:
        labels: (n,) int64, the class number of each row.
        classes: the names of the classes.
    Raises:
        ValueError: the labels or the names are not such.
    """
    counted = torch.bincount(labels, minlength=len(classes))
    if len(counted) != len(classes) or not counted.all() or (labels.diff() < 0).any():
        raise ValueError(
            f"labels must ascend from 0, and every class must have a row, got {len(labels)} labels of "
            f"{int(counted.count_nonzero())} classes for {len(classes)} names; sort the rows by class"
        )
    if repeated := [name for name, times in Counter(classes).items() if times > 1]:
        raise ValueError(f"classes must have different names, got {repeated[0]!r} twice or more")


@dataclass(frozen=True)
class Shape:
    """The numbers of classes and images of an N-way K-shot episode.

    Raises:
        ValueError: a number is out of range.
    """

    ways: int = 5
    """Classes N per episode, 2 or more."""
    shots: int = 1
    """Support images K per class."""
    queries: int = 15
    """Query images per class."""

    def __post_init__(self) -> None:
        check_count("ways", self.ways, 2)
        check_counts(self, 1, "shots", "queries")

    def check(self, data: Labelled, split: str) -> None:
        """Refuse a split that is too small for such episodes.

        Args:
            data: the split.
            split: its name, for the error.
        Raises:
            ValueError: the split has too few classes, or too few rows of a class.
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
        """Build support and query targets: each image's class number within its episode, class by class.

        Args:
            number: the number of episodes.
        Returns:
            Targets (number, N·K) and (number, N·queries), int64.
        """
        support, query = (torch.arange(self.ways).repeat_interleave(each) for each in (self.shots, self.queries))
        return support.expand(number, -1), query.expand(number, -1)


def draw_rows(data: Labelled, shape: Shape, generator: np.random.Generator, number: int) -> tuple[Tensor, Tensor]:
    """Draw the rows of episodes: different classes for each episode, and different rows of each class.

    Args:
        data: the split.
        shape: the numbers of classes and images of an episode.
        generator: the source of all random numbers, read episode after episode.
        number: the number of episodes.
    Returns:
        Row numbers of the support sets (number, N·K) and of the query sets (number, N·queries), class by class.
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
    """Draw N-way K-shot episodes of images.

    Args:
        images: the split.
        shape: the numbers of classes and images of an episode.
        generator: the source of all random numbers.
        number: the number of episodes.
    Returns:
        Tasks stacked over episodes: images (number, N·K or N·queries, C, H, W) float32 in [0, 1], class by class, and
        targets int64, each class's number within its episode.
    """
    (support, query), targets = draw_rows(images, shape, generator, number), shape.targets(number)
    shown = [images.pixels[rows].float() / 255 for rows in (support, query)]
    return Task(shown[0], targets[0], shown[1], targets[1], torch.empty(number, 0))
