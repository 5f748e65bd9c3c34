"""HalfCheetah: a planar cheetah that runs in a given direction or at a given speed.

These are the locomotion benchmarks of MAML (Finn et al. 2017, Sec. 5.3) that L2F repeats (Baik et al. 2020, Figure 5).
Model, start and dynamics are those of gymnasium's HalfCheetah-v5: 14 kg, six joint torques, 0.05 s per time step.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from .goals import DirectionGoals, SpeedGoals
from .mujoco_batch import Body, State

CONTROL_COST = 0.05  # Cost per squared control; the model's controls run from −1 to 1.
ROOT_X, ROOT_Z, ROOT_ANGLE = 0, 1, 2  # Columns of qpos: place along the track in m, height in m, angle in radians.


@dataclass(frozen=True, kw_only=True)
class HalfCheetah(Body):
    """The body of both families of tasks, and its observation."""

    centre_of_mass: bool = True
    """Observe the body's centre of mass too, as the MAML code does: 20 numbers instead of gymnasium's 17."""

    gymnasium_model: ClassVar[str] = "half_cheetah.xml"
    frame_skip: ClassVar[int] = 5

    def observe(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Observe positions without the place on the track (8), velocities (9), and the centre of mass (3).

        Args:
            qpos: (..., 9), positions in m and radians.
            qvel: (..., 9), velocities in m/s and rad/s.
        Returns:
            (..., 20), or (..., 17) without the centre of mass.
        """
        parts = [qpos[..., ROOT_Z:], qvel]
        if self.centre_of_mass:
            parts.append(self._skeleton.centre_of_mass(qpos))
        return np.concatenate(parts, axis=-1)

    @property
    def speed_column(self) -> int:
        return 8

    @cached_property
    def _skeleton(self) -> "Skeleton":
        return Skeleton(self.model)


def control_cost(control: np.ndarray) -> np.ndarray:
    """Compute 0.05 |a|² of the applied controls (..., A): (...)."""
    return CONTROL_COST * np.square(control).sum(-1)


class Skeleton:
    """The geometry of a planar tree of hinges below (root_x, root_z, root_angle), as in gymnasium's planar models.

    Args:
        model: the MuJoCo model.
    """

    def __init__(self, model: Any) -> None:
        parent, offset, mass = model.body_parentid[1:] - 1, model.body_pos[1:], model.body_mass[1:]
        # A body's angle moves its own centre of mass, and every part attached to it by the offset of that part's hinge.
        levers = mass[:, None] * model.body_ipos[1:]
        for child in range(1, len(parent)):
            levers[parent[child]] += model.body_subtreemass[1:][child] * offset[child]
        self._parents = parent.tolist()
        self._levers = levers[:, [0, 2]].T[:, :, None] / mass.sum()
        self._root_height = offset[0, 2]

    def centre_of_mass(self, qpos: np.ndarray) -> np.ndarray:
        """Compute the centre of mass of the whole body, (..., 3) in m, from positions (..., nq).

        c = root + Σ_k R(α_k) l_k, with α_k the angle of body k (the sum of hinges above it), R the rotation about the
        y axis, and l_k the body's mass-weighted lever.
        """
        # Bodies first, so that the numbers of each lie side by side: (nq, n).
        places = qpos.reshape(-1, qpos.shape[-1]).T.copy()
        angles = places[ROOT_ANGLE:]
        for body, parent in enumerate(self._parents[1:], 1):
            angles[body] += angles[parent]
        cos, sin = np.cos(angles), np.sin(angles)
        x, z = self._levers
        centre = np.zeros((places.shape[1], 3))
        centre[:, 0] = places[ROOT_X] + (cos * x + sin * z).sum(0)
        centre[:, 2] = places[ROOT_Z] + self._root_height + (cos * z - sin * x).sum(0)
        return centre.reshape(*qpos.shape[:-1], 3)


# --- Direction ---


@dataclass(frozen=True, kw_only=True)
class Direction(HalfCheetah, DirectionGoals):
    """Run forwards or backwards, as fast as possible: reward d v − 0.05 |a|². A task is d, −1 or +1.

    Half of the sampled tasks are forwards, half backwards. Observation, units and start are those of `HalfCheetah`.
    """

    def reward(self, before: State, after: State, control: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Compute d v − 0.05 |a|², (...)."""
        return task * self.forward_speed(before, after) - control_cost(control)


# --- Velocity ---


@dataclass(frozen=True, kw_only=True)
class Velocity(HalfCheetah, SpeedGoals):
    """Run at a given speed: reward −|v − v*| − 0.05 |a|². A task is v* in m/s, uniform in [min_speed, max_speed].

    Some codes draw goals up to 3 m/s instead of the papers' 2. Observation, units and start are those of `HalfCheetah`.
    """

    def reward(self, before: State, after: State, control: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Compute −|v − v*| − 0.05 |a|², (...)."""
        return -np.abs(self.forward_speed(before, after) - task) - control_cost(control)
