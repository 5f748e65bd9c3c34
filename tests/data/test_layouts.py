"""Layouts: each is recognised and read, and errors name what is missing or wrong in one."""

import os
import re

import numpy as np
import pytest

from metarl_l2f.supervised.data.images import SPLITS, load_images

from .written import (
    CLASSES,
    NUMBERS,
    WRITERS,
    arrays,
    assert_complete,
    picture,
    write,
    write_cache,
    write_category_split,
    write_cifar_fs,
    write_cifar_fs_data,
    write_cifar_fs_pickles,
    write_csv,
    write_fc100_npz,
    write_folder,
    write_pickle,
    write_tiered_npz,
    write_tiered_png,
    zipped,
)


def entries(root):
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_every_layout_is_recognised_and_read_and_left_as_it_was(tmp_path, writer):
    writer(tmp_path)
    before = entries(tmp_path)
    found = load_images(tmp_path)
    assert_complete(found, WRITERS[writer])
    assert {found[split].where for split in SPLITS} == {str(tmp_path)}
    assert entries(tmp_path) == before


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_every_layout_is_read_from_a_zip_archive_and_from_a_folder_of_one(tmp_path, writer):
    (tmp_path / "set").mkdir()
    writer(tmp_path / "set")
    (tmp_path / "archives").mkdir()
    archive = zipped(tmp_path / "set", tmp_path / "archives" / "set.zip")
    before = entries(tmp_path)
    assert_complete(load_images(archive), WRITERS[writer])
    write(tmp_path / "archives" / "README.md", "where it is from")
    assert_complete(load_images(str(tmp_path / "archives")), WRITERS[writer])
    (tmp_path / "archives" / "README.md").unlink()
    assert entries(tmp_path) == before


@pytest.mark.parametrize("name", ["valid", "validation"])
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_the_validation_split_is_known_by_the_names_that_others_give_it(tmp_path, writer, name, caplog):
    writer(tmp_path)
    for path in sorted(tmp_path.rglob("*val*")):
        path.rename(path.with_name(path.name.replace("val", name)))
    assert_complete(load_images(tmp_path), WRITERS[writer])
    assert caplog.messages == []


def test_tables_may_stand_in_a_folder_of_their_own_and_have_blanks(tmp_path):
    write_csv(tmp_path)
    for split in SPLITS:
        table = (tmp_path / f"{split}.csv").read_text()
        write(tmp_path / "split" / f"{split}.csv", table.replace(",", " , ").replace("filename ,", "filename,"))
        (tmp_path / f"{split}.csv").unlink()
    assert_complete(load_images(tmp_path), CLASSES)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (
            ["mini-imagenet.tar.gz"],
            "mini-imagenet.tar.gz looks like an archive that is no zip archive (not read): unpack",
        ),
        (
            ["miniimagenet/train_data.hdf5", "miniimagenet/train_labels.json"],
            "looks like HDF5 files, as torchmeta makes",
        ),
        (
            ["aircraft/0.tfrecords", "aircraft/dataset_spec.json"],
            "0.tfrecords looks like Meta-Dataset's records (not rea",
        ),
        (
            ["CUB/image_class_labels.txt", "CUB/images.txt", "CUB/images/001.Albatross/a.jpg"],
            "looks like CUB-200-2011, which has no splits of its classes (not read): sort the folders inside images/",
        ),
        (["CUB/base.json", "CUB/val.json", "CUB/novel.json"], "base.json looks like lists of pictures by their paths"),
        (
            ["cifar-100-python/train", "cifar-100-python/meta"],
            "looks like CIFAR-100, whose splits have the same classes",
        ),
        (["val_embeddings.pkl"], "looks like embeddings for LEO (not read): give them to launchers/leo.py"),
        (
            ["omniglot.npy"],
            "omniglot.npy looks like arrays of no known layout (not read): write their pictures to {train",
        ),
        (["cats/1.png", "dogs/1.png"], "cats/1.png looks like folders of pictures without splits (not read): sort the"),
        (["Train/cats/1.png", "Val/dogs/1.png"], "Train/cats/1.png looks like folders of pictures without splits"),
    ],
)
def test_published_layouts_that_are_not_read_are_named_with_what_to_do(tmp_path, files, text):
    for name in files:
        write(tmp_path / name, "")
    with pytest.raises(ValueError, match=f"no data set was recognised at .*{re.escape(text)}.*\n  an image folder: "):
        load_images(tmp_path)


def test_an_unknown_layout_is_told_what_was_found_and_what_is_known(tmp_path):
    with pytest.raises(ValueError, match="found nothing; known layouts are\n  an image folder: "):
        load_images(tmp_path)
    for i in range(12):
        write(tmp_path / f"{i:02}.txt", "")
    (tmp_path / "Train").mkdir()
    with pytest.raises(ValueError, match=r"no data set was recognised at .*, found 00.txt, .* and 3 more") as caught:
        load_images(tmp_path)
    for name in ("miniImageNet", "tieredImageNet", "CIFAR-FS", "FC100", "Omniglot"):
        assert f"\n  {name}: " in str(caught.value)


def test_two_data_sets_in_one_folder_are_not_chosen_between(tmp_path):
    write_folder(tmp_path / "a")
    write_cache(tmp_path / "b")
    with pytest.raises(ValueError, match=r"holds several data sets, .* at \S*/a; miniImageNet .* at \S*/b"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("writer", "removed", "text"),
    [
        (write_folder, "val/cup", r"has no val/<class>/, found test, train, val; add the split 'val'"),
        (write_csv, "test.csv", r"has no test.csv or split/test.csv, found images, train.csv, val.csv; train, val and"),
        (write_cache, "mini-imagenet-cache-val.pkl", r"has no mini-imagenet-cache-val.pkl, found"),
        (
            write_category_split,
            "miniImageNet_category_split_train_phase_train.pickle",
            r"has no miniImageNet_category_split_train_phase_train.pickle, found",
        ),
        (write_tiered_png, "val_images_png.pkl", r"has no val_images.npz or val_images_png.pkl, found"),
        (write_tiered_npz, "val_labels.pkl", r"has no val_labels.pkl, found"),
        (write_cifar_fs, "splits/bertinetto/val.txt", r"has no splits/bertinetto/val.txt, found"),
        (write_cifar_fs_pickles, "CIFAR_FS_test.pickle", r"has no CIFAR_FS_test.pickle, found"),
        (write_fc100_npz, "FC100_train.npz", r"has no FC100_train.pickle or FC100_train.npz, found"),
    ],
)
def test_a_missing_split_is_named(tmp_path, writer, removed, text):
    writer(tmp_path)
    path = tmp_path / removed
    if path.is_dir():
        for entry in path.iterdir():
            entry.unlink()
        path.rmdir()
    else:
        path.unlink()
    with pytest.raises(ValueError, match=text):
        load_images(tmp_path)


def test_a_class_that_a_list_names_has_images(tmp_path):
    write_cifar_fs_data(tmp_path)
    write(tmp_path / "splits" / "bertinetto" / "val.txt", "cup\nfig\n")
    with pytest.raises(ValueError, match=r"the class 'fig' is empty: \S*data/fig has no"):
        load_images(tmp_path)


class Exploit:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("name", ["labels", "images_png"])
def test_a_pickle_that_asks_for_more_than_arrays_is_refused_unrun(tmp_path, name, archived):
    root = tmp_path / "set"
    write_tiered_png(root)
    write_pickle(root / f"train_{name}.pkl", [Exploit(tmp_path / "canary")])
    with pytest.raises(ValueError, match=rf"train_{name}.pkl was refused: it asks for posix.mkdir, .*nothing was run"):
        load_images(zipped(root, tmp_path / "set.zip") if archived else root)
    assert not (tmp_path / "canary").exists()


def test_an_npz_is_not_unpickled_either(tmp_path):
    write_fc100_npz(tmp_path)
    hostile = np.array([Exploit(tmp_path / "canary")], object)
    np.savez(tmp_path / "FC100_train.npz", features=hostile, targets=np.array([1]))
    with pytest.raises(ValueError, match=r"FC100_train.npz is not a whole npz of plain arrays: Object arrays"):
        load_images(tmp_path)
    assert not (tmp_path / "canary").exists()
    write(tmp_path / "FC100_train.npz", "no archive")
    with pytest.raises(ValueError, match=r"FC100_train.npz is not a whole npz of plain arrays"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1], "must be a dictionary with 'labels' or 'targets', found a list"),
        ({"data": arrays("train"), "classes": 1}, "with 'labels' or 'targets', found classes, data"),
        ({"labels": [1, 2, 3, 4]}, "with 'data' or 'images' or 'features', found labels"),
        ({"data": arrays("train"), "labels": [1, 2]}, "has 4 images for 2 labels; each image has one label"),
        ({"data": arrays("train"), "labels": [[1, 2]] * 4}, r"labels \(n,\), whole numbers, got int64 \(4, 2\)"),
        ({"data": arrays("train"), "labels": [0.5] * 4}, r"labels \(n,\), whole numbers, got float64 \(4,\)"),
        ({"data": arrays("train") / 255, "labels": [1] * 4}, r"images as bytes .* got float64 \(4, 4, 4, 3\); convert"),
        ({"data": arrays("train")[..., :2], "labels": [1] * 4}, r"images as bytes .* got uint8 \(4, 4, 4, 2\)"),
        ({"data": [picture(0), picture(0, 5)], "labels": [1, 1]}, "must hold images of one size and a list of labels"),
        ({"data": arrays("train")[:0], "labels": np.zeros(0, int)}, "the split 'train' of .* has no images"),
    ],
)
def test_labels_and_images_fit_each_other(tmp_path, content, text):
    write_cifar_fs_pickles(tmp_path)
    write_pickle(tmp_path / "CIFAR_FS_train.pickle", content)
    with pytest.raises(ValueError, match=text):
        load_images(tmp_path)


def test_grey_arrays_are_read_with_or_without_a_channel(tmp_path):
    write_cifar_fs_pickles(tmp_path)
    for split, shape in zip(SPLITS, [(2, 3, 3), (2, 3, 3, 1), (2, 3, 3)], strict=True):
        grey = np.arange(18, dtype=np.uint8).reshape(shape)
        write_pickle(tmp_path / f"CIFAR_FS_{split}.pickle", {"data": grey, "labels": list(NUMBERS[split] * 2)[:2]})
    assert load_images(tmp_path)["val"].pixels.flatten().tolist() == list(range(18))


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ({"apple": [0, 1], "bear": [2]}, "class_dict of .* must give each image to a class, but not image 3"),
        ({"apple": [0, 1], "bear": [1, 2, 3]}, "of its 4 images to one class, but gives image 1 to 'bear' too"),
        ({"apple": [0, 1, 2, 3, 4]}, "gives image 4 to 'apple' though there is none"),
        ({"apple": [0, 1, 2, -1]}, "gives image -1 to 'apple' though there is none"),
        ({"apple": [0, 1, 2, 3], "fig": []}, "the class 'fig' is empty: class_dict of .* gives it no images"),
        ({"1": [0, 1], 1: [2, 3]}, "class_dict of .* has two names that are one as text: '1', 1"),
        ([0, 1, 2, 3], "class_dict of .* must be a dictionary, got a list"),
        ({"apple": ["0", "1"]}, r"labels \(n,\), whole numbers, got <U1"),
    ],
)
def test_a_cache_gives_every_image_one_class(tmp_path, classes, text):
    write_cache(tmp_path)
    path = tmp_path / "mini-imagenet-cache-train.pkl"
    write_pickle(path, {"image_data": arrays("train"), "class_dict": classes})
    with pytest.raises(ValueError, match=text):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("filename,label\napple_100.png\n", "line 2 of .*train.csv must have a filename and a label, got "),
        ("file,class\napple_100.png,apple\n", "line 2 of .*train.csv must have a filename and a label, got {'file'"),
        (
            "filename,label\napple_100.png,apple\nnone.png,apple\n",
            "line 3 of .*train.csv: there is no .*images/none.png",
        ),
        ("filename,label\n", "the split 'train' of .* has no images; every split needs some"),
        (b"\xff\xfe\x00", "train.csv is not a text file"),
    ],
)
def test_a_table_lists_images_that_are_there(tmp_path, table, text):
    write_csv(tmp_path)
    write(tmp_path / "train.csv", table)
    with pytest.raises(ValueError, match=text):
        load_images(tmp_path)


def test_a_table_may_begin_with_a_byte_order_mark(tmp_path):
    write_csv(tmp_path)
    write(tmp_path / "train.csv", b"\xef\xbb\xbf" + (tmp_path / "train.csv").read_bytes())
    assert_complete(load_images(tmp_path), CLASSES)


def test_tiered_images_and_labels_fit_each_other(tmp_path):
    write_tiered_png(tmp_path)
    labels = np.array([0, 0, 1, 2])
    write_pickle(tmp_path / "train_labels.pkl", {"label_specific": labels, "label_specific_str": ["apple", "bear"]})
    text = "must give each label a name of its own, got 2 different names for the labels 0, 1, 2"
    with pytest.raises(ValueError, match=text):
        load_images(tmp_path)
    write_pickle(tmp_path / "train_labels.pkl", {"label_specific": labels[:3]})
    with pytest.raises(ValueError, match=r"train_images_png.pkl has 4 images for 3 labels"):
        load_images(tmp_path)
    write_pickle(tmp_path / "train_labels.pkl", {"label_specific": labels})
    assert load_images(tmp_path)["train"].classes == ("train 0", "train 1", "train 2")
    write_pickle(tmp_path / "train_images_png.pkl", [1, 2, 3, 4])
    with pytest.raises(
        ValueError, match=r"train_images_png.pkl, image 0 cannot be read .* PNG file as bytes, got a int"
    ):
        load_images(tmp_path)
    write_pickle(tmp_path / "train_images_png.pkl", {"images": 1})
    with pytest.raises(ValueError, match=r"must be a list of PNG files as bytes, got a dict"):
        load_images(tmp_path)
