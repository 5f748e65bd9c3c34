"""Meta-train a policy on Ant: run in a given direction, or at a given speed."""

from metarl_l2f.program import as_program

import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from metarl_l2f.rl.settings import MetaRLSettings
from metarl_l2f.runs.launch import launch
from metarl_l2f.runs.reinforcement import PolicyOptions


@dataclass(frozen=True)
class Ant(PolicyOptions):
    """Meta-train an ant whose task only the rewards of its own rollouts tell.

    Ant's physics takes several times HalfCheetah's time. A sixteenth of the work also learns:
    --tasks-per-batch 10 --episodes-per-task 10 --horizon 100

    --method NAME alone sets a method's own parts and constants, which further flags override: l2f (the default), maml,
    promp+l2f and many more, which launchers/methods.py lists.
    """

    goals: Literal["direction", "velocity"] = "direction"
    """The family of tasks: run forwards or backwards, or run forwards at a speed."""
    settings: MetaRLSettings = field(default_factory=lambda: MetaRLSettings.for_domain("ant"))
    """Settings of the method and of its training."""
    min_speed: float = 0.0
    """Slowest goal, m/s; of velocity tasks."""
    max_speed: float = 3.0
    """Fastest goal, m/s; of velocity tasks."""

    def environment(self) -> tuple[str, dict[str, Any]]:
        name, arguments = {
            "direction": ("AntDir", {}),
            "velocity": ("AntVel", {"min_speed": self.min_speed, "max_speed": self.max_speed}),
        }[self.goals]
        return f"metarl_l2f/{name}-v0", {**arguments, "horizon": self.settings.horizon}


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    return launch(Ant(), arguments)


if __name__ == "__main__":
    sys.exit(main())
