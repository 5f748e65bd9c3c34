"""Glyphs: every class is a letter of its split's scripts, drawn whole, and no two classes look alike."""

import string

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.path import Path

from metarl_l2f.supervised.data import glyphs
from metarl_l2f.supervised.data.glyphs import (
    BOX,
    INSTANCES,
    LOOK_ALIKE,
    SIZE,
    SPLITS,
    coverage,
    draw_instances,
    load_glyphs,
    look_alikes,
    open_typefaces,
    outline,
    script_of,
    stray_ink,
)


def loop(*corners):
    """The edges of a polygon, from corner to corner and back."""
    points = np.array(corners, dtype=float)
    return np.stack([points, np.roll(points, -1, axis=0)], axis=1)


def rectangle(left, top, right, bottom):
    return loop((left, top), (right, top), (right, bottom), (left, bottom))


SQUARE = rectangle(-0.5, -0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def loaded():
    """The splits, and what was measured on the way: outlines of the classes, and stray ink close to the threshold."""
    found = {"close": []}
    choose, measure = glyphs.choose_classes, glyphs.stray_ink

    def choose_and_keep(typefaces):
        found["classes"] = choose(typefaces)
        return found["classes"]

    def measure_and_keep(outlines):
        stray = measure(outlines)
        found["close"].append(stray[(stray - LOOK_ALIKE).abs() < 0.1])
        return stray

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "choose_classes", choose_and_keep)
        patch.setattr(glyphs, "stray_ink", measure_and_keep)
        found["splits"] = load_glyphs()
    return found


@pytest.fixture(scope="module")
def splits(loaded):
    return loaded["splits"]


@pytest.fixture
def small(monkeypatch):
    """A data set of three scripts in two typefaces, soon drawn."""
    monkeypatch.setattr(glyphs, "UNICODE_TYPEFACES", ("DejaVuSansMono", "DejaVuSansMono-Bold"))
    monkeypatch.setattr(glyphs, "TEX_TYPEFACES", ())
    monkeypatch.setattr(glyphs, "SPLITS", {"train": ("GREEK",), "val": ("ARMENIAN",), "test": ("LAO",)})
    monkeypatch.setattr(glyphs, "SCRIPTS", ["GREEK", "ARMENIAN", "LAO"])


# --- The data set ---


@pytest.mark.parametrize(("split", "classes"), [("train", 509), ("val", 76), ("test", 151)])
def test_a_split_holds_24_images_of_each_class(splits, split, classes):
    images = splits[split]
    assert len(images.classes) == classes
    assert images.counts.tolist() == [24] * classes
    assert images.pixels.shape == (24 * classes, 1, 28, 28)
    assert images.pixels.dtype == torch.uint8


def test_no_script_is_in_two_splits():
    scripts = [script for scripts in SPLITS.values() for script in scripts]
    assert len(scripts) == len(set(scripts))


@pytest.mark.parametrize("split", SPLITS)
def test_every_script_of_a_split_gives_classes_and_no_other_does(splits, split):
    scripts = {next((s for s in SPLITS[split] if name.startswith(s)), name) for name in splits[split].classes}
    assert scripts == set(SPLITS[split])


def test_no_class_is_in_two_splits(splits):
    names = [name for images in splits.values() for name in images.classes]
    assert len(names) == len(set(names))


def test_every_image_holds_a_letter_bright_on_black(splits):
    for images in splits.values():
        ink = images.pixels.float().flatten(1) / 255
        assert (ink.amax(dim=1) > 0.5).all()
        # The least ink is that of three small dots, the most less than the box.
        assert (ink.sum(dim=1) > 10).all()
        assert (ink.sum(dim=1) < BOX**2).all()


def test_a_seed_gives_the_same_images_and_another_others(small):
    first, again, other = load_glyphs(3), load_glyphs(3), load_glyphs(4)
    for split in first:
        assert torch.equal(first[split].pixels, again[split].pixels)
        assert first[split].classes == again[split].classes == other[split].classes
        assert not torch.equal(first[split].pixels, other[split].pixels)


def test_every_class_is_distorted_in_its_own_way(small, monkeypatch):
    grey = np.ones((INSTANCES, SIZE, SIZE), np.uint8)
    monkeypatch.setattr(glyphs, "draw_instances", lambda outlines, rng: rng.integers(256, dtype=np.uint8) * grey)
    # One number per class, of 256.
    assert len(load_glyphs()["train"].pixels.unique()) > 10


def test_no_image_is_there_twice(splits):
    for images in splits.values():
        assert len(images.pixels.unique(dim=0)) == len(images.pixels)


# --- Which characters are letters ---


@pytest.mark.parametrize(
    ("character", "script"),
    [("Ж", "CYRILLIC"), ("α", "GREEK"), ("ש", "HEBREW"), ("ტ", "GEORGIAN"), ("ᐃ", "CANADIAN SYLLABICS")],
)
def test_a_letter_is_of_the_script_it_is_named_after(character, script):
    assert script_of(character) == script


@pytest.mark.parametrize(
    "character",
    [
        *("\u0378", "\ue000", "\u0301", "\u00a0", " ", "7", "٧", "+"),
        *("é", "ﬁ", "œ", "ﹳ", "ʰ"),  # accented, two ligatures, a fragment, a modifier
        "字",  # a letter, but of no script of ours
    ],
)
def test_what_is_not_one_plain_letter_of_our_scripts_is_of_none(character):
    assert script_of(character) == ""


def test_a_typeface_has_no_letter_that_it_lacks_a_glyph_for():
    typefaces = open_typefaces()
    assert all(font.get_char_index(ord(letter)) for font, letters in typefaces for letter in letters)
    # DejaVu Sans has N'Ko, STIX has not.
    assert [
        "ߞ" in letters for font, letters in typefaces if font.fname.endswith(("DejaVuSans.ttf", "General.ttf"))
    ] == [
        True,
        False,
    ]


def test_computer_modern_gives_only_letters_that_stand_where_unicode_has_them():
    fonts = [(font, letters) for font, letters in open_typefaces() if "cm" in font.fname.rpartition("ttf/")[2]]
    assert [letters == set(string.ascii_letters) for _, letters in fonts] == [True] * 5
    assert all(font.get_glyph_name(font.get_char_index(ord(c))) == c for font, letters in fonts for c in letters)


def test_every_class_is_drawn_in_two_typefaces_or_more(loaded):
    assert min(map(len, loaded["classes"].values())) == 2


# --- Look-alikes ---


@pytest.mark.parametrize(
    ("kept", "look_alike"), [("A", "Α"), ("A", "А"), ("H", "Η"), ("B", "в"), ("S", "s"), ("ᴎ", "И"), ("E", "ⴹ")]
)
def test_of_look_alikes_the_first_is_a_class(loaded, kept, look_alike):
    classes = list(loaded["classes"])
    assert kept in classes
    assert look_alike not in classes


@pytest.mark.parametrize("number", [0, 4, 8, 12], ids=["sans", "mono", "serif", "stix"])
def test_no_two_classes_look_alike_in_one_typeface(loaded, number):
    font, letters = open_typefaces()[number]
    assert look_alikes({letter: outline(font, letter) for letter in loaded["classes"] if letter in letters}) == []


def test_no_pair_is_so_close_to_the_threshold_that_rounding_could_decide(loaded):
    # Sums of 1444 products in single precision err by about 1e-5.
    assert (torch.cat(loaded["close"]) - LOOK_ALIKE).abs().min() > 1e-3


def test_stray_ink_is_what_lies_further_than_half_a_pixel_from_the_others():
    # Two bars, each 11 of the 34 cells of the fine grid wide: the square's ink between them is 12 cells wide. All but a
    # cell on either side of it is stray, 10 · 34 cells of ¼ px²; the bars' own ink lies on the square's.
    edge = 0.5 - 11 / 34
    bars = np.concatenate([rectangle(-0.5, -0.5, -edge, 0.5), rectangle(edge, -0.5, 0.5, 0.5)])
    np.testing.assert_allclose(stray_ink([SQUARE, bars]), [[0, 85], [85, 0]], rtol=1e-6)


def test_a_slender_letter_looks_like_a_broad_one_of_the_same_shape():
    triangle = loop((-0.5, 0.5), (0.5, 0.5), (0.0, -0.5))
    assert look_alikes({"broad": triangle, "square": SQUARE, "slender": triangle * [0.5, 1]}) == ["slender"]


def test_what_looks_like_a_look_alike_only_stays():
    # Bars before a square, each reaching further than the last: neighbours look alike, the first and the third do not.
    def steps(reach):
        return np.concatenate([rectangle(-0.5, -0.5, reach, 0.5), rectangle(reach, 0.3, 0.5, 0.5)])

    first, second, third = steps(0.0), steps(0.06), steps(0.12)
    stray = stray_ink([first, second, third])
    assert stray[0, 1] < LOOK_ALIKE > stray[1, 2]
    assert stray[0, 2] > LOOK_ALIKE
    assert look_alikes({"first": first, "second": second, "third": third}) == ["second"]


# --- Drawing ---


def test_coverage_is_the_share_of_a_pixel_inside():
    # 1.25 px wide and 1.5 px high from (0.5, 1): half of column 0, three quarters of column 1; row 1, half of row 2.
    (drawn,) = coverage([rectangle(0.5, 1.0, 1.75, 2.5)], 3, scanlines=4)
    np.testing.assert_allclose(drawn, [[0, 0, 0], [0.5, 0.75, 0], [0.25, 0.375, 0]])


def test_an_outline_the_other_way_round_is_a_hole_and_one_on_top_changes_nothing():
    outer, inner = rectangle(0, 0, 3, 3), rectangle(1, 1, 2, 2)
    hole, twice = coverage([np.concatenate([outer, inner[:, ::-1]]), np.concatenate([outer, inner])], 3, scanlines=2)
    np.testing.assert_allclose(hole, [[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    np.testing.assert_allclose(twice, np.ones((3, 3)))


@pytest.mark.parametrize("letter", ["g", "B", "Ж", "Ω"])
def test_a_letter_is_inked_where_matplotlib_sees_its_inside(letter):
    font = open_typefaces()[8].font  # DejaVu Serif, curved and straight
    (drawn,) = coverage([outline(font, letter) * 40 + 20], 40, scanlines=4)
    font.set_size(font.units_per_EM, 72)
    font.load_char(ord(letter), flags=glyphs.LoadFlags.NO_HINTING)
    path = Path(*font.get_path())
    (left, bottom), (right, top) = path.get_extents().get_points()
    across = ((np.arange(120) + 0.5) / 120 - 0.5) * max(right - left, top - bottom)
    x, y = np.meshgrid(across + (left + right) / 2, (bottom + top) / 2 - across)
    inside = np.zeros(x.size, dtype=bool)
    for polygon in path.to_polygons():
        inside ^= Path(polygon).contains_points(np.stack([x.ravel(), y.ravel()], axis=1))  # a hole is inside twice
    inside = inside.reshape(40, 3, 40, 3).mean(axis=(1, 3))
    assert np.abs(drawn - inside).mean() < 0.02
    assert np.abs(drawn - inside).max() < 0.5


class Extremes:
    """In place of a random generator: every distortion at an end of its range, or halfway."""

    def __init__(self, rng=None):
        self.rng = rng

    def uniform(self, low, high, size):
        if low > 0:
            return np.full(size, high)  # scales: full size
        return self.rng.choice([low, high], size) if self.rng else np.zeros(size)


def test_the_whole_box_stays_inside_the_image_at_the_worst_distortion(monkeypatch):
    monkeypatch.setattr(glyphs, "SIZE", SIZE + 8)  # to see what leaves it
    drawn = draw_instances([SQUARE], Extremes(np.random.default_rng(0)))
    assert not np.delete(drawn, np.s_[4:-4], axis=1).any() and not np.delete(drawn, np.s_[4:-4], axis=2).any()
    # Turning and shearing keep the box's area of 17² px².
    np.testing.assert_allclose(drawn.sum(axis=(1, 2)) / 255, 289, atol=1)


def test_typefaces_take_turns():
    half = rectangle(-0.5, -0.25, 0.5, 0.25)
    drawn = draw_instances([SQUARE, half], Extremes())
    assert drawn.shape == (INSTANCES, SIZE, SIZE)
    # 17 px square, or 17 by 8.5 px.
    np.testing.assert_allclose(drawn.sum(axis=(1, 2)) / 255, [289.0, 144.5] * 12, atol=0.2)


# --- Errors ---


def test_a_missing_font_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"matplotlib's own fonts, but .*DejaVuSans\.ttf is missing; reinstall"):
        load_glyphs()


def test_a_seed_below_0_is_refused(small):
    with pytest.raises(ValueError, match=r"seed of a random stream must be an integer from 0"):
        load_glyphs(-1)
