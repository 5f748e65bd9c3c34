"""Meta-train a policy on 2D navigation."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metarl_l2f.figures import navigation_paths, save
from metarl_l2f.launchers.meta_rl import RunOptions, fail, launch, parse
from metarl_l2f.rl.experiment import MetaRLSettings
from metarl_l2f.rl.meta_trpo import Rollouts


@dataclass(frozen=True)
class Navigation(RunOptions):
    """Meta-train a policy on 2D navigation: walk to a goal you cannot see, after adapting to your own rollouts.

    Without flags this is the paper's setting: 20 tasks of 20 episodes, 100 steps, one inner step, 500 meta-iterations.
    """

    settings: MetaRLSettings = field(default_factory=MetaRLSettings)
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


def draw(rollouts: Rollouts, goals: Any, folder: Path) -> None:
    """Paths before and after each inner step."""
    save(navigation_paths(rollouts.episodes, goals), folder / "navigation_paths.png")


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    try:
        return launch("navigation", parse(Navigation(), arguments), draw)
    except (ValueError, OSError) as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
