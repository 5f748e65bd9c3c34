"""config.json: options to plain JSON and back, and refusals that name the option."""

import json
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from metarl_l2f.training.config import command, flat, from_json, provenance, to_json


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


# --- What a program calls itself ---


@pytest.fixture
def running(monkeypatch, tmp_path):
    """As if a program ran as given, in an empty folder; `python` finds the interpreter that runs it."""
    monkeypatch.chdir(tmp_path)

    def pretend(argv, module=None, interpreter="/there/bin/python", found="/there/bin/python"):
        spec = None if module is None else types.SimpleNamespace(name=module)
        monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__spec__=spec))
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "executable", str(interpreter))
        monkeypatch.setattr("shutil.which", lambda name: found)

    return pretend


@pytest.mark.parametrize(
    ("argv", "module", "itself", "other"),
    [
        # A script is beside the others; a relative path stays one.
        (["launchers/ant.py"], None, "python launchers/ant.py", "python launchers/evaluate.py"),
        (["../it/launchers/ant.py"], None, "python ../it/launchers/ant.py", "python ../it/launchers/evaluate.py"),
        (["/a b/launchers/ant.py"], None, "python '/a b/launchers/ant.py'", "python '/a b/launchers/evaluate.py'"),
        # With -m, Python puts the file's path into argv.
        (
            ["/lib/metarl_l2f/launchers/ant.py"],
            "metarl_l2f.launchers.ant",
            "python -m metarl_l2f.launchers.ant",
            "python -m metarl_l2f.launchers.evaluate",
        ),
        # Somebody's own program.
        (["mine.py"], None, "python mine.py", "python -m metarl_l2f.launchers.evaluate"),
        (["/lib/mine/__main__.py"], "mine.__main__", "python -m mine", "python -m metarl_l2f.launchers.evaluate"),
    ],
)
def test_programs_are_named_the_way_the_running_one_was(running, argv, module, itself, other):
    running(argv, module)
    assert (command(None), command("evaluate")) == (itself, other)


def test_arguments_are_quoted_for_the_shell(running):
    running(["launchers/ant.py"])
    assert command("ant", "--resume", Path("my runs/a;b")) == "python launchers/ant.py --resume 'my runs/a;b'"


def test_an_interpreter_that_python_does_not_find_is_named_by_its_path(running, tmp_path):
    running(["launchers/ant.py"], found="/usr/bin/python")
    assert command(None) == "/there/bin/python launchers/ant.py"
    running(["launchers/ant.py"], interpreter=tmp_path / ".venv" / "bin" / "python", found=None)
    assert command(None) == ".venv/bin/python launchers/ant.py"  # What `make` starts.


def test_the_commit_of_a_project_that_only_contains_the_package_is_not_taken_for_its_own(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=theirs"], check=True)
    installed = tmp_path / "config.py"
    installed.write_text(Path(provenance.__code__.co_filename).read_text("utf-8"), "utf-8")
    program = "from config import provenance; print(provenance()['git_commit'])"
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "None\n"
    subprocess.run([*git, "add", "config.py"], check=True)
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout != "None\n"
