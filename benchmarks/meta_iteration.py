"""Seconds per meta-iteration of navigation, split in sampling and update, beside the floors they are compared with."""

from metarl_l2f.program import as_program

import dataclasses
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch.func import vmap
from turns import Ratio, ratio

from metarl_l2f import InnerLoop, MetaRL, MetaRLSettings, PolicyNetwork
from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.rl.adaptation import MetaData
from metarl_l2f.training.config import provenance
from metarl_l2f.training.seeding import Stream, generator

ENVIRONMENT = "metarl_l2f/Navigation2D-v0"


def reference() -> MetaRLSettings:
    """The configuration of pytorch-maml-rl's navigation: MAML, 64-64 tanh, 20 × 20 episodes, one step of 0.1."""
    return MetaRLSettings(method="maml", policy=PolicyNetwork((64, 64), "tanh", 1.0), inner=InnerLoop(inner_lr=0.1))


@dataclass(frozen=True)
class Options:
    """Measure meta-iterations on 2D navigation. Run it on a quiet machine, and trust ratios more than seconds."""

    settings: MetaRLSettings = field(default_factory=reference)
    """Settings that are measured; by default pytorch-maml-rl's navigation configuration."""
    iterations: int = 10
    """Meta-iterations measured, after two that are not."""
    threads: int = 2
    """CPU threads."""
    compile: bool = False
    """Measure compiled updates, in turn with uncompiled ones."""
    out: Path | None = None
    """File to write, json; by default nothing is written."""


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Median time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(options: Options) -> dict[str, float | Ratio]:
    """All figures, in seconds, ratios over turns, and GiB.

    A turn is a meta-iteration, a forward pass, and a meta-iteration of the uncompiled run if the first is compiled.
    """
    quiet_machine()
    settings, horizon = options.settings, {"horizon": options.settings.horizon}
    run = MetaRL(ENVIRONMENT, settings, horizon, options.threads, compiled=options.compile)
    adaptation, sampler = run.adaptation, run.sampler
    for number in (1, 2):
        run.iterate(number)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    plain = MetaRL(ENVIRONMENT, settings, horizon, options.threads) if options.compile else None
    if plain:
        plain.iterate(1)

    count = settings.tasks_per_batch
    tasks = sampler.sample_tasks(count, generator(settings.seed, Stream.TASKS, 0))

    def generators(phase: int) -> list[np.random.Generator]:
        return [generator(settings.seed, Stream.POLICY, 0, task, phase) for task in range(count)]

    data = adaptation.collect(sampler, tasks, generators, settings.inner.inner_steps).data
    theta = {name: p.detach() for name, p in run.learner.theta.items()}
    zeros = np.zeros((sampler.envs.num_envs, sampler.action_size), np.float32)

    @torch.no_grad()
    def forward_of_shard(shard: MetaData) -> object:
        return vmap(adaptation.policies)(shard)

    def forward() -> object:
        return adaptation.shards.map(forward_of_shard, data)

    @torch.no_grad()
    def shard_policy(batch: torch.Tensor) -> object:
        return adaptation.policy(theta, batch)

    def physics() -> None:
        sampler.envs.reset(options={"task": np.repeat(tasks, settings.episodes_per_task, 0)})
        for _ in range(settings.horizon):
            sampler.envs.step(zeros)

    forward()
    metrics, forwards, uncompiled = list[dict[str, float]](), list[float](), list[float]()
    for number in range(3, options.iterations + 3):
        metrics.append(run.iterate(number))
        begin = time.perf_counter()
        forward()
        forwards.append(time.perf_counter() - begin)
        if plain:
            uncompiled.append(plain.iterate(number)["time/update"])

    def median(tag: str) -> float:
        return statistics.median(line[tag] for line in metrics)

    phases, update = settings.inner.inner_steps + 1, [line["time/update"] for line in metrics]
    figures: dict[str, float | Ratio] = {
        "meta_iteration_s": median("time/iteration"),
        "sampling_s_per_phase": median("time/sampling") / phases,
        "update_s": median("time/update"),
        "physics_s_per_phase": seconds(physics),
        "policy_forward_s": seconds(lambda: adaptation.shards.map(shard_policy, data.post.observations)),
        "adapt_and_policy_forward_s": statistics.median(forwards),
        "update_in_adapt_and_policy_forwards": ratio(update, forwards),
        "peak_memory_gib": peak,
    }
    if "line_search/backtracks" in metrics[0]:
        figures["backtracks"] = median("line_search/backtracks")
    if plain:
        figures["update_over_uncompiled_update"] = ratio(update, uncompiled)
        plain.close()
    run.close()
    return figures


@as_program
def main() -> None:
    """Measure, print, and write if asked."""
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,))
    figures = measure(options)
    for name, value in figures.items():
        print(f"{name:<38} {value}" if isinstance(value, Ratio) else f"{name:<38} {value:.4f}")
    if options.out is not None:
        record: dict[str, Any] = {}
        record["figures"] = {n: v._asdict() if isinstance(v, Ratio) else v for n, v in figures.items()}
        record |= {"settings": dataclasses.asdict(options.settings)}
        record |= {"threads": options.threads, "compile": options.compile}
        machine = {"machine": platform.processor() or platform.machine()}
        options.out.write_text(json.dumps(record | machine | provenance(), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
