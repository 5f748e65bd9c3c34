"""Meta-train a policy on HalfCheetah-velocity: run at a given speed."""

from metarl_l2f.program import as_program

import sys
from dataclasses import dataclass, field
from typing import Any

from metarl_l2f.rl.settings import MetaRLSettings
from metarl_l2f.runs.launch import launch
from metarl_l2f.runs.reinforcement import PolicyOptions


@dataclass(frozen=True)
class CheetahVel(PolicyOptions):
    """Meta-train a cheetah to run at a speed that only the rewards of its own rollouts tell.

    Without flags this is L2F with a second σ after adaptation, at the MAML paper's size: 40 tasks of 20 episodes, 200
    steps, one inner step, 500 meta-iterations. A quarter of the work also learns: --tasks-per-batch 20 --horizon 100

    --method NAME alone sets a method's own parts and constants, which further flags override: l2f (the default), maml,
    promp+l2f and many more, which launchers/methods.py lists.
    """

    settings: MetaRLSettings = field(default_factory=lambda: MetaRLSettings.for_domain("cheetah_vel"))
    """Settings of the method and of its training."""
    min_speed: float = 0.0
    """Slowest goal, m/s."""
    max_speed: float = 2.0
    """Fastest goal, m/s; goals are uniform between the two."""
    centre_of_mass: bool = True
    """Observe the centre of mass too, as the MAML code does (20 numbers); gymnasium's own observation has 17."""

    def environment(self) -> tuple[str, dict[str, Any]]:
        return "metarl_l2f/HalfCheetahVel-v0", {
            "min_speed": self.min_speed,
            "max_speed": self.max_speed,
            "centre_of_mass": self.centre_of_mass,
            "horizon": self.settings.horizon,
        }


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    return launch(CheetahVel(), arguments)


if __name__ == "__main__":
    sys.exit(main())
