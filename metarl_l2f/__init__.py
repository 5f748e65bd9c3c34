"""Gradient-based meta-learning in PyTorch, reinforcement learning first: Learning to Forget (L2F) and MAML.

Importing the package registers its environments with gymnasium, for example "metarl_l2f/Navigation2D-v0"; without an
import, gymnasium.make("metarl_l2f:metarl_l2f/Navigation2D-v0") does it too. The public names are imported from their
modules when they are first used, so that a program pays only for what it needs.
"""

import metarl_l2f.program  # noqa: F401, for what it does while the rest is imported, which takes seconds

import importlib
from typing import TYPE_CHECKING, Any

from . import envs

if TYPE_CHECKING:  # What `__getattr__` imports, for type checkers and editors.
    from .core.attenuation import Attenuation, Attenuator
    from .core.learner import MetaLearner, meta_learner
    from .core.update_rules import GradientDescent, InnerLoop, UpdateRule
    from .networks.mlp import MLP
    from .networks.policies import CategoricalPolicy, GaussianPolicy
    from .rl.adaptation import Adaptation, PolicyGradient
    from .rl.adapted import Adapted, AdaptedPolicy, load_policy
    from .rl.experiment import MetaRL
    from .rl.outer import OuterUpdate
    from .rl.sampling import Sampler
    from .rl.settings import MetaRLSettings, PolicyNetwork
    from .rl.trpo import TrustRegion, TrustRegionUpdate
    from .rl.vectorise import vectorise
    from .rl.workers import WorkerError
    from .supervised.classification import Classifier, ImageProblem
    from .supervised.episodes import Images, Shape, Task
    from .supervised.experiment import MetaSupervised
    from .supervised.meta_loss import Problem
    from .supervised.settings import MetaOptimiser, SupervisedSettings
    from .supervised.sinusoid import Curves, SinusoidProblem

__all__ = [
    "MLP",
    "Adaptation",
    "Adapted",
    "AdaptedPolicy",
    "Attenuation",
    "Attenuator",
    "CategoricalPolicy",
    "Classifier",
    "Curves",
    "GaussianPolicy",
    "GradientDescent",
    "ImageProblem",
    "Images",
    "InnerLoop",
    "MetaLearner",
    "MetaOptimiser",
    "MetaRL",
    "MetaRLSettings",
    "MetaSupervised",
    "OuterUpdate",
    "PolicyGradient",
    "PolicyNetwork",
    "Problem",
    "Sampler",
    "Shape",
    "SinusoidProblem",
    "SupervisedSettings",
    "Task",
    "TrustRegion",
    "TrustRegionUpdate",
    "UpdateRule",
    "WorkerError",
    "envs",
    "load_policy",
    "meta_learner",
    "vectorise",
]

_NAMES = {
    "core.attenuation": ("Attenuation", "Attenuator"),
    "core.learner": ("MetaLearner", "meta_learner"),
    "core.update_rules": ("GradientDescent", "InnerLoop", "UpdateRule"),
    "networks.mlp": ("MLP",),
    "networks.policies": ("CategoricalPolicy", "GaussianPolicy"),
    "rl.adaptation": ("Adaptation", "PolicyGradient"),
    "rl.adapted": ("Adapted", "AdaptedPolicy", "load_policy"),
    "rl.experiment": ("MetaRL",),
    "rl.outer": ("OuterUpdate",),
    "rl.sampling": ("Sampler",),
    "rl.settings": ("MetaRLSettings", "PolicyNetwork"),
    "rl.trpo": ("TrustRegion", "TrustRegionUpdate"),
    "rl.vectorise": ("vectorise",),
    "rl.workers": ("WorkerError",),
    "supervised.classification": ("Classifier", "ImageProblem"),
    "supervised.episodes": ("Images", "Shape", "Task"),
    "supervised.experiment": ("MetaSupervised",),
    "supervised.meta_loss": ("Problem",),
    "supervised.settings": ("MetaOptimiser", "SupervisedSettings"),
    "supervised.sinusoid": ("Curves", "SinusoidProblem"),
}
"""The public names by the module that defines them."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The module's names, with those that were not used yet."""
    return sorted({*globals(), *__all__})
