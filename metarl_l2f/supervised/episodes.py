"""Few-shot tasks: a support set to adapt to and a query set to be judged on; N-way K-shot episodes of images."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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
    def counts(self) -> Tensor:
        """(classes,), images of each class."""
        return torch.bincount(self.labels)
