"""Networks of torch's own layers in a problem of one's own: frozen parts, random layers, and layers that cannot be."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from metarl_l2f.core.update_rules import InnerLoop
from metarl_l2f.parallel.trees import rows_of
from metarl_l2f.supervised.episodes import Task
from metarl_l2f.supervised.experiment import MetaSupervised, SupervisedSettings
from metarl_l2f.training import checkpoint


class Lines:
    """Linear functions of four numbers, learned by a network of torch's own layers."""

    score_name, higher_is_better, slow_to_draw, embedding_size = "mse", False, False, None

    def __init__(self, build):
        self.build = build

    def sample(self, split, generator, number):
        x, weights = (torch.from_numpy(generator.normal(size=(number, n, 4))).float() for n in (10, 1))
        y = (x * weights).sum(-1, keepdim=True)
        return Task(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:], torch.zeros(number, 0))

    def network(self, generator):
        torch.manual_seed(0)
        return self.build()

    def outputs(self, network, params, inputs, step):
        return functional_call(network, params, (inputs,))

    def loss(self, outputs, targets):
        return F.mse_loss(outputs.reshape(targets.shape), targets)

    score = loss


def lines(build, method="maml", **how):
    inner = InnerLoop(inner_lr=0.05, learn_inner_lr=method == "l2f")
    settings = SupervisedSettings(method=method, tasks_per_batch=4, validation_tasks=4, inner=inner)
    return MetaSupervised(Lines(build), settings, **how)


def half_frozen():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    network[0].requires_grad_(False)
    return network


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize("method", ["maml", "l2f"])
def test_a_frozen_part_stays_and_comes_back_from_a_checkpoint(tmp_path, method, batching):
    run = lines(half_frozen, method, batching=batching)
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    for iteration in (1, 2):
        run.iterate(iteration)
    checkpoint.save(tmp_path / "state.pt", run.state_dict())
    moved = {name for name, value in run.learner.state_dict().items() if not torch.equal(value, before[name])}
    assert "network.2.weight" in moved and not any(name.startswith("network.0.") for name in moved)
    other = lines(half_frozen, method, batching=batching)
    with torch.no_grad():
        other.learner.network[0].weight.zero_()
    other.load_state_dict(checkpoint.load(tmp_path / "state.pt"))
    assert torch.equal(other.learner.network[0].weight, before["network.0.weight"])
    assert other.iterate(3) | {"time/iteration": 0} == run.iterate(3) | {"time/iteration": 0}


def dropped(kind=lambda: nn.Dropout(0.5)):
    return lambda: nn.Sequential(nn.Linear(4, 20), nn.ReLU(), kind(), nn.Linear(20, 1))


def first_lines(number):
    return Lines(None).sample("train", np.random.default_rng(0), number)


def test_dropout_is_off_wherever_a_network_is_judged():
    run, whole = lines(dropped(), batching="loop"), lines(dropped(nn.Identity), batching="loop")
    run.iterate(1)
    whole.load_state_dict(run.state_dict())
    assert torch.equal(run.evaluate(6, 1, seed=0), whole.evaluate(6, 1, seed=0))
    assert run.validate(1) == whole.validate(1)
    assert torch.equal(
        run.meta_loss.starts(first_lines(3))[1]["0.weight"], whole.meta_loss.starts(first_lines(3))[1]["0.weight"]
    )
    assert run.iterate(2)["loss"] != whole.iterate(2)["loss"]


@pytest.mark.parametrize(
    "kind",
    [lambda: nn.Dropout(0.5), nn.RReLU, lambda: nn.AlphaDropout(0.2), lambda: OwnNoise()],
    ids=["Dropout", "RReLU", "AlphaDropout", "own"],
)
def test_random_layers_repeat_in_training_whatever_the_threads_and_chunks(kind):
    def trained(iterations, state=None, **how):
        run = lines(dropped(kind), batching="loop", **how)
        if state is not None:
            run.load_state_dict(state)
        torch.manual_seed(len(iterations))  # What others draw does not matter.
        losses = [run.iterate(iteration)["loss"] for iteration in iterations]
        return losses, run

    losses, run = trained([1, 2, 3])
    assert len(set(losses)) == 3
    assert trained([1, 2, 3], threads=2, task_chunk=1)[0] == pytest.approx(losses, rel=1e-6)
    half = trained([1, 2])[1].state_dict()
    resumed, again = trained([3], half)
    assert resumed == losses[2:]
    assert all(torch.equal(a, b) for a, b in zip(again.learner.parameters(), run.learner.parameters(), strict=True))


class OwnNoise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


def test_what_dropout_draws_for_a_task_does_not_depend_on_which_process_has_it():
    whole, part = (lines(dropped(), batching="loop").meta_loss for _ in range(2))
    tasks = first_lines(4)
    expected = whole.gradient(tasks, (1.0,), seed_of=lambda task: 100 + task)[0].loss[2:]
    found = part.gradient(rows_of(tasks, slice(2, 4)), (1.0,), seed_of=lambda task: 102 + task)[0].loss
    assert torch.equal(found, expected)


def test_a_network_that_was_not_trained_yet_is_evaluated_without_its_random_layers():
    meta_loss = lines(dropped(), batching="loop").meta_loss
    one, other = (meta_loss.evaluate(first_lines(4), 1)[2] for _ in range(2))
    assert torch.equal(one, other)


def test_training_with_dropout_leaves_the_processes_random_numbers_alone():
    run, before = lines(dropped(), batching="loop"), torch.get_rng_state()
    run.iterate(1)
    assert torch.equal(torch.get_rng_state(), before)


class AlwaysDropped(nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5)


class OwnGenerator(nn.Linear):
    random = np.random.default_rng(0)

    def forward(self, x):
        return super().forward(x) + self.random.normal()


class Counting(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return super().forward(x)


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


class Writing(Counting):
    def forward(self, x):
        self.calls += 1
        return nn.Linear.forward(self, x)


class Mean(nn.Module):
    def forward(self, x):
        return (x[0] if isinstance(x, tuple) else x).mean(1)


def over_two(layer, size=8):
    """A layer that reads sequences, here of two pairs of numbers."""
    return lambda: nn.Sequential(nn.Unflatten(-1, (2, 2)), nn.Linear(2, 8), layer(), Mean(), nn.Linear(size, 1))


def transformer(dropout=0.0):
    return nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    ("build", "batching", "text"),
    [
        (dropped(), "vmap", r"the layer 2 \(Dropout\) draws random numbers.*use batching='loop'"),
        (over_two(lambda: transformer(0.1)), "vmap", r"the layer 2\.\w+ \(\w+\) draws random numbers"),
        (
            lambda: AlwaysDropped(4, 1),
            "loop",
            r"the network \(AlwaysDropped\) draws random numbers even out of training",
        ),
        (lambda: nn.Sequential(AlwaysDropped(4, 1)), "vmap", r"the layer 0 \(AlwaysDropped\) draws .* even out"),
        (lambda: OwnGenerator(4, 1), "loop", "outputs of the network .OwnGenerator. differ between two calls"),
        (lambda: OwnGenerator(4, 1), "vmap", "outputs of the network .OwnGenerator. differ between two calls"),
        (lambda: Counting(4, 1), "loop", r"the network \(Counting\) changes its buffers \['calls'\]"),
        (lambda: Writing(4, 1), "loop", r"the network \(Writing\) cannot be computed.*write to a state"),
        (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)), "vmap", r"layer 0 \(BatchNorm1d\) tracks running"),
        (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)), "loop", "track_running_stats=False, freeze its"),
        (
            lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
            "loop",
            r"the network \(InstanceNorm1d\) tracks running statistics",
        ),
        (over_two(lambda: nn.LSTM(8, 8, batch_first=True)), "vmap", r"layer 2 \(LSTM\) cannot .*batching='loop'"),
        (over_two(lambda: nn.GRU(8, 8, batch_first=True)), "vmap", r"layer 2 \(GRU\) cannot .*batching='loop'"),
        (lambda: Branching(4, 1), "vmap", r"the network \(Branching\) cannot be computed .*batching='loop'"),
    ],
)
def test_layers_that_cannot_be_computed_are_named_with_what_to_do(build, batching, text):
    with pytest.raises(ValueError, match=text):
        lines(build, batching=batching).iterate(1)


def test_random_numbers_outside_of_layers_are_refused():
    run = lines(lambda: nn.Linear(4, 1), batching="loop")
    run.problem.loss = lambda outputs, targets: F.mse_loss(F.dropout(outputs), targets)
    with pytest.raises(ValueError, match="outputs, loss or score draws random numbers outside of the network's layers"):
        run.iterate(1)


@pytest.mark.parametrize(
    ("build", "batching"),
    [
        (over_two(transformer), ("vmap", "loop")),
        (over_two(lambda: transformer(0.1)), ("loop",)),
        (over_two(lambda: nn.LSTM(8, 8, batch_first=True)), ("loop",)),
        (over_two(lambda: nn.LSTM(8, 8, 2, batch_first=True, dropout=0.3)), ("loop",)),
        (lambda: nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1)), ("vmap", "loop")),
        (lambda: nn.Sequential(nn.BatchNorm1d(4).eval(), nn.Linear(4, 1)), ("vmap", "loop")),
        (lambda: nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 1)), ("vmap", "loop")),
        (lambda: nn.Sequential(nn.Dropout(0.5).eval(), nn.Linear(4, 1)), ("vmap", "loop")),
        (lambda: Branching(4, 1), ("loop",)),
    ],
)
def test_ordinary_layers_train_and_are_judged(build, batching):
    found = []
    for how in batching:
        run = lines(build, "l2f", batching=how)
        found.append([run.iterate(1)["loss"], run.iterate(2)["loss"], *run.evaluate(3, 2, seed=0).flatten().tolist()])
        run.meta_loss.inspect(run.validation_tasks(), 1)
    assert found[0] == pytest.approx(found[-1], rel=1e-4)
