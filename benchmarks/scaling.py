"""Seconds of HalfCheetah meta-iterations on 1, 2 … ranks of one thread each, and a model of the messages that predicts
those on more ranks than there are cores (docs/scaling.md).

Within the same processes one rank alone and all ranks together take turns, iteration by iteration, so that a machine
whose speed drifts slows both alike.
"""

from metarl_l2f.program import as_program

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

from metarl_l2f import MetaRL, MetaRLSettings
from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.parallel.ranks import Group, join
from metarl_l2f.training.config import provenance

ENVIRONMENT = "metarl_l2f/HalfCheetahVel-v0"
MESSAGES_TIMED = 200
GIGABIT = 1e9 / 8  # Bytes per second.


def settings() -> MetaRLSettings:
    """launchers/cheetah_vel.py, with 100 steps: 40 tasks × 20 episodes, L2F."""
    return dataclasses.replace(MetaRLSettings.for_domain("cheetah_vel"), horizon=100)


@dataclass(frozen=True)
class Options:
    """Measure 1, 2 … ranks on one machine, and predict more. Trust ratios more than seconds."""

    settings: MetaRLSettings = field(default_factory=settings)
    """Settings that are measured."""
    ranks: tuple[int, ...] = (2, 4)
    """Numbers of ranks, each compared with one."""
    iterations: int = 7
    """Meta-iterations of either, after one that does not count."""
    predict: tuple[int, ...] = (8, 64, 512)
    """Numbers of ranks to predict, each with one shard of ten tasks."""
    gigabits: float = 10.0
    """Bandwidth of the predicted network, 10⁹ bits per second."""
    latency: float = 50e-6
    """Time of a message between two predicted hosts, seconds."""
    out: Path | None = None
    """File to write, json; by default nothing is written."""
    rank_of: Path | None = None
    """Used by the benchmark itself: this process is a rank, and writes here what it measured."""


class Counted:
    """Counts the sums that go through a group, and their bytes."""

    def __init__(self, group: Group) -> None:
        self.inner, self.messages, self.bytes = group.sum, 0, 0

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        self.messages, self.bytes = self.messages + 1, self.bytes + values.numel() * values.element_size()
        return self.inner(values)


def measure(options: Options) -> dict[str, Any]:
    """One rank's part: seconds of rank 0 alone and of all ranks for each iteration; each time is the slowest rank's."""
    quiet_machine()
    with join(600.0) as group:
        counted = Counted(group)
        shared = MetaRL(ENVIRONMENT, options.settings, {"horizon": options.settings.horizon}, group=group)
        alone = MetaRL(ENVIRONMENT, options.settings, {"horizon": options.settings.horizon}) if group.first else None
        group.sum = counted  # type: ignore[method-assign]
        turns = []
        for number in range(1, options.iterations + 2):
            single = times_of(alone.iterate(number)) if alone else {}
            group.gather(None)  # The others have waited until here.
            counted.messages = counted.bytes = 0
            together = times_of(shared.iterate(number))
            slowest = [max(values) for values in zip(*group.gather(list(together.values())), strict=True)]
            found = dict(zip(together, slowest, strict=True))
            found["time/ranks"] = min(group.gather(together["time/ranks"]))
            turns.append({"alone": single, "together": found, "messages": counted.messages, "bytes": counted.bytes})
        size = sum(p.numel() for p in shared.learner.parameters())
        found = {"turns": turns[1:], "parameters": size, "message_s": message_seconds(group, size)}
        shared.close()
        if alone:
            alone.close()
    return found


def times_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """The seconds among the metrics of one iteration."""
    return {tag: value for tag, value in metrics.items() if tag.startswith("time/")}


def message_seconds(group: Group, size: int) -> float:
    """Seconds to sum one vector of float64, when all ranks are there at the same time."""
    vector = torch.ones(size, dtype=torch.float64)
    times = []
    for _ in range(MESSAGES_TIMED if group.size > 1 else 0):
        begin = time.perf_counter()
        group.sum(vector)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) if times else 0.0


def measured(options: Options, ranks: int) -> dict[str, Any]:
    """The measures of rank 0 of `ranks` ranks of one thread each, in processes of their own."""
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
        size: size of the vector, bytes.
        bandwidth: bytes per second.
        latency: time of a message, seconds.
    """
    return 2 * (ranks - 1) * (latency + size / ranks / bandwidth)


def predictions(options: Options, alone: float, messages: float, size: float) -> dict[str, dict[str, float]]:
    """Seconds per iteration with ten tasks a rank: a rank's own work, and the messages.

    Args:
        options: of the measurement and of the predicted network.
        alone: seconds of an iteration of one rank.
        messages: per iteration.
        size: size of one, bytes.
    """
    work = alone * 10 / options.settings.tasks_per_batch
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


def summary(found: Mapping[str, Any]) -> dict[str, float]:
    """Medians over turns, and how many times as fast all ranks are as one: median, least and most over turns."""
    turns = found["turns"]
    figures = {
        f"{who}, {tag}": statistics.median(turn[who][tag] for turn in turns)
        for who in ("alone", "together")
        for tag in turns[0][who]
    }
    for tag in ("sampling", "physics", "iteration"):
        ratios = [turn["alone"][f"time/{tag}"] / turn["together"][f"time/{tag}"] for turn in turns]
        figures |= {
            f"times as fast, {tag}": statistics.median(ratios),
            f"times as fast, {tag}, least": min(ratios),
            f"times as fast, {tag}, most": max(ratios),
        }
    together = figures["together, time/iteration"]
    figures |= {tag: turns[-1][tag] for tag in ("messages", "bytes")}
    figures |= {tag: found[tag] for tag in ("parameters", "message_s")}
    figures["messages_over_iteration"] = figures["messages"] * figures["message_s"] / together
    figures["waiting_and_messages_over_iteration"] = figures["together, time/ranks"] / together
    return figures


@as_program
def main() -> None:
    """Measure, predict, print, and write if asked."""
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,))
    if options.rank_of is not None:
        found = measure(options)
        if os.environ["RANK"] == "0":
            options.rank_of.write_text(json.dumps(found))
        return
    measurements = {ranks: measured(options, ranks) for ranks in options.ranks}
    figures = {f"{ranks} ranks": summary(one) for ranks, one in measurements.items()}
    few = figures[f"{options.ranks[0]} ranks"]
    predicted = predictions(options, few["alone, time/iteration"], few["messages"], 8 * few["parameters"])
    for name, values in (figures | predicted).items():
        print(name)
        for figure, value in values.items():
            print(f"  {figure:<40} {value:.4g}")
    if options.out is not None:
        context = {"settings": dataclasses.asdict(options.settings), "cores": os.cpu_count(), "load": os.getloadavg()}
        machine = {"machine": platform.processor() or platform.machine()}
        measured_runs = {"figures": figures, "predicted": predicted, "measured": measurements}
        record = measured_runs | context | machine | provenance()
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
