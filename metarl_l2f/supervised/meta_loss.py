"""The supervised meta-objective: the query loss after adaptation to the support set (Algorithm 1; Eq. 2).

The functions are written for one task. `MetaLoss` computes them for a meta-batch, whose tasks are vmapped together or
computed one after another, on threads.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from ..checks import check_choice
from ..core.learner import MetaLearner, Start
from ..core.parameters import Loss, Params, contexts
from ..diagnostics import Landscape, conflict_by_task, gradient_cosines, landscape, summed_over_tasks
from ..inspection import Inspection
from ..networks.images import Norm, track
from ..parallel.devices import Recorded
from ..parallel.ranks import Group
from ..parallel.shards import Shards, Share
from ..parallel.trees import joined, moved, rows_of
from .episodes import Split, Task
from .layers import RandomLayers, explained, refuse_running_statistics

Batching = Literal["vmap", "loop"]
CPU = torch.device("cpu")
Tree = TypeVar("Tree", bound=tuple)


class Problem(Protocol):
    """A supervised domain: its tasks, network, loss and score."""

    score_name: str
    """The name of the score, such as accuracy."""
    score_digits: int
    """The number of decimals with which the score is printed."""
    higher_is_better: bool
    """Whether a higher score is a better one."""
    slow_to_draw: bool
    """Whether drawing tasks is so slow that it should be done ahead, in the background."""
    embedding_size: int | None
    """The length of a task's `prototype`, or None where tasks have none."""

    def sample(self, split: Split, generator: np.random.Generator, number: int) -> Task:
        """Draw tasks, stacked: (number, ...)."""

    def network(self, generator: torch.Generator) -> nn.Module:
        """Build a new network, with initial weights from the generator."""

    def outputs(self, network: Any, params: Params, inputs: Tensor, step: int) -> Tensor:
        """Compute the network's outputs after `step` inner steps, as a pure function of the parameters."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss that the inner and the outer loop minimise: ()."""

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the score that is reported: ()."""


class Adaptation(NamedTuple):
    """The result of one task's adaptation; stacked over a batch, (N, ...)."""

    loss: Tensor
    """(), the meta-loss."""
    score: Tensor
    """(), the score on the query set after the last step."""
    gamma: Tensor
    """(L,), the task's attenuation; (0,) for MAML."""


def support_loss(learner: MetaLearner, problem: Problem, task: Task, step: int) -> Loss:
    """Return the support loss L_D of one task as a function of the parameters after `step` inner steps."""

    def loss(params: Params) -> Tensor:
        return problem.loss(problem.outputs(learner.network, params, task.support, step), task.support_targets)

    return loss


def adapt_to(
    learner: MetaLearner,
    problem: Problem,
    task: Task,
    steps: int,
    theta: Params | None = None,
    first_order: bool | None = None,
) -> tuple[list[Params], Start]:
    """Run one task's inner loop on its support set, and return the parameters after 0 … steps steps and its start.

    Args:
        learner: θ, φ, and the update rule.
        problem: the domain.
        task: the task.
        steps: the number of inner steps.
        theta: the initialisation; None stands for the learner's own.
        first_order: whether inner gradients are constants; None stands for the learner's own setting.
    """
    return learner.trajectory(
        partial(support_loss, learner, problem),
        task,
        lambda number, params: task,
        steps,
        prototype=lambda task: task.prototype if problem.embedding_size else None,
        theta=theta,
        first_order=first_order,
    )


def meta_loss(
    learner: MetaLearner,
    problem: Problem,
    task: Task,
    weights: Sequence[float],
    theta: Params | None = None,
    first_order: bool | None = None,
) -> Adaptation:
    """Compute one task's part of the meta-objective, Σ_j w_j L_D'(f_θ_j) over the steps j = 1 … k.

    With w = (0, …, 0, 1) this is Eq. 2; other weights give MAML++'s multi-step loss (Antoniou et al. 2019, Sec. 4).

    Args:
        learner: θ, φ, and the update rule.
        problem: the domain.
        task: the task.
        weights: the weights of the query loss after 1 … k steps; where one is 0, outputs are not computed. The last is
            not 0.
        theta: the initialisation; None stands for the learner's own.
        first_order: whether inner gradients are constants; None stands for the learner's own setting.
    """
    path, start = adapt_to(learner, problem, task, len(weights), theta, first_order)
    total, outputs = task.query.new_zeros(()), task.query
    for step, weight in enumerate(weights, start=1):
        if weight:
            outputs = problem.outputs(learner.network, path[step], task.query, step)
            total = total + weight * problem.loss(outputs, task.query_targets)
    return Adaptation(total, problem.score(outputs.detach(), task.query_targets), start.gamma.detach())


def judged(learner: MetaLearner, problem: Problem, task: Task, steps: int) -> list[Params]:
    """Return the parameters that are judged, those after 0 … k steps.

    The first are θ without attenuation, which is a part of adaptation.
    """
    path, _ = adapt_to(learner, problem, task, steps)
    return [learner.theta, *path[1:]]


def scores_by_step(learner: MetaLearner, problem: Problem, task: Task, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Judge one task on its query set: scores and losses after 0 … k steps (k + 1,), and outputs (k + 1, Q, ...).

    A network's buffers, such as running statistics, are used here alone.
    """
    buffers, apart = learner.network.named_buffers(), contexts(learner.network)
    tracked = {name: buffer for name, buffer in buffers if name not in apart}
    outputs = [
        problem.outputs(learner.network, params | tracked, task.query, step)
        for step, params in enumerate(judged(learner, problem, task, steps))
    ]
    scores = [problem.score(output, task.query_targets) for output in outputs]
    losses = [problem.loss(output, task.query_targets) for output in outputs]
    return torch.stack(scores), torch.stack(losses), torch.stack(outputs)


class MetaLoss:
    """The meta-objective of a batch of tasks, and its gradient.

    Tasks are cut into chunks, each differentiated by itself, so memory holds the graphs of one chunk per thread. Sums
    are taken in the chunks' order, so the number of threads changes no digit. Tasks are moved to the learner's device,
    and all results except gradients are moved back to the CPU.

    Args:
        learner: θ, φ, α.
        problem: the domain.
        batching: whether a chunk's tasks are `vmap`ped together or computed in a `loop`. Small networks are faster with
            `vmap`, since most of their time is dispatch; convolutions with `loop`, since vmapped ones are grouped
            convolutions, which are slower.
        task_chunk: the number of tasks per chunk.
        threads: the number of chunks that are computed at a time; 1 on a CUDA device.
        compiled: whether the loss of a chunk is compiled (torch.compile, which needs a C++ compiler), which changes
            rounding. On a CUDA device its gradient is recorded instead (`devices.Recorded`), which does not.
    Raises:
        ValueError: an argument is out of range, or the network has layers that keep a state.
    """

    def __init__(
        self,
        learner: MetaLearner,
        problem: Problem,
        batching: Batching,
        task_chunk: int,
        threads: int = 1,
        compiled: bool = False,
    ) -> None:
        check_choice("batching", batching, Batching)
        refuse_running_statistics(learner.network)
        self.learner, self.problem, self.batching, self.compiled = learner, problem, batching, compiled
        self.shards = Shards(threads if self.device.type == "cpu" else 1, task_chunk)
        self._gradients: dict[Any, Callable[[Task], tuple[Adaptation, list[Tensor]]]] = {}
        self._random: RandomLayers | None = None

    @property
    def device(self) -> torch.device:
        """The learner's device."""
        return self.learner.device

    def over_tasks(self, function: Callable[[Task], Tree], tasks: Task) -> Tree:
        """Compute function(task) for every task of a chunk, and stack the results over tasks."""
        if self.batching == "vmap":
            return vmap(function)(tasks)
        results = []
        for row in range(len(tasks.support)):
            if self._random:
                self._random.next_task()
            results.append(function(rows_of(tasks, row)))
        kind = type(results[0])
        columns = [torch.stack(column) for column in zip(*results, strict=True)]
        return kind(*columns) if hasattr(kind, "_fields") else kind(columns)

    def random_layers(self, tasks: Task) -> RandomLayers:
        """Find the network's layers that draw random numbers; the first call tries the first of the tasks.

        Args:
            tasks: stacked tasks.
        Raises:
            ValueError: the layers cannot be seeded by task with this way of batching.
        """
        if self._random is None:
            task, steps = moved(rows_of(tasks, 0), self.device), self.learner.rule.steps
            network = self.learner.network

            @torch.no_grad()
            def compute() -> Tensor:
                return scores_by_step(self.learner, self.problem, task, steps)[2]

            with explained(network, vmapped=False):
                random = RandomLayers(network, compute, self.device)
            if random.found and (self.batching == "vmap" or self.compiled):
                raise ValueError(
                    f"{random.label} draws random numbers, and tasks that are vmapped or compiled cannot each have "
                    "their own; use batching='loop' without compiled, or take the layer out"
                )
            if random.found:  # All threads share torch's generator, from which layers draw.
                self.shards.close()
                self.shards = Shards(1, self.shards.tasks_per_shard)
            self._random = random
        return self._random

    def _map(self, function: Callable[[Task], Any], tasks: Task) -> list[Any]:
        """Compute function(chunk) for every chunk of tasks, on the learner's device."""
        with explained(self.learner.network, self.batching == "vmap"):
            return self.shards.map(function, moved(tasks, self.device))

    def gradient(
        self,
        tasks: Task,
        weights: tuple[float, ...],
        share: Share | None = None,
        seed_of: Callable[[int], int] = int,
        first_order: bool | None = None,
    ) -> tuple[Adaptation, list[Tensor]]:
        """Compute the tasks' adaptations, and the gradient of the batch's mean meta-loss with respect to (θ, φ, α).

        Args:
            tasks: stacked tasks.
            weights: the weights of the steps, as in `meta_loss`.
            share: this process's share of the batch, to which the tasks belong; None stands for the whole batch.
            seed_of: a function from the number of a task in the batch to the seed of its random layers.
            first_order: whether inner gradients are constants; None stands for the learner's own setting.
        """
        share = share or Share(len(tasks.support))
        with self.random_layers(tasks).learning(map(seed_of, range(share.rows.start, share.rows.stop))):
            parts = self._map(self._chunk_gradient(weights, first_order), tasks)
        number = len(tasks.support)
        means = [sum(pieces) / number for pieces in zip(*(gradient for _, gradient in parts), strict=True)]
        return moved(joined([adaptation for adaptation, _ in parts]), CPU), share.mean(means)

    def evaluate(self, tasks: Task, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Compute `scores_by_step` for a batch, stacked over tasks."""

        @torch.no_grad()  # The grad mode is set per thread.
        def chunk(tasks: Task) -> tuple[Tensor, ...]:
            return self.over_tasks(lambda task: scores_by_step(self.learner, self.problem, task, steps), tasks)

        self.random_layers(tasks).switch(False)
        scores, losses, outputs = joined(self._map(chunk, tasks))
        return moved((scores, losses, outputs), CPU)

    @torch.no_grad()
    def track(self, tasks: Task, steps: int) -> None:
        """Update the network's running statistics, if it has any, on the first task's query set."""
        network = self.learner.network
        if not any(isinstance(layer, Norm) and layer.tracked for layer in network.modules()):
            return
        task = moved(rows_of(tasks, 0), self.device)
        for step, params in enumerate(judged(self.learner, self.problem, task, steps)):
            track(network, partial(self.problem.outputs, network, params, task.query, step), step)

    def starts(self, tasks: Task) -> tuple[Tensor, Params]:
        """Compute every task's γ (N, L) and the gradient of its support loss at θ, by name, stacked over tasks."""

        @torch.no_grad()
        def chunk(tasks: Task) -> tuple[Tensor, ...]:
            def task_start(task: Task) -> tuple[Tensor, ...]:
                _, start = adapt_to(self.learner, self.problem, task, 1)
                return (start.gamma, *start.gradients.values())

            return self.over_tasks(task_start, tasks)

        self.random_layers(tasks).switch(False)
        gamma, *gradients = joined(self._map(chunk, tasks))
        return moved((gamma, dict(zip(self.learner.differentiated, gradients, strict=True))), CPU)

    def inspect(self, tasks: Task, steps: int, group: Group | None = None) -> Inspection:
        """Measure γ, conflict, gradients before and after adaptation, and the landscape around the first inner step.

        Args:
            tasks: stacked tasks.
            steps: the number of inner steps.
            group: the processes that share these tasks; None stands for this one alone.
        """
        share = Share(len(tasks.support), group)
        tasks = rows_of(tasks, share.rows)
        learner, problem, names = self.learner, self.problem, self.learner.differentiated

        @torch.no_grad()
        def chunk(tasks: Task) -> tuple[Tensor, ...]:
            def task_ends(task: Task) -> tuple[Tensor, ...]:
                path, _ = adapt_to(learner, problem, task, steps)
                after = learner.gradients(support_loss(learner, problem, task, steps), path[-1], names)
                direction = {name: path[0][name] - path[1][name] for name in learner.rule.names}
                around = landscape(support_loss(learner, problem, task, 0), path[0], direction)
                theta = {name: p.detach() for name, p in learner.theta.items()}
                weights = (*[0.0] * (steps - 1), 1.0)

                def query_loss(moved: Params) -> Tensor:
                    return meta_loss(learner, problem, task, weights, theta | moved).loss

                meta_gradients = grad(query_loss)({name: theta[name] for name in learner.learned})
                return (*around, *after.values(), *meta_gradients.values())

            return self.over_tasks(task_ends, tasks)

        gamma, before = self.starts(tasks)
        ends = moved(joined(self._map(chunk, tasks)), CPU)
        around = Landscape(*ends[:3])
        after = dict(zip(names, ends[3 : 3 + len(names)], strict=True))
        meta_gradients = dict(zip(learner.learned, ends[3 + len(names) :], strict=True))
        found = Inspection(
            learner.gammas_by_tensor(gamma),
            conflict_by_task(before, share.sum(summed_over_tasks(before))),
            conflict_by_task(meta_gradients, share.sum(summed_over_tasks(meta_gradients))),
            gradient_cosines(before, after),
            around,
        )
        return share.gather(found)

    def _chunk_gradient(
        self, weights: tuple[float, ...], first_order: bool | None
    ) -> Callable[[Task], tuple[Adaptation, list[Tensor]]]:
        """A function of a chunk's tasks: adaptations, and the gradient of summed losses; compiled once per weights."""
        key = (weights, first_order)
        if key in self._gradients:
            return self._gradients[key]
        parameters = self.learner.meta_parameters()
        one = partial(meta_loss, self.learner, self.problem, weights=weights, first_order=first_order)

        def losses(tasks: Task) -> Adaptation:
            return self.over_tasks(lambda task: one(task=task), tasks)

        if self.compiled and self.device.type == "cpu":
            # Static: weights are constants of the compiled code, not symbols that several sets of weights share.
            losses = torch.compile(losses, dynamic=False)

        def gradient(tasks: Task) -> tuple[Adaptation, list[Tensor]]:
            adaptation = losses(tasks)
            pieces = torch.autograd.grad(adaptation.loss.sum(), parameters, allow_unused=True)
            zeroed = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, pieces, strict=True)]
            return adaptation._replace(loss=adaptation.loss.detach()), zeroed

        recorded = self.compiled and self.device.type == "cuda"
        self._gradients[key] = Recorded(gradient) if recorded else gradient
        return self._gradients[key]
