"""Traced functions compute what the functions compute, and say when they cannot."""

import logging

import pytest
import torch
from torch.func import grad, vmap

from metarl_l2f.parallel.rewriting import tanh, tanh_
from metarl_l2f.parallel.shards import Shards
from metarl_l2f.parallel.traces import TracedShards


class Model:
    """Two parameters of a small network, and the sums over a shard that are traced."""

    def __init__(self):
        random = torch.Generator().manual_seed(0)
        shapes = ((3, 20), (20, 2))
        self.parameters = [
            torch.nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64)) for shape in shapes
        ]
        self.scale = torch.ones((), dtype=torch.float64)

    def loss(self, parameters, inputs):
        first, second = parameters
        hidden = torch.tanh(inputs @ first)
        return (self.scale * (hidden @ second).square()).sum()

    def adapted_loss(self, inputs):
        steps = grad(self.loss)(self.parameters, inputs)
        return self.loss([p - 0.01 * step for p, step in zip(self.parameters, steps, strict=True)], inputs)


def gradient(model, data):
    """Second order: the loss after a step, and its derivatives."""
    losses = vmap(model.adapted_loss)(data)
    return losses.detach(), torch.autograd.grad(losses.sum(), model.parameters)


def graph(model, data):
    return torch.autograd.grad(vmap(model.adapted_loss)(data).sum(), model.parameters, create_graph=True)


def product(model, slopes, direction):
    return torch.autograd.grad(slopes, model.parameters, direction, retain_graph=True)


def pair(threads=1):
    """A model, data of five tasks in shards of two, and the shards that trace and those that do not."""
    model = Model()
    data = torch.randn(5, 30, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model, data, Shards(threads, 2), TracedShards(threads, 2, lambda: model.parameters)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_a_trace_repeats_the_function_at_other_parameters_and_on_other_data(caplog):
    model, data, plain, traced = pair(threads=2)
    reads = [model.scale]
    close(traced.repeated(gradient, model, data, reads=reads), plain.repeated(gradient, model, data))
    assert len(traced.traces) == 2  # shards of two tasks, and one of one
    with torch.no_grad():
        for parameter in model.parameters:
            parameter.data = parameter * 0.5  # elsewhere in memory
    model.scale.fill_(0.7)
    other = 2 * data
    before = other.clone()
    again = traced.repeated(gradient, model, other, reads=reads)
    close(again, plain.repeated(gradient, model, other))
    assert len(traced.traces) == 2 and torch.equal(other, before) and not caplog.records
    assert str(again) == str(traced.repeated(gradient, model, other, reads=reads))


def test_what_does_not_depend_on_the_later_argument_is_computed_once():
    model, data, plain, traced = pair()
    data = data[:2]
    traced.state = lambda: [*model.parameters, model.scale]
    example = [torch.zeros_like(p) for p in model.parameters]
    ours, theirs = (shards.staged(graph, product, model, [data], example) for shards in (traced, plain))
    for seed in range(2):
        random = torch.Generator().manual_seed(seed)
        direction = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in model.parameters]
        close(ours(direction), theirs(direction))
    ((first, second),) = (trace.stages for trace in traced.traces.values())
    targets = [{node.target for node in stage.graph.graph.nodes} for stage in (first, second)]
    assert {tanh, tanh_} & targets[0] and not {tanh, tanh_} & targets[1]


def shared_operands(x):
    """Operands that are read again, seen through views, repeated, or returned."""
    doubled = x * 2
    column = doubled[:, :1]
    total = doubled + column.expand_as(doubled)
    negative = -doubled
    return [x.t(), doubled, total * negative, negative.exp() + total.sum(0), (x + 1).mul(1).pow(1) - x.pow(0)]


def changed_in_place(x):
    """In place, on a result that nobody else has seen."""
    return [(x * 3).masked_fill_(x > 0, 1.0).add_(x)]


def narrow_products(x):
    """Products of narrow and transposed matrices, added up."""
    wide, narrow = x.repeat(1, 10), x[:, :2].contiguous()
    return [(wide.t() @ narrow).t(), wide @ wide.t()[:, :3].contiguous() + x[:, :3], x + x @ x.t() @ x]


@pytest.mark.parametrize("function", [shared_operands, changed_in_place, narrow_products])
def test_results_that_overwrite_others_are_read_by_nobody_else(function, caplog):
    data = torch.randn(2, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def shard(fixed, stacked):
        return [function(x) for x in stacked]

    traced = TracedShards(1, 2)
    for values in (data, data + 1):
        before = values.clone()
        ours = traced.repeated(shard, None, values, derivatives=False)
        close(ours, Shards(1, 2).repeated(shard, None, before))
        assert torch.equal(values, before) and not caplog.records
    # What is returned is not the memory of an argument, which may change.
    assert all(x.untyped_storage().data_ptr() != data.untyped_storage().data_ptr() for x in ours[0][0])


def random_numbers(fixed, x):
    return x + torch.rand_like(x) * 0


def branches(fixed, x):
    return x if x.sum() > 0 else -x


def changes_its_argument(fixed, x):
    return x.add_(0)


def reads_what_may_change(fixed, x):
    return x * fixed


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (random_numbers, "rand_like.default draws random numbers"),
        (branches, ""),
        (changes_its_argument, "add_.Tensor changes a tensor in place that is read elsewhere"),
        (reads_what_may_change, r"it reads a tensor of shape (3,) that is neither an argument nor a parameter"),
    ],
)
def test_what_cannot_be_traced_is_computed_as_it_is_and_said_once(function, reason, caplog):
    data, fixed = torch.ones(2, 3, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
    traced = TracedShards(1, 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ours = traced.repeated(function, fixed, data)
            close(ours, Shards(1, 1).repeated(function, fixed, data))
    (record,) = caplog.records
    assert f"{function.__name__} is not compiled: " in record.message and reason in record.message
