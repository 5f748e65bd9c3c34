"""Image classifiers as functions of their parameters: Conv4 and ResNet12, normalised by batch statistics."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_choice, check_count
from ..core.parameters import Params
from .mlp import affine, start_xavier

Pooling = Literal["max", "stride"]
LEAKY_SLOPE = 0.01  # The slope of the official Conv4's rectifiers below 0.
RESNET_POOLS = (0, 0, 1, None)  # Padding of the pooling after each of ResNet12's blocks; the last has no pooling.
MODULATED = 2  # The block of Conv4 whose features a context modulates, counted from 0.
MOMENTUM = 0.01  # Running statistics average over about the last hundred tasks.


class Norm(nn.Module):
    """Batch normalisation with the statistics of the batch, or with running statistics where the parameters hold them.

    The official code of L2F and of MAML++ uses the statistics of the batch, in evaluation too ("transductive"): it
    keeps running statistics, but never reads them.

    Args:
        channels: C, the number of channels of the features.
        steps: the number of sets of scales and shifts; after k inner steps, set min(k, steps − 1) is used (MAML++ has
            one per step).
        tracked: the number of sets of running means and variances, one for each number of inner steps; 0 keeps none.
    Raises:
        ValueError: there is no set of scales and shifts.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, steps: int, tracked: int = 0) -> None:
        super().__init__()
        check_count("steps", steps, unit="sets of scales and shifts")
        self.weight, self.bias = nn.Parameter(torch.ones(steps, channels)), nn.Parameter(torch.zeros(steps, channels))
        self.tracked = tracked
        if tracked:
            self.register_buffer("mean", torch.zeros(tracked, channels))
            self.register_buffer("variance", torch.ones(tracked, channels))

    def forward(self, params: Params, prefix: str, features: Tensor, step: int) -> Tensor:
        """Normalise features (n, C, H, W), then scale and shift them.

        Each channel gets mean 0 and variance 1 over all images and places. Where `params` also hold `mean` and
        `variance`, (tracked, C), every image is normalised by these alone.

        Args:
            params: the network's parameters, by name.
            prefix: the name of this layer.
            features: (n, C, H, W).
            step: the number of inner steps that led to the parameters.
        Returns:
            (n, C, H, W).
        """
        weight, bias = (_row(params[f"{prefix}.{name}"], step) for name in ("weight", "bias"))
        if f"{prefix}.mean" not in params:
            return F.batch_norm(features, None, None, weight, bias, training=True)
        mean, variance = (_row(params[f"{prefix}.{name}"], step) for name in ("mean", "variance"))
        return F.batch_norm(features, mean, variance, weight, bias, training=False)


def _row(sets: Tensor, step: int) -> Tensor:
    """The set for a number of inner steps; the last one for all larger numbers."""
    return sets[min(step, len(sets) - 1)]


@torch.no_grad()
def track(network: nn.Module, compute: Callable[[], Any], step: int) -> None:
    """Move the running means and variances of one inner step towards those of a batch, by the fraction MOMENTUM.

    Args:
        network: the network whose normalisation layers keep such statistics.
        compute: a function that runs the network on the batch.
        step: the number of inner steps that led to the parameters used.
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
    """Tell whether a parameter belongs to a `Norm`; such parameters are meta-learned, not adapted or attenuated."""
    return ".norm" in name


class FiLM(nn.Module):
    """Modulation of features by a task's context c: (1 + γ) h + β for each channel, with (γ, β) = W c.

    This is how a context enters a convolutional network in CAVIA (Zintgraf et al. 2019), by the layer of FiLM (Perez et
    al. 2018). W is a part of θ, and c a buffer that starts at 0, which leaves the features as they are. The released
    code of CAVIA computes γ h + β with a bias in γ and β; the scales and shifts of a normalisation before do the same.

    Args:
        channels: the number of channels of the features.
        context_size: the length of c.
    """

    context: Tensor
    """(context_size,), what adapts; a task's own is passed among its parameters."""

    def __init__(self, channels: int, context_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(context_size, 2 * channels, bias=False)
        self.register_buffer("context", torch.zeros(context_size))

    def forward(self, params: Params, prefix: str, features: Tensor) -> Tensor:
        """Modulate features (n, channels, H, W), all images alike.

        Args:
            params: the network's parameters, by name.
            prefix: the name of this layer.
            features: (n, channels, H, W).
        """
        factors = F.linear(params[f"{prefix}.context"], params[f"{prefix}.linear.weight"])
        gamma, beta = factors.unflatten(0, (2, -1)).unsqueeze(-1).unsqueeze(-1)
        return (1 + gamma) * features + beta


class ImageClassifier(nn.Module):
    """A network that computes features, and a linear head that classifies them."""

    def forward(self, params: Params, images: Tensor, step: int = 0) -> Tensor:
        """Map images (n, C, H, W) to logits (n, classes), with parameters after `step` inner steps."""
        return affine(self.features(params, images, step), params["head.weight"], params["head.bias"])

    def is_head(self, name: str) -> bool:
        """Whether a parameter is the last layer's."""
        return name.startswith("head.")

    def features(self, params: Params, images: Tensor, step: int = 0) -> Tensor:
        """Map images (n, C, H, W) to features (n, feature_size), with parameters after `step` inner steps."""
        raise NotImplementedError


class Blocks(nn.ModuleList):
    """Conv4's four blocks: a 3×3 convolution, normalisation or else a bias, and a rectifier; each halves the images.

    Args:
        channels: C, the number of channels of the images.
        filters: the number of filters of each convolution.
        pooling: as in `Conv4`.
        norm_steps: the number of sets of scales and shifts of the normalisation; None leaves it out.
        tracked_steps: the number of sets of running statistics of the normalisation; 0 keeps none.
        context_size: the length of a task's context, which modulates the third block's features before they are
            rectified (CAVIA); 0 for none.
    Raises:
        ValueError: the pooling is unknown, or a number is not positive.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        pooling: Pooling,
        norm_steps: int | None = None,
        tracked_steps: int = 0,
        context_size: int = 0,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, Pooling)
        check_count("filters", filters)
        check_count("context_size", context_size, 0)
        self.filters, self.pooling, self.normalised = filters, pooling, norm_steps is not None
        for number in range(4):
            block = nn.Module()
            block.add_module("conv", nn.Conv2d(filters if number else channels, filters, 3, bias=norm_steps is None))
            if norm_steps is not None:
                block.add_module("norm", Norm(filters, norm_steps, tracked_steps))
            if number == MODULATED and context_size:
                block.add_module("film", FiLM(filters, context_size))
            self.append(block)
        self.context_size = context_size

    def forward(self, params: Params, images: Tensor, step: int = 0, prefix: str = "blocks") -> Tensor:
        """Map images (n, C, H, W) to features (n, filters, H′, W′), with parameters after `step` inner steps.

        Args:
            params: the network's parameters, by name.
            images: (n, C, H, W).
            step: the number of inner steps that led to the parameters.
            prefix: the name of the blocks among the network's modules.
        """
        strided = self.pooling == "stride"
        for number, block in enumerate(self):
            own = f"{prefix}.{number}"
            weight, bias = params[f"{own}.conv.weight"], params.get(f"{own}.conv.bias")
            images = F.conv2d(images, weight, bias, stride=2 if strided else 1, padding=1)
            if self.normalised:
                images = block.get_submodule("norm")(params, f"{own}.norm", images, step)
            if number == MODULATED and self.context_size:
                images = block.get_submodule("film")(params, f"{own}.film", images)
            images = F.relu(images) if strided else F.max_pool2d(F.leaky_relu(images, LEAKY_SLOPE), 2)
        return images


class Conv4(ImageClassifier):
    """Four convolutions and a linear head, the few-shot literature's small classifier.

    Args:
        image_shape: (C, H, W) of the images.
        classes: the number of classes.
        filters: the number of filters of each convolution.
        pooling: `max`: leaky ReLU and 2×2 max pooling (the official L2F network); `stride`: ReLU, stride 2 and the mean
            over places (MAML's network for 28×28 images, four times as fast there). Convolutions have no bias: those of
            MAML's code have one, but the normalisation that follows removes it.
        norm_steps: the number of sets of scales and shifts of the normalisation.
        generator: the source of the initial weights, which are Xavier uniform; biases start at 0.
        tracked_steps: the number of sets of running statistics of the normalisation; 0 keeps none.
        context_size: the length of a task's context (CAVIA), which enters by `FiLM` after the third convolution and its
            normalisation; 0 for none.
    Raises:
        ValueError: the pooling is unknown, or the images are too small.
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
        context_size: int = 0,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.blocks = Blocks(channels, filters, pooling, norm_steps, tracked_steps, context_size)
        places = (height // 16) * (width // 16) if pooling == "max" else 1
        if places < 1:
            raise ValueError(
                f"images of {height}×{width} vanish in four halvings; they need 16×16 pixels, or pooling='stride'"
            )
        self.feature_size = filters * places
        self.head = nn.Linear(self.feature_size, classes)
        start_xavier(self, generator)

    def features(self, params: Params, images: Tensor, step: int = 0) -> Tensor:
        """Map images (n, C, H, W) to features (n, feature_size), with parameters after `step` inner steps."""
        features = self.blocks(params, images, step)
        return features.mean((2, 3)) if self.blocks.pooling == "stride" else features.flatten(1)


class ResNet12(ImageClassifier):
    """Four residual blocks of three convolutions, and a linear head on the mean over places.

    A block applies (3×3 convolution, normalisation, ReLU) twice and a third convolution with normalisation, adds the
    normalised 1×1 convolution of its input, and applies ReLU and 2×2 max pooling. The pooling after the third block has
    one pixel of padding, and the last block has no pooling. This follows the official code of L2F, from which other
    ResNet12s differ in details.

    Args:
        image_shape: (C, H, W) of the images.
        classes: the number of classes.
        widths: the number of filters of each of the four blocks.
        norm_steps: the number of sets of scales and shifts of the normalisation.
        generator: the source of the initial weights, which are Xavier uniform; biases start at 0.
        tracked_steps: the number of sets of running statistics of the normalisation; 0 keeps none.
    Raises:
        ValueError: the images are too small.
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
        start_xavier(self, generator)

    def features(self, params: Params, images: Tensor, step: int = 0) -> Tensor:
        """Map images (n, C, H, W) to features (n, feature_size), with parameters after `step` inner steps."""
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
