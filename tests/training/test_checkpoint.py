"""Checkpoints: what is saved comes back exactly, and nothing else comes back at all."""

import builtins
import errno
import math
import os
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch

from metarl_l2f.training import checkpoint, files
from metarl_l2f.training.checkpoint import CheckpointError

STATE: dict[str, Any] = {
    "iteration": 7,
    "theta": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([0.1, -0.0, math.nan])},
    "optimizer": {"state": {0: {"step": torch.tensor(7.0)}}, "betas": (0.9, 0.999), "groups": [[0], []]},
    "method": "l2f",
    "best": None,
    "limit": math.inf,
    "large": 2**80,
    "flag": True,
}


def exactly_equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(exactly_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(exactly_equal, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    return path


class Exploit:
    """Makes a folder when unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_state_comes_back_exactly(path):
    assert exactly_equal(checkpoint.load(path), STATE)
    assert [entry.name for entry in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_tensors_of_every_kind_come_back_exactly(tmp_path, dtype, shape):
    state = {"tensor": torch.ones(shape).to(dtype)}
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    assert exactly_equal(checkpoint.load(tmp_path / "checkpoint.pt"), state)


def test_a_network_and_its_optimizer_continue_where_they_were(tmp_path):
    def build():
        network = torch.nn.Linear(2, 1)
        return network, torch.optim.Adam(network.parameters())

    def step(network, optimizer):
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    network, optimizer = build()
    step(network, optimizer)
    checkpoint.save(tmp_path / "c.pt", {"network": network.state_dict(), "optimizer": optimizer.state_dict()})
    resumed_network, resumed_optimizer = build()
    state = checkpoint.load(tmp_path / "c.pt")
    resumed_network.load_state_dict(state["network"])
    resumed_optimizer.load_state_dict(state["optimizer"])
    optimizer.zero_grad()
    step(network, optimizer)
    step(resumed_network, resumed_optimizer)
    assert exactly_equal(dict(resumed_network.state_dict()), dict(network.state_dict()))


def test_a_parameter_becomes_its_value_and_a_view_brings_no_more_than_itself(tmp_path):
    large = torch.nn.Parameter(torch.zeros(1_000_000))
    checkpoint.save(tmp_path / "c.pt", {"view": large[:3]})
    tensor = checkpoint.load(tmp_path / "c.pt")["view"]
    assert not tensor.requires_grad
    assert (tmp_path / "c.pt").stat().st_size < 10_000


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"a": {"b": [0, object()]}}, r"state\['a'\]\['b'\]\[1\] is builtins.object"),
        ({"array": np.zeros(2)}, r"state\['array'\] is numpy.ndarray.*torch.from_numpy"),
        ({"count": np.int64(1)}, r"state\['count'\] is numpy.int64"),
        ({"a": {(1, 2): 0}}, r"state\['a'\] has the key \(1, 2\)"),
    ],
)
def test_anything_but_plain_values_is_refused_by_its_place(tmp_path, state, named):
    with pytest.raises(TypeError, match=named):
        checkpoint.save(tmp_path / "c.pt", state)
    assert not list(tmp_path.iterdir())


def test_a_bit_flip_is_refused_or_changes_nothing(path):
    content = path.read_bytes()
    rng = random.Random(0)
    # The last 98 bytes are the archive's closing records, where a reader is most easily led astray.
    places = [*rng.sample(range(len(content)), 50), *range(len(content) - 98, len(content))]
    refused = 0
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert exactly_equal(checkpoint.load(path), STATE)
        except CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0


def test_a_flip_in_any_bit_of_a_weight_is_called_damage(path):
    content = path.read_bytes()
    place = content.index(STATE["theta"]["weight"].numpy().tobytes())
    for bit in range(8 * 24):
        flipped = bytearray(content)
        flipped[place + bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="is damaged: its content is not what was written"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"iteration": 8},
        {"iteration": "7"},
        {"best": 0},
        {"flag": 1},
        {"unknown": None},
        {"theta": STATE["theta"] | {"weight": STATE["theta"]["weight"].reshape(3, 2)}},
        {"theta": STATE["theta"] | {"weight": STATE["theta"]["weight"].view(torch.int32)}},
    ],
)
def test_a_whole_archive_with_another_value_is_called_damaged(path, change):
    content = torch.load(path)
    torch.save(content | {"state": content["state"] | change}, path)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("length", [0, 1, 4, 100, 0.5, -1])
def test_a_truncated_file_is_called_truncated(path, length):
    content = path.read_bytes()
    content = content[: int(length * len(content)) if isinstance(length, float) else length]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"checkpoint.pt is truncated: .* {len(content)} bytes"):
        checkpoint.load(path)


def test_a_missing_file_is_called_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*absent.pt"):
        checkpoint.load(tmp_path / "absent.pt")


def test_a_folder_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be read: Is a directory"):
        checkpoint.load(tmp_path)


def test_another_kind_of_file_is_called_no_checkpoint(path):
    path.write_text('{"iteration": 1}')
    with pytest.raises(CheckpointError, match="is not a checkpoint but some other file"):
        checkpoint.load(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="is a torch file but not a checkpoint of metarl_l2f"):
        checkpoint.load(path)


def test_another_format_is_named(path):
    torch.save(torch.load(path) | {"format": 2}, path)
    with pytest.raises(CheckpointError, match="has format 2, and this version of metarl_l2f reads format 1"):
        checkpoint.load(path)


@pytest.mark.parametrize("form", ["pickle", "torch", "old torch", "checkpoint"])
def test_code_in_a_file_does_not_run(tmp_path, form):
    path, target = tmp_path / "checkpoint.pt", tmp_path / "made by the exploit"
    match form:
        case "pickle":
            path.write_bytes(pickle.dumps(Exploit(target)))
        case "torch":
            torch.save(Exploit(target), path)
        case "old torch":
            torch.save(Exploit(target), path, _use_new_zipfile_serialization=False)
        case "checkpoint":
            torch.save({"format": 1, "sha256": "", "state": Exploit(target)}, path)
    with pytest.raises(CheckpointError, match=r"is not a checkpoint|was refused"):
        checkpoint.load(path)
    assert not target.exists()


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_on_full_disk(_, mode):
    return builtins.open("/dev/full", mode)  # a device that fails as a full disk does


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [(files, "open", open_on_full_disk), (os, "fsync", no_space), (os, "replace", no_space)],
    ids=["write", "fsync", "rename"],
)
def test_a_full_disk_leaves_the_previous_checkpoint(path, module, name, broken, monkeypatch):
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, name, broken, raising=False)
        with pytest.raises(
            CheckpointError, match=r"could not write .*checkpoint.pt: No space left on .*then resume the run"
        ):
            checkpoint.save(path, {"iteration": 8})
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"could not write .*absent/c.pt: No such file or directory"):
        checkpoint.save(tmp_path / "absent" / "c.pt", STATE)


def test_content_reaches_the_disk_before_its_name_and_its_name_before_save_returns(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *_: calls.append("replace"))
    checkpoint.save(tmp_path / "c.pt", STATE)
    assert calls == ["fsync", "replace", "fsync"]


def test_saving_leaves_the_state_alone(tmp_path):
    theta = torch.nn.Parameter(torch.ones(2))
    state = {"theta": theta, "betas": (0.9,)}
    checkpoint.save(tmp_path / "c.pt", state)
    assert state == {"theta": theta, "betas": (0.9,)}
    assert theta.requires_grad
