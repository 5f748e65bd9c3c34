"""Seconds and memory of each named method's meta-iterations on 2D navigation, beside those of MAML with a trust region.

All methods train in one process and take turns, meta-iteration by meta-iteration. Each is paired with a run of MAML,
whose meta-iteration of the same number comes right before or after its own, so that a busy machine slows both alike.
"""

from metarl_l2f.program import as_program

import csv
import dataclasses
import itertools
import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tyro
from turns import Ratio, ratio

from metarl_l2f import MetaRL, MetaRLSettings
from metarl_l2f.checks import check_counts
from metarl_l2f.methods import METHODS, named
from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.parallel.shards import TASKS_PER_SHARD

ENVIRONMENT = "metarl_l2f/Navigation2D-v0"
BASELINE = "maml"
WARM_UP = 2
"""Meta-iterations of each method that do not count: the first ones allocate."""

LARGEST_RATIO = {
    **dict.fromkeys(("promp", "maml-ppo", "maml-vpg"), 1.0),
    **dict.fromkeys(("anil", "cavia", "first-order-maml"), 0.9),
    "alfa": 1.3,
}
"""The largest meta-iteration, relative to MAML's, that a method should have."""
LARGEST_ATTENUATED_RATIO = 1.3
"""The same for L2F and every other method with `+l2f`."""
LARGEST_MEMORY = 1.5
"""The most memory that a method should take, GiB."""


@dataclass(frozen=True)
class Options:
    """Measure each method against MAML on 2D navigation. On a busy machine take one thread, and processor seconds."""

    methods: tuple[str, ...] = (*(name for name in METHODS if name != BASELINE), "l2f", "promp+l2f", "anil+l2f")
    """Names of methods, as launchers/methods.py lists them; each has its own constants of navigation."""
    turns: int = 9
    """Pairs of meta-iterations measured, of each method, after some that do not count; fewer than six conclude nothing.
    """
    tasks_per_batch: int = 20
    """Tasks of a meta-iteration."""
    episodes_per_task: int = 20
    """Episodes of each task, before adaptation and after it."""
    horizon: int = 100
    """Time steps of an episode."""
    threads: int = 2
    """CPU threads."""
    clock: Literal["wall", "processor"] = "wall"
    """Seconds that are compared: those of the clock on the wall, or those that the processor spends on all threads."""
    memory: bool = True
    """Measure the peak memory, too: each method trains a little in a process of its own, with one thread for each shard
    of tasks."""
    out: Path | None = None
    """File to write, csv; by default nothing is written."""

    def __post_init__(self) -> None:
        for method in self.methods:
            named(method)
        check_counts(self, 1, "turns", "tasks_per_batch", "episodes_per_task", "horizon", "threads")
        if self.out is not None and (self.out.is_dir() or not self.out.parent.is_dir()):
            raise ValueError(f"out must be a file in a folder that exists, got {str(self.out)!r}; make the folder")


class Turn(NamedTuple):
    """One meta-iteration."""

    seconds: float
    sampling: float
    """The fraction of it that is sampling, with adaptation."""
    update: float
    """The fraction of it that is the meta-update."""


class Figures(NamedTuple):
    """The figures of one method."""

    method: str
    seconds: float
    """Seconds of a meta-iteration, the median."""
    ratio: Ratio
    """To the meta-iteration of MAML that it is paired with."""
    sampling: float
    """The fraction of the meta-iteration that is sampling, the median."""
    update: float
    """The fraction of it that is the meta-update, the median."""
    peak_memory_gib: float
    """Peak memory of a process that trains with this method alone, GiB; NaN where it was not measured."""

    @property
    def largest_ratio(self) -> float | None:
        """The largest ratio that this method should have; None where nothing is promised."""
        attenuated = named(self.method).attenuated
        return LARGEST_ATTENUATED_RATIO if attenuated else LARGEST_RATIO.get(self.method)

    @property
    def verdict(self) -> str:
        """Whether the method keeps what is promised."""
        if self.peak_memory_gib > LARGEST_MEMORY:
            return "TOO MUCH MEMORY"
        if self.ratio.noisy:
            return "too noisy to conclude"
        return "TOO SLOW" if self.largest_ratio is not None and self.ratio.median > self.largest_ratio else "ok"


def experiment(method: str, options: Options) -> MetaRL:
    """A new run of a method at its constants of navigation, with the sizes of the options."""
    sizes = {name: getattr(options, name) for name in ("tasks_per_batch", "episodes_per_task", "horizon")}
    settings = dataclasses.replace(MetaRLSettings.for_domain("navigation", method), **sizes)
    return MetaRL(ENVIRONMENT, settings, {"horizon": options.horizon}, options.threads)


def peak_memory(method: str, options: Options) -> float:
    """Peak memory of this process after a few meta-iterations, GiB, with a thread for each shard of tasks.

    That is the most that threads can need, for each holds the graph of one shard.
    """
    quiet_machine()
    run = experiment(method, dataclasses.replace(options, threads=math.ceil(options.tasks_per_batch / TASKS_PER_SHARD)))
    for iteration in range(1, WARM_UP + 2):
        run.iterate(iteration)
    run.close()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_memories(options: Options) -> dict[str, float]:
    """Peak memory of each method, and of MAML, in a fresh process each.

    Called before this process grows, whose memory the system would count as theirs.
    """
    names = dict.fromkeys((BASELINE, *options.methods))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        return dict(zip(names, pool.map(peak_memory, names, [options] * len(names)), strict=True))


def measure(options: Options) -> list[Figures]:
    """The figures of MAML and of each method."""
    memories = peak_memories(options) if options.memory else {}
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    quiet_machine()
    methods = tuple(dict.fromkeys((BASELINE, *options.methods)))
    # A run of MAML for each method, as far in training as the method is: a trained policy takes longer line searches.
    pairs = {method: (experiment(method, options), experiment(BASELINE, options)) for method in methods}

    def turn(run: MetaRL, iteration: int) -> Turn:
        begin = clock()
        metrics = run.iterate(iteration)
        seconds = clock() - begin
        return Turn(seconds, *(metrics[f"time/{part}"] / metrics["time/iteration"] for part in ("sampling", "update")))

    turns: dict[str, list[tuple[Turn, Turn]]] = {method: [] for method in methods}
    for iteration in range(1, WARM_UP + options.turns + 1):
        for place, (method, (own, floor)) in enumerate(pairs.items()):
            # The later of two may profit from the other's memory, so they change places.
            if (iteration + place) % 2:
                floor_turn, own_turn = turn(floor, iteration), turn(own, iteration)
            else:
                own_turn, floor_turn = turn(own, iteration), turn(floor, iteration)
            if iteration > WARM_UP:
                turns[method].append((own_turn, floor_turn))
    for run in itertools.chain(*pairs.values()):
        run.close()
    return [figures(method, turns[method], memories.get(method, math.nan)) for method in methods]


def figures(method: str, turns: Sequence[tuple[Turn, Turn]], memory: float) -> Figures:
    """The figures of one method.

    Args:
        method: its name.
        turns: its meta-iterations, each with one of MAML.
        memory: its peak memory, GiB.
    """
    own, floor = zip(*turns, strict=True)
    found = ratio([turn.seconds for turn in own], [turn.seconds for turn in floor])
    seconds, sampling, update = (statistics.median(values) for values in zip(*own, strict=True))
    return Figures(method, seconds, found, sampling, update, memory)


def table(found: Sequence[Figures]) -> str:
    """The figures, for people."""
    lines = [
        f"{'method':<18} {'s':>6}  {'ratio to maml':<22} {'at most':>7}  {'sampling':>8} {'update':>7} {'GiB':>6}",
    ]
    for one in found:
        ratio_ = f"{one.ratio.median:.2f} ({one.ratio.low:.2f} to {one.ratio.high:.2f})"
        memory = "" if math.isnan(one.peak_memory_gib) else f"{one.peak_memory_gib:.2f}"
        largest = "" if one.largest_ratio is None else f"{one.largest_ratio:.1f}"
        lines.append(
            f"{one.method:<18} {one.seconds:>6.3f}  {ratio_:<22} {largest:>7}  {one.sampling:>8.0%} {one.update:>7.0%} "
            f"{memory:>6}  {one.verdict}".rstrip()
        )
    return "\n".join(lines)


def write(path: Path, found: Sequence[Figures]) -> None:
    """Write the figures as csv, a row a method."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        header = "method seconds ratio_to_maml ratio_low ratio_high turns largest_ratio sampling_share update_share"
        writer.writerow([*header.split(), "peak_memory_gib", "verdict"])
        for one in found:
            row = [one.method, one.seconds, *one.ratio, one.largest_ratio, one.sampling, one.update]
            writer.writerow([*row, one.peak_memory_gib, one.verdict])


@as_program
def main() -> None:
    """Measure, print, and write if asked."""
    options = tyro.cli(Options)
    found = measure(options)
    print(table(found))
    if options.out is not None:
        write(options.out, found)


if __name__ == "__main__":
    sys.exit(main())
