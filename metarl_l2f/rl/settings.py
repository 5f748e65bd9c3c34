"""All settings that change the numbers of a meta-RL run, and each method's best known setting in each domain."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..checks import check_choice, check_count, check_counts, check_numbers
from ..core.attenuation import Attenuation
from ..core.update_rules import InnerLoop
from ..methods import Named, check_parts, named, with_parts
from ..networks.mlp import Activation
from ..networks.policies import FILTERS
from .adaptation import PolicyGradient
from .promp import ClippedSurrogate
from .trpo import TrustRegion
from .vpg import VanillaGradient

Trunk = Literal["auto", "mlp", "conv"]
Outer = Literal["trust-region", "promp", "ppo", "vpg"]


@dataclass(frozen=True)
class PolicyNetwork:
    """The policy network: Gaussian over Box actions, categorical over Discrete ones.

    Raises:
        ValueError: a number is out of range.
    """

    hidden_sizes: tuple[int, ...] = (100, 100)
    """Units of the hidden layers."""
    activation: Activation = "relu"
    """The function between the layers."""
    initial_std: float = 1.0
    """Initial noise σ of Box actions, which is learned."""

    context_size: int = 0
    """Numbers of the context that the first layer reads beside the observation (CAVIA); 0 for none."""
    state_dependent_std: bool = False
    """Let σ of Box actions depend on the observation: outputs of the network are added to the learned log σ."""
    normalise_observations: bool = False
    """Read observations scaled to mean 0 and variance 1, by the moments of all training episodes so far."""
    trunk: Trunk = "auto"
    """What reads observations: the fully connected layers alone (`mlp`), or four 3×3 convolutions of stride 2 before
    them (`conv`); `auto` takes these for pictures (height, width, channels) of 16 pixels a side or more."""
    filters: int = FILTERS
    """Filters of each convolution of the trunk."""

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, Activation)
        check_numbers(self, "(0, inf)", "initial_std")
        check_count("context_size", self.context_size, 0)
        check_choice("trunk", self.trunk, Trunk)
        check_count("filters", self.filters)


@dataclass(frozen=True)
class MetaRLSettings:
    """All settings that change the numbers of a meta-RL run.

    A method at its best known setting in a domain is `MetaRLSettings.for_domain("navigation", "maml")`. The fields'
    own defaults are those of the MAML paper, and for L2F a normalised embedding and γ from 0.9.

    Raises:
        ValueError: a setting is unknown or out of range, or the settings do not fit each other.
    """

    method: str = "l2f"
    """A name of `metarl_l2f.methods.METHODS`, such as maml, promp or alfa; with +l2f behind it, adaptation starts from
    an initialisation that is attenuated by factors γ, computed from the task. l2f is maml+l2f."""
    seed: int = 1
    """Seed of everything random."""
    tasks_per_batch: int = 20
    """Tasks N per meta-iteration."""
    episodes_per_task: int = 20
    """Episodes B per task, before and again after every inner step."""
    horizon: int = 100
    """Steps T after which an episode is truncated."""
    policy: PolicyNetwork = field(default_factory=PolicyNetwork)
    """The policy network."""
    attenuation: Attenuation = field(default_factory=lambda: Attenuation(initial_gamma=0.9))
    """How L2F attenuates; ignored by methods without attenuation."""
    initial_std_gamma: float | None = None
    """Attenuate the action noise σ, too (log σ + log γ), starting from this γ in (0, 1), so that a policy can explore
    with much noise before adaptation and act with little afterwards; None does not attenuate σ. For `maml-two-sigmas`,
    the initial ratio of the second σ to the first. Box actions only; other methods without attenuation ignore it."""
    inner: InnerLoop = field(default_factory=InnerLoop)
    """The inner loop."""
    gradient: PolicyGradient = field(default_factory=PolicyGradient)
    """The policy gradients."""
    outer: Outer = "trust-region"
    """The meta-update: a `trust-region` step (TRPO); clipped ratios with a penalty on the inner steps' KL (`promp`), or
    without it (`ppo`); or the plain policy gradient (`vpg`)."""
    region: TrustRegion = field(default_factory=TrustRegion)
    """The trust region of the meta-update; ignored by others."""
    clipped: ClippedSurrogate = field(default_factory=ClippedSurrogate)
    """The constants of `promp` and `ppo`; ignored by others."""
    vanilla: VanillaGradient = field(default_factory=VanillaGradient)
    """The constants of `vpg`; ignored by others."""

    def __post_init__(self) -> None:
        check_counts(self, 1, "tasks_per_batch", "episodes_per_task", "horizon")
        check_choice("outer", self.outer, Outer)
        check_parts(self, named(self.method))
        if self.outer in ("promp", "ppo"):
            self._check_ratios()
        if self.gradient.exploration_weight and self.tasks_per_batch < 2:
            raise ValueError(
                "exploration_weight credits a task's return less the mean over the meta-batch: it needs "
                f"tasks_per_batch of 2 or more, got {self.tasks_per_batch}"
            )
        if self.initial_std_gamma is not None:
            check_numbers(self, "(0, 1)", "initial_std_gamma")
        if self.method == "maml-two-sigmas" and self.initial_std_gamma is None:
            raise ValueError(
                "maml-two-sigmas needs initial_std_gamma, where the second σ starts relative to the first, in (0, 1); "
                "MetaRLSettings.for_domain(domain, 'maml-two-sigmas') sets it"
            )
        if self.method == "l2f-paper" and self.attenuation == Attenuation(initial_gamma=0.9):
            raise ValueError(
                "l2f-paper reads γ off raw gradients, from 0.5, but attenuation is the default of l2f; use "
                "MetaRLSettings.for_domain(domain, 'l2f-paper'), which sets all that Algorithm 1 says"
            )
        if (self.inner.adapts == "context") != (self.policy.context_size > 0):
            raise ValueError(
                "a context adapts where there is one: adapts='context' and a positive context_size go together, got "
                f"{self.inner.adapts!r} and {self.policy.context_size}; method 'cavia' sets both"
            )

    def _check_ratios(self) -> None:
        """Refuse what ratios to the policies that collected the episodes cannot do."""
        if self.gradient.estimator != "lvc":
            raise ValueError(
                f"outer={self.outer!r} has an inner loss of its own, that of the likelihood ratio, and estimator="
                f"{self.gradient.estimator!r} would have no effect; leave it 'lvc', or choose another outer update"
            )
        if self.gradient.inner_data == "reuse" and named(self.method).attenuates:
            raise ValueError(
                f"outer={self.outer!r} compares policies with those that collected the episodes, but inner_data="
                "'reuse' takes the first step at an attenuated initialisation that collected none; choose inner_data="
                "'gradient_at_init' or 'resample'"
            )

    @staticmethod
    def for_domain(domain: str | None = None, method: str = "l2f") -> "MetaRLSettings":
        """Return a method at its best known setting, which is the launchers' default.

        Args:
            domain: `navigation`, `cheetah_dir`, `cheetah_vel`, `ant`, `rand_params`, the id of an environment of this
                package, or None for any other environment.
            method: the method's name.
        Raises:
            ValueError: the domain or the method is unknown.
        """
        name = DOMAIN_OF.get(domain or "", domain)
        if name is not None and name not in DOMAINS:
            known = ", ".join(map(repr, DOMAINS))
            raise ValueError(f"domain must be one of {known}, or None for any other, got {domain!r}")
        chosen = named(method)
        constants = (_anywhere if name is None else DOMAINS[name])(chosen)
        parts = {"method": method, **chosen.method.parts}
        if chosen.base == "cavia":
            parts |= CAVIA | ({"inner.inner_lr": constants.inner.inner_lr} if chosen.attenuated else {})
        return with_parts(constants, {**parts, **TUNED.get((name or "", method), {})})


CAVIA = {"policy.context_size": 50, "inner.inner_lr": 10.0}
"""What CAVIA has besides its parts, as in its paper (Sec. 5.3); beside L2F's attenuation, L2F's own step size, for with
the paper's navigation is not learned."""


def _quietens(method: Named) -> bool:
    """Whether a method's policies may explore with a large σ before adaptation and act with a small one after it."""
    return method.attenuated or method.base == "maml-two-sigmas"


def _anywhere(method: Named) -> MetaRLSettings:
    """The MAML paper's constants, for an environment without tuned ones."""
    if method.base == "l2f-paper":
        return as_published(MetaRLSettings())
    two_sigmas = method.base == "maml-two-sigmas"
    return MetaRLSettings("maml-two-sigmas" if two_sigmas else "maml", initial_std_gamma=0.5 if two_sigmas else None)


def _navigation(method: Named) -> MetaRLSettings:
    """2D navigation; `results/navigation/README.md` describes how the constants were found.

    Where σ is attenuated, steps beyond the trained one start from a policy with little noise, whose gradients are much
    larger, hence the small factor.
    """
    policy = PolicyNetwork((64, 64), "tanh", initial_std=1.0)
    if method.base == "l2f-paper":
        return as_published(MetaRLSettings(policy=policy), gae_lambda=0.9)
    if not _quietens(method):
        return MetaRLSettings(
            "maml",
            policy=dataclasses.replace(policy, initial_std=0.1),
            inner=InnerLoop(inner_lr=0.003, learn_inner_lr=True, later_lr_factor=0.25),
            gradient=PolicyGradient(discount=0.99, gae_lambda=0.9),
            region=TrustRegion(max_kl=0.02),
        )
    return MetaRLSettings(
        "l2f",
        policy=policy,
        initial_std_gamma=0.15,
        inner=InnerLoop(inner_lr=0.1, learn_inner_lr=True, later_lr_factor=0.001),
        gradient=PolicyGradient(discount=0.9, gae_lambda=0.95),
        region=TrustRegion(max_kl=0.02),
    )


def _locomotion(method: Named) -> MetaRLSettings:
    """Running bodies: MAML's sizes, and the constants that `results/cheetah/README.md` describes, for every method.

    L2F and the second σ let the policy act with less noise after adaptation than before it. Steps beyond the trained
    one start from that policy, whose gradients are larger, hence the small factor.
    """
    sizes = MetaRLSettings(tasks_per_batch=40, horizon=200, policy=PolicyNetwork((64, 64), "tanh", initial_std=0.5))
    if method.base == "l2f-paper":
        return as_published(sizes, inner_lr=0.1, gae_lambda=0.95, max_kl=0.05)
    quiet = _quietens(method)
    return dataclasses.replace(
        sizes,
        initial_std_gamma=0.5 if quiet else None,
        inner=InnerLoop(inner_lr=0.1, learn_inner_lr=True, later_lr_factor=0.05 if quiet else 0.5),
        gradient=PolicyGradient(discount=0.99, gae_lambda=0.95),
        region=TrustRegion(max_kl=0.05),
    )


def as_published(
    sizes: MetaRLSettings, inner_lr: float = 0.1, gae_lambda: float = 1.0, max_kl: float = 0.01
) -> MetaRLSettings:
    """Return the settings of exactly L2F's Algorithm 1, for the sizes of a domain.

    γ is per tensor, starts from 0.5 as in the official code, and is computed from the raw mean gradient of the episodes
    of θ; the inner loss, log π · A, is that of the same episodes at θ̄; step sizes are fixed, and σ is not attenuated.
    The paper leaves the domain's constants open.

    Args:
        sizes: settings whose numbers of tasks, episodes and steps, and whose policy, are kept.
        inner_lr: the step size α; the default is the MAML paper's, as are those below.
        gae_lambda: λ of the advantages.
        max_kl: the bound on the KL divergence.
    """
    return dataclasses.replace(
        sizes,
        method="l2f-paper",
        attenuation=Attenuation(embedding="raw", initial_gamma=0.5),
        initial_std_gamma=None,
        inner=InnerLoop(inner_lr=inner_lr),
        gradient=PolicyGradient(gae_lambda=gae_lambda, estimator="reinforce", inner_data="reuse"),
        region=TrustRegion(max_kl=max_kl),
    )


DOMAINS: Mapping[str, Callable[[Named], MetaRLSettings]] = {
    "navigation": _navigation,
    "cheetah_dir": _locomotion,
    "cheetah_vel": _locomotion,
    "ant": _locomotion,
    "rand_params": _locomotion,
}
"""Each method's best known setting, by domain; a domain's name is that of its launcher."""

DOMAIN_OF: Mapping[str, str] = {
    "metarl_l2f/Navigation2D-v0": "navigation",
    "metarl_l2f/HalfCheetahDir-v0": "cheetah_dir",
    "metarl_l2f/HalfCheetahVel-v0": "cheetah_vel",
    "metarl_l2f/AntDir-v0": "ant",
    "metarl_l2f/AntVel-v0": "ant",
    "metarl_l2f/HopperRandParams-v0": "rand_params",
    "metarl_l2f/Walker2dRandParams-v0": "rand_params",
}
"""The domain that each registered environment belongs to."""

TUNED: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("navigation", "boil"): {"inner.inner_lr": 0.1},
    ("navigation", "cavia"): {"inner.inner_lr": 1.0},
    **{
        ("navigation", method): {"clipped.outer_lr": 0.005, "clipped.epochs": 2}
        for method in ("promp", "promp+l2f", "maml-ppo", "maml-ppo+l2f")
    },
    ("navigation", "maml-vpg"): {"vanilla.vpg_lr": 0.003},
    ("navigation", "maml-dice"): {"gradient.dice_lambda": 0.9},
}
"""Constants of a method in a domain, by (domain, method), where they are not those of its kin above."""
