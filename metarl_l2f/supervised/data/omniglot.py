"""Omniglot: how its characters become classes and splits, and the reader of its folders."""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ...training.seeding import Stream, generator
from ..episodes import SPLITS, Split
from .files import SPLIT_NAME, File, Tree, class_folder, listed
from .pictures import Picture, on_white, pictures_of

# A character of Omniglot; but train/character01/ is a class of an image folder.
CHARACTER = re.compile(rf"(?:.*/)?(?P<alphabet>(?!{SPLIT_NAME}/)[^/]+)/(?P<character>character\d+)")
OMNIGLOT_SIZE = 28  # px, to which its 105 px are resized


@dataclass(frozen=True)
class Omniglot:
    """The classes and splits of Omniglot: whole alphabets where they are named, or else characters drawn at random.

    Raises:
        ValueError: only one of the two splits has alphabets, both name the same one, or a split has no characters.
    """

    val_alphabets: Sequence[str] = ()
    """The alphabets of meta-validation; alphabets in neither list belong to meta-training."""
    test_alphabets: Sequence[str] = ()
    """The alphabets of meta-test."""
    characters: tuple[int, int, int] = (1100, 100, 423)
    """The numbers of characters of train, val and test, which are drawn from all characters where no alphabets are
    named; (1028, 172, 423) is also usual."""
    seed: int = 0
    """The seed of that draw. It is not the run's, so that all runs are judged on the same characters."""
    rotations: tuple[Split, ...] = SPLITS
    """The splits in which characters turned by 90°, 180° and 270° are classes of their own. MAML's code turns those of
    all splits; with train alone, a test class is never a turned copy of another one."""

    def __post_init__(self) -> None:
        if bool(self.val_alphabets) != bool(self.test_alphabets):
            raise ValueError(
                f"name alphabets for both val and test or for neither, got val_alphabets={tuple(self.val_alphabets)} "
                f"and test_alphabets={tuple(self.test_alphabets)}"
            )
        if min(self.characters) < 1 or len(self.characters) != len(SPLITS):
            raise ValueError(
                f"characters must be three positive numbers, for train, val and test, got {self.characters}"
            )
        if shared := set(self.val_alphabets) & set(self.test_alphabets):
            raise ValueError(f"an alphabet belongs to one split, but val and test both name {listed(shared)}")


def read_omniglot(omniglot: Omniglot, tree: Tree, split: Split) -> list[Picture]:
    """List the pictures of a split, with bright ink on black.

    Args:
        omniglot: the splits.
        tree: the data set.
        split: the split.
    Raises:
        ValueError: the options do not fit the data set, or a character has no pictures.
    """
    folders: defaultdict[str, list[str]] = defaultdict(list)  # by character; several sets may hold parts of one
    for folder in sorted(tree.images):
        if match := CHARACTER.fullmatch(folder):
            folders[f"{match['alphabet']}/{match['character']}"].append(folder)
    pictures: list[Picture] = []
    for name in _omniglot_split(omniglot, tree.where, sorted(folders))[split]:
        pictures += pictures_of(name, _without_copies(class_folder(tree, name, *folders[name])))
    return [picture._replace(open=functools.partial(_inverted, picture.open)) for picture in pictures]


def _omniglot_split(omniglot: Omniglot, where: str, names: list[str]) -> dict[Split, list[str]]:
    """The characters of each split, called alphabet/character."""
    if not omniglot.val_alphabets:
        if sum(omniglot.characters) != len(names):
            raise ValueError(
                f"{where} has {len(names)} characters of Omniglot, which cannot be drawn as {omniglot.characters}; "
                f"name val_alphabets and test_alphabets, or give three numbers of characters that sum to {len(names)}"
            )
        drawn = [names[i] for i in generator(omniglot.seed, Stream.DATA).permutation(len(names))]
        bounds = np.cumsum([0, *omniglot.characters])
        return {split: drawn[bounds[i] : bounds[i + 1]] for i, split in enumerate(SPLITS)}
    alphabets = {name: name.partition("/")[0] for name in names}
    named = {**dict.fromkeys(omniglot.val_alphabets, "val"), **dict.fromkeys(omniglot.test_alphabets, "test")}
    if unknown := named.keys() - alphabets.values():
        raise ValueError(f"{where} has no alphabet {listed(unknown)}; it has {listed(set(alphabets.values()))}")
    return {split: [name for name in names if named.get(alphabets[name], "train") == split] for split in SPLITS}


def _without_copies(files: list[File]) -> list[File]:
    """Sort files by name, and keep one of those with equal name and content, since a set may be there twice."""
    groups: defaultdict[str, list[File]] = defaultdict(list)
    for file in files:
        groups[Path(file.where).name].append(file)
    unique: list[File] = []
    for _, group in sorted(groups.items()):
        unique += group if len(group) == 1 else {file.content(): file for file in group}.values()
    return unique


def _inverted(open_picture: Callable[[], Image.Image]) -> Image.Image:
    return ImageOps.invert(on_white(open_picture(), "L"))
