"""Meta-train a policy on bodies of random masses, damping and friction: Hopper or Walker2d."""

from metarl_l2f.program import as_program

import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from metarl_l2f.rl.settings import MetaRLSettings
from metarl_l2f.runs.launch import launch
from metarl_l2f.runs.reinforcement import PolicyOptions


@dataclass(frozen=True)
class RandParams(PolicyOptions):
    """Meta-train a runner whose body differs from task to task, as only its own rollouts tell.

    A sixteenth of the work also learns: --tasks-per-batch 10 --episodes-per-task 10 --horizon 100
    """

    body: Literal["hopper", "walker2d"] = "walker2d"
    """The body that runs."""
    settings: MetaRLSettings = field(default_factory=lambda: MetaRLSettings.for_domain("rand_params"))
    """Settings of the method and of its training."""
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


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    return launch(RandParams(), arguments)


if __name__ == "__main__":
    sys.exit(main())
