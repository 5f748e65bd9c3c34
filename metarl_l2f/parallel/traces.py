"""Functions of tensors that are traced once, and from then on replayed as a graph of plain operations.

Derivatives of derivatives under `vmap` spend time on bookkeeping, and compute more than is needed. A trace holds the
operations that they come to, which `rewriting.py` then makes fewer and faster. This changes rounding, but nothing else:
a trace repeats bit for bit, on any number of threads. No compiler is needed.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from .rewriting import Untraceable, finished, rewritten, without_effects
from .shards import TASKS_PER_SHARD, Shards
from .trees import mapped, tensors_of

logger = logging.getLogger(__name__)


class Stage(NamedTuple):
    """A part of a traced function."""

    graph: fx.GraphModule
    """The operations, as a function of the tensors of the state that they read, and of the arguments' tensors."""
    read: list[int]
    """The numbers of the tensors of the state that they read."""

    @torch.no_grad()
    def __call__(self, state: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compute the outputs."""
        results: list[Tensor] = self.graph.forward(*(state[number] for number in self.read), *tensors)
        return results


class Trace(NamedTuple):
    """A function of trees of tensors, traced."""

    stages: list[Stage]
    """Its parts; each but the first takes the outputs of the one before, and the later arguments' tensors."""
    outputs: Any
    """The tree of its results, of empty tensors."""

    def result(self, tensors: Sequence[Tensor]) -> Any:
        """The results as a tree."""
        remaining = iter(tensors)
        return mapped(lambda _: next(remaining), self.outputs)


def trace(function: Callable[..., Any], arguments: Sequence[Any], state: Sequence[Tensor], later: int = 0) -> Trace:
    """Trace a function; what does not depend on its later arguments becomes a stage of its own.

    Args:
        function: maps trees of tensors to a tree of tensors. It may differentiate with respect to the state.
        arguments: an example of its arguments.
        state: the tensors that it may read beside its arguments, such as parameters.
        later: the number of its last arguments that come later.
    Raises:
        Untraceable: it changes tensors in place, draws random numbers, or reads tensors that are neither arguments nor
            state, which may have other values at the next call.
    """
    inputs, outputs = tensors_of(list(arguments)), list[Any]()

    def flattened(*tensors: Tensor) -> list[Tensor]:
        remaining = iter(tensors)
        result = function(*(mapped(lambda _: next(remaining), argument) for argument in arguments))
        outputs.append(mapped(lambda _: torch.empty(0), result))  # Not the result, which keeps its graph in memory.
        return [tensor.detach() for tensor in tensors_of(result)]

    with torch.enable_grad():  # Without, activations may overwrite their inputs (`networks.mlp.tanh`).
        module = make_fx(flattened)(*inputs)
    without_effects(module.graph)
    read = state_as_inputs(module, state)
    held = [state[number].detach() for number in read]
    module = rewritten(module, [*held, *inputs])
    if not later:
        return Trace([Stage(finished(module, [*held, *inputs]), read)], outputs[0])
    number = len(tensors_of(list(arguments[-later:])))
    first, second = split(module, number)
    kept = first(*held, *inputs[:-number])
    stages = [
        Stage(finished(first, [*held, *inputs[:-number]]), read),
        Stage(finished(second, [*kept, *inputs[-number:]]), []),
    ]
    return Trace(stages, outputs[0])


def state_as_inputs(module: fx.GraphModule, state: Sequence[Tensor]) -> list[int]:
    """Turn the tensors that a graph reads beside its inputs into further inputs, in front; returns which they are.

    Raises:
        Untraceable: one is not part of the state.
    """
    graph, numbers = module.graph, {id(tensor): number for number, tensor in enumerate(state)}
    inputs: dict[int, fx.Node] = {}
    start = next(iter(graph.nodes))
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, node.target)
        if id(tensor) not in numbers:
            shape = tuple(tensor.shape)
            raise Untraceable(f"it reads a tensor of shape {shape} that is neither an argument nor a parameter")
        if id(tensor) not in inputs:
            with graph.inserting_before(start):
                inputs[id(tensor)] = graph.placeholder(f"state_{len(inputs)}")
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.erase_node(node)
    return [numbers[key] for key in inputs]


def split(module: fx.GraphModule, later: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a graph in two: what does not depend on its last inputs, and the rest, which takes the results of the first.

    Args:
        module: the graph.
        later: the number of its last inputs.
    """
    nodes = list(module.graph.nodes)
    late = set([node for node in nodes if node.op == "placeholder"][-later:])
    for node in nodes:
        if node.op == "output" or not late.isdisjoint(node.all_input_nodes):
            late.add(node)
    kept = [node for node in nodes if node not in late and not late.isdisjoint(node.users)]
    first, second = fx.Graph(), fx.Graph()
    early = dict[fx.Node, fx.Node]()
    for node in nodes:
        if node not in late:
            early[node] = first.node_copy(node, early.__getitem__)
    first.output([early[node] for node in kept])
    rest = {node: second.placeholder(node.name) for node in kept}
    for node in nodes:
        if node in late:
            rest[node] = second.node_copy(node, rest.__getitem__)
    return fx.GraphModule({}, first), fx.GraphModule({}, second)


class TracedShards(Shards):
    """Shards that trace what is computed repeatedly. A function that cannot be traced is computed as it is.

    Args:
        threads, tasks_per_shard: as in `Shards`.
        state: gives the tensors that functions read beside their arguments, such as parameters, always as many and in
            the same order; they may move in memory, and change between calls.
    """

    def __init__(
        self, threads: int, tasks_per_shard: int = TASKS_PER_SHARD, state: Callable[[], Sequence[Tensor]] = tuple
    ) -> None:
        super().__init__(threads, tasks_per_shard)
        self.state = state
        self.traces: dict[Hashable, Trace | None] = {}
        self.refused: set[Hashable] = set()

    def repeated(
        self,
        function: Callable[..., Any],
        fixed: Any,
        *trees: Any,
        derivatives: bool = True,
        reads: Sequence[Tensor] = (),
    ) -> list[Any]:
        shards, state = self.cut(trees), [*self.state(), *reads]
        # Traced here and not on the threads, because tracing concerns the whole process.
        traces = [self._trace((function, fixed), partial(function, fixed), shard, state) for shard in shards]
        if None in traces:
            return super().repeated(function, fixed, *trees, derivatives=derivatives)

        def replay(pair: tuple[Trace, Any]) -> Any:
            traced, shard = pair
            return traced.result(traced.stages[0](state, tensors_of(shard)))

        return self.map_list(replay, list(zip(traces, shards, strict=True)))

    def staged(
        self, build: Callable[..., Any], apply: Callable[..., Any], fixed: Any, trees: Sequence[Any], example: Any
    ) -> Callable[[Any], list[Any]]:
        def both(*arguments: Any) -> Any:
            *shard, argument = arguments
            return apply(fixed, build(fixed, *shard), argument)

        shards, state = self.cut(tuple(trees)), self.state()
        traces = [self._trace((build, apply, fixed), both, [*shard, example], state, later=1) for shard in shards]
        if None in traces:
            return super().staged(build, apply, fixed, trees, example)

        def begin(pair: tuple[Trace, Any]) -> tuple[Trace, list[Tensor]]:
            traced, shard = pair
            return traced, traced.stages[0](state, tensors_of(shard))

        begun = self.map_list(begin, list(zip(traces, shards, strict=True)))

        def finish(argument: list[Tensor], pair: tuple[Trace, list[Tensor]]) -> Any:
            traced, kept = pair
            return traced.result(traced.stages[1](state, [*kept, *argument]))

        return lambda argument: self.map_list(partial(finish, tensors_of(argument)), begun)

    def _trace(
        self,
        key: tuple[Any, ...],
        function: Callable[..., Any],
        arguments: Sequence[Any],
        state: Sequence[Tensor],
        later: int = 0,
    ) -> Trace | None:
        """The trace of a function for arguments of these shapes; None if it cannot be traced."""
        leaves = tensors_of(list(arguments))
        full = (*key, *((leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves))
        if full not in self.traces:
            try:
                self.traces[full] = trace(function, arguments, state, later)
            except Exception as error:  # Whatever it is: the function can be computed without a trace.
                self.traces[full] = None
                if key not in self.refused:
                    logger.warning("%s is not compiled: %s", key[0].__name__, str(error) or type(error).__name__)
                self.refused.add(key)
        return self.traces[full]
