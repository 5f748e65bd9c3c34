"""The supervised meta-objective: adapt to a task's support set, be judged on its query set (Algorithm 1; Eq. 2).

Written for one task. `MetaLoss` takes it over a meta-batch: tasks vmapped together or one after another, on threads.
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
from ..core.parameters import Loss, Params
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
    """A supervised domain: where tasks come from, and what is computed on one of them."""

    score_name: str
    """What `score` measures, such as accuracy."""
    score_digits: int
    """Decimals of the score that are worth printing."""
    higher_is_better: bool
    """Whether a higher score is a better one."""
    slow_to_draw: bool
    """Whether drawing tasks takes long enough to be done ahead, in the background."""
    embedding_size: int | None
    """Numbers in a task's `prototype`, or None where tasks have none."""

    def sample(self, split: Split, generator: np.random.Generator, number: int) -> Task:
        """Draw tasks, stacked: (number, ...)."""

    def network(self, generator: torch.Generator) -> nn.Module:
        """A new network."""

    def outputs(self, network: Any, params: Params, inputs: Tensor, step: int) -> Tensor:
        """What the network says after `step` inner steps; a pure function of the parameters."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the inner and the outer loop minimise: ()."""

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is reported: ()."""


class Adaptation(NamedTuple):
    """What one task's adaptation came to; over a batch, stacked: (N, ...)."""

    loss: Tensor
    """(), the meta-loss."""
    score: Tensor
    """(), on the query set after the last step."""
    gamma: Tensor
    """(L,), the task's attenuation; (0,) for MAML."""


def support_loss(learner: MetaLearner, problem: Problem, task: Task, step: int) -> Loss:
    """L_D of one task: the loss of its support set as a function of parameters that `step` inner steps led to."""

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
    """One task's inner loop on its support set: the parameters after 0 … steps steps, and where they started.

    Args:
        learner: θ, φ, and the update rule.
        problem: the domain.
        task: the task.
        steps: the number of inner steps.
        theta: the initialisation; by default the learner's own.
        first_order: whether inner gradients are constants; by default as the learner has it.
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
    """One task's part of the meta-objective, Σ_j w_j L_D'(f_θ_j) over the steps j = 1 … k.

    With w = (0, …, 0, 1) this is Eq. 2; other weights make MAML++'s multi-step loss (Antoniou et al. 2019, Sec. 4).

    Args:
        learner: θ, φ, and the update rule.
        problem: the domain.
        task: the task.
        weights: of the query loss after 1 … k steps; where 0, the query set is not even looked at. The last is not 0.
        theta: the initialisation; by default the learner's own.
        first_order: whether inner gradients are constants; by default as the learner has it.
    """
    path, start = adapt_to(learner, problem, task, len(weights), theta, first_order)
    total, outputs = task.query.new_zeros(()), task.query
    for step, weight in enumerate(weights, start=1):
        if weight:
            outputs = problem.outputs(learner.network, path[step], task.query, step)
            total = total + weight * problem.loss(outputs, task.query_targets)
    return Adaptation(total, problem.score(outputs.detach(), task.query_targets), start.gamma.detach())


def judged(learner: MetaLearner, problem: Problem, task: Task, steps: int) -> list[Params]:
    """What is judged of one task: the parameters after 0 … k steps, of which the first are θ itself.

    Attenuation is a part of adaptation.
    """
    path, _ = adapt_to(learner, problem, task, steps)
    return [learner.theta, *path[1:]]


def scores_by_step(learner: MetaLearner, problem: Problem, task: Task, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """One task judged on its query set: scores and losses after 0 … k steps (k + 1,), and outputs (k + 1, Q, ...).

    A network's buffers, such as running statistics, are for judging alone.
    """
    tracked = dict(learner.network.named_buffers())
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
    are taken in the chunks' order: the number of threads changes no digit. Tasks go to the learner's device; all that
    is not a gradient comes back to the CPU.

    Args:
        learner: θ, φ, α.
        problem: the domain.
        batching: `vmap` a chunk's tasks together, or `loop` over them. Small networks want the first, for they spend
            their time on dispatch; convolutions the second, for vmapped they are grouped, which is slower.
        task_chunk: tasks per chunk.
        threads: chunks at a time; on a CUDA device one.
        compiled: compile the loss of a chunk (torch.compile, which needs a C++ compiler); rounding differs. On a CUDA
            device its gradient is recorded instead (`devices.Recorded`); rounding does not differ.
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
        """Where the learner is."""
        return self.learner.device

    def over_tasks(self, function: Callable[[Task], Tree], tasks: Task) -> Tree:
        """function(task) for every task of a chunk, the results stacked over tasks."""
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
        """The network's layers that draw random numbers, found by trying the first of some tasks, once.

        Raises:
            ValueError: they cannot be repeated in this way of batching.
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
            if random.found:  # torch's generator, from which layers draw, is one for all threads.
                self.shards.close()
                self.shards = Shards(1, self.shards.tasks_per_shard)
            self._random = random
        return self._random

    def _map(self, function: Callable[[Task], Any], tasks: Task) -> list[Any]:
        """function(chunk) for every chunk of tasks, on the learner's device."""
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
        """These tasks' adaptations, and the gradient of the batch's mean meta-loss with respect to (θ, φ, α).

        Args:
            tasks: stacked.
            weights: as in `meta_loss`.
            share: which of the batch's tasks these are; by default all.
            seed_of: the number of a task in the batch → seed of what random layers draw for it.
            first_order: whether inner gradients are constants; by default as the learner has it.
        """
        share = share or Share(len(tasks.support))
        with self.random_layers(tasks).learning(map(seed_of, range(share.rows.start, share.rows.stop))):
            parts = self._map(self._chunk_gradient(weights, first_order), tasks)
        number = len(tasks.support)
        means = [sum(pieces) / number for pieces in zip(*(gradient for _, gradient in parts), strict=True)]
        return moved(joined([adaptation for adaptation, _ in parts]), CPU), share.mean(means)

    def evaluate(self, tasks: Task, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """`scores_by_step` of a batch, stacked over tasks, without learning."""

        @torch.no_grad()  # the grad mode belongs to a thread
        def chunk(tasks: Task) -> tuple[Tensor, ...]:
            return self.over_tasks(lambda task: scores_by_step(self.learner, self.problem, task, steps), tasks)

        self.random_layers(tasks).switch(False)
        scores, losses, outputs = joined(self._map(chunk, tasks))
        return moved((scores, losses, outputs), CPU)

    @torch.no_grad()
    def track(self, tasks: Task, steps: int) -> None:
        """Let running statistics, where the network has any, follow what is judged, on the first task's query set."""
        network = self.learner.network
        if not any(isinstance(layer, Norm) and layer.tracked for layer in network.modules()):
            return
        task = moved(rows_of(tasks, 0), self.device)
        for step, params in enumerate(judged(self.learner, self.problem, task, steps)):
            track(network, partial(self.problem.outputs, network, params, task.query, step), step)

    def starts(self, tasks: Task) -> tuple[Tensor, Params]:
        """Every task's γ (N, L), and ∇ of its support loss at θ, by name, stacked over tasks: what conflict is of."""

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
        """Conflict, γ, gradients before and after adaptation, the landscape around the first inner step; by task.

        Args:
            tasks: stacked.
            steps: inner steps.
            group: the processes that share these tasks; by default this one alone.
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

                meta_gradients = grad(query_loss)({name: theta[name] for name in names})
                return (*around, *after.values(), *meta_gradients.values())

            return self.over_tasks(task_ends, tasks)

        gamma, before = self.starts(tasks)
        ends = moved(joined(self._map(chunk, tasks)), CPU)
        around = Landscape(*ends[:3])
        after, meta_gradients = (
            dict(zip(names, part, strict=True)) for part in (ends[3 : 3 + len(names)], ends[3 + len(names) :])
        )
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
        """Adaptations of a chunk of tasks and the gradient of their summed losses; compiled once for every weights."""
        key = (weights, first_order)
        if key in self._gradients:
            return self._gradients[key]
        parameters = self.learner.meta_parameters()
        one = partial(meta_loss, self.learner, self.problem, weights=weights, first_order=first_order)

        def losses(tasks: Task) -> Adaptation:
            return self.over_tasks(lambda task: one(task=task), tasks)

        if self.compiled and self.device.type == "cpu":
            # Static: a weight is a number of its own, not a symbol that several sets of weights share.
            losses = torch.compile(losses, dynamic=False)

        def gradient(tasks: Task) -> tuple[Adaptation, list[Tensor]]:
            adaptation = losses(tasks)
            pieces = torch.autograd.grad(adaptation.loss.sum(), parameters, allow_unused=True)
            zeroed = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, pieces, strict=True)]
            return adaptation._replace(loss=adaptation.loss.detach()), zeroed

        recorded = self.compiled and self.device.type == "cuda"
        self._gradients[key] = Recorded(gradient) if recorded else gradient
        return self._gradients[key]
