"""The launchers: files of the package `launchers`, found by their names."""

import contextlib
import importlib
import importlib.util
import pkgutil

from .options import RunOptions

PACKAGE = "metarl_l2f.launchers"


def options_of(launcher: object) -> type[RunOptions]:
    """The class of a training launcher's options.

    Nothing is imported but a file of the package, whatever a damaged or hostile config.json names.

    Args:
        launcher: its name, such as `navigation`.
    Raises:
        LookupError: there is no such launcher, or it trains nothing.
    """
    if launcher not in _names():
        raise LookupError(f"{launcher!r} is no launcher here")
    module = importlib.import_module(f"{PACKAGE}.{launcher}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, RunOptions) and value.__module__ == module.__name__:
            return value
    raise LookupError(f"{launcher!r} is no launcher here that trains")


def training_launchers() -> dict[str, type[RunOptions]]:
    """The class of the options of every launcher that trains, by the launcher's name; imports them all."""
    found = {}
    for name in _names():
        with contextlib.suppress(LookupError):
            found[name] = options_of(name)
    return found


def _names() -> list[str]:
    """The files of the package."""
    package = importlib.util.find_spec(PACKAGE)
    folders = package.submodule_search_locations if package is not None else []
    return [found.name for found in pkgutil.iter_modules(folders)]
