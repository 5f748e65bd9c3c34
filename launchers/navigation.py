"""Meta-train a policy on 2D navigation."""

import sys
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from metarl_l2f.core import Attenuation, InnerLoop
from metarl_l2f.figures import navigation_paths
from metarl_l2f.launchers.meta_rl import USER_ERRORS, RunOptions, launch
from metarl_l2f.launchers.run import fail, parse
from metarl_l2f.rl.experiment import MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.meta_trpo import PolicyGradient, Rollouts
from metarl_l2f.rl.trpo import TrustRegion


def settings() -> MetaRLSettings:
    """The paper's setting, and for what it leaves open the choices of the study in results/navigation/README.md.

    The policy explores loudly (σ near 1) before adaptation and acts quietly (γσ near 0.15) after it. Steps beyond the
    trained one start from the quiet policy, whose gradients are larger by far, hence the small factor.
    """
    return MetaRLSettings(
        policy=PolicyNetwork((64, 64), "tanh", initial_std=1.0),
        attenuation=Attenuation(initial_gamma=0.9),
        initial_std_gamma=0.15,
        inner=InnerLoop(inner_lr=0.1, learn_inner_lr=True, later_lr_factor=0.001),
        gradient=PolicyGradient(discount=0.9, gae_lambda=0.95),
        region=TrustRegion(max_kl=0.02),
    )


@dataclass(frozen=True)
class Navigation(RunOptions):
    """Meta-train a policy on 2D navigation: walk to a goal you cannot see, after adapting to your own rollouts.

    Without flags this is L2F in the paper's setting: 20 tasks of 20 episodes, 100 steps, one inner step, 500
    meta-iterations. For MAML at its best add: --method maml --initial-std 0.1 --inner-lr 0.003
    --discount 0.99 --gae-lambda 0.9 --later-lr-factor 0.25
    """

    settings: MetaRLSettings = field(default_factory=settings)
    """What is learned, and how."""
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

    def pictures(self, rollouts: Rollouts, tasks: Any, width: float | None = None) -> dict[str, Figure]:
        """Paths before and after each inner step."""
        return {"navigation_paths": navigation_paths(rollouts.episodes, tasks, width=width)}


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    try:
        return launch("navigation", parse(Navigation(), arguments))
    except USER_ERRORS as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
