"""Meta-train a policy on HalfCheetah-direction: run forwards or backwards."""

from metarl_l2f.program import as_program

import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar

from matplotlib.figure import Figure

from metarl_l2f.launchers.meta_rl import USER_ERRORS, RunOptions, launch
from metarl_l2f.launchers.run import fail, started
from metarl_l2f.reports.speeds import running_speeds
from metarl_l2f.rl.meta_trpo import Rollouts
from metarl_l2f.rl.settings import MetaRLSettings

FORWARD_SPEED = 8  # Column of the observation, m/s.


@dataclass(frozen=True)
class CheetahDir(RunOptions):
    """Meta-train a cheetah to run forwards or backwards, whichever the rewards of its own rollouts say.

    Without flags this is L2F with a second σ after adaptation, at the MAML paper's size: 40 tasks of 20 episodes, 200
    steps, one inner step, 500 meta-iterations. A quarter of the work also learns: --tasks-per-batch 20 --horizon 100

    --method NAME alone sets the method's own best known constants, which further flags override: l2f (the default),
    maml, maml-two-sigmas (MAML with a second σ after adaptation) or l2f-paper (Algorithm 1 to the letter).
    """

    settings: MetaRLSettings = field(default_factory=lambda: MetaRLSettings.for_domain("cheetah_dir"))
    """What is learned, and how."""
    centre_of_mass: bool = True
    """Observe the centre of mass too, as the MAML code does (20 numbers); gymnasium's own observation has 17."""

    domain: ClassVar[str] = "cheetah_dir"

    def environment(self) -> tuple[str, dict[str, Any]]:
        return "metarl_l2f/HalfCheetahDir-v0", {
            "centre_of_mass": self.centre_of_mass,
            "horizon": self.settings.horizon,
        }

    def pictures(self, rollouts: Rollouts, tasks: Any, width: float | None = None) -> dict[str, Figure]:
        """Speeds before and after each inner step."""
        figure = running_speeds(
            rollouts.episodes, tasks, speed_column=FORWARD_SPEED, task_name="direction asked for", width=width
        )
        return {"speeds": figure}


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    try:
        with started(CheetahDir(), arguments) as (options, group):
            return launch("cheetah_dir", options, group)
    except USER_ERRORS as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
