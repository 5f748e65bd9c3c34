"""The cost of HalfCheetah on top of its physics: sampling and whole meta-iterations against bare `mj_step`s.

The floor replays the very controls that sampling applied, on bare simulations and the same threads, and is measured
in turn with it, so that a busy machine slows both alike.
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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from mujoco.batch import Batch

from metarl_l2f import InnerLoop, MetaRL, MetaRLSettings, PolicyNetwork
from metarl_l2f.envs.half_cheetah import Velocity
from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.rl.episodes import Episodes
from metarl_l2f.training.config import provenance
from metarl_l2f.training.seeding import Stream, generator

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
    rounds: int = 5
    """Times that each thing is measured, in turn, after one that does not count."""
    out: Path | None = None
    """File to write, json; by default nothing is written."""


def measure(settings: MetaRLSettings, threads: int, rounds: int) -> dict[str, float]:
    """Seconds and ratios of one configuration: medians over rounds."""
    arguments = {"horizon": settings.horizon}
    run = MetaRL(ENVIRONMENT, settings, arguments, threads=threads)
    body = Velocity(horizon=settings.horizon)
    phases = settings.inner.inner_steps + 1
    lines = []
    for number in range(1, rounds + 2):
        metrics = run.iterate(number)
        sampling, episodes = sample(run, number)
        physics = replay(body, episodes, threads)
        lines.append(
            {
                "physics_s_per_phase": physics,
                "sampling_s_per_phase": sampling,
                "meta_iteration_s": metrics["time/iteration"],
                "update_s": metrics["time/update"],
                "sampling_over_physics": sampling / physics,
                "meta_iteration_over_physics": metrics["time/iteration"] / (physics * phases),
            }
        )
    run.close()
    medians = {name: statistics.median(line[name] for line in lines[1:]) for name in lines[0]}
    env_steps = settings.tasks_per_batch * settings.episodes_per_task * settings.horizon
    return medians | {
        "physics_env_steps_per_s": env_steps / medians["physics_s_per_phase"],
        "meta_iteration_ms_per_task": 1e3 * medians["meta_iteration_s"] / settings.tasks_per_batch,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def sample(run: MetaRL, number: int) -> tuple[float, Episodes]:
    """One phase of sampling with adapted policies, each task its own parameters: seconds, and the episodes."""
    settings = run.settings
    tasks = run.sampler.sample_tasks(settings.tasks_per_batch, generator(settings.seed, Stream.TASKS, number))
    generators = [generator(settings.seed, Stream.POLICY, 0, number, task) for task in range(len(tasks))]
    params = {name: p.detach().expand(len(tasks), *p.shape).contiguous() for name, p in run.learner.theta.items()}
    begin = time.perf_counter()
    episodes = run.sampler.sample(partial(run.adaptation.act, params), tasks, generators)
    return time.perf_counter() - begin, episodes


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
    record: dict[str, dict[str, float]] = {}
    cases = [(options.settings.tasks_per_batch, threads) for threads in options.threads]
    cases += [(tasks, options.threads[-1]) for tasks in options.tasks]
    for tasks, threads in cases:
        settings = dataclasses.replace(options.settings, tasks_per_batch=tasks)
        name = f"{tasks} tasks, {threads} thread{'s' if threads > 1 else ''}"
        record[name] = measure(settings, threads, options.rounds)
        print(name)
        for figure, value in record[name].items():
            print(f"  {figure:<30} {value:.4g}")
    if options.out is not None:
        context = {"settings": dataclasses.asdict(options.settings), "cores": os.cpu_count()}
        machine = {"machine": platform.processor() or platform.machine()}
        options.out.write_text(json.dumps({"figures": record} | context | machine | provenance(), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
