"""What the launchers of running bodies share: settings, and the picture of their speeds."""

from typing import Any

from matplotlib.figure import Figure

from metarl_l2f.core import Attenuation, InnerLoop
from metarl_l2f.figures import running_speeds
from metarl_l2f.launchers.meta_rl import Pictures
from metarl_l2f.rl.experiment import MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.meta_trpo import PolicyGradient, Rollouts
from metarl_l2f.rl.trpo import TrustRegion


def settings() -> MetaRLSettings:
    """MAML's sizes for locomotion, and for what the papers leave open the choices of results/cheetah/README.md.

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


def speeds(speed_column: int, task_name: str, goals_are_speeds: bool = False) -> Pictures:
    """A picture of speeds before and after each inner step; arguments as of `figures.running_speeds`."""

    def pictures(rollouts: Rollouts, tasks: Any) -> dict[str, Figure]:
        figure = running_speeds(
            rollouts.episodes,
            tasks,
            speed_column=speed_column,
            task_name=task_name,
            goals_are_speeds=goals_are_speeds,
        )
        return {"speeds": figure}

    return pictures
