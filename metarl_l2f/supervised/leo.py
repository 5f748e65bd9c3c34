"""LEO (Rusu et al., "Meta-Learning with Latent Embedding Optimization", ICLR 2019, arXiv 1807.05960), and LEO + L2F.

LEO classifies embeddings made once by a trained network. A task's support set is encoded into one latent code per
class; each code is decoded into that class's softmax weights; gradient steps move first the codes, through the
decoder, and then the weights themselves. Every formula was read off the authors' released code (deepmind/leo), whose
functions are named beside it; what departs from that says so.

The equations are written for one task, as functions of named parameters and of noise that the caller drew; the
experiment at the end vmaps them over tasks.

Letters: N ways, K shots, S = N·K support and Q query images, D numbers per embedding, H per latent code, k latent and
f fine-tuning steps; L entries of L2F's γ. LEO's own γ, the weight of a penalty, is called `encoder_penalty` here.
"""

import itertools
import logging
import math
import pickle
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from ..checks import check_finite, check_numbers
from ..core import L2F, Attenuation, Params, attenuate
from ..shards import Share, rows_of
from ..training.checkpoint import load_into, write_atomically
from ..training.group import Group
from ..training.seeding import Stream, generator, torch_generator
from .episodes import Shape, Split, Task, draw_rows
from .pickles import load_arrays

logger = logging.getLogger(__name__)

Method = Literal["l2f", "leo"]

SPLITS: tuple[Split, ...] = get_args(Split)

_ESCAPES = str.maketrans({letter: f"%{ord(letter):02X}" for letter in "%-_"})
_ESCAPED = re.compile("%(25|2D|5F)")
ACCEPTED = "a pickled dict of `keys`, n strings <image>-<class>-<file>, and `embeddings`, an array (n, D) of numbers"
TASKS_AT_ONCE = 100
"""Tasks that validation and evaluation hold in memory together."""

_WEIGHTS = ("lr", "l2", "orthogonality", "dropout", "kl", "encoder_penalty")
PUBLISHED: Mapping[tuple[str, int], Mapping[str, float]] = {
    case: dict(zip(_WEIGHTS, values, strict=True))
    for case, values in {
        ("miniImageNet", 1): (2.739071e-4, 3.623413e-10, 0.188103, 0.307651, 0.756143, 5.756821e-6),
        ("miniImageNet", 5): (4.102361e-4, 8.540338e-9, 1.523998e-3, 0.300299, 0.466387, 2.661608e-7),
        ("tieredImageNet", 1): (8.659053e-4, 4.148858e-10, 5.451078e-3, 0.475126, 2.034189e-3, 8.302962e-5),
        ("tieredImageNet", 5): (6.110314e-4, 1.690399e-10, 2.481216e-2, 0.415158, 1.622811, 2.672450e-5),
    }.items()
}
"""What the released code's authors found best for it, by data set and shots, as fields of `LEOSettings`."""


# Embeddings on disk, and tasks drawn from them


@dataclass(frozen=True)
class Embeddings:
    """One split of a data set, embedded: rows in the order of their classes.

    Raises:
        ValueError: vectors, labels and classes do not fit each other.
    """

    vectors: Tensor
    """(n, D) float32, each of length 1."""
    labels: Tensor
    """(n,) int64, ascending class numbers from 0."""
    classes: tuple[str, ...]
    """The classes' names, each once."""
    where: str = ""
    """Where they come from, for messages."""

    def __post_init__(self) -> None:
        counted = torch.bincount(self.labels, minlength=len(self.classes))
        fits = self.vectors.ndim == 2 and len(self.vectors) == len(self.labels) and len(counted) == len(self.classes)
        if not fits or not counted.all() or (self.labels.diff() < 0).any():
            raise ValueError(
                "vectors must be (n, D) with one label per row, labels ascending from 0, and every class must have a "
                f"row; got vectors {tuple(self.vectors.shape)}, {len(self.labels)} labels, {len(self.classes)} classes"
            )

    @property
    def counts(self) -> Tensor:
        """(classes,), rows of each class."""
        return torch.bincount(self.labels)


def load_embeddings(folder: Path) -> dict[Split, Embeddings]:
    """Read the three files {train,val,test}_embeddings.pkl of a folder, in the format of LEO's published embeddings.

    Args:
        folder: holds the files, such as `<root>/miniImageNet/center`.
    Raises:
        ValueError: a file is missing or of another format, the splits' embeddings differ in size, or share a class.
    """
    splits = {split: _read_embeddings(_path(folder, split)) for split in SPLITS}
    sizes = {split: data.vectors.shape[1] for split, data in splits.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the splits in {folder} must be embedded by one network, but their sizes differ: {sizes}")
    for one, other in itertools.combinations(splits.values(), 2):
        if shared := sorted(set(one.classes) & set(other.classes)):
            raise ValueError(
                f"{one.where} and {other.where} share the class {shared[0]!r}; the classes of a split must be new to "
                "the others"
            )
    return splits


def save_embeddings(folder: Path, split: Split, vectors: np.ndarray, class_names: Sequence[str]) -> Path:
    """Write one split's file in the format of LEO's published embeddings.

    Args:
        folder: where to; made if missing.
        split: which.
        vectors: (n, D), normalised or not.
        class_names: of each row. LEO's own reader ends a class name at "-" and at "_", so that these two, and "%",
            are written as %2D, %5F and %25; `load_embeddings` turns them back.
    Returns:
        The file's path.
    Raises:
        ValueError: vectors and names do not fit each other, or a name is empty.
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(class_names):
        raise ValueError(
            f"vectors must be (n, D), one class name per row, got {vectors.shape}, {len(class_names)} names"
        )
    if "" in class_names:
        raise ValueError(f"a class name must not be empty, but that of row {list(class_names).index('')} is")
    escaped = [name.translate(_ESCAPES) for name in class_names]
    keys = [f"{name}{row:08d}-{name}-{name}_{row:08d}.png" for row, name in enumerate(escaped)]
    path = _path(folder, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, pickle.dumps({"keys": np.array(keys), "embeddings": vectors}, protocol=4))
    return path


def _path(folder: Path, split: Split) -> Path:
    return Path(folder) / f"{split}_embeddings.pkl"


def _read_embeddings(path: Path) -> Embeddings:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; accepted is {ACCEPTED}")
    content = load_arrays(path)
    keys, vectors = (content.get(name) if isinstance(content, dict) else None for name in ("keys", "embeddings"))
    if not isinstance(keys, (list, tuple, np.ndarray)) or not isinstance(vectors, np.ndarray):
        found = f"the entries {sorted(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds {found}; accepted is {ACCEPTED}")
    if vectors.ndim != 2 or len(vectors) != len(keys) or 0 in vectors.shape or vectors.dtype.kind not in "fiu":
        found = f"{len(keys)} keys and embeddings {vectors.shape} of {vectors.dtype}"
        raise ValueError(f"{path} holds {found}; accepted is {ACCEPTED}")
    if not np.isfinite(vectors).all():
        raise ValueError(f"{path} holds embeddings that are not finite; accepted is {ACCEPTED}")
    texts = [key.decode("latin-1") if isinstance(key, bytes) else str(key) for key in keys]
    if len(set(texts)) < len(texts):
        raise ValueError(
            f"{path} holds the key {Counter(texts).most_common(1)[0][0]!r} more than once; keep one row of it"
        )
    written = [_class_name(text, path) for text in texts]
    names = [_ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), name) for name in written]
    # Hyphens sort like the underscores that older files have in their place, so that both draw the same tasks.
    classes = sorted(set(names), key=lambda name: (name.replace("-", "_"), name))
    if len(classes) < len(set(written)):
        raise ValueError(f"{path} writes the name of a class in two ways, with and without %2D, %5F or %25; use one")
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[name] for name in names])
    order = np.argsort(labels, kind="stable")
    rows = torch.from_numpy(vectors[order].astype(np.float32))
    return Embeddings(F.normalize(rows, dim=1), torch.from_numpy(labels[order]), tuple(classes), str(path))


def _class_name(key: str, path: Path) -> str:
    """The class in a key <image>-<class>-<file>; where hyphens leave a choice, the file begins with <class>_."""
    _, _, rest = key.partition("-")
    names = [rest[:i] for i, letter in enumerate(rest) if letter == "-" and i > 0]
    if not names:
        raise ValueError(f"{path} holds the key {key!r}; accepted is {ACCEPTED}")
    if len(names) > 1:
        choices, names = names, [name for name in names if rest[len(name) + 1 :].startswith(f"{name}_")]
        if len(names) != 1:
            raise ValueError(
                f"{path} holds the key {key!r}, whose class may be any of {', '.join(map(repr, names or choices))}; "
                "write hyphens inside names of classes and files as %2D"
            )
    return names[0]


def draw_tasks(data: Embeddings, shape: Shape, random: np.random.Generator, number: int) -> Task:
    """N-way K-shot tasks of embeddings; as `episodes.draw_episodes`, inputs (number, S or Q, D)."""
    support, query = (data.vectors[rows.to(data.vectors.device)] for rows in draw_rows(data, shape, random, number))
    support_targets, query_targets = (targets.to(support.device) for targets in shape.targets(number))
    return Task(support, support_targets, query, query_targets, support.new_zeros(number, 0))


# One task


class Gaussian(NamedTuple):
    """Independent normal distributions."""

    mean: Tensor
    std: Tensor


class Noise(NamedTuple):
    """All that is random about one task's adaptation; every entry may be anything that broadcasts to its shape."""

    latent: Tensor
    """(N, H), standard normal."""
    weights: Tensor
    """(k + 1, N, D), standard normal; one sample of the weights per decoding."""
    support: Tensor
    """(1 + k + f, S, D), dropout for the encoder, then for every gradient: 0, or 1 / (1 − rate) to keep."""
    query: Tensor
    """(Q, D), dropout."""


class Adapted(NamedTuple):
    """What one task's adaptation gave."""

    weights: Tensor
    """(1 + k + f, N, D): decoded from the first codes, then after every step."""
    codes: Gaussian
    """(N, H), the distribution of the first codes."""
    first: Tensor
    """(N, H), the codes z drawn from it."""
    last: Tensor
    """(N, H), the codes z′ after k steps."""
    gamma: Tensor
    """(L,), L2F's attenuation; (0,) for LEO alone."""


def sample(distribution: Gaussian, noise: Tensor) -> Tensor:
    """μ + σε: a sample if ε is standard normal, the mean if ε is 0."""
    return distribution.mean + distribution.std * noise


def gaussian(output: Tensor, unit: float = 1.0) -> Gaussian:
    """The two halves of a network's output, μ and u, with σ = unit · exp(u).

    The released code has σ = max(exp(u) − 1, 1e-10) for the codes and max(exp(u) − 1 + unit, 1e-10) for the weights:
    near the same for small u, but without a gradient once it is cut off.
    """
    mean, log_std = output.chunk(2, dim=-1)
    return Gaussian(mean, unit * log_std.exp())


def encode(params: Params, support: Tensor, targets: Tensor, ways: int) -> Gaussian:
    """The relation of every support image to every other, averaged by class.

    The released code's `encoder`, `relation_network` and `average_codes_per_class`.

    μₙᵉ, σₙᵉ = 1/(N K²) Σ_k Σ_m Σ_j g_φr(g_φe(xₙᵏ), g_φe(x_mʲ))

    Args:
        params: `encoder` (D, H) is g_φe; `relation.0` to `relation.2`, each (2H, 2H), are g_φr, ReLU between them.
        support: (S, D).
        targets: (S,), class numbers below `ways`.
        ways: N.
    Returns:
        (N, H), the distribution of one latent code per class.
    """
    codes = support @ params["encoder"]
    # Of a pair that is concatenated and multiplied by W, each half meets its own half of W.
    left, right = (codes @ half for half in params["relation.0"].chunk(2))
    hidden = (left[:, None] + right[None, :]).relu()
    # The last layer is linear: it may come after the mean over partners.
    relations = (hidden @ params["relation.1"]).relu().mean(1) @ params["relation.2"]
    members = (targets == torch.arange(ways, device=targets.device)[:, None]).to(relations.dtype)
    return gaussian(members @ relations / members.sum(1, keepdim=True))


def decode(params: Params, codes: Tensor) -> Gaussian:
    """The distribution of the classifier's weights, wₙ ~ N(μₙᵈ, diag σₙᵈ²) with μₙᵈ, σₙᵈ = g_φd(zₙ).

    The released code's `decoder`, a linear layer.

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
    """L^tr = 1/K Σ_(x,y) [−w_y·x + log Σ_j exp(w_j·x)] (the released code's `calculate_inner_loss`).

    That code sums over the images, but gives every support image a code of its own and averages the K classifiers,
    which divides each step by K; so do we, for its step sizes.

    Args:
        weights: (N, D).
        support: (S, D).
        targets: (S,).
    """
    return len(weights) * F.cross_entropy(support @ weights.T, targets)


def kl_to_standard_normal(codes: Gaussian) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½(μ² + σ² − 1) − log σ, averaged over entries.

    The released code's `kl_divergence` estimates it from one sample; this is its expectation.
    """
    mean, std = codes
    return (0.5 * (mean.square() + std.square() - 1) - std.log()).mean()


def encoder_penalty(first: Tensor, last: Tensor) -> Tensor:
    """‖stopgrad(z′) − z‖², averaged over entries (the released code's `leo_inner_loop`)."""
    return F.mse_loss(first, last.detach())


def regulariser(params: Params, l2: float, orthogonality: float) -> Tensor:
    """R = λ₁ (‖φe‖² + ‖φr‖² + ‖φd‖²) + λ₂ ‖C_d − I‖², C_d the correlations of the decoder's H rows.

    As in the released code, the first squares are halved and the last averaged over the H × H entries.
    """
    squares = sum((p.square().sum() for name, p in params.items() if not name.endswith("_lr")), torch.tensor(0.0))
    rows = F.normalize(params["decoder"], dim=1)
    deviation = rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return 0.5 * l2 * squares + orthogonality * deviation.square().mean()


def forgetting(l2f: L2F | None, gradient: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """How L2F attenuates this task's classifier, w̄ = γ w (L2F, Eqs. 3 and 4); LEO alone keeps it as it is.

    Args:
        l2f: whose network has one parameter, `weights` (N, D).
        gradient: (N, D), of the support loss at the weights decoded from the first codes.
    Returns:
        The attenuation of any decoded weights, and γ (L,).
    """
    if l2f is None:
        return lambda weights: weights, gradient.new_zeros(0)
    gamma, delta = l2f.gamma({"weights": gradient})
    factors, shifts = l2f.spread(gamma), None if delta is None else l2f.spread(delta)
    return lambda weights: attenuate({"weights": weights}, factors, shifts)["weights"], gamma


def adapt(params: Params, l2f: L2F | None, ways: int, task: Task, noise: Noise) -> Adapted:
    """Encode, decode, k latent steps, f fine-tuning steps, on the support set alone.

    z ← z − α ∇_z L^tr(w(z)), decoding after every step, and then w ← w − α′ ∇_w L^tr(w); learned α (H,), α′ (D,).
    The released code's `leo_inner_loop` and `finetuning_inner_loop`.

    With L2F, γ is read off the gradient at the weights decoded from the first codes, the task's initialisation, and
    attenuates every decoding from there on, so that fine-tuning starts from attenuated weights too. L2F's authors
    report LEO + L2F but published neither equations nor code of it: this is our reading.

    Args:
        params: as in `encode` and `decode`, with `latent_lr` (H,) and `finetuning_lr` (D,).
        l2f: attenuates the classifier; None for LEO alone.
        ways: N.
        task: its support (S, D) and support targets (S,).
        noise: its first axes say how many steps, k and f.
    """
    support, targets = noise.support * task.support, task.support_targets
    latent_steps, steps = len(noise.weights) - 1, len(noise.support) - 1
    codes = encode(params, support[0], targets, ways)
    first = latent = sample(codes, noise.latent)
    decoded = sample(decode(params, first), noise.weights[0])
    forget, gamma = forgetting(l2f, grad(support_loss)(decoded, support[1], targets))

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
    """How one task went."""

    query_loss: Tensor
    """L^val of the adapted classifier."""
    accuracy: Tensor
    """(1 + k + f,), on the query set, before adaptation and after every step."""
    kl: Tensor
    """Of the first codes' distribution from the standard normal."""
    penalty: Tensor
    """The encoder's."""
    gamma: Tensor
    """(L,), L2F's attenuation; (0,) for LEO alone."""


def assess(params: Params, l2f: L2F | None, ways: int, task: Task, noise: Noise) -> Outcome:
    """Adapt to the support set, and judge on the query set: the terms of one task's objective."""
    adapted = adapt(params, l2f, ways, task, noise)
    logits = (noise.query * task.query) @ adapted.weights.transpose(1, 2)  # (1 + k + f, Q, N)
    return Outcome(
        F.cross_entropy(logits[-1], task.query_targets),
        (logits.argmax(-1) == task.query_targets).to(logits.dtype).mean(1),
        kl_to_standard_normal(adapted.codes),
        encoder_penalty(adapted.first, adapted.last),
        adapted.gamma,
    )


# Training


@dataclass(frozen=True)
class LEOSettings:
    """Everything that changes the numbers of a LEO run; weights of losses as published for miniImageNet, 1 shot."""

    method: Method = "l2f"
    """`l2f`: LEO + L2F; or `leo`: the same code without attenuation."""
    seed: int = 1
    """Seed of everything random."""
    ways: int = 5
    """Classes N per task."""
    shots: int = 1
    """Support images K per class."""
    queries: int = 15
    """Query images per class."""
    tasks_per_batch: int = 12
    """Tasks per meta-iteration."""
    validation_tasks: int = 200
    """Tasks of every validation, always the same."""
    latent_size: int = 64
    """Numbers H in a latent code."""
    inner_steps: int = 5
    """Gradient steps k on the latent codes."""
    finetuning_steps: int = 5
    """Gradient steps f on the weights, after those."""
    latent_lr: float = 1.0
    """Where the step sizes α of the codes start, learned, one per entry of a code."""
    finetuning_lr: float = 0.001
    """Where the step sizes α′ of the weights start, learned, one per entry of an embedding."""
    kl: float = 0.756143
    """Weight β of the codes' KL divergence from the standard normal."""
    encoder_penalty: float = 5.756821e-6
    """Weight γ of the squared distance from the first codes to the last."""
    l2: float = 3.623413e-10
    """Weight λ₁ of the squared weights of encoder, relation network and decoder."""
    orthogonality: float = 0.188103
    """Weight λ₂ of the decoder's rows being correlated."""
    dropout: float = 0.307651
    """Chance of an embedding's entry to be dropped in training, anew for the encoder and every loss."""
    lr: float = 2.739071e-4
    """Step size of Adam."""
    clip: float = 0.1
    """Bound on the entries, then on the norm, of each meta-parameter's gradient."""
    attenuation: Attenuation = field(
        default_factory=lambda: Attenuation(scope="filter", embedding="standardised", initial_gamma=0.9)
    )
    """How L2F attenuates; ignored by LEO. Scope `filter` is one γ per class. At wider scopes every task has the same γ:
    cross-entropy's gradient sums to 0 over the classes, so the embedding is 0. The mean over a class's D entries is
    small: unless `standardised`, γ hardly differs from task to task."""

    def __post_init__(self) -> None:
        for name in ("ways", "shots", "queries", "tasks_per_batch", "validation_tasks", "latent_size", "inner_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.finetuning_steps < 0:
            raise ValueError(f"finetuning_steps must be 0 or more, got {self.finetuning_steps}")
        check_numbers(self, "[0, inf)", "kl", "encoder_penalty", "l2", "orthogonality")
        check_numbers(self, "(0, inf)", "latent_lr", "finetuning_lr", "lr", "clip")
        check_numbers(self, "[0, 1)", "dropout")
        if self.method not in get_args(Method):
            raise ValueError(f"method must be 'l2f' or 'leo', got {self.method!r}")
        if self.attenuation.conditioning not in ("gradient", "none"):
            raise ValueError(
                f"LEO's tasks bring no prototypes: the attenuation's conditioning must be 'gradient' or 'none', got "
                f"{self.attenuation.conditioning!r}"
            )

    @property
    def shape(self) -> Shape:
        """What an episode consists of."""
        return Shape(self.ways, self.shots, self.queries)


class LEO(nn.Module):
    """The meta-parameters: encoder, relation network and decoder, linear and without biases, step sizes, and L2F's φ.

    Args:
        size: of an embedding, D.
        settings: of the run.
    """

    def __init__(self, size: int, settings: LEOSettings) -> None:
        super().__init__()
        s, latent_size = settings, settings.latent_size
        random = torch_generator(s.seed, Stream.INIT)

        def glorot(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, columns), generator=random))

        self.encoder = glorot(size, latent_size)
        self.relation = nn.ParameterList(glorot(2 * latent_size, 2 * latent_size) for _ in range(3))
        self.decoder = glorot(latent_size, 2 * size)
        self.latent_lr = nn.Parameter(torch.full((latent_size,), s.latent_lr))
        self.finetuning_lr = nn.Parameter(torch.full((size,), s.finetuning_lr))
        # Every task decodes its own classifier: of this one, L2F needs the name and shape only.
        classifier = nn.ParameterDict({"weights": nn.Parameter(torch.zeros(s.ways, size))})
        self.l2f = L2F(classifier, s.attenuation, generator=random) if s.method == "l2f" else None
        classifier.requires_grad_(False)

    @property
    def params(self) -> Params:
        """LEO's own parameters, by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("l2f.")}


def draw_noise(settings: LEOSettings, size: int, random: np.random.Generator) -> Noise:
    """The noise of one meta-batch of embeddings of a size D, stacked over tasks."""
    s, keep = settings, 1 - settings.dropout

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(random.standard_normal((s.tasks_per_batch, *shape), dtype=np.float32))

    def mask(*shape: int) -> Tensor:
        kept = random.random((s.tasks_per_batch, *shape), dtype=np.float32) < keep
        return torch.from_numpy(kept / np.float32(keep))

    return Noise(
        normal(s.ways, s.latent_size),
        normal(s.inner_steps + 1, s.ways, size),
        mask(1 + s.inner_steps + s.finetuning_steps, s.ways * s.shots, size),
        mask(s.ways * s.queries, size),
    )


def no_noise(settings: LEOSettings) -> Noise:
    """The noise of evaluation, for every task: means instead of samples, and nothing dropped."""
    steps = settings.inner_steps + settings.finetuning_steps
    return Noise(
        torch.zeros(1, 1), torch.zeros(settings.inner_steps + 1, 1, 1), torch.ones(1 + steps, 1, 1), torch.ones(1, 1)
    )


def meta_loss(outcome: Outcome, params: Params, settings: LEOSettings) -> Tensor:
    """Mean over tasks of L^val + β KL + γ ‖stopgrad(z′) − z‖², plus R (the released code's `_build`)."""
    s = settings
    tasks = outcome.query_loss + s.kl * outcome.kl + s.encoder_penalty * outcome.penalty
    return tasks.mean() + regulariser(params, s.l2, s.orthogonality)


def clip(gradient: Tensor, bound: float) -> Tensor:
    """One meta-parameter's gradient, its entries cut at ±bound, then its norm (the code's `_clip_gradients`)."""
    cut = gradient.clamp(-bound, bound)
    return cut * (bound / cut.norm()).clamp_max(1)


class LEOExperiment:
    """Meta-trains LEO, or LEO + L2F, on the tasks of an embedded data set.

    Args:
        data: by split, as `load_embeddings` reads it.
        settings: everything that changes the numbers.
        device: where to compute.
        group: the processes that share every batch of training tasks; by default this one alone.
    Raises:
        ValueError: a split has too few classes, or too few embeddings of one.
    """

    def __init__(
        self,
        data: Mapping[Split, Embeddings],
        settings: LEOSettings | None = None,
        device: torch.device | str = "cpu",
        group: Group | None = None,
    ) -> None:
        self.settings = s = settings or LEOSettings()
        self.share = Share(s.tasks_per_batch, group)
        self.share.warn_of_idle("make tasks_per_batch larger")
        for split, embeddings in data.items():
            s.shape.check(embeddings, split)
        self.device = torch.device(device)
        self.data = {split: replace(part, vectors=part.vectors.to(device)) for split, part in data.items()}
        self.size = self.data["train"].vectors.shape[1]
        self.model = LEO(self.size, s).to(device)
        self.optimiser = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=s.lr)

    def iterate(self, iteration: int) -> dict[str, float]:
        """One step of Adam on a batch of training tasks; returns its metrics."""
        begin, s = time.perf_counter(), self.settings
        drawn = self._draw("train", generator(s.seed, Stream.TASKS, iteration), s.tasks_per_batch)
        noises = draw_noise(s, self.size, generator(s.seed, Stream.DATA, iteration))
        tasks, noise = rows_of((drawn, noises), self.share.rows)
        outcome = self._assess(tasks, Noise(*(part.to(self.device) for part in noise)), 0)
        loss = meta_loss(outcome, self.model.params, s)
        means = {
            "loss": loss.detach(),
            "loss/query": outcome.query_loss.mean(),
            "loss/kl": outcome.kl.mean(),
            "loss/encoder_penalty": outcome.penalty.mean(),
            **_by_step(outcome.accuracy),
        }
        # Before the update: a γ that is learned freely is the very parameter that the update moves.
        metrics = {tag: mean.item() for tag, mean in self.share.mean(means).items()}
        metrics |= self._gammas(self.share.gather(outcome.gamma))
        norm = self._update(loss)
        check_finite(self.model.state_dict(), iteration, "a smaller lr")
        if not math.isfinite(norm):
            logger.warning("iteration %d: the update was rejected: its gradient is not finite", iteration)
        return metrics | {"gradient_norm": norm, "time/iteration": time.perf_counter() - begin}

    def validate(self, iteration: int) -> dict[str, float]:
        """Accuracies before adaptation and after every step on the run's validation tasks, the same at every call."""
        s = self.settings
        accuracies = self._accuracies("val", generator(s.seed, Stream.VALIDATION, 0), s.validation_tasks)
        return {f"validation/{tag}": value.item() for tag, value in _by_step(accuracies).items()}

    def evaluate(self, split: Split, tasks: int, seed: int) -> np.ndarray:
        """Accuracies on tasks that training never draws, with means instead of samples, without learning.

        Args:
            split: whose classes.
            tasks: how many; the first of them are the same for any number.
            seed: of the tasks.
        Returns:
            (tasks, 1 + k + f): of the decoded classifier, after 1 … k latent steps, after 1 … f fine-tuning steps.
        Raises:
            ValueError: there are no tasks.
        """
        if tasks < 1:
            raise ValueError(f"tasks must be a positive number of tasks, got {tasks}")
        return self._accuracies(split, generator(seed, Stream.EVALUATION, 0), tasks).numpy()

    def state_dict(self) -> dict[str, Any]:
        """The meta-parameters, and Adam's state."""
        return {"model": dict(self.model.state_dict()), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            CheckpointError: the state belongs to other embeddings, settings or another method.
        """
        load_into(self.model, state.get("model", {}), "embeddings, settings or another method")
        self.optimiser.load_state_dict(state["optimiser"])

    def _draw(self, split: Split, random: np.random.Generator, number: int) -> Task:
        return draw_tasks(self.data[split], self.settings.shape, random, number)

    def _assess(self, tasks: Task, noise: Noise, noise_axis: int | None) -> Outcome:
        params, l2f, ways = self.model.params, self.model.l2f, self.settings.ways
        one = partial(assess, params, l2f, ways)
        return vmap(one, in_dims=(0, noise_axis))(tasks, noise)

    def _update(self, loss: Tensor) -> float:
        """One clipped step of Adam, unless the gradient is not finite; returns its norm before clipping."""
        self.optimiser.zero_grad()
        loss.backward()
        moved = [p for p in self.model.parameters() if p.grad is not None]
        gradients = dict(zip(moved, self.share.mean([p.grad for p in moved]), strict=True))
        norm = float(torch.cat([g.flatten() for g in gradients.values()]).norm())
        if math.isfinite(norm):
            for parameter, gradient in gradients.items():
                parameter.grad = clip(gradient, self.settings.clip)
            self.optimiser.step()
        return norm

    @torch.no_grad()
    def _accuracies(self, split: Split, random: np.random.Generator, number: int) -> Tensor:
        noise = Noise(*(part.to(self.device) for part in no_noise(self.settings)))
        parts = []
        for done in range(0, number, TASKS_AT_ONCE):
            tasks = self._draw(split, random, min(TASKS_AT_ONCE, number - done))
            parts.append(self._assess(tasks, noise, None).accuracy)
        return torch.cat(parts).cpu()

    def _gammas(self, gamma: Tensor) -> dict[str, float]:
        """Mean of γ, and its standard deviation over tasks."""
        if self.model.l2f is None:
            return {}
        entries = self.model.l2f.gammas_by_tensor(gamma)["weights"]
        spread = entries.std(0, unbiased=False).mean()
        return {"gamma/weights/mean": entries.mean().item(), "gamma/weights/std": spread.item()}


def _by_step(accuracies: Tensor) -> dict[str, Tensor]:
    """Means over tasks of accuracies (tasks, 1 + k + f)."""
    return {f"accuracy/step_{step}": mean for step, mean in enumerate(accuracies.mean(0))}
