"""Measurements of a learner as metrics by tag (`docs/metrics.md`), and warnings."""

from typing import NamedTuple

from torch import Tensor

from .core.learner import MetaLearner
from .core.parameters import Params
from .diagnostics import Landscape


def gamma_statistics(learner: MetaLearner, gamma: Tensor) -> dict[str, float]:
    """The fraction of each tensor that is kept, and how much it differs between tasks.

    Args:
        learner: the learner whose γ it is.
        gamma: (N, L), one row per task; (N, 0) for MAML.
    Returns:
        By tensor, the mean over tasks (and over the tensor's entries of γ), and the mean standard deviation over tasks;
        empty for MAML.
    """
    statistics = {}
    for name, columns in learner.gammas_by_tensor(gamma).items():
        statistics[f"gamma/{name}/mean"] = float(columns.mean())
        statistics[f"gamma/{name}/std"] = float(columns.std(0, unbiased=False).mean())
    return statistics


FORGOTTEN, KEPT = 0.01, 0.99
"""γ below the one forgets a tensor, γ above the other leaves it alone."""


class Inspection(NamedTuple):
    """Conflict, attenuation and smoothness, the quantities of L2F's argument, measured on N tasks."""

    gamma: Params
    """γ by attenuated tensor, (N, entries); empty for MAML."""
    conflict: Params
    """`conflict_by_task` of the gradients of the inner loss at θ, by layer and for the network, radians, (N,)."""
    meta_conflict: Params
    """The same of the meta-gradients, those of each task's part of the meta-objective (Eq. 2) with respect to θ."""
    cosine: Params
    """`gradient_cosines` from θ to the adapted parameters, by layer and for the network, (N,)."""
    landscape: Landscape
    """Around the first inner step from θ̄, (N, ...)."""

    def metrics(self) -> dict[str, float]:
        """Means over tasks, by tag (`docs/metrics.md`)."""
        return {
            **{f"meta_conflict/{layer}": float(angles.mean()) for layer, angles in self.meta_conflict.items()},
            **{f"gradient_cosine/{layer}": float(cosines.mean()) for layer, cosines in self.cosine.items()},
            "landscape/loss_range": float(self.landscape.loss_range().mean()),
            "landscape/gradient_change_range": float(self.landscape.gradient_change_range().mean()),
            "landscape/smoothness": float(self.landscape.smoothness.mean()),
        }


LARGE_GAP = 0.5
"""Part of what adaptation gains on held-out tasks."""


def gap_warning(trained: float, before: float, after: float) -> str | None:
    """A warning, in one sentence, if held-out tasks score much worse than the tasks of training; else None.

    Args:
        trained: score of training tasks after adaptation.
        before: score of held-out tasks before adaptation.
        after: and after it.
    """
    lost, gained = abs(trained - after), abs(after - before)
    worse = (trained - after) * (after - before) > 0  # training scores lie further in the direction of adaptation
    if not (worse and lost > LARGE_GAP * gained):
        return None
    return (
        f"tasks of training score {trained:.4g} after adaptation, held-out ones {after:.4g}, from {before:.4g} before: "
        "the gap is large beside what adaptation gains; more or more varied training tasks would help"
    )


def collapse_warnings(learner: MetaLearner, gamma: Tensor) -> list[str]:
    """Warnings, one sentence each, if γ has no effect any more.

    Args:
        learner: the learner whose γ it is.
        gamma: (N, L), one row per task.
    """
    if learner.attenuator is None:
        return []
    by_tensor = learner.gammas_by_tensor(gamma)
    forgotten = [name for name, columns in by_tensor.items() if float(columns.amax()) < FORGOTTEN]
    found = []
    if forgotten:
        found.append(
            f"γ is below {FORGOTTEN} for all tasks in {', '.join(forgotten)}: what was meta-learned there is forgotten "
            "before every adaptation; if scores fall, start γ nearer to 1 (initial_gamma)"
        )
    if all(float(columns.amin()) > KEPT for columns in by_tensor.values()):
        found.append(
            f"γ is above {KEPT} for all tasks in every tensor: nothing is attenuated, and L2F has become MAML; another "
            "embedding or scope, or an initial_gamma nearer to 0.5, may give it work"
        )
    return found
