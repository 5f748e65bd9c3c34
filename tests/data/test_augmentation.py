"""Augmentation: classes turned and mirrored, images distorted."""

import numpy as np
import pytest
import torch

from metarl_l2f.supervised.data.augmentation import distort, with_mirrors, with_rotations
from metarl_l2f.supervised.episodes import Images


def test_rotations_turn_counter_clockwise():
    corner = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    found = with_rotations(Images(corner[None, None], torch.tensor([0]), ("a",)))
    assert found.pixels.flatten(1).tolist() == [[1, 2, 3, 4], [2, 4, 1, 3], [4, 3, 2, 1], [3, 1, 4, 2]]
    assert found.labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="only square images can be turned and keep their shape, got 1×2"):
        with_rotations(Images(corner[None, None, :1], torch.tensor([0]), ("a",)))


def test_mirrored_classes_follow_the_given_ones():
    pixels = torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], dtype=torch.uint8)[:, None]
    found = with_mirrors(Images(pixels, torch.tensor([0, 1]), ("a", "b")))
    assert found.pixels.flatten(1).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [2, 1, 4, 3], [6, 5, 8, 7]]
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert found.classes == ("a", "b", "a mirrored", "b mirrored")


class Drawn:
    """In place of a generator: says which part of each bound is drawn."""

    def __init__(self, turn=0.0, stretch=0.0, shear=0.0, right=0.0, down=0.0):
        self.parts = np.array([turn, stretch, shear, right, down])

    def uniform(self, low, high, size):
        np.testing.assert_array_equal(low, -high)
        return np.broadcast_to(high * self.parts, size)


def test_an_image_that_is_not_moved_stays():
    images = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(distort(images, Drawn()), images)


def test_a_full_shift_is_a_fourteenth_of_the_image():
    # 28 / 14 = 2 pixels: the picture is read two pixels further right, and repeats its last column there.
    images = torch.arange(28.0).expand(1, 1, 28, 28)
    expected = (torch.arange(28.0) + 2).clamp_max(27)
    torch.testing.assert_close(distort(images, Drawn(right=1.0)), expected.expand(1, 1, 28, 28), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        distort(images.mT, Drawn(down=1.0)), expected[:, None].expand(1, 1, 28, 28), rtol=0, atol=1e-4
    )


def test_turn_stretch_and_shear_move_a_point_as_their_matrix_says():
    """A plane v = x, read at (x, y), becomes (1 + stretch) (x cos − y sin) + y shear."""
    x = (torch.arange(40.0) + 0.5) / 20 - 1
    plane = x.expand(1, 1, 40, 40)
    for part, expected in (
        ({"turn": 1.0}, np.cos(np.radians(10)) * x[None] - np.sin(np.radians(10)) * x[:, None]),
        ({"stretch": -1.0}, 0.9 * x.expand(40, 40)),
        ({"shear": 1.0}, x[None] + 0.1 * x[:, None]),
    ):
        inner = (0, 0, slice(5, 35), slice(5, 35))  # where nothing beyond the border is read
        torch.testing.assert_close(
            distort(plane, Drawn(**part))[inner], expected[5:35, 5:35].float(), rtol=0, atol=1e-5
        )


def test_every_image_is_distorted_in_its_own_way_and_the_same_way_by_the_same_generator():
    image = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1, -1)
    first, again = (distort(image, np.random.default_rng(5)) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first[0] - first[1]).abs().max() > 0.1 and (first[1] - first[2]).abs().max() > 0.1
