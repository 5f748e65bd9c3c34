"""Environments with tasks. Importing this package registers them with gymnasium under `metarl_l2f/`."""

import gymnasium


def _register(name: str, module: str, single: str, batched: str) -> None:
    """Register one environment, scalar and batched, unless an earlier import already did."""
    env_id = f"metarl_l2f/{name}"
    if env_id not in gymnasium.registry:
        gymnasium.register(
            env_id,
            entry_point=f"metarl_l2f.envs.{module}:{single}",
            vector_entry_point=f"metarl_l2f.envs.{module}:{batched}",
        )


_register("Navigation2D-v0", "navigation", "Navigation2D", "Navigation2DVector")
_register("HalfCheetahDir-v0", "half_cheetah", "HalfCheetahDir", "HalfCheetahDirVector")
_register("HalfCheetahVel-v0", "half_cheetah", "HalfCheetahVel", "HalfCheetahVelVector")
_register("AntDir-v0", "ant", "AntDir", "AntDirVector")
_register("AntVel-v0", "ant", "AntVel", "AntVelVector")
_register("HopperRandParams-v0", "rand_params", "HopperRandParams", "HopperRandParamsVector")
_register("Walker2dRandParams-v0", "rand_params", "Walker2dRandParams", "Walker2dRandParamsVector")
