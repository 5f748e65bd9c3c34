"""The viewer's answers: how the policies of runs adapt to one task, in numbers and paths, and as films."""

import math
import reprlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import gymnasium
import numpy as np

from ..core.parameters import Params
from ..diagnostics import conflict_by_task
from ..envs.base import Domain, TaskKind
from ..methods import label_of
from ..reports.paths import walked
from ..reports.video import save, side_by_side
from ..rl.adaptation import Rollouts
from ..training.config import command
from ..training.seeding import Stream, generator
from .command_line import USER_ERRORS
from .film import LAST_FRAME_SECONDS, USUAL_FPS, chosen_task, film, filmable, in_words
from .reinforcement import load_policy, mean_returns

Format = Literal["mp4", "gif"]
Answer = TypeVar("Answer")

STEPS = (1, 5)  # Fewest and most inner steps, …
EPISODES = (1, 100)  # … episodes before adaptation and after each step, …
SEEDS = (0, 2**31 - 1)  # … and seeds that may be asked for.
USUAL_STEPS, USUAL_EPISODES = 3, 20
BEYOND = 0.5  # Tasks may lie so many times the width of the trained range outside it.
PATHS_SHOWN = 10  # Of each policy, at most.
DECIMALS = 4  # Of drawn paths; numbers come in full.
FILM_SIZE = 240  # Pixels: the height of a panel.
PATIENCE = 120.0  # Seconds that a question may wait for those before it, and be worked on.


class Refused(ValueError):
    """A question that has no answer, and why."""


class Busy(Exception):
    """The answer took too long."""


# --- Questions ---


@dataclass(frozen=True)
class Tasks:
    """The tasks that a question may name."""

    kind: TaskKind
    """A goal on the plane, a direction along the track, or a speed in m/s."""
    names: tuple[str, ...]
    """Names of a task's numbers."""
    trained: tuple[float, float]
    """The smallest and the largest number of a task in training."""

    @property
    def accepted(self) -> tuple[float, float]:
        """The smallest and the largest number accepted: half as far again, except for directions."""
        low, high = self.trained
        margin = 0.0 if self.kind == "direction" else BEYOND * (high - low)
        return low - margin, high + margin

    def checked(self, numbers: Any) -> tuple[float, ...]:
        """Check a task that came from outside.

        Raises:
            Refused: it is none of these.
        """
        low, high = self.accepted
        if not isinstance(numbers, list) or len(numbers) != len(self.names) or not all(map(_is_number, numbers)):
            count = f"{len(self.names)} number{'' if len(self.names) == 1 else 's'}"
            raise Refused(f"task must be a list of {count} ({', '.join(self.names)}), got {reprlib.repr(numbers)}")
        for name, number in zip(self.names, numbers, strict=True):
            if self.kind == "direction" and number not in (low, high):
                raise Refused(f"{name} must be {low:g} (backwards) or {high:g} (forwards), got {reprlib.repr(number)}")
            if not low <= number <= high:  # NaN is not either.
                raise Refused(f"{name} must lie between {low:g} and {high:g}, got {reprlib.repr(number)}")
        return tuple(map(float, numbers))


def tasks_of(domain: Domain, environment: str) -> Tasks:
    """The tasks of a domain that questions may name.

    Args:
        domain: the environment's domain.
        environment: its id, for the error.
    Raises:
        ValueError: pictures do not show this domain's tasks, and neither does the viewer.
    """
    if domain.task_kind is None:
        raise ValueError(
            f"the viewer shows goals on the plane, directions and speeds, not tasks of {environment}; films are made "
            f"of any environment: {command('play', 'RUN')}"
        )
    return Tasks(domain.task_kind, domain.task_names, domain.task_bounds)


@dataclass(frozen=True)
class Question:
    """A question of the page."""

    task: tuple[float, ...] | None
    """None: the first held-out one of the seed's evaluation."""
    steps: int
    """Inner gradient steps k."""
    episodes: int
    """Before adaptation and after each step."""
    seed: int
    """Seed of the noise, and of a held-out task."""


def question(content: Any, tasks: Tasks, seed: int) -> Question:
    """Check a question that came from outside; `seed` is its seed where it names none.

    Raises:
        Refused: something in it is missing, unknown or out of range; says what is accepted.
    """
    if not isinstance(content, dict):
        raise Refused(f"a question must be an object with task, steps, episodes, seed, got {reprlib.repr(content)}")
    unknown = sorted(content.keys() - {"task", "steps", "episodes", "seed"})
    if unknown:
        raise Refused(f"{reprlib.repr(unknown[0])} is no part of a question; it may have task, steps, episodes, seed")
    given = content.get("task")
    return Question(
        None if given is None else tasks.checked(given),
        _whole("steps", content.get("steps", USUAL_STEPS), STEPS),
        _whole("episodes", content.get("episodes", USUAL_EPISODES), EPISODES),
        _whole("seed", content.get("seed", seed), SEEDS),
    )


def _whole(name: str, value: Any, accepted: tuple[int, int]) -> int:
    low, high = accepted
    if not _is_number(value) or not low <= value <= high or value != math.floor(value):
        raise Refused(f"{name} must be a whole number from {low} to {high}, got {reprlib.repr(value)}")
    return int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- Runs ---


class ViewedRun:
    """One trained run.

    Args:
        folder: the run's folder.
        checkpoint: `best` by validation, or `latest`.
        threads: CPU threads; changes no number.
    Raises:
        ValueError: there is no such run, or it learned from labels instead of rewards.
    """

    def __init__(self, folder: Path, checkpoint: str = "best", threads: int = 1) -> None:
        self.options, self.experiment = load_policy(folder, checkpoint, threads)
        self.folder, self.environment = folder, self.options.environment()
        self.gradients: Params | None = None

    def meet_training_tasks(self) -> None:
        """Roll θ out on a fixed batch of training tasks, and keep their gradients at θ.

        The batch is that of iteration 0, which training leaves out, for it counts from 1.
        """
        experiment, seed = self.experiment, self.experiment.settings.seed
        count = experiment.settings.tasks_per_batch
        tasks = experiment.sampler.sample_tasks(count, generator(seed, Stream.TASKS, 0))

        def noise(phase: int) -> list[np.random.Generator]:
            return [generator(seed, Stream.POLICY, 0, task, phase) for task in range(count)]

        self.gradients = experiment.adaptation.collect(experiment.sampler, tasks, noise, steps=0).start.gradients

    def about(self) -> dict[str, Any]:
        """The run's description for the page."""
        settings = self.experiment.settings
        return {
            "name": self.folder.resolve().name,
            "method": label_of(settings.method),
            "seed": settings.seed,
            "env_steps": self.experiment.env_steps,
            "steps_trained": settings.inner.inner_steps,
        }

    def answer(self, task: Any, asked: Question) -> dict[str, Any]:
        """Adapt to a task: the numbers of `MetaRL.evaluate` for this task alone, and the paths of a walker."""
        begin = time.perf_counter()
        rollouts = self.experiment.evaluate([task], asked.episodes, asked.steps, asked.seed)
        found = {
            "returns": mean_returns(rollouts)[0].tolist(),
            "gamma": self._gammas(rollouts),
            "conflict": self._conflict(rollouts),
            "seconds": time.perf_counter() - begin,
        }
        return found if np.shape(task) == () else found | {"paths": _paths(rollouts)}

    def film(self, env: gymnasium.Env, task: Any, asked: Question, path: Path) -> None:
        """A film of the same policies, of one episode each, from the same start."""
        settings = self.experiment.settings
        adapted = self.experiment.adapt(task=task, steps=asked.steps, episodes=asked.episodes, seed=asked.seed)
        clips = film(env, adapted, task, settings.horizon, asked.seed, FILM_SIZE)
        fps = env.metadata.get("render_fps") or USUAL_FPS
        heading, note = str(self.experiment.env).rpartition("/")[-1], label_of(settings.method)
        frames = side_by_side(clips, heading, in_words(task, env), note, hold=round(LAST_FRAME_SECONDS * fps))
        save(frames, path, fps)

    def _gammas(self, rollouts: Rollouts) -> dict[str, float]:
        """The mean γ of each attenuated tensor for the task; empty for MAML."""
        learner = self.experiment.learner
        return {name: float(g.mean()) for name, g in learner.gammas_by_tensor(rollouts.start.gamma).items()}

    def _conflict(self, rollouts: Rollouts) -> dict[str, float]:
        """Angle between this task's gradient at θ and the sum of those of the training tasks, radians by layer."""
        angles = conflict_by_task(rollouts.start.gradients, self.gradients)
        return {layer: float(angle[0]) for layer, angle in angles.items()}


def _paths(rollouts: Rollouts) -> list[list[list[list[float]]]]:
    """Every position (x, y) of some episodes, before adaptation and after each step."""
    return [
        [
            walked(batch, 0, episode).astype(float).round(DECIMALS).tolist()
            for episode in range(min(PATHS_SHOWN, batch.mask.shape[1]))
        ]
        for batch in rollouts.episodes
    ]


class Viewer:
    """One run, or two side by side. Any thread may ask; one answer is computed at a time.

    All work is done in one thread of its own: experiments share environments between calls, and OpenGL belongs to the
    thread that opened it.

    Args:
        runs: one or two runs on one environment.
    Raises:
        ValueError: they are of different environments, or of one whose tasks the viewer does not know.
    """

    def __init__(self, runs: Sequence[ViewedRun]) -> None:
        first, *others = runs
        for other in others:
            if other.environment != first.environment:
                raise ValueError(
                    f"two runs are compared on one environment, but {first.folder} is on {_told(first.environment)} "
                    f"and {other.folder} on {_told(other.environment)}; view them one by one"
                )
        self.runs = list(runs)
        self.tasks = tasks_of(first.options.domain, str(first.experiment.env))
        self.seed = first.experiment.settings.seed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="viewer")
        self._closed = False
        self._filmed: gymnasium.Env | None = None

    def measure(self) -> None:
        """Measure the training tasks' gradients, once, before any question."""
        for run in self.runs:
            run.meet_training_tasks()

    def about(self) -> dict[str, Any]:
        """The description of runs and tasks that the page needs to ask."""
        experiment = self.runs[0].experiment
        return {
            "environment": str(experiment.env).rpartition("/")[-1],
            "horizon": experiment.settings.horizon,
            "kind": self.tasks.kind,
            "names": self.tasks.names,
            "trained": self.tasks.trained,
            "accepted": self.tasks.accepted,
            "steps": STEPS,
            "episodes": EPISODES,
            "seeds": SEEDS,
            "usual": {"steps": USUAL_STEPS, "episodes": USUAL_EPISODES, "seed": self.seed},
            "training_tasks": experiment.settings.tasks_per_batch,
            "runs": [run.about() for run in self.runs],
        }

    def adapt(self, content: Any) -> dict[str, Any]:
        """All runs' answers to one question, and the question in full; `held_out` marks the seed's held-out task.

        Args:
            content: the question, as it came from outside.
        Raises:
            Refused: it has no answer; says why.
            Busy: others asked too much before.
        """
        asked = question(content, self.tasks, self.seed)

        def work() -> dict[str, Any]:
            task, held_out = self._task(asked), chosen_task(self.runs[0].experiment, None, asked.seed)
            return {
                "task": np.atleast_1d(task).tolist(),
                "held_out": bool(np.array_equal(task, held_out)),
                "steps": asked.steps,
                "episodes": asked.episodes,
                "seed": asked.seed,
                "runs": [run.answer(task, asked) for run in self.runs],
            }

        return self._in_turn(work)

    def film(self, content: Any, number: int, form: str) -> bytes:
        """A film of one run's policies, for the same questions as `adapt`.

        Args:
            content: the question, as it came from outside.
            number: the run's number, from 0.
            form: mp4 or gif.
        Raises:
            Refused, Busy: as in `adapt`.
        """
        asked = question(content, self.tasks, self.seed)
        if not 0 <= number < len(self.runs):
            raise Refused(f"there is no run {number}; they are numbered from 0 to {len(self.runs) - 1}")
        if form not in get_args(Format):
            raise Refused(f"a film is one of {', '.join(get_args(Format))}, got {reprlib.repr(form)}")

        def work() -> bytes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"film.{form}"
                self.runs[number].film(self._filmable(), self._task(asked), asked, path)
                return path.read_bytes()

        return self._in_turn(work)

    def _task(self, asked: Question) -> Any:
        return chosen_task(self.runs[0].experiment, asked.task, asked.seed)

    def _filmable(self) -> gymnasium.Env:
        """The environment that draws; opened once, for looking for a way to draw takes a second."""
        if self._filmed is None:
            experiment = self.runs[0].experiment
            self._filmed = filmable(str(experiment.env), experiment.env_kwargs, FILM_SIZE)
        return self._filmed

    def _in_turn(self, work: Callable[[], Answer]) -> Answer:
        waiting = self._thread.submit(self._unless_closed, work)
        try:
            return waiting.result(PATIENCE)
        except LateError:
            waiting.cancel()
            raise Busy(f"no answer within {PATIENCE:g} s: too much was asked before; try again") from None
        except USER_ERRORS as error:
            raise Refused(str(error)) from error

    def _unless_closed(self, work: Callable[[], Answer]) -> Answer:
        if self._closed:
            raise Busy("the viewer has ended")
        return work()

    def close(self) -> None:
        """End the thread, after what it is working on, and close the environments."""
        self._closed = True
        if self._filmed is not None:
            self._thread.submit(self._filmed.close)
        self._thread.shutdown()
        for run in self.runs:
            run.experiment.close()


def _told(environment: tuple[str, Mapping[str, Any]]) -> str:
    env, arguments = environment
    return f"{env} ({', '.join(f'{name}={value}' for name, value in arguments.items())})"
