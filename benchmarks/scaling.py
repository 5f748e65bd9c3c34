"""What more ranks bring: seconds of HalfCheetah meta-iterations on 1, 2 … ranks of one thread each, and what a model of
the messages says of more ranks than there are cores (docs/scaling.md).

Every rank count is measured in turn, several times over, so that a busy machine slows all alike.
"""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

from metarl_l2f import MetaRL, MetaRLSettings
from metarl_l2f.launchers import locomotion
from metarl_l2f.training.config import provenance
from metarl_l2f.training.group import Group, join
from metarl_l2f.training.memory import keep_freed_memory

ENVIRONMENT = "metarl_l2f/HalfCheetahVel-v0"
MESSAGES_TIMED = 200
GIGABIT = 1e9 / 8  # Bytes per second.


def settings() -> MetaRLSettings:
    """launchers/cheetah_vel.py, with 100 steps: 40 tasks × 20 episodes, L2F."""
    return dataclasses.replace(locomotion.settings(), horizon=100)


@dataclass(frozen=True)
class Options:
    """Measure 1, 2 … ranks on one machine, and predict more. Trust ratios more than seconds."""

    settings: MetaRLSettings = field(default_factory=settings)
    """What is measured."""
    ranks: tuple[int, ...] = (1, 2, 4)
    """Numbers of ranks."""
    iterations: int = 3
    """Meta-iterations each time, after one that does not count."""
    rounds: int = 3
    """Times that every number of ranks is measured."""
    predict: tuple[int, ...] = (8, 64, 512)
    """Numbers of ranks to predict, each with one shard of ten tasks."""
    gigabits: float = 10.0
    """Bandwidth of the predicted network, 10⁹ bits per second."""
    latency: float = 50e-6
    """Of a message between two predicted hosts, seconds."""
    out: Path | None = None
    """Where to write the json, if anywhere."""
    rank_of: Path | None = None
    """Used by the benchmark itself: this process is a rank, and writes here what it measured."""


class Counted:
    """Counts the sums that go through a group, and their bytes."""

    def __init__(self, group: Group) -> None:
        self.inner, self.messages, self.bytes = group.sum, 0, 0

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        self.messages, self.bytes = self.messages + 1, self.bytes + values.numel() * values.element_size()
        return self.inner(values)


def measure(options: Options) -> dict[str, float]:
    """One rank's part: medians over iterations; of every time the slowest rank's."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with join(600.0) as group:
        experiment = MetaRL(ENVIRONMENT, options.settings, {"horizon": options.settings.horizon}, group=group)
        counted = Counted(group)
        group.sum = counted  # type: ignore[method-assign]
        lines = []
        for number in range(1, options.iterations + 2):
            counted.messages = counted.bytes = 0
            metrics = experiment.iterate(number)
            times = {tag: value for tag, value in metrics.items() if tag.startswith("time/")}
            slowest = [max(values) for values in zip(*group.gather(list(times.values())), strict=True)]
            waited = min(group.gather(metrics.get("time/ranks", 0.0)))
            found = dict(zip(times, slowest, strict=True)) | {"time/ranks": waited}
            lines.append(found | {"messages": counted.messages, "bytes": counted.bytes})
        medians = {tag: statistics.median(line[tag] for line in lines[1:]) for tag in lines[0]}
        size = sum(p.numel() for p in experiment.learner.parameters())
        medians |= {"parameters": size, "message_s": message_seconds(group, size)}
        experiment.close()
    return medians


def message_seconds(group: Group, size: int) -> float:
    """Seconds to sum one vector of float64, when all ranks are there at the same time."""
    vector = torch.ones(size, dtype=torch.float64)
    times = []
    for _ in range(MESSAGES_TIMED if group.size > 1 else 0):
        begin = time.perf_counter()
        group.sum(vector)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) if times else 0.0


def measured(options: Options, ranks: int) -> dict[str, float]:
    """What `ranks` ranks of one thread each take, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*command, __file__, *sys.argv[1:], "--rank-of", str(answer)], check=True, env=environment)
        return json.loads(answer.read_text())


def all_reduce_seconds(ranks: int, size: float, bandwidth: float, latency: float) -> float:
    """A ring: 2 (R − 1) steps, each with a latency and 1/R of the bytes.

    Args:
        ranks: R.
        size: of the vector, bytes.
        bandwidth: bytes per second.
        latency: of a message, seconds.
    """
    return 2 * (ranks - 1) * (latency + size / ranks / bandwidth)


def predictions(options: Options, alone: dict[str, float], messages: float, size: float) -> dict[str, dict[str, float]]:
    """Seconds per iteration with ten tasks a rank: a rank's own work, and the messages."""
    work = alone["time/iteration"] * 10 / options.settings.tasks_per_batch
    bandwidth = options.gigabits * GIGABIT
    found = {}
    for ranks in options.predict:
        message = all_reduce_seconds(ranks, size, bandwidth, options.latency)
        found[f"{ranks} ranks, {10 * ranks} tasks"] = {
            "message_s": message,
            "messages_s_per_iteration": messages * message,
            "sent_mb_per_iteration_and_rank": messages * 2 * (ranks - 1) / ranks * size / 1e6,
            "iteration_s": work + messages * message,
            "messages_over_iteration": messages * message / (work + messages * message),
        }
    return found


def main() -> None:
    """Measure, predict, print, and write if asked."""
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,))
    if options.rank_of is not None:
        found = measure(options)
        if os.environ["RANK"] == "0":
            options.rank_of.write_text(json.dumps(found))
        return
    rounds = [{ranks: measured(options, ranks) for ranks in options.ranks} for _ in range(options.rounds)]
    figures: dict[str, dict[str, float]] = {}
    for ranks in options.ranks:
        lines = [one[ranks] for one in rounds]
        median = {tag: statistics.median(line[tag] for line in lines) for tag in lines[0]}
        first = [one[options.ranks[0]] for one in rounds]
        for tag in ("time/sampling", "time/iteration"):
            ratios = [other[tag] / line[tag] for other, line in zip(first, lines, strict=True)]
            median[f"speed-up, {tag.removeprefix('time/')}"] = statistics.median(ratios)
        median["messages_over_iteration"] = median["messages"] * median["message_s"] / median["time/iteration"]
        median["waiting_and_messages_over_iteration"] = median["time/ranks"] / median["time/iteration"]
        figures[f"{ranks} rank{'s' if ranks > 1 else ''}"] = median
    last = rounds[-1][options.ranks[-1]]
    alone = figures[f"{options.ranks[0]} rank"]
    predicted = predictions(options, alone, last["messages"], 8 * last["parameters"])
    for name, values in (figures | predicted).items():
        print(name)
        for figure, value in values.items():
            print(f"  {figure:<40} {value:.4g}")
    if options.out is not None:
        context = {"settings": dataclasses.asdict(options.settings), "cores": os.cpu_count(), "load": os.getloadavg()}
        machine = {"machine": platform.processor() or platform.machine()}
        record = {"figures": figures, "predicted": predicted, "rounds": rounds} | context | machine | provenance()
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
