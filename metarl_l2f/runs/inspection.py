"""Looks at a run in training: diagnostics, histograms of γ and pictures for TensorBoard, and warnings in the log."""

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..inspection import Inspection, collapse_warnings, gap_warning
from ..methods import label_of
from ..parallel.ranks import Group
from ..reports.diagnostics import by_layer, gamma_heatmap
from ..training.metrics import Shown
from .options import RunOptions

logger = logging.getLogger(__name__)


def inspector(options: RunOptions, experiment: Any, group: Group) -> Callable[[Mapping[str, float]], Shown]:
    """A function that looks at a run in training through its validation tasks.

    Every process that shares the run calls it with the metrics of an iteration; what is shown comes back on the first.

    Args:
        options: the run's options.
        experiment: in training.
        group: the processes that share it.
    """
    warn, tag = warns_once(), options.judged().tag

    def inspect(metrics: Mapping[str, float]) -> Shown:
        look = options.look_at_validation(experiment)
        found = look.inspection()
        if not group.first:
            return Shown({}, {}, {})
        warn(collapse_warnings(experiment.learner, look.gamma()))
        if ends := look.ends(metrics):
            warn([gap_warning(metrics[tag], *ends)])
        pictures = {**look.pictures(), **pictures_of(found, label_of(options.method))}
        return Shown(found.metrics(), histograms_of(found.gamma), pictures)

    return inspect


def warns_once() -> Callable[[Iterable[str | None]], None]:
    """A function that logs warnings, each of them only once."""
    told: set[str] = set()

    def warn(sentences: Iterable[str | None]) -> None:
        for sentence in filter(None, sentences):
            key = re.sub(r"[0-9.]+", "", sentence)  # Numbers move on, the warning stays the same.
            if key not in told:
                logger.warning(sentence)
            told.add(key)

    return warn


def histograms_of(gamma: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """γ of every tensor over tasks and entries, by tag."""
    return {f"gamma/{name}": values.flatten().numpy() for name, values in gamma.items()}


def pictures_of(found: Inspection, label: str) -> dict[str, Figure]:
    """Pictures of how much the tasks of a run disagree by layer, and of γ by tensor and task."""
    conflict = {label: [{layer: float(angles.mean()) for layer, angles in found.conflict.items()}]}
    unrelated = math.acos(1 / math.sqrt(len(found.conflict["network"])))
    pictures = {"conflict": by_layer(conflict, "conflict, rad", reference=unrelated)}
    return pictures | ({"gamma": gamma_heatmap(found.gamma)} if found.gamma else {})
