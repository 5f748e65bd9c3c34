"""Gradient-based meta-learning in PyTorch, reinforcement learning first: Learning to Forget (L2F) and MAML.

Importing the package registers its environments with gymnasium, for example "metarl_l2f/Navigation2D-v0".
"""

from . import envs
from .core import L2F, Attenuation, InnerLoop
from .networks import MLP, CategoricalPolicy, GaussianPolicy
from .rl.experiment import Adapted, AdaptedPolicy, MetaRL, MetaRLSettings, PolicyNetwork
from .rl.meta_trpo import MetaTRPO, PolicyGradient
from .rl.sampling import Sampler
from .rl.trpo import TrustRegion
from .rl.vectorise import WorkerError, vectorise

__all__ = [
    "L2F",
    "MLP",
    "Adapted",
    "AdaptedPolicy",
    "Attenuation",
    "CategoricalPolicy",
    "GaussianPolicy",
    "InnerLoop",
    "MetaRL",
    "MetaRLSettings",
    "MetaTRPO",
    "PolicyGradient",
    "PolicyNetwork",
    "Sampler",
    "TrustRegion",
    "WorkerError",
    "envs",
    "vectorise",
]
