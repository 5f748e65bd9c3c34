"""config.json: options to plain JSON and back, and refusals that name the option."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from metarl_l2f.training.config import flat, from_json, to_json


@dataclass(frozen=True)
class Inner:
    steps: int = 1
    sizes: tuple[int, ...] = (40, 40)


@dataclass(frozen=True)
class Outer:
    method: Literal["l2f", "maml"] = "l2f"
    rate: float = 0.1
    folder: Path | None = None
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize("options", [Outer(), Outer("maml", 1.0, Path("runs/a"), Inner(3, ()))])
def test_options_survive_json(options):
    assert from_json(Outer, json.loads(json.dumps(to_json(options)))) == options


def test_a_missing_option_takes_its_default():
    assert from_json(Outer, {"inner": {"steps": 2}}) == Outer(inner=Inner(2))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"method": "reptile"}, r"method in config.json must be one of \['l2f', 'maml'\], got 'reptile'"),
        ({"method": True}, "method in config.json must be of type str, got True"),
        ({"rate": "0.1"}, "rate in config.json must be of type int or float, got '0.1'"),
        ({"inner": {"steps": True}}, "steps in config.json must be of type int, got True"),
        ({"inner": {"sizes": 40}}, "sizes in config.json must be of type list, got 40"),
        ({"temperature": 1}, r"Outer has no option \['temperature'\]"),
        ([], r"the options in config.json must be of type dict, got \[\]"),
    ],
)
def test_other_content_is_refused_by_name(data, text):
    with pytest.raises(ValueError, match=text):
        from_json(Outer, data)


def test_nested_options_are_one_line_each():
    assert flat(to_json(Outer())) == {
        "method": "l2f",
        "rate": 0.1,
        "folder": "null",
        "inner.steps": 1,
        "inner.sizes": "[40, 40]",
    }
