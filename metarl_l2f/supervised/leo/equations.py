"""LEO (Rusu et al., "Meta-Learning with Latent Embedding Optimization", ICLR 2019, arXiv 1807.05960), and LEO + L2F.

LEO classifies embeddings made once by a trained network. A task's support set is encoded into one latent code per
class, and each code is decoded into that class's softmax weights. Gradient steps move first the codes, through the
decoder, and then the weights themselves. Every formula is that of the authors' released code (deepmind/leo), whose
functions are named beside it; departures are noted.

The equations are written for one task, as functions of named parameters and of noise that the caller drew; the
experiment (experiment.py) vmaps them over tasks.

Letters: N ways, K shots, S = N·K support and Q query images, D numbers per embedding, H per latent code, k latent and
f fine-tuning steps; L entries of L2F's γ. LEO's own γ, the weight of a penalty, is called `encoder_penalty` here.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from ...core.attenuation import Attenuator, attenuate
from ...core.parameters import Params
from ..episodes import Task


class Gaussian(NamedTuple):
    """Independent normal distributions."""

    mean: Tensor
    std: Tensor


class Noise(NamedTuple):
    """The random numbers of one task's adaptation; an entry may have any shape that broadcasts to the given one."""

    latent: Tensor
    """(N, H), standard normal."""
    weights: Tensor
    """(k + 1, N, D), standard normal, one sample of the weights per decoding."""
    support: Tensor
    """(1 + k + f, S, D), dropout masks for the encoder, then for every gradient: 0, or 1 / (1 − rate) to keep."""
    query: Tensor
    """(Q, D), a dropout mask."""


class Adapted(NamedTuple):
    """The result of one task's adaptation."""

    weights: Tensor
    """(1 + k + f, N, D), the weights decoded from the first codes, then after every step."""
    codes: Gaussian
    """(N, H), the distribution of the first codes."""
    first: Tensor
    """(N, H), the codes z drawn from it."""
    last: Tensor
    """(N, H), the codes z′ after k steps."""
    gamma: Tensor
    """(L,), L2F's attenuation; (0,) for LEO alone."""


def sample(distribution: Gaussian, noise: Tensor) -> Tensor:
    """Compute μ + σε, a sample if ε is standard normal, and the mean if ε is 0."""
    return distribution.mean + distribution.std * noise


def gaussian(output: Tensor, unit: float = 1.0) -> Gaussian:
    """Turn a network's output, whose halves are μ and u, into a distribution with σ = unit · exp(u).

    The released code has σ = max(exp(u) − 1, 1e-10) for the codes and max(exp(u) − 1 + unit, 1e-10) for the weights:
    nearly the same for small u, but without a gradient where it is cut off.
    """
    mean, log_std = output.chunk(2, dim=-1)
    return Gaussian(mean, unit * log_std.exp())


def encode(params: Params, support: Tensor, targets: Tensor, ways: int) -> Gaussian:
    """Encode a support set: the relations of every support image to every other, averaged by class.

    This is the released code's `encoder`, `relation_network` and `average_codes_per_class`:

    μₙᵉ, σₙᵉ = 1/(N K²) Σ_k Σ_m Σ_j g_φr(g_φe(xₙᵏ), g_φe(x_mʲ))

    Args:
        params: `encoder` (D, H) is g_φe; `relation.0` to `relation.2`, each (2H, 2H), are g_φr, ReLU between them.
        support: (S, D).
        targets: (S,), class numbers below `ways`.
        ways: N, the number of classes.
    Returns:
        (N, H), the distribution of one latent code per class.
    """
    codes = support @ params["encoder"]
    # A concatenated pair times W is the sum of each part times its own half of W.
    left, right = (codes @ half for half in params["relation.0"].chunk(2))
    hidden = (left[:, None] + right[None, :]).relu()
    # The last layer is linear, so it can be applied after the mean over partners.
    relations = (hidden @ params["relation.1"]).relu().mean(1) @ params["relation.2"]
    members = (targets == torch.arange(ways, device=targets.device)[:, None]).to(relations.dtype)
    return gaussian(members @ relations / members.sum(1, keepdim=True))


def decode(params: Params, codes: Tensor) -> Gaussian:
    """Decode codes into the distribution of the classifier's weights, wₙ ~ N(μₙᵈ, diag σₙᵈ²), μₙᵈ, σₙᵈ = g_φd(zₙ).

    This is the released code's `decoder`, a linear layer.

    Args:
        params: `decoder` (H, 2D).
        codes: (N, H).
    Returns:
        (N, D).
    """
    output = codes @ params["decoder"]
    ways, size = len(codes), output.shape[-1] // 2
    # σ starts near the spread of Glorot's initialisation of a D × N layer, as in the released code.
    return gaussian(output, math.sqrt(2 / (ways + size)))


def support_loss(weights: Tensor, support: Tensor, targets: Tensor) -> Tensor:
    """Compute L^tr = 1/K Σ_(x,y) [−w_y·x + log Σ_j exp(w_j·x)] (the released code's `calculate_inner_loss`).

    That code sums over the images, but gives every support image a code of its own and averages the K classifiers,
    which divides each step by K. The factor 1/K here has the same effect, so that its step sizes fit.

    Args:
        weights: (N, D), the classifier.
        support: (S, D), the embeddings.
        targets: (S,), their class numbers.
    """
    return len(weights) * F.cross_entropy(support @ weights.T, targets)


def kl_to_standard_normal(codes: Gaussian) -> Tensor:
    """Compute KL(N(μ, σ²) ‖ N(0, 1)) = ½(μ² + σ² − 1) − log σ, averaged over entries.

    The released code's `kl_divergence` estimates it from one sample; this is its expectation.
    """
    mean, std = codes
    return (0.5 * (mean.square() + std.square() - 1) - std.log()).mean()


def encoder_penalty(first: Tensor, last: Tensor) -> Tensor:
    """Compute ‖stopgrad(z′) − z‖², averaged over entries (the released code's `leo_inner_loop`)."""
    return F.mse_loss(first, last.detach())


def regulariser(params: Params, l2: float, orthogonality: float) -> Tensor:
    """Compute R = λ₁ (‖φe‖² + ‖φr‖² + ‖φd‖²) + λ₂ ‖C_d − I‖², with C_d the correlations of the decoder's H rows.

    As in the released code, the first squares are halved and the last averaged over the H × H entries.

    Args:
        params: the networks' parameters, by name.
        l2: λ₁.
        orthogonality: λ₂.
    """
    squares = sum((p.square().sum() for name, p in params.items() if not name.endswith("_lr")), torch.tensor(0.0))
    rows = F.normalize(params["decoder"], dim=1)
    deviation = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return 0.5 * l2 * squares + orthogonality * deviation.square().mean()


def forgetting(attenuator: Attenuator | None, gradient: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Compute L2F's attenuation of this task's classifier, w̄ = γ w (L2F, Eqs. 3 and 4).

    Args:
        attenuator: the attenuator of one tensor, `weights` (N, D); None for LEO alone, which changes no weights.
        gradient: (N, D), the gradient of the support loss at the weights decoded from the first codes.
    Returns:
        A function that attenuates decoded weights, and γ (L,).
    """
    if attenuator is None:
        return lambda weights: weights, gradient.new_zeros(0)
    gamma, delta = attenuator.factors({"weights": gradient})
    factors, shifts = attenuator.spread(gamma), None if delta is None else attenuator.spread(delta)
    return lambda weights: attenuate({"weights": weights}, factors, shifts)["weights"], gamma


def adapt(params: Params, attenuator: Attenuator | None, ways: int, task: Task, noise: Noise) -> Adapted:
    """Adapt to a support set: encode, decode, then take k latent steps and f fine-tuning steps.

    The steps are z ← z − α ∇_z L^tr(w(z)), decoding after every step, and then w ← w − α′ ∇_w L^tr(w), with learned
    α (H,) and α′ (D,). These are the released code's `leo_inner_loop` and `finetuning_inner_loop`.

    With L2F, γ is computed from the gradient at the weights decoded from the first codes, the task's initialisation,
    and attenuates every later decoding, so that fine-tuning also starts from attenuated weights. L2F's authors report
    LEO + L2F but published neither equations nor code of it; this is our interpretation.

    Args:
        params: the parameters of `encode` and `decode`, with `latent_lr` (H,) and `finetuning_lr` (D,).
        attenuator: the attenuator of the classifier; None for LEO alone.
        ways: N, the number of classes.
        task: the task, of which the support (S, D) and the support targets (S,) are used.
        noise: the random numbers, whose first axes determine the numbers of steps, k and f.
    """
    support, targets = noise.support * task.support, task.support_targets
    latent_steps, steps = len(noise.weights) - 1, len(noise.support) - 1
    codes = encode(params, support[0], targets, ways)
    first = latent = sample(codes, noise.latent)
    decoded = sample(decode(params, first), noise.weights[0])
    forget, gamma = forgetting(attenuator, grad(support_loss)(decoded, support[1], targets))

    def latent_loss(latent: Tensor, step: int) -> Tensor:
        weights = sample(decode(params, latent), noise.weights[step])
        return support_loss(forget(weights), support[1 + step], targets)

    trajectory = [decoded]
    for step in range(latent_steps):
        latent = latent - params["latent_lr"] * grad(latent_loss)(latent, step)
        trajectory.append(forget(sample(decode(params, latent), noise.weights[step + 1])))
    for step in range(latent_steps, steps):
        gradient = grad(support_loss)(trajectory[-1], support[1 + step], targets)
        trajectory.append(trajectory[-1] - params["finetuning_lr"] * gradient)
    return Adapted(torch.stack(trajectory), codes, first, latent, gamma)


class Outcome(NamedTuple):
    """The terms of one task's objective, and its accuracies."""

    query_loss: Tensor
    """(), L^val of the adapted classifier."""
    accuracy: Tensor
    """(1 + k + f,), the accuracies on the query set, before adaptation and after every step."""
    kl: Tensor
    """(), the KL divergence of the first codes' distribution from the standard normal."""
    penalty: Tensor
    """(), the encoder penalty."""
    gamma: Tensor
    """(L,), L2F's attenuation; (0,) for LEO alone."""


def assess(params: Params, attenuator: Attenuator | None, ways: int, task: Task, noise: Noise) -> Outcome:
    """Adapt to the support set, and compute the terms of the objective on the query set; arguments as in `adapt`."""
    adapted = adapt(params, attenuator, ways, task, noise)
    logits = (noise.query * task.query) @ adapted.weights.transpose(1, 2)  # (1 + k + f, Q, N)
    return Outcome(
        F.cross_entropy(logits[-1], task.query_targets),
        (logits.argmax(-1) == task.query_targets).to(logits.dtype).mean(1),
        kl_to_standard_normal(adapted.codes),
        encoder_penalty(adapted.first, adapted.last),
        adapted.gamma,
    )
