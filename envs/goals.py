"""Tasks that several bodies share: which way to run, and how fast. A body adds what it is and how it is paid."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .base import Domain, TaskKind

CAPTION = "Forward speed on held-out tasks, before adaptation and after each inner step."


@dataclass(frozen=True, kw_only=True)
class DirectionGoals(Domain):
    """A task is a direction along the track d: −1 (backwards) or +1 (forwards)."""

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
        """As many forwards as backwards, in random order; where their number is odd, one is tossed: (num_tasks,)."""
        directions = np.resize([1.0, -1.0], num_tasks) * generator.choice([-1.0, 1.0])
        return generator.permutation(directions)

    def checked_tasks(self, tasks: Any, leading: tuple[int, ...] = ()) -> np.ndarray:
        checked = super().checked_tasks(tasks, leading)
        if not (np.abs(checked) == 1).all():
            raise ValueError(f"task must be a direction, -1 (backwards) or 1 (forwards), got {np.unique(checked)}")
        return checked


@dataclass(frozen=True, kw_only=True)
class SpeedGoals(Domain):
    """A task is a speed forwards along the track v*, m/s.

    Raises:
        ValueError: the range of goals is not finite, or upside down.
    """

    min_speed: float = 0.0
    """Slowest goal, m/s."""
    max_speed: float = 2.0
    """Fastest goal, m/s. Goals are uniform between the two."""

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
        """Uniform between the slowest and the fastest goal: (num_tasks,)."""
        return generator.uniform(self.min_speed, self.max_speed, num_tasks)
