"""Rewrites the graph of a traced function (`traces.py`) so that a CPU computes the same, up to rounding, in less time.

A traced graph consists of plain operations without side effects (torch.fx), in which every derivative is written out.
Most of its time goes into products of matrices and passes over memory, and the rewriting saves some of both:

- operations that change nothing, such as copies, and those that are computed twice, are left out;
- products are turned so that no result has to be transposed in memory, and sums with a product become a part of it;
- tanh is computed through σ, as in acting (`networks.mlp.tanh`), which here costs its derivatives nothing;
- a result overwrites an operand that nothing reads any more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.dialect.common.cse_pass import CSEPass
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

aten = torch.ops.aten
COPIES = (aten.detach.default, aten.alias.default, aten.clone.default)
VIEWS = (aten.view.default, aten._unsafe_view.default)
NARROW = 16
"""Matrices of at most so many columns are slow factors where memory holds them row by row."""


def rewritten(module: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """A graph of the same function.

    Args:
        module: the graph of plain operations; it is changed.
        inputs: an example of its inputs.
    """
    without_copies(module.graph)
    module = simplified(module, inputs)
    turn_products(module.graph)
    module = simplified(module, inputs)
    add_into_products(module.graph)
    for node in module.graph.nodes:
        if node.target is aten.tanh.default:
            node.target = tanh
    return module


def finished(module: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph as it is computed: results overwrite what is not needed any more; after this it cannot be rewritten."""
    measure(module, inputs)
    copy_inputs_that_are_outputs(module.graph)
    reuse_memory(module.graph)
    for node in module.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet in QUICK:
            node.target = QUICK[packet]
        node.meta.clear()
    return fx.GraphModule({}, module.graph)


def measure(module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Note the shape, type and strides of every result."""
    with torch.no_grad():
        ShapeProp(module).propagate(*inputs)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's result."""
    return tuple(node.meta["tensor_meta"].shape)


def same_type(node: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes have one result each, of the same precision."""
    ours, theirs = node.meta.get("tensor_meta"), other.meta.get("tensor_meta")
    return isinstance(ours, TensorMetadata) and isinstance(theirs, TensorMetadata) and ours.dtype == theirs.dtype


def replace(node: fx.Node, by: Any) -> None:
    """Let all that reads a node read another one, and delete it."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def calls(graph: fx.Graph) -> Iterator[fx.Node]:
    """The operations of a graph, in order; they may be changed and deleted on the way."""
    return (node for node in list(graph.nodes) if node.op == "call_function")


# ---- effects ------------------------------------------------------------------------------------------------------


class Untraceable(Exception):
    """A function does something that its graph cannot repeat."""


def without_effects(graph: fx.Graph) -> None:
    """Let operations that change a tensor in place return a changed one instead, which is what follows reads already.

    Raises:
        Untraceable: something else reads the changed tensor, too, or random numbers are drawn.
    """
    memory = Memory(graph)
    for node in calls(graph):
        operation = node.target
        if not isinstance(operation, torch._ops.OpOverload):
            continue
        if torch.Tag.nondeterministic_seeded in operation.tags:
            raise Untraceable(f"{operation} draws random numbers")
        if operation._schema.is_mutable:
            packet = getattr(aten, operation.overloadpacket.__name__.removesuffix("_"), None)
            plain = getattr(packet, operation._overloadname, None)
            if plain is None or plain is operation or not memory.read_through(node):
                raise Untraceable(f"{operation} changes a tensor in place that is read elsewhere")
            node.target = plain


# ---- what changes nothing -----------------------------------------------------------------------------------------


def without_copies(graph: fx.Graph) -> None:
    """Leave copies out, and let no operation depend on how memory holds its operands."""
    for node in calls(graph):
        if node.target in COPIES:
            replace(node, node.args[0])
        elif node.target in VIEWS:
            node.target = aten.reshape.default
        elif node.target is aten.t.default:
            node.target, node.args = aten.transpose.int, (node.args[0], 0, 1)


def simplified(module: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Leave out what is not needed, is computed twice, or returns its operand."""
    size = 0
    while size != len(module.graph.nodes):
        module.graph.eliminate_dead_code()
        module = CSEPass().call(module).graph_module
        size = len(module.graph.nodes)
        measure(module, inputs)
        for node in calls(module.graph):
            simplify(node)
        module.graph.eliminate_dead_code()
    return module


def simplify(node: fx.Node) -> None:
    """Replace an operation that returns its operand, or the operand of that."""
    operand: Any = node.args[0] if node.args else None
    if not isinstance(operand, fx.Node) or not same_type(node, operand):
        return
    if is_turned(node) and is_turned(operand):
        replace(node, operand.args[0])
    elif node.target is aten.reshape.default and operand.target is aten.reshape.default:
        node.args = (operand.args[0], *node.args[1:])
    elif node.target in (aten.reshape.default, aten.expand.default) and shape_of(node) == shape_of(operand):
        replace(node, operand)
    elif node.target is aten.pow.Tensor_Scalar and node.args[1] == 0:
        node.target, node.args = aten.ones_like.default, (operand,)
    elif node.target in (aten.pow.Tensor_Scalar, aten.mul.Scalar, aten.mul.Tensor) and node.args[1] == 1:
        replace(node, operand)


# ---- products -----------------------------------------------------------------------------------------------------


def is_turned(node: Any) -> bool:
    """Whether a node transposes the matrices of its operand."""
    if node.target is not aten.transpose.int or "tensor_meta" not in node.meta:
        return False
    axes = len(shape_of(node))
    return {axis % axes for axis in node.args[1:]} == {axes - 1, axes - 2}


def turned(node: Any) -> Any:
    """The transposed matrices of a node, in front of the present place of insertion."""
    if is_turned(node):
        return node.args[0]
    return node.graph.call_function(aten.transpose.int, (node, -2, -1))


def turn_products(graph: fx.Graph) -> None:
    """Compute A B as (Bᵀ Aᵀ)ᵀ where its transpose is what is read, and where that is faster for narrow matrices."""
    for node in calls(graph):
        if node.target not in (aten.mm.default, aten.bmm.default):
            continue
        first, second = node.args
        rows, columns = shape_of(node)[-2:]
        with graph.inserting_before(node):
            if (rows > NARROW and all(map(is_turned, node.users))) or (columns <= NARROW < rows and is_turned(first)):
                product = graph.call_function(node.target, (turned(second), turned(first)))
                replace(node, graph.call_function(aten.transpose.int, (product, -2, -1)))
            elif node.target is aten.mm.default and columns <= NARROW < rows and not is_turned(second):
                held = graph.call_function(
                    aten.clone.default, (turned(second),), {"memory_format": torch.contiguous_format}
                )
                node.args = (first, graph.call_function(aten.transpose.int, (held, -2, -1)))


def add_into_products(graph: fx.Graph) -> None:
    """Compute x + A B in one operation."""
    into = {aten.mm.default: aten.addmm.default, aten.bmm.default: aten.baddbmm.default}
    for node in calls(graph):
        if node.target is not aten.add.Tensor or node.kwargs:
            continue
        for other, product in (node.args, node.args[::-1]):
            if (
                isinstance(other, fx.Node)
                and isinstance(product, fx.Node)
                and product.target in into
                and len(product.users) == 1
                and same_type(node, other)
                and shape_of(node) == shape_of(product)
                and len(shape_of(other)) == len(shape_of(node))
            ):
                node.target, node.args = into[product.target], (other, *product.args)
                graph.erase_node(product)
                break


# ---- memory -------------------------------------------------------------------------------------------------------


def tanh(inputs: Tensor) -> Tensor:
    """Compute tanh x as 2 σ(2x) − 1."""
    return torch.sigmoid(inputs * 2).mul_(2).sub_(1)


def tanh_(inputs: Tensor) -> Tensor:
    """The same, over its operand."""
    return inputs.mul_(2).sigmoid_().mul_(2).sub_(1)


def tanh_backward_(slope: Tensor, value: Tensor) -> Tensor:
    """The derivative of tanh, over the slope it is multiplied by."""
    result: Tensor = aten.tanh_backward.grad_input(slope, value, grad_input=slope)
    return result


OVERWRITING: Mapping[Any, Callable[..., Tensor]] = {
    aten.add.Tensor: Tensor.add_,
    aten.sub.Tensor: Tensor.sub_,
    aten.mul.Tensor: Tensor.mul_,
    aten.mul.Scalar: Tensor.mul_,
    aten.neg.default: Tensor.neg_,
    aten.exp.default: Tensor.exp_,
    aten.pow.Tensor_Scalar: Tensor.pow_,
    aten.addmm.default: Tensor.addmm_,
    aten.baddbmm.default: Tensor.baddbmm_,
    aten.tanh_backward.default: tanh_backward_,
    tanh: tanh_,
}
"""Operations that can write their result over their first operand."""

SYMMETRIC = (aten.add.Tensor, aten.mul.Tensor)

QUICK: Mapping[Any, Callable[..., Any]] = {
    getattr(aten, name): getattr(torch, name)
    for name in (
        *("add", "sub", "mul", "neg", "exp", "pow", "sum", "where", "clamp_min", "mm", "bmm", "addmm", "baddbmm"),
        *("reshape", "transpose", "unsqueeze", "squeeze", "select", "cat", "stack"),
    )
}
"""Functions that are the same as operations, and take less time to call."""


class Memory:
    """Which results of a graph lie in the same memory.

    Args:
        graph: a graph without side effects.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.order = {node: number for number, node in enumerate(graph.nodes)}
        self.views = {node for node in graph.nodes if is_view(node)}
        self.owner: dict[fx.Node, fx.Node] = {}
        """The node whose result a node's result lies in."""
        self.shared: dict[fx.Node, list[fx.Node]] = {}
        """The nodes whose results lie in that of an owner."""
        for node in graph.nodes:
            self.owner[node] = self.owner[node.all_input_nodes[0]] if node in self.views else node
            self.shared.setdefault(self.owner[node], []).append(node)

    def may_overwrite(self, node: fx.Node, operand: Any) -> bool:
        """Whether nothing but a node reads the memory of an operand any more, and its result fits there."""
        if not isinstance(operand, fx.Node) or self.owner[operand].op != "call_function":
            return False
        held, result = operand.meta.get("tensor_meta"), node.meta.get("tensor_meta")
        if not isinstance(held, TensorMetadata) or not isinstance(result, TensorMetadata):
            return False
        repeated = any(step == 0 and size > 1 for step, size in zip(held.stride, held.shape, strict=True))
        if held.shape != result.shape or held.dtype != result.dtype or repeated:
            return False
        shared = self.shared[self.owner[operand]]
        readers = [(reader, read) for read in shared for reader in read.users if reader not in self.views]
        if any(self.order[reader] > self.order[node] for reader, _ in readers):
            return False
        return [read for reader, read in readers if reader is node] == [operand] and node.args.count(operand) == 1

    def read_through(self, node: fx.Node) -> bool:
        """Whether all that reads the memory of a node's operand after the node reads the result of the node."""
        owner, result = self.owner[node], {node}
        for view in self.shared[owner]:
            if not result.isdisjoint(view.all_input_nodes):
                result.add(view)
        others = (reader for each in self.shared[owner] if each not in result for reader in each.users)
        return owner.op == "call_function" and all(self.order[reader] <= self.order[node] for reader in others)

    def overwrite(self, node: fx.Node, operand: Any) -> None:
        """Note that a node, and the views of it, now lie in the memory of an operand."""
        owner = self.owner[operand]
        moved = self.shared.pop(node)
        self.shared[owner] += moved
        self.owner |= dict.fromkeys(moved, owner)


def is_view(node: fx.Node) -> bool:
    """Whether the result of a node may lie in the memory of its first operand."""
    if node.op != "call_function" or node.target is tanh:
        return False
    if not isinstance(node.target, torch._ops.OpOverload) or node.target is aten.reshape.default:
        return True
    return any(returned.alias_info is not None for returned in node.target._schema.returns)


def reuse_memory(graph: fx.Graph) -> None:
    """Let results overwrite operands that nothing reads any more."""
    memory = Memory(graph)
    for node in calls(graph):
        if node.target not in OVERWRITING or node.kwargs:
            continue
        if node.target in SYMMETRIC and not memory.may_overwrite(node, node.args[0]):
            node.args = node.args[::-1]
        if memory.may_overwrite(node, node.args[0]):
            memory.overwrite(node, node.args[0])
            node.target = OVERWRITING[node.target]


def copy_inputs_that_are_outputs(graph: fx.Graph) -> None:
    """Copy every output that lies in an input's memory, which the caller may change."""
    memory, end = Memory(graph), next(reversed(graph.nodes))
    outputs: Any = end.args[0]
    with graph.inserting_before(end):
        copied = [
            graph.call_function(aten.clone.default, (output,)) if memory.owner[output].op == "placeholder" else output
            for output in outputs
        ]
    end.args = (copied,)
