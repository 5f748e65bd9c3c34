"""Folders and zip archives: which files belong to a data set, and what is said of those that do not."""

import os
import re
import zipfile

import pytest
from PIL import Image

from metarl_l2f.supervised.data import files
from metarl_l2f.supervised.data.images import load_images

from .written import (
    CLASSES,
    NUMBERS,
    assert_complete,
    encoded,
    picture,
    write,
    write_cifar_fs_data,
    write_csv,
    write_fc100_npz,
    write_fc100_pickles,
    write_folder,
    write_omniglot,
    zipped,
)


def test_a_layout_is_found_below_the_folder_given_through_links(tmp_path):
    write_folder(tmp_path / "elsewhere" / "set")
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "elsewhere" / "set", tmp_path / "data" / "linked")
    assert_complete(load_images(tmp_path / "data"), CLASSES)


def test_jpegs_and_capital_letters_are_images_and_hidden_folders_are_not(tmp_path):
    write_folder(tmp_path)
    Image.fromarray(picture(0)).save(tmp_path / "train" / "apple" / "a.JPEG", "JPEG")
    write(tmp_path / ".cache" / "train" / "fig" / "1.png", "no image")
    assert load_images(tmp_path)["train"].counts.tolist() == [3, 2]


@pytest.mark.parametrize("archived", [False, True])
def test_what_is_not_read_is_named_once_with_numbers(tmp_path, caplog, archived):
    root = tmp_path / "set"
    write_folder(root)
    more = ["apple/more/1.png", "apple/more/2.png", "apple/drawing.svg", "apple/photo.HEIC", "list.txt"]
    for name in more:
        write(root / "train" / name, "no image")
    write(root / "extra" / "fig" / "1.png", encoded(picture(0)))
    write(root / "deep" / "1" / "2" / "3" / "4" / "5" / "1.png", "no image")
    found = load_images(zipped(root, tmp_path / "set.zip") if archived else root)
    assert_complete(found, CLASSES)
    (warning,) = caplog.messages
    assert " holds 7 files or folders that are no part of an image folder ({train,val,test}/<class>/*.png" in warning
    # An archive lists what it holds at any depth; on disk, nobody looks into folders that deep.
    kinds, deep = ("4 .png", "deep/1/2/3/4/5/1.png") if archived else ("3 .png, 1 folder", "deep/1/2/3/4/5/")
    counts = sorted(re.search(r"not read \((.*)\): ", warning)[1].split(", "))
    assert counts == sorted([*kinds.split(", "), "1 .svg", "1 .HEIC", "1 .txt"])
    top = "set/" if archived else ""
    names = [deep, "extra/fig/1.png", "train/apple/drawing.svg", "train/apple/more/1.png", "train/apple/more/2.png"]
    assert warning.endswith(f"): {', '.join(top + name for name in names)} and 2 more")


@pytest.mark.parametrize("archived", [False, True])
def test_what_systems_and_authors_put_beside_a_data_set_is_not_worth_a_word(tmp_path, caplog, archived):
    root = tmp_path / "set"
    write_folder(root)
    write_omniglot(root / "__MACOSX", ["Greek"])
    for name in ("._100.png", "Thumbs.db", ".DS_Store", "desktop.ini", "@eaDir/100.png/THUMB_M.jpg"):
        write(root / "train" / "apple" / name, "no image")
    write(root / "val" / "@eaDir" / "1.png", "no image")
    for name in ("README.md", "LICENSE", "LICENCE.txt", ".git/HEAD", "Citation.bib"):
        write(root / name, "about it")
    assert_complete(load_images(zipped(root, tmp_path / "set.zip") if archived else root), CLASSES)
    assert caplog.messages == []


def test_images_that_no_list_names_are_named(tmp_path, caplog):
    write_cifar_fs_data(tmp_path / "fs")
    write(tmp_path / "fs" / "data" / "fig" / "1.png", encoded(picture(0)))
    write_csv(tmp_path / "mini")
    write(tmp_path / "mini" / "images" / "fig_1.png", encoded(picture(0)))
    for name, unread in (("fs", "data/fig/1.png"), ("mini", "images/fig_1.png")):
        caplog.clear()
        assert_complete(load_images(tmp_path / name), CLASSES)
        (warning,) = caplog.messages
        assert f"{name} holds 1 files or folders that are no part of " in warning and warning.endswith(
            f"are not read (1 .png): {unread}"
        )


def test_of_two_files_of_one_split_the_one_that_is_not_read_is_named(tmp_path, caplog):
    write_fc100_pickles(tmp_path)
    write_fc100_npz(tmp_path)
    assert_complete(load_images(tmp_path), NUMBERS)
    assert "(3 .npz): FC100_test.npz, FC100_train.npz, FC100_val.npz" in caplog.text


def test_a_file_that_is_no_zip_archive_is_named_with_what_to_do(tmp_path):
    write(tmp_path / "mini.tar", "")
    with pytest.raises(
        ValueError, match=r"mini.tar is not a whole zip archive .*or a folder \(unpack archives of other"
    ):
        load_images(tmp_path / "mini.tar")


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no data set at .*absent: no such file or folder"):
        load_images(tmp_path / "absent")


@pytest.mark.parametrize("archived", [False, True])
def test_an_empty_class_is_named(tmp_path, archived):
    root = tmp_path / "set"
    write_folder(root)
    (root / "train" / "fig").mkdir()
    with pytest.raises(ValueError, match=r"the class 'fig' is empty: \S*train/fig has no pictures directly"):
        load_images(zipped(root, tmp_path / "set.zip") if archived else root)


@pytest.mark.parametrize("inside", [False, True])
def test_a_broken_archive_is_named(tmp_path, inside):
    write_folder(tmp_path / "set")
    archive = zipped(tmp_path / "set", tmp_path / "set.zip")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"set.zip is not a whole zip archive \(File is not a zip file\); get another"):
        load_images(tmp_path if inside else archive)


def test_a_damaged_file_in_an_archive_is_named(tmp_path):
    write_folder(tmp_path / "set")
    archive = zipped(tmp_path / "set", tmp_path / "set.zip")
    start = archive.read_bytes().index(encoded(picture(100)))
    with open(archive, "r+b") as file:
        file.seek(start + 40)
        file.write(b"\0\0\0\0")
    with pytest.raises(
        ValueError, match=r"set.zip/set/train/apple/100.png cannot be read: Bad CRC-32 .*another copy"
    ) as caught:
        load_images(archive)
    assert str(caught.value).count("cannot be read") == 1


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_IMAGE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("FC100_train.pickle", bytes(10**6))
    with pytest.raises(ValueError, match=r"bomb.zip was refused: FC100_train.pickle would expand from \d+ to 1000000"):
        load_images(tmp_path)


def test_an_archive_that_holds_a_file_twice_is_refused(tmp_path):
    write_folder(tmp_path / "set")
    archive = zipped(tmp_path / "set", tmp_path / "set.zip")
    with zipfile.ZipFile(archive, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("set/train/apple/100.png", encoded(picture(0)))
    with pytest.raises(ValueError, match=r"set.zip holds set/train/apple/100.png twice; unpack it, and keep the one"):
        load_images(archive)


def test_archives_with_backslashes_are_read(tmp_path):
    write_folder(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in (tmp_path / "set").rglob("*.png"):
            archive.writestr(str(path.relative_to(tmp_path)).replace("/", "\\"), path.read_bytes())
    assert_complete(load_images(tmp_path / "set.zip"), CLASSES)
