"""Conv4, ResNet12 and their normalisation, by hand and against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metarl_l2f.core.parameters import contexts
from metarl_l2f.networks.images import Conv4, FiLM, Norm, ResNet12, is_norm, track
from metarl_l2f.supervised.classification import Classifier, in_inner_loop, is_head

from .patterns import params_of


def test_normalisation_by_hand():
    # One channel with values 1 and 3: mean 2, variance 1; scale 2 and shift 5 give 5 ∓ 2.
    norm = Norm(1, 2)
    params = {"n.weight": torch.tensor([[1.0], [2.0]]), "n.bias": torch.tensor([[0.0], [5.0]])}
    features = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    for step, expected in ((0, [-1.0, 1.0]), (1, [3.0, 7.0]), (9, [3.0, 7.0])):
        normalised = norm(params, "n", features, step).flatten()
        torch.testing.assert_close(normalised, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_normalisation_by_running_statistics_by_hand():
    # After one step, mean 1 and variance 4: 1 and 3 are 0 and 1, and scale 2 and shift 5 give 5 and 7.
    params = {"n.weight": torch.tensor([[1.0], [2.0]]), "n.bias": torch.tensor([[0.0], [5.0]])}
    params |= {"n.mean": torch.tensor([[0.0], [1.0]]), "n.variance": torch.tensor([[1.0], [4.0]])}
    features = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    for step, expected in ((0, [1.0, 3.0]), (1, [5.0, 7.0]), (9, [5.0, 7.0])):
        for image, value in zip(features, expected, strict=True):  # each image by itself
            found = Norm(1, 2)(params, "n", image[None], step)
            assert float(found) == pytest.approx(value, rel=1e-4)


def test_tracking_moves_one_steps_statistics_a_hundredth_of_the_way():
    network = Conv4((1, 16, 16), 3, 2, generator=torch.Generator().manual_seed(0), tracked_steps=3)
    params, shown = params_of(network), torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    track(network, lambda: network(params, shown, 1), 1)
    features = F.conv2d(shown, params["blocks.0.conv.weight"], padding=1)
    norm = network.blocks[0].norm
    torch.testing.assert_close(norm.mean[1], 0.01 * features.mean((0, 2, 3)).detach())
    torch.testing.assert_close(norm.variance[1], 0.99 + 0.01 * features.var((0, 2, 3)).detach())
    for other in (0, 2):
        assert norm.mean[other].tolist() == [0, 0] and norm.variance[other].tolist() == [1, 1]
    assert (network.blocks[3].norm.mean[1] != 0).all()
    before = norm.mean.clone()
    network(params, shown, 1)
    assert torch.equal(norm.mean, before)  # the hooks are gone


@pytest.mark.parametrize("pooling", ["max", "stride"])
def test_conv4_is_what_plain_modules_compute(pooling):
    network = Conv4((3, 32, 32), 5, 6, pooling, generator=torch.Generator().manual_seed(0))
    layers = []
    for number, block in enumerate(network.blocks):
        strided = pooling == "stride"
        conv = torch.nn.Conv2d(6 if number else 3, 6, 3, stride=2 if strided else 1, padding=1, bias=False)
        conv.load_state_dict(block.conv.state_dict())
        layers += [conv, torch.nn.BatchNorm2d(6, track_running_stats=False)]
        layers += [torch.nn.ReLU()] if strided else [torch.nn.LeakyReLU(0.01), torch.nn.MaxPool2d(2)]
    layers += [torch.nn.AdaptiveAvgPool2d(1)] if pooling == "stride" else []
    pictures = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = network.head(torch.nn.Sequential(*layers)(pictures).flatten(1))
    torch.testing.assert_close(network(params_of(network), pictures), expected)


def test_a_context_scales_and_shifts_channels_by_hand():
    # c = (2, −1): γ = (2·0.5 − 1·0, 2·0 − 1·3) = (1, −3) and β = (2·1 − 1·1, 2·0 − 1·0) = (1, 0).
    params = {
        "film.linear.weight": torch.tensor([[0.5, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]]),
        "film.context": torch.tensor([2.0, -1.0]),
    }
    features = torch.tensor([[[[1.0, 4.0]], [[2.0, 0.0]]]])  # One image of 1×2 pixels, two channels.
    assert FiLM(2, 2)(params, "film", features).tolist() == [[[[3.0, 9.0]], [[-4.0, 0.0]]]]


@pytest.mark.parametrize("pooling", ["max", "stride"])
def test_a_context_acts_on_the_third_block_as_other_scales_and_shifts_of_its_normalisation_would(pooling):
    network = Conv4((1, 32, 32), 3, 4, pooling, generator=torch.Generator().manual_seed(0), context_size=2)
    plain = Conv4((1, 32, 32), 3, 4, pooling)
    pictures = torch.randn(5, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    params = params_of(network)

    def with_context(*context):
        return network(params | {"blocks.2.film.context": torch.tensor(context)}, pictures)

    assert list(contexts(network)) == ["blocks.2.film.context"]
    unmodulated = {name: p for name, p in params.items() if "film" not in name}
    assert torch.equal(with_context(0.0, 0.0), plain(unmodulated, pictures))
    gamma, beta = (params["blocks.2.film.linear.weight"] @ torch.tensor([0.6, -0.4])).split(4)
    scale, shift = (params[f"blocks.2.norm.{name}"] for name in ("weight", "bias"))
    other = {"blocks.2.norm.weight": (1 + gamma) * scale, "blocks.2.norm.bias": (1 + gamma) * shift + beta}
    torch.testing.assert_close(with_context(0.6, -0.4), plain(unmodulated | other, pictures))
    assert not torch.allclose(with_context(0.6, -0.4), with_context(0.0, 0.0))


def test_resnet12_is_what_plain_modules_compute():
    # The official code's: ReLU, pooling after three blocks of four, padded after the third. 28 pixels: 14, 7, 4, 4.
    network = ResNet12((1, 28, 28), 3, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    pictures = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(2, padding=1), nn.Identity()]

    def norm(x):
        return F.batch_norm(x, None, None, training=True)

    x = pictures
    for block, pool in zip(network.blocks, pools, strict=True):
        y = F.relu(norm(F.conv2d(x, block.conv0.weight, padding=1)))
        y = F.relu(norm(F.conv2d(y, block.conv1.weight, padding=1)))
        y = norm(F.conv2d(y, block.conv2.weight, padding=1)) + norm(F.conv2d(x, block.shortcut.weight))
        x = pool(F.relu(y))
    assert x.shape[2:] == (4, 4)
    torch.testing.assert_close(network(params_of(network), pictures), network.head(x.mean((2, 3))))


def test_the_papers_networks_have_their_sizes():
    # Conv4: 48·3·9 + 3·48·48·9 weights, 8·48 of normalisation, head 5·(48·5·5) + 5.
    conv4 = Conv4((3, 84, 84), 5)
    assert sum(p.numel() for p in conv4.parameters()) == 1296 + 3 * 20736 + 384 + 6005
    # ResNet12: per block 9·(in·w + 2·w²) + in·w weights and 8·w of normalisation; head 512·5 + 5.
    resnet, inputs, expected = ResNet12((3, 84, 84), 5), 3, 512 * 5 + 5
    for width in (64, 128, 256, 512):
        expected += 9 * (inputs * width + 2 * width**2) + inputs * width + 8 * width
        inputs = width
    assert sum(p.numel() for p in resnet.parameters()) == expected


def test_normalisation_is_neither_adapted_nor_attenuated_and_anil_moves_the_head_alone():
    network = Conv4((1, 16, 16), 3, 4, "stride")
    names = list(params_of(network))
    inner = [name for name in names if in_inner_loop(name)]
    assert len(inner) == 4 + 2 and not any(map(is_norm, inner))
    assert [name for name in names if is_head(name)] == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Conv4((1, 8, 8), 2), "images of 8×8 vanish in four halvings"),
        (lambda: Conv4((1, 28, 28), 2, pooling="mean"), "pooling must be one of"),
        (lambda: ResNet12((1, 3, 28), 2), "images of 3×28 vanish in two halvings; they need 4×4 pixels"),
        (lambda: Norm(3, 0), "steps must be a whole number of sets of scales and shifts, 1 or more, got 0"),
        (lambda: Conv4((1, 28, 28), 2, pooling="stride", context_size=-1), "context_size must be a whole number"),
        (
            lambda: Classifier("resnet12").build((1, 28, 28), 2, 1, context_size=9),
            "resnet12' has no place where a context enters, got context_size=9; choose backbone='conv4' for cavia",
        ),
        (lambda: Classifier(backbone="conv5"), "backbone must be one of"),
        (lambda: Classifier(statistics="mine"), "statistics must be one of"),
    ],
)
def test_networks_that_cannot_be_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
