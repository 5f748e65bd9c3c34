"""Image data sets as they lie on disk, read whole into memory: three splits of classes that do not overlap.

`load_images` recognises a layout by the names of the files, in a folder or inside zip archives (which are not
unpacked), and writes nothing. Each layout is a row of LAYOUTS with a reader of its own.
"""

import contextlib
import os
from pathlib import Path
from typing import Literal

from .augmentation import with_rotations
from .episodes import SPLITS, Images, Split
from .files import open_tree
from .layouts import LAYOUTS, omniglot_layout, recognised
from .omniglot import OMNIGLOT_SIZE, Omniglot
from .pictures import MAKE_ALIKE, check_overlap, stacked

__all__ = ["LAYOUTS", "SPLITS", "Omniglot", "load_images"]


def load_images(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    omniglot: Omniglot | None = None,
) -> dict[Split, Images]:
    """Read an image data set of any known layout, whole, as bytes.

    Pictures are of any format in `files.FORMATS`, whatever their names end in; each stands as its orientation tag says.
    Of an animation the first image is read.

    Args:
        path: a folder in one of LAYOUTS, a zip archive of one, or a folder that holds such archives.
        size: height and width in pixels that every image is resized to (Lanczos, as in MAML's script; antialiased, and
            stretched where it was not square). None keeps them as they are, but Omniglot's become 28×28.
        channels: 1 makes every image grey, 3 makes it RGB, and both lay transparent images on white; None keeps grey
            grey and RGB RGB, which may not be mixed, and refuses images with transparency or a palette.
        omniglot: splits and rotations for Omniglot, the defaults if None; ink is bright on black.

    Returns:
        The three splits. Classes are in the order of their names, images in that of their files.

    Raises:
        ValueError: there is no such path or layout, a split or an image is missing, splits share a class or an image,
            images cannot be read or differ in size or mode, or a pickle asks for anything but arrays.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be a positive number of pixels or None, got {size}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey), 3 (RGB) or None (as stored), got {channels!r}")
    options = omniglot or Omniglot()
    by_character = omniglot_layout(options)
    with contextlib.ExitStack() as archives:
        layout, tree = recognised(open_tree(Path(path), archives), [*LAYOUTS, by_character])
        if layout is by_character:
            size = size or OMNIGLOT_SIZE
        elif omniglot is not None:
            raise ValueError(f"{path} is {layout.name}, which has splits of its own; omniglot=... is for Omniglot only")
        splits: dict[Split, Images] = {}
        origin: dict[str, str] = {}
        for split in SPLITS:
            pictures = sorted(layout.read(tree, split), key=lambda picture: picture.class_name)
            check_overlap(tree, split, pictures, origin)
            splits[split] = stacked(pictures, size, channels, str(path))
    shapes = {split: tuple(images.pixels.shape[1:]) for split, images in splits.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{path} has splits whose images differ, (C, H, W) are {shapes}; {MAKE_ALIKE}")
    turned = options.rotations if layout is by_character else ()
    return {split: with_rotations(images) if split in turned else images for split, images in splits.items()}
