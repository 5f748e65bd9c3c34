"""Few-shot classification: episodes, networks and prototypes, by hand and against plain PyTorch."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metarl_l2f.core.attenuation import Attenuation
from metarl_l2f.core.learner import meta_learner
from metarl_l2f.core.update_rules import InnerLoop
from metarl_l2f.networks.images import Conv4, Norm, ResNet12, is_norm, track
from metarl_l2f.parallel.trees import rows_of
from metarl_l2f.supervised.classification import Classifier, ImageProblem, in_inner_loop, is_head
from metarl_l2f.supervised.data.augmentation import distort
from metarl_l2f.supervised.episodes import Images, Shape, draw_episodes
from metarl_l2f.supervised.experiment import MetaSupervised
from metarl_l2f.supervised.meta_loss import MetaLoss, adapt_to, meta_loss
from metarl_l2f.supervised.prototypes import (
    PrototypeSettings,
    PrototypicalNetwork,
    class_prototypes,
    distance_logits,
)
from metarl_l2f.supervised.settings import MetaOptimiser, SupervisedSettings
from metarl_l2f.training import checkpoint
from metarl_l2f.training.checkpoint import CheckpointError
from metarl_l2f.training.loop import train
from metarl_l2f.training.seeding import Stream, generator


def images(classes=6, each=5, size=16, channels=1, seed=0):
    """Every class a pattern of its own, every image a noisy copy; the first pixel tells class and image."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.randint(0, 200, (classes, 1, channels, size, size), generator=random)
    noise = torch.randint(0, 50, (classes, each, channels, size, size), generator=random)
    pixels = (patterns + noise).to(torch.uint8).flatten(0, 1)
    pixels[:, 0, 0, 0] = torch.arange(classes * each, dtype=torch.uint8)
    labels = torch.arange(classes).repeat_interleave(each)
    return Images(pixels, labels, tuple(f"class {i}" for i in range(classes)))


DATA = {"train": images(), "val": images(seed=1), "test": images(seed=2)}
SMALL = Classifier(filters=4)


def problem(shape=None, classifier=SMALL, **arguments):
    return ImageProblem(DATA, shape or Shape(3, 1, 2), classifier, 2, **arguments)


# ---- episodes -----------------------------------------------------------------------------------------------------


def test_an_episode_never_shows_an_image_twice_and_numbers_its_classes():
    task = draw_episodes(DATA["train"], Shape(3, 2, 3), np.random.default_rng(0), 50)
    assert [tuple(v.shape) for v in task] == [(50, 6, 1, 16, 16), (50, 6), (50, 9, 1, 16, 16), (50, 9), (50, 0)]
    assert task.support_targets[7].tolist() == [0, 0, 1, 1, 2, 2]
    assert task.query_targets[7].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    marks = lambda pictures: (pictures[..., 0, 0, 0] * 255).round().long()  # noqa: E731  the image's number
    for support, query in zip(marks(task.support), marks(task.query), strict=True):
        assert len(set(support.tolist()) | set(query.tolist())) == 15
        own = [set((marked // 5).tolist()) for marked in (*support.split(2), *query.split(3))]
        assert own[:3] == own[3:] and all(len(one) == 1 for one in own) and len(set.union(*own)) == 3


def test_every_class_and_every_image_has_its_turn():
    task = draw_episodes(DATA["train"], Shape(3, 2, 3), np.random.default_rng(0), 200)
    seen = (task.support[..., 0, 0, 0] * 255).round().long().flatten().bincount(minlength=30)
    assert seen.min() > 0.5 * seen.float().mean()


def test_classes_of_different_sizes_are_drawn_from_where_they_lie():
    one = images(4, 5)
    keep = torch.tensor([0, 1, 2, 5, 6, 10, 11, 12, 13, 14, 15, 16, 17])
    uneven = Images(one.pixels[keep], one.labels[keep], one.classes)
    task = draw_episodes(uneven, Shape(4, 1, 1), np.random.default_rng(0), 100)
    marks = (torch.cat([task.support, task.query], 1)[..., 0, 0, 0] * 255).round().long()
    assert set(marks.flatten().tolist()) == set(keep.tolist())


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (Shape(7, 1, 1), "7-way episodes need 7 classes, but train of some/where has 6; lower ways"),
        (Shape(2, 3, 3), "need 6 images of every class, but 'class 0' in train of some/where has 5"),
    ],
)
def test_a_split_that_is_too_small_is_refused(shape, text):
    named = {split: dataclasses.replace(data, where="some/where") for split, data in DATA.items()}
    with pytest.raises(ValueError, match=text):
        ImageProblem(named, shape, SMALL, 1)


@pytest.mark.parametrize(("name", "least"), [("ways", 2), ("shots", 1), ("queries", 1)])
def test_impossible_episodes_are_refused(name, least):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, {least} or more, got {least - 1}"):
        Shape(**{name: least - 1})


@pytest.mark.parametrize(
    ("pixels", "labels", "classes", "text"),
    [
        (torch.zeros(2, 1, 4, 4), [0, 1], ("a", "b"), "pixels must be bytes"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [0], ("a",), "one image per label"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [1, 0], ("a", "b"), "labels must ascend"),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            [0, 0],
            ("a", "b"),
            "a row, got 2 labels of 1 classes for 2 names",
        ),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [0, 1], ("a", "a"), "different names"),
    ],
)
def test_images_that_do_not_fit_their_labels_are_refused(pixels, labels, classes, text):
    with pytest.raises(ValueError, match=text):
        Images(pixels, torch.tensor(labels), classes)


# ---- networks -----------------------------------------------------------------------------------------------------


def params_of(network):
    return dict(network.named_parameters())


def test_normalisation_by_hand():
    # One channel with values 1 and 3: mean 2, variance 1; scale 2 and shift 5 give 5 ∓ 2.
    norm = Norm(1, 2)
    params = {"n.weight": torch.tensor([[1.0], [2.0]]), "n.bias": torch.tensor([[0.0], [5.0]])}
    features = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    for step, expected in ((0, [-1.0, 1.0]), (1, [3.0, 7.0]), (9, [3.0, 7.0])):
        normalised = norm(params, "n", features, step).flatten()
        torch.testing.assert_close(normalised, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_normalisation_by_running_statistics_by_hand():
    # After one step, mean 1 and variance 4: 1 and 3 are 0 and 1, and scale 2 and shift 5 give 5 and 7.
    params = {"n.weight": torch.tensor([[1.0], [2.0]]), "n.bias": torch.tensor([[0.0], [5.0]])}
    params |= {"n.mean": torch.tensor([[0.0], [1.0]]), "n.variance": torch.tensor([[1.0], [4.0]])}
    features = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    for step, expected in ((0, [1.0, 3.0]), (1, [5.0, 7.0]), (9, [5.0, 7.0])):
        for image, value in zip(features, expected, strict=True):  # each image by itself
            found = Norm(1, 2)(params, "n", image[None], step)
            assert float(found) == pytest.approx(value, rel=1e-4)


def test_tracking_moves_one_steps_statistics_a_hundredth_of_the_way():
    network = Conv4((1, 16, 16), 3, 2, generator=torch.Generator().manual_seed(0), tracked_steps=3)
    params, shown = params_of(network), torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    track(network, lambda: network(params, shown, 1), 1)
    features = F.conv2d(shown, params["blocks.0.conv.weight"], padding=1)
    norm = network.blocks[0].norm
    torch.testing.assert_close(norm.mean[1], 0.01 * features.mean((0, 2, 3)).detach())
    torch.testing.assert_close(norm.variance[1], 0.99 + 0.01 * features.var((0, 2, 3)).detach())
    for other in (0, 2):
        assert norm.mean[other].tolist() == [0, 0] and norm.variance[other].tolist() == [1, 1]
    assert (network.blocks[3].norm.mean[1] != 0).all()
    before = norm.mean.clone()
    network(params, shown, 1)
    assert torch.equal(norm.mean, before)  # the hooks are gone


@pytest.mark.parametrize("pooling", ["max", "stride"])
def test_conv4_is_what_plain_modules_compute(pooling):
    network = Conv4((3, 32, 32), 5, 6, pooling, generator=torch.Generator().manual_seed(0))
    layers = []
    for number, block in enumerate(network.blocks):
        strided = pooling == "stride"
        conv = torch.nn.Conv2d(6 if number else 3, 6, 3, stride=2 if strided else 1, padding=1, bias=False)
        conv.load_state_dict(block.conv.state_dict())
        layers += [conv, torch.nn.BatchNorm2d(6, track_running_stats=False)]
        layers += [torch.nn.ReLU()] if strided else [torch.nn.LeakyReLU(0.01), torch.nn.MaxPool2d(2)]
    layers += [torch.nn.AdaptiveAvgPool2d(1)] if pooling == "stride" else []
    pictures = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = network.head(torch.nn.Sequential(*layers)(pictures).flatten(1))
    torch.testing.assert_close(network(params_of(network), pictures), expected)


def test_resnet12_is_what_plain_modules_compute():
    # The official code's: ReLU, pooling after three blocks of four, padded after the third. 28 pixels: 14, 7, 4, 4.
    network = ResNet12((1, 28, 28), 3, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    pictures = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(2, padding=1), nn.Identity()]

    def norm(x):
        return F.batch_norm(x, None, None, training=True)

    x = pictures
    for block, pool in zip(network.blocks, pools, strict=True):
        y = F.relu(norm(F.conv2d(x, block.conv0.weight, padding=1)))
        y = F.relu(norm(F.conv2d(y, block.conv1.weight, padding=1)))
        y = norm(F.conv2d(y, block.conv2.weight, padding=1)) + norm(F.conv2d(x, block.shortcut.weight))
        x = pool(F.relu(y))
    assert x.shape[2:] == (4, 4)
    torch.testing.assert_close(network(params_of(network), pictures), network.head(x.mean((2, 3))))


def test_the_papers_networks_have_their_sizes():
    # Conv4: 48·3·9 + 3·48·48·9 weights, 8·48 of normalisation, head 5·(48·5·5) + 5.
    conv4 = Conv4((3, 84, 84), 5)
    assert sum(p.numel() for p in conv4.parameters()) == 1296 + 3 * 20736 + 384 + 6005
    # ResNet12: per block 9·(in·w + 2·w²) + in·w weights and 8·w of normalisation; head 512·5 + 5.
    resnet, inputs, expected = ResNet12((3, 84, 84), 5), 3, 512 * 5 + 5
    for width in (64, 128, 256, 512):
        expected += 9 * (inputs * width + 2 * width**2) + inputs * width + 8 * width
        inputs = width
    assert sum(p.numel() for p in resnet.parameters()) == expected


def test_normalisation_is_neither_adapted_nor_attenuated_and_anil_moves_the_head_alone():
    network = Conv4((1, 16, 16), 3, 4, "stride")
    names = list(params_of(network))
    inner = [name for name in names if in_inner_loop(name)]
    assert len(inner) == 4 + 2 and not any(map(is_norm, inner))
    assert [name for name in names if is_head(name)] == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Conv4((1, 8, 8), 2), "images of 8×8 vanish in four halvings"),
        (lambda: Conv4((1, 28, 28), 2, pooling="mean"), "pooling must be one of"),
        (lambda: ResNet12((1, 3, 28), 2), "images of 3×28 vanish in two halvings; they need 4×4 pixels"),
        (lambda: Norm(3, 0), "steps must be a whole number of sets of scales and shifts, 1 or more, got 0"),
        (lambda: Classifier(backbone="conv5"), "backbone must be one of"),
        (lambda: Classifier(statistics="mine"), "statistics must be one of"),
    ],
)
def test_networks_that_cannot_be_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


# ---- meta-learning ------------------------------------------------------------------------------------------------


def build(attenuation=None, inner=None, **how):
    solved = problem()
    learner = meta_learner(
        Conv4((1, 16, 16), 3, 3, "max", 3, torch.Generator().manual_seed(0)),
        attenuation,
        inner or InnerLoop(2, 0.1),
        adapted=in_inner_loop,
        attenuated=in_inner_loop,
        generator=torch.Generator().manual_seed(1),
    ).double()
    tasks = solved.sample("train", np.random.default_rng(0), 3)
    tasks = tasks._replace(support=tasks.support.double(), query=tasks.query.double())
    return MetaLoss(learner, solved, **({"batching": "loop", "task_chunk": 1} | how)), tasks


@pytest.mark.parametrize(
    "attenuation", [None, Attenuation(), Attenuation(scope="filter")], ids=["maml", "l2f", "filter"]
)
def test_vmapped_tasks_equal_a_loop_over_them(attenuation):
    looped, tasks = build(attenuation)
    vmapped, _ = build(attenuation, batching="vmap", task_chunk=2)
    ours, theirs = (meta.gradient(tasks, (0.5, 0.5)) for meta in (looped, vmapped))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_the_meta_gradient_through_convolutions_equals_finite_differences():
    meta, tasks = build(Attenuation(conditioning="none"), InnerLoop(2, 0.1, learn_inner_lr=True))
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


# ---- prototypes ---------------------------------------------------------------------------------------------------


def test_prototypes_and_distances_by_hand():
    vectors = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [0.0, 6.0]])
    prototypes = class_prototypes(vectors, 2)
    torch.testing.assert_close(prototypes, torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    # From (1, 2): squared distances 4 and 1 + 9
    torch.testing.assert_close(distance_logits(torch.tensor([[1.0, 2.0]]), prototypes), torch.tensor([[-4.0, -10.0]]))


def settings(**changes):
    return PrototypeSettings(
        **({"ways": 4, "queries": 2, "classifier": SMALL, "validation_ways": 3, "validation_tasks": 10} | changes)
    )


def test_a_prototypical_network_that_is_resumed_is_the_unbroken_one(tmp_path):
    how = {
        "config": {},
        "validate_every": 2,
        "validation_key": "validation/accuracy/step_0",
        "progress_key": "accuracy/step_0",
    }
    for name, iterations, resume in (("unbroken", 4, False), ("broken", 2, False), ("broken", 4, True)):
        network = PrototypicalNetwork(DATA, settings())
        train(network, tmp_path / name, iterations=iterations, resume=resume, **how)
    states = [checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("unbroken", "broken")]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_tasks_prototype_is_the_mean_of_its_classes():
    network = PrototypicalNetwork(DATA, settings())
    solved = problem(Shape(3, 2, 2), prototypical=network)
    task = solved.sample("train", np.random.default_rng(0), 2)
    by_class = class_prototypes(network.embed(task.support[1]), 3)
    torch.testing.assert_close(task.prototype[1], by_class.mean(0))
    assert solved.embedding_size == network.embedding_size == task.prototype.shape[1] == 4


def test_gamma_read_off_prototypes_differs_between_tasks():
    network = PrototypicalNetwork(DATA, settings())
    run = MetaSupervised(
        problem(prototypical=network),
        SupervisedSettings(tasks_per_batch=4, attenuation=Attenuation(conditioning="prototype")),
        batching="loop",
        adapted=in_inner_loop,
        attenuated=in_inner_loop,
    )
    tasks = run.problem.sample("train", np.random.default_rng(0), 4)
    adaptation, gradient = run.meta_loss.gradient(tasks, (1.0,))
    assert adaptation.gamma.std(0).max() > 1e-4
    assert all(g.isfinite().all() for g in gradient)


def test_another_networks_state_is_refused():
    other = PrototypicalNetwork(DATA, settings(classifier=Classifier(filters=5)))
    with pytest.raises(CheckpointError, match="the checkpoint is of another network"):
        PrototypicalNetwork(DATA, settings()).load_state_dict(other.state_dict())
