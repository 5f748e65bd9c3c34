"""More images out of few: turned and mirrored classes, distorted images."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..episodes import Images

TURN = 10.0  # degrees
SHIFT = 1 / 14  # of the image's width: two of 28 pixels
STRETCH, SHEAR = 0.1, 0.1


def with_rotations(images: Images) -> Images:
    """Every class four times: as it is, and turned counter-clockwise by 90°, 180° and 270° as classes of their own.

    Args:
        images: n square images of some classes.

    Returns:
        4n images of four times the classes: first those given, then all of them turned by 90°, and so on.

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
    """Every class twice: as it is, and then, as a class of its own, mirrored left to right."""
    return Images(
        torch.cat([images.pixels, images.pixels.flip(-1)]),
        torch.cat([images.labels, images.labels + len(images.classes)]),
        images.classes + tuple(f"{name} mirrored" for name in images.classes),
        images.where,
    )


def distort(images: Tensor, generator: np.random.Generator) -> Tensor:
    """Turn, stretch, shear and shift every image a little, each in its own way.

    An image is read at x ↦ A x + t, with A = s R(turn) + shear and pixels between pixels interpolated; what lies
    beyond its border is its border.

    Args:
        images: (n, C, H, W).
        generator: draws turns up to ±10°, sizes and shears up to ±10 %, shifts up to 1/14 of the width and the height.
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
