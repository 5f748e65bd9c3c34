"""The supervised meta-objective: by hand, against finite differences, batched against a loop, resumed and unbroken."""

import itertools
import math
import shutil

import numpy as np
import pytest
import torch

from metarl_l2f.core.attenuation import Attenuation
from metarl_l2f.core.learner import meta_learner
from metarl_l2f.core.update_rules import InnerLoop
from metarl_l2f.diagnostics import degree_of_conflict
from metarl_l2f.networks.mlp import MLP
from metarl_l2f.parallel.ranks import Group
from metarl_l2f.parallel.shards import Share
from metarl_l2f.parallel.trees import rows_of
from metarl_l2f.supervised.episodes import Task
from metarl_l2f.supervised.experiment import MetaSupervised, cosine, multi_step_weights
from metarl_l2f.supervised.meta_loss import MetaLoss, adapt_to, meta_loss, support_loss
from metarl_l2f.supervised.settings import MetaOptimiser, SupervisedSettings
from metarl_l2f.supervised.sinusoid import (
    EVALUATION_POINTS,
    FREQUENCIES,
    Curves,
    SinusoidProblem,
    draw_tasks,
    sine,
    train_and_test_curves,
)
from metarl_l2f.training import checkpoint
from metarl_l2f.training.checkpoint import CheckpointError
from metarl_l2f.training.loop import train

WHOLE = Curves(frequency=FREQUENCIES)


def problem(**arguments):
    return SinusoidProblem(WHOLE, WHOLE, **({"shots": 4, "queries": 3, "hidden_sizes": (5,)} | arguments))


class WithPrototypes(SinusoidProblem):
    """Sinusoids whose tasks bring an embedding: the mean and the spread of their support targets."""

    embedding_size = 2

    def sample(self, split, generator, number):
        task = super().sample(split, generator, number)
        targets = task.support_targets[..., 0]
        return task._replace(prototype=torch.stack([targets.mean(1), targets.std(1)], 1))


METHODS = {
    "maml": (None, InnerLoop(2, 0.1)),
    "l2f": (Attenuation(), InnerLoop(2, 0.1)),
    "l2f, raw": (Attenuation(embedding="raw"), InnerLoop(1, 0.1)),
    "l2f, network": (Attenuation(scope="network"), InnerLoop(1, 0.1)),
    "l2f, layer": (Attenuation(scope="layer"), InnerLoop(1, 0.1)),
    "l2f, filter": (Attenuation(scope="filter"), InnerLoop(1, 0.1)),
    "l2f, weight": (Attenuation(scope="weight"), InnerLoop(1, 0.1)),
    "l2f, free": (Attenuation(conditioning="none"), InnerLoop(1, 0.1)),
    "l2f, prototype": (Attenuation(conditioning="prototype"), InnerLoop(1, 0.1)),
    "l2f, scale": (Attenuation(transform="scale"), InnerLoop(1, 0.1)),
    "l2f, affine": (Attenuation(transform="affine"), InnerLoop(2, 0.1)),
    "lslr": (None, InnerLoop(2, 0.1, learn_inner_lr=True)),
    "l2f, lslr": (Attenuation(), InnerLoop(2, 0.1, learn_inner_lr=True)),
    "meta-sgd": (None, InnerLoop(1, 0.1, learn_inner_lr=True, inner_lr_scope="weight")),
    "l2f, meta-sgd": (Attenuation(), InnerLoop(2, 0.1, learn_inner_lr=True, inner_lr_scope="weight")),
}


def build(method, kind=WithPrototypes, last_layer_only=False, **how):
    attenuation, inner = METHODS[method]
    solved = kind(WHOLE, WHOLE, 4, 3, (5,))
    prototypes = attenuation is not None and attenuation.conditioning == "prototype"
    learner = meta_learner(
        # tanh: finite differences across a kink of ReLU say nothing.
        MLP([1, 5, 1], "tanh", torch.Generator().manual_seed(0)),
        attenuation,
        inner,
        adapted=(lambda name: name.startswith("layers.1")) if last_layer_only else (lambda name: True),
        embedding_size=2 if prototypes else None,
        generator=torch.Generator().manual_seed(1),
    ).double()
    tasks = Task(*(values.double() for values in solved.sample("train", np.random.default_rng(0), 3)))
    return MetaLoss(learner, solved, **({"batching": "vmap", "task_chunk": 2} | how)), tasks


def weights_for(meta):
    return (0.3,) * (meta.learner.rule.steps - 1) + (0.7,)


# ---- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_layer_only", [False, True], ids=["all", "anil"])
@pytest.mark.parametrize("method", METHODS)
def test_the_meta_gradient_equals_finite_differences(method, last_layer_only):
    meta, tasks = build(method, last_layer_only=last_layer_only)
    weights = weights_for(meta)
    _, gradient = meta.gradient(tasks, weights)
    parameters = meta.learner.meta_parameters()

    def objective():
        losses = [meta_loss(meta.learner, meta.problem, rows_of(tasks, i), weights).loss for i in range(3)]
        return float(sum(losses).detach() / 3)

    def shift(direction, size):
        for parameter, along in zip(parameters, direction, strict=True):
            parameter.data.add_(along, alpha=size)

    # The embedding is data, not a path for gradients: it must not move with θ when the difference is taken.
    frozen = freeze_embeddings(meta, tasks)
    random = torch.Generator().manual_seed(2)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in parameters]
        size = 1e-5
        with frozen:
            shift(direction, size)
            above = objective()
            shift(direction, -2 * size)
            below = objective()
            shift(direction, size)
        expected = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        assert (above - below) / (2 * size) == pytest.approx(expected, rel=1e-5, abs=1e-8)


class freeze_embeddings:
    """While entered, γ is read off the embeddings that the tasks had at the start, task by task, in turn."""

    def __init__(self, meta, tasks):
        self.attenuator, self.gradients = meta.learner.attenuator, []
        for i in range(len(tasks.support)):
            _, start = adapt_to(meta.learner, meta.problem, rows_of(tasks, i), 1)
            self.gradients.append({name: g.detach() for name, g in start.gradients.items()})

    def __enter__(self):
        if self.attenuator is not None:
            factors, turn = self.attenuator.factors, itertools.cycle(self.gradients)
            self.attenuator.factors = lambda gradients, prototype=None: factors(next(turn), prototype)

    def __exit__(self, *_):
        if self.attenuator is not None:
            del self.attenuator.factors


@pytest.mark.parametrize("method", METHODS)
def test_vmapped_tasks_equal_a_loop_over_them(method):
    vmapped, tasks = build(method)
    looped, _ = build(method, batching="loop", task_chunk=1)
    weights = weights_for(vmapped)
    ours, our_gradient = vmapped.gradient(tasks, weights)
    theirs, their_gradient = looped.gradient(tasks, weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(vmapped.evaluate(tasks, 3), looped.evaluate(tasks, 3), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["maml", "l2f"])
def test_an_inspection_is_what_a_plain_loop_over_tasks_finds(method):
    meta, tasks = build(method)
    learner, found = meta.learner, meta.inspect(tasks, 2)
    for number in range(len(tasks.support)):
        loss = support_loss(learner, meta.problem, rows_of(tasks, number), 0)
        path, start = adapt_to(learner, meta.problem, rows_of(tasks, number), 2)
        before, after = torch.func.grad(loss)(learner.theta), torch.func.grad(loss)(path[-1])
        flat = [torch.cat([one[n].flatten() for n in before]).detach() for one in (before, after)]
        torch.testing.assert_close(found.cosine["network"][number], flat[0] @ flat[1] / flat[0].norm() / flat[1].norm())
        there = {n: path[0][n] - 2 * (path[0][n] - path[1][n]) for n in path[0]}  # fourth of the grid: two steps far
        torch.testing.assert_close(found.landscape.losses[number, 3], loss(there).detach())
        if method == "l2f":
            kept = torch.cat([found.gamma[name][number] for name in learner.attenuator.names])
            torch.testing.assert_close(kept, start.gamma.detach())
    assert_meta_conflict(meta, tasks, found.meta_conflict["network"])
    gamma, gradients = meta.starts(tasks)
    torch.testing.assert_close(found.conflict["network"].mean().item(), degree_of_conflict(gradients)["network"])
    assert (method == "l2f") == bool(found.gamma) and len(gamma) == len(tasks.support)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # PyTorch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_losses_have_the_same_gradient():
    for weights in ((1.0,), (0.25, 0.75)):
        plain, tasks = build("l2f")
        compiled, _ = build("l2f", compiled=True)
        ours, our_gradient = compiled.gradient(tasks, weights)
        theirs, their_gradient = plain.gradient(tasks, weights)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_threads_change_no_digit(batching):
    one, tasks = build("l2f", batching=batching, task_chunk=1)
    three, _ = build("l2f", batching=batching, task_chunk=1, threads=3)
    for ours, theirs in zip(one.gradient(tasks, (0.5, 0.5))[1], three.gradient(tasks, (0.5, 0.5))[1], strict=True):
        assert torch.equal(ours, theirs)


def assert_meta_conflict(meta, tasks, found):
    """Conflict of the meta-gradients is the angle of each task's gradient of Eq. 2 to the sum of all."""
    theta, gradients = list(meta.learner.theta.values()), []
    for number in range(len(tasks.support)):
        loss = meta_loss(meta.learner, meta.problem, rows_of(tasks, number), (0.0, 1.0)).loss
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, theta)]))
    whole = sum(gradients)
    expected = [torch.arccos(g @ whole / g.norm() / whole.norm()) for g in gradients]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-6)


class Constant(torch.nn.Module):
    """One parameter, 0 at first, that is the output for every input."""

    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1))

    def forward(self, params, inputs):
        return params["value"].expand(len(inputs), 1)


class Half(SinusoidProblem):
    """Half the squared error; `seen` notes for what inputs, and after how many steps, outputs are computed."""

    def __init__(self):
        super().__init__(WHOLE, WHOLE, 1, 1)
        self.seen = []

    def outputs(self, network, params, inputs, step):
        self.seen.append((inputs.item(), step))
        return network(params, inputs)

    def loss(self, outputs, targets):
        return 0.5 * (outputs - targets).square().mean()


def constants(*tasks):
    """Tasks of one support point, at input 5, and one query point, at 6, given the two targets of each."""
    columns = [torch.tensor(column).reshape(-1, 1, 1) for column in zip(*tasks, strict=True)]
    inputs = [torch.full_like(columns[0], value) for value in (5.0, 6.0)]
    return Task(inputs[0], columns[0], inputs[1], columns[1], torch.empty(len(tasks), 0))


def test_first_order_drops_the_second_derivative():
    # One parameter, loss ½ (θ − y)² on support and query: θ' = θ − α (θ − s), ∂L'/∂θ = (θ' − q)(1 − α) or, first order,
    # (θ' − q). With θ = 0, s = 1, q = 3, α = 0.25: θ' = 0.25 and the gradient is −2.75 · 0.75 = −2.0625 or −2.75.
    expected = {False: -2.0625, True: -2.75}
    for own in (False, True):
        learner = meta_learner(Constant(), None, InnerLoop(1, 0.25, first_order=own))
        meta = MetaLoss(learner, Half(), "loop", 1)
        for first_order in (None, True, False, None):  # what the learner has may be overridden, each time anew
            _, (gradient,) = meta.gradient(constants((1.0, 3.0)), (1.0,), first_order=first_order)
            assert gradient.item() == pytest.approx(expected[own if first_order is None else first_order])


def test_the_gradient_is_the_mean_over_tasks_of_the_weighted_losses_after_each_step():
    # α = ½, two tasks (s, q): θ₁ = s/2, θ₂ = 3s/4; dθ₁/dθ = ½, dθ₂/dθ = ¼.
    # (1, 3): losses ½ (−2.5)² = 3.125 and ½ (−2.25)² = 2.53125, gradients −1.25 and −0.5625;
    # (−2, 0): losses ½ (−1)² = 0.5 and ½ (−1.5)² = 1.125, gradients −0.5 and −0.375.
    meta = MetaLoss(meta_learner(Constant(), None, InnerLoop(2, 0.5)), Half(), "loop", 1)
    for weights in ((0.25, 0.75), (0.0, 1.0)):
        adaptation, (gradient,) = meta.gradient(constants((1.0, 3.0), (-2.0, 0.0)), weights)
        expected = [weights[0] * one + weights[1] * two for one, two in ((3.125, 2.53125), (0.5, 1.125))]
        assert adaptation.loss.tolist() == pytest.approx(expected)
        mean = sum(weights[0] * one + weights[1] * two for one, two in ((-1.25, -0.5625), (-0.5, -0.375))) / 2
        assert gradient.item() == pytest.approx(mean)


def test_outputs_are_computed_after_the_steps_that_matter_and_are_told_how_many():
    meta = MetaLoss(meta_learner(Constant(), Attenuation(), InnerLoop(2, 0.5)), Half(), "loop", 1)
    tasks = constants((1.0, 3.0))
    meta.random_layers(tasks)
    support, query = 5.0, 6.0
    at_start = [(support, 0), (support, 0), (support, 1)]  # for γ, and before each of two inner steps
    for weights, judged in (((0.5, 0.5), [(query, 1), (query, 2)]), ((0.0, 1.0), [(query, 2)])):
        meta.problem.seen.clear()
        meta.gradient(tasks, weights)
        assert meta.problem.seen == at_start + judged
    meta.problem.seen.clear()
    meta.evaluate(tasks, 2)
    assert meta.problem.seen == [*at_start, (query, 0), (query, 1), (query, 2)]
    meta.problem.seen.clear()
    meta.inspect(tasks, 2)
    assert (support, 2) in meta.problem.seen  # the gradient after adaptation


def test_the_gradient_of_a_share_is_its_part_of_the_mean_over_all_tasks():
    # One of four tasks, (1, 3): −2.0625 / 4.  Of one process's share alone, sums over processes are not taken.
    class One(Group):
        size = 4

        def sum(self, tensor):
            return tensor

    meta = MetaLoss(meta_learner(Constant(), None, InnerLoop(1, 0.25)), Half(), "loop", 1)
    _, (gradient,) = meta.gradient(constants((1.0, 3.0)), (1.0,), Share(4, One()))
    assert gradient.item() == pytest.approx(-2.0625 / 4)


# ---- schedules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, (1 / 3, 1 / 3, 1 / 3)), (0.5, (1 / 6, 1 / 6, 2 / 3)), (1.0, (0.0, 0.0, 1.0)), (7.0, (0.0, 0.0, 1.0))],
)
def test_multi_step_weights_move_to_the_last_step(progress, expected):
    assert multi_step_weights(3, progress) == pytest.approx(expected)


def test_the_multi_step_loss_is_the_weighted_sum_of_the_losses_after_each_step():
    meta, tasks = build("l2f")
    _, losses, _ = meta.evaluate(tasks, 2)
    adaptation, _ = meta.gradient(tasks, (0.25, 0.75))
    torch.testing.assert_close(adaptation.loss, 0.25 * losses[:, 1] + 0.75 * losses[:, 2])


def test_the_cosine_falls_from_first_to_last():
    assert [cosine(1.0, 0.0, p) for p in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    # A quarter of the way: (1 + cos 45°) / 2
    assert cosine(1.0, 0.0, 0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def experiment(iterations=6, seed=1, method="l2f", inner=None, **optimiser):
    settings = SupervisedSettings(
        method=method,
        seed=seed,
        tasks_per_batch=3,
        inner=inner or InnerLoop(2, 0.01),
        optimiser=MetaOptimiser(**optimiser),
        validation_tasks=4,
        diagnostics_every=2,
    )
    return MetaSupervised(problem(), settings, iterations=iterations, task_chunk=2)


def test_the_schedule_sets_step_size_and_order_by_the_iteration():
    run = experiment(iterations=5, schedule="cosine", final_lr=1e-4, first_order_iterations=2)
    seen, gradient = [], run.meta_loss.gradient

    def noted(*arguments):
        seen.append((run.optimiser.param_groups[0]["lr"], arguments[-1]))
        return gradient(*arguments)

    run.meta_loss.gradient = noted
    for iteration in range(1, 6):
        run.iterate(iteration)
    assert [order for _, order in seen] == [True, True, False, False, False]
    assert [lr for lr, _ in seen] == pytest.approx([cosine(1e-3, 1e-4, i / 4) for i in range(5)])


def test_clipping_bounds_every_entry_of_the_meta_gradient():
    run = experiment(clip=1e-3)
    run.iterate(1)
    assert max(float(p.grad.abs().max()) for p in run.learner.parameters()) == pytest.approx(1e-3)


def test_an_update_does_not_depend_on_how_its_gradient_lies_in_memory():
    ours, theirs = experiment(), experiment()
    gradient = [torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) for p in ours.learner.parameters()]
    ours._update(gradient)
    theirs._update([piece.mT.contiguous().mT if piece.ndim > 1 else piece for piece in gradient])
    for one, other in zip(ours.learner.parameters(), theirs.learner.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_update_that_is_not_finite_changes_nothing_and_says_so(caplog):
    run = experiment()
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    sample = run.problem.sample
    run.problem.sample = lambda *given: sample(*given)._replace(query_targets=torch.full((3, 3, 1), math.inf))
    run.iterate(1)
    torch.testing.assert_close(dict(run.learner.state_dict()), before, rtol=0, atol=0)
    assert "iteration 1: the update was rejected: its gradient is not finite" in caplog.text


# ---- runs ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    how = {
        "config": {},
        "validate_every": 3,
        "validation_key": "validation/mse/step_2",
        "progress_key": "mse/step_2",
        "higher_is_better": False,
    }
    inner = InnerLoop(2, 0.01, learn_inner_lr=True)
    kinds = {"inner": inner, "schedule": "cosine", "first_order_iterations": 3, "multi_step_iterations": 4}
    train(experiment(**kinds), tmp_path / "unbroken", iterations=6, resume=False, **how)
    train(experiment(**kinds), tmp_path / "broken", iterations=3, resume=False, **how)
    train(experiment(**kinds), tmp_path / "broken", iterations=6, resume=True, **how)
    states = [checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("unbroken", "broken")]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_methods_of_one_seed_meet_the_same_tasks():
    runs = [experiment(method=method) for method in ("maml", "l2f")]
    before = [run.validate(0)["validation/mse/step_0"] for run in runs]
    assert before[0] == before[1]  # θ and the tasks are the same, and attenuation is a part of adaptation.


def test_validation_and_evaluation_leave_the_learner_as_it_is():
    run = experiment()
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    run.validate(1)
    assert run.evaluate(5, 4, seed=9).shape == (5, 5)
    torch.testing.assert_close(dict(run.learner.state_dict()), before, rtol=0, atol=0)


def test_diagnostics_come_every_so_often():
    run = experiment()
    assert "conflict/network" not in run.iterate(1)
    metrics = run.iterate(2)
    assert 0 < metrics["conflict/network"] < math.pi
    assert 0 < metrics["gamma/layers.0.weight/mean"] < 1


def test_a_checkpoint_of_another_network_is_refused():
    with pytest.raises(CheckpointError, match="another network or method: attenuator"):
        experiment(method="maml").load_state_dict(experiment().state_dict())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MetaOptimiser(schedule="linear"), "schedule must be one of"),
        (lambda: MetaOptimiser(meta_lr=0.0), "meta_lr must be positive and finite, got 0.0"),
        (lambda: MetaOptimiser(clip=0.0), "clip must be positive"),
        (lambda: MetaOptimiser(first_order_iterations=-1), "first_order_iterations must be a whole number, 0 or more"),
        (lambda: SupervisedSettings(method="sgd"), "method must be one of"),
        (lambda: SupervisedSettings(tasks_per_batch=0), "tasks_per_batch must be a whole number, 1 or more"),
        (lambda: InnerLoop(inner_lr_scope="row"), "inner_lr_scope must be one of"),
        (lambda: build("maml", batching="both"), "batching must be one of"),
        (
            lambda: MetaSupervised(
                problem(), SupervisedSettings(optimiser=MetaOptimiser(multi_step_iterations=9)), compiled=True
            ),
            "a compiled loss has fixed weights",
        ),
        (lambda: build("maml", task_chunk=0), "tasks_per_shard must be a whole number, 1 or more"),
        (lambda: build("l2f", last_layer_only=True, kind=SinusoidProblem)[0].learner.attenuator.factors({}), "layers"),
    ],
)
def test_bad_settings_are_refused(make, text):
    with pytest.raises((ValueError, KeyError), match=text):
        make()


def test_an_embedding_goes_with_conditioning_on_prototypes_only():
    for attenuation, size in ((Attenuation(), 2), (Attenuation(conditioning="prototype"), None)):
        with pytest.raises(ValueError, match="embedding_size goes with conditioning='prototype'"):
            meta_learner(MLP([1, 1]), attenuation, embedding_size=size)
    learner = meta_learner(MLP([1, 1]), Attenuation(conditioning="prototype"), embedding_size=2)
    with pytest.raises(ValueError, match="needs each task's prototype, got None"):
        learner.attenuator.factors({})


# ---- sinusoids ----------------------------------------------------------------------------------------------------


def test_a_sine_by_hand():
    # A = 2, b = π/2, ω = 1 at x = π: 2 sin(π/2) = 2;  A = 1, b = 0, ω = 2 at x = π/4: sin(π/2) = 1
    curves = np.array([[2.0, np.pi / 2, 1.0], [1.0, 0.0, 2.0]])
    assert sine(curves, np.array([[np.pi], [np.pi / 4]])) == pytest.approx(np.array([[2.0], [1.0]]))


def test_support_and_query_lie_on_one_curve_of_the_family():
    family = Curves((2.0, 2.0), (1.0, 1.0), (1.0, 1.0))
    task = draw_tasks(family, np.random.default_rng(0), 3, shots=4, queries=5)
    assert [tuple(values.shape) for values in task] == [(3, 4, 1), (3, 4, 1), (3, 5, 1), (3, 5, 1), (3, 0)]
    for x, y in ((task.support, task.support_targets), (task.query, task.query_targets)):
        torch.testing.assert_close(y, 2 * torch.sin(x - 1), rtol=1e-5, atol=1e-5)
        assert (x.abs() <= 5).all()


def test_curves_cover_their_ranges_and_no_more():
    drawn = WHOLE.draw(np.random.default_rng(0), 20_000)
    assert drawn.min(0) == pytest.approx([0.1, 0.0, 0.8], abs=2e-3)
    assert drawn.max(0) == pytest.approx([5.0, math.pi, 1.2], abs=2e-3)


@pytest.mark.parametrize(
    ("disjoint", "amplitudes", "phases"),
    [
        ("none", [(0.1, 5.0), (0.1, 5.0)], [(0.0, math.pi), (0.0, math.pi)]),
        ("amplitude", [(0.1, 2.55), (2.55, 5.0)], [(0.0, math.pi), (0.0, math.pi)]),
        ("phase", [(0.1, 5.0), (0.1, 5.0)], [(0.0, math.pi / 2), (math.pi / 2, math.pi)]),
        ("both", [(0.1, 2.55), (2.55, 5.0)], [(0.0, math.pi / 2), (math.pi / 2, math.pi)]),
    ],
)
def test_disjoint_families_touch_but_do_not_overlap(disjoint, amplitudes, phases):
    families = train_and_test_curves(disjoint, (0.8, 1.2))
    assert [family.amplitude for family in families] == amplitudes
    assert [family.phase for family in families] == phases
    assert {family.frequency for family in families} == {(0.8, 1.2)}


def test_evaluation_takes_more_query_points_than_training():
    sampled = {split: problem().sample(split, np.random.default_rng(0), 1) for split in ("train", "val", "test")}
    assert [sampled[split].query.shape[1] for split in sampled] == [3, EVALUATION_POINTS, EVALUATION_POINTS]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Curves(amplitude=(5.0, 0.1)), "amplitude must be a range"),
        (lambda: Curves(phase=(0.0, math.inf)), "phase must be finite, got inf"),
        (lambda: problem(shots=0), "shots must be a whole number of points, 1 or more, got 0"),
        (lambda: problem(queries=-1), "queries must be a whole number of points, 1 or more, got -1"),
    ],
)
def test_impossible_curves_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
