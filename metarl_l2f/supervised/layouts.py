"""The layouts in which image data sets lie on disk: how each is recognised by the names of its files, and read."""

import csv
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .episodes import SPLITS, Split
from .files import IMAGE, WRAPPERS, File, Tree, class_folder, entries, listed
from .omniglot import CHARACTER, Omniglot, read_omniglot
from .pickles import read_arrays
from .pictures import Picture, image_file, pictures_of

# Arrays and texts


def read_text(file: File) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        return [line for line in file.content().decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.where} is not a text file: {error}") from error


def read_file(file: File) -> Any:
    with file.opened() as stream:
        if file.where.endswith(".npz"):
            try:
                with np.load(stream, allow_pickle=False) as arrays:
                    return dict(arrays)
            except Exception as error:  # a damaged archive can fail anywhere in the reader
                raise ValueError(f"{file.where} is not a whole npz of plain arrays: {error}") from error
        return read_arrays(stream, file.where)


def entry(file: File, arrays: Any, *names: str) -> Any:
    """The first of these entries that a file's dictionary has."""
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
    folders = sorted(folder for folder in tree.images if re.fullmatch(f"{split}/[^/]+", folder))
    if not folders:
        raise ValueError(f"{tree.where} has no {split}/<class>/, found {entries(tree)}; add the split {split!r}")
    names = [folder.removeprefix(f"{split}/") for folder in folders]
    return [
        picture
        for folder, name in zip(folders, names, strict=True)
        for picture in pictures_of(name, class_folder(tree, folder, name))
    ]


def _read_csv(tree: Tree, split: Split) -> list[Picture]:
    table = tree.file(f"{split}.csv")
    pictures: list[Picture] = []
    for line, row in enumerate(csv.DictReader(read_text(table)), 2):
        if not row.get("filename") or not row.get("label"):
            raise ValueError(f"line {line} of {table.where} must have a filename and a label, got {row}")
        if (file := tree.files.get(f"images/{row['filename']}")) is None:
            raise ValueError(f"line {line} of {table.where}: there is no {tree.where}/images/{row['filename']}; add it")
        pictures += pictures_of(row["label"], [file])
    return pictures


def _read_cache(tree: Tree, split: Split) -> list[Picture]:
    file = tree.file(f"mini-imagenet-cache-{split}.pkl")
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
    if "" in names:
        raise ValueError(f"class_dict of {file.where} must give each image to a class, but not image {names.index('')}")
    return _array_pictures(file, pixels, names)


def _read_labelled(names: dict[Split, tuple[str, ...]], tree: Tree, split: Split) -> list[Picture]:
    file = tree.file(*names[split])
    arrays = read_file(file)
    labels = _numbers(file, entry(file, arrays, "labels", "targets"))
    pixels = _pixels(file, entry(file, arrays, "data", "images", "features"))
    return _array_pictures(file, pixels, [str(label) for label in labels])


def _read_tiered(tree: Tree, split: Split) -> list[Picture]:
    names = _tiered_names(tree.file(f"{split}_labels.pkl"), split)
    file = tree.file(f"{split}_images.npz", f"{split}_images_png.pkl")
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
    """Each image's class, by name: its numbers begin from 0 in every split."""
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
    names = [line.strip() for line in read_text(tree.file(f"splits/bertinetto/{split}.txt"))]
    inside = "data/" if "data" in tree.folders or any(name.startswith("data/") for name in tree.files) else ""
    return [picture for name in names for picture in pictures_of(name, class_folder(tree, inside + name, name))]


@dataclass(frozen=True)
class Layout:
    """A way in which a data set lies on disk."""

    name: str
    files: str
    """What it consists of, for people."""
    mark: str
    """A pattern that the names of some of its files match, and those of no other layout."""
    read: Callable[[Tree, Split], list[Picture]]


LAYOUTS = (
    Layout(
        "an image folder",
        "{train,val,test}/<class>/*.png or .jpg",
        rf"(train|val|test)/[^/]+/[^/]+{IMAGE.pattern}",
        _read_folder,
    ),
    Layout("miniImageNet", "{train,val,test}.csv (filename,label) and images/", r"(train|val|test)\.csv", _read_csv),
    Layout(
        "miniImageNet",
        "mini-imagenet-cache-{train,val,test}.pkl",
        r"mini-imagenet-cache-(train|val|test)\.pkl",
        _read_cache,
    ),
    Layout(
        "miniImageNet",
        "miniImageNet_category_split_{train_phase_train,val,test}.pickle",
        r"miniImageNet_category_split_(train_phase_train|val|test)\.pickle",
        functools.partial(
            _read_labelled,
            {
                "train": ("miniImageNet_category_split_train_phase_train.pickle",),
                "val": ("miniImageNet_category_split_val.pickle",),
                "test": ("miniImageNet_category_split_test.pickle",),
            },
        ),
    ),
    Layout(
        "tieredImageNet",
        "{train,val,test}_images.npz or _images_png.pkl, and {train,val,test}_labels.pkl",
        r"(train|val|test)_(images\.npz|images_png\.pkl|labels\.pkl)",
        _read_tiered,
    ),
    Layout(
        "CIFAR-FS",
        "<class>/*.png or data/<class>/*.png, and splits/bertinetto/{train,val,test}.txt",
        r"splits/bertinetto/(train|val|test)\.txt",
        _read_cifar_fs,
    ),
    Layout(
        "CIFAR-FS",
        "CIFAR_FS_{train,val,test}.pickle",
        r"CIFAR_FS_(train|val|test)\.pickle",
        functools.partial(_read_labelled, {split: (f"CIFAR_FS_{split}.pickle",) for split in SPLITS}),
    ),
    Layout(
        "FC100",
        "FC100_{train,val,test}.pickle or .npz",
        r"FC100_(train|val|test)\.(pickle|npz)",
        functools.partial(_read_labelled, {split: (f"FC100_{split}.pickle", f"FC100_{split}.npz") for split in SPLITS}),
    ),
)
"""All but Omniglot's, whose reader depends on how it is split."""


def omniglot_layout(omniglot: Omniglot) -> Layout:
    return Layout(
        "Omniglot",
        "<alphabet>/character<number>/*.png, in one or several folders or archives",
        rf"{CHARACTER.pattern}/[^/]+\.png",
        functools.partial(read_omniglot, omniglot),
    )


def recognised(tree: Tree, layouts: Sequence[Layout]) -> tuple[Layout, Tree]:
    """The one layout found, and the tree from the folder where it begins."""
    found: list[tuple[Layout, str]] = []
    for layout in layouts:
        pattern = re.compile(rf"(?P<root>(?:[^/]+/){{0,{WRAPPERS}}}?){layout.mark}")
        matches = (pattern.fullmatch(name) for name in tree.files)
        found += [(layout, root) for root in sorted({match["root"] for match in matches if match})]
    if not found:
        known = "\n".join(f"  {layout.name}: {layout.files}" for layout in layouts)
        raise ValueError(
            f"no data set was recognised at {tree.where}, found {entries(tree)}; known layouts are\n{known}"
        )
    if len(found) > 1:
        several = "; ".join(f"{layout.name} ({layout.files}) at {tree.below(root).where}" for layout, root in found)
        raise ValueError(f"{tree.where} holds several data sets, give the folder of one alone: {several}")
    ((layout, root),) = found
    return layout, tree.below(root)
