"""The convolutional trunk of policies that see pictures: Conv4's blocks with stride 2 and without normalisation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_count
from ..core.parameters import Params
from .images import Blocks
from .mlp import start_xavier

BRIGHTEST = 255
"""The largest byte of a picture."""
SMALLEST_SIDE = 16
"""The smallest height and width of a picture, in pixels, that is left 1 after the four halvings of the trunk."""


def as_numbers(observations: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert observations to floating-point numbers; bytes, which are pictures, are divided by 255.

    Args:
        observations: (...), bytes or floating-point numbers; the latter are returned as they are.
        dtype: the dtype that bytes are converted to.
    """
    return observations.to(dtype) / BRIGHTEST if observations.dtype == torch.uint8 else observations


def seems_channels_first(shape: Sequence[int]) -> bool:
    """Tell whether a shape looks like that of pictures (C, H, W): the first of three sizes is far smaller."""
    return len(shape) == 3 and shape[0] < SMALLEST_SIDE <= min(shape[1:])


class PictureTrunk(nn.Module):
    """Conv4's four blocks, each a 3×3 convolution of stride 2 with a bias, and ReLU; all places side by side.

    Args:
        shape: (H, W, C) of the pictures.
        filters: the number of filters of each convolution.
        generator: the source of the initial weights, which are Xavier uniform; biases start at 0.
    Raises:
        ValueError: the shape is not that of a picture, the picture is too small, or a number is not positive.
    """

    def __init__(self, shape: Sequence[int], filters: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if seems_channels_first(shape):
            raise ValueError(
                f"pictures must have the shape (height, width, channels), got {tuple(shape)}, which looks like "
                "(channels, height, width); move channels last by np.moveaxis(picture, 0, -1), with "
                "gymnasium.wrappers.TransformObservation"
            )
        if len(shape) != 3:
            raise ValueError(
                f"a convolutional trunk reads pictures of the shape (height, width, channels), got {tuple(shape)}; "
                "choose trunk='mlp', or add the axis that is missing"
            )
        if min(shape[:2]) < SMALLEST_SIDE:
            raise ValueError(
                f"pictures of {shape[0]}×{shape[1]} vanish in the four halvings of a convolutional trunk, which needs "
                f"{SMALLEST_SIDE}×{SMALLEST_SIDE} pixels; choose trunk='mlp', or larger pictures"
            )
        for size in shape:
            check_count("every size of a picture", size)
        self.shape = tuple(shape)
        self.blocks = Blocks(shape[2], filters, "stride")
        self.feature_size = filters * math.ceil(shape[0] / 16) * math.ceil(shape[1] / 16)
        start_xavier(self, generator)

    def forward(self, params: Params, observations: Tensor, prefix: str = "trunk") -> Tensor:
        """Map pictures in a row (..., H·W·C) to features (..., feature_size).

        With parameters stacked over N tasks, observations are (N, ..., H·W·C), and the tasks are computed one after
        another: one convolution in N groups would take longer, and its rounding would depend on N.

        Args:
            params: the network's parameters, by name.
            observations: floating-point numbers.
            prefix: the name of the trunk among the network's modules.
        """
        own = {name: tensor for name, tensor in params.items() if name.startswith(f"{prefix}.")}
        if own[f"{prefix}.blocks.0.conv.weight"].ndim == 5:
            tasks = ({name: tensor[task] for name, tensor in own.items()} for task in range(len(observations)))
            return torch.stack([self(*pair, prefix) for pair in zip(tasks, observations, strict=True)])
        pictures = observations.reshape(-1, *self.shape).permute(0, 3, 1, 2)
        features = self.blocks(own, pictures, prefix=f"{prefix}.blocks")
        return features.flatten(1).reshape(*observations.shape[:-1], self.feature_size)
