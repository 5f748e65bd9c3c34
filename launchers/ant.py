"""Meta-train a policy on Ant: run in a given direction, or at a given speed."""

from metarl_l2f.program import as_program

import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from matplotlib.figure import Figure

from metarl_l2f.launchers.meta_rl import USER_ERRORS, RunOptions, launch
from metarl_l2f.launchers.run import fail, started
from metarl_l2f.reports.speeds import running_speeds
from metarl_l2f.rl.meta_trpo import Rollouts
from metarl_l2f.rl.settings import MetaRLSettings

FORWARD_SPEED = 13  # Column of the observation without x and y, m/s.


@dataclass(frozen=True)
class Ant(RunOptions):
    """Meta-train an ant whose task only the rewards of its own rollouts tell.

    Ant's physics takes several times HalfCheetah's time. A sixteenth of the work also learns:
    --tasks-per-batch 10 --episodes-per-task 10 --horizon 100

    --method NAME alone sets the method's own best known constants, which further flags override: l2f (the default),
    maml, maml-two-sigmas (MAML with a second σ after adaptation) or l2f-paper (Algorithm 1 to the letter).
    """

    goals: Literal["direction", "velocity"] = "direction"
    """The family of tasks: run forwards or backwards, or run forwards at a speed."""
    settings: MetaRLSettings = field(default_factory=lambda: MetaRLSettings.for_domain("ant"))
    """What is learned, and how."""
    min_speed: float = 0.0
    """Slowest goal, m/s; of velocity tasks."""
    max_speed: float = 3.0
    """Fastest goal, m/s; of velocity tasks."""

    domain: ClassVar[str] = "ant"

    def environment(self) -> tuple[str, dict[str, Any]]:
        name, arguments = {
            "direction": ("AntDir", {}),
            "velocity": ("AntVel", {"min_speed": self.min_speed, "max_speed": self.max_speed}),
        }[self.goals]
        return f"metarl_l2f/{name}-v0", {**arguments, "horizon": self.settings.horizon}

    def pictures(self, rollouts: Rollouts, tasks: Any, width: float | None = None) -> dict[str, Figure]:
        """Speeds before and after each inner step."""
        speeds = self.goals == "velocity"
        name = "goal speed, m/s" if speeds else "direction asked for"
        figure = running_speeds(
            rollouts.episodes, tasks, speed_column=FORWARD_SPEED, task_name=name, goals_are_speeds=speeds, width=width
        )
        return {"speeds": figure}


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    try:
        with started(Ant(), arguments) as (options, group):
            return launch("ant", options, group)
    except USER_ERRORS as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
