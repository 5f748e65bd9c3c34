"""Pictures of episodes, as their domain says they are to be drawn."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..envs.base import Domain, TaskKind
from ..rl.episodes import Episodes
from .paths import navigation_paths
from .speeds import running_speeds

NAMES: dict[TaskKind, str] = {"goal": "navigation_paths", "direction": "speeds", "speed": "speeds"}
"""What the picture of each kind of tasks is called."""


def domain_pictures(
    domain: Domain, episodes: Sequence[Episodes], tasks: ArrayLike, width: float | None = None
) -> dict[str, Figure]:
    """Draw episodes before and after adaptation: paths to goals, or speeds.

    Args:
        domain: of the environment.
        episodes: before adaptation, then after 1 … k steps, on N tasks.
        tasks: (N, *task_shape).
        width: of the picture, inches.
    Returns:
        The picture by its name; empty where the domain's tasks have no kind.
    """
    if domain.task_kind is None:
        return {}
    if domain.task_kind == "goal":
        figure = navigation_paths(episodes, tasks, width=width)
    else:
        figure = running_speeds(
            episodes,
            tasks,
            speed_column=domain.speed_column,
            task_name=domain.task_axis,
            goals_are_speeds=domain.task_kind == "speed",
            width=width,
        )
    return {NAMES[domain.task_kind]: figure}


def domain_captions(domain: Domain) -> dict[str, str]:
    """What a report says below the pictures of `domain_pictures`, by their names."""
    return {} if domain.task_kind is None else {NAMES[domain.task_kind]: domain.caption}
