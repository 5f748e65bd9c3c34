"""Image data sets, read whole into memory: three splits without common classes.

`load_images` recognises a layout by the names of its files, in a folder or inside zip archives (which are not
unpacked), and writes nothing. Each layout is a row of LAYOUTS with a reader of its own.
"""

import contextlib
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Literal

from ...checks import check_count
from ..episodes import SPLITS, Images, Split
from .augmentation import with_rotations
from .files import Tree, listed, open_tree
from .layouts import LAYOUTS, Layout, omniglot_layout, recognised
from .omniglot import OMNIGLOT_SIZE, Omniglot
from .pictures import MAKE_ALIKE, UnlikeError, stacked
from .repeats import Repeats

__all__ = ["LAYOUTS", "SPLITS", "Omniglot", "load_images"]

logger = logging.getLogger(__name__)


def load_images(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    omniglot: Omniglot | None = None,
) -> dict[Split, Images]:
    """Read an image data set of any known layout, whole, as bytes.

    Pictures may have any format in `files.FORMATS`, whatever their names end in, and are turned as their orientation
    tags say. Of an animation the first image is read. A warning names the files that are no part of the layout.

    Args:
        path: a folder in one of LAYOUTS, a zip archive of one, or a folder that holds such archives.
        size: the height and width, in pixels, that every image is resized to (Lanczos, as in MAML's script;
            antialiased, and stretched where the image is not square). None keeps the size, but Omniglot becomes 28×28.
        channels: 1 makes every image grey and 3 makes it RGB; both put transparent images on white. None keeps images
            grey or RGB, which may not be mixed, and refuses images with transparency or a palette.
        omniglot: the splits and rotations for Omniglot; None stands for the defaults. Ink is bright on black.
    Returns:
        The three splits. Classes are in the order of their names, images in the order of their files.
    Raises:
        ValueError: the path or its layout is unknown, a split or an image is missing, splits share a class or an image,
            images cannot be read or differ in size or mode, or a pickle names anything but arrays.
    """
    if size is not None:
        check_count("size", size, unit="pixels")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey), 3 (RGB) or None (as stored), got {channels!r}")
    options = omniglot or Omniglot()
    by_character = omniglot_layout(options)
    with contextlib.ExitStack() as archives:
        everything = open_tree(Path(path), archives)
        layout, tree = recognised(everything, [*LAYOUTS, by_character])
        if layout is by_character:
            size = size or OMNIGLOT_SIZE
        elif omniglot is not None:
            raise ValueError(f"{path} is {layout.name}, which has splits of its own; omniglot=... is for Omniglot only")
        splits: dict[Split, Images] = {}
        repeats = Repeats(tree.where)
        for split in SPLITS:
            pictures = sorted(layout.read(tree, split), key=lambda picture: picture.class_name)
            repeats.add_pictures(split, pictures)
            splits[split] = stacked(pictures, size, channels, str(path))
            repeats.add_pixels(split, pictures, splits[split].pixels.numpy())
    repeats.warn()
    _warn_of_the_rest(everything, layout)
    shapes = {split: tuple(images.pixels.shape[1:]) for split, images in splits.items()}
    if len(set(shapes.values())) > 1:
        raise UnlikeError(f"{path} has splits whose images differ, (C, H, W) are {shapes}; {MAKE_ALIKE}")
    turned = options.rotations if layout is by_character else ()
    return {split: with_rotations(images) if split in turned else images for split, images in splits.items()}


def _warn_of_the_rest(tree: Tree, layout: Layout) -> None:
    """Warn of files that were not read: pictures in other formats or nested folders, further splits, stray files."""
    if rest := tree.rest():
        kinds = Counter("folder" if name.endswith("/") else Path(name).suffix or "without ending" for name in rest)
        logger.warning(
            "%s holds %d files or folders that are no part of %s (%s) and are not read (%s): %s",
            tree.where,
            len(rest),
            layout.name,
            layout.files,
            ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(5)),
            listed(rest, most=5),
        )
