"""Gradient-based meta-learning in PyTorch, reinforcement learning first: Learning to Forget (L2F) and MAML.

Importing the package registers its environments with gymnasium, for example "metarl_l2f/Navigation2D-v0".
"""

from . import envs
from .core import L2F, Attenuation, InnerLoop
from .networks import MLP, GaussianPolicy
from .rl.experiment import MetaRL, MetaRLSettings, PolicyNetwork
from .rl.meta_trpo import MetaTRPO, PolicyGradient
from .rl.sampling import Sampler, vectorise
from .rl.trpo import TrustRegion

__all__ = [
    "L2F",
    "MLP",
    "Attenuation",
    "GaussianPolicy",
    "InnerLoop",
    "MetaRL",
    "MetaRLSettings",
    "MetaTRPO",
    "PolicyGradient",
    "PolicyNetwork",
    "Sampler",
    "TrustRegion",
    "envs",
    "vectorise",
]
