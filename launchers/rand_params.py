"""Meta-train a policy on bodies of random masses, damping and friction: Hopper or Walker2d."""

import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from metarl_l2f.core import Attenuation, InnerLoop
from metarl_l2f.launchers.meta_rl import USER_ERRORS, RunOptions, fail, launch, parse
from metarl_l2f.rl.experiment import MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.meta_trpo import PolicyGradient
from metarl_l2f.rl.trpo import TrustRegion


def settings() -> MetaRLSettings:
    """The sizes of MAML's locomotion; what it leaves open is as on HalfCheetah."""
    return MetaRLSettings(
        tasks_per_batch=40,
        episodes_per_task=20,
        horizon=200,
        policy=PolicyNetwork((64, 64), "tanh", initial_std=0.5),
        attenuation=Attenuation(initial_gamma=0.9),
        initial_std_gamma=0.5,
        inner=InnerLoop(inner_lr=0.1, learn_inner_lr=True, later_lr_factor=0.05),
        gradient=PolicyGradient(discount=0.99, gae_lambda=0.95),
        region=TrustRegion(max_kl=0.05),
    )


@dataclass(frozen=True)
class RandParams(RunOptions):
    """Meta-train a runner whose body differs from task to task, as only its own rollouts tell.

    A sixteenth of the work also learns: --tasks-per-batch 10 --episodes-per-task 10 --horizon 100
    """

    body: Literal["hopper", "walker2d"] = "walker2d"
    """Which body runs."""
    settings: MetaRLSettings = field(default_factory=settings)
    """What is learned, and how."""
    spread: float = 1.5**3
    """Largest factor by which masses and friction grow or shrink."""
    damping_spread: float = 1.3**3
    """Largest factor by which a joint's damping grows or shrinks."""

    def environment(self) -> tuple[str, dict[str, Any]]:
        name = {"hopper": "HopperRandParams", "walker2d": "Walker2dRandParams"}[self.body]
        return f"metarl_l2f/{name}-v0", {
            "spread": self.spread,
            "damping_spread": self.damping_spread,
            "horizon": self.settings.horizon,
        }


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    try:
        return launch("rand_params", parse(RandParams(), arguments))
    except USER_ERRORS as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
