"""A supervised meta-learning run: settings, and the object that iterates, validates and evaluates.

Everything random is keyed by (seed, stream, iteration), so `iterate(i)` depends on nothing but the learner's and the
optimiser's state and i: runs resume exactly, and two methods with one seed have the same tasks.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from ..checks import check_finite
from ..core.learner import meta_learner, renamed_since_0_1
from ..diagnostics import degree_of_conflict
from ..inspection import gamma_statistics
from ..methods import named
from ..parallel.ranks import Group
from ..parallel.shards import Share
from ..parallel.trees import rows_of
from ..training.checkpoint import load_into
from ..training.seeding import Stream, generator, torch_generator
from .episodes import Split, Task
from .meta_loss import Batching, MetaLoss, Problem
from .settings import SupervisedSettings

logger = logging.getLogger(__name__)

TASKS_AT_ONCE = 100
"""The number of tasks that evaluation holds in memory together."""


def multi_step_weights(steps: int, progress: float) -> tuple[float, ...]:
    """Compute the weights of the query loss after 1 … k steps (MAML++, Sec. 4).

    They are equal at progress 0; then all but the last fall linearly to 0, and the weights sum to 1.

    Args:
        steps: k, the number of inner steps.
        progress: the fraction of the annealing that is done; more than 1 counts as 1.
    """
    other = max(0.0, 1.0 - progress) / steps
    return (*[other] * (steps - 1), 1.0 - other * (steps - 1))


def cosine(first: float, last: float, progress: float) -> float:
    """Interpolate from `first` at progress 0 to `last` at progress 1 along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def every_parameter(name: str) -> bool:
    """Select every parameter of a network."""
    return True


class MetaSupervised:
    """Meta-trains a network on a supervised problem.

    Args:
        problem: the domain.
        settings: the settings; None stands for the defaults.
        iterations: the number of meta-iterations of the whole run, which the cosine schedule spans.
        batching: whether the tasks of a chunk are `vmap`ped together or computed in a `loop`.
        task_chunk: the number of tasks per chunk.
        threads: the number of CPU threads, which changes no result.
        compiled: whether the loss is compiled (torch.compile), which changes rounding; not with a multi-step loss.
        device: the device of learning, which changes rounding (`devices.prepare`); None stands for the CPU.
        adapted: a function that tells by its name whether a parameter is adapted by the inner loop.
        attenuated: a function that tells by its name whether a parameter is attenuated.
        group: the processes that share every batch of tasks; None stands for this one alone.
    Raises:
        ValueError: arguments do not fit each other.
    """

    def __init__(
        self,
        problem: Problem,
        settings: SupervisedSettings | None = None,
        *,
        iterations: int = 1,
        batching: Batching = "vmap",
        task_chunk: int = 25,
        threads: int = 1,
        compiled: bool = False,
        device: torch.device | None = None,
        adapted: Callable[[str], bool] = every_parameter,
        attenuated: Callable[[str], bool] = every_parameter,
        group: Group | None = None,
    ) -> None:
        self.problem, self.settings, self.iterations = problem, settings or SupervisedSettings(), iterations
        self.group = group or Group()
        Share(self.settings.tasks_per_batch, self.group).warn_of_idle("make tasks_per_batch larger")
        seed, attenuation, method = self.settings.seed, self.settings.attenuation, named(self.settings.method)
        if compiled and self.settings.optimiser.multi_step_iterations:
            raise ValueError(
                "a compiled loss has fixed weights, but multi_step_iterations lets them change with every iteration; "
                "drop compile, or multi_step_iterations"
            )
        self.learner = meta_learner(
            problem.network(torch_generator(seed, Stream.INIT)),
            attenuation if method.attenuates else None,
            self.settings.inner,
            adapted=adapted,
            attenuated=attenuated,
            embedding_size=problem.embedding_size if attenuation.conditioning == "prototype" else None,
            generator=torch_generator(seed, Stream.INIT, 1),
        ).to(device or "cpu")
        self.meta_loss = MetaLoss(self.learner, problem, batching, task_chunk, threads, compiled)
        self.optimiser = torch.optim.Adam(self.learner.meta_parameters(), self.settings.optimiser.meta_lr, fused=True)
        self._drawing = ThreadPoolExecutor(1, thread_name_prefix="draw")
        self._drawn: dict[int, Future[Task]] = {}

    # ---- what `train` calls -----------------------------------------------------------------------------------

    def iterate(self, iteration: int) -> dict[str, float]:
        """Do one meta-iteration, and return its metrics (`docs/metrics.md`)."""
        begin = time.perf_counter()
        settings, optimiser = self.settings, self.settings.optimiser
        self._schedule(iteration)
        first_order = settings.inner.first_order or iteration <= optimiser.first_order_iterations
        share = Share(settings.tasks_per_batch, self.group)
        drawn = self._training_tasks(iteration)
        tasks = rows_of(drawn, share.rows)
        adaptation, gradient = self.meta_loss.gradient(
            tasks, self._step_weights(iteration), share, partial(self._layers_seed, iteration), first_order
        )
        if get_total_norm(gradient, math.inf).isfinite():
            self._update(gradient)
        else:
            logger.warning("iteration %d: the update was rejected: its gradient is not finite", iteration)
        self.meta_loss.track(drawn, settings.inner.inner_steps)  # The same first task on every rank.
        check_finite(self.learner.state_dict(), iteration, "a smaller meta_lr or inner_lr, or with clip")
        loss, score = share.mean((adaptation.loss.mean(), adaptation.score.mean()))
        metrics = {"loss": float(loss), f"{self.problem.score_name}/step_{settings.inner.inner_steps}": float(score)}
        if iteration % settings.diagnostics_every == 0:
            metrics |= self._diagnostics(tasks, adaptation.gamma, share)
        return metrics | {"time/iteration": time.perf_counter() - begin}

    def validate(self, iteration: int) -> dict[str, float]:
        """Compute scores after 0 … k inner steps on the run's validation tasks, which are fixed."""
        share = Share(self.settings.validation_tasks, self.group)
        tasks = rows_of(self.validation_tasks(), share.rows)
        scores, losses, _ = self.meta_loss.evaluate(tasks, self.settings.inner.inner_steps)
        means = share.mean({self.problem.score_name: scores.mean(0), "loss": losses.mean(0)})
        return {
            f"validation/{tag}/step_{step}": float(value)
            for tag, by_step in means.items()
            for step, value in enumerate(by_step)
        }

    def validation_tasks(self) -> Task:
        """Return the run's validation tasks, always the same."""
        settings = self.settings
        return self.problem.sample("val", generator(settings.seed, Stream.VALIDATION, 0), settings.validation_tasks)

    def evaluate(
        self, tasks: int, steps: int, seed: int, split: Split = "test", states: Sequence[dict[str, Any]] = ()
    ) -> Tensor:
        """Compute scores of held-out tasks after 0 … steps inner steps: (tasks, steps + 1).

        Args:
            tasks: the number of tasks.
            steps: the number of inner steps; step sizes beyond the trained steps are `later_lr_factor` times the last.
            seed: the seed of the tasks.
            split: the split of the tasks.
            states: the states of an ensemble, whose outputs are averaged; if empty, the learner as it is.
        """
        scores = []
        for key, first in enumerate(range(0, tasks, TASKS_AT_ONCE)):
            drawn = self.problem.sample(
                split, generator(seed, Stream.EVALUATION, key), min(TASKS_AT_ONCE, tasks - first)
            )
            if states:
                scores.append(self._ensemble_scores(drawn, steps, states))
            else:
                scores.append(self.meta_loss.evaluate(drawn, steps)[0])
        return torch.cat(scores)

    def _ensemble_scores(self, tasks: Task, steps: int, states: Sequence[dict[str, Any]]) -> Tensor:
        own, outputs = {name: value.clone() for name, value in self.learner.state_dict().items()}, []
        for state in states:
            load_into(self.learner, renamed_since_0_1(state["learner"]), "network or method")
            outputs.append(self.meta_loss.evaluate(tasks, steps)[2])
        self.learner.load_state_dict(own)
        mean = torch.stack(outputs).mean(0)
        return torch.stack(
            [
                torch.stack([self.problem.score(output, targets) for output in by_step])
                for by_step, targets in zip(mean, tasks.query_targets, strict=True)
            ]
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the learner's meta-parameters and the optimiser's moments."""
        return {"learner": dict(self.learner.state_dict()), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            CheckpointError: the state belongs to another network or method.
        """
        load_into(self.learner, renamed_since_0_1(state.get("learner", {})), "network or method")
        self.optimiser.load_state_dict(state["optimiser"])

    def close(self) -> None:
        """End the threads."""
        self.meta_loss.shards.close()
        self._drawing.shutdown()

    # ---- one meta-iteration -----------------------------------------------------------------------------------

    def _training_tasks(self, iteration: int) -> Task:
        """The iteration's tasks; where drawing is slow, those of the next iteration are drawn in the background."""
        if not self.problem.slow_to_draw:
            return self._draw(iteration)
        drawn = self._drawn.pop(iteration, None)
        self._drawn = {iteration + 1: self._drawing.submit(self._draw, iteration + 1)}
        return self._draw(iteration) if drawn is None else drawn.result()

    def _draw(self, iteration: int) -> Task:
        random = generator(self.settings.seed, Stream.TASKS, iteration)
        return self.problem.sample("train", random, self.settings.tasks_per_batch)

    def _layers_seed(self, iteration: int, task: int) -> int:
        """The seed of the random layers, such as dropout, for one task of an iteration."""
        return torch_generator(self.settings.seed, Stream.LAYERS, iteration, task).initial_seed()

    def _schedule(self, iteration: int) -> None:
        """Set the meta step size, which depends on how far the run is."""
        chosen = self.settings.optimiser
        if chosen.schedule == "cosine":
            progress = (iteration - 1) / max(1, self.iterations - 1)
            for group in self.optimiser.param_groups:
                group["lr"] = cosine(chosen.meta_lr, chosen.final_lr, progress)

    def _step_weights(self, iteration: int) -> tuple[float, ...]:
        annealing = self.settings.optimiser.multi_step_iterations
        return multi_step_weights(self.settings.inner.inner_steps, (iteration - 1) / annealing if annealing else 1.0)

    def _update(self, gradient: list[Tensor]) -> None:
        clip = self.settings.optimiser.clip
        for parameter, piece in zip(self.learner.meta_parameters(), gradient, strict=True):
            # Fused Adam pairs numbers by their place in memory; torch.compile may place gradients in another order.
            parameter.grad = (piece if clip is None else piece.clamp(-clip, clip)).contiguous()
        self.optimiser.step()

    def _diagnostics(self, tasks: Task, gamma: Tensor, share: Share) -> dict[str, float]:
        conflict = degree_of_conflict(self.meta_loss.starts(tasks)[1], share.sum)
        metrics = {f"conflict/{layer}": angle for layer, angle in conflict.items()}
        return metrics | gamma_statistics(self.learner, share.gather(gamma)) | self.learner.rule.learned()
