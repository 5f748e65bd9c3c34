"""Embeddings of images in files of the format that LEO's authors published, and few-shot tasks drawn from them."""

import itertools
import pickle
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...training.files import write_atomically
from ..data.pickles import load_arrays
from ..episodes import SPLITS, Shape, Split, Task, check_labels, draw_rows

_ESCAPES = str.maketrans({letter: f"%{ord(letter):02X}" for letter in "%-_"})
_ESCAPED = re.compile("%(25|2D|5F)")
ACCEPTED = "a pickled dict of `keys`, n strings <image>-<class>-<file>, and `embeddings`, an array (n, D) of numbers"


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of one split of a data set, in the order of their classes.

    Raises:
        ValueError: vectors, labels and classes do not fit each other.
    """

    vectors: Tensor
    """(n, D) float32, each of length 1."""
    labels: Tensor
    """(n,) int64, ascending class numbers from 0."""
    classes: tuple[str, ...]
    """The names of the classes, all different."""
    where: str = ""
    """The source of the embeddings, for messages."""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.labels):
            raise ValueError(
                f"vectors must be (n, D) with one label per row, got {tuple(self.vectors.shape)} for "
                f"{len(self.labels)} labels"
            )
        check_labels(self.labels, self.classes)

    @property
    def counts(self) -> Tensor:
        """(classes,), the number of rows of each class."""
        return torch.bincount(self.labels)


def load_embeddings(folder: Path) -> dict[Split, Embeddings]:
    """Read the three files {train,val,test}_embeddings.pkl of a folder, in the format of LEO's published embeddings.

    Args:
        folder: the folder of the files, such as `<root>/miniImageNet/center`.
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
        folder: the folder of the file, which is made if it is missing.
        split: the split.
        vectors: (n, D), normalised or not.
        class_names: the class name of each row. LEO's own reader ends a class name at "-" and at "_", so these two, and
            "%", are written as %2D, %5F and %25; `load_embeddings` turns them back.
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
    # Hyphens are sorted like underscores, which older files have instead, so that both draw the same tasks.
    classes = sorted(set(names), key=lambda name: (name.replace("-", "_"), name))
    if len(classes) < len(set(written)):
        raise ValueError(f"{path} writes the name of a class in two ways, with and without %2D, %5F or %25; use one")
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[name] for name in names])
    order = np.argsort(labels, kind="stable")
    rows = torch.from_numpy(vectors[order].astype(np.float32))
    return Embeddings(F.normalize(rows, dim=1), torch.from_numpy(labels[order]), tuple(classes), str(path))


def _class_name(key: str, path: Path) -> str:
    """The class in a key <image>-<class>-<file>; where hyphens make it ambiguous, the file begins with <class>_."""
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
    """Draw N-way K-shot tasks of embeddings.

    Args:
        data: the split.
        shape: the numbers of classes and embeddings of a task.
        random: the source of random numbers.
        number: the number of tasks.
    Returns:
        Tasks as those of `episodes.draw_episodes`, with inputs (number, S or Q, D).
    """
    support, query = (data.vectors[rows.to(data.vectors.device)] for rows in draw_rows(data, shape, random, number))
    support_targets, query_targets = (targets.to(support.device) for targets in shape.targets(number))
    return Task(support, support_targets, query, query_targets, support.new_zeros(number, 0))
