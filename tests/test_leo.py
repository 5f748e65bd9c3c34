"""LEO and LEO + L2F: files, tasks, every equation by hand or against plain loops, and meta-gradients."""

import dataclasses
import logging
import math
import pickle

import numpy as np
import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F

from metarl_l2f.core import Attenuation, embed
from metarl_l2f.supervised.episodes import Shape
from metarl_l2f.supervised.leo import equations as leo
from metarl_l2f.supervised.leo import experiment as leo_experiment
from metarl_l2f.supervised.leo.embeddings import SPLITS, Embeddings, draw_tasks, load_embeddings, save_embeddings
from metarl_l2f.supervised.leo.equations import Gaussian, Noise
from metarl_l2f.supervised.leo.experiment import LEO, PUBLISHED, LEOExperiment, LEOSettings, draw_noise, no_noise
from metarl_l2f.training import checkpoint
from metarl_l2f.training.checkpoint import CheckpointError

SIZE = 5
TINY = LEOSettings(
    ways=3,
    shots=2,
    queries=2,
    tasks_per_batch=4,
    validation_tasks=6,
    latent_size=4,
    inner_steps=2,
    finetuning_steps=2,
    finetuning_lr=0.1,
    dropout=0.25,
    kl=0.3,
    encoder_penalty=0.2,
    orthogonality=0.1,
    l2=0.01,
)
METHODS = ("leo", "l2f")


def random(seed=0):
    return np.random.default_rng(seed)


def data(classes=6, rows=8, size=SIZE, spread=0.3, seed=0):
    """Embeddings of classes that lie apart."""
    centres = random(seed).standard_normal((classes, 1, size))
    vectors = torch.from_numpy(centres + spread * random(seed + 1).standard_normal((classes, rows, size))).float()
    labels = torch.arange(classes).repeat_interleave(rows)
    return Embeddings(F.normalize(vectors.flatten(0, 1), dim=1), labels, tuple(f"class {i}" for i in range(classes)))


def splits(**changes):
    return {split: data(seed=10 * i, **changes) for i, split in enumerate(SPLITS)}


def instance(settings=TINY):
    """A model, a meta-batch and its noise, in float64."""
    model = LEO(SIZE, settings).double()
    tasks = draw_tasks(data(), settings.shape, random(2), settings.tasks_per_batch)
    noise = draw_noise(settings, SIZE, random(3))
    doubled = type(tasks)(*(part.double() if part.is_floating_point() else part for part in tasks))
    return model, doubled, Noise(*(part.double() for part in noise))


def first(stacked):
    """The first task of a stack."""
    return type(stacked)(*(part[0] for part in stacked))


# Files


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


PUBLISHED_KEYS = [
    "n0210824900000012-n02108249-n02108249_12.JPEG",
    "n0153282900000005-n01532829-n01532829_5.JPEG",
    "n0210824900000007-n02108249-n02108249_7.JPEG",
]


def keys_of(split):
    """Keys of classes of its own; val's are those above."""
    return [key.replace("n0", f"n{('val', 'train', 'test').index(split)}") for key in PUBLISHED_KEYS]


@pytest.mark.parametrize("kind", [list, np.array, lambda keys: np.array(keys, dtype="S"), lambda k: np.array(k, "O")])
def test_files_in_the_published_format_are_read_class_by_class_and_normalised(tmp_path, kind):
    vectors = np.array([[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0]], dtype=np.float32)
    for split in ("train", "val", "test"):
        write(tmp_path / f"{split}_embeddings.pkl", {"keys": kind(keys_of(split)), "embeddings": vectors})
    read = load_embeddings(tmp_path)
    assert list(read) == ["train", "val", "test"]
    assert read["val"].classes == ("n01532829", "n02108249")
    assert read["val"].labels.tolist() == [0, 1, 1]
    assert read["val"].counts.tolist() == [1, 2]
    # (0, 2)/2, (3, 4)/5, (−5, 0)/5
    torch.testing.assert_close(read["val"].vectors, torch.tensor([[0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]]))


def test_what_is_saved_is_the_published_format_and_reads_back(tmp_path):
    vectors = random().standard_normal((4, 7))
    for split in SPLITS:
        names = [f"{split}_{name}" for name in ("dog", "aquarium_fish", "dog", "cat")]
        path = save_embeddings(tmp_path / "set" / "center", split, vectors, names)
    assert path == tmp_path / "set" / "center" / "test_embeddings.pkl"
    content = pickle.loads(path.read_bytes())
    assert set(content) == {"keys", "embeddings"}
    assert content["keys"].shape == (4,) and len(set(content["keys"])) == 4
    assert content["embeddings"].dtype == np.float32
    np.testing.assert_array_equal(content["embeddings"], vectors.astype(np.float32))
    for key, name in zip(content["keys"], names, strict=True):
        _, label, file = key.split("-")  # as LEO's own reader takes it apart, which also wants the next line
        assert file.split("_")[0] == label == name.replace("_", "%5F")
    read = load_embeddings(tmp_path / "set" / "center")["train"]
    assert read.classes == ("train_aquarium_fish", "train_cat", "train_dog")
    expected = F.normalize(torch.from_numpy(vectors[[1, 3, 0, 2]]).float(), dim=1)
    torch.testing.assert_close(read.vectors, expected)


GOOD = {"keys": PUBLISHED_KEYS, "embeddings": np.ones((3, 2), np.float32)}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "holds list; accepted"),
        ({"keys": PUBLISHED_KEYS, "images": []}, r"the entries \['images', 'keys'\]; accepted"),
        (GOOD | {"keys": 3}, r"the entries \['embeddings', 'keys'\]"),
        (GOOD | {"embeddings": [[1.0], [1.0, 2.0]]}, "the entries"),
        (GOOD | {"embeddings": np.ones((2, 2))}, r"3 keys and embeddings \(2, 2\) of float64; accepted"),
        (GOOD | {"embeddings": np.ones((3, 2, 1))}, r"embeddings \(3, 2, 1\)"),
        (GOOD | {"embeddings": np.array([["a", "b"]] * 3)}, "of <U1"),
        (GOOD | {"embeddings": np.array([[1.0, np.nan]] * 3)}, "not finite"),
        (GOOD | {"keys": ["n01-dog-1", "dog", "n01-dog-2"]}, "the key 'dog'; accepted"),
        (GOOD | {"keys": ["n01-dog-1", "n01--2", "n01-dog-2"]}, "the key 'n01--2'"),
    ],
)
def test_a_file_of_another_format_is_named_with_what_it_holds(tmp_path, content, found):
    for split in SPLITS:
        write(tmp_path / f"{split}_embeddings.pkl", GOOD)
    write(tmp_path / "val_embeddings.pkl", content)
    with pytest.raises(ValueError, match=found) as error:
        load_embeddings(tmp_path)
    assert "val_embeddings.pkl" in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        ("sea-lion", "sea-horse"),
        ("a-b", "a_b"),
        ("a", "a-a"),
        ("x", "x-x_y"),
        ("a-b", "a%2Db"),
        ("-", "_"),
        ("50%", "5"),
    ],
)
def test_classes_with_hyphens_stay_apart_and_keep_their_names(tmp_path, names):
    for split in SPLITS:
        save_embeddings(tmp_path, split, np.eye(4), [f"{name}{split}" for name in (*names, *names)])
    for split, data in load_embeddings(tmp_path).items():
        assert set(data.classes) == {f"{name}{split}" for name in names}
        first = data.classes.index(f"{names[0]}{split}")
        # Rows 0 and 2 of the unit matrix are the first class.
        assert data.vectors[data.labels == first].tolist() == np.eye(4)[[0, 2]].tolist()


def test_hyphens_are_sorted_like_the_underscores_of_older_files(tmp_path):
    for split in SPLITS:
        save_embeddings(tmp_path, split, np.eye(3), [f"{split} {name}" for name in ("YI", "Y-CREE", "YA")])
    assert load_embeddings(tmp_path)["val"].classes == ("val YA", "val YI", "val Y-CREE")  # as with Y_CREE


def write_keys(root, keys):
    for number, split in enumerate(SPLITS):
        keys_here = [key.format(split) for key in keys]
        write(
            root / f"{split}_embeddings.pkl", {"keys": keys_here, "embeddings": np.full((len(keys), 2), number + 1.0)}
        )


@pytest.mark.parametrize(
    ("keys", "classes"),
    [
        (["1-sea-lion{0}-sea-lion{0}_1.png", "2-sea-horse{0}-sea-horse{0}_2.png"], ("sea-horse{}", "sea-lion{}")),
        (["1-a{0}-a{0}_1-final.png", "2-a{0}-a{0}_2.png", "3-b{0}-anything"], ("a{}", "b{}")),
    ],
)
def test_a_file_that_begins_with_its_class_says_where_the_class_ends(tmp_path, keys, classes):
    write_keys(tmp_path, keys)
    for split, data in load_embeddings(tmp_path).items():
        assert data.classes == tuple(name.format(split) for name in classes)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            ["1-sea-lion{0}-1.png"],
            r"the key '1-sea-liontrain-1.png', whose class may be any of 'sea', 'sea-liontrain'; wri",
        ),
        (["1-x-x_y-x-x_y_1"], r"whose class may be any of 'x', 'x-x_y'; write hyphens .* as %2D"),
        (["a-1-dog-dog_1.png"], r"whose class may be any of '1', '1-dog'"),
        (["1-a%2Db{0}-1", "2-a-b{0}-a-b{0}_2"], r"train_embeddings.pkl writes the name of a class in two ways"),
        (["1-a{0}-1", "2-a{0}-2", "1-a{0}-1"], r"the key '1-atrain-1' more than once; keep one row of it"),
    ],
)
def test_keys_that_say_two_things_are_named(tmp_path, keys, text):
    write_keys(tmp_path, keys)
    with pytest.raises(ValueError, match=text):
        load_embeddings(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*train_embeddings\.pkl; accepted is a pickled dict"):
        load_embeddings(tmp_path)


def test_splits_of_different_sizes_are_refused(tmp_path):
    for split, size in zip(SPLITS, (4, 4, 3), strict=True):
        save_embeddings(tmp_path, split, np.ones((2, size)), ["a", "b"])
    with pytest.raises(ValueError, match=r"sizes differ: \{'train': 4, 'val': 4, 'test': 3\}"):
        load_embeddings(tmp_path)


def test_splits_that_share_a_class_are_refused(tmp_path):
    for split, names in zip(SPLITS, (["a", "b"], ["c", "d"], ["e", "b"]), strict=True):
        save_embeddings(tmp_path, split, np.ones((2, 3)), names)
    with pytest.raises(ValueError, match=r"train_embeddings\.pkl and .*test_embeddings\.pkl share the class 'b'"):
        load_embeddings(tmp_path)


def test_a_file_with_too_few_rows_of_a_class_is_named(tmp_path):
    for split in SPLITS:
        save_embeddings(tmp_path, split, np.ones((4, 3)), [f"{split} {c}" for c in "aabb"])
    with pytest.raises(ValueError, match=r"'train a' in train of .*train_embeddings\.pkl has 2"):
        LEOExperiment(load_embeddings(tmp_path), dataclasses.replace(TINY, ways=2, shots=1, queries=2))


@pytest.mark.parametrize(
    ("vectors", "names", "message"),
    [
        (np.ones((2, 3)), ["a"], r"got \(2, 3\), 1 names"),
        (np.ones(2), ["a", "b"], r"\(n, D\)"),
        (np.ones((2, 3)), ["a", ""], "must not be empty, but that of row 1 is"),
    ],
)
def test_what_cannot_be_read_back_is_not_saved(tmp_path, vectors, names, message):
    with pytest.raises(ValueError, match=message):
        save_embeddings(tmp_path, "train", vectors, names)
    assert not list(tmp_path.iterdir())


def test_embeddings_must_stand_class_by_class():
    with pytest.raises(ValueError, match="labels ascending from 0"):
        Embeddings(torch.ones(2, 3), torch.tensor([1, 0]), ("a", "b"))


# Tasks


def numbered(classes, rows):
    """Embeddings that say which class and row they are."""
    vectors = torch.tensor([[float(c), float(r)] for c in range(classes) for r in range(rows)])
    return Embeddings(vectors, torch.arange(classes).repeat_interleave(rows), tuple(map(str, range(classes))))


def test_a_task_has_n_classes_and_no_image_twice():
    tasks = draw_tasks(numbered(6, 7), Shape(4, 2, 5), random(), 20)
    assert tasks.support.shape == (20, 8, 2) and tasks.query.shape == (20, 20, 2)
    for support, targets, query, query_targets in zip(*tasks[:4], strict=True):
        names = [set(x[y == n, 0].tolist()) for n in range(4) for x, y in ((support, targets), (query, query_targets))]
        assert names[0::2] == names[1::2] and all(len(name) == 1 for name in names)
        assert len(set.union(*names)) == 4
        assert len({tuple(row) for row in torch.cat([support, query]).tolist()}) == 28
        assert targets.bincount().tolist() == [2] * 4 and query_targets.bincount().tolist() == [5] * 4


def test_every_class_and_row_is_drawn_some_time():
    tasks = draw_tasks(numbered(4, 5), Shape(2, 1, 1), random(), 60)
    assert len({tuple(row) for row in tasks.support.flatten(0, 1).tolist()}) == 20


def test_the_first_tasks_are_the_same_for_any_number():
    few, many = (draw_tasks(data(), Shape(3, 1, 2), random(), number) for number in (2, 5))
    assert all(torch.equal(a, b[:2]) for a, b in zip(few, many, strict=True))


def test_too_few_classes_or_rows_are_refused():
    with pytest.raises(ValueError, match="3-way episodes need 3 classes, but val has 2"):
        LEOExperiment(splits() | {"val": data(classes=2)}, TINY)
    with pytest.raises(ValueError, match="need 9 images of every class, but 'class 0' in train has 8"):
        LEOExperiment(splits(), dataclasses.replace(TINY, shots=4, queries=5))


# Equations


def test_the_codes_distribution_is_the_mean_relation_of_a_class_to_every_image():
    """The mean relation, spelled out pair by pair; in any order of images."""
    model, tasks, _ = instance()
    shuffled = torch.tensor([3, 0, 5, 1, 4, 2])
    support, targets = tasks.support[0][shuffled], tasks.support_targets[0][shuffled]
    params = model.params
    codes = [image @ params["encoder"] for image in support]

    def relation(left, right):
        hidden = torch.cat([left, right]) @ params["relation.0"]
        return (hidden.relu() @ params["relation.1"]).relu() @ params["relation.2"]

    encoded = leo.encode(params, support, targets, 3)
    for n in range(3):
        total = torch.zeros(8, dtype=torch.float64)
        for k in range(6):
            if targets[k] == n:
                for other in codes:
                    total += relation(codes[k], other)
        mean, log_std = (total / (3 * 2 * 2)).split(4)  # N K² = 3 · 2²
        torch.testing.assert_close(encoded.mean[n], mean)
        torch.testing.assert_close(encoded.std[n], log_std.exp())


def test_half_an_output_is_the_mean_and_half_the_logarithm_of_the_spread():
    mean, std = leo.gaussian(torch.tensor([0.5, -1.0, math.log(2), 0.0]), unit=0.1)
    assert mean.tolist() == [0.5, -1.0]
    torch.testing.assert_close(std, torch.tensor([0.2, 0.1]))


def test_a_decoder_of_zeros_draws_weights_like_glorots():
    weights = leo.decode({"decoder": torch.zeros(4, 2 * SIZE)}, torch.ones(3, 4))
    assert weights.mean.tolist() == [[0.0] * SIZE] * 3
    torch.testing.assert_close(weights.std, torch.full((3, SIZE), 0.5))  # √(2 / (3 + 5))


def test_decoding_is_linear_in_the_code():
    decoder = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, -1.0, math.log(3), 0.0]])  # H = 2, D = 2
    weights = leo.decode({"decoder": decoder}, torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
    assert weights.mean.tolist() == [[3.0, 5.0], [0.0, -2.0]]
    torch.testing.assert_close(weights.std, torch.tensor([[3.0, 1.0], [9.0, 1.0]]) * math.sqrt(2 / 4))


def test_a_sample_is_the_mean_plus_noise_in_units_of_the_spread():
    distribution = Gaussian(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]))
    assert leo.sample(distribution, torch.tensor([2.0, -1.0])).tolist() == [2.0, -1.0]
    assert leo.sample(distribution, torch.zeros(1)).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("shots", [1, 3])
def test_the_support_loss_sums_over_classes_and_averages_over_shots(shots):
    # Logits ±½ ln 3: the likelier class has 3/4. Class 0 is right (ln 4/3), class 1 wrong (ln 4).
    weights, image = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.5 * math.log(3)]])
    targets = torch.tensor([0, 1]).repeat_interleave(shots)
    loss = leo.support_loss(weights, image.expand(2 * shots, 1), targets)
    assert loss.item() == pytest.approx(math.log(4 / 3) + math.log(4))


def test_kl_of_a_gaussian_from_the_standard_normal():
    # μ = 2, σ = 1: ½·4 = 2;  μ = 0, σ = e: ½(e² − 1) − 1;  their mean
    codes = Gaussian(torch.tensor([2.0, 0.0]), torch.tensor([1.0, math.e]))
    assert leo.kl_to_standard_normal(codes).item() == pytest.approx((2 + (math.e**2 - 1) / 2 - 1) / 2)
    standard = Gaussian(torch.zeros(3), torch.ones(3))
    assert leo.kl_to_standard_normal(standard).item() == 0.0


def test_kl_is_what_torch_distributions_says():
    codes = Gaussian(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.rand(3, 4) + 0.1)
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(*codes), prior).mean()
    torch.testing.assert_close(leo.kl_to_standard_normal(codes), expected)


def test_the_encoder_penalty_pulls_the_first_codes_and_not_the_last():
    codes, last = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([2.0, 0.0], requires_grad=True)
    penalty = leo.encoder_penalty(codes, last)
    assert penalty.item() == 5.0  # (1² + 3²) / 2
    penalty.backward()
    assert codes.grad.tolist() == [-1.0, 3.0]  # z − z′
    assert last.grad is None


def test_the_regulariser_by_hand():
    params = {
        "encoder": torch.tensor([[2.0]]),
        "relation.0": torch.tensor([[1.0]]),
        "decoder": torch.tensor([[3.0, 0.0], [1.0, 1.0]]),
        "latent_lr": torch.tensor([100.0]),
        "finetuning_lr": torch.tensor([100.0]),
    }
    # squares 4 + 1 + 11, halved: 8;  the rows' correlation is 1/√2, so C − I has 2 entries of ½ squared: mean ¼
    assert leo.regulariser(params, 0.1, 0.0).item() == pytest.approx(0.8)
    assert leo.regulariser(params, 0.0, 0.4).item() == pytest.approx(0.1)


def test_the_meta_loss_weighs_its_terms():
    settings = dataclasses.replace(TINY, kl=10.0, encoder_penalty=100.0, l2=0.0, orthogonality=1.0)
    terms = [torch.tensor([1.0, 3.0]), torch.zeros(2, 1), torch.tensor([0.1, 0.3]), torch.tensor([0.04, 0.02])]
    params = {"decoder": torch.tensor([[3.0, 0.0], [1.0, 1.0]])}
    loss = leo_experiment.meta_loss(leo.Outcome(*terms, torch.zeros(2, 0)), params, settings)
    assert loss.item() == pytest.approx(2 + 10 * 0.2 + 100 * 0.03 + 0.25)


def test_clipping_cuts_entries_and_then_the_norm():
    # (3, 0.05) → (0.1, 0.05), of norm 0.05 √5 → times 0.1 / that
    clipped = leo_experiment.clip(torch.tensor([3.0, 0.05]), 0.1)
    torch.testing.assert_close(clipped, torch.tensor([2.0, 1.0]) * 0.1 / 5**0.5)
    assert leo_experiment.clip(torch.tensor([-0.03, 0.04]), 0.1).tolist() == pytest.approx([-0.03, 0.04])
    assert leo_experiment.clip(torch.zeros(2), 0.1).tolist() == [0.0, 0.0]


# One task


def adapted_by_loops(model, task, noise):
    """The inner loop step by step on one task, with autograd and the attenuator's formulas spelled out."""
    params, targets = model.params, task.support_targets
    images = [mask * task.support for mask in noise.support]

    def decoded(code, number):
        mean, log_std = (code @ params["decoder"]).split(SIZE, dim=1)
        return mean + math.sqrt(2 / (3 + SIZE)) * log_std.exp() * noise.weights[number]

    def loss(weights, inputs):
        probabilities = (inputs @ weights.T).softmax(1)
        return -sum(probabilities[i, y].log() for i, y in enumerate(targets)) / 2  # K = 2

    distribution = leo.encode(params, images[0], targets, 3)
    code = start = distribution.mean + distribution.std * noise.latent
    weights = decoded(code, 0)
    gamma = torch.ones(3, 1, dtype=torch.float64)
    if model.l2f is not None:
        (g,) = torch.autograd.grad(loss(weights, images[1]), weights, retain_graph=True)
        embedding = SIZE**0.5 * g.mean(1) / g.square().mean().sqrt()
        into, out = model.l2f.attenuator[0], model.l2f.attenuator[2]
        hidden = (into.weight @ embedding + into.bias).relu()
        gamma = torch.sigmoid(out.weight @ hidden + out.bias)[:, None]
    path = [weights]
    for step in range(2):
        (g,) = torch.autograd.grad(loss(gamma * decoded(code, step), images[1 + step]), code, create_graph=True)
        code = code - params["latent_lr"] * g
        path.append(gamma * decoded(code, step + 1))
    for step in range(2, 4):
        (g,) = torch.autograd.grad(loss(path[-1], images[1 + step]), path[-1], create_graph=True)
        path.append(path[-1] - params["finetuning_lr"] * g)
    return torch.stack(path), start, code, gamma[:, 0]


@pytest.mark.parametrize("method", METHODS)
def test_adaptation_vmapped_over_tasks_is_algorithm_1_task_by_task(method):
    model, tasks, noise = instance(dataclasses.replace(TINY, method=method))
    with torch.no_grad():  # different step sizes for different entries
        model.latent_lr.mul_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
        model.finetuning_lr.mul_(torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0]))
    one = lambda task, noise: leo.adapt(model.params, model.l2f, 3, task, noise)  # noqa: E731
    together = vmap(one)(tasks, noise)
    for i in range(len(tasks.support)):
        task, own = type(tasks)(*(part[i] for part in tasks)), Noise(*(part[i] for part in noise))
        path, start, code, gamma = adapted_by_loops(model, task, own)
        torch.testing.assert_close(together.weights[i], path, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(together.first[i], start, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(together.last[i], code, rtol=1e-5, atol=1e-8)
        if method == "l2f":
            torch.testing.assert_close(together.gamma[i], gamma, rtol=1e-5, atol=1e-8)
    assert together.gamma.shape == (4, 3 if method == "l2f" else 0)


def test_without_noise_the_codes_and_weights_are_the_means():
    model, tasks, _ = instance(dataclasses.replace(TINY, method="leo"))
    quiet = Noise(*(part.double() for part in no_noise(TINY)))
    task = first(tasks)
    adapted = leo.adapt(model.params, None, 3, task, quiet)
    codes = leo.encode(model.params, task.support, task.support_targets, 3)
    torch.testing.assert_close(adapted.first, codes.mean)
    torch.testing.assert_close(adapted.weights[0], leo.decode(model.params, codes.mean).mean)
    assert adapted.weights.shape == (5, 3, SIZE)


def test_judgement_is_the_last_classifiers_loss_and_every_classifiers_accuracy(monkeypatch):
    model, tasks, _ = instance(dataclasses.replace(TINY, method="leo"))
    task = first(tasks)._replace(query=torch.tensor([[1.0], [-2.0]]), query_targets=torch.tensor([0, 0]))
    weights = torch.tensor([[[-1.0], [1.0]], [[1.0], [-1.0]]])  # logits of the queries: ∓1, ±2; then ±1, ∓2
    codes = Gaussian(torch.zeros(2, 4), torch.ones(2, 4))
    adapted = leo.Adapted(weights, codes, torch.zeros(2, 4), torch.ones(2, 4), torch.zeros(0))
    monkeypatch.setattr(leo, "adapt", lambda *arguments: adapted)
    outcome = leo.assess(model.params, None, 2, task, no_noise(TINY)._replace(query=torch.tensor([[0.5], [1.0]])))
    assert outcome.accuracy.tolist() == [0.5, 0.5]
    # dropout halves the first query: −log p = log(1 + e^(−1)) and log(1 + e⁴)
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(4))) / 2
    assert outcome.query_loss.item() == pytest.approx(expected)
    assert (outcome.kl.item(), outcome.penalty.item()) == (0.0, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_the_meta_gradient_is_that_of_finite_differences(method):
    # The penalty's stopgrad has no finite difference; its own test has its gradient. Nor has the embedding, which is
    # data: it is held where it is.
    model, tasks, noise = instance(dataclasses.replace(TINY, method=method, encoder_penalty=0.0))
    task, noise = first(tasks), first(noise)
    settings = dataclasses.replace(TINY, encoder_penalty=0.0)

    def objective():
        outcome = leo.assess(model.params, model.l2f, 3, task, noise)
        return leo_experiment.meta_loss(outcome, model.params, settings)

    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = dict(zip(parameters, torch.autograd.grad(objective(), parameters.values()), strict=True))
    if model.l2f is not None:
        seen, real = [], model.l2f.gamma
        model.l2f.gamma = lambda g: (
            seen.append(embed([g["weights"]], model.l2f.owners.values(), "standardised")) or real(g)
        )
        objective()
        model.l2f.gamma = lambda g: (model.l2f.attenuator(seen[0]).sigmoid(), None)
    step = 1e-6
    for seed, (name, parameter) in enumerate(parameters.items()):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = objective()
            parameter.sub_(direction, alpha=2 * step)
            below = objective()
            parameter.add_(direction, alpha=step)
        slope = (gradients[name] * direction).sum().item()
        assert ((above - below) / (2 * step)).item() == pytest.approx(slope, rel=1e-5, abs=1e-9), name
    assert len(parameters) == (11 if method == "l2f" else 7)


# L2F


def test_gamma_1_is_leo():
    free = dataclasses.replace(TINY, attenuation=Attenuation(scope="filter", conditioning="none"))  # starts at 1
    model, tasks, noise = instance(free)
    assess = lambda l2f: vmap(lambda t, n: leo.assess(model.params, l2f, 3, t, n))(tasks, noise)  # noqa: E731
    with_l2f, alone = assess(model.l2f), assess(None)
    assert with_l2f.gamma.tolist() == [[1.0] * 3] * 4
    for name in ("query_loss", "accuracy", "kl", "penalty"):
        torch.testing.assert_close(getattr(with_l2f, name), getattr(alone, name))


def test_the_shift_of_an_affine_transform_is_added_to_every_decoding():
    settings = dataclasses.replace(TINY, attenuation=Attenuation(scope="network", transform="affine"))
    model, tasks, noise = instance(settings)
    model.l2f.gamma = lambda g: (torch.zeros(1).double(), torch.full((1,), 2.0).double())
    adapted = leo.adapt(model.params, model.l2f, 3, first(tasks), first(noise))
    assert adapted.weights[1:3].tolist() == [[[2.0] * SIZE] * 3] * 2  # 0·w + 2
    assert adapted.weights[0].tolist() != [[2.0] * SIZE] * 3  # before adaptation nothing is forgotten


@pytest.mark.parametrize(("scope", "differs"), [("tensor", False), ("filter", True)])
def test_gamma_depends_on_the_task_when_every_class_has_its_own(scope, differs):
    model, tasks, noise = instance(dataclasses.replace(TINY, attenuation=Attenuation(scope=scope)))
    gamma = vmap(lambda t, n: leo.adapt(model.params, model.l2f, 3, t, n).gamma)(tasks, noise)
    assert (gamma.std(0).max().item() > 1e-4) == differs


def test_gammas_spread_is_over_tasks_and_not_over_classes():
    free = dataclasses.replace(TINY, attenuation=Attenuation(scope="filter", conditioning="none"))
    experiment = LEOExperiment(splits(), free)
    with torch.no_grad():
        experiment.model.l2f.free.copy_(torch.tensor([0.25, 0.5, 0.75]))
    metrics = experiment.iterate(1)
    assert metrics["gamma/weights/mean"] == pytest.approx(0.5)
    assert metrics["gamma/weights/std"] == pytest.approx(0.0, abs=1e-6)


def test_leos_parameters_are_its_three_networks_and_step_sizes():
    model = LEO(SIZE, dataclasses.replace(TINY, latent_lr=2.0))
    networks = ["encoder", "decoder", "relation.0", "relation.1", "relation.2"]
    assert sorted(model.params) == sorted([*networks, "latent_lr", "finetuning_lr"])
    assert model.latent_lr.tolist() == [2.0] * 4
    assert model.finetuning_lr.tolist() == pytest.approx([0.1] * SIZE)


def test_the_classifier_that_l2f_is_built_on_is_not_learned():
    experiment = LEOExperiment(splits(), TINY)
    experiment.iterate(1)
    assert not experiment.model.l2f.network["weights"].any()


# Training


def test_dropout_keeps_a_part_and_scales_it_up():
    noise = draw_noise(dataclasses.replace(TINY, tasks_per_batch=200), SIZE, random())
    for mask, shape in ((noise.support, (200, 5, 6, SIZE)), (noise.query, (200, 6, SIZE))):
        assert mask.shape == shape and mask.dtype == torch.float32
        assert mask.unique().tolist() == pytest.approx([0.0, 4 / 3])
        assert mask.mean().item() == pytest.approx(1.0, abs=0.03)
    assert noise.latent.shape == (200, 3, 4) and noise.weights.shape == (200, 3, 3, SIZE)
    assert noise.weights.std().item() == pytest.approx(1.0, abs=0.05)


def test_every_iteration_has_tasks_and_noise_of_its_own(monkeypatch):
    experiment, seen = LEOExperiment(splits(), TINY), []
    assess = experiment._assess
    monkeypatch.setattr(experiment, "_assess", lambda *arguments: seen.append(arguments) or assess(*arguments))
    for iteration in (1, 2, 1):
        experiment.iterate(iteration)
    (tasks, noise, _), (later_tasks, later_noise, _), (tasks_again, noise_again, _) = seen
    assert not torch.equal(tasks.support, later_tasks.support) and torch.equal(tasks.support, tasks_again.support)
    for part, later, again in zip(noise, later_noise, noise_again, strict=True):
        assert not torch.equal(part, later) and torch.equal(part, again)


def test_adam_sees_clipped_gradients():
    experiment = LEOExperiment(splits(), dataclasses.replace(TINY, clip=1e-4))
    assert experiment.iterate(1)["gradient_norm"] > 0.01
    norms = {name: p.grad.norm().item() for name, p in experiment.model.named_parameters() if p.grad is not None}
    assert norms["decoder"] == pytest.approx(1e-4)
    assert max(norms.values()) < 1.01e-4


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, method):
    settings = dataclasses.replace(TINY, method=method, lr=0.01)
    whole = LEOExperiment(splits(), settings)
    for iteration in (1, 2):
        whole.iterate(iteration)
    checkpoint.save(tmp_path / "checkpoint.pt", whole.state_dict())
    resumed = LEOExperiment(splits(), dataclasses.replace(settings, seed=1))
    resumed.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt"))
    for iteration in (3, 4):
        ours, theirs = whole.iterate(iteration), resumed.iterate(iteration)
        assert ours.pop("time/iteration") and theirs.pop("time/iteration")
        assert ours == theirs
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_checkpoint_of_another_method_or_embedding_is_refused():
    state = LEOExperiment(splits(), TINY).state_dict()
    with pytest.raises(CheckpointError, match=r"l2f\.attenuator\.0\.bias is \(3,\), expected none"):
        LEOExperiment(splits(), dataclasses.replace(TINY, method="leo")).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"encoder is \(5, 4\), expected \(7, 4\)"):
        LEOExperiment(splits(size=7), TINY).load_state_dict(state)


@pytest.mark.parametrize("method", METHODS)
def test_the_query_loss_falls_where_classes_lie_apart(method):
    settings = dataclasses.replace(TINY, method=method, lr=0.01, kl=0.001, dropout=0.1, shots=1, latent_size=8)
    experiment = LEOExperiment(splits(classes=12, size=16, spread=0.1), settings)
    losses = [experiment.iterate(iteration)["loss/query"] for iteration in range(1, 61)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert experiment.evaluate("test", 50, seed=0)[:, -1].mean() > 0.75


def test_metrics_name_every_term_and_every_step():
    metrics = LEOExperiment(splits(), TINY).iterate(1)
    steps = [f"accuracy/step_{step}" for step in range(5)]
    terms = ["loss", "loss/query", "loss/kl", "loss/encoder_penalty", "gradient_norm"]
    assert set(metrics) == {*steps, *terms, "gamma/weights/mean", "gamma/weights/std", "time/iteration"}
    assert 0 < metrics["gamma/weights/mean"] < 1
    assert all(isinstance(value, float) for value in metrics.values())


def test_validation_repeats_and_changes_nothing():
    experiment = LEOExperiment(splits(), TINY)
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    assert experiment.validate(1) == experiment.validate(2)
    assert list(experiment.validate(1)) == [f"validation/accuracy/step_{step}" for step in range(5)]
    assert all(torch.equal(value, before[name]) for name, value in experiment.model.state_dict().items())


def test_evaluation_scores_every_task_alike_however_many_are_held_at_once(monkeypatch):
    experiment = LEOExperiment(splits(), TINY)
    many = experiment.evaluate("test", 7, seed=3)
    monkeypatch.setattr(leo_experiment, "TASKS_AT_ONCE", 3)
    assert many.shape == (7, 5)
    np.testing.assert_allclose(experiment.evaluate("test", 7, seed=3), many)
    np.testing.assert_allclose(experiment.evaluate("test", 2, seed=3), many[:2])
    assert not np.array_equal(experiment.evaluate("test", 7, seed=4), many)
    with pytest.raises(ValueError, match="tasks must be a positive number of tasks, got 0"):
        experiment.evaluate("test", 0, seed=3)


def test_two_methods_with_one_seed_start_alike_and_meet_the_same_tasks():
    models, accuracies = [], []
    for method in METHODS:
        experiment = LEOExperiment(splits(), dataclasses.replace(TINY, method=method))
        models.append({name: p.clone() for name, p in experiment.model.params.items()})
        accuracies.append(experiment.iterate(1)["accuracy/step_0"])
    assert accuracies[0] == accuracies[1]
    assert all(torch.equal(p, models[1][name]) for name, p in models[0].items())


def test_an_update_that_is_not_finite_is_rejected_with_a_warning(caplog):
    experiment = LEOExperiment(splits(), TINY)
    with torch.no_grad():
        experiment.model.latent_lr[0] = 3e38
    before = experiment.model.decoder.clone()
    with caplog.at_level(logging.WARNING):
        metrics = experiment.iterate(1)
    assert "iteration 1: the update was rejected" in caplog.text
    assert not math.isfinite(metrics["gradient_norm"])
    assert torch.equal(experiment.model.decoder, before)


def test_no_fine_tuning_is_a_choice():
    experiment = LEOExperiment(splits(), dataclasses.replace(TINY, finetuning_steps=0))
    assert "accuracy/step_3" not in experiment.iterate(1)
    assert experiment.evaluate("val", 2, seed=0).shape == (2, 3)


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_weights_are_settings(case):
    settings = LEOSettings(shots=case[1], **PUBLISHED[case])
    assert (settings == LEOSettings()) == (case == ("miniImageNet", 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 0}, "ways must be 1 or more, got 0"),
        ({"inner_steps": 0}, "inner_steps must be 1 or more"),
        ({"finetuning_steps": -1}, "finetuning_steps must be 0 or more, got -1"),
        ({"kl": -1.0}, "kl must be finite and not negative"),
        ({"kl": math.nan}, "kl must be finite and not negative"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"method": "maml"}, "method must be 'l2f' or 'leo', got 'maml'"),
        ({"attenuation": Attenuation(conditioning="prototype")}, "conditioning must be 'gradient' or 'none'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LEOSettings(**changes)
