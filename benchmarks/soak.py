"""Does anything leak? Memory, threads, files and processes of long runs, and of environments that are made and closed.

Runs are the launchers themselves, in a process of their own, looked at from outside through /proc (Linux) after every
meta-iteration. Growth is that of the resident memory's mean over the last tenth of the iterations, relative to its mean
over the first tenth after the warm-up.
"""

from metarl_l2f.program import as_program

import csv
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
import tyro

from metarl_l2f.rl.vectorise import vectorise
from metarl_l2f.training.config import provenance
from metarl_l2f.training.metrics import METRICS_FILE

ROOT = Path(__file__).parents[1]
WARM_UP = 0.2  # Share of the iterations that does not count.
LOOKS = 10  # Times that a run is looked at, pictures drawn; the first falls into the warm-up.
POLL = 0.1  # Seconds between two looks for a new line of metrics.
TOGETHER = 4  # Environments of one vector.
FOREIGN = "Pendulum-v1"  # What copies are made of.
STEPS = 3  # Of every environment that is made and closed.


@dataclass(frozen=True)
class Options:
    """Train for long, make and close every kind of environment, and see what grows."""

    navigation: int = 500
    """Meta-iterations of launchers/navigation.py; 0 leaves it out."""
    cheetah: int = 50
    """Meta-iterations of launchers/cheetah_vel.py; 0 leaves it out."""
    tasks: int = 20
    """Tasks per meta-iteration of both."""
    episodes: int = 20
    """Episodes per task of both, of 100 steps."""
    cycles: int = 20
    """Times that every kind of environment is made, stepped and closed."""
    out: Path | None = None
    """File to write, json, with the samples of the runs beside it, as .csv; by default nothing is written."""


class Held(NamedTuple):
    """Memory, threads, files and children of a process at one moment."""

    memory: float
    """Resident, MiB."""
    threads: int
    files: int
    """Open file descriptors."""
    processes: int
    """Children."""
    shared: int
    """Pieces of shared memory mapped."""


def held(process: int | str = "self") -> Held:
    """Look at a process.

    Raises:
        FileNotFoundError, ProcessLookupError: it has ended.
    """
    home = Path("/proc") / str(process)
    pages = int((home / "statm").read_text().split()[1])
    tasks = list((home / "task").iterdir())
    children = sum(len((task / "children").read_text().split()) for task in tasks)
    files = len(os.listdir(home / "fd"))
    shared = sum("/dev/shm/" in line or "/SYSV" in line for line in (home / "maps").read_text().splitlines())
    return Held(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(tasks), files, children, shared)


def watched(launcher: str, iterations: int, flags: Sequence[str]) -> list[Held]:
    """Samples of a launcher's process after each meta-iteration that was seen to end.

    Raises:
        RuntimeError: the run failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        command = [sys.executable, str(ROOT / "launchers" / launcher), "--iterations", str(iterations), *flags]
        seen: list[Held] = []
        with subprocess.Popen(
            [*command, "--evaluation-tasks", "0", "--log-dir", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as run:
            lines = 0
            while run.poll() is None:
                time.sleep(POLL)
                written = _lines(folder / METRICS_FILE)
                if lines < written < iterations:  # After the last one it draws and reports.
                    seen.append(held(run.pid))
                    lines = written
            if run.returncode:
                assert run.stderr is not None
                raise RuntimeError(f"{launcher} failed: {run.stderr.read().decode()[-1000:]}")
    return seen


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def growth(memory: Sequence[float]) -> float:
    """Growth of the mean over the last tenth, relative to the mean over the first tenth after the warm-up."""
    steady = memory[int(WARM_UP * len(memory)) :]
    tenth = max(1, len(steady) // 10)
    return statistics.mean(steady[-tenth:]) / statistics.mean(steady[:tenth]) - 1


def kinds() -> dict[str, Callable[[], gymnasium.Env | gymnasium.vector.VectorEnv]]:
    """A maker of each kind of environment: every registered one, alone and batched, and copies here and in workers."""
    ids = sorted(name for name in gymnasium.registry if name.startswith("metarl_l2f/"))
    return {
        **{name: partial(gymnasium.make, name) for name in ids},
        **{f"{name}, batched": partial(vectorise, name, TOGETHER, threads=2) for name in ids},
        "copies in this process": lambda: vectorise(FOREIGN, TOGETHER),
        "copies in two workers": lambda: vectorise(FOREIGN, TOGETHER, workers=2),
    }


def cycle(make: Callable[[], gymnasium.Env | gymnasium.vector.VectorEnv]) -> None:
    """Make an environment, take a few steps, and close it."""
    env = make()
    try:
        env.reset(seed=0)
        for _ in range(STEPS):
            env.step(np.zeros(env.action_space.shape, env.action_space.dtype))
    finally:
        env.close()


def leaked(make: Callable[[], gymnasium.Env | gymnasium.vector.VectorEnv], cycles: int) -> Held:
    """The growth of this process over a number of cycles, after one that loads what is needed."""
    cycle(make)
    gc.collect()
    before = held()
    for _ in range(cycles):
        cycle(make)
    gc.collect()
    now = held()
    return Held(
        now.memory - before.memory,
        now.threads - before.threads,
        now.files - before.files,
        now.processes - before.processes,
        now.shared - before.shared,
    )


@as_program
def main() -> None:
    """Soak, print, and write if asked."""
    options = tyro.cli(Options)
    record: dict[str, object] = {}
    rows = []
    begin = time.monotonic()
    size = ["--tasks-per-batch", str(options.tasks), "--episodes-per-task", str(options.episodes), "--horizon", "100"]
    for launcher, iterations in (("navigation.py", options.navigation), ("cheetah_vel.py", options.cheetah)):
        if not iterations:
            continue
        started = time.monotonic()
        flags = [*size, "--inspect-every", str(max(1, iterations // LOOKS))]
        seen = watched(launcher, iterations, flags)
        rows += [(launcher, number, *what) for number, what in enumerate(seen, start=1)]
        record[launcher] = {
            "flags": flags,
            "iterations": iterations,
            "seen": len(seen),
            "memory_mib": round(seen[-1].memory, 1),
            "growth": round(growth([what.memory for what in seen]), 5),
            "threads": sorted({what.threads for what in seen}),
            "files": sorted({what.files for what in seen}),
            "processes": sorted({what.processes for what in seen}),
            "wall_s": round(time.monotonic() - started),
        }
        print(launcher, record[launcher], flush=True)
    grown = {name: leaked(make, options.cycles) for name, make in kinds().items()} if options.cycles else {}
    for name, what in grown.items():
        print(f"{name:<40}", *(f"{field} {value:+.4g}" for field, value in what._asdict().items()), flush=True)
    if grown:
        record["cycles"] = {"number": options.cycles, "grown": {name: what._asdict() for name, what in grown.items()}}
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        context = {"cores": os.cpu_count(), "wall_s": round(time.monotonic() - begin)}
        options.out.write_text(json.dumps({"figures": record} | context | provenance(), indent=1) + "\n")
        if rows:
            with open(options.out.with_suffix(".csv"), "w", newline="") as file:
                csv.writer(file).writerows([("launcher", "seen", *Held._fields), *rows])


if __name__ == "__main__":
    sys.exit(main())
