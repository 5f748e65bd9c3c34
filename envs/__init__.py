"""Environments with tasks. Importing this package registers them with gymnasium under `metarl_l2f/`."""

import gymnasium

from .base import Domain, domain_class

DOMAINS: dict[str, str] = {}
"""The address of each environment's domain, by the environment's id: a file of this package, and a class in it."""


def _register(name: str, domain: str, own: tuple[str, str] | None = None) -> None:
    """Register one environment, scalar and batched, unless an earlier import already did.

    Args:
        name: the environment's name, without `metarl_l2f/`.
        domain: the address of its domain, such as `ant:Velocity`.
        own: the addresses of its own two classes, for one episode and for many; None stands for those of bodies in
            MuJoCo.
    """
    DOMAINS[env_id := f"metarl_l2f/{name}"] = domain
    single, many = (
        f"{__name__}.{where}" for where in own or ("mujoco_batch:MuJoCoEnv", "mujoco_batch:MuJoCoVectorEnv")
    )
    if env_id not in gymnasium.registry:
        family = {} if own else {"family": domain}
        gymnasium.register(env_id, entry_point=single, vector_entry_point=many, kwargs=family)


_register("Navigation2D-v0", "navigation:Navigation", ("navigation:Navigation2D", "navigation:Navigation2DVector"))
_register("HalfCheetahDir-v0", "half_cheetah:Direction")
_register("HalfCheetahVel-v0", "half_cheetah:Velocity")
_register("AntDir-v0", "ant:Direction")
_register("AntVel-v0", "ant:Velocity")
_register("HopperRandParams-v0", "rand_params:Hopper")
_register("Walker2dRandParams-v0", "rand_params:Walker2d")


def domain_of(env_id: str, **arguments: object) -> Domain:
    """Build the domain of a registered environment.

    Args:
        env_id: a key of DOMAINS.
        arguments: the environment's arguments that are fields of the domain.
    """
    domain: Domain = domain_class(DOMAINS[env_id])(**arguments)
    return domain
