"""Pictures of every format, depth and transparency as they are decoded, resized and stacked."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarl_l2f.supervised.data import files, pictures
from metarl_l2f.supervised.data.images import SPLITS, load_images

from .written import (
    BY_ALPHABETS,
    encoded,
    picture,
    samples,
    write,
    write_folder,
    write_pickle,
    write_tiered_labels,
    zipped,
)


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
