"""The content of config.json: a run's options as plain JSON and back, and where its numbers come from."""

import dataclasses
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import types
import typing
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("metarl_l2f", "torch", "numpy", "gymnasium", "mujoco")
DESCRIBE = ["describe", "--always", "--dirty", "--abbrev=12"]


def to_json(value: Any) -> Any:
    """Convert nested dataclasses, tuples and paths to objects, lists and strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(kind: Any, data: Any, name: str = "the options") -> Any:
    """Invert `to_json`, guided by type annotations; a missing key takes the field's default.

    Args:
        kind: a dataclass, or the annotation of one of its fields.
        data: the value as json.load returned it.
        name: the name of the value in errors.

    Raises:
        ValueError: a key is no field of the dataclass, or a value is not of its kind.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        _expect(name, data, dict)
        if unknown := set(data) - {f.name for f in dataclasses.fields(kind)}:
            raise ValueError(f"{kind.__name__} has no option {sorted(unknown)}; the run is of another version")
        return kind(**{field: from_json(hints[field], value, field) for field, value in data.items()})
    if origin in (typing.Union, types.UnionType):
        return None if data is None else from_json(next(a for a in arguments if a is not type(None)), data, name)
    if origin is typing.Literal:
        _expect(name, data, *{type(value) for value in arguments})
        if data not in arguments:
            raise ValueError(
                f"{name} in config.json must be one of {list(arguments)}, got {data!r}; put back what was there"
            )
    elif origin is tuple:
        _expect(name, data, list)
        return tuple(from_json(arguments[0], item, name) for item in data)
    elif kind in (bool, int, float, str):
        _expect(name, data, *((int, float) if kind is float else (kind,)))
    elif kind is Path:
        _expect(name, data, str)
        return Path(data)
    return data


def _expect(name: str, data: Any, *kinds: type) -> None:
    if type(data) not in kinds:  # True is an int, but no number of tasks.
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name} in config.json must be of type {expected}, got {data!r}; put back what was there")


def provenance() -> dict[str, Any]:
    """Return the command, the versions, and the git commit of the working copy, where there is one."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"command": command(None, *sys.argv[1:]), "versions": versions, "git_commit": _git_commit()}


def command(launcher: str | None, *arguments: object) -> str:
    """Return the command that starts a program of this package, in a shell with this folder and environment.

    A launcher is named the way the running program was: `python launchers/NAME.py` beside a script, else
    `python -m metarl_l2f.launchers.NAME`, which works wherever the package is installed.

    Args:
        launcher: the program's name, such as `navigation`; None for the running program itself.
        arguments: the program's arguments, which are quoted for the shell.
    """
    spec, script = getattr(sys.modules["__main__"], "__spec__", None), Path(sys.argv[0])
    if launcher is None:
        how = [sys.argv[0]] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    elif spec is None and script.absolute().parent.name == "launchers":
        how = [str(script.with_name(f"{launcher}.py"))]
    else:
        how = ["-m", f"metarl_l2f.launchers.{launcher}"]
    return shlex.join([_interpreter(), *how, *map(str, arguments)])


def _interpreter() -> str:
    """`python` where that is the one that runs, else its path: make starts it without activating the environment."""
    found, running = shutil.which("python"), Path(sys.executable or "python")
    # Interpreters of virtual environments link to one file; their folders tell them apart.
    if not sys.executable or (found is not None and Path(found).parent.resolve() == running.parent.resolve()):
        return "python"
    return os.path.relpath(running) if running.is_relative_to(Path.cwd()) else str(running)


def _git_commit() -> str | None:
    """The commit of the working copy that this file is tracked in, marked if changed; None for an installed package.

    A package may be installed inside some other project's working copy, whose commit would say nothing.
    """
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        for arguments in (["ls-files", "--error-unmatch", Path(__file__).name], DESCRIBE):
            found = subprocess.run([*git, *arguments], capture_output=True, text=True, check=True, timeout=10)
        return found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Flatten nested options to names such as settings.inner.inner_lr; lists and None become their JSON."""
    lines: dict[str, bool | int | float | str] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            lines |= flat(value, f"{prefix}{name}.")
        else:
            lines[prefix + name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return lines
