"""LEO and LEO + L2F: every equation by hand or against plain loops, and meta-gradients."""

import dataclasses
import math

import pytest
import torch
from torch.func import vmap

from metarl_l2f.core.attenuation import Attenuation, embed
from metarl_l2f.supervised.leo import equations as leo
from metarl_l2f.supervised.leo import experiment as leo_experiment
from metarl_l2f.supervised.leo.equations import Gaussian, Noise
from metarl_l2f.supervised.leo.experiment import LEOExperiment, no_noise

from .tiny import METHODS, SIZE, TINY, first, instance, splits


def test_the_codes_distribution_is_the_mean_relation_of_a_class_to_every_image():
    """The mean relation, spelled out pair by pair; in any order of images."""
    model, tasks, _ = instance()
    shuffled = torch.tensor([3, 0, 5, 1, 4, 2])
    support, targets = tasks.support[0][shuffled], tasks.support_targets[0][shuffled]
    params = model.params
    codes = [image @ params["encoder"] for image in support]

    def relation(left, right):
        hidden = torch.cat([left, right]) @ params["relation.0"]
        return (hidden.relu() @ params["relation.1"]).relu() @ params["relation.2"]

    encoded = leo.encode(params, support, targets, 3)
    for n in range(3):
        total = torch.zeros(8, dtype=torch.float64)
        for k in range(6):
            if targets[k] == n:
                for other in codes:
                    total += relation(codes[k], other)
        mean, log_std = (total / (3 * 2 * 2)).split(4)  # N K² = 3 · 2²
        torch.testing.assert_close(encoded.mean[n], mean)
        torch.testing.assert_close(encoded.std[n], log_std.exp())


def test_half_an_output_is_the_mean_and_half_the_logarithm_of_the_spread():
    mean, std = leo.gaussian(torch.tensor([0.5, -1.0, math.log(2), 0.0]), unit=0.1)
    assert mean.tolist() == [0.5, -1.0]
    torch.testing.assert_close(std, torch.tensor([0.2, 0.1]))


def test_a_decoder_of_zeros_draws_weights_like_glorots():
    weights = leo.decode({"decoder": torch.zeros(4, 2 * SIZE)}, torch.ones(3, 4))
    assert weights.mean.tolist() == [[0.0] * SIZE] * 3
    torch.testing.assert_close(weights.std, torch.full((3, SIZE), 0.5))  # √(2 / (3 + 5))


def test_decoding_is_linear_in_the_code():
    decoder = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, -1.0, math.log(3), 0.0]])  # H = 2, D = 2
    weights = leo.decode({"decoder": decoder}, torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
    assert weights.mean.tolist() == [[3.0, 5.0], [0.0, -2.0]]
    torch.testing.assert_close(weights.std, torch.tensor([[3.0, 1.0], [9.0, 1.0]]) * math.sqrt(2 / 4))


def test_a_sample_is_the_mean_plus_noise_in_units_of_the_spread():
    distribution = Gaussian(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]))
    assert leo.sample(distribution, torch.tensor([2.0, -1.0])).tolist() == [2.0, -1.0]
    assert leo.sample(distribution, torch.zeros(1)).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("shots", [1, 3])
def test_the_support_loss_sums_over_classes_and_averages_over_shots(shots):
    # Logits ±½ ln 3: the likelier class has 3/4. Class 0 is right (ln 4/3), class 1 wrong (ln 4).
    weights, image = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.5 * math.log(3)]])
    targets = torch.tensor([0, 1]).repeat_interleave(shots)
    loss = leo.support_loss(weights, image.expand(2 * shots, 1), targets)
    assert loss.item() == pytest.approx(math.log(4 / 3) + math.log(4))


def test_kl_of_a_gaussian_from_the_standard_normal():
    # μ = 2, σ = 1: ½·4 = 2;  μ = 0, σ = e: ½(e² − 1) − 1;  their mean
    codes = Gaussian(torch.tensor([2.0, 0.0]), torch.tensor([1.0, math.e]))
    assert leo.kl_to_standard_normal(codes).item() == pytest.approx((2 + (math.e**2 - 1) / 2 - 1) / 2)
    standard = Gaussian(torch.zeros(3), torch.ones(3))
    assert leo.kl_to_standard_normal(standard).item() == 0.0


def test_kl_is_what_torch_distributions_says():
    codes = Gaussian(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.rand(3, 4) + 0.1)
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(*codes), prior).mean()
    torch.testing.assert_close(leo.kl_to_standard_normal(codes), expected)


def test_the_encoder_penalty_pulls_the_first_codes_and_not_the_last():
    codes, last = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([2.0, 0.0], requires_grad=True)
    penalty = leo.encoder_penalty(codes, last)
    assert penalty.item() == 5.0  # (1² + 3²) / 2
    penalty.backward()
    assert codes.grad.tolist() == [-1.0, 3.0]  # z − z′
    assert last.grad is None


def test_the_regulariser_by_hand():
    params = {
        "encoder": torch.tensor([[2.0]]),
        "relation.0": torch.tensor([[1.0]]),
        "decoder": torch.tensor([[3.0, 0.0], [1.0, 1.0]]),
        "latent_lr": torch.tensor([100.0]),
        "finetuning_lr": torch.tensor([100.0]),
    }
    # squares 4 + 1 + 11, halved: 8;  the rows' correlation is 1/√2, so C − I has 2 entries of ½ squared: mean ¼
    assert leo.regulariser(params, 0.1, 0.0).item() == pytest.approx(0.8)
    assert leo.regulariser(params, 0.0, 0.4).item() == pytest.approx(0.1)


def test_the_meta_loss_weighs_its_terms():
    settings = dataclasses.replace(TINY, kl=10.0, encoder_penalty=100.0, l2=0.0, orthogonality=1.0)
    terms = [torch.tensor([1.0, 3.0]), torch.zeros(2, 1), torch.tensor([0.1, 0.3]), torch.tensor([0.04, 0.02])]
    params = {"decoder": torch.tensor([[3.0, 0.0], [1.0, 1.0]])}
    loss = leo_experiment.meta_loss(leo.Outcome(*terms, torch.zeros(2, 0)), params, settings)
    assert loss.item() == pytest.approx(2 + 10 * 0.2 + 100 * 0.03 + 0.25)


def adapted_by_loops(model, task, noise):
    """The inner loop step by step on one task, with autograd and the attenuator's formulas spelled out."""
    params, targets = model.params, task.support_targets
    images = [mask * task.support for mask in noise.support]

    def decoded(code, number):
        mean, log_std = (code @ params["decoder"]).split(SIZE, dim=1)
        return mean + math.sqrt(2 / (3 + SIZE)) * log_std.exp() * noise.weights[number]

    def loss(weights, inputs):
        probabilities = (inputs @ weights.T).softmax(1)
        return -sum(probabilities[i, y].log() for i, y in enumerate(targets)) / 2  # K = 2

    distribution = leo.encode(params, images[0], targets, 3)
    code = start = distribution.mean + distribution.std * noise.latent
    weights = decoded(code, 0)
    gamma = torch.ones(3, 1, dtype=torch.float64)
    if model.attenuator is not None:
        (g,) = torch.autograd.grad(loss(weights, images[1]), weights, retain_graph=True)
        embedding = SIZE**0.5 * g.mean(1) / g.square().mean().sqrt()
        into, out = model.attenuator.mlp[0], model.attenuator.mlp[2]
        hidden = (into.weight @ embedding + into.bias).relu()
        gamma = torch.sigmoid(out.weight @ hidden + out.bias)[:, None]
    path = [weights]
    for step in range(2):
        (g,) = torch.autograd.grad(loss(gamma * decoded(code, step), images[1 + step]), code, create_graph=True)
        code = code - params["latent_lr"] * g
        path.append(gamma * decoded(code, step + 1))
    for step in range(2, 4):
        (g,) = torch.autograd.grad(loss(path[-1], images[1 + step]), path[-1], create_graph=True)
        path.append(path[-1] - params["finetuning_lr"] * g)
    return torch.stack(path), start, code, gamma[:, 0]


@pytest.mark.parametrize("method", METHODS)
def test_adaptation_vmapped_over_tasks_is_algorithm_1_task_by_task(method):
    model, tasks, noise = instance(dataclasses.replace(TINY, method=method))
    with torch.no_grad():  # different step sizes for different entries
        model.latent_lr.mul_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
        model.finetuning_lr.mul_(torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0]))
    one = lambda task, noise: leo.adapt(model.params, model.attenuator, 3, task, noise)  # noqa: E731
    together = vmap(one)(tasks, noise)
    for i in range(len(tasks.support)):
        task, own = type(tasks)(*(part[i] for part in tasks)), Noise(*(part[i] for part in noise))
        path, start, code, gamma = adapted_by_loops(model, task, own)
        torch.testing.assert_close(together.weights[i], path, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(together.first[i], start, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(together.last[i], code, rtol=1e-5, atol=1e-8)
        if method == "l2f":
            torch.testing.assert_close(together.gamma[i], gamma, rtol=1e-5, atol=1e-8)
    assert together.gamma.shape == (4, 3 if method == "l2f" else 0)


def test_without_noise_the_codes_and_weights_are_the_means():
    model, tasks, _ = instance(dataclasses.replace(TINY, method="leo"))
    quiet = Noise(*(part.double() for part in no_noise(TINY)))
    task = first(tasks)
    adapted = leo.adapt(model.params, None, 3, task, quiet)
    codes = leo.encode(model.params, task.support, task.support_targets, 3)
    torch.testing.assert_close(adapted.first, codes.mean)
    torch.testing.assert_close(adapted.weights[0], leo.decode(model.params, codes.mean).mean)
    assert adapted.weights.shape == (5, 3, SIZE)


def test_judgement_is_the_last_classifiers_loss_and_every_classifiers_accuracy(monkeypatch):
    model, tasks, _ = instance(dataclasses.replace(TINY, method="leo"))
    task = first(tasks)._replace(query=torch.tensor([[1.0], [-2.0]]), query_targets=torch.tensor([0, 0]))
    weights = torch.tensor([[[-1.0], [1.0]], [[1.0], [-1.0]]])  # logits of the queries: ∓1, ±2; then ±1, ∓2
    codes = Gaussian(torch.zeros(2, 4), torch.ones(2, 4))
    adapted = leo.Adapted(weights, codes, torch.zeros(2, 4), torch.ones(2, 4), torch.zeros(0))
    monkeypatch.setattr(leo, "adapt", lambda *arguments: adapted)
    outcome = leo.assess(model.params, None, 2, task, no_noise(TINY)._replace(query=torch.tensor([[0.5], [1.0]])))
    assert outcome.accuracy.tolist() == [0.5, 0.5]
    # dropout halves the first query: −log p = log(1 + e^(−1)) and log(1 + e⁴)
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(4))) / 2
    assert outcome.query_loss.item() == pytest.approx(expected)
    assert (outcome.kl.item(), outcome.penalty.item()) == (0.0, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_the_meta_gradient_is_that_of_finite_differences(method):
    # The penalty's stopgrad has no finite difference; its own test has its gradient. Nor has the embedding, which is
    # data: it is held where it is.
    model, tasks, noise = instance(dataclasses.replace(TINY, method=method, encoder_penalty=0.0))
    task, noise = first(tasks), first(noise)
    settings = dataclasses.replace(TINY, encoder_penalty=0.0)

    def objective():
        outcome = leo.assess(model.params, model.attenuator, 3, task, noise)
        return leo_experiment.meta_loss(outcome, model.params, settings)

    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = dict(zip(parameters, torch.autograd.grad(objective(), parameters.values()), strict=True))
    if model.attenuator is not None:
        seen, real = [], model.attenuator.factors
        model.attenuator.factors = lambda g: (
            seen.append(embed([g["weights"]], model.attenuator.owners.values(), "standardised")) or real(g)
        )
        objective()
        model.attenuator.factors = lambda g: (model.attenuator.mlp(seen[0]).sigmoid(), None)
    step = 1e-6
    for seed, (name, parameter) in enumerate(parameters.items()):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = objective()
            parameter.sub_(direction, alpha=2 * step)
            below = objective()
            parameter.add_(direction, alpha=step)
        slope = (gradients[name] * direction).sum().item()
        assert ((above - below) / (2 * step)).item() == pytest.approx(slope, rel=1e-5, abs=1e-9), name
    assert len(parameters) == (11 if method == "l2f" else 7)


def test_gamma_1_is_leo():
    free = dataclasses.replace(TINY, attenuation=Attenuation(scope="filter", conditioning="none"))  # starts at 1
    model, tasks, noise = instance(free)
    assess = lambda l2f: vmap(lambda t, n: leo.assess(model.params, l2f, 3, t, n))(tasks, noise)  # noqa: E731
    with_l2f, alone = assess(model.attenuator), assess(None)
    assert with_l2f.gamma.tolist() == [[1.0] * 3] * 4
    for name in ("query_loss", "accuracy", "kl", "penalty"):
        torch.testing.assert_close(getattr(with_l2f, name), getattr(alone, name))


def test_the_shift_of_an_affine_transform_is_added_to_every_decoding():
    settings = dataclasses.replace(TINY, attenuation=Attenuation(scope="network", transform="affine"))
    model, tasks, noise = instance(settings)
    model.attenuator.factors = lambda g: (torch.zeros(1).double(), torch.full((1,), 2.0).double())
    adapted = leo.adapt(model.params, model.attenuator, 3, first(tasks), first(noise))
    assert adapted.weights[1:3].tolist() == [[[2.0] * SIZE] * 3] * 2  # 0·w + 2
    assert adapted.weights[0].tolist() != [[2.0] * SIZE] * 3  # before adaptation nothing is forgotten


@pytest.mark.parametrize(("scope", "differs"), [("tensor", False), ("filter", True)])
def test_gamma_depends_on_the_task_when_every_class_has_its_own(scope, differs):
    model, tasks, noise = instance(dataclasses.replace(TINY, attenuation=Attenuation(scope=scope)))
    gamma = vmap(lambda t, n: leo.adapt(model.params, model.attenuator, 3, t, n).gamma)(tasks, noise)
    assert (gamma.std(0).max().item() > 1e-4) == differs


def test_gammas_spread_is_over_tasks_and_not_over_classes():
    free = dataclasses.replace(TINY, attenuation=Attenuation(scope="filter", conditioning="none"))
    experiment = LEOExperiment(splits(), free)
    with torch.no_grad():
        experiment.model.attenuator.free.copy_(torch.tensor([0.25, 0.5, 0.75]))
    metrics = experiment.iterate(1)
    assert metrics["gamma/weights/mean"] == pytest.approx(0.5)
    assert metrics["gamma/weights/std"] == pytest.approx(0.0, abs=1e-6)
