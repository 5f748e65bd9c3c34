"""Omniglot: ink, rotations, splits by alphabets or by a draw, and sets that lie side by side."""

import zipfile

import pytest
import torch

from metarl_l2f.supervised.data.images import SPLITS, Omniglot, load_images

from .written import BY_ALPHABETS, character, write, write_omniglot, zipped


def test_ink_of_omniglot_is_bright_on_black_and_28_pixels_high(tmp_path):
    write_omniglot(tmp_path)
    found = load_images(tmp_path, omniglot=BY_ALPHABETS)
    assert found["train"].classes == ("Greek/character01", "Greek/character02")
    assert found["val"].classes == ("Latin/character01", "Latin/character02")
    assert found["test"].counts.tolist() == [2, 2]
    pixels = found["train"].pixels
    assert pixels.shape == (4, 1, 28, 28)
    # The bar is 7 of 105 pixels high and 45 wide, so it covers a 35th of the image; edges make no difference.
    assert pixels[0].float().mean() / 255 == pytest.approx(1 / 35, rel=0.05)
    assert pixels[0].max() > 200
    assert pixels[0, 0, 0, 0] == 0
    # Seed 2: rows 29 to 36 of 105 are rows 8 and 9 of 28.
    assert pixels[0, 0].float().mean(1).topk(2).indices.sort().values.tolist() == [8, 9]
    assert load_images(tmp_path, size=20, omniglot=BY_ALPHABETS)["val"].pixels.shape == (4, 1, 20, 20)


def test_rotations_are_classes_of_their_own_in_every_split(tmp_path):
    write_omniglot(tmp_path)
    plain = load_images(tmp_path, omniglot=BY_ALPHABETS)
    turned = load_images(tmp_path, omniglot=Omniglot(["Latin"], ["Tagalog"]))
    for split in SPLITS:
        assert len(turned[split].classes) == 4 * len(plain[split].classes)
        assert torch.equal(turned[split].pixels[:4], plain[split].pixels)
    assert turned["val"].classes[2:5] == (
        "Latin/character01 turned 90°",
        "Latin/character02 turned 90°",
        "Latin/character01 turned 180°",
    )


def test_rotations_may_be_left_to_training(tmp_path):
    write_omniglot(tmp_path)
    plain = load_images(tmp_path, omniglot=BY_ALPHABETS)
    found = load_images(tmp_path, omniglot=Omniglot(["Latin"], ["Tagalog"], rotations=("train",)))
    sizes = {split: len(found[split].classes) / len(plain[split].classes) for split in SPLITS}
    assert sizes == {"train": 4, "val": 1, "test": 1}


def test_sets_side_by_side_pool_what_they_share_and_count_copies_once(tmp_path):
    write_omniglot(tmp_path / "images_background_small1", ["Balinese", "Greek"], drawers=(1, 2))
    write_omniglot(tmp_path / "images_background_small2", ["Tagalog", "Greek"], drawers=(2, 3))
    found = load_images(tmp_path, omniglot=Omniglot(["Balinese"], ["Tagalog"], rotations=()))
    assert found["train"].classes == ("Greek/character01", "Greek/character02")
    assert found["train"].counts.tolist() == [3, 3]  # drawers 1, 2 and 3
    # The same name with another content is another image.
    path = tmp_path / "images_background_small1" / "Greek" / "character01" / "0011_02.png"
    write(path, character(9))
    found = load_images(tmp_path, omniglot=Omniglot(["Balinese"], ["Tagalog"], rotations=()))
    assert found["train"].counts.tolist() == [4, 3]


def test_archives_side_by_side_are_what_their_folders_are(tmp_path):
    write_omniglot(tmp_path / "unpacked" / "images_background", ["Greek", "Latin"])
    write_omniglot(tmp_path / "unpacked" / "images_evaluation", ["Tagalog"])
    (tmp_path / "archives").mkdir()
    for folder in sorted((tmp_path / "unpacked").iterdir()):
        zipped(folder, tmp_path / "archives" / f"{folder.name}.zip")
    write(tmp_path / "archives" / "LICENSE", "MIT")
    found = load_images(tmp_path / "unpacked", omniglot=BY_ALPHABETS)
    for other in ("archives", "."):  # and both together, which hold every image twice
        again = load_images(tmp_path / other, omniglot=BY_ALPHABETS)
        for split in SPLITS:
            assert again[split].classes == found[split].classes
            assert torch.equal(again[split].pixels, found[split].pixels)


def test_characters_are_drawn_by_the_seed_alone(tmp_path):
    write_omniglot(tmp_path)

    def drawn(seed):
        found = load_images(tmp_path, size=4, omniglot=Omniglot(characters=(3, 1, 2), seed=seed, rotations=()))
        return [found[split].classes for split in SPLITS]

    assert [len(classes) for classes in drawn(0)] == [3, 1, 2]
    assert len({name for classes in drawn(0) for name in classes}) == 6
    assert drawn(0) == drawn(0)
    assert len({str(drawn(seed)) for seed in range(5)}) > 1


def test_a_smaller_set_is_not_drawn_in_the_full_sets_numbers(tmp_path):
    write_omniglot(tmp_path)
    text = (
        r"has 6 characters of Omniglot, which cannot be drawn as \(1100, 100, 423\); name val_alphabets and .* sum to 6"
    )
    with pytest.raises(ValueError, match=text):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"val_alphabets": ["Latin"]}, r"both val and test or for neither, got val_alphabets=\('Latin',\) and test_"),
        ({"val_alphabets": ["Latin"], "test_alphabets": ["Greek", "Latin"]}, "val and test both name Latin"),
        ({"characters": (5, 0, 1)}, r"characters must be three positive numbers, .*, got \(5, 0, 1\)"),
        ({"characters": (5, 1)}, r"characters must be three positive numbers, .*, got \(5, 1\)"),
        (
            {"val_alphabets": ["latin"], "test_alphabets": ["Greek"]},
            "has no alphabet latin; it has Greek, Latin, Tagalog",
        ),
        (
            {"val_alphabets": ["Latin", "Tagalog"], "test_alphabets": ["Greek"]},
            "the split 'train' of .* has no images",
        ),
    ],
)
def test_a_split_of_omniglot_that_cannot_be_is_refused(tmp_path, options, text):
    write_omniglot(tmp_path)
    with pytest.raises(ValueError, match=text):
        load_images(tmp_path, omniglot=Omniglot(**options))


def test_an_empty_character_is_named(tmp_path):
    write_omniglot(tmp_path)
    (tmp_path / "Greek" / "character03").mkdir()
    with pytest.raises(ValueError, match=r"the class 'Greek/character03' is empty: \S*Greek/character03 has no"):
        load_images(tmp_path, omniglot=BY_ALPHABETS)


def test_strokes_beside_the_images_are_named_and_no_empty_characters(tmp_path, caplog):
    write_omniglot(tmp_path / "unpacked" / "images_background")
    for alphabet in ("Greek", "Latin", "Tagalog"):
        write(tmp_path / "unpacked" / "strokes_background" / alphabet / "character01" / "0001_01.txt", "1,2,3")
    for folder in sorted((tmp_path / "unpacked").iterdir()):
        zipped(folder, tmp_path / f"{folder.name}.zip")
    for data in (tmp_path / "unpacked", tmp_path):
        caplog.clear()
        assert load_images(data, omniglot=BY_ALPHABETS)["train"].counts.tolist() == [2, 2]
        assert "(3 .txt): " in caplog.text or "(6 .txt): " in caplog.text


def test_what_macos_adds_to_archives_is_no_part_of_them(tmp_path):
    write_omniglot(tmp_path / "set")
    archive = zipped(tmp_path / "set", tmp_path / "set.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.mkdir("__MACOSX/set/Greek/character01")
        file.writestr("__MACOSX/set/Greek/character01/._0001_01.png", "no image")
    assert load_images(archive, omniglot=BY_ALPHABETS)["train"].counts.tolist() == [2, 2]


def test_characters_sorted_into_splits_are_an_image_folder(tmp_path):
    for i, split in enumerate(SPLITS):
        write(tmp_path / "set" / split / f"character0{i}" / "a.png", character(1))
    assert load_images(tmp_path)["val"].pixels.shape == (1, 1, 105, 105)
