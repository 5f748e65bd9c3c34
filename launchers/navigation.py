"""Meta-train a policy on 2D navigation."""

from metarl_l2f.program import as_program

import sys
from dataclasses import dataclass, field
from typing import Any

from metarl_l2f.rl.settings import MetaRLSettings
from metarl_l2f.runs.launch import launch
from metarl_l2f.runs.reinforcement import PolicyOptions


@dataclass(frozen=True)
class Navigation(PolicyOptions):
    """Meta-train a policy on 2D navigation: walk to a goal you cannot see, after adapting to your own rollouts.

    Without flags this is L2F with a second σ after adaptation, tuned on pilot seeds: 20 tasks of 20 episodes, 100
    steps, one inner step, 500 meta-iterations.

    --method NAME alone sets a method's own parts and constants, which further flags override: l2f (the default), maml,
    promp+l2f and many more, which launchers/methods.py lists.
    """

    settings: MetaRLSettings = field(default_factory=lambda: MetaRLSettings.for_domain("navigation"))
    """Settings of the method and of its training."""
    varying_start: bool = False
    """Start anywhere in the square of goals instead of at the origin."""
    squared: bool = False
    """Reward −distance² (as papers print it) instead of −distance (as their code computes it)."""
    goal_range: float = 0.5
    """Goals are uniform in the square [−goal_range, goal_range]²."""

    def environment(self) -> tuple[str, dict[str, Any]]:
        return "metarl_l2f/Navigation2D-v0", {
            "varying_start": self.varying_start,
            "squared": self.squared,
            "goal_range": self.goal_range,
            "horizon": self.settings.horizon,
        }


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    return launch(Navigation(), arguments)


if __name__ == "__main__":
    sys.exit(main())
