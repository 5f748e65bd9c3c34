"""Ant: a four-legged body that runs in a given direction, or at a given speed.

These are the locomotion benchmarks of MAML (Finn et al. 2017, Sec. 5.3 and A.2). Model, start and dynamics are those of
gymnasium's Ant-v5: a sphere with four legs of two joints each, eight torques, 0.05 s per time step. Rewards, end and
tasks are those of the released MAML code, with two departures:

- That code also charges 0.0005 per squared contact force, clipped to ±1, and observes these forces. Both are left out,
  because since MuJoCo 2.0 contact forces take an extra pass over the body after each time step.
- That code computes the velocity of the whole body's centre of mass at the end of the time step. Here v is the torso's
  mean velocity over the time step, as in gymnasium (which reads the place one physics step late).

MAML's third family of tasks, places to run to, is left out: it learned nothing in 4 million steps.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .goals import DirectionGoals, SpeedGoals
from .mujoco_batch import Body, State

CONTROL_COST = 0.005  # Cost per squared control; the model's controls run from −1 to 1.
SURVIVAL_BONUS = 0.05  # Reward for every time step.
SPEED_BONUS = 1.0  # Added to −|v − v*|, so that an early end does not pay.
LOWEST, HIGHEST = 0.2, 1.0  # The episode goes on while the torso's height in m is between these.
Z = 2  # Column of qpos that holds the torso's height, in m.


@dataclass(frozen=True, kw_only=True)
class Ant(Body):
    """The body of both families of tasks, its observation, and the condition under which it has fallen."""

    positions: bool = False
    """Observe the torso's x and y too: 29 numbers instead of gymnasium's 27. Running does not need them."""

    gymnasium_model: ClassVar[str] = "ant.xml"
    frame_skip: ClassVar[int] = 5

    def observe(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Observe the torso's place (z, or x, y, z), its quaternion (4), joint angles (8), and velocities (14).

        Args:
            qpos: (..., 15), positions in m and radians.
            qvel: (..., 14), velocities in m/s and rad/s.
        Returns:
            (..., 27), or (..., 29) with x and y.
        """
        return np.concatenate([qpos if self.positions else qpos[..., Z:], qvel], axis=-1)

    @property
    def speed_column(self) -> int:
        return 15 if self.positions else 13

    def fallen(self, state: State) -> np.ndarray:
        """Tell whether the torso's height is outside of [0.2, 1] m, (...) bool."""
        height = state.qpos[..., Z]
        return ~((height >= LOWEST) & (height <= HIGHEST))


def upkeep(control: np.ndarray) -> np.ndarray:
    """Compute the survival bonus minus the cost of the applied controls (..., A): 0.05 − 0.005 |a|², (...)."""
    return SURVIVAL_BONUS - CONTROL_COST * np.square(control).sum(-1)


# --- Direction ---


@dataclass(frozen=True, kw_only=True)
class Direction(Ant, DirectionGoals):
    """Run forwards or backwards along x, as fast as possible: reward d v − 0.005 |a|² + 0.05.

    A task is d, −1 or +1; half of the sampled tasks are forwards, half backwards. Observation and units are `Ant`'s.
    """

    def reward(self, before: State, after: State, control: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Compute d v − 0.005 |a|² + 0.05, (...)."""
        return task * self.forward_speed(before, after) + upkeep(control)


# --- Velocity ---


@dataclass(frozen=True, kw_only=True)
class Velocity(Ant, SpeedGoals):
    """Run along x at a given speed: reward 1 − |v − v*| − 0.005 |a|² + 0.05.

    A task is v* in m/s, uniform in [min_speed, max_speed]. Observation and units are `Ant`'s.
    """

    max_speed: float = 3.0
    """The fastest goal, in m/s. Goals are uniform between the two."""

    def reward(self, before: State, after: State, control: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Compute 1 − |v − v*| − 0.005 |a|² + 0.05, (...)."""
        return SPEED_BONUS - np.abs(self.forward_speed(before, after) - task) + upkeep(control)
