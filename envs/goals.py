"""Tasks that several bodies share: a direction or a speed to run at. The bodies' files add dynamics and rewards."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .base import Domain, TaskKind

CAPTION = "Forward speed on held-out tasks, before adaptation and after each inner step."


@dataclass(frozen=True, kw_only=True)
class DirectionGoals(Domain):
    """Tasks that are a direction d along the track: −1 (backwards) or +1 (forwards)."""

    task_meaning: ClassVar[str] = "a direction (-1 or 1)"
    task_shape: ClassVar[tuple[int, ...]] = ()
    task_kind: ClassVar[TaskKind | None] = "direction"
    task_names: ClassVar[tuple[str, ...]] = ("direction",)
    task_axis: ClassVar[str] = "target direction"
    caption: ClassVar[str] = CAPTION

    @property
    def task_bounds(self) -> tuple[float, float]:
        return -1.0, 1.0

    def sample_tasks(self, num_tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Draw as many tasks forwards as backwards, in random order: (num_tasks,). An odd one is drawn by itself."""
        directions = np.resize([1.0, -1.0], num_tasks) * generator.choice([-1.0, 1.0])
        return generator.permutation(directions)

    def checked_tasks(self, tasks: Any, leading: tuple[int, ...] = ()) -> np.ndarray:
        checked = super().checked_tasks(tasks, leading)
        if not (np.abs(checked) == 1).all():
            raise ValueError(f"task must be a direction, -1 (backwards) or 1 (forwards), got {np.unique(checked)}")
        return checked


@dataclass(frozen=True, kw_only=True)
class SpeedGoals(Domain):
    """Tasks that are a forward speed v* along the track, in m/s.

    Raises:
        ValueError: the range of goals is not finite, or its lower bound is above the upper one.
    """

    min_speed: float = 0.0
    """The slowest goal, in m/s."""
    max_speed: float = 2.0
    """The fastest goal, in m/s. Goals are uniform between the two."""

    task_meaning: ClassVar[str] = "a speed in m/s"
    task_shape: ClassVar[tuple[int, ...]] = ()
    task_kind: ClassVar[TaskKind | None] = "speed"
    task_names: ClassVar[tuple[str, ...]] = ("speed",)
    task_axis: ClassVar[str] = "goal speed, m/s"
    caption: ClassVar[str] = CAPTION

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (np.isfinite([self.min_speed, self.max_speed]).all() and self.min_speed <= self.max_speed):
            usual = type(self)  # Holds the defaults.
            raise ValueError(
                f"goal speeds must be finite, the slowest first, got min_speed {self.min_speed} and max_speed "
                f"{self.max_speed}; the papers use {usual.min_speed:g} and {usual.max_speed:g}"
            )

    @property
    def task_bounds(self) -> tuple[float, float]:
        return self.min_speed, self.max_speed

    def sample_tasks(self, num_tasks: int, generator: np.random.Generator) -> np.ndarray:
        """Draw speeds uniformly between the slowest and the fastest goal: (num_tasks,)."""
        return generator.uniform(self.min_speed, self.max_speed, num_tasks)
