"""Memory and seconds of meta-iterations on an environment that shows pictures, each method in a process of its own."""

from metarl_l2f.program import as_program

import csv
import dataclasses
import multiprocessing
import resource
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import tyro
from numpy.typing import NDArray

from metarl_l2f import MetaRL, MetaRLSettings, PolicyNetwork
from metarl_l2f.checks import check_counts
from metarl_l2f.methods import named
from metarl_l2f.parallel.memory import quiet_machine

LARGEST_MEMORY = 4.0
"""The most memory that a method should take at the default sizes, GiB."""
MARK = 6
"""The side of the mark that moves over the picture, pixels."""


class Field(gymnasium.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """A mark that an action moves over a picture of noise; it pays minus the distance from a hidden goal.

    Args:
        side: the height and width of the picture, pixels.
    """

    def __init__(self, side: int = 64) -> None:
        self.side = side
        self.observation_space = gymnasium.spaces.Box(0, 255, (side, side, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def sample_tasks(self, number: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """Goals in [0, 1]², (number, 2)."""
        return generator.uniform(size=(number, 2))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Put the mark in the middle; `options` hold the task."""
        super().reset(seed=seed)
        self.goal, self.place = np.asarray((options or {})["task"]), np.full(2, 0.5)
        return self._seen(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move by a tenth of the action, inside the picture."""
        self.place = np.clip(self.place + 0.1 * action, 0, 1)
        return self._seen(), -float(np.linalg.norm(self.place - self.goal)), False, False, {}

    def _seen(self) -> NDArray[np.uint8]:
        picture = self.np_random.integers(0, 64, self.observation_space.shape, np.uint8)
        row, column = (self.place * (self.side - MARK)).astype(int)
        picture[row : row + MARK, column : column + MARK] = 255
        return picture


@dataclass(frozen=True)
class Options:
    """Measure meta-iterations on pictures of three colours. Memory is exact; on a busy machine seconds are not."""

    methods: tuple[str, ...] = ("maml", "l2f")
    """Names of methods, as launchers/methods.py lists them, with the MAML paper's constants and one inner step."""
    side: int = 64
    """Height and width of the pictures, pixels; 16 or more."""
    tasks_per_batch: int = 10
    """Tasks of a meta-iteration."""
    episodes_per_task: int = 5
    """Episodes of each task, before adaptation and after it."""
    horizon: int = 20
    """Time steps of an episode."""
    fisher_fraction: float = 0.1
    """Fraction of the episodes that the Fisher information is estimated on; 1 takes the most memory."""
    iterations: int = 3
    """Meta-iterations measured, after one that does not count."""
    threads: int = 2
    """CPU threads."""
    out: Path | None = None
    """File to write, csv; by default nothing is written."""

    def __post_init__(self) -> None:
        for method in self.methods:
            named(method)
        check_counts(self, 1, "tasks_per_batch", "episodes_per_task", "horizon", "iterations", "threads")
        check_counts(self, 16, "side")


class Figures(NamedTuple):
    """The figures of one method."""

    method: str
    seconds: float
    """Seconds of a meta-iteration, the median."""
    sampling: float
    """Those of them that are sampling, with adaptation."""
    before_gib: float
    """Peak memory of the process before its first meta-iteration, GiB."""
    peak_gib: float
    """Its peak memory in the end, GiB."""


def peak_memory() -> float:
    """Peak memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(method: str, options: Options) -> Figures:
    """The figures of one method; they are right in a new process."""
    quiet_machine()
    settings = MetaRLSettings.for_domain(None, method)
    sizes = {name: getattr(options, name) for name in ("tasks_per_batch", "episodes_per_task", "horizon")}
    network = PolicyNetwork(trunk="conv", context_size=settings.policy.context_size)
    region = dataclasses.replace(settings.region, fisher_fraction=options.fisher_fraction)
    settings = dataclasses.replace(settings, **sizes, policy=network, region=region)
    run = MetaRL(Field, settings, {"side": options.side}, options.threads)
    before = peak_memory()
    metrics = [run.iterate(iteration) for iteration in range(1, options.iterations + 2)][1:]
    run.close()
    seconds, sampling = (statistics.median(m[tag] for m in metrics) for tag in ("time/iteration", "time/sampling"))
    return Figures(method, seconds, sampling, before, peak_memory())


@as_program
def main() -> None:
    """Measure, print, and write if asked."""
    options = tyro.cli(Options)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        found = list(pool.map(measure, options.methods, [options] * len(options.methods)))
    print(f"{'method':<18} {'s':>7} {'sampling, s':>12} {'GiB before':>11} {'GiB peak':>9}")
    for one in found:
        verdict = "ok" if one.peak_gib <= LARGEST_MEMORY else f"MORE THAN {LARGEST_MEMORY} GiB"
        numbers = f"{one.seconds:>7.2f} {one.sampling:>12.2f} {one.before_gib:>11.2f} {one.peak_gib:>9.2f}"
        print(f"{one.method:<18} {numbers}  {verdict}")
    if options.out is not None:
        with open(options.out, "w", newline="") as file:
            csv.writer(file).writerows([Figures._fields, *found])


if __name__ == "__main__":
    sys.exit(main())
