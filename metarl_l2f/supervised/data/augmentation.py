"""Augmentation of images: turned and mirrored classes, and distorted images."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..episodes import Images

TURN = 10.0  # degrees
SHIFT = 1 / 14  # as a fraction of the image's width: 2 of 28 px
STRETCH, SHEAR = 0.1, 0.1


def with_rotations(images: Images) -> Images:
    """Add copies of every class, turned counter-clockwise by 90°, 180° and 270°, as classes of their own.

    Args:
        images: n square images.
    Returns:
        4n images of four times as many classes: first the given ones, then all of them turned by 90°, and so on.
    Raises:
        ValueError: the images are not square.
    """
    height, width = images.pixels.shape[2:]
    if height != width:
        raise ValueError(f"only square images can be turned and keep their shape, got {height}×{width}; pass size=...")
    turns = range(4)
    return Images(
        torch.cat([images.pixels.rot90(turn, (2, 3)) for turn in turns]),
        torch.cat([images.labels + turn * len(images.classes) for turn in turns]),
        images.classes + tuple(f"{name} turned {90 * turn}°" for turn in turns[1:] for name in images.classes),
        images.where,
    )


def with_mirrors(images: Images) -> Images:
    """Add a copy of every class, mirrored left to right, as a class of its own; returns 2n images for n."""
    return Images(
        torch.cat([images.pixels, images.pixels.flip(-1)]),
        torch.cat([images.labels, images.labels + len(images.classes)]),
        images.classes + tuple(f"{name} mirrored" for name in images.classes),
        images.where,
    )


def distort(images: Tensor, generator: np.random.Generator) -> Tensor:
    """Turn, stretch, shear and shift every image a little, each in its own way.

    An image is read at x ↦ A x + t, with A = s R(turn) + shear. Values between pixels are interpolated, and places
    beyond the border take the value of the border.

    Args:
        images: (n, C, H, W).
        generator: the source of turns up to ±10°, sizes and shears up to ±10 %, and shifts up to 1/14 of the width and
            of the height.
    Returns:
        (n, C, H, W).
    """
    bounds = np.array([math.radians(TURN), STRETCH, SHEAR, 2 * SHIFT, 2 * SHIFT])  # images span 2 units, from −1 to 1
    drawn = torch.from_numpy(generator.uniform(-bounds, bounds, (len(images), 5)).astype(np.float32))
    turn, stretch, shear, right, down = drawn.T
    cosine, sine = (1 + stretch) * turn.cos(), (1 + stretch) * turn.sin()
    maps = torch.stack([cosine, shear - sine, right, sine, cosine, down], -1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
