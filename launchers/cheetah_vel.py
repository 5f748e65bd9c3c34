"""Meta-train a policy on HalfCheetah-velocity: run at a given speed."""

import sys
from dataclasses import dataclass, field
from typing import Any

from metarl_l2f.launchers.locomotion import settings, speeds
from metarl_l2f.launchers.meta_rl import USER_ERRORS, RunOptions, launch
from metarl_l2f.launchers.run import fail, parse
from metarl_l2f.rl.experiment import MetaRLSettings

FORWARD_SPEED = 8  # Column of the observation, m/s.


@dataclass(frozen=True)
class CheetahVel(RunOptions):
    """Meta-train a cheetah to run at a speed that only the rewards of its own rollouts tell.

    Without flags this is L2F in the paper's setting: 40 tasks of 20 episodes, 200 steps, one inner step, 500
    meta-iterations. A quarter of the work also learns: --tasks-per-batch 20 --horizon 100. For MAML at its best add:
    --method maml --later-lr-factor 0.5
    """

    settings: MetaRLSettings = field(default_factory=settings)
    """What is learned, and how."""
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


pictures = speeds(FORWARD_SPEED, "goal speed, m/s", goals_are_speeds=True)


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    try:
        return launch("cheetah_vel", parse(CheetahVel(), arguments), pictures)
    except USER_ERRORS as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
