"""The family of methods by name: which choice of parts each is, where it is published, and its equation.

A method's constants in a domain are in rl/settings.py and supervised/settings.py.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Settings = TypeVar("Settings")

ATTENUATED = "+l2f"
"""Ends the name of a method that adapts from L2F's attenuated initialisation."""


@dataclass(frozen=True)
class Method:
    """A method as a choice of parts."""

    label: str
    """The name in pictures and titles."""
    parts: Mapping[str, object]
    """The parts that differ from MAML's, as fields of the settings by their dotted names."""
    equation: str
    """Its equation, in the letters of the papers."""
    source: str
    """The publication."""


METHODS: Mapping[str, Method] = {
    "maml": Method("MAML", {}, "θ′ = θ − α ∇L(θ)", "Finn, Abbeel, Levine 2017, arXiv 1703.03400, Eq. 1"),
    "first-order-maml": Method(
        "First-order MAML", {"inner.first_order": True}, "∂θ′/∂θ ≈ 1", "Finn et al. 2017, Sec. 5.2"
    ),
    "anil": Method(
        "ANIL", {"inner.adapts": "head"}, "only the last layer adapts", "Raghu et al. 2020, arXiv 1909.09157"
    ),
    "boil": Method(
        "BOIL", {"inner.adapts": "body"}, "everything but the last layer adapts", "Oh et al. 2021, arXiv 2008.08882"
    ),
    "cavia": Method(
        "CAVIA",
        {"inner.adapts": "context"},
        "c′ = 0 − α ∇_c L(θ, c)",
        "Zintgraf et al. 2019, arXiv 1810.03642, Eq. 3",
    ),
    "meta-sgd": Method(
        "Meta-SGD",
        {"inner.learn_inner_lr": True, "inner.inner_lr_scope": "weight"},
        "θ′ = θ − α ∘ ∇L(θ), α learned for each weight",
        "Li et al. 2017, arXiv 1707.09835, Eq. 4",
    ),
    "alfa": Method(
        "ALFA",
        {"inner.update_rule": "alfa"},
        "θ′ = (1 − β) ∘ θ − α ∘ ∇L(θ), (α, β) generated for each step and tensor",
        "Baik et al. 2020, arXiv 2011.00209, Eq. 4 to 6",
    ),
    "e-maml": Method(
        "E-MAML",
        {"gradient.exploration_weight": 0.1},
        "+ E[∇ log π_θ(τ)] R(θ′) for the episodes τ that adaptation used",
        "Stadie et al. 2018, arXiv 1803.01118, Eq. 3",
    ),
    "promp": Method(
        "ProMP",
        {"outer": "promp"},
        "E[min(r A, clip(r, 1 ± ε) A)] − η KL(π_old, π_θ), r = π_θ′ / π_θ′,old",
        "Rothfuss et al. 2019, arXiv 1810.06784, Eq. 14",
    ),
    "maml-ppo": Method(
        "MAML-PPO", {"outer": "ppo"}, "E[min(r A, clip(r, 1 ± ε) A)]", "Schulman et al. 2017, arXiv 1707.06347, Eq. 7"
    ),
    "maml-vpg": Method("MAML-VPG", {"outer": "vpg"}, "E[∇ log π_θ′ A]", "Rothfuss et al. 2019, Sec. 6"),
    "maml-dice": Method(
        "MAML-DiCE",
        {"gradient.estimator": "dice"},
        "inner loss −Σ_t (□(x_t) − □(x_t − log π_t)) A_t, x_t = Σ_s≤t λ^(t−s) log π_s",
        "Foerster et al. 2018, arXiv 1802.05098; Farquhar et al. 2019, arXiv 1909.10549",
    ),
    "maml-two-sigmas": Method(
        "MAML, two sigmas", {}, "σ′ = γ σ after adaptation, γ free", "the simple rival: one free factor on σ"
    ),
    "l2f-paper": Method(
        "L2F as published", {}, "θ̄ = γ θ, γ = sigmoid(MLP(mean ∇L)); then MAML", "Baik, Hong, Lee 2020, Algorithm 1"
    ),
}
"""Every method by its name; with `+l2f` behind it, its inner loop starts from θ̄ = γ θ. `l2f` is `maml+l2f`."""

ALONE = {"maml-two-sigmas": "L2F has a second σ already", "l2f-paper": "it is L2F already"}
"""Methods that `+l2f` means nothing for, and why."""


@dataclass(frozen=True)
class Named:
    """A name, taken apart."""

    base: str
    """The method without attenuation."""
    attenuated: bool
    """Whether its inner loop starts from an attenuated initialisation."""

    @property
    def attenuates(self) -> bool:
        """Whether there is any attenuation, be it L2F's or a free factor."""
        return self.attenuated or self.base in ALONE

    @property
    def method(self) -> Method:
        """The method without attenuation."""
        return METHODS[self.base]

    @property
    def label(self) -> str:
        """The name in pictures and titles."""
        if self == Named("maml", True):
            return "L2F"
        return self.method.label + (" + L2F" if self.attenuated else "")


def named(name: str) -> Named:
    """A method's name, taken apart.

    Args:
        name: such as `promp`, `promp+l2f` or `l2f`.
    Raises:
        ValueError: there is no such method; lists those there are.
    """
    base = "maml" if name == "l2f" else name.removesuffix(ATTENUATED)
    if base not in METHODS:
        known = ", ".join(["l2f", *METHODS])
        raise ValueError(
            f"method must be one of {known}; each but l2f, {' and '.join(ALONE)} also with {ATTENUATED} behind it; got "
            f"{name!r}"
        )
    attenuated = name == "l2f" or name.endswith(ATTENUATED)
    if attenuated and base in ALONE:
        raise ValueError(f"method {name!r} means nothing, for {ALONE[base]}; drop {ATTENUATED}")
    return Named(base, attenuated)


def check_parts(settings: Any, chosen: Named) -> None:
    """Refuse settings that bear a method's name, but do not have its parts.

    Args:
        settings: a dataclass of settings.
        chosen: the method.
    Raises:
        ValueError: a part is another one; of a weight, it is not positive.
    """
    for name, value in chosen.method.parts.items():
        found = settings
        for part in name.split("."):
            found = getattr(found, part)
        if not (found > 0 if isinstance(value, float) else found == value):
            raise ValueError(
                f"method {chosen.base!r} has {name.rpartition('.')[2]}={value!r}, got {found!r}; name another method, "
                "or take its settings from for_domain or for_problem, and change the rest"
            )


def label_of(method: str) -> str:
    """A method's name as titles and legends write it, such as MAML for maml; of other names, in capitals."""
    try:
        return named(method).label
    except ValueError:
        return method.upper()


def with_parts(settings: Settings, parts: Mapping[str, Any]) -> Settings:
    """Settings with some fields changed.

    Args:
        settings: a dataclass.
        parts: values by dotted names, such as {"inner.adapts": "head"}.
    """
    nested: dict[str, dict[str, Any]] = {}
    changes = {}
    for name, value in parts.items():
        outer, _, inner = name.partition(".")
        if inner:
            nested.setdefault(outer, {})[inner] = value
        else:
            changes[outer] = value
    changes |= {outer: with_parts(getattr(settings, outer), inner) for outer, inner in nested.items()}
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]  # At once: options are checked together.
