"""Environments with tasks. Importing this package registers them with gymnasium under `metarl_l2f/`."""

import gymnasium

from .base import Domain, domain_class

DOMAINS: dict[str, str] = {}
"""By id of an environment, where its domain is: a file of this package, and a class in it."""


def _register(name: str, domain: str, own: tuple[str, str] | None = None) -> None:
    """Register one environment, scalar and batched, unless an earlier import already did.

    Args:
        name: of the environment, behind `metarl_l2f/`.
        domain: where its domain is, such as `ant:Velocity`.
        own: where its own two classes are, for one episode and for many; by default those of bodies in MuJoCo.
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
    """The domain of a registered environment.

    Args:
        env_id: a key of DOMAINS.
        arguments: those of the environment that are fields of the domain.
    """
    domain: Domain = domain_class(DOMAINS[env_id])(**arguments)
    return domain
