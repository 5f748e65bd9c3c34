"""The layouts of image data sets on disk: each is recognised by the names of its files, and has a reader."""

import csv
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..episodes import SPLITS, Split
from .files import IMAGE, SPLIT_NAME, SPLIT_NAMES, WRAPPERS, File, Tree, class_folder, entries, listed
from .omniglot import CHARACTER, Omniglot, read_omniglot
from .pickles import read_arrays
from .pictures import Picture, image_file, pictures_of

# Arrays and texts


def read_text(file: File) -> list[str]:
    """Read the lines of a text file that are not blank."""
    try:
        return [line for line in file.content().decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.where} is not a text file: {error}") from error


def read_file(file: File) -> Any:
    """Read the arrays of an .npz file, as a dictionary, or the content of a pickle; neither runs code.

    Raises:
        ValueError: the file is damaged, or holds anything but plain arrays.
    """
    with file.opened() as stream:
        if file.where.endswith(".npz"):
            try:
                with np.load(stream, allow_pickle=False) as arrays:
                    return dict(arrays)
            except Exception as error:  # a damaged archive can fail anywhere in the reader
                raise ValueError(f"{file.where} is not a whole npz of plain arrays: {error}") from error
        return read_arrays(stream, file.where)


def entry(file: File, arrays: Any, *names: str) -> Any:
    """Return the first of several entries that a file's dictionary has.

    Args:
        file: the file, for the error.
        arrays: its content.
        names: the possible names of the entry, tried in order.
    Raises:
        ValueError: the content is no dictionary, or has none of the entries.
    """
    if isinstance(arrays, dict):
        for name in names:
            if name in arrays:
                return arrays[name]
    found = listed(map(str, arrays)) if isinstance(arrays, dict) else f"a {type(arrays).__name__}"
    raise ValueError(f"{file.where} must be a dictionary with {' or '.join(map(repr, names))}, found {found}")


def _array(file: File, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{file.where} must hold images of one size and a list of labels, got {error}") from error


def _pixels(file: File, pixels: Any) -> np.ndarray:
    """(n, H, W, 3) or (n, H, W) bytes."""
    pixels = _array(file, pixels)
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)):
        raise ValueError(
            f"{file.where} must hold images as bytes (n, H, W, 3), (n, H, W, 1) or (n, H, W), got {pixels.dtype} "
            f"{pixels.shape}; convert them to that"
        )
    return pixels


def _array_pictures(file: File, pixels: np.ndarray, class_names: Sequence[str]) -> list[Picture]:
    _check_lengths(file, len(pixels), len(class_names))
    return [
        Picture(name, f"{file.where}, image {i}", functools.partial(Image.fromarray, pixels[i]))
        for i, name in enumerate(class_names)
    ]


def _numbers(file: File, labels: Any) -> list[int]:
    labels = _array(file, labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{file.where} must hold labels (n,), whole numbers, got {labels.dtype} {labels.shape}")
    return labels.tolist()


def _check_lengths(file: File, images: int, labels: int) -> None:
    if images != labels:
        raise ValueError(f"{file.where} has {images} images for {labels} labels; each image has one label")


# Layouts: how each is read, and recognised


def _read_folder(tree: Tree, split: Split) -> list[Picture]:
    for root in SPLIT_NAMES[split]:
        if classes := sorted(
            folder.removeprefix(f"{root}/") for folder in tree.images if re.fullmatch(f"{root}/[^/]+", folder)
        ):
            return [p for name in classes for p in pictures_of(name, class_folder(tree, name, f"{root}/{name}"))]
    raise ValueError(f"{tree.where} has no {split}/<class>/, found {entries(tree)}; add the split {split!r}")


def _read_csv(tree: Tree, split: Split) -> list[Picture]:
    table = tree.split_file(split, "{}.csv", "split/{}.csv")
    pictures: list[Picture] = []
    for line, row in enumerate(csv.DictReader(read_text(table), skipinitialspace=True), 2):
        filename, label = ((row.get(column) or "").strip() for column in ("filename", "label"))
        if not filename or not label:
            raise ValueError(f"line {line} of {table.where} must have a filename and a label, got {row}")
        if (file := tree.files.get(f"images/{filename}")) is None:
            raise ValueError(f"line {line} of {table.where}: there is no {tree.where}/images/{filename}; add it")
        pictures += pictures_of(label, [file])
    return pictures


def _read_cache(tree: Tree, split: Split) -> list[Picture]:
    file = tree.split_file(split, "mini-imagenet-cache-{}.pkl")
    arrays = read_file(file)
    pixels, classes = _pixels(file, entry(file, arrays, "image_data")), entry(file, arrays, "class_dict")
    if not isinstance(classes, dict):
        raise ValueError(f"class_dict of {file.where} must be a dictionary, got a {type(classes).__name__}")
    names = [""] * len(pixels)
    for name, indices in classes.items():
        if np.size(indices) == 0:
            raise ValueError(f"the class {name!r} is empty: class_dict of {file.where} gives it no images; remove it")
        for i in _numbers(file, indices):
            if not 0 <= i < len(names) or names[i]:
                raise ValueError(
                    f"class_dict of {file.where} must give each of its {len(names)} images to one class, but gives "
                    f"image {i} to {name!r} {'too' if 0 <= i < len(names) else 'though there is none'}"
                )
            names[i] = str(name)
    if len(set(names) - {""}) < len(classes):
        raise ValueError(f"class_dict of {file.where} has two names that are one as text: {listed(map(repr, classes))}")
    if "" in names:
        raise ValueError(f"class_dict of {file.where} must give each image to a class, but not image {names.index('')}")
    return _array_pictures(file, pixels, names)


def _read_labelled(patterns: Mapping[Split, tuple[str, ...]], tree: Tree, split: Split) -> list[Picture]:
    file = tree.split_file(split, *patterns[split])
    arrays = read_file(file)
    labels = _numbers(file, entry(file, arrays, "labels", "targets"))
    pixels = _pixels(file, entry(file, arrays, "data", "images", "features"))
    return _array_pictures(file, pixels, [str(label) for label in labels])


def _read_tiered(tree: Tree, split: Split) -> list[Picture]:
    names = _tiered_names(tree.split_file(split, "{}_labels.pkl"), split)
    file = tree.split_file(split, "{}_images.npz", "{}_images_png.pkl")
    arrays = read_file(file)
    if file.where.endswith(".npz"):
        # OpenCV's order is blue, green, red; into the PNGs of the other file it wrote red, green, blue itself.
        return _array_pictures(file, _pixels(file, entry(file, arrays, "images"))[..., ::-1], names)
    if not isinstance(arrays, list | np.ndarray):
        raise ValueError(f"{file.where} must be a list of PNG files as bytes, got a {type(arrays).__name__}")
    _check_lengths(file, len(arrays), len(names))
    return [
        Picture(name, f"{file.where}, image {i}", functools.partial(image_file, functools.partial(_encoded, entry)))
        for i, (name, entry) in enumerate(zip(names, arrays, strict=True))
    ]


def _tiered_names(file: File, split: Split) -> list[str]:
    """The name of each image's class; numbers would not do, for they start from 0 in every split."""
    arrays = read_file(file)
    labels = _numbers(file, entry(file, arrays, "label_specific"))
    if "label_specific_str" not in arrays:
        return [f"{split} {label}" for label in labels]
    names = [str(name) for name in np.atleast_1d(arrays["label_specific_str"])]
    if len(set(names)) < len(names) or not set(labels) <= set(range(len(names))):
        raise ValueError(
            f"label_specific_str of {file.where} must give each label a name of its own, got {len(set(names))} "
            f"different names for the labels {listed(set(labels))}"
        )
    return [names[label] for label in labels]


def _encoded(entry: Any) -> bytes:
    match entry:
        case bytes():
            return entry
        case str():  # a byte string of Python 2
            return entry.encode("latin-1")
        case np.ndarray() if entry.dtype == np.uint8:
            return entry.tobytes()
    raise ValueError(f"it must be a PNG file as bytes, got a {type(entry).__name__}")


def _read_cifar_fs(tree: Tree, split: Split) -> list[Picture]:
    names = [line.strip() for line in read_text(tree.split_file(split, "splits/bertinetto/{}.txt"))]
    inside = "data/" if "data" in tree.folders or any(name.startswith("data/") for name in tree.files) else ""
    return [picture for name in names for picture in pictures_of(name, class_folder(tree, name, inside + name))]


@dataclass(frozen=True)
class Layout:
    """A way to arrange a data set on disk."""

    name: str
    """The name of the data set."""
    files: str
    """The files that it consists of, for messages."""
    mark: str
    """A pattern that the names of some of its files match, and that no file of another layout matches."""
    read: Callable[[Tree, Split], list[Picture]]
    """Lists the pictures of a split."""


LAYOUTS = (
    Layout(
        "an image folder",
        "{train,val,test}/<class>/*.png or another format",
        rf"{SPLIT_NAME}/[^/]+/[^/]+{IMAGE.pattern}",
        _read_folder,
    ),
    Layout(
        "miniImageNet",
        "{train,val,test}.csv (filename,label), there or in split/, and images/",
        rf"(split/)?{SPLIT_NAME}\.csv",
        _read_csv,
    ),
    Layout(
        "miniImageNet",
        "mini-imagenet-cache-{train,val,test}.pkl",
        rf"mini-imagenet-cache-{SPLIT_NAME}\.pkl",
        _read_cache,
    ),
    Layout(
        "miniImageNet",
        "miniImageNet_category_split_{train_phase_train,val,test}.pickle",
        rf"miniImageNet_category_split_(train_phase_train|{SPLIT_NAME})\.pickle",
        functools.partial(
            _read_labelled,
            dict.fromkeys(SPLITS, ("miniImageNet_category_split_{}.pickle",))
            | {"train": ("miniImageNet_category_split_{}_phase_train.pickle",)},
        ),
    ),
    Layout(
        "tieredImageNet",
        "{train,val,test}_images.npz or _images_png.pkl, and {train,val,test}_labels.pkl",
        rf"{SPLIT_NAME}_(images\.npz|images_png\.pkl|labels\.pkl)",
        _read_tiered,
    ),
    Layout(
        "CIFAR-FS",
        "<class>/*.png or data/<class>/*.png, and splits/bertinetto/{train,val,test}.txt",
        rf"splits/bertinetto/{SPLIT_NAME}\.txt",
        _read_cifar_fs,
    ),
    Layout(
        "CIFAR-FS",
        "CIFAR_FS_{train,val,test}.pickle",
        rf"CIFAR_FS_{SPLIT_NAME}\.pickle",
        functools.partial(_read_labelled, dict.fromkeys(SPLITS, ("CIFAR_FS_{}.pickle",))),
    ),
    Layout(
        "FC100",
        "FC100_{train,val,test}.pickle or .npz",
        rf"FC100_{SPLIT_NAME}\.(pickle|npz)",
        functools.partial(_read_labelled, dict.fromkeys(SPLITS, ("FC100_{}.pickle", "FC100_{}.npz"))),
    ),
)
"""All layouts but Omniglot's, whose reader depends on its options."""


INTO_FOLDERS = "write their pictures to {train,val,test}/<class>/"
KNOWN_ELSEWHERE = (
    (r"\.(tar(\.\w+)?|tgz|tbz2?|txz|7z|rar)", "an archive that is no zip archive", "unpack it and give the folder"),
    (r"_embeddings\.pkl", "embeddings for LEO", "give them to launchers/leo.py"),
    (r"\.(hdf5|h5)", "HDF5 files, as torchmeta makes them", INTO_FOLDERS),
    (r"(\.tfrecords?|/dataset_spec\.json)", "Meta-Dataset's records", INTO_FOLDERS),
    (
        r"/image_class_labels\.txt",
        "CUB-200-2011, which has no splits of its classes",
        "sort the folders inside images/ into train/, val/ and test/, or list pictures in {train,val,test}.csv",
    ),
    (r"/(base|novel)\.json", "lists of pictures by their paths on the machine that made them", INTO_FOLDERS),
    (
        r"/cifar-100-(python/(train|test)|binary/(train|test)\.bin)",
        "CIFAR-100, whose splits have the same classes",
        "take CIFAR-FS or FC100, which are made of it",
    ),
    (r"\.(npy|npz|mat|pt|pth|parquet|arrow|lmdb|mdb|pkl|pickle)", "arrays of no known layout", INTO_FOLDERS),
    (
        rf"/[^/]+/[^/]+{IMAGE.pattern}",
        "folders of pictures without splits",
        "sort the folders of the classes into train/, val/ and test/",
    ),
)
"""Files that are recognised but not read: a pattern for the end of their names, a description, and advice."""


def omniglot_layout(omniglot: Omniglot) -> Layout:
    """Build Omniglot's layout, with the splits that these options define."""
    return Layout(
        "Omniglot",
        "<alphabet>/character<number>/*.png, in one or several folders or archives",
        rf"{CHARACTER.pattern}/[^/]+{IMAGE.pattern}",
        functools.partial(read_omniglot, omniglot),
    )


def recognised(tree: Tree, layouts: Sequence[Layout]) -> tuple[Layout, Tree]:
    """Find the layout of a tree.

    Args:
        tree: the files.
        layouts: the known layouts.
    Returns:
        The layout, and the tree below the folder where it begins.
    Raises:
        ValueError: no layout, or more than one, was found.
    """
    found: list[tuple[Layout, str]] = []
    for layout in layouts:
        pattern = re.compile(rf"(?P<root>(?:[^/]+/){{0,{WRAPPERS}}}?){layout.mark}")
        matches = (pattern.fullmatch(name) for name in tree.files)
        found += [(layout, root) for root in sorted({match["root"] for match in matches if match})]
    if not found:
        known = "\n".join(f"  {layout.name}: {layout.files}" for layout in layouts)
        raise ValueError(
            f"no data set was recognised at {tree.where}, found {entries(tree)}{_known_elsewhere(tree)}; known layouts "
            f"are\n{known}"
        )
    if len(found) > 1:
        several = "; ".join(f"{layout.name} ({layout.files}) at {tree.below(root).where}" for layout, root in found)
        raise ValueError(f"{tree.where} holds several data sets, give the folder of one alone: {several}")
    ((layout, root),) = found
    return layout, tree.below(root)


def _known_elsewhere(tree: Tree) -> str:
    """Describe the content of a tree without a layout, if it is recognised, and say what to do with it."""
    for ending, what, remedy in KNOWN_ELSEWHERE:
        pattern = re.compile(rf".*{ending}")
        if name := next((name for name in sorted(tree.files) if pattern.fullmatch(f"/{name}")), None):
            return f"; {name} looks like {what} (not read): {remedy}"
    return ""
