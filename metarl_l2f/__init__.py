"""Gradient-based meta-learning in PyTorch, reinforcement learning first: Learning to Forget (L2F) and MAML.

Importing the package registers its environments with gymnasium, for example "metarl_l2f/Navigation2D-v0"; without an
import, gymnasium.make("metarl_l2f:metarl_l2f/Navigation2D-v0") does it too.
"""

import metarl_l2f.program  # noqa: F401, for what it does while the rest is imported, which takes seconds

from . import envs
from .core import L2F, Attenuation, InnerLoop
from .networks.policies import MLP, CategoricalPolicy, GaussianPolicy
from .rl.adapted import Adapted, AdaptedPolicy, load_policy
from .rl.experiment import MetaRL
from .rl.meta_trpo import MetaTRPO, PolicyGradient
from .rl.sampling import Sampler
from .rl.settings import MetaRLSettings, PolicyNetwork
from .rl.trpo import TrustRegion
from .rl.vectorise import vectorise
from .rl.workers import WorkerError
from .supervised.classification import Classifier, ImageProblem
from .supervised.episodes import Images, Shape, Task
from .supervised.experiment import MetaSupervised
from .supervised.meta_loss import Problem
from .supervised.settings import MetaOptimiser, SupervisedSettings
from .supervised.sinusoid import Curves, SinusoidProblem

__all__ = [
    "L2F",
    "MLP",
    "Adapted",
    "AdaptedPolicy",
    "Attenuation",
    "CategoricalPolicy",
    "Classifier",
    "Curves",
    "GaussianPolicy",
    "ImageProblem",
    "Images",
    "InnerLoop",
    "MetaOptimiser",
    "MetaRL",
    "MetaRLSettings",
    "MetaSupervised",
    "MetaTRPO",
    "PolicyGradient",
    "PolicyNetwork",
    "Problem",
    "Sampler",
    "Shape",
    "SinusoidProblem",
    "SupervisedSettings",
    "Task",
    "TrustRegion",
    "WorkerError",
    "envs",
    "load_policy",
    "vectorise",
]
