"""All settings that change the numbers of a supervised run, and each method's best known setting per problem."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from ..checks import check_choice, check_choices, check_counts, check_numbers
from ..core.attenuation import Attenuation
from ..core.update_rules import InnerLoop
from ..methods import METHODS, Named, check_parts, named, with_parts

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class MetaOptimiser:
    """The meta-update, Adam on (θ, φ, α).

    Raises:
        ValueError: an option is unknown or out of range.
    """

    meta_lr: float = 1e-3
    """Adam's step size."""
    schedule: Schedule = "constant"
    """Adam's step size over training: `constant`, or `cosine` down to final_lr (MAML++)."""
    final_lr: float = 1e-5
    """Adam's step size at the end of the cosine schedule."""
    clip: float | None = None
    """Clamp every entry of the meta-gradient to ±clip; the official code uses 10 for images."""
    first_order_iterations: int = 0
    """Meta-iterations at the beginning with first-order gradients; later ones are second order (MAML++'s annealing)."""
    multi_step_iterations: int = 0
    """Meta-iterations over which the loss anneals from equal weights of all inner steps to the last step alone
    (MAML++'s multi-step loss); 0 counts the last step only."""

    def __post_init__(self) -> None:
        check_choices(self, schedule=Schedule)
        check_numbers(self, "(0, inf)", "meta_lr", "final_lr", *(["clip"] if self.clip is not None else []))
        check_counts(self, 0, "first_order_iterations", "multi_step_iterations")


@dataclass(frozen=True)
class SupervisedSettings:
    """All settings that change the numbers of a supervised run, except for the problem's own.

    A method at its best known setting for a problem is `SupervisedSettings.for_problem("sinusoid", "maml")`. The
    fields' own defaults are those of the L2F paper and of its official code.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    method: str = "l2f"
    """A name of `metarl_l2f.methods.METHODS` that has a meaning without rewards, such as maml, anil or alfa; with +l2f
    behind it, adaptation starts from an initialisation that is attenuated by factors γ, computed from the task.
    l2f is maml+l2f."""
    seed: int = 1
    """Seed of everything random."""
    tasks_per_batch: int = 25
    """Tasks N per meta-iteration."""
    attenuation: Attenuation = field(default_factory=lambda: Attenuation(embedding="raw"))
    """How L2F attenuates; ignored by MAML."""
    inner: InnerLoop = field(default_factory=lambda: InnerLoop(inner_lr=0.01))
    """The inner loop."""
    optimiser: MetaOptimiser = field(default_factory=MetaOptimiser)
    """The meta-update."""
    validation_tasks: int = 100
    """Tasks of every validation, always the same."""
    diagnostics_every: int = 100
    """Meta-iterations between two measurements of conflict."""
    context_size: int = 0
    """Numbers of a task's context (CAVIA), which the first layer of a sinusoid's network reads beside the input, and
    which modulates the features of Conv4's third convolution; 0 for none."""

    def __post_init__(self) -> None:
        check_parts(self, checked_method(self.method))
        check_counts(self, 1, "tasks_per_batch", "validation_tasks", "diagnostics_every")
        check_counts(self, 0, "context_size")
        if (self.inner.adapts == "context") != (self.context_size > 0):
            raise ValueError(
                "a context adapts where there is one: adapts='context' and a positive context_size go together, got "
                f"{self.inner.adapts!r} and {self.context_size}; method 'cavia' sets both"
            )

    @classmethod
    def for_problem(cls, problem: str, method: str = "l2f") -> Self:
        """Return a method at its best known setting, which is the launchers' default.

        Args:
            problem: the problem, `sinusoid` or `image_classification`.
            method: the method's name.
        Raises:
            ValueError: the problem or the method is unknown.
        """
        check_choice("problem", problem, PROBLEMS)
        chosen = checked_method(method)
        parts = {**chosen.method.parts, **CONTEXTS[problem]} if chosen.base == "cavia" else chosen.method.parts
        as_published = {"attenuation": Attenuation(embedding="raw")} if method == "l2f-paper" else {}
        return with_parts(cls(**{"method": "maml", **PROBLEMS[problem], **as_published}), {"method": method, **parts})


def checked_method(method: str) -> Named:
    """A method's name, taken apart.

    Raises:
        ValueError: there is no such method, or it is one of rewards or of actions, which labels are not.
    """
    found = named(method)
    fields = {field.name for field in dataclasses.fields(SupervisedSettings)}
    foreign = [name for name in found.method.parts if name.partition(".")[0] not in fields]
    if foreign or found.base == "maml-two-sigmas":
        of = " or ".join(name.rpartition(".")[2] for name in foreign) or "σ"
        raise ValueError(
            f"method {method!r} is of reinforcement learning: there is no {of} where labels are learned from; choose "
            + ", ".join(WITH_LABELS)
        )
    return found


CONTEXTS: Mapping[str, Mapping[str, Any]] = {
    "sinusoid": {"context_size": 5, "inner.inner_lr": 1.0},
    "image_classification": {"context_size": 100, "inner.inner_lr": 10.0, "inner.inner_steps": 2},
}
"""What CAVIA has besides its parts, by problem: the constants of its paper (Sec. 5.1) and of its released code, but for
the step size on images, of which `results/images/README.md` compares two."""

WITH_LABELS = tuple(
    name
    for name, method in METHODS.items()
    if all(part.startswith("inner.") for part in method.parts) and name != "maml-two-sigmas"
)
"""Methods that have a meaning where labels are learned from."""


PROBLEMS: Mapping[str, Mapping[str, Any]] = {
    "sinusoid": {
        "attenuation": Attenuation(scope="filter", embedding="normalised", initial_gamma=0.9),
        "inner": InnerLoop(inner_steps=1, inner_lr=0.01, later_lr_factor=1.0),
        "optimiser": MetaOptimiser(clip=1.0),
    },
    "image_classification": {
        "tasks_per_batch": 8,
        "attenuation": Attenuation(embedding="normalised", initial_gamma=0.9),
        "inner": InnerLoop(inner_steps=1, inner_lr=0.4),
        "optimiser": MetaOptimiser(schedule="cosine", clip=10.0),
    },
}
"""Problems by name, which is their launcher's, with what their settings change: the papers' sizes, and for what the
papers leave open the choices of `results/sinusoid/README.md` and `results/images/README.md`."""
