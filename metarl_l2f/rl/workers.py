"""Copies of an environment spread over worker processes.

A worker is a fresh Python process that runs `copies.py` as a script. It is not a fork, which torch's threads would not
survive, and it imports neither this package, and with it torch, nor the user's script. Its input arrives through a
pipe, pickled by cloudpickle, which also supports lambdas, closures and classes defined in notebooks.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import Pipe, connection
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from . import copies
from .copies import CLOSING_SECONDS, Steps, brief, name_of_maker, no_sample_tasks, spread_seeds, spread_tasks

TERMINATING_SECONDS = 1.0  # Time for a terminated worker to end, before it is killed.


class WorkerError(RuntimeError):
    """An environment in a worker process raised an error, hung, or lost its process."""


@dataclass
class _Worker:
    """A worker process, as seen by the process that started it."""

    number: int
    rows: range
    """The numbers of its environments."""
    process: subprocess.Popen
    pipe: connection.Connection


class Workers(VectorEnv):
    """Environments in worker processes, each of which steps its share of them one after another.

    An error ends all workers, and the object cannot be used any more. Workers ignore SIGINT, so that Ctrl-C does not
    interrupt a step, and end when the program ends for any reason.

    Args:
        make: a function that builds one environment.
        num_envs: the number of environments in all.
        workers: the number of processes, 1 … num_envs.
        timeout: the longest time, in seconds, that a worker may take to build, reset or step its share once.
    Raises:
        WorkerError: an environment raised an error, hung, or lost its process.
        ValueError: the system is not POSIX.
        TypeError: `make` or a task cannot be pickled.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], num_envs: int, workers: int, timeout: float) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.num_envs, self.timeout = num_envs, timeout
        self.name = name_of_maker(make)
        self.tasks: Sequence[Any] | None = None
        self._steps = 0
        if not hasattr(select, "poll") or os.name != "posix":
            raise ValueError(f"worker processes need a POSIX system, got {sys.platform}; use workers=0 here")
        self._workers: list[_Worker] = []
        self._stop = weakref.finalize(self, _stop, self._workers, os.getpid())
        edges = [num_envs * number // workers for number in range(workers + 1)]
        try:
            for number, (start, end) in enumerate(pairwise(edges)):
                self._workers.append(_start(number, range(start, end)))
        except BaseException:
            self._abort()
            raise
        pickled = self._pickled(make)
        arguments = [(sys.path, pickled, worker.rows) for worker in self._workers]
        built = self._call("build", arguments, "while it was built")
        self.name, self.raw_observation_space, self.single_observation_space, self.single_action_space = built[0]
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def sample_tasks(self, number: int, generator: np.random.Generator) -> Any:
        """Draw tasks from the environment's own distribution, in the first worker."""
        ((found, tasks, state),) = self._call("sample_tasks", [(number, generator)], "in sample_tasks")
        if not found:
            raise no_sample_tasks(self.name)
        generator.bit_generator.state = state
        return tasks

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every environment, as `Copies.reset` does."""
        seeds, tasks, options = spread_seeds(seed, self.num_envs), spread_tasks(options, self.num_envs), options or {}
        self.tasks = tasks or self.tasks
        self._steps = 0
        arguments = []
        for worker in self._workers:
            share = slice(worker.rows.start, worker.rows.stop)
            own = {} if tasks is None else {"task": tasks[share]}
            arguments.append((seeds[share], options | own))
        return np.concatenate(self._call("reset", arguments, "in reset")), {}

    def step(self, actions: np.ndarray) -> Steps:
        """Take one time step in every unfinished episode, as `Copies.step` does."""
        shares = [(actions[worker.rows.start : worker.rows.stop],) for worker in self._workers]
        results = self._call("step", shares, f"at step {self._steps}")
        self._steps += 1
        observations, rewards, terminated, truncated = (np.concatenate(parts) for parts in zip(*results, strict=True))
        return observations, rewards, terminated, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        """Let the workers close their environments and end; terminate those that do not end in time."""
        self._stop()

    def _pickled(self, value: Any) -> bytes:
        try:
            return cloudpickle.dumps(value)
        except Exception as error:
            self._abort()
            raise TypeError(
                f"{self.name} cannot be sent to worker processes ({type(error).__name__}: {error}); make what "
                "cannot be pickled inside the environment's constructor, or use workers=0"
            ) from error

    def _call(self, method: str, arguments: Sequence[tuple[Any, ...]], when: str) -> list[Any]:
        """Call a method in the first workers at once, one per tuple of arguments; return the results in order."""
        if not self._stop.alive:
            raise RuntimeError(f"{self.name}: the workers have ended, closed or after an error; make new ones")
        try:
            return self._exchange(method, arguments, when)
        except BaseException:
            # After an interrupt, too: an answer left in a pipe would be taken for the answer to the next call.
            self._abort()
            raise

    def _exchange(self, method: str, arguments: Sequence[tuple[Any, ...]], when: str) -> list[Any]:
        called = self._workers[: len(arguments)]
        for worker, given in zip(called, arguments, strict=True):
            message = self._pickled((method, given))
            try:
                worker.pipe.send_bytes(message)
            except OSError:
                raise self._died(worker, when) from None
        answers: dict[int, Any] = {}
        waiting: dict[Any, _Worker] = {worker.pipe: worker for worker in called}
        deadline = time.monotonic() + self.timeout
        while waiting:
            ready = connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                late = next(iter(waiting.values()))
                # A process that the environment started may hold the pipe of a dead worker open.
                raise self._hung(late, when) if late.process.poll() is None else self._died(late, when)
            for pipe in ready:
                worker = waiting.pop(pipe)
                try:
                    answer = worker.pipe.recv_bytes()
                except (EOFError, OSError):
                    raise self._died(worker, when) from None
                answers[worker.number] = self._unpacked(worker, answer, when)
        return [answers[worker.number] for worker in called]

    def _unpacked(self, worker: _Worker, answer: bytes, when: str) -> Any:
        succeeded, result = cloudpickle.loads(answer)
        if succeeded:
            return result
        error, notes, trace = result
        raise WorkerError(
            f"{'; '.join(notes) or f'{self.name}: raised {when}'}, worker {worker.number}: {error}. The worker's own "
            f"traceback is below; workers=0 steps the environments in this process, within reach of a debugger.\n\n"
            f"{trace}"
        )

    def _hung(self, worker: _Worker, when: str) -> WorkerError:
        return WorkerError(
            f"{self.name}: no answer in {self.timeout:g} s {when} from {self._described(worker)}. Either it hangs, or "
            "it is slow: then raise timeout, the seconds for one step of a worker's share, or use more workers"
        )

    def _died(self, worker: _Worker, when: str) -> WorkerError:
        try:
            status = worker.process.wait(TERMINATING_SECONDS)
        except subprocess.TimeoutExpired:
            end = "its pipe was closed"
        else:
            end = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return WorkerError(
            f"{self.name}: a process was lost {when}, {end}: {self._described(worker)}. SIGKILL often means that "
            "memory ran out: use fewer environments; other signals are faults in compiled code"
        )

    def _described(self, worker: _Worker) -> str:
        """Describe a worker and its tasks; of many tasks, the first two and the last."""
        described = f"worker {worker.number} (environments {worker.rows[0]} to {worker.rows[-1]}"
        if self.tasks is not None:
            tasks = list(dict.fromkeys(brief(self.tasks[row]) for row in worker.rows))
            described += f", tasks {', '.join(tasks if len(tasks) < 4 else [*tasks[:2], '…', tasks[-1]])}"
        return described + ")"

    def _abort(self) -> None:
        """End all workers immediately."""
        if self._stop.detach() is not None:
            _stop(self._workers, os.getpid(), grace=0.0)


def _start(number: int, rows: range) -> _Worker:
    ours, theirs = Pipe()
    try:
        process = subprocess.Popen(
            # -P keeps that file's folder out of the worker's sys.path.
            [sys.executable, "-P", copies.__file__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            # Ctrl-C goes to the terminal's foreground group: not even a worker that is just starting may get it.
            process_group=0,
            # Workers are the parallelism; a thread pool in each of them would fight the others' for the cores.
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
    finally:
        theirs.close()
    return _Worker(number, rows, process, ours)


def _stop(workers: list[_Worker], owner: int, grace: float = CLOSING_SECONDS) -> None:
    """End workers: they have `grace` seconds to end by themselves, then they are terminated, and at last killed."""
    if os.getpid() != owner:
        return  # A fork of the program that started them, which is at its own end.
    for worker in workers if grace else []:
        with contextlib.suppress(OSError):  # It has ended already.
            worker.pipe.send_bytes(cloudpickle.dumps(("close", ())))
    deadline = time.monotonic() + grace
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.terminate()
    for worker in workers:
        try:
            worker.process.wait(TERMINATING_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.pipe.close()
