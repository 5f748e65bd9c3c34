"""Pickles of arrays from untrusted sources, read without running code from them.

A pickle is a small program that may call any function it names. Here it may name only the entries of ADMITTED. NumPy's
own functions are not among them: a forged dtype makes ndarray.__setstate__ take bytes for object pointers. The pickle
fills in `_Dtype` and `_Array` instead, which check their content, and the arrays are made from these afterwards.
"""

import _codecs
import collections
import os
import pickle
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

# Numbers, byte strings, strings and objects; records, dates and raw memory are refused.
DTYPE_CODE = re.compile(r"[biufcSU]\d{1,9}|O\d")


def load_arrays(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of arrays and builtin containers, and refuse any other pickle without running it.

    Args:
        path: a pickle of any protocol, from Python 2 or 3, not compressed. Python 2's byte strings are read as latin-1
            text.
    Returns:
        The pickled value, made of read-only arrays, NumPy's numbers, and builtin containers, strings and numbers; all
        kinds of dictionaries become plain ones.
    Raises:
        ValueError: the file is missing, cannot be read, is no whole pickle, or names anything else.
    """
    try:
        with open(path, "rb") as file:
            return read_arrays(file, os.fspath(path))
    except OSError as error:
        raise ValueError(f"the pickle {os.fspath(path)} cannot be read: {error.strerror or error}") from error


def read_arrays(file: IO[bytes], name: str) -> Any:
    """Read a pickle of arrays from an open file, as `load_arrays` does.

    Args:
        file: the file, open for reading bytes, at the pickle's first byte.
        name: the name that errors use.
    Returns:
        The pickled value, as `load_arrays` returns it.
    Raises:
        ValueError: the file is no whole pickle, or names anything but arrays and builtin containers.
    """
    try:
        content = _ArraysOnly(file, encoding="latin1").load()
        if file.read(1):
            raise ValueError("it goes on after the end of the pickle; several in one file are not read")
        return _finished(content, {})
    except _Refused as error:
        raise ValueError(
            f"the pickle {name} was refused: it asks for {error}, and only arrays and builtin containers, strings and "
            "numbers are read, for anything else could run foreign code (nothing was run); export it as plain arrays"
        ) from error
    except Exception as error:  # a damaged pickle can fail anywhere in the reader
        raise ValueError(
            f"{name} is not a whole pickle of arrays: it is truncated, damaged or some other kind of file "
            f"({type(error).__name__}: {' '.join(str(error).split())}); get another copy"
        ) from error


class _Refused(Exception):
    """The pickle names something that is not admitted; the text says what."""


class _Dtype:
    """A dtype in the form that pickles have: a code, followed by its byte order."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not DTYPE_CODE.fullmatch(code):
            raise _Refused(f"an array of dtype {code!r}")
        self.code = code
        self.byte_order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        match state:  # version, byte order, sub-array, names, fields, and sizes that the code says already
            case (_, "<" | ">" | "=" | "|" as byte_order, None, None, None, *_):
                self.byte_order = byte_order
            case _:
                raise _Refused("an array of a structured dtype")

    def made(self) -> np.dtype[Any]:
        return np.dtype(object if self.code.startswith("O") else self.byte_order + self.code)


class _Array:
    """An array in the form that pickles have: empty at first, followed by its shape, dtype and content."""

    def __init__(self, *ignored: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def made(self, finish: Callable[[Any], Any]) -> np.ndarray:
        _, shape, dtype, is_fortran, content = self.state
        if dtype.code.startswith("O"):
            array = np.empty(len(content), object)
            for i, entry in enumerate(content):  # a slice would look for arrays inside
                array[i] = finish(entry)
        else:
            array = np.frombuffer(_bytes(content), dtype.made())
        return array.reshape(shape, order="F" if is_fortran else "C")


class _Buffer(_Array):
    """An array in the form that protocol 5 has, made by one call."""

    def __init__(self, content: bytes, dtype: _Dtype, shape: Any, order: str, axes: Any = None) -> None:
        self.axes = axes if order == "K" else None
        self.state = (1, shape, dtype, order == "F", content)

    def made(self, finish: Callable[[Any], Any]) -> np.ndarray:
        array = super().made(finish)
        return array if self.axes is None else array.transpose(self.axes)


def _scalar(dtype: _Dtype, content: bytes | str) -> Any:
    # Made at once, not afterwards, since it may be the key of a dictionary.
    return np.frombuffer(_bytes(content), dtype.made())[0]


def _bytes(content: bytes | str) -> bytes:
    return content.encode("latin-1") if isinstance(content, str) else content


ADMITTED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _codecs.encode,  # bytes, in protocols before 3
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "ndarray",  # only ever the first argument of _reconstruct, which has no use for it
    **{
        (f"{core}.{name}", function): substitute
        for core in ("numpy.core", "numpy._core")  # before NumPy 2, and since
        for name, function, substitute in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _Buffer),
        )
    },
    **{
        (builtins, kind.__name__): kind
        for builtins in ("__builtin__", "builtins")  # of Python 2 and 3
        for kind in (bytearray, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
    },
}
"""The names that a pickle may use, and the objects that stand in for them."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """Copy a value into plain types and arrays; shared objects stay shared, so that a small pickle stays small."""

    def finish(entry: Any) -> Any:
        if id(entry) not in done:
            done[id(entry)] = _finished(entry, done)
        return done[id(entry)]

    match value:
        case _Array():
            return value.made(finish)
        case _Dtype():
            return value.made()
        case dict():
            return {finish(key): finish(entry) for key, entry in value.items()}
        case list():
            return [finish(entry) for entry in value]
        case tuple():
            return tuple(finish(entry) for entry in value)
        case set():
            return {finish(entry) for entry in value}
        case frozenset():
            return frozenset(finish(entry) for entry in value)
        case None | bool() | int() | float() | complex() | str() | bytes() | bytearray() | np.generic():
            return value
    raise _Refused(f"{value!r} as a value")
