"""Reading a data set whole: its options, and the shape and order of what is returned."""

import pytest
import torch

from metarl_l2f.supervised.data.images import Omniglot, load_images

from .written import arrays, encoded, picture, samples, write, write_cifar_fs_pickles, write_folder, write_pickle


def test_splits_have_images_of_one_shape(tmp_path):
    write_folder(tmp_path)
    for seed, name in samples("test"):
        write(tmp_path / "test" / name / f"{seed}.png", encoded(picture(seed, size=5)))
    with pytest.raises(ValueError, match=r"splits whose images differ, .*'val': \(3, 4, 4\), 'test': \(3, 5, 5\)"):
        load_images(tmp_path)
    assert load_images(tmp_path, size=4)["test"].pixels.shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, "size must be a whole number of pixels, 1 or more, got 0"),
        ({"channels": 2}, r"channels must be 1 \(grey\), 3 \(RGB\) or None \(as stored\), got 2"),
        (
            {"omniglot": Omniglot()},
            "is an image folder, which has splits of its own; omniglot=... is for Omniglot only",
        ),
    ],
)
def test_options_are_checked(tmp_path, options, text):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match=text):
        load_images(tmp_path, **options)


def test_classes_are_in_the_order_of_their_names_and_images_in_that_of_their_list(tmp_path):
    write_cifar_fs_pickles(tmp_path)
    write_pickle(tmp_path / "CIFAR_FS_train.pickle", {"data": arrays("train"), "labels": [8, 3, 8, 3]})
    found = load_images(tmp_path)["train"]
    assert (found.classes, found.labels.tolist()) == (("3", "8"), [0, 0, 1, 1])
    assert torch.equal(found.pixels, torch.tensor(arrays("train")[[1, 3, 0, 2]]).permute(0, 3, 1, 2))
