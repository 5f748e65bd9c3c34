"""Meta-train a policy on HalfCheetah-velocity: run at a given speed."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metarl_l2f.core import Attenuation, InnerLoop
from metarl_l2f.figures import running_speeds, save
from metarl_l2f.launchers.meta_rl import USER_ERRORS, RunOptions, fail, launch, parse
from metarl_l2f.rl.experiment import MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.meta_trpo import PolicyGradient, Rollouts
from metarl_l2f.rl.trpo import TrustRegion

FORWARD_SPEED = 8  # Column of the observation, m/s.


def settings() -> MetaRLSettings:
    """The paper's setting, and for what it leaves open the choices of the study in results/cheetah/README.md.

    The policy explores with σ near 0.5 before adaptation and acts more quietly after it. Steps beyond the trained one
    start from the quiet policy, whose gradients are larger, hence the small factor.
    """
    return MetaRLSettings(
        tasks_per_batch=40,
        episodes_per_task=20,
        horizon=200,
        policy=PolicyNetwork((64, 64), "tanh", initial_std=0.5),
        attenuation=Attenuation(initial_gamma=0.9),
        initial_std_gamma=0.5,
        inner=InnerLoop(inner_lr=0.1, learn_inner_lr=True, later_lr_factor=0.05),
        gradient=PolicyGradient(discount=0.99, gae_lambda=0.95),
        region=TrustRegion(max_kl=0.05),
    )


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


def draw(rollouts: Rollouts, goals: Any, folder: Path) -> None:
    """Speeds before and after each inner step."""
    figure = running_speeds(
        rollouts.episodes, goals, speed_column=FORWARD_SPEED, task_name="goal speed, m/s", goals_are_speeds=True
    )
    save(figure, folder / "speeds.png")


def main(arguments: list[str] | None = None) -> int:
    """Parse, train, evaluate, draw."""
    try:
        return launch("cheetah_vel", parse(CheetahVel(), arguments), draw)
    except USER_ERRORS as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
