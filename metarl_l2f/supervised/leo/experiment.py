"""A LEO run: settings, meta-parameters, and the object that iterates, validates and evaluates."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap

from ...checks import check_choices, check_count, check_counts, check_finite, check_numbers
from ...core import learner
from ...core.attenuation import Attenuation, Attenuator
from ...core.parameters import Params
from ...parallel.ranks import Group
from ...parallel.shards import Share
from ...parallel.trees import rows_of
from ...training.checkpoint import load_into
from ...training.seeding import Stream, generator, torch_generator
from ..episodes import Shape, Split, Task
from .embeddings import Embeddings, draw_tasks
from .equations import Noise, Outcome, assess, regulariser

logger = logging.getLogger(__name__)

Method = Literal["l2f", "leo"]

TASKS_AT_ONCE = 100
"""The number of tasks that validation and evaluation hold in memory together."""

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
"""The published best settings of the released code, by data set and shots, as fields of `LEOSettings`."""


@dataclass(frozen=True)
class LEOSettings:
    """All settings that change the numbers of a LEO run; the defaults are those published for miniImageNet, 1 shot.

    Raises:
        ValueError: a setting is out of range.
    """

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
    """Gradient steps f on the weights, after the latent steps."""
    latent_lr: float = 1.0
    """Initial step size α of the codes, which is learned for each entry of a code."""
    finetuning_lr: float = 0.001
    """Initial step size α′ of the weights, which is learned for each entry of an embedding."""
    kl: float = 0.756143
    """Weight β of the codes' KL divergence from the standard normal."""
    encoder_penalty: float = 5.756821e-6
    """Weight γ of the squared distance from the first codes to the last."""
    l2: float = 3.623413e-10
    """Weight λ₁ of the squared weights of encoder, relation network and decoder."""
    orthogonality: float = 0.188103
    """Weight λ₂ of the squared correlations of the decoder's rows."""
    dropout: float = 0.307651
    """Probability that an entry of an embedding is dropped in training, drawn anew for the encoder and every loss."""
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
        check_choices(self, method=Method)
        check_counts(
            self, 1, "ways", "shots", "queries", "tasks_per_batch", "validation_tasks", "latent_size", "inner_steps"
        )
        check_counts(self, 0, "finetuning_steps")
        check_numbers(self, "[0, inf)", "kl", "encoder_penalty", "l2", "orthogonality")
        check_numbers(self, "(0, inf)", "latent_lr", "finetuning_lr", "lr", "clip")
        check_numbers(self, "[0, 1)", "dropout")
        if self.attenuation.conditioning not in ("gradient", "none"):
            raise ValueError(
                f"LEO's tasks bring no prototypes: the attenuation's conditioning must be 'gradient' or 'none', got "
                f"{self.attenuation.conditioning!r}"
            )

    @property
    def shape(self) -> Shape:
        """The numbers of classes and embeddings of a task."""
        return Shape(self.ways, self.shots, self.queries)


class LEO(nn.Module):
    """The meta-parameters: encoder, relation network and decoder, linear and without biases, step sizes, and L2F's φ.

    Args:
        size: D, the length of an embedding.
        settings: the settings of the run.
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
        shapes = {"weights": torch.Size([s.ways, size])}
        self.attenuator = Attenuator(shapes, s.attenuation, generator=random) if s.method == "l2f" else None

    @property
    def params(self) -> Params:
        """LEO's own parameters, by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("attenuator.")}


def draw_noise(settings: LEOSettings, size: int, random: np.random.Generator) -> Noise:
    """Draw the noise of one meta-batch, stacked over tasks.

    Args:
        settings: the settings of the run.
        size: D, the length of an embedding.
        random: the source of random numbers.
    """
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
    """Return the noise of evaluation, the same for every task: means instead of samples, and no dropout."""
    steps = settings.inner_steps + settings.finetuning_steps
    return Noise(
        torch.zeros(1, 1), torch.zeros(settings.inner_steps + 1, 1, 1), torch.ones(1 + steps, 1, 1), torch.ones(1, 1)
    )


def meta_loss(outcome: Outcome, params: Params, settings: LEOSettings) -> Tensor:
    """Compute the mean over tasks of L^val + β KL + γ ‖stopgrad(z′) − z‖², plus R (the released code's `_build`)."""
    s = settings
    tasks = outcome.query_loss + s.kl * outcome.kl + s.encoder_penalty * outcome.penalty
    return tasks.mean() + regulariser(params, s.l2, s.orthogonality)


def clip(gradient: Tensor, bound: float) -> Tensor:
    """Clip one meta-parameter's gradient: its entries at ±bound, then its norm (the code's `_clip_gradients`)."""
    cut = gradient.clamp(-bound, bound)
    return cut * (bound / cut.norm()).clamp_max(1)


def renamed_since_0_1(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a `LEO` from a checkpoint of version 0.1, which kept φ in a learner of its own, `l2f`.

    Args:
        state: the state of this version or of 0.1; that of this version is returned as it is.
    """
    gone = ("l2f.network.weights", "l2f.step_sizes")
    kept = {name.removeprefix("l2f."): value for name, value in state.items() if name not in gone}
    return learner.renamed_since_0_1(kept)


class LEOExperiment:
    """Meta-trains LEO, or LEO + L2F, on the tasks of an embedded data set.

    Args:
        data: the embeddings of each split, as `load_embeddings` reads them.
        settings: the settings; None stands for the defaults.
        group: the processes that share every batch of training tasks; None stands for this one alone.
    Raises:
        ValueError: a split has too few classes, or too few embeddings of one.
    """

    def __init__(
        self,
        data: Mapping[Split, Embeddings],
        settings: LEOSettings | None = None,
        group: Group | None = None,
    ) -> None:
        self.settings = s = settings or LEOSettings()
        self.share = Share(s.tasks_per_batch, group)
        self.share.warn_of_idle("make tasks_per_batch larger")
        for split, embeddings in data.items():
            s.shape.check(embeddings, split)
        self.data = dict(data)
        self.size = self.data["train"].vectors.shape[1]
        self.model = LEO(self.size, s)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=s.lr)

    def iterate(self, iteration: int) -> dict[str, float]:
        """Take one step of Adam on a batch of training tasks, and return its metrics."""
        begin, s = time.perf_counter(), self.settings
        drawn = self._draw("train", generator(s.seed, Stream.TASKS, iteration), s.tasks_per_batch)
        noises = draw_noise(s, self.size, generator(s.seed, Stream.DATA, iteration))
        tasks, noise = rows_of((drawn, noises), self.share.rows)
        outcome = self._assess(tasks, noise, 0)
        loss = meta_loss(outcome, self.model.params, s)
        means = {
            "loss": loss.detach(),
            "loss/query": outcome.query_loss.mean(),
            "loss/kl": outcome.kl.mean(),
            "loss/encoder_penalty": outcome.penalty.mean(),
            **_by_step(outcome.accuracy),
        }
        # Before the update: a free γ is itself a parameter that the update moves.
        metrics = {tag: mean.item() for tag, mean in self.share.mean(means).items()}
        metrics |= self._gammas(self.share.gather(outcome.gamma))
        norm = self._update(loss)
        check_finite(self.model.state_dict(), iteration, "a smaller lr")
        if not math.isfinite(norm):
            logger.warning("iteration %d: the update was rejected: its gradient is not finite", iteration)
        return metrics | {"gradient_norm": norm, "time/iteration": time.perf_counter() - begin}

    def validate(self, iteration: int) -> dict[str, float]:
        """Compute accuracies before adaptation and after every step on the run's validation tasks, which are fixed."""
        s = self.settings
        accuracies = self._accuracies("val", generator(s.seed, Stream.VALIDATION, 0), s.validation_tasks)
        return {f"validation/{tag}": value.item() for tag, value in _by_step(accuracies).items()}

    def evaluate(self, split: Split, tasks: int, seed: int) -> np.ndarray:
        """Compute accuracies on tasks that training does not draw, with means instead of samples.

        Args:
            split: the split of the tasks' classes.
            tasks: the number of tasks; the first tasks are the same for any number.
            seed: the seed of the tasks.
        Returns:
            (tasks, 1 + k + f), the accuracies of the decoded classifier, after 1 … k latent steps, and after 1 … f
            fine-tuning steps.
        Raises:
            ValueError: the number of tasks is not positive.
        """
        check_count("tasks", tasks)
        return self._accuracies(split, generator(seed, Stream.EVALUATION, 0), tasks).numpy()

    def state_dict(self) -> dict[str, Any]:
        """Return the meta-parameters and Adam's state."""
        return {"model": dict(self.model.state_dict()), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            CheckpointError: the state belongs to other embeddings, settings or another method.
        """
        load_into(self.model, renamed_since_0_1(state.get("model", {})), "embeddings, settings or another method")
        self.optimiser.load_state_dict(state["optimiser"])

    def close(self) -> None:
        """Do nothing; an experiment of LEO holds no resources."""

    def _draw(self, split: Split, random: np.random.Generator, number: int) -> Task:
        return draw_tasks(self.data[split], self.settings.shape, random, number)

    def _assess(self, tasks: Task, noise: Noise, noise_axis: int | None) -> Outcome:
        params, attenuator, ways = self.model.params, self.model.attenuator, self.settings.ways
        one = partial(assess, params, attenuator, ways)
        return vmap(one, in_dims=(0, noise_axis))(tasks, noise)

    def _update(self, loss: Tensor) -> float:
        """Take one clipped step of Adam, unless the gradient is not finite; return its norm before clipping."""
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
        noise, parts = no_noise(self.settings), []
        for done in range(0, number, TASKS_AT_ONCE):
            tasks = self._draw(split, random, min(TASKS_AT_ONCE, number - done))
            parts.append(self._assess(tasks, noise, None).accuracy)
        return torch.cat(parts)

    def _gammas(self, gamma: Tensor) -> dict[str, float]:
        """The mean of γ, and its standard deviation over tasks."""
        if self.model.attenuator is None:
            return {}
        entries = self.model.attenuator.by_tensor(gamma)["weights"]
        spread = entries.std(0, unbiased=False).mean()
        return {"gamma/weights/mean": entries.mean().item(), "gamma/weights/std": spread.item()}


def _by_step(accuracies: Tensor) -> dict[str, Tensor]:
    """Means over tasks of accuracies (tasks, 1 + k + f)."""
    return {f"accuracy/step_{step}": mean for step, mean in enumerate(accuracies.mean(0))}
