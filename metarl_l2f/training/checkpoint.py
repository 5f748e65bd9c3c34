"""Checkpoints that are whole or refused: written atomically, verified by a digest, loaded without running code.

A checkpoint is an ordinary torch file with three entries: "format" (a number), "state", and "sha256" (of the state).
"""

import hashlib
import io
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .files import write_atomically

FORMAT = 1
# torch files are zip archives: these are the first bytes of one, and the first of its last record, which takes 22.
ZIP_START = b"PK\x03\x04"
ZIP_END = b"PK\x05\x06"
ZIP_END_LENGTH = 22
OTHER_COPIES = "use another copy, such as previous.pt or best.pt"

State = dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint could not be written, or a file is not a whole checkpoint; the text says why and what to do."""


def save(path: str | os.PathLike[str], state: State) -> None:
    """Write a state, so that at any moment `path` holds a whole checkpoint: the previous one, then the new one.

    Args:
        path: where to; an existing file is replaced in one step, by way of `path` + ".tmp" in the same folder.
        state: dicts, lists and tuples of tensors, numbers, strings and None; keys are strings or integers. Tensors are
            stored as values: on the CPU, without gradients, each with its own memory.

    Raises:
        TypeError: the state holds something else.
        CheckpointError: the file could not be written (disk full, read-only, ...); the previous checkpoint still loads.
    """
    path = Path(path)
    state = _plain(state, "state")
    content = io.BytesIO()
    torch.save({"format": FORMAT, "sha256": _digest(state), "state": state}, content)
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise CheckpointError(
            f"could not write the checkpoint {path}: {error.strerror or error}. If there was one before, it still "
            "loads: make room or make the folder writable, then resume the run"
        ) from error


def load(path: str | os.PathLike[str]) -> State:
    """Read a checkpoint, tensors on the CPU; refuse a damaged or foreign file, and never run code from it.

    Args:
        path: a file written by `save`.

    Returns:
        The state as it was saved.

    Raises:
        CheckpointError: the file is missing, unreadable, truncated, damaged, of another format, or no checkpoint.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}; give a file written during training") from error
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    # Compared no further than the file goes, for one that was cut to nothing is truncated, not foreign.
    if content[: len(ZIP_START)] != ZIP_START[: len(content)]:
        raise CheckpointError(f"{path} is not a checkpoint but some other file; give one written during training")
    if not content[-ZIP_END_LENGTH:].startswith(ZIP_END):
        raise CheckpointError(
            f"the checkpoint {path} is truncated: it stops short after {len(content)} bytes; {OTHER_COPIES}"
        )
    return _verified(path, _unpickled(path, content))


def load_into(module: torch.nn.Module, state: Mapping[str, torch.Tensor], kind: str) -> None:
    """Give a module the tensors of a checkpoint.

    Args:
        module: whose state_dict the checkpoint holds.
        state: by name.
        kind: what must have been another where the two do not fit, for the error.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; names all of them.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if own != found:
        differing = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
        raise CheckpointError(
            f"the checkpoint is of another {kind}: "
            + "; ".join(f"{n} is {found.get(n, 'missing')}, expected {own.get(n, 'none')}" for n in differing)
            + ". Load it with the settings it was trained with"
        )
    module.load_state_dict(state)


def digest(state: State) -> str:
    """A name that only an equal state has."""
    return _digest(_plain(state, "state"))


def _unpickled(path: Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is damaged, or holds objects other than tensors, numbers and strings, and reading "
            "those could run foreign code (none was run); give a file written during training"
        ) from error
    except Exception as error:  # a damaged archive can fail anywhere in the reader
        raise CheckpointError(_damaged(path)) from error


def _verified(path: Path, content: Any) -> State:
    if not isinstance(content, dict) or not content.keys() >= {"format", "sha256", "state"}:
        raise CheckpointError(
            f"{path} is a torch file but not a checkpoint of metarl_l2f, which has the entries format, sha256 and "
            "state; give a file written during training"
        )
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"the checkpoint {path} has format {content['format']!r}, and this version of metarl_l2f reads format "
            f"{FORMAT}; use the version that wrote it"
        )
    try:
        state = _plain(content["state"], "state")
    except TypeError as error:
        raise CheckpointError(_damaged(path)) from error
    if _digest(state) != content["sha256"]:
        raise CheckpointError(_damaged(path))
    return state


def _damaged(path: Path) -> str:
    return f"the checkpoint {path} is damaged: its content is not what was written; {OTHER_COPIES}"


def _plain(value: Any, where: str) -> Any:
    """A copy made of dict, list, tuple, tensor, bool, int, float, str and None only, not of their subclasses."""
    match value:
        case torch.Tensor():
            return value.detach().cpu().clone(memory_format=torch.contiguous_format)
        case dict():
            return {_plain_key(key, where): _plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
        case list():
            return [_plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
        case tuple():
            return tuple(_plain(entry, f"{where}[{i}]") for i, entry in enumerate(value))
        case bool() | None:
            return value
        case int():
            return int(value)
        case float():
            return float(value)
        case str():
            return sys.intern(str(value))  # Pickle writes one object once: equal strings must be one for equal bytes.
    raise TypeError(
        f"a checkpoint holds tensors, numbers, strings, None, and dicts, lists and tuples of them, but {where} is "
        f"{type(value).__module__}.{type(value).__qualname__}; convert arrays with torch.from_numpy, paths with str"
    )


def _plain_key(key: Any, where: str) -> str | int:
    match key:
        case str():
            return sys.intern(str(key))
        case int():
            return int(key)
    raise TypeError(f"the keys of a checkpoint are strings or integers, but {where} has the key {key!r}")


def _digest(state: State) -> str:
    sha256 = hashlib.sha256()
    for piece in _pieces(state):
        sha256.update(piece)
    return sha256.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    """Bytes that spell out a plain value, types and lengths first, so that no two values are spelled alike."""
    match value:
        case torch.Tensor():
            yield f"tensor {value.dtype} {tuple(value.shape)};".encode()
            yield value.reshape(-1).view(torch.uint8).numpy().tobytes()
        case dict():
            yield f"dict {len(value)};".encode()
            for key, entry in value.items():
                yield from _pieces(key)
                yield from _pieces(entry)
        case list() | tuple():
            yield f"{type(value).__name__} {len(value)};".encode()
            for entry in value:
                yield from _pieces(entry)
        case _:
            yield f"{type(value).__name__} {value!r};".encode()
