"""Every kind of run whose network can be evaluated and looked at, by its launcher's name."""

from pathlib import Path

from metarl_l2f.launchers import (
    ant,
    cheetah_dir,
    cheetah_vel,
    image_classification,
    leo,
    meta_rl,
    navigation,
    prototypes,
    rand_params,
    sinusoid,
    supervised,
)
from metarl_l2f.launchers.run import read_config

REINFORCEMENT: dict[str, type[meta_rl.RunOptions]] = {
    "navigation": navigation.Navigation,
    "cheetah_dir": cheetah_dir.CheetahDir,
    "cheetah_vel": cheetah_vel.CheetahVel,
    "ant": ant.Ant,
    "rand_params": rand_params.RandParams,
}
SUPERVISED: dict[str, type[supervised.RunOptions]] = {
    "sinusoid": sinusoid.Sinusoid,
    "image_classification": image_classification.ImageClassification,
}
NOT_HERE = (leo.NAME, prototypes.NAME)
"""Launchers whose runs are evaluated at their own end only."""


def launcher_of(run: Path) -> str:
    """The name of the launcher that made a run.

    Raises:
        ValueError: the folder holds no run, or one that cannot be evaluated afterwards.
    """
    launcher = read_config(run)["launcher"]
    if launcher in NOT_HERE:
        raise ValueError(f"{run} is a run of {launcher}.py, which evaluates at its end only")
    return launcher
