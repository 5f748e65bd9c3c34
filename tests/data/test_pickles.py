"""Pickles of arrays: what is plain comes back exactly, and nothing else does anything."""

import collections
import io
import os
import pickle
import subprocess
from typing import Any

import numpy as np
import pytest
import torch

from metarl_l2f.supervised.data.pickles import load_arrays, read_arrays

PLAIN: dict[str, Any] = {
    "bytes": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    "floats": np.array([0.5, -1.0], np.float32),
    "foreign order": np.arange(3, dtype=">i4"),
    "by columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "no rows": np.empty((0, 3)),
    "no axes": np.array(3),
    "flags": np.array([True, False]),
    "texts": np.array(["a", "bcd"]),
    "byte strings": np.array([b"a", b"bcd"]),
    "objects": np.array([[1, "x"], [None, np.zeros(2)]], object),
    "a number": np.float32(3.0),
    "keys that are numbers": {np.int64(3): [np.str_("x")], 4: (1, [2, (3,)])},
    "sets": [{1, 2}, frozenset({"a"})],
    "python": [None, True, 1, 2**80, 0.5, 1 + 2j, "ä", b"\xff", b"", bytearray(b"x"), ()],
}

# protocol 2, as Python 2 wrote {"image_data": np.arange(3, dtype=np.uint8), "class_dict": {"n01": [0, 2], "n02": [1]}}
PYTHON_2 = (
    b"\x80\x02}q\x00(U\nimage_dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04"
    b"U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x03\x85q\x08cnumpy\ndtype\nq\tU\x02u1q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01|NNN"
    b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\x00\x01\x02tbU\nclass_dictq\x0dccollections\nOrderedDict\nq\x0e"
    b"]q\x0f(]q\x10(U\x03n01q\x11]q\x12(K\x00K\x02ee]q\x13(U\x03n02q\x14]q\x15K\x01aee\x85q\x16Rq\x17u."
)


class Call:
    """Unpickles as the result of a call."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def loaded(value, protocol=4):
    return read_arrays(io.BytesIO(pickle.dumps(value, protocol)), "the file")


def exactly_equal(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(exactly_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(exactly_equal, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and exactly_equal(a.tolist(), b.tolist())
    return bool(a == b)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_come_back_exactly(name, protocol):
    assert exactly_equal(loaded(PLAIN[name], protocol), PLAIN[name])


def test_every_kind_of_dictionary_comes_back_plain():
    indices = collections.defaultdict(list, b=[1], a=[0])
    value = collections.OrderedDict(second=indices, first=1)
    assert exactly_equal(loaded(value, 2), {"second": {"b": [1], "a": [0]}, "first": 1})


def test_what_python_2_wrote_is_read_as_text():
    content = read_arrays(io.BytesIO(PYTHON_2), "the file")
    images = np.arange(3, dtype=np.uint8)
    assert exactly_equal(content, {"image_data": images, "class_dict": {"n01": [0, 2], "n02": [1]}})


def test_names_of_numpy_1_and_2_are_both_read():
    content = pickle.dumps(np.arange(3), 2)
    assert b"numpy._core.multiarray" in content
    older = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert exactly_equal(read_arrays(io.BytesIO(older), "the file"), np.arange(3))


def test_a_file_is_read_by_its_path(tmp_path):
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(PLAIN["bytes"]))
    assert exactly_equal(load_arrays(path), PLAIN["bytes"])
    assert exactly_equal(load_arrays(str(path)), PLAIN["bytes"])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "arguments", "asked_for"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (os.mkdir, ("{}",), "posix.mkdir"),
        (subprocess.getoutput, ("touch {}",), r"(commands|subprocess).getoutput"),
        (eval, ("open({!r}, 'w')",), r"(__builtin__|builtins).eval"),
        (exec, ("open({!r}, 'w')",), r"(__builtin__|builtins).exec"),
        (open, ("{}", "w"), r"_?io.open"),
        (getattr, ("{}", "upper"), r"(__builtin__|builtins).getattr"),
        (np.save, ("{}", 1), "numpy.save"),
        (np.load, ("{}",), "numpy.load"),
        (np.fromfile, ("{}",), r"numpy\S*.fromfile"),
        (torch.save, (1, "{}"), "torch.serialization.save"),
    ],
)
def test_calls_that_are_not_admitted_are_refused_before_they_run(tmp_path, function, arguments, asked_for, protocol):
    canary = tmp_path / "canary"
    path = tmp_path / "hostile.pkl"
    arguments = [entry.format(str(canary)) if isinstance(entry, str) else entry for entry in arguments]
    path.write_bytes(pickle.dumps([Call(function, *arguments)], protocol))
    with pytest.raises(ValueError, match=rf"hostile\.pkl was refused: it asks for {asked_for}, .*nothing was run"):
        load_arrays(path)
    assert not canary.exists()


def test_the_canary_would_notice(tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps([Call(os.mkdir, str(canary))]))
    assert canary.exists()


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2),
        torch.float32,
        torch.nn.Linear(1, 1),
        np.random.RandomState(0),
        np.ma.array([1]),
        io.BytesIO(b"x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_that_are_no_arrays_are_refused(value):
    with pytest.raises(ValueError, match=r"the file was refused: it asks for .*export it as plain arrays"):
        loaded(value)


class Named(np.ndarray):
    pass


def test_subclasses_of_arrays_are_refused():
    with pytest.raises(ValueError, match=r"asks for \S*test_pickles.Named"):
        loaded(np.zeros(2).view(Named))


def test_a_dotted_name_reaches_nothing_behind_an_admitted_one():
    content = b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93."  # STACK_GLOBAL
    with pytest.raises(ValueError, match=r"asks for numpy\.dtype\.__init__"):
        read_arrays(io.BytesIO(content), "the file")


def test_external_objects_are_refused():
    with pytest.raises(ValueError, match="the file is not a whole pickle"):
        read_arrays(io.BytesIO(b"P7\n."), "the file")


@pytest.mark.parametrize("dtype", [[("a", "O")], "M8[s]", "V8", (np.record, [("a", "i4")])])
def test_arrays_of_records_dates_and_memory_are_refused(dtype):
    with pytest.raises(ValueError, match="was refused: it asks for"):
        loaded(np.zeros(2, dtype), 4)


def test_a_dtype_that_says_number_and_record_at_once_is_refused():
    state = (3, "|", None, ("a",), {"a": (np.dtype("u1"), 0)}, 1, 1, 0)
    with pytest.raises(ValueError, match="asks for an array of a structured dtype"):
        loaded(Call(np.dtype, "u1", False, True, state=state))


def test_arrays_are_not_made_without_content():
    with pytest.raises(ValueError, match="the file is not a whole pickle"):
        loaded(Call(np.ndarray, (2,)))


# A pointer to nowhere: NumPy's own function follows it, and crashes, where the dtype's flags are 0.
POINTER = b"\x41" * 8


def forged_dtype(code, flags):
    return Call(np.dtype, code, False, True, state=(3, "|", None, None, None, -1, -1, flags))


@pytest.mark.parametrize("flags", [0, 63])
def test_bytes_are_not_taken_for_objects(flags):
    scalar = np.float32(1).__reduce__()[0]
    with pytest.raises(ValueError, match="the file is not a whole pickle"):
        loaded(Call(scalar, forged_dtype("O8", flags), POINTER))
    rebuild = np.zeros(1).__reduce__()[0]
    state = (1, (1,), forged_dtype("O8", flags), False, POINTER)
    # Each byte becomes a number of its own, and 8 of them do not fit the shape (1,).
    with pytest.raises(ValueError, match="the file is not a whole pickle"):
        loaded(Call(rebuild, np.ndarray, (0,), b"b", state=state))


def test_an_array_may_not_be_larger_than_its_content():
    rebuild = np.zeros(1).__reduce__()[0]
    for shape in [(10**12,), (-1, -1), (3,)]:
        state = (1, shape, np.dtype(np.uint8), False, b"ab")
        with pytest.raises(ValueError, match="the file is not a whole pickle"):
            loaded(Call(rebuild, np.ndarray, (0,), b"b", state=state))


@pytest.mark.parametrize("state", [{"code": "O8"}, (None, {"__setstate__": list, "code": "O8"})])
def test_a_pickle_cannot_change_what_it_is_given(state):
    for target in (np.dtype, np.ndarray, collections.OrderedDict, Call(np.dtype, "u1", False, True)):
        # BUILD: the object, its state, and the order to give the one to the other.
        content = b"\x80\x04" + pickle.dumps(target, 4)[2:-1] + pickle.dumps(state, 4)[2:-1] + b"b."
        with pytest.raises(ValueError, match="the file"):
            read_arrays(io.BytesIO(content), "the file")
    assert exactly_equal(loaded(PLAIN), PLAIN)


def test_functions_and_types_are_no_values():
    with pytest.raises(ValueError, match="asks for <class 'list'> as a value"):
        loaded([list])


def test_what_is_shared_stays_shared():
    value: list[Any] = [0]
    for _ in range(60):  # 2⁶⁰ numbers if it were copied
        value = [value, value]
    twice = loaded(value)
    assert twice[0] is twice[1]


def test_a_list_inside_itself_is_refused():
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="the file is not a whole pickle of arrays"):
        loaded(value)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_cut_short_is_refused_by_its_name(tmp_path, protocol):
    content = pickle.dumps({"data": PLAIN["bytes"], "labels": [1, 2]}, protocol)
    path = tmp_path / "cut.pkl"
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pkl is not a whole pickle of arrays: it is truncated, damaged"):
            load_arrays(path)


def test_a_file_that_goes_on_after_its_pickle_is_refused():
    first, second = pickle.dumps(PLAIN["bytes"]), pickle.dumps([1])
    assert exactly_equal(read_arrays(io.BytesIO(first), "the file"), PLAIN["bytes"])
    with pytest.raises(ValueError, match=r"the file is not a whole pickle .*it goes on after the end of the pickle"):
        read_arrays(io.BytesIO(first + second), "the file")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x89PNG\r\n", b"filename,label\n", b"\x80\x09.", b"\x00" * 99]
)
def test_other_files_are_refused_by_their_name(tmp_path, content):
    path = tmp_path / "other.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.pkl is not a whole pickle of arrays.*get another copy"):
        load_arrays(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the pickle .*none.pkl cannot be read: No such file"):
        load_arrays(tmp_path / "none.pkl")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        load_arrays(tmp_path)
