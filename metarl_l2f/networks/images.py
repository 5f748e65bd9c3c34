"""Image classifiers as functions of their parameters: Conv4 and ResNet12, with normalisation by the images at hand."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Params
from .policies import affine

Pooling = Literal["max", "stride"]
LEAKY_SLOPE = 0.01  # Of the official Conv4's rectifiers below 0.
RESNET_POOLS = (0, 0, 1, None)  # Padding of the pooling after each of ResNet12's blocks; the last has no pooling.
MOMENTUM = 0.01  # Of running statistics: about the last hundred tasks count.


class Norm(nn.Module):
    """Batch normalisation with the statistics of the images at hand, or with running ones where it is given those.

    The official code of L2F and of MAML++ takes those of the images at hand, in evaluation too ("transductive"): it
    keeps running statistics, but never reads them.

    Args:
        channels: of the images' features.
        steps: sets of scales and shifts; after k inner steps, set min(k, steps − 1) is used (MAML++: one a step).
        tracked: sets of running means and variances, one after each number of inner steps; 0 keeps none.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, steps: int, tracked: int = 0) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"normalisation needs 1 or more sets of scales and shifts, got {steps}")
        self.weight, self.bias = nn.Parameter(torch.ones(steps, channels)), nn.Parameter(torch.zeros(steps, channels))
        self.tracked = tracked
        if tracked:
            self.register_buffer("mean", torch.zeros(tracked, channels))
            self.register_buffer("variance", torch.ones(tracked, channels))

    def forward(self, params: Params, prefix: str, features: Tensor, step: int) -> Tensor:
        """(n, C, H, W) → the same shape, each channel with mean 0 and variance 1 over all images and places.

        Where `params` hold `mean` and `variance` too, (tracked, C), each image is normalised by these alone.
        """
        weight, bias = (_row(params[f"{prefix}.{name}"], step) for name in ("weight", "bias"))
        if f"{prefix}.mean" not in params:
            return F.batch_norm(features, None, None, weight, bias, training=True)
        mean, variance = (_row(params[f"{prefix}.{name}"], step) for name in ("mean", "variance"))
        return F.batch_norm(features, mean, variance, weight, bias, training=False)


def _row(sets: Tensor, step: int) -> Tensor:
    """What is used after `step` inner steps; the last set from then on."""
    return sets[min(step, len(sets) - 1)]


@torch.no_grad()
def track(network: nn.Module, compute: Callable[[], Any], step: int) -> None:
    """Move the running means and variances of one inner step towards those of the images at hand, by MOMENTUM.

    Args:
        network: holds the normalisation layers that have such statistics.
        compute: runs the network on the images.
        step: how many inner steps led to the parameters that it is run with.
    """

    def move(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = inputs[2].detach()
        for name, moment in (("mean", features.mean((0, 2, 3))), ("variance", features.var((0, 2, 3)))):
            _row(norm.get_buffer(name), step).lerp_(moment, MOMENTUM)

    norms = [layer for layer in network.modules() if isinstance(layer, Norm) and layer.tracked]
    hooks = [norm.register_forward_pre_hook(move) for norm in norms]
    try:
        compute()
    finally:
        for hook in hooks:
            hook.remove()


def is_norm(name: str) -> bool:
    """Whether a parameter is a scale or shift of a `Norm`: meta-learned, but neither adapted nor attenuated."""
    return ".norm" in name


class ImageClassifier(nn.Module):
    """What image classifiers share: features, and a linear head that reads them."""

    def forward(self, params: Params, images: Tensor, step: int = 0) -> Tensor:
        """Images (n, C, H, W) → logits (n, classes), after `step` inner steps."""
        return affine(self.features(params, images, step), params["head.weight"], params["head.bias"])

    def features(self, params: Params, images: Tensor, step: int = 0) -> Tensor:
        """Images (n, C, H, W) → what the head reads, (n, feature_size)."""
        raise NotImplementedError


class Conv4(ImageClassifier):
    """Four convolutions and a linear head, the few-shot literature's small classifier.

    Args:
        image_shape: (C, H, W) of the images.
        classes: outputs.
        filters: per convolution.
        pooling: `max`: leaky ReLU, 2×2 max pooling (the official L2F network); `stride`: ReLU, stride 2 and the mean
            over places (MAML's network for 28×28 images, four times as fast there). Convolutions have no bias: MAML's
            code has, but the normalisation that follows takes it away again.
        norm_steps: sets of scales and shifts of the normalisation.
        generator: draws the initial weights, Xavier uniform; biases start at 0.
        tracked_steps: sets of running statistics of the normalisation; 0 keeps none.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        filters: int = 48,
        pooling: Pooling = "max",
        norm_steps: int = 1,
        generator: torch.Generator | None = None,
        tracked_steps: int = 0,
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {get_args(Pooling)}, got {pooling!r}")
        channels, height, width = image_shape
        self.pooling = pooling
        places = (height // 16) * (width // 16) if pooling == "max" else 1
        if places < 1:
            raise ValueError(
                f"images of {height}×{width} vanish in four halvings; they need 16×16 pixels, or pooling='stride'"
            )
        self.blocks = nn.ModuleList()
        for number in range(4):
            block = nn.Module()
            block.add_module("conv", nn.Conv2d(filters if number else channels, filters, 3, bias=False))
            block.add_module("norm", Norm(filters, norm_steps, tracked_steps))
            self.blocks.append(block)
        self.feature_size = filters * places
        self.head = nn.Linear(self.feature_size, classes)
        _start_xavier(self, generator)

    def features(self, params: Params, images: Tensor, step: int = 0) -> Tensor:
        """Images (n, C, H, W) → what the head reads, (n, feature_size)."""
        strided = self.pooling == "stride"
        for number, block in enumerate(self.blocks):
            prefix = f"blocks.{number}"
            images = F.conv2d(images, params[f"{prefix}.conv.weight"], stride=2 if strided else 1, padding=1)
            images = block.get_submodule("norm")(params, f"{prefix}.norm", images, step)
            images = F.relu(images) if strided else F.max_pool2d(F.leaky_relu(images, LEAKY_SLOPE), 2)
        return images.mean((2, 3)) if strided else images.flatten(1)


class ResNet12(ImageClassifier):
    """Four residual blocks of three convolutions, 64, 128, 256 and 512 wide, and a linear head on the mean over places.

    Each block: (3×3 convolution, normalisation, ReLU) twice, a third convolution with normalisation, plus the
    normalised 1×1 convolution of the input; ReLU; 2×2 max pooling, after the third block with one pixel of padding,
    after the last one none: as the official code has it, which other ResNet12s are not quite like.

    Args:
        image_shape: (C, H, W) of the images.
        classes: outputs.
        widths: of the four blocks.
        norm_steps: sets of scales and shifts of the normalisation.
        generator: draws the initial weights, Xavier uniform; biases start at 0.
        tracked_steps: sets of running statistics of the normalisation; 0 keeps none.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        widths: Sequence[int] = (64, 128, 256, 512),
        norm_steps: int = 1,
        generator: torch.Generator | None = None,
        tracked_steps: int = 0,
    ) -> None:
        super().__init__()
        if min(image_shape[1:]) < 4:
            raise ValueError(
                f"images of {image_shape[1]}×{image_shape[2]} vanish in two halvings; they need 4×4 pixels or more"
            )
        self.blocks = nn.ModuleList()
        for inputs, width in itertools.pairwise((image_shape[0], *widths)):
            block = nn.Module()
            for number, size in enumerate((inputs, width, width)):
                block.add_module(f"conv{number}", nn.Conv2d(size, width, 3, bias=False))
                block.add_module(f"norm{number}", Norm(width, norm_steps, tracked_steps))
            block.add_module("shortcut", nn.Conv2d(inputs, width, 1, bias=False))
            block.add_module("norm_shortcut", Norm(width, norm_steps, tracked_steps))
            self.blocks.append(block)
        self.feature_size = widths[-1]
        self.head = nn.Linear(self.feature_size, classes)
        _start_xavier(self, generator)

    def features(self, params: Params, images: Tensor, step: int = 0) -> Tensor:
        """Images (n, C, H, W) → what the head reads, (n, feature_size)."""
        for (number, block), pool in zip(enumerate(self.blocks), RESNET_POOLS, strict=True):
            prefix = f"blocks.{number}"
            straight = F.conv2d(images, params[f"{prefix}.shortcut.weight"])
            straight = block.get_submodule("norm_shortcut")(params, f"{prefix}.norm_shortcut", straight, step)
            for layer in range(3):
                images = F.conv2d(images, params[f"{prefix}.conv{layer}.weight"], padding=1)
                images = block.get_submodule(f"norm{layer}")(params, f"{prefix}.norm{layer}", images, step)
                images = F.relu(images if layer < 2 else images + straight)
            images = images if pool is None else F.max_pool2d(images, 2, padding=pool)
        return images.mean((2, 3))


def _start_xavier(network: nn.Module, generator: torch.Generator | None) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
