"""Hopper and Walker2d with random dynamics: every task is to run forwards, in a body that differs.

These are the rand-params benchmarks of PEARL (Rakelly et al. 2019) and ProMP (Rothfuss et al. 2019). Observation,
reward, end and start are those of gymnasium's Hopper-v5 and Walker2d-v5: planar legs below a torso, 0.008 s per time
step. A task holds factors by which masses, joint damping and friction differ from the model's own; task 0 is exactly
gymnasium's environment.

There are departures from the published environments, which use older versions of gymnasium's:

- They scale every body's mass and each of its three moments of inertia by separate factors. No solid body has such
  moments, for one may exceed the sum of the other two. Here moments scale with their body's mass, as if its density
  changed.
- They scale each geom's friction by a separate factor. MuJoCo takes the larger friction of two geoms that touch, so
  most of these factors have no effect. Here one factor scales all, and thereby each contact's friction exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from .mujoco_batch import Body, State

CONTROL_COST = 0.001  # Cost per squared control; the models' controls run from −1 to 1.
SURVIVAL_BONUS = 1.0  # Reward for every time step that does not end in a fall.
FASTEST_SEEN = 10.0  # Observed velocities are clipped to ± this, in m/s and rad/s.
ROOT_Z, ROOT_ANGLE = 1, 2  # Columns of qpos: height in m, angle in radians.


@dataclass(frozen=True, kw_only=True)
class RandomDynamics(Body):
    """Run forwards, as fast as possible, in a body of random dynamics: reward v + 1 (unless fallen) − 0.001 |a|².

    A task is an array of log-scales: one for each body's mass and inertia, one for each damped joint's damping, and one
    for all friction, in the model's order. Each is uniform in ± log(spread), dampings in ± log(damping_spread).

    Raises:
        ValueError: a spread is below 1, or the model has other numbers of bodies or damped joints than the tasks scale.
    """

    spread: float = 1.5**3
    """The largest factor of mass and friction; with 1 they do not vary."""
    damping_spread: float = 1.3**3
    """The largest factor of a joint's damping; with 1 it does not vary."""
    reset_noise_scale: float = 5e-3
    """The scale of the random start around the model's own."""

    frame_skip: ClassVar[int] = 4
    bodies: ClassVar[int]
    """The number of masses that a task scales."""
    damped_joints: ClassVar[int]
    """The number of dampings that a task scales."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("spread", "damping_spread"):
            if not (np.isfinite(factor := getattr(self, name)) and factor >= 1):
                raise ValueError(
                    f"{name} must be finite and at least 1, got {factor}; it is the largest factor of a random scale, "
                    f"{getattr(type(self), name):g} in the published environments"
                )
        found = (self.model.nbody - 1, len(self._damped))
        if found != (self.bodies, self.damped_joints):
            raise ValueError(
                f"{self.model_path} has {found[0]} bodies and {found[1]} damped joints; tasks of "
                f"{type(self).__name__} scale {self.bodies} and {self.damped_joints}, as in {self.gymnasium_model}"
            )

    def start_velocities(self, generator: np.random.Generator) -> np.ndarray:
        return generator.uniform(-self.reset_noise_scale, self.reset_noise_scale, self.model.nv)

    def sample_tasks(self, num_tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Draw uniform log-scales: (num_tasks, bodies + damped_joints + 1)."""
        widths = np.log(np.repeat([self.spread, self.damping_spread, self.spread], self._sections))
        return generator.uniform(-widths, widths, (num_tasks, len(widths)))

    def dynamics(self, task: np.ndarray) -> Mapping[str, np.ndarray]:
        scales = np.exp(task)
        masses, dampings, friction = np.split(scales, np.cumsum(self._sections)[:-1], axis=-1)
        model, leading = self.model, task.shape[:-1]
        of_bodies = np.ones((*leading, model.nbody))
        of_bodies[..., 1:] = masses  # Body 0 is the world.
        of_dofs = np.ones((*leading, model.nv))
        of_dofs[..., self._damped] = dampings
        return {
            "body_mass": of_bodies * model.body_mass,
            "body_inertia": of_bodies[..., None] * model.body_inertia,
            "dof_damping": of_dofs * model.dof_damping,
            "geom_friction": friction[..., None] * model.geom_friction,
        }

    def observe(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Observe positions without the place on the track, and clipped velocities.

        Args:
            qpos: (..., nq), positions in m and radians.
            qvel: (..., nv), velocities in m/s and rad/s.
        Returns:
            (..., nq − 1 + nv).
        """
        return np.concatenate([qpos[..., ROOT_Z:], np.clip(qvel, -FASTEST_SEEN, FASTEST_SEEN)], axis=-1)

    def reward(self, before: State, after: State, control: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Compute v + 1 (unless fallen) − 0.001 |a|², (...); v is the torso's mean speed over the time step in m/s."""
        survival = np.where(self.fallen(after), 0.0, SURVIVAL_BONUS)
        return self.forward_speed(before, after) + survival - CONTROL_COST * np.square(control).sum(-1)

    @property
    def _sections(self) -> tuple[int, int, int]:
        """The numbers of a task's log-scales for masses, dampings and friction."""
        return self.bodies, self.damped_joints, 1

    @cached_property
    def _damped(self) -> np.ndarray:
        """The degrees of freedom that have damping."""
        return np.flatnonzero(self.model.dof_damping)


# --- Hopper ---


@dataclass(frozen=True, kw_only=True)
class Hopper(RandomDynamics):
    """A body with one leg: four parts (torso, thigh, leg, foot), three joints. Observation (11,), action (3,)."""

    gymnasium_model: ClassVar[str] = "hopper.xml"
    camera_distance: ClassVar[float] = 3.0
    bodies: ClassVar[int] = 4
    damped_joints: ClassVar[int] = 3
    task_meaning: ClassVar[str] = "log-scales of 4 masses, 3 dampings and friction"
    task_shape: ClassVar[tuple[int, ...]] = (8,)

    def fallen(self, state: State) -> np.ndarray:
        """Tell whether the torso is below 0.7 m or tilted by over 0.2 rad, or an angle or velocity is beyond ±100."""
        upright = (state.qpos[..., ROOT_Z] > 0.7) & (np.abs(state.qpos[..., ROOT_ANGLE]) < 0.2)
        calm = (np.abs(state.qpos[..., ROOT_ANGLE:]) < 100).all(-1) & (np.abs(state.qvel) < 100).all(-1)
        return ~(upright & calm)


# --- Walker2d ---


@dataclass(frozen=True, kw_only=True)
class Walker2d(RandomDynamics):
    """A body with two legs: seven parts (torso, two thighs, legs, feet), six joints. Observation (17,), action (6,)."""

    gymnasium_model: ClassVar[str] = "walker2d_v5.xml"
    bodies: ClassVar[int] = 7
    damped_joints: ClassVar[int] = 6
    task_meaning: ClassVar[str] = "log-scales of 7 masses, 6 dampings and friction"
    task_shape: ClassVar[tuple[int, ...]] = (14,)

    def fallen(self, state: State) -> np.ndarray:
        """Tell whether the torso is outside of 0.8 to 2 m, or tilted by more than 1 rad: (...) bool."""
        height, angle = state.qpos[..., ROOT_Z], state.qpos[..., ROOT_ANGLE]
        return ~((height > 0.8) & (height < 2.0) & (np.abs(angle) < 1.0))
