"""What the launchers of running bodies share: their settings."""

from metarl_l2f.core import Attenuation, InnerLoop
from metarl_l2f.rl.experiment import MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.meta_trpo import PolicyGradient
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
