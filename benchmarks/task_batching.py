"""Tasks together or one by one: seconds per meta-iteration of vmap, loop, chunks, threads and torch.compile."""

from metarl_l2f.program import as_program

import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from metarl_l2f.core.attenuation import Attenuation
from metarl_l2f.core.update_rules import InnerLoop
from metarl_l2f.parallel import devices
from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.supervised.classification import Classifier, ImageProblem, in_inner_loop
from metarl_l2f.supervised.episodes import Images, Shape
from metarl_l2f.supervised.experiment import MetaSupervised
from metarl_l2f.supervised.meta_loss import Batching
from metarl_l2f.supervised.settings import SupervisedSettings
from metarl_l2f.supervised.sinusoid import FREQUENCIES, Curves, SinusoidProblem
from metarl_l2f.training.config import provenance


@dataclass(frozen=True)
class Options:
    """Measure how to batch tasks. Run it on a quiet machine, and trust ratios more than seconds.

    Every way is measured in turn, several times over, so that a busy machine slows all alike.
    """

    problem: Literal["sinusoid", "stride", "max"] = "sinusoid"
    """Sinusoids (25 tasks, 10 points), or images (8 tasks, 5-way 1-shot, 75 queries, 64 filters) with either Conv4."""
    inner_steps: int = 1
    """Inner gradient steps."""
    method: Literal["l2f", "maml"] = "maml"
    """L2F or MAML."""
    rounds: int = 5
    """Times that each way is measured, after one that does not count."""
    iterations: int = 2
    """Meta-iterations per measurement; sinusoids take a hundred times as many."""
    threads: int = 2
    """CPU threads of what is measured on several."""
    compile: bool = False
    """Measure torch.compile too; needs a C++ compiler."""
    device: str = "cpu"
    """Device to learn on: `cpu`, or `cuda`, where --compile measures recorded gradients."""
    out: Path | None = None
    """File to write, json; by default nothing is written."""


def build(options: Options, batching: Batching, chunk: int, threads: int, compiled: bool) -> MetaSupervised:
    """An experiment that batches its tasks in one of the ways."""
    how: dict[str, Any] = {
        "batching": batching,
        "task_chunk": chunk,
        "threads": threads,
        "compiled": compiled,
        "device": devices.prepare(options.device),
    }
    inner = InnerLoop(options.inner_steps, 0.01)
    if options.problem == "sinusoid":
        curves = Curves(frequency=FREQUENCIES)
        settings = SupervisedSettings(options.method, tasks_per_batch=25, attenuation=Attenuation(), inner=inner)
        return MetaSupervised(SinusoidProblem(curves, curves), settings, **how)
    pixels = torch.randint(0, 256, (50 * 20, 1, 28, 28), dtype=torch.uint8)
    labels = torch.arange(50).repeat_interleave(20)
    images = Images(pixels, labels, tuple(map(str, range(50))))
    settings = SupervisedSettings(options.method, tasks_per_batch=8, attenuation=Attenuation(), inner=inner)
    classifier = Classifier(pooling="max" if options.problem == "max" else "stride")
    problem = ImageProblem({"train": images, "val": images, "test": images}, Shape(), classifier, options.inner_steps)
    return MetaSupervised(problem, settings, **how, adapted=in_inner_loop, attenuated=in_inner_loop)


@as_program
def main() -> None:
    """Measure, print, and write if asked."""
    options = tyro.cli(Options)
    quiet_machine()
    tasks = 25 if options.problem == "sinusoid" else 8
    ways: dict[str, tuple[Batching, int, int, bool]] = {
        "vmap, all tasks": ("vmap", tasks, 1, False),
        "vmap, chunks of 2": ("vmap", 2, 1, False),
        "loop": ("loop", 1, 1, False),
        f"loop, {options.threads} threads": ("loop", 1, options.threads, False),
        f"vmap, chunks of 2, {options.threads} threads": ("vmap", 2, options.threads, False),
    }
    if options.compile:
        ways["vmap, all tasks, compiled"] = ("vmap", tasks, 1, True)
        ways["loop, compiled"] = ("loop", 1, 1, True)
    experiments = {name: build(options, *way) for name, way in ways.items()}
    iterations = options.iterations * (100 if options.problem == "sinusoid" else 1)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, experiment in experiments.items():
            begin = time.perf_counter()
            for iteration in range(iterations if number else 2):
                experiment.iterate(iteration + 1)
            seconds[name].append((time.perf_counter() - begin) / iterations)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    best = min(medians.values())
    print(f"{options.problem}, {options.method}, {options.inner_steps} inner steps, {tasks} tasks")
    for name, median in medians.items():
        print(f"  {name:<32} {1e3 * median:9.2f} ms  {1 / median:8.1f} per s  {median / best:5.2f} × the fastest")
    if options.out is not None:
        record: dict[str, object] = {
            "problem": options.problem,
            "method": options.method,
            "inner_steps": options.inner_steps,
        }
        record |= {"tasks": tasks, "device": options.device, "seconds": medians, "cores": os.cpu_count()}
        options.out.write_text(json.dumps(record | provenance(), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
