"""Options that choose and read a data set of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..supervised.data.augmentation import with_mirrors
from ..supervised.data.glyphs import load_glyphs
from ..supervised.data.images import SPLITS, Omniglot, load_images
from ..supervised.episodes import Images, Split


@dataclass(frozen=True)
class ImageData:
    """Options of the data set whose images are classified."""

    data: Path | None = None
    """Your data set: a folder or zip archive in any layout that docs/supervised.md lists (miniImageNet, tieredImageNet,
    CIFAR-FS, FC100, Omniglot, or a folder per class). By default Glyphs, which needs no download (docs/glyphs.md)."""
    image_size: int | None = None
    """Resize images to so many pixels of height and width; by default as they are (Omniglot: 28)."""
    channels: Literal[1, 3] | None = None
    """Make every image grey (1) or RGB (3); by default as they are."""
    val_alphabets: tuple[str, ...] = ()
    """Omniglot: alphabets of meta-validation; by default characters are drawn."""
    test_alphabets: tuple[str, ...] = ()
    """Omniglot: alphabets of meta-test."""
    omniglot_characters: tuple[int, int, int] = (1100, 100, 423)
    """Omniglot without named alphabets: how many characters train, val and test have."""
    rotations: Literal["all", "train", "none"] = "all"
    """Omniglot: turned characters are classes of their own, in all splits (as in MAML's code), or in training alone."""
    mirror: bool = False
    """Mirrored classes are further classes to learn from; in training alone."""

    def __post_init__(self) -> None:
        if self.data is not None:  # A run must find it again, from whichever folder it is resumed or evaluated.
            object.__setattr__(self, "data", self.data.expanduser().absolute())

    def load(self) -> dict[Split, Images]:
        """The images of every split; mirrored classes are added where they are asked for."""
        splits = self._read()
        return {**splits, "train": with_mirrors(splits["train"])} if self.mirror else splits

    def _read(self) -> dict[Split, Images]:
        if self.data is None:
            asked = vars(self).items()
            changed = [name for name, value in asked if name != "mirror" and value != getattr(ImageData, name)]
            if changed:
                raise ValueError(f"{', '.join(changed)} need a data set of yours; name it with --data, or drop them")
            return load_glyphs()
        turned: dict[str, tuple[Split, ...]] = {"all": SPLITS, "train": ("train",), "none": ()}
        omniglot = Omniglot(
            self.val_alphabets, self.test_alphabets, self.omniglot_characters, rotations=turned[self.rotations]
        )
        return load_images(
            self.data,
            size=self.image_size,
            channels=self.channels,
            omniglot=None if omniglot == Omniglot() else omniglot,
        )

    @property
    def name(self) -> str:
        """The data set's name in reports."""
        return "glyphs" if self.data is None else self.data.name
