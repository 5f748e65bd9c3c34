"""Image data sets on disk: every layout, written here in its own format, and every way in which one can be wrong."""

import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarl_l2f.supervised.data import files, pictures
from metarl_l2f.supervised.data.images import SPLITS, Omniglot, load_images

CLASSES = {"train": ("apple", "bear"), "val": ("cup",), "test": ("dog",)}
NUMBERS = {"train": (3, 8), "val": (12,), "test": (70,)}
PER_CLASS = 2


def picture(seed: int, size: int = 4) -> np.ndarray:
    """(size, size, 3) bytes, different for every seed."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_pickle(path: Path, content: Any, protocol: int = 2) -> None:
    write(path, pickle.dumps(content, protocol))


def zipped(root: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root.parent))
    return to


def samples(split, names=CLASSES):
    """Seeds of a split's pictures, each with its class: apple 100, apple 101, bear 110, bear 111."""
    start = 100 * (1 + SPLITS.index(split))
    return [(start + 10 * c + i, name) for c, name in enumerate(names[split]) for i in range(PER_CLASS)]


def arrays(split):
    return np.stack([picture(seed) for seed, _ in samples(split)])


def write_folder(root):
    for split in SPLITS:
        for seed, name in samples(split):
            write(root / split / name / f"{seed}.png", encoded(picture(seed)))


def write_csv(root):
    for split in SPLITS:
        rows = [(f"{name}_{seed}.png", name) for seed, name in samples(split)]
        write(root / f"{split}.csv", "\r\n".join(["filename,label", *map(",".join, rows), ""]))
        for (seed, _), (file, _) in zip(samples(split), rows, strict=True):
            write(root / "images" / file, encoded(picture(seed)))


def write_cache(root):
    for split in SPLITS:
        names = [name for _, name in samples(split)]
        indices = {name: [i for i, other in enumerate(names) if other == name] for name in names}
        write_pickle(root / f"mini-imagenet-cache-{split}.pkl", {"image_data": arrays(split), "class_dict": indices})


def labelled(split):
    return {"data": arrays(split), "labels": [number for _, number in samples(split, NUMBERS)]}


def write_category_split(root):
    for split, name in zip(SPLITS, ("train_phase_train", "val", "test"), strict=True):
        write_pickle(root / f"miniImageNet_category_split_{name}.pickle", labelled(split))


def write_cifar_fs_pickles(root):
    for split in SPLITS:
        write_pickle(root / f"CIFAR_FS_{split}.pickle", labelled(split))


def write_fc100_pickles(root):
    for split in SPLITS:
        write_pickle(root / f"FC100_{split}.pickle", labelled(split), protocol=4)


def write_fc100_npz(root):
    for split in SPLITS:
        np.savez(root / f"FC100_{split}.npz", features=arrays(split), targets=np.array(labelled(split)["labels"]))


def write_fc100_npz_of_images(root):
    for split in SPLITS:
        np.savez(root / f"FC100_{split}.npz", images=arrays(split), labels=np.array(labelled(split)["labels"]))


def write_tiered_labels(root):
    for split in SPLITS:
        numbers = [CLASSES[split].index(name) for _, name in samples(split)]  # from 0 in every split
        write_pickle(
            root / f"{split}_labels.pkl",
            {"label_specific": np.array(numbers, np.int32), "label_specific_str": list(CLASSES[split])},
        )


def write_tiered_png(root):
    write_tiered_labels(root)
    for split in SPLITS:
        files = [np.frombuffer(encoded(picture(seed)), np.uint8)[:, None] for seed, _ in samples(split)]
        write_pickle(root / f"{split}_images_png.pkl", files)


def write_tiered_png_as_text(root):
    """As Python 2 pickled byte strings."""
    write_tiered_labels(root)
    for split in SPLITS:
        content = b"]("
        for seed, _ in samples(split):
            file = encoded(picture(seed))
            content += b"T" + len(file).to_bytes(4, "little") + file  # BINSTRING
        write(root / f"{split}_images_png.pkl", b"\x80\x02" + content + b"e.")


def write_tiered_npz(root):
    write_tiered_labels(root)
    for split in SPLITS:
        np.savez(root / f"{split}_images.npz", images=arrays(split)[..., ::-1])  # blue first


def write_cifar_fs(root, inside=""):
    for split in SPLITS:
        write(root / "splits" / "bertinetto" / f"{split}.txt", "\n".join([*CLASSES[split], ""]))
        for seed, name in samples(split):
            write(root / inside / name / f"{seed}.png", encoded(picture(seed)))


def write_cifar_fs_data(root):
    write_cifar_fs(root, "data")


WRITERS = {
    write_folder: CLASSES,
    write_csv: CLASSES,
    write_cache: CLASSES,
    write_category_split: NUMBERS,
    write_tiered_png: CLASSES,
    write_tiered_png_as_text: CLASSES,
    write_tiered_npz: CLASSES,
    write_cifar_fs: CLASSES,
    write_cifar_fs_data: CLASSES,
    write_cifar_fs_pickles: NUMBERS,
    write_fc100_pickles: NUMBERS,
    write_fc100_npz: NUMBERS,
    write_fc100_npz_of_images: NUMBERS,
}
"""Every layout but Omniglot's, with the classes it names."""


def assert_complete(found, classes):
    assert list(found) == ["train", "val", "test"]
    for split in SPLITS:
        assert found[split].classes == tuple(map(str, classes[split]))
        assert found[split].labels.tolist() == [c for c in range(len(classes[split])) for _ in range(PER_CLASS)]
        assert torch.equal(found[split].pixels, torch.tensor(arrays(split)).permute(0, 3, 1, 2))


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


def test_images_are_resized_when_asked_and_only_then(tmp_path):
    write_folder(tmp_path)
    write(tmp_path / "train" / "apple" / "wide.png", encoded(np.full((2, 6, 3), 90, np.uint8)))
    with pytest.raises(
        ValueError, match=r"one size and mode, but .*100.png is 4×4 RGB and .*wide.png is 2×6 RGB; pass"
    ):
        load_images(tmp_path)
    found = load_images(tmp_path, size=3)["train"]
    assert found.pixels.shape == (5, 3, 3, 3)
    assert (found.pixels[2] == 90).all()  # an even picture stays even


def test_shrinking_averages_instead_of_skipping_pixels(tmp_path):
    stripes = np.zeros((16, 16), np.uint8)
    stripes[:, ::2] = 200
    for split in SPLITS:
        write(tmp_path / split / split / "a.png", encoded(stripes))
    inner = load_images(tmp_path, size=4)["train"].pixels[0, 0, :, 1:3].float()
    assert ((inner - 100).abs() < 10).all()


def test_grey_and_rgb_are_mixed_only_when_asked(tmp_path):
    write_folder(tmp_path)
    write(tmp_path / "train" / "apple" / "grey.png", encoded(np.full((4, 4), 7, np.uint8)))
    with pytest.raises(ValueError, match=r"is 4×4 RGB and .*grey.png is 4×4 grey; pass .*channels=1 or 3"):
        load_images(tmp_path)
    assert (load_images(tmp_path, channels=3)["train"].pixels[2] == 7).all()
    assert load_images(tmp_path, channels=1)["train"].pixels.shape == (5, 1, 4, 4)


def test_grey_images_keep_one_channel_and_bits_become_black_and_white(tmp_path):
    for split in SPLITS:
        write(tmp_path / split / split / "grey.png", encoded(np.full((4, 4), 7, np.uint8)))
        write(tmp_path / split / split / "bits.png", encoded(np.eye(4, dtype=bool)))
    found = load_images(tmp_path)["train"].pixels
    assert torch.equal(found[0, 0], 255 * torch.eye(4, dtype=torch.uint8))
    assert (found[1] == 7).all()


# Transparent pictures: one pixel of clear black, which shows the paper, 255; one of solid ink, 10.
CLEAR_AND_INK = np.array([[[0, 0, 0, 0], [10, 10, 10, 255]]], np.uint8)
CLEAR, INK = 255, 10


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(bits: int, colour_type: int, row: bytes, *chunks: bytes) -> bytes:
    """Two pixels beside each other, in the PNG's own terms."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour_type, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + end


def transparent(*numbers: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(numbers)}H", *numbers))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def rgba() -> Image.Image:
    return Image.fromarray(CLEAR_AND_INK)


def animated(format: str) -> bytes:
    return saved(rgba(), format, save_all=True, append_images=[Image.new("RGBA", (2, 1), "red")])


TRANSPARENT = {
    "RGBA": saved(rgba(), "PNG"),
    "LA": saved(rgba().convert("LA"), "PNG"),
    "16 bits, RGBA": png(16, 6, struct.pack(">8H", 0, 0, 0, 0, 2570, 2570, 2570, 65535)),
    "16 bits, LA": png(16, 4, struct.pack(">4H", 0, 0, 2570, 65535)),
    "a clear grey": png(8, 0, bytes([0, 10]), transparent(0)),
    "a clear colour": png(8, 2, bytes([0, 0, 0, 10, 10, 10]), transparent(0, 0, 0)),
    "16 bits, a clear colour": png(16, 2, struct.pack(">6H", 700, 700, 700, *[2570] * 3), transparent(700, 700, 700)),
    "a palette": png(8, 3, bytes([0, 1]), chunk(b"PLTE", bytes([0, 0, 0, 10, 10, 10])), chunk(b"tRNS", b"\0\xff")),
    "a palette, one clear": png(
        8, 3, bytes([0, 1]), chunk(b"PLTE", bytes([0, 0, 0, 10, 10, 10])), chunk(b"tRNS", b"\0")
    ),
    "GIF": saved(rgba(), "GIF"),
    "GIF, animated": animated("GIF"),
    "PNG, animated": animated("PNG"),
    "WebP": saved(rgba(), "WEBP", lossless=True),
    "TIFF": saved(rgba(), "TIFF"),
    "JPEG 2000": saved(rgba(), "JPEG2000", irreversible=False),
}
"""Pictures of CLEAR_AND_INK, each transparent in its own way."""


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_pictures_are_laid_on_white(tmp_path, kind, channels):
    for split in SPLITS:
        write(tmp_path / split / split / "a.png", TRANSPARENT[kind])
    for data in (tmp_path, zipped(tmp_path, tmp_path.with_suffix(".zip"))):
        pixels = load_images(data, channels=channels)["train"].pixels
        assert pixels.tolist() == [[[[CLEAR, INK]]] * channels]


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_pictures_inside_pickles_and_omniglot_are_laid_on_white(tmp_path, kind):
    write_tiered_labels(tmp_path / "tiered")
    for split in SPLITS:
        write_pickle(tmp_path / "tiered" / f"{split}_images_png.pkl", [TRANSPARENT[kind]] * len(samples(split)))
    assert (load_images(tmp_path / "tiered", channels=1)["val"].pixels == torch.tensor([CLEAR, INK])).all()
    for alphabet in ("Greek", "Latin", "Tagalog"):
        write(tmp_path / "omniglot" / alphabet / "character01" / "a.png", TRANSPARENT[kind])
    # 2 pixels become 2 × 2: white paper turns black, 255 − 255, and ink bright, 255 − 10.
    pixels = load_images(tmp_path / "omniglot", size=2, omniglot=BY_ALPHABETS)["train"].pixels
    assert pixels[0, 0].tolist() == [[255 - CLEAR, 255 - INK]] * 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(2, 0, bytes([0b01_10_0000]), transparent(1)), [255, 170]),  # levels 0, 85, 170, 255, and 85 is clear
        (png(4, 0, bytes([0x7B]), transparent(7)), [255, 187]),  # levels are 17 apart, and 7 is clear
        (png(1, 0, bytes([0b01_000000]), transparent(0)), [255, 255]),  # black is clear, the other is white
    ],
)
def test_a_clear_grey_is_found_at_every_depth(tmp_path, content, expected):
    for split in SPLITS:
        write(tmp_path / split / split / "a.png", content)
    assert load_images(tmp_path)["train"].pixels.tolist() == [[[expected]]]


def test_half_transparent_ink_is_half_as_dark(tmp_path):
    for split in SPLITS:
        write(tmp_path / split / split / "a.png", encoded(np.array([[[0, 0, 0, 128], [200, 100, 0, 51]]], np.uint8)))
    # 255 · (1 − 128/255) = 127;  c · 51/255 + 255 · (1 − 51/255) = c/5 + 204
    assert load_images(tmp_path, channels=3)["train"].pixels[0, :, 0].T.tolist() == [[127] * 3, [244, 224, 204]]


def test_transparency_palettes_and_inks_are_converted_only_when_asked(tmp_path):
    write_folder(tmp_path)
    odd = tmp_path / "train" / "apple" / "odd.png"
    solid = np.concatenate([picture(0), np.full((4, 4, 1), 255, np.uint8)], 2)
    inks = saved(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "TIFF")
    palette = saved(Image.new("P", (4, 4), 1).convert("P"), "GIF")
    for content, mode in ((encoded(solid), "RGBA"), (inks, "CMYK"), (palette, "P")):
        write(odd, content)
        with pytest.raises(
            ValueError, match=rf"odd.png has the mode '{mode}', and images are grey or RGB.*pass channel"
        ):
            load_images(tmp_path)
        assert load_images(tmp_path, channels=3)["train"].pixels.shape == (5, 3, 4, 4)
    write(odd, encoded(solid))
    assert torch.equal(load_images(tmp_path, channels=3)["train"].pixels[2], torch.tensor(picture(0)).permute(2, 0, 1))
    write(odd, inks)
    assert (load_images(tmp_path, channels=3)["train"].pixels[2] == 0).all()  # black ink alone


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (encoded(np.full((4, 4), 999, np.uint16)), "has the mode 'I;16', .*convert other depths yourself"),
        (b"P5 2 1 65535\n\0\0\xff\xff", "has the mode 'I', .*convert other depths yourself"),
        (saved(Image.new("F", (2, 1)), "TIFF"), "has the mode 'F', .*convert other depths yourself"),
    ],
)
def test_depths_that_would_lose_digits_are_named(tmp_path, content, text):
    write_folder(tmp_path)
    write(tmp_path / "train" / "apple" / "deep.png", content)
    with pytest.raises(ValueError, match=rf"train/apple/deep.png {text}"):
        load_images(tmp_path, channels=3)


STAIRS = np.kron([[10, 90, 250]], np.ones((8, 8))).astype(np.uint8)  # 8 × 24


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_pictures_stand_as_their_orientation_tag_says(tmp_path, format):
    tag = Image.Exif()
    tag[0x0112] = 6  # the row that is stored first is the right side: turn it clockwise by 90°
    turned = saved(Image.fromarray(STAIRS).convert("RGB"), format, exif=tag)
    for split in SPLITS:
        write(tmp_path / split / split / "turned.png", turned)
    pixels = load_images(tmp_path, channels=1)["train"].pixels[0, 0]
    assert pixels.shape == (24, 8)
    assert (pixels[4::8, 4].int() - torch.tensor([10, 90, 250])).abs().max() <= 8  # lossy formats


def test_a_damaged_tag_is_no_damaged_picture(tmp_path):
    for split in SPLITS:
        write(tmp_path / split / split / "a.png", saved(Image.fromarray(STAIRS), "PNG", exif=b"Exif\0\0no tags at all"))
    assert torch.equal(load_images(tmp_path)["train"].pixels[0, 0], torch.tensor(STAIRS))


ENDINGS = {
    "PNG": ("png", "PNG", "apng"),
    "JPEG": ("jpg", "JPG", "jpeg", "JPEG", "jpe", "jfif"),
    "BMP": ("bmp", "BMP"),
    "GIF": ("gif",),
    "WEBP": ("webp",),
    "TIFF": ("tif", "TIFF"),
    "PPM": ("pgm", "ppm", "pnm"),
    "JPEG2000": ("jp2", "j2k"),
    "AVIF": ("avif",),
}


@pytest.mark.parametrize(("format", "ending"), [(format, end) for format, ends in ENDINGS.items() for end in ends])
def test_formats_that_are_read_by_whichever_ending(tmp_path, format, ending):
    for split, grey in zip(SPLITS, (40, 100, 200), strict=True):
        write(tmp_path / split / split / f"a.{ending}", saved(Image.new("RGB", (4, 4), (grey,) * 3), format))
    found = load_images(tmp_path, channels=3)
    assert [round(found[split].pixels.float().mean().item() / 20) * 20 for split in SPLITS] == [40, 100, 200]


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
        ({"size": 0}, "size must be a positive number of pixels or None, got 0"),
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


def test_a_file_that_is_no_zip_archive_is_named_with_what_to_do(tmp_path):
    write(tmp_path / "mini.tar", "")
    with pytest.raises(
        ValueError, match=r"mini.tar is not a whole zip archive .*or a folder \(unpack archives of other"
    ):
        load_images(tmp_path / "mini.tar")


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


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no data set at .*absent: no such file or folder"):
        load_images(tmp_path / "absent")


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


@pytest.mark.parametrize("archived", [False, True])
def test_an_empty_class_is_named(tmp_path, archived):
    root = tmp_path / "set"
    write_folder(root)
    (root / "train" / "fig").mkdir()
    with pytest.raises(ValueError, match=r"the class 'fig' is empty: \S*train/fig has no pictures directly"):
        load_images(zipped(root, tmp_path / "set.zip") if archived else root)


def test_a_class_that_a_list_names_has_images(tmp_path):
    write_cifar_fs_data(tmp_path)
    write(tmp_path / "splits" / "bertinetto" / "val.txt", "cup\nfig\n")
    with pytest.raises(ValueError, match=r"the class 'fig' is empty: \S*data/fig has no"):
        load_images(tmp_path)


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


def test_classes_are_in_the_order_of_their_names_and_images_in_that_of_their_list(tmp_path):
    write_cifar_fs_pickles(tmp_path)
    write_pickle(tmp_path / "CIFAR_FS_train.pickle", {"data": arrays("train"), "labels": [8, 3, 8, 3]})
    found = load_images(tmp_path)["train"]
    assert (found.classes, found.labels.tolist()) == (("3", "8"), [0, 0, 1, 1])
    assert torch.equal(found.pixels, torch.tensor(arrays("train")[[1, 3, 0, 2]]).permute(0, 3, 1, 2))


@pytest.mark.parametrize(("split", "name"), [("train", "apple"), ("train", "fig"), ("val", "fig")])
def test_an_image_stands_in_one_split_and_once(tmp_path, split, name):
    write_csv(tmp_path)
    with open(tmp_path / f"{split}.csv", "a") as table:
        table.write(f"apple_100.png,{name}\r\n")
    text = rf"images/apple_100.png stands in apple \(train\) and again in {name} \({split}\)"
    with pytest.raises(ValueError, match=text):
        load_images(tmp_path)


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize(
    "content", [b"", b"no image", encoded(picture(0, 40))[:-900], encoded(picture(0), format="EPS")]
)
def test_an_unreadable_image_is_named(tmp_path, content, archived):
    root = tmp_path / "set"
    write_folder(root)
    write(root / "train" / "bear" / "bad.png", content)
    with pytest.raises(ValueError, match=r"train/bear/bad.png cannot be read as an image: .*; replace it"):
        load_images(zipped(root, tmp_path / "set.zip") if archived else root)


def test_an_image_too_large_for_any_data_set_is_refused(tmp_path, monkeypatch):
    write_folder(tmp_path)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 15)
    with pytest.raises(ValueError, match=r"100.png cannot be read as an image: it has 4×4 pixels, more than any image"):
        load_images(tmp_path)
    monkeypatch.setattr(files, "MAX_IMAGE_BYTES", 10)
    with pytest.raises(ValueError, match=r"100.png is larger than 10 bytes, more than any image of a data set"):
        load_images(tmp_path)


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


# Omniglot


def character(seed: int, size: int = 105) -> bytes:
    """Black ink on white, one bit a pixel: a bar whose place depends on the seed."""
    paper = np.ones((size, size), bool)
    paper[15 + 7 * (seed % 10) : 22 + 7 * (seed % 10), 15:60] = False
    return encoded(paper)


def write_omniglot(root, alphabets=("Greek", "Latin", "Tagalog"), drawers=(1, 2)):
    for a, alphabet in enumerate(alphabets):
        for c in (1, 2):
            for drawer in drawers:
                name = f"{10 * a + c:04}_{drawer:02}.png"
                write(root / alphabet / f"character{c:02}" / name, character(2 * a + c + drawer))


BY_ALPHABETS = Omniglot(val_alphabets=["Latin"], test_alphabets=["Tagalog"], rotations=())


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
