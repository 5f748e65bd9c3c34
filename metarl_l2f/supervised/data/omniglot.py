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

# Of Omniglot; but train/character01/ is a class of an image folder.
CHARACTER = re.compile(rf"(?:.*/)?(?P<alphabet>(?!{SPLIT_NAME}/)[^/]+)/(?P<character>character\d+)")
OMNIGLOT_SIZE = 28  # pixels, that its 105 become


@dataclass(frozen=True)
class Omniglot:
    """How Omniglot's characters become classes and splits: whole alphabets where they are named, else by a draw.

    Raises:
        ValueError: only one of the two splits has alphabets, they share one, or a split has no characters.
    """

    val_alphabets: Sequence[str] = ()
    """Alphabets of meta-validation; those in neither list are meta-training's."""
    test_alphabets: Sequence[str] = ()
    """Alphabets of meta-test."""
    characters: tuple[int, int, int] = (1100, 100, 423)
    """Characters of train, val and test, drawn from all where no alphabets are named; also usual: (1028, 172, 423)."""
    seed: int = 0
    """Seed of that draw; not the run's, so that runs are judged on the same characters."""
    rotations: tuple[Split, ...] = SPLITS
    """Splits in which characters turned by 90°, 180° and 270° are classes of their own: all of them in MAML's code; in
    train alone, no character is judged beside its own upside down."""

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
    """The pictures of a split, ink bright on black."""
    folders: defaultdict[str, list[str]] = defaultdict(list)  # of each character: several sets may hold some of it
    for folder in sorted(tree.images):
        if match := CHARACTER.fullmatch(folder):
            folders[f"{match['alphabet']}/{match['character']}"].append(folder)
    pictures: list[Picture] = []
    for name in _omniglot_split(omniglot, tree.where, sorted(folders))[split]:
        pictures += pictures_of(name, _without_copies(class_folder(tree, name, *folders[name])))
    return [picture._replace(open=functools.partial(_inverted, picture.open)) for picture in pictures]


def _omniglot_split(omniglot: Omniglot, where: str, names: list[str]) -> dict[Split, list[str]]:
    """Characters, called alphabet/character, by the split they belong to."""
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
    """Files in the order of their names, those of one name and content once: a set may be there twice."""
    groups: defaultdict[str, list[File]] = defaultdict(list)
    for file in files:
        groups[Path(file.where).name].append(file)
    unique: list[File] = []
    for _, group in sorted(groups.items()):
        unique += group if len(group) == 1 else {file.content(): file for file in group}.values()
    return unique


def _inverted(open_picture: Callable[[], Image.Image]) -> Image.Image:
    return ImageOps.invert(on_white(open_picture(), "L"))
