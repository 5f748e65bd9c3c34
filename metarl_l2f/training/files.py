"""Files that are whole at any moment, and errors of writing that name the file and the remedy."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Give `path` this content in one step: a crash at any moment leaves the old file or the new one.

    Args:
        path: the file; its folder exists and has one writer at a time.
        content: the whole content.

    Raises:
        OSError: the content could not be written; no temporary file stays behind.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # A failed write does not know its file.
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make an OSError from inside name the file and say what to do.

    Args:
        path: the file or folder that the error names where it does not know its own, as one of a failed write does not.
    """
    try:
        yield
    except OSError as error:
        advice = "make room, make it writable, or choose another folder; what was begun can be resumed"
        raise OSError(error.errno, f"{error.strerror or error} ({advice})", str(error.filename or path)) from error


def _sync_folder(folder: Path) -> None:
    """Put a folder on disk: a new name in it survives a power cut only after that."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
