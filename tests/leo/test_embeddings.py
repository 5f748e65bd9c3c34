"""Files of embeddings, and the tasks that are drawn from them."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from metarl_l2f.supervised.episodes import SPLITS, Shape
from metarl_l2f.supervised.leo.embeddings import Embeddings, draw_tasks, load_embeddings, save_embeddings
from metarl_l2f.supervised.leo.experiment import LEOExperiment

from .tiny import TINY, data, random


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
    for split, found in load_embeddings(tmp_path).items():
        assert set(found.classes) == {f"{name}{split}" for name in names}
        first = found.classes.index(f"{names[0]}{split}")
        # Rows 0 and 2 of the unit matrix are the first class.
        assert found.vectors[found.labels == first].tolist() == np.eye(4)[[0, 2]].tolist()


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
    for split, found in load_embeddings(tmp_path).items():
        assert found.classes == tuple(name.format(split) for name in classes)


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
    with pytest.raises(ValueError, match="labels must ascend from 0"):
        Embeddings(torch.ones(2, 3), torch.tensor([1, 0]), ("a", "b"))
    with pytest.raises(ValueError, match=r"vectors must be \(n, D\) with one label per row, got \(2,\) for 2 labels"):
        Embeddings(torch.ones(2), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(ValueError, match="classes must have different names, got 'a' twice"):
        Embeddings(torch.ones(2, 3), torch.tensor([0, 1]), ("a", "a"))


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
