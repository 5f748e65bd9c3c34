"""The launchers: files of the package `launchers`, found by their names."""

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
    package = importlib.util.find_spec(PACKAGE)
    folders = package.submodule_search_locations if package is not None else []
    if launcher not in [found.name for found in pkgutil.iter_modules(folders)]:
        raise LookupError(f"{launcher!r} is no launcher here")
    module = importlib.import_module(f"{PACKAGE}.{launcher}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, RunOptions) and value.__module__ == module.__name__:
            return value
    raise LookupError(f"{launcher!r} is no launcher here that trains")
