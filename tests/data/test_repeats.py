"""Classes and pictures that a data set has more than once."""

import pytest

from metarl_l2f.supervised.data.images import load_images

from .written import arrays, encoded, picture, write, write_cifar_fs_pickles, write_csv, write_folder, write_pickle


def test_splits_do_not_share_a_class(tmp_path):
    write_folder(tmp_path / "folder")
    write(tmp_path / "folder" / "test" / "bear" / "1.png", encoded(picture(1)))
    with pytest.raises(ValueError, match=r"the splits 'train' and 'test' of \S*folder share the class 'bear'"):
        load_images(tmp_path / "folder")
    write_cifar_fs_pickles(tmp_path)
    write_pickle(tmp_path / "CIFAR_FS_val.pickle", {"data": arrays("val"), "labels": [8, 12]})
    (tmp_path / "folder").rename(tmp_path / ".folder")
    with pytest.raises(ValueError, match=r"the splits 'train' and 'val' of .* share the class '8'.*count through all"):
        load_images(tmp_path)


def test_classes_whose_names_look_alike_are_named(tmp_path, caplog):
    write_folder(tmp_path)
    write(tmp_path / "test" / "Apple" / "1.png", encoded(picture(1)))
    write(tmp_path / "train" / "caf\u00e9" / "1.png", encoded(picture(2)))
    write(tmp_path / "train" / "cafe\u0301" / "1.png", encoded(picture(3)))
    assert len(load_images(tmp_path)["train"].classes) == 4
    (warning,) = caplog.messages
    assert "has classes whose names look alike: " in warning and "'apple' (train) and 'Apple' (test)" in warning
    assert warning.count("caf") == 2


def test_pictures_that_are_equal_are_counted_and_named(tmp_path, caplog):
    write_folder(tmp_path)  # apple has 100 and 101, bear 110 and 111, cup 200 and 201, dog 300 and 301
    write(tmp_path / "train" / "apple" / "again.png", encoded(picture(100)))
    write(tmp_path / "train" / "bear" / "again.bmp", encoded(picture(101), "BMP"))
    write(tmp_path / "test" / "dog" / "again.png", encoded(picture(201)))
    write(tmp_path / "test" / "dog" / "more.png", encoded(picture(110)))
    load_images(tmp_path)
    (warning,) = caplog.messages
    assert "has pictures more than once, equal in every pixel as they are read: 1 twice in a class (" in warning
    assert f"{tmp_path}/train/apple/100.png = {tmp_path}/train/apple/again.png); 1 in two classes (" in warning
    assert f"{tmp_path}/train/apple/101.png = {tmp_path}/train/bear/again.bmp); 2 in two splits (" in warning
    assert f"{tmp_path}/val/cup/201.png = {tmp_path}/test/dog/again.png" in warning


@pytest.mark.parametrize(("split", "name"), [("train", "apple"), ("train", "fig"), ("val", "fig")])
def test_an_image_stands_in_one_split_and_once(tmp_path, split, name):
    write_csv(tmp_path)
    with open(tmp_path / f"{split}.csv", "a") as table:
        table.write(f"apple_100.png,{name}\r\n")
    text = rf"images/apple_100.png stands in apple \(train\) and again in {name} \({split}\)"
    with pytest.raises(ValueError, match=text):
        load_images(tmp_path)
