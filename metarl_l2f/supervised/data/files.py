"""Files in folders and in zip archives, by their names below a root; archives are not unpacked, and nothing written."""

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

from ..episodes import Split

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
"""The formats of pictures that are read, by Pillow's names, and the endings of their files. Formats without a signature
(TGA) are left out, since a damaged file would pass for one, and so are those that start another program (EPS)."""
IMAGE = re.compile(rf"\.(?i:{'|'.join(ending for endings in FORMATS.values() for ending in endings)})$")
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
"""The names that published data sets give to the files and folders of their splits."""
SPLIT_NAME = f"(?:{'|'.join(name for names in SPLIT_NAMES.values() for name in names)})"
# A layout may begin this many folders below the given path: data.zip/cifar100/splits/...
WRAPPERS = 3
# Folders below this depth belong to no layout.
DEEPEST = WRAPPERS + 2
# 64 MiB; larger files are no pictures but mistakes or attacks.
MAX_IMAGE_BYTES = 2**26
# Files that operating systems add, and files about a data set, are no part of it.
HIDDEN = re.compile(r"\..*|__MACOSX|@eaDir|\$RECYCLE\.BIN|System Volume Information|(?i:thumbs\.db|desktop\.ini)")
ABOUT = re.compile(r"(?i)(readme|licen[cs]e|copying|citation)\b[^/]*$")
# Archives shrink pixels by a small factor; a member that expands further is made to fill the memory.
MAX_EXPANSION = 100


class Unreadable(ValueError):
    """A file cannot be read; the text names the file."""


@dataclass(eq=False)
class File:
    """A file on disk or inside an archive."""

    where: str
    """The path, for messages."""
    open: Callable[[], IO[bytes]]
    """Opens the file for reading bytes."""
    was_read: bool = False
    """Whether the file has been opened."""

    def unreadable(self, error: Exception) -> "Unreadable":
        """Build the error for a file that could not be read.

        Args:
            error: the cause.
        """
        return Unreadable(f"{self.where} cannot be read: {error}; get another copy")

    def opened(self) -> IO[bytes]:
        """Open the file for reading bytes.

        Raises:
            Unreadable: the file cannot be opened.
        """
        self.was_read = True
        try:
            return self.open()
        except Exception as error:  # archives fail in many ways: damaged, encrypted, compressed by other means
            raise self.unreadable(error) from error

    def content(self) -> bytes:
        """Read a whole file of up to MAX_IMAGE_BYTES; no more is read, whatever size an archive states.

        Raises:
            Unreadable: the file cannot be read, or is larger.
        """
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
    """Files by their names relative to a root, with forward slashes; hidden files are left out."""

    where: str
    """The path of the root, for messages."""
    files: dict[str, File]
    """The files, by name."""
    folders: frozenset[str]
    """The names of all folders."""
    closed: frozenset[str] = frozenset()
    """Folders that lie too deep and were not searched."""

    def split_file(self, split: Split, *patterns: str) -> File:
        """Find a split's file.

        Args:
            split: the split.
            patterns: possible names, tried in order; "{}" stands for the split's name.
        Raises:
            ValueError: there is no such file.
        """
        for pattern in patterns:
            for name in SPLIT_NAMES[split]:
                if pattern.format(name) in self.files:
                    return self.files[pattern.format(name)]
        raise ValueError(
            f"{self.where} has no {' or '.join(pattern.format(split) for pattern in patterns)}, found {entries(self)}; "
            "train, val and test each need their own"
        )

    def below(self, root: str) -> "Tree":
        """Return the tree below a folder, whose name ends with a slash; "" stands for this tree."""
        if not root:
            return self
        files = {name.removeprefix(root): file for name, file in self.files.items() if name.startswith(root)}
        folders = frozenset(name.removeprefix(root) for name in self.folders if name.startswith(root))
        return Tree(f"{self.where}/{root.rstrip('/')}", files, folders)

    def rest(self) -> list[str]:
        """List files and folders that were not read, by name, except files about the data set such as a README."""
        unread = (name for name, file in self.files.items() if not file.was_read and not ABOUT.match(Path(name).name))
        return sorted([*unread, *(f"{folder}/" for folder in self.closed)])

    @functools.cached_property
    def images(self) -> dict[str, list[File]]:
        """The images directly inside each folder, in the order of their names."""
        found: defaultdict[str, list[File]] = defaultdict(list, {folder: [] for folder in self.folders})
        for name in sorted(self.files):
            if IMAGE.search(name):
                found[name.rpartition("/")[0]].append(self.files[name])
        return dict(found)


def open_tree(path: Path, archives: contextlib.ExitStack) -> Tree:
    """List the files below a folder, including those in zip archives that lie in it, or the files of one archive.

    Args:
        path: the folder or the archive.
        archives: the stack that closes the archives.
    Raises:
        ValueError: there is no such path, a folder cannot be listed, or an archive is damaged or would fill the memory.
    """
    closed: set[str] = set()
    if path.is_dir():
        files, folders, closed = _files_on_disk(path)
        for name in [name for name in files if "/" not in name and name.lower().endswith(".zip")]:
            del files[name]
            inside, folders_inside = _files_in_archive(path / name, archives)
            files |= {f"{name}/{member}": file for member, file in inside.items()}
            folders |= {f"{name}/{folder}" for folder in folders_inside}
    elif path.is_file():
        files, folders = _files_in_archive(path, archives)
    else:
        raise ValueError(f"there is no data set at {path}: no such file or folder; give the folder it was unpacked to")
    return Tree(str(path), files, frozenset(folders), frozenset(closed))


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _files_on_disk(root: Path) -> tuple[dict[str, File], set[str], set[str]]:
    """List files, folders, and folders that lie too deep to be searched."""
    files: dict[str, File] = {}
    folders: set[str] = set()
    closed: set[str] = set()

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be listed: {error.strerror}; make it readable") from error

    for folder, inside, names in os.walk(root, onerror=refuse, followlinks=True):
        here = Path(folder).relative_to(root)
        inside[:] = [name for name in inside if not HIDDEN.fullmatch(name)]
        here_folders = {(here / name).as_posix() for name in inside}
        if len(here.parts) < DEEPEST:
            folders |= here_folders
        else:
            closed |= here_folders
            inside.clear()
        for name in names:
            if not HIDDEN.fullmatch(name):
                path = Path(folder, name)
                files[(here / name).as_posix()] = File(str(path), functools.partial(_open, path))
    return files, folders, closed


def _files_in_archive(path: Path, archives: contextlib.ExitStack) -> tuple[dict[str, File], set[str]]:
    try:
        archive = archives.enter_context(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a whole zip archive ({error}); get another copy, or give a zip archive or a folder (unpack "
            "archives of other kinds)"
        ) from error
    files: dict[str, File] = {}
    folders: set[str] = set()
    for member in archive.infolist():
        name = member.filename.replace("\\", "/").rstrip("/")  # some programs on Windows write backslashes
        if any(HIDDEN.fullmatch(part) for part in name.split("/")):
            continue
        if member.is_dir():
            folders.add(name)
        elif name in files:
            raise ValueError(f"{path} holds {name} twice; unpack it, and keep the one that you want")
        elif member.file_size > max(MAX_IMAGE_BYTES, MAX_EXPANSION * member.compress_size):
            raise ValueError(
                f"{path} was refused: {name} would expand from {member.compress_size} to {member.file_size} bytes, "
                f"more than {MAX_EXPANSION} times, which no images do; unpack it yourself if you trust it"
            )
        else:
            files[name] = File(f"{path}/{name}", functools.partial(archive.open, member))
    return files, folders


def entries(tree: Tree) -> str:
    """Name the entries of a tree's root, for messages."""
    return listed({name.partition("/")[0] for name in (*tree.files, *tree.folders)})


def listed(names: Iterable[object], most: int = 10) -> str:
    """Join the first few names of a sorted list, and say how many more there are."""
    ordered = sorted(map(str, names))
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) or "nothing") + more


def class_folder(tree: Tree, class_name: str, *folders: str) -> list[File]:
    """List the images of a class, which lie directly in one or several folders.

    Args:
        tree: the data set.
        class_name: the name of the class, for the error.
        folders: the names of the class's folders.
    Raises:
        ValueError: there are no images.
    """
    if not (files := [file for folder in folders for file in tree.images.get(folder, [])]):
        inside = tree.below(f"{folders[0]}/")
        raise ValueError(
            f"the class {class_name!r} is empty: {inside.where} has no pictures directly inside, found "
            f"{entries(inside)}; add its pictures ({', '.join(FORMATS)}) or remove the class"
        )
    return files
