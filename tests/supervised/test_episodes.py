"""N-way K-shot episodes, and images that fit their labels."""

import dataclasses

import numpy as np
import pytest
import torch

from metarl_l2f.supervised.classification import ImageProblem
from metarl_l2f.supervised.episodes import Images, Shape, draw_episodes

from .patterns import DATA, SMALL, images


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
