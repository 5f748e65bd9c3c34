"""What every run needs and no algorithm defines: random streams, checkpoints, metrics, the outer loop."""

from . import checkpoint, metrics
from .checkpoint import CheckpointError
from .loop import Experiment, Outcome, RunExistsError, RunLockedError, RunMissingError, train
from .metrics import MetricsLog
from .seeding import Stream, generator, torch_generator

__all__ = [
    "CheckpointError",
    "Experiment",
    "MetricsLog",
    "Outcome",
    "RunExistsError",
    "RunLockedError",
    "RunMissingError",
    "Stream",
    "checkpoint",
    "generator",
    "metrics",
    "torch_generator",
    "train",
]
