"""Every kind of run that can be evaluated, by its launcher's name."""

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
FIXED: dict[str, type[leo.LEORun] | type[prototypes.Prototypes]] = {
    leo.NAME: leo.LEORun,
    prototypes.NAME: prototypes.Prototypes,
}
"""Runs whose inner steps are a part of the model, or that have none."""


def launcher_of(run: Path) -> str:
    """The name of the launcher that made a run.

    Raises:
        ValueError: the folder holds no run, or one of a launcher that is not here.
    """
    launcher = read_config(run).get("launcher")
    if launcher not in REINFORCEMENT | SUPERVISED | FIXED:
        raise ValueError(f"{run} says it is a run of {launcher!r}, which is no launcher here; give another folder")
    return str(launcher)
