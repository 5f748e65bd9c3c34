"""Few-shot classification: meta-gradients, scores, running statistics and ensembles."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metarl_l2f.core.attenuation import Attenuation
from metarl_l2f.core.update_rules import InnerLoop
from metarl_l2f.parallel.trees import rows_of
from metarl_l2f.supervised.classification import Classifier, in_inner_loop
from metarl_l2f.supervised.data.augmentation import distort
from metarl_l2f.supervised.episodes import Shape, draw_episodes
from metarl_l2f.supervised.experiment import MetaSupervised
from metarl_l2f.supervised.meta_loss import MetaLoss, adapt_to, meta_loss
from metarl_l2f.supervised.settings import MetaOptimiser, SupervisedSettings
from metarl_l2f.training.seeding import Stream, generator

from .patterns import DATA, SMALL, build, problem

CAVIA = {"inner": InnerLoop(2, 1.0, adapts="context"), "context_size": 2}


@pytest.mark.parametrize(
    "method",
    [{}, {"attenuation": Attenuation()}, {"attenuation": Attenuation(scope="filter")}, CAVIA],
    ids=["maml", "l2f", "filter", "cavia"],
)
def test_vmapped_tasks_equal_a_loop_over_them(method):
    looped, tasks = build(**method)
    vmapped, _ = build(**method, batching="vmap", task_chunk=2)
    ours, theirs = (meta.gradient(tasks, (0.5, 0.5)) for meta in (looped, vmapped))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "method",
    [{"attenuation": Attenuation(conditioning="none"), "inner": InnerLoop(2, 0.1, learn_inner_lr=True)}, CAVIA],
    ids=["free", "cavia"],
)
def test_the_meta_gradient_through_convolutions_equals_finite_differences(method):
    meta, tasks = build(**method)
    _, gradient = meta.gradient(tasks, (0.4, 0.6))
    parameters = meta.learner.meta_parameters()
    random = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in parameters]
    values = []
    for size in (1e-6, -2e-6):
        for parameter, along in zip(parameters, direction, strict=True):
            parameter.data.add_(along, alpha=size)
        losses = [meta_loss(meta.learner, meta.problem, rows_of(tasks, i), (0.4, 0.6)).loss for i in range(3)]
        values.append(float(torch.stack(losses).detach().mean()))
    expected = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(expected, rel=1e-4)


def test_each_inner_step_reads_its_own_scales_and_shifts():
    meta, tasks = build(None)
    _, gradient = meta.gradient(tasks, (0.0, 1.0))
    by_name = dict(zip(dict(meta.learner.named_parameters()), gradient, strict=True))
    # Two inner steps read rows 0 and 1 on the support set; the query loss reads row 2.
    rows = by_name["network.blocks.0.norm.weight"].abs().sum(1)
    assert (rows > 0).all()


def experiment(seed=1, **arguments):
    settings = SupervisedSettings(
        seed=seed, tasks_per_batch=2, inner=InnerLoop(1, 0.1), optimiser=MetaOptimiser(1e-2), validation_tasks=8
    )
    return MetaSupervised(
        problem(**arguments),
        settings,
        batching="loop",
        task_chunk=1,
        adapted=in_inner_loop,
        attenuated=in_inner_loop,
    )


def test_tasks_drawn_ahead_are_those_of_their_iteration():
    ahead, alone = experiment(), experiment()
    alone.problem.slow_to_draw = False
    for iteration in (1, 2, 5):  # After a jump, nothing drawn ahead fits.
        losses = [run.iterate(iteration)["loss"] for run in (ahead, alone)]
        assert losses[0] == losses[1]


TRACKING = Classifier(filters=4, statistics="running")


def test_a_query_image_is_judged_by_itself_only_with_running_statistics():
    for classifier, alone in ((SMALL, False), (TRACKING, True)):
        run = experiment(classifier=classifier)
        run.iterate(1)
        task = run.problem.sample("test", np.random.default_rng(0), 1)
        other = task._replace(query=torch.cat([task.query[:, :1], 1 - task.query[:, 1:]], 1))
        one, two = (run.meta_loss.evaluate(shown, 2)[2][0, :, 0] for shown in (task, other))
        assert torch.equal(one, two) == alone


def test_running_statistics_are_of_what_is_judged_and_change_nothing_in_training():
    plain, tracking = experiment(), experiment(classifier=TRACKING)
    for run in (plain, tracking):
        run.iterate(1)
    theirs = dict(tracking.learner.named_parameters())
    for name, parameter in plain.learner.named_parameters():
        assert torch.equal(parameter, theirs[name])
    # Before the first step it is θ that is judged, not the attenuated θ̄; after it, what the first step made of θ̄.
    task = rows_of(tracking.problem.sample("train", generator(1, Stream.TASKS, 1), 2), 0)
    path, _ = adapt_to(tracking.learner, tracking.problem, task, 1)
    norm = tracking.learner.network.blocks[0].norm
    for row, params in enumerate((tracking.learner.theta, path[1])):
        features = F.conv2d(task.query, params["blocks.0.conv.weight"], stride=2, padding=1).detach()
        torch.testing.assert_close(norm.mean[row], 0.01 * features.mean((0, 2, 3)))


def test_vmapped_tasks_are_judged_by_running_statistics_as_in_a_loop():
    run = experiment(classifier=TRACKING)
    run.iterate(1)
    tasks = run.problem.sample("test", np.random.default_rng(0), 3)
    vmapped = MetaLoss(run.learner, run.problem, "vmap", 3).evaluate(tasks, 2)
    torch.testing.assert_close(vmapped, run.meta_loss.evaluate(tasks, 2), rtol=1e-4, atol=1e-5)


def test_running_statistics_are_part_of_a_checkpoint():
    whole, parts, after = (experiment(classifier=TRACKING) for _ in range(3))
    for iteration in (1, 2):
        whole.iterate(iteration)
    parts.iterate(1)
    after.load_state_dict(copy.deepcopy(parts.state_dict()))
    after.iterate(2)
    found, expected = (dict(run.learner.network.named_buffers()) for run in (after, whole))
    assert len(found) == 8  # a mean and a variance in each of four blocks
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_accuracy_and_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 3.0]])
    targets = torch.tensor([0, 0, 0])
    assert problem().score(logits, targets) == pytest.approx(2 / 3)
    expected = (math.log(1 + math.exp(-2)) + math.log(2) + math.log(1 + math.exp(2))) / 3
    assert problem().loss(logits, targets) == pytest.approx(expected)


def test_distortion_shows_the_same_images_moved_in_training_alone():
    plain, distorted = problem(), problem(distorted=True)
    for split in ("train", "val", "test"):
        same, other = (one.sample(split, np.random.default_rng(3), 4) for one in (plain, distorted))
        change = (same.query - other.query).abs().amax((2, 3, 4))
        assert (change.min() > 0.05) if split == "train" else (change.max() == 0), split
        assert torch.equal(same.query_targets, other.query_targets)
    # By hand: the same episode, its support set distorted first, then its query set.
    random = np.random.default_rng(3)
    task = draw_episodes(DATA["train"], Shape(3, 1, 2), random, 4)
    support, query = (distort(shown.flatten(0, 1), random).view_as(shown) for shown in (task.support, task.query))
    found = distorted.sample("train", np.random.default_rng(3), 4)
    assert torch.equal(found.support, support) and torch.equal(found.query, query)


def test_an_ensemble_averages_logits_and_leaves_the_learner_as_it_is():
    run = experiment()
    states = []
    for iteration in (1, 2):
        run.iterate(iteration)
        states.append({"learner": {name: v.clone() for name, v in run.learner.state_dict().items()}})
    before = {name: value.clone() for name, value in run.learner.state_dict().items()}
    scores = run.evaluate(6, 1, seed=3, states=states)
    run.evaluate(6, 1, seed=3, states=states[:1])
    torch.testing.assert_close(dict(run.learner.state_dict()), before, rtol=0, atol=0)
    torch.testing.assert_close(run.evaluate(6, 1, seed=3, states=states[1:]), run.evaluate(6, 1, seed=3))
    tasks = run.problem.sample("test", generator(3, Stream.EVALUATION, 0), 6)
    outputs = []
    for state in states:
        run.learner.load_state_dict(state["learner"])
        outputs.append(run.meta_loss.evaluate(tasks, 1)[2])
    guesses = torch.stack(outputs).mean(0).argmax(-1)
    expected = (guesses == tasks.query_targets.unsqueeze(1)).float().mean(-1)
    torch.testing.assert_close(scores, expected)
