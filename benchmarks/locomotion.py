"""The cost of HalfCheetah on top of its physics: sampling and whole meta-iterations against bare `mj_step`s.

The floor replays the very controls that sampling applied, on bare simulations and the same threads. It is measured
after every phase of sampling, so that a busy machine slows both alike.
"""

from metarl_l2f.program import as_program

import dataclasses
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from mujoco.batch import Batch
from turns import Ratio, ratio

from metarl_l2f import InnerLoop, MetaRL, MetaRLSettings, PolicyNetwork
from metarl_l2f.envs.half_cheetah import Velocity
from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.rl.episodes import Episodes
from metarl_l2f.rl.sampling import Act
from metarl_l2f.training.config import provenance

ENVIRONMENT = "metarl_l2f/HalfCheetahVel-v0"


def reference() -> MetaRLSettings:
    """pytorch-maml-rl's HalfCheetah-velocity: MAML, 64-64 tanh, 40 × 20 episodes of 100 steps, one step of 0.1."""
    return MetaRLSettings(
        method="maml",
        tasks_per_batch=40,
        horizon=100,
        policy=PolicyNetwork((64, 64), "tanh", 1.0),
        inner=InnerLoop(inner_lr=0.1),
    )


@dataclass(frozen=True)
class Options:
    """Measure HalfCheetah against its bare physics. Run it on a quiet machine, and trust ratios more than seconds."""

    settings: MetaRLSettings = field(default_factory=reference)
    """Settings that are measured; by default pytorch-maml-rl's HalfCheetah-velocity configuration."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of CPU threads to measure, one after the other."""
    tasks: tuple[int, ...] = ()
    """Numbers of tasks per batch to measure too, with the last number of threads: is the cost per task flat?"""
    compile: bool = False
    """Compile the updates."""
    turns: int = 9
    """Meta-iterations measured, after one that does not count; fewer than six conclude nothing."""
    out: Path | None = None
    """File to write, json; by default nothing is written."""


class Turns:
    """Replays the physics of each phase right after it was sampled, and keeps the times of both.

    Args:
        run: the run whose sampler is measured.
        threads: CPU threads of the bare physics.
    """

    def __init__(self, run: MetaRL, threads: int) -> None:
        self.body, self.threads = Velocity(horizon=run.settings.horizon), threads
        self.collect = run.sampler.sample
        self.sampling: list[float] = []
        self.physics: list[float] = []
        run.sampler.sample = self.sample  # type: ignore[method-assign]

    def sample(self, act: Act, tasks: Sequence[Any], generators: Sequence[np.random.Generator]) -> Episodes:
        """Sample one phase, then do its physics once more."""
        begin = time.perf_counter()
        episodes = self.collect(act, tasks, generators)
        self.sampling.append(time.perf_counter() - begin)
        self.physics.append(replay(self.body, episodes, self.threads))
        return episodes


def measure(options: Options, tasks: int, threads: int) -> dict[str, float | Ratio]:
    """Ratios over turns, and medians of seconds, of one configuration.

    A turn is a meta-iteration. Its floor is the physics of its own phases, replayed between them, so that both sides
    meet the same moments of a busy machine.
    """
    settings = dataclasses.replace(options.settings, tasks_per_batch=tasks)
    run = MetaRL(ENVIRONMENT, settings, {"horizon": settings.horizon}, threads=threads, compiled=options.compile)
    turns, phases = Turns(run, threads), settings.inner.inner_steps + 1
    iteration, update, sampling, physics = (list[float]() for _ in range(4))
    for number in range(options.turns + 1):
        turns.sampling.clear()
        turns.physics.clear()
        metrics = run.iterate(number + 1)
        if number:
            iteration.append(metrics["time/iteration"] - sum(turns.physics))
            update.append(metrics["time/update"])
            sampling.append(sum(turns.sampling))
            physics.append(sum(turns.physics))
    run.close()
    env_steps = phases * tasks * settings.episodes_per_task * settings.horizon
    return {
        "meta_iteration_over_physics": ratio(iteration, physics),
        "sampling_over_physics": ratio(sampling, physics),
        "update_over_physics": ratio(update, physics),
        "meta_iteration_s": statistics.median(iteration),
        "update_s": statistics.median(update),
        "sampling_s_per_phase": statistics.median(sampling) / phases,
        "physics_s_per_phase": statistics.median(physics) / phases,
        "physics_env_steps_per_s": env_steps / statistics.median(physics),
        "meta_iteration_ms_per_task": 1e3 * statistics.median(iteration) / tasks,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def replay(body: Velocity, episodes: Episodes, threads: int) -> float:
    """Seconds of the bare physics: the same number of `mj_step`s under the same controls."""
    controls = np.ascontiguousarray(body.applied(episodes.actions.flatten(0, 1).numpy()).swapaxes(0, 1), float)
    batch = Batch(body.model, controls.shape[1], threads)
    control = batch.bind("ctrl")
    batch.forward()
    begin = time.perf_counter()
    for row in controls:
        control[:] = row
        batch.step(nstep=body.frame_skip)
    return time.perf_counter() - begin


@as_program
def main() -> None:
    """Measure, print, and write if asked."""
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,))
    quiet_machine()
    record: dict[str, dict[str, Any]] = {}
    cases = [(options.settings.tasks_per_batch, threads) for threads in options.threads]
    cases += [(tasks, options.threads[-1]) for tasks in options.tasks]
    for tasks, threads in cases:
        name = f"{tasks} tasks, {threads} thread{'s' if threads > 1 else ''}"
        found = measure(options, tasks, threads)
        print(name)
        for figure, value in found.items():
            print(f"  {figure:<30} {value}" if isinstance(value, Ratio) else f"  {figure:<30} {value:.4g}")
        record[name] = {f: v._asdict() if isinstance(v, Ratio) else v for f, v in found.items()}
    if options.out is not None:
        context = {
            "settings": dataclasses.asdict(options.settings),
            "compile": options.compile,
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
        }
        machine = {"machine": platform.processor() or platform.machine()}
        options.out.write_text(json.dumps({"figures": record} | context | machine | provenance(), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
