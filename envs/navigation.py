"""2D navigation: a point walks on a plane towards a goal that it cannot see. A task is a goal.

This is the RL benchmark of MAML (Finn et al. 2017, Sec. 5.3) that L2F repeats (Baik et al. 2020, Figure 5). The
equations are written once, for any leading batch shape; `Navigation2D` (one episode) and `Navigation2DVector` (many)
only store the position. All arithmetic is float32 and elementwise, so the two agree bit for bit. `Navigation2D` can
draw a picture of itself.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw

from .base import STEP_BEFORE_RESET, Domain, TaskEnv, TaskKind, TaskVectorEnv

MAX_STEP = 0.1  # Largest move per time step along x and along y; longer actions are clipped.
ARRIVAL_RADIUS = 0.01  # The episode ends nearer to the goal than this along x and along y.

PICTURE_SIZE = 480  # Side of the picture, px.
OVERSAMPLING = 3  # Factor by which the drawing is larger before it is reduced, which smooths edges.
SIGHT = 1.8  # The picture reaches this many times as far from the origin as goals may lie.
PAPER, SQUARE, LINES, INK = "#FFFFFF", "#F3F5F8", "#D5DAE0", "#333333"
WALKER, GOAL = "#0072B2", "#E69F00"  # Okabe and Ito's blue and orange.


# --- The equations ---


def move(position: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Walk one time step: xₜ₊₁ = xₜ + clip(aₜ, ±MAX_STEP).

    Args:
        position: (..., 2), float32.
        action: (..., 2), float32, a velocity per time step of any size.
    Returns:
        (..., 2), the new position.
    """
    return position + np.clip(action, -MAX_STEP, MAX_STEP)


def distance_reward(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Compute the reward of the released MAML code: r = −|x − g|, at the position after the move.

    Args:
        position: (..., 2).
        goal: (..., 2).
    Returns:
        (...), at most 0.
    """
    return -np.sqrt(_squared_distance(position, goal))


def squared_distance_reward(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Compute the reward of the papers' text: r = −|x − g|². Arguments and result are those of `distance_reward`."""
    return -_squared_distance(position, goal)


def arrived(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Tell whether the goal is reached: |x − g| < ARRIVAL_RADIUS along x and along y.

    Args:
        position: (..., 2).
        goal: (..., 2).
    Returns:
        (...), bool.
    """
    near = np.abs(position - goal) < ARRIVAL_RADIUS
    return near[..., 0] & near[..., 1]


def _squared_distance(position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    # Written out, because the order of numpy's sum over an axis may depend on the batch shape.
    offset = position - goal
    return np.square(offset[..., 0]) + np.square(offset[..., 1])


def sample_goals(num_tasks: int, generator: np.random.Generator, goal_range: float) -> np.ndarray:
    """Draw goals uniformly from the square [−goal_range, goal_range]².

    Args:
        num_tasks: N, the number of goals.
        generator: the source of random numbers.
        goal_range: half the side of the square, positive.
    Returns:
        (N, 2), float32.
    """
    return generator.uniform(-goal_range, goal_range, size=(num_tasks, 2)).astype(np.float32)


# --- The tasks ---


@dataclass(frozen=True, kw_only=True)
class Navigation(Domain):
    """A point on a plane that walks to a goal.

    Raises:
        ValueError: goal_range or horizon is not positive and finite.
    """

    varying_start: bool = False
    """Start anywhere in the square of the goals (Meta-SGD's second setting) instead of at the origin."""
    squared: bool = False
    """Reward −|x − g|² instead of −|x − g|."""
    goal_range: float = 0.5
    """Half the side of the square from which goals and varying starts are drawn."""

    dtype: ClassVar[type[np.floating]] = np.float32
    task_meaning: ClassVar[str] = "a goal"
    task_shape: ClassVar[tuple[int, ...]] = (2,)
    task_kind: ClassVar[TaskKind | None] = "goal"
    task_names: ClassVar[tuple[str, ...]] = ("x", "y")
    caption: ClassVar[str] = "Paths on held-out tasks, before adaptation and after each inner step; stars are goals."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.goal_range <= np.finfo(self.dtype).max:
            raise ValueError(f"goal_range must be positive and finite, got {self.goal_range}; the papers use 0.5")

    @property
    def random_start(self) -> bool:
        return self.varying_start

    @property
    def task_bounds(self) -> tuple[float, float]:
        return -self.goal_range, self.goal_range

    def observation_space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def action_space(self) -> spaces.Box:
        return spaces.Box(-MAX_STEP, MAX_STEP, (2,), np.float32)

    def sample_tasks(self, num_tasks: int, generator: np.random.Generator) -> np.ndarray:
        return sample_goals(num_tasks, generator, self.goal_range)

    def start(self, generator: np.random.Generator | None) -> np.ndarray:
        # Meta-SGD's second setting takes the start from the square of the goals.
        return np.zeros(2, np.float32) if generator is None else sample_goals(1, generator, self.goal_range)[0]

    def reward(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Compute the reward at the position after the move, (...)."""
        return (squared_distance_reward if self.squared else distance_reward)(position, goal)


# --- The picture ---


def picture(path: np.ndarray, goal: np.ndarray, goal_range: float) -> np.ndarray:
    """Draw the plane from above: the square of goals, the goal as a star, the path, and the walker at its end.

    A walker that has left the picture is drawn as a ring on its edge.

    Args:
        path: (S + 1, 2), every position so far.
        goal: (2,).
        goal_range: half the side of the square of goals.
    Returns:
        (PICTURE_SIZE, PICTURE_SIZE, 3), bytes.
    """
    side = PICTURE_SIZE * OVERSAMPLING
    sight = SIGHT * max(goal_range, float(np.abs(goal).max()))

    def pixels(points: np.ndarray) -> np.ndarray:
        # Rows of pixels count downwards. Places far outside of the picture are clipped.
        return np.clip((0.5 + np.multiply(points, (0.5, -0.5)) / sight) * side, -9 * side, 9 * side)

    image = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(image)
    unit = side / 240  # Lengths below are in 240ths of the side.
    left, top, right, bottom = (
        *pixels(np.array([-goal_range, goal_range])),
        *pixels(np.array([goal_range, -goal_range])),
    )
    draw.rectangle((left, top, right, bottom), SQUARE, LINES, round(0.6 * unit))
    for line in ((0, side / 2, side, side / 2), (side / 2, 0, side / 2, side)):
        draw.line(line, LINES, round(0.6 * unit))

    places = pixels(path)
    draw.line([tuple(place) for place in places.tolist()], WALKER, round(1.3 * unit), joint="curve")
    _disc(draw, places[0], 2.2 * unit, INK)
    _star(draw, pixels(goal), 8 * unit)
    edge = np.clip(places[-1], 4 * unit, side - 4 * unit)
    outside = (np.clip(places[-1], 0, side) != places[-1]).any()
    _disc(draw, edge, 4.4 * unit, WALKER if outside else PAPER)
    _disc(draw, edge, 3.4 * unit, PAPER if outside else WALKER)
    return np.asarray(image.reduce(OVERSAMPLING))


def _disc(draw: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, colour: str) -> None:
    draw.circle((float(centre[0]), float(centre[1])), radius, colour)


def _star(draw: ImageDraw.ImageDraw, centre: np.ndarray, radius: float) -> None:
    """Draw a star with five points, the inner corners of a pentagram, and an outline."""
    angles = np.pi / 5 * np.arange(10)
    spikes = np.stack([np.sin(angles), -np.cos(angles)], 1) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]
    for size, colour in ((1.35, PAPER), (1.12, INK), (0.9, GOAL)):
        draw.polygon([tuple(corner) for corner in (centre + size * radius * spikes).tolist()], colour)


# --- The environments ---


class Navigation2D(TaskEnv):
    """2D navigation, one episode at a time.

    Observation: the position, (2,). Action: the velocity, (2,), clipped to ±MAX_STEP. The episode terminates on arrival
    and is truncated after `horizon` steps; then it is frozen. Tasks work as in `TaskEnv`.

    Args:
        render_mode: None or "rgb_array".
        arguments: the fields of `Navigation`: varying_start, squared, goal_range, horizon.
    Raises:
        ValueError: the render mode is unknown, or an argument is out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    domain: Navigation

    def __init__(self, render_mode: str | None = None, **arguments: Any) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        super().__init__(Navigation(**arguments))
        self.render_mode = render_mode

    def render(self) -> np.ndarray:
        """Draw the plane with goal, path and walker, as `picture` does.

        Raises:
            ValueError: the environment has no render mode, or no episode was begun.
        """
        if self.render_mode is None:
            raise ValueError("render needs a render_mode, got None; make the environment with render_mode='rgb_array'")
        if not self._begun:
            raise ValueError(STEP_BEFORE_RESET.replace("step", "render", 1))
        return picture(np.stack(self._path), self.task, self.domain.goal_range)

    def _place(self, start: np.ndarray) -> None:
        self._position = start
        self._path = [start]

    def _advance(self, action: np.ndarray) -> tuple[float, bool, dict[str, Any]]:
        self._position = move(self._position, action)
        self._path.append(self._position)
        reward = float(self.domain.reward(self._position, self.task))
        return reward, bool(arrived(self._position, self.task)), {}

    def _observe(self) -> np.ndarray:
        return self._position.copy()


class Navigation2DVector(TaskVectorEnv):
    """2D navigation, `num_envs` episodes that step together, each with its own goal.

    Sub-environment i does bit for bit what `Navigation2D` does with the same settings, seed, task and actions. Tasks,
    masks and frozen episodes are as in `TaskVectorEnv`.

    Args:
        num_envs: N, the number of episodes.
        arguments: the fields of `Navigation`: varying_start, squared, goal_range, horizon.
    """

    domain: Navigation

    def __init__(self, num_envs: int = 1, **arguments: Any) -> None:
        super().__init__(num_envs, Navigation(**arguments))
        self._position = np.zeros((num_envs, 2), dtype=np.float32)

    def _place(self, rows: np.ndarray, starts: np.ndarray) -> None:
        self._position[rows] = starts

    def _advance(self, actions: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        self._position = np.where(running[:, None], move(self._position, actions), self._position)
        return self.domain.reward(self._position, self.tasks), arrived(self._position, self.tasks), {}

    def _observe(self) -> np.ndarray:
        return self._position.copy()
