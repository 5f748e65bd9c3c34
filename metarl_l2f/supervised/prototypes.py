"""Prototypical networks (Snell et al. 2017): classify by the distance to each class's mean embedding.

Here they give L2F another task embedding (Table 5): γ is computed from the mean of a task's class prototypes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_count, check_counts, check_finite, check_numbers
from ..core.parameters import Params
from ..training.checkpoint import load_into
from ..training.seeding import Stream, generator, torch_generator
from .classification import Classifier, ImageNetwork
from .episodes import Images, Shape, Split, Task, draw_episodes


@dataclass(frozen=True)
class PrototypeSettings:
    """All settings that change the numbers of a prototypical network's training.

    Raises:
        ValueError: a setting is out of range.
    """

    seed: int = 1
    """Seed of everything random."""
    ways: int = 20
    """Classes per training episode; more than in later tasks, as its paper advises."""
    shots: int = 1
    """Support images per class."""
    queries: int = 5
    """Query images per class."""
    classifier: Classifier = field(default_factory=Classifier)
    """The network, whose features are the embedding; its head is not used."""
    lr: float = 1e-3
    """Adam's step size."""
    validation_ways: int = 5
    """Classes per episode of validation and evaluation."""
    validation_tasks: int = 100
    """Episodes of every validation, the same each time."""

    def __post_init__(self) -> None:
        check_numbers(self, "(0, inf)", "lr")
        check_counts(self, 1, "validation_tasks")


def class_prototypes(vectors: Tensor, ways: int) -> Tensor:
    """Compute c_k, the mean of class k's support embeddings (Snell et al., Eq. 1).

    Args:
        vectors: (N·K, E), class by class.
        ways: N, the number of classes.
    Returns:
        (N, E).
    """
    return vectors.unflatten(0, (ways, -1)).mean(1)


def distance_logits(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Compute −‖f(x) − c_k‖², whose softmax is p(y = k | x) (Snell et al., Eq. 2).

    Args:
        queries: (Q, E).
        prototypes: (N, E).
    Returns:
        (Q, N).
    """
    return -torch.cdist(queries, prototypes, compute_mode="donot_use_mm_for_euclid_dist").square()


class PrototypicalNetwork:
    """An experiment for `training.loop.train` that learns an embedding by the prototypical loss.

    Args:
        data: the images of each split.
        settings: the settings; None stands for the defaults.
    Raises:
        ValueError: a split has too few classes, or too few images of one.
    """

    def __init__(self, data: dict[Split, Images], settings: PrototypeSettings | None = None) -> None:
        self.data, self.settings = data, settings or PrototypeSettings()
        chosen = self.settings
        self.shapes: dict[Split, Shape] = {
            "train": Shape(chosen.ways, chosen.shots, chosen.queries),
            "val": Shape(chosen.validation_ways, chosen.shots, chosen.queries),
            "test": Shape(chosen.validation_ways, chosen.shots, chosen.queries),
        }
        for split in ("train", "val"):
            self.check(split)
        random = torch_generator(chosen.seed, Stream.INIT)
        self.network: ImageNetwork = chosen.classifier.build(data["train"].shape, 1, 0, random)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=chosen.lr)

    def check(self, split: Split) -> None:
        """Refuse a split that is too small for its episodes.

        Args:
            split: the split.
        Raises:
            ValueError: there are too few classes, or too few images of one.
        """
        self.shapes[split].check(self.data[split], split)

    def iterate(self, iteration: int) -> dict[str, float]:
        """Take one step of Adam on one episode, and return its metrics."""
        task = self._draw("train", generator(self.settings.seed, Stream.TASKS, iteration), 1)
        loss, accuracy = self._episode(Task(*(values[0] for values in task)), self.shapes["train"].ways)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        check_finite(self.network.state_dict(), iteration, "a smaller lr")
        return {"loss": float(loss.detach()), "accuracy/step_0": float(accuracy)}

    def validate(self, iteration: int) -> dict[str, float]:
        """Compute the accuracy on fixed validation episodes."""
        random = generator(self.settings.seed, Stream.VALIDATION, 0)
        accuracies = self._accuracies("val", random, self.settings.validation_tasks)
        return {"validation/accuracy/step_0": float(accuracies.mean())}

    def evaluate(self, split: Split, tasks: int, seed: int) -> np.ndarray:
        """Compute accuracies of the nearest prototype on episodes that training does not draw, with validation_ways.

        Args:
            split: the split of the episodes' classes.
            tasks: the number of episodes; the first episodes are the same for any number.
            seed: the seed of the episodes.
        Returns:
            (tasks, 1); there are no inner steps.
        Raises:
            ValueError: the split has too few classes or images, or the number of episodes is not positive.
        """
        check_count("tasks", tasks)
        self.check(split)
        return self._accuracies(split, generator(seed, Stream.EVALUATION, 0), tasks)[:, None].double().numpy()

    @torch.no_grad()
    def _accuracies(self, split: Split, random: np.random.Generator, number: int) -> Tensor:
        """The accuracies of episodes, each drawn when it is judged: (number,)."""
        ways, accuracies = self.shapes[split].ways, []
        for _ in range(number):
            task = self._draw(split, random, 1)
            accuracies.append(self._episode(Task(*(values[0] for values in task)), ways)[1])
        return torch.stack(accuracies)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Map images (n, C, H, W) in [0, 1] to embeddings (n, E)."""
        return self.network.features(self._params, images)

    @property
    def embedding_size(self) -> int:
        """E, the length of an embedding."""
        return self.network.feature_size

    def state_dict(self) -> dict[str, Any]:
        """Return the network's parameters and the optimiser's moments."""
        return {"network": dict(self.network.state_dict()), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            CheckpointError: the state belongs to another network.
        """
        load_into(self.network, state.get("network", {}), "network")
        self.optimiser.load_state_dict(state["optimiser"])

    def close(self) -> None:
        """Do nothing; this experiment holds no resources."""

    @property
    def _params(self) -> Params:
        return dict(self.network.named_parameters())

    def _draw(self, split: Split, random: Any, number: int) -> Task:
        return draw_episodes(self.data[split], self.shapes[split], random, number)

    def _episode(self, task: Task, ways: int) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of one episode; support and query images are normalised together."""
        vectors = self.network.features(self._params, torch.cat([task.support, task.query]))
        support, query = vectors.split([len(task.support), len(task.query)])
        logits = distance_logits(query, class_prototypes(support, ways))
        loss = F.cross_entropy(logits, task.query_targets)
        return loss, (logits.detach().argmax(-1) == task.query_targets).float().mean()
