"""Meta-train a policy on HalfCheetah-direction: run forwards or backwards."""

from metarl_l2f.program import as_program

import sys
from dataclasses import dataclass, field
from typing import Any

from metarl_l2f.rl.settings import MetaRLSettings
from metarl_l2f.runs.launch import launch
from metarl_l2f.runs.reinforcement import PolicyOptions


@dataclass(frozen=True)
class CheetahDir(PolicyOptions):
    """Meta-train a cheetah to run forwards or backwards, whichever the rewards of its own rollouts say.

    Without flags this is L2F with a second σ after adaptation, at the MAML paper's size: 40 tasks of 20 episodes, 200
    steps, one inner step, 500 meta-iterations. A quarter of the work also learns: --tasks-per-batch 20 --horizon 100

    --method NAME alone sets a method's own parts and constants, which further flags override: l2f (the default), maml,
    promp+l2f and many more, which launchers/methods.py lists.
    """

    settings: MetaRLSettings = field(default_factory=lambda: MetaRLSettings.for_domain("cheetah_dir"))
    """Settings of the method and of its training."""
    centre_of_mass: bool = True
    """Observe the centre of mass too, as the MAML code does (20 numbers); gymnasium's own observation has 17."""

    def environment(self) -> tuple[str, dict[str, Any]]:
        return "metarl_l2f/HalfCheetahDir-v0", {
            "centre_of_mass": self.centre_of_mass,
            "horizon": self.settings.horizon,
        }


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    return launch(CheetahDir(), arguments)


if __name__ == "__main__":
    sys.exit(main())
