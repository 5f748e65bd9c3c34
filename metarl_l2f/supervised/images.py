"""Image data sets as they lie on disk, read whole into memory: three splits of classes that do not overlap.

`load_images` recognises a layout by the names of the files, in a folder or inside zip archives (which are not
unpacked), and writes nothing. Each layout is a row of LAYOUTS with a reader of its own.
"""

import contextlib
import csv
import functools
import io
import os
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from ..training.seeding import Stream, generator
from .augmentation import with_rotations
from .episodes import Images, Split
from .pickles import read_arrays

SPLITS: tuple[Split, ...] = ("train", "val", "test")

IMAGE = re.compile(r"\.(?i:png|jpe?g)$")
# Of Omniglot; but train/character01/ is a class of an image folder.
CHARACTER = re.compile(r"(?:.*/)?(?P<alphabet>(?!(?:train|val|test)/)[^/]+)/(?P<character>character\d+)")
OMNIGLOT_SIZE = 28  # pixels, that its 105 become
# A layout may stand this many folders below the path given: data.zip/cifar100/splits/...
WRAPPERS = 3
# Folders below this depth belong to no layout.
DEEPEST = WRAPPERS + 2
# Larger ones are no pictures but mistakes or attacks: 64 MiB, 64 million pixels.
MAX_IMAGE_BYTES = 2**26
MAX_PIXELS = 2**26
# Pixels in an archive shrink a few times; what expands further is made to fill the memory.
MAX_EXPANSION = 100
MAKE_ALIKE = "pass size=... (--image-size) to resize them, channels=1 or 3 (--channels) to make them all grey or RGB"


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
            raise ValueError(f"an alphabet belongs to one split, but val and test both name {_listed(shared)}")


def load_images(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: Literal[1, 3] | None = None,
    omniglot: Omniglot | None = None,
) -> dict[Split, Images]:
    """Read an image data set of any known layout, whole, as bytes.

    Args:
        path: a folder in one of LAYOUTS, a zip archive of one, or a folder that holds such archives.
        size: height and width in pixels that every image is resized to (Lanczos, as in MAML's script; antialiased, and
            stretched where it was not square). None keeps them as they are, but Omniglot's become 28×28.
        channels: 1 makes every image grey, 3 makes it RGB; None keeps grey grey and RGB RGB, which may not be mixed.
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
    by_character = _omniglot_layout(options)
    with contextlib.ExitStack() as archives:
        layout, tree = _recognised(_tree(Path(path), archives), [*LAYOUTS, by_character])
        if layout is by_character:
            size = size or OMNIGLOT_SIZE
        elif omniglot is not None:
            raise ValueError(f"{path} is {layout.name}, which has splits of its own; omniglot=... is for Omniglot only")
        splits: dict[Split, Images] = {}
        origin: dict[str, str] = {}
        for split in SPLITS:
            pictures = layout.read(tree, split)
            _check_overlap(tree, split, pictures, origin)
            splits[split] = _stacked(pictures, size, channels, str(path))
    shapes = {split: tuple(images.pixels.shape[1:]) for split, images in splits.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{path} has splits whose images differ, (C, H, W) are {shapes}; {MAKE_ALIKE}")
    turned = options.rotations if layout is by_character else ()
    return {split: with_rotations(images) if split in turned else images for split, images in splits.items()}


# Files: in folders and in zip archives alike


class _Unreadable(ValueError):
    """A file cannot be read; the text names it."""


@dataclass(frozen=True)
class _File:
    """A file on disk or inside an archive."""

    where: str
    open: Callable[[], IO[bytes]]

    def unreadable(self, error: Exception) -> "_Unreadable":
        return _Unreadable(f"{self.where} cannot be read: {error}; get another copy")

    def opened(self) -> IO[bytes]:
        try:
            return self.open()
        except Exception as error:  # archives fail in many ways: damaged, encrypted, compressed by other means
            raise self.unreadable(error) from error

    def content(self) -> bytes:
        """All of a small file; whatever an archive says of its size, no more than MAX_IMAGE_BYTES are read."""
        with self.opened() as stream:
            try:
                content = stream.read(MAX_IMAGE_BYTES + 1)
            except Exception as error:
                raise self.unreadable(error) from error
        if len(content) > MAX_IMAGE_BYTES:
            raise _Unreadable(f"{self.where} is larger than {MAX_IMAGE_BYTES} bytes, more than any image of a data set")
        return content


@dataclass(frozen=True)
class _Tree:
    """Files by their names relative to a root, with forward slashes; hidden ones are left out."""

    where: str
    files: dict[str, _File]
    folders: frozenset[str]

    def file(self, *names: str) -> _File:
        """The first of these names that there is."""
        for name in names:
            if name in self.files:
                return self.files[name]
        raise ValueError(
            f"{self.where} has no {' or '.join(names)}, found {_entries(self)}; train, val and test each need their own"
        )

    def below(self, root: str) -> "_Tree":
        """The tree under a folder, given with its last slash; "" is this tree."""
        if not root:
            return self
        files = {name.removeprefix(root): file for name, file in self.files.items() if name.startswith(root)}
        folders = frozenset(name.removeprefix(root) for name in self.folders if name.startswith(root))
        return _Tree(f"{self.where}/{root.rstrip('/')}", files, folders)

    @functools.cached_property
    def images(self) -> dict[str, list[_File]]:
        """Every folder's own images, in the order of their names."""
        found: defaultdict[str, list[_File]] = defaultdict(list, {folder: [] for folder in self.folders})
        for name in sorted(self.files):
            if IMAGE.search(name):
                found[name.rpartition("/")[0]].append(self.files[name])
        return dict(found)


def _tree(path: Path, archives: contextlib.ExitStack) -> _Tree:
    if path.is_dir():
        files, folders = _files_on_disk(path)
        for name in [name for name in files if "/" not in name and name.lower().endswith(".zip")]:
            inside, folders_inside = _files_in_archive(path / name, archives)
            files |= {f"{name}/{member}": file for member, file in inside.items()}
            folders |= {f"{name}/{folder}" for folder in folders_inside}
    elif path.is_file():
        files, folders = _files_in_archive(path, archives)
    else:
        raise ValueError(f"there is no data set at {path}: no such file or folder; give the folder it was unpacked to")
    return _Tree(str(path), files, frozenset(folders))


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _files_on_disk(root: Path) -> tuple[dict[str, _File], set[str]]:
    files: dict[str, _File] = {}
    folders: set[str] = set()

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be listed: {error.strerror}; make it readable") from error

    for folder, inside, names in os.walk(root, onerror=refuse, followlinks=True):
        here = Path(folder).relative_to(root)
        inside[:] = [name for name in inside if not name.startswith(".") and len(here.parts) < DEEPEST]
        folders |= {(here / name).as_posix() for name in inside}
        for name in names:
            if not name.startswith("."):
                path = Path(folder, name)
                files[(here / name).as_posix()] = _File(str(path), functools.partial(_open, path))
    return files, folders


def _files_in_archive(path: Path, archives: contextlib.ExitStack) -> tuple[dict[str, _File], set[str]]:
    try:
        archive = archives.enter_context(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a whole zip archive ({error}); get another copy, or give a folder or a zip archive"
        ) from error
    files: dict[str, _File] = {}
    folders: set[str] = set()
    for member in archive.infolist():
        name = member.filename.rstrip("/")
        if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
            continue
        if member.is_dir():
            folders.add(name)
        elif member.file_size > max(MAX_IMAGE_BYTES, MAX_EXPANSION * member.compress_size):
            raise ValueError(
                f"{path} was refused: {name} would expand from {member.compress_size} to {member.file_size} bytes, "
                f"more than {MAX_EXPANSION} times, which no images do; unpack it yourself if you trust it"
            )
        else:
            files[name] = _File(f"{path}/{name}", functools.partial(archive.open, member))
    return files, folders


# Pictures: what the readers return, and how they become one tensor


class _Picture(NamedTuple):
    """An image that is decoded when it is opened."""

    class_name: str
    where: str
    open: Callable[[], Image.Image]


def _stacked(pictures: list[_Picture], size: int | None, channels: Literal[1, 3] | None, where: str) -> Images:
    pictures = sorted(pictures, key=lambda picture: picture.class_name)
    first = _decoded(pictures[0], size, channels)
    pixels = np.empty((len(pictures), *first.shape), np.uint8)
    for i, picture in enumerate(pictures):
        image = _decoded(picture, size, channels)
        if image.shape != first.shape:
            raise ValueError(
                f"images must have one size and mode, but {pictures[0].where} is {_shape(first)} and {picture.where} "
                f"is {_shape(image)}; {MAKE_ALIKE}"
            )
        pixels[i] = image
    counts = Counter(picture.class_name for picture in pictures)  # in the order of the sorted names
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(list(counts.values())))
    return Images(torch.from_numpy(pixels), labels, tuple(counts), where)


def _decoded(picture: _Picture, size: int | None, channels: Literal[1, 3] | None) -> np.ndarray:
    """(C, H, W) bytes."""
    try:
        image = picture.open()
    except _Unreadable:
        raise
    except Exception as error:  # a damaged file can fail anywhere in its decoder
        raise ValueError(f"{picture.where} cannot be read as an image: {error}; replace it") from error
    if image.mode.startswith(("I", "F")) or (channels is None and image.mode not in ("1", "L", "RGB")):
        raise ValueError(
            f"{picture.where} has the mode {image.mode!r}, and images are grey or RGB, 8 bits a channel; "
            "pass channels=1 or 3 (--channels) to convert palettes and drop transparency, and convert other depths "
            "yourself"
        )
    wanted = {None: "RGB" if image.mode == "RGB" else "L", 1: "L", 3: "RGB"}[channels]
    image = image.convert(wanted)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _shape(pixels: np.ndarray) -> str:
    channels, height, width = pixels.shape
    return f"{height}×{width} {'grey' if channels == 1 else 'RGB'}"


def _check_overlap(tree: _Tree, split: Split, pictures: list[_Picture], origin: dict[str, str]) -> None:
    """Note in `origin` where classes and images came up, and refuse those that did before."""
    if not pictures:
        raise ValueError(f"the split {split!r} of {tree.where} has no images; every split needs some")
    for class_name in sorted({picture.class_name for picture in pictures}):
        if (other := origin.setdefault(f"class {class_name}", split)) != split:
            raise ValueError(
                f"the splits {other!r} and {split!r} of {tree.where} share the class {class_name!r}; the classes of a "
                "split must be new to the others, under names or numbers that count through all splits"
            )
    for picture in pictures:
        here = f"{picture.class_name} ({split})"  # an object of its own, so that a second time differs
        if (other := origin.setdefault(f"image {picture.where}", here)) is not here:
            raise ValueError(
                f"the image {picture.where} stands in {other} and again in {here}; it may be of one class, once"
            )


def _image_file(content: Callable[[], bytes]) -> Image.Image:
    image = Image.open(io.BytesIO(content()), formats=("PNG", "JPEG"))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it has {image.width}×{image.height} pixels, more than any image of a data set")
    image.load()
    return image


def _pictures(class_name: str, files: Iterable[_File]) -> list[_Picture]:
    return [_Picture(class_name, file.where, functools.partial(_image_file, file.content)) for file in files]


def _class_folder(tree: _Tree, folder: str, class_name: str) -> list[_File]:
    if not (files := tree.images.get(folder)):
        raise ValueError(
            f"the class {class_name!r} is empty: {tree.where}/{folder} has no .png, .jpg or .jpeg directly inside; "
            "add its images or remove the class"
        )
    return files


def _text(file: _File) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        return [line for line in file.content().decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.where} is not a text file: {error}") from error


def _arrays(file: _File) -> Any:
    with file.opened() as stream:
        if file.where.endswith(".npz"):
            try:
                with np.load(stream, allow_pickle=False) as arrays:
                    return dict(arrays)
            except Exception as error:  # a damaged archive can fail anywhere in the reader
                raise ValueError(f"{file.where} is not a whole npz of plain arrays: {error}") from error
        return read_arrays(stream, file.where)


def _entry(file: _File, arrays: Any, *names: str) -> Any:
    """The first of these entries that a file's dictionary has."""
    if isinstance(arrays, dict):
        for name in names:
            if name in arrays:
                return arrays[name]
    found = _listed(map(str, arrays)) if isinstance(arrays, dict) else f"a {type(arrays).__name__}"
    raise ValueError(f"{file.where} must be a dictionary with {' or '.join(map(repr, names))}, found {found}")


def _array(file: _File, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{file.where} must hold images of one size and a list of labels, got {error}") from error


def _pixels(file: _File, pixels: Any) -> np.ndarray:
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


def _array_pictures(file: _File, pixels: np.ndarray, class_names: Sequence[str]) -> list[_Picture]:
    _check_lengths(file, len(pixels), len(class_names))
    return [
        _Picture(name, f"{file.where}, image {i}", functools.partial(Image.fromarray, pixels[i]))
        for i, name in enumerate(class_names)
    ]


def _numbers(file: _File, labels: Any) -> list[int]:
    labels = _array(file, labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{file.where} must hold labels (n,), whole numbers, got {labels.dtype} {labels.shape}")
    return labels.tolist()


def _check_lengths(file: _File, images: int, labels: int) -> None:
    if images != labels:
        raise ValueError(f"{file.where} has {images} images for {labels} labels; each image has one label")


# Layouts: how each is read, and recognised


def _read_folder(tree: _Tree, split: Split) -> list[_Picture]:
    folders = sorted(folder for folder in tree.images if re.fullmatch(f"{split}/[^/]+", folder))
    if not folders:
        raise ValueError(f"{tree.where} has no {split}/<class>/, found {_entries(tree)}; add the split {split!r}")
    names = [folder.removeprefix(f"{split}/") for folder in folders]
    return [
        picture
        for folder, name in zip(folders, names, strict=True)
        for picture in _pictures(name, _class_folder(tree, folder, name))
    ]


def _read_csv(tree: _Tree, split: Split) -> list[_Picture]:
    table = tree.file(f"{split}.csv")
    pictures: list[_Picture] = []
    for line, row in enumerate(csv.DictReader(_text(table)), 2):
        if not row.get("filename") or not row.get("label"):
            raise ValueError(f"line {line} of {table.where} must have a filename and a label, got {row}")
        if (file := tree.files.get(f"images/{row['filename']}")) is None:
            raise ValueError(f"line {line} of {table.where}: there is no {tree.where}/images/{row['filename']}; add it")
        pictures += _pictures(row["label"], [file])
    return pictures


def _read_cache(tree: _Tree, split: Split) -> list[_Picture]:
    file = tree.file(f"mini-imagenet-cache-{split}.pkl")
    arrays = _arrays(file)
    pixels, classes = _pixels(file, _entry(file, arrays, "image_data")), _entry(file, arrays, "class_dict")
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


def _read_labelled(names: dict[Split, tuple[str, ...]], tree: _Tree, split: Split) -> list[_Picture]:
    file = tree.file(*names[split])
    arrays = _arrays(file)
    labels = _numbers(file, _entry(file, arrays, "labels", "targets"))
    pixels = _pixels(file, _entry(file, arrays, "data", "images", "features"))
    return _array_pictures(file, pixels, [str(label) for label in labels])


def _read_tiered(tree: _Tree, split: Split) -> list[_Picture]:
    names = _tiered_names(tree.file(f"{split}_labels.pkl"), split)
    file = tree.file(f"{split}_images.npz", f"{split}_images_png.pkl")
    arrays = _arrays(file)
    if file.where.endswith(".npz"):
        # OpenCV's order is blue, green, red; into the PNGs of the other file it wrote red, green, blue itself.
        return _array_pictures(file, _pixels(file, _entry(file, arrays, "images"))[..., ::-1], names)
    if not isinstance(arrays, list | np.ndarray):
        raise ValueError(f"{file.where} must be a list of PNG files as bytes, got a {type(arrays).__name__}")
    _check_lengths(file, len(arrays), len(names))
    return [
        _Picture(name, f"{file.where}, image {i}", functools.partial(_image_file, functools.partial(_encoded, entry)))
        for i, (name, entry) in enumerate(zip(names, arrays, strict=True))
    ]


def _tiered_names(file: _File, split: Split) -> list[str]:
    """Each image's class, by name: its numbers begin from 0 in every split."""
    arrays = _arrays(file)
    labels = _numbers(file, _entry(file, arrays, "label_specific"))
    if "label_specific_str" not in arrays:
        return [f"{split} {label}" for label in labels]
    names = [str(name) for name in np.atleast_1d(arrays["label_specific_str"])]
    if len(set(names)) < len(names) or not set(labels) <= set(range(len(names))):
        raise ValueError(
            f"label_specific_str of {file.where} must give each label a name of its own, got {len(set(names))} "
            f"different names for the labels {_listed(set(labels))}"
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


def _read_cifar_fs(tree: _Tree, split: Split) -> list[_Picture]:
    names = [line.strip() for line in _text(tree.file(f"splits/bertinetto/{split}.txt"))]
    inside = "data/" if "data" in tree.folders or any(name.startswith("data/") for name in tree.files) else ""
    return [picture for name in names for picture in _pictures(name, _class_folder(tree, inside + name, name))]


def _read_omniglot(omniglot: Omniglot, tree: _Tree, split: Split) -> list[_Picture]:
    folders: defaultdict[str, list[str]] = defaultdict(list)  # of each character: several sets may hold some of it
    for folder in sorted(tree.images):
        if match := CHARACTER.fullmatch(folder):
            folders[f"{match['alphabet']}/{match['character']}"].append(folder)
    pictures: list[_Picture] = []
    for name in _omniglot_split(omniglot, tree.where, sorted(folders))[split]:
        files = [file for folder in folders[name] for file in _class_folder(tree, folder, name)]
        pictures += _pictures(name, _without_copies(files))
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
        raise ValueError(f"{where} has no alphabet {_listed(unknown)}; it has {_listed(set(alphabets.values()))}")
    return {split: [name for name in names if named.get(alphabets[name], "train") == split] for split in SPLITS}


def _without_copies(files: list[_File]) -> list[_File]:
    """Files in the order of their names, those of one name and content once: a set may be there twice."""
    groups: defaultdict[str, list[_File]] = defaultdict(list)
    for file in files:
        groups[Path(file.where).name].append(file)
    unique: list[_File] = []
    for _, group in sorted(groups.items()):
        unique += group if len(group) == 1 else {file.content(): file for file in group}.values()
    return unique


def _inverted(open_picture: Callable[[], Image.Image]) -> Image.Image:
    return ImageOps.invert(open_picture().convert("L"))


@dataclass(frozen=True)
class Layout:
    """A way in which a data set lies on disk."""

    name: str
    files: str
    """What it consists of, for people."""
    mark: str
    """A pattern that the names of some of its files match, and those of no other layout."""
    read: Callable[[_Tree, Split], list[_Picture]]


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


def _omniglot_layout(omniglot: Omniglot) -> Layout:
    return Layout(
        "Omniglot",
        "<alphabet>/character<number>/*.png, in one or several folders or archives",
        rf"{CHARACTER.pattern}/[^/]+\.png",
        functools.partial(_read_omniglot, omniglot),
    )


def _recognised(tree: _Tree, layouts: Sequence[Layout]) -> tuple[Layout, _Tree]:
    """The one layout found, and the tree from the folder where it begins."""
    found: list[tuple[Layout, str]] = []
    for layout in layouts:
        pattern = re.compile(rf"(?P<root>(?:[^/]+/){{0,{WRAPPERS}}}?){layout.mark}")
        matches = (pattern.fullmatch(name) for name in tree.files)
        found += [(layout, root) for root in sorted({match["root"] for match in matches if match})]
    if not found:
        known = "\n".join(f"  {layout.name}: {layout.files}" for layout in layouts)
        raise ValueError(
            f"no data set was recognised at {tree.where}, found {_entries(tree)}; known layouts are\n{known}"
        )
    if len(found) > 1:
        several = "; ".join(f"{layout.name} ({layout.files}) at {tree.below(root).where}" for layout, root in found)
        raise ValueError(f"{tree.where} holds several data sets, give the folder of one alone: {several}")
    ((layout, root),) = found
    return layout, tree.below(root)


def _entries(tree: _Tree) -> str:
    return _listed({name.partition("/")[0] for name in (*tree.files, *tree.folders)})


def _listed(names: Iterable[object], most: int = 10) -> str:
    """The first few, and how many there are."""
    ordered = sorted(map(str, names))
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) or "nothing") + more
