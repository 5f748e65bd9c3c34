"""Classes and pictures that occur more than once in a data set: refused, or named in a warning."""

import hashlib
import logging
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..episodes import Split
from .files import listed
from .pictures import Picture

logger = logging.getLogger(__name__)


@dataclass
class Repeats:
    """The classes and pictures that were found so far, split after split."""

    where: str
    """The path of the data set, for messages."""
    splits: dict[str, Split] = field(default_factory=dict)
    """The split of each class."""
    spellings: dict[str, str] = field(default_factory=dict)
    """The classes, by their names in lower case and with accents composed."""
    places: dict[str, str] = field(default_factory=dict)
    """The class and split of each file or row of an array."""
    contents: dict[bytes, tuple[Split, str, str]] = field(default_factory=dict)
    """The split, class and place of each picture, by a digest of its pixels."""
    alike: list[str] = field(default_factory=list)
    """Pairs of classes whose names differ only in capitals or in the encoding of accents."""
    copies: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Pairs of equal pictures: "twice in a class", "in two classes" or "in two splits"."""

    def add_pictures(self, split: Split, pictures: Sequence[Picture]) -> None:
        """Record the classes and files of a split.

        Args:
            split: the split.
            pictures: its pictures.
        Raises:
            ValueError: there are no pictures, another split has one of the classes, or a file occurred before.
        """
        if not pictures:
            raise ValueError(f"the split {split!r} of {self.where} has no images; every split needs some")
        for class_name in sorted({picture.class_name for picture in pictures}):
            if (other := self.splits.setdefault(class_name, split)) != split:
                raise ValueError(
                    f"the splits {other!r} and {split!r} of {self.where} share the class {class_name!r}; the classes "
                    "of a split must be new to the others, under names or numbers that count through all splits"
                )
            spelling = unicodedata.normalize("NFC", class_name).casefold()
            if (twin := self.spellings.setdefault(spelling, class_name)) != class_name:
                self.alike.append(f"{twin!r} ({self.splits[twin]}) and {class_name!r} ({split})")
        for picture in pictures:
            here = f"{picture.class_name} ({split})"  # an object of its own, so that a second time differs
            if (before := self.places.setdefault(picture.where, here)) is not here:
                raise ValueError(
                    f"the image {picture.where} stands in {before} and again in {here}; it may be of one class, once"
                )

    def add_pixels(self, split: Split, pictures: Sequence[Picture], pixels: np.ndarray) -> None:
        """Record the pixels of a split's pictures, as they were read.

        Args:
            split: the split.
            pictures: its n pictures.
            pixels: (n, C, H, W).
        """
        for picture, image in zip(pictures, pixels, strict=True):
            here = (split, picture.class_name, picture.where)
            before = self.contents.setdefault(hashlib.blake2b(image, digest_size=16).digest(), here)
            if before is not here:
                same_class = "twice in a class" if before[1] == picture.class_name else "in two classes"
                kind = same_class if before[0] == split else "in two splits"
                self.copies[kind].append(f"{before[2]} = {picture.where}")

    def warn(self) -> None:
        """Warn of possible mistakes: names that look alike, and pictures that are equal in every pixel."""
        if self.alike:
            logger.warning("%s has classes whose names look alike: %s", self.where, listed(self.alike, most=3))
        if self.copies:
            logger.warning(
                "%s has pictures more than once, equal in every pixel as they are read: %s",
                self.where,
                "; ".join(f"{len(pairs)} {kind} ({listed(pairs, most=2)})" for kind, pairs in self.copies.items()),
            )
