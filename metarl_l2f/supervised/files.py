"""Files in folders and in zip archives alike, by their names below a root; nothing is unpacked or written."""

import contextlib
import functools
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": ("png", "apng"),
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "WEBP": ("webp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("pbm", "pgm", "ppm", "pnm"),
    "JPEG2000": ("jp2", "j2k"),
    "AVIF": ("avif",),
}
"""Formats of pictures that are read, as Pillow names them, and the endings of their files. Formats without a signature
(TGA) are left out, since a damaged file would pass for one, and those that start another program (EPS)."""
IMAGE = re.compile(rf"\.(?i:{'|'.join(ending for endings in FORMATS.values() for ending in endings)})$")
# A layout may stand this many folders below the path given: data.zip/cifar100/splits/...
WRAPPERS = 3
# Folders below this depth belong to no layout.
DEEPEST = WRAPPERS + 2
# Larger ones are no pictures but mistakes or attacks: 64 MiB.
MAX_IMAGE_BYTES = 2**26
# Pixels in an archive shrink a few times; what expands further is made to fill the memory.
MAX_EXPANSION = 100


class Unreadable(ValueError):
    """A file cannot be read; the text names it."""


@dataclass(frozen=True)
class File:
    """A file on disk or inside an archive."""

    where: str
    open: Callable[[], IO[bytes]]

    def unreadable(self, error: Exception) -> "Unreadable":
        return Unreadable(f"{self.where} cannot be read: {error}; get another copy")

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
            raise Unreadable(f"{self.where} is larger than {MAX_IMAGE_BYTES} bytes, more than any image of a data set")
        return content


@dataclass(frozen=True)
class Tree:
    """Files by their names relative to a root, with forward slashes; hidden ones are left out."""

    where: str
    files: dict[str, File]
    folders: frozenset[str]

    def file(self, *names: str) -> File:
        """The first of these names that there is."""
        for name in names:
            if name in self.files:
                return self.files[name]
        raise ValueError(
            f"{self.where} has no {' or '.join(names)}, found {entries(self)}; train, val and test each need their own"
        )

    def below(self, root: str) -> "Tree":
        """The tree under a folder, given with its last slash; "" is this tree."""
        if not root:
            return self
        files = {name.removeprefix(root): file for name, file in self.files.items() if name.startswith(root)}
        folders = frozenset(name.removeprefix(root) for name in self.folders if name.startswith(root))
        return Tree(f"{self.where}/{root.rstrip('/')}", files, folders)

    @functools.cached_property
    def images(self) -> dict[str, list[File]]:
        """Every folder's own images, in the order of their names."""
        found: defaultdict[str, list[File]] = defaultdict(list, {folder: [] for folder in self.folders})
        for name in sorted(self.files):
            if IMAGE.search(name):
                found[name.rpartition("/")[0]].append(self.files[name])
        return dict(found)


def open_tree(path: Path, archives: contextlib.ExitStack) -> Tree:
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
    return Tree(str(path), files, frozenset(folders))


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _files_on_disk(root: Path) -> tuple[dict[str, File], set[str]]:
    files: dict[str, File] = {}
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
                files[(here / name).as_posix()] = File(str(path), functools.partial(_open, path))
    return files, folders


def _files_in_archive(path: Path, archives: contextlib.ExitStack) -> tuple[dict[str, File], set[str]]:
    try:
        archive = archives.enter_context(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a whole zip archive ({error}); get another copy, or give a folder or a zip archive"
        ) from error
    files: dict[str, File] = {}
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
            files[name] = File(f"{path}/{name}", functools.partial(archive.open, member))
    return files, folders


def entries(tree: Tree) -> str:
    return listed({name.partition("/")[0] for name in (*tree.files, *tree.folders)})


def listed(names: Iterable[object], most: int = 10) -> str:
    """The first few, and how many there are."""
    ordered = sorted(map(str, names))
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) or "nothing") + more


def class_folder(tree: Tree, folder: str, class_name: str) -> list[File]:
    if not (files := tree.images.get(folder)):
        raise ValueError(
            f"the class {class_name!r} is empty: {tree.where}/{folder} has no .png, .jpg or .jpeg directly inside; "
            "add its images or remove the class"
        )
    return files
