"""Command lines are read into options; an error ends a program with one clear line."""

import dataclasses
import itertools
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro

from ..parallel.ranks import Group, RankError, StoppedError
from ..rl.workers import WorkerError
from ..supervised.data.pictures import UnlikeError
from ..training.config import command, from_json, to_json
from ..training.run_folder import RunExistsError, RunLockedError, RunMissingError
from .load import read_config
from .options import RunOptions

USER_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, RankError, WorkerError)
"""Errors that end a program with one clear message instead of a traceback."""
HINTS: Mapping[type[Exception], str] = {
    RunMissingError: "without --resume a new run starts",
    RunExistsError: "--resume names a run to continue, --log-dir the folder of a new one",
    RunLockedError: "--log-dir names another folder",
    RankError: "--rank-timeout sets how long ranks wait for each other",
    UnlikeError: "--image-size and --channels do so",
}
"""Hints at flags, by the library's errors that they concern; the library itself knows no flags."""
Options = TypeVar("Options", bound=RunOptions)
Read = TypeVar("Read")


def fail(message: object) -> int:
    """Print one clear error, with the notes that an exception carries and the flags that concern it.

    Returns:
        The exit status, 2.
    """
    if isinstance(message, StoppedError):  # Rank 0 prints it.
        return 2
    notes = [*getattr(message, "__notes__", []), *(hint for kind, hint in HINTS.items() if isinstance(message, kind))]
    print("; ".join([f"error: {message}", *notes]), file=sys.stderr)
    return 2


def read_alone(kind: type[Read], arguments: list[str] | None) -> Read:
    """The command line of a program that does not train, so that ranks cannot share its work.

    Args:
        kind: the class of its options.
        arguments: the command line; by default the process's own.
    Raises:
        ValueError: torchrun started several ranks; StoppedError on all but rank 0.
    """
    ranks = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if ranks > 1:
        sentence = f"only training is shared: each of {ranks} ranks would do all of this; start it without torchrun"
        raise ValueError(sentence) if os.environ["RANK"] == "0" else StoppedError(sentence)
    return tyro.cli(kind, args=arguments)


def parse(default: Options, arguments: list[str] | None = None, group: Group | None = None) -> Options:
    """Read the command line; --method sets all defaults to the method's own, which further flags override.

    With --resume the stored run's options are the defaults, and what defines it stays.

    Args:
        default: the options without flags.
        arguments: the command line; by default the process's own.
        group: the processes that share the run, of which rank 0 reads the stored options.
    Raises:
        ValueError: an option that defines the run was changed on resume.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    resumed = _resumed_folder(arguments)
    if resumed is not None:
        stored = (group or Group()).from_first(lambda: _resumed_options(resumed, default))
        default = dataclasses.replace(
            from_json(type(default), stored), rank_timeout=default.rank_timeout, log_dir=resumed, resume=resumed
        )
    elif method := value_of("--method", arguments):
        default = default.with_method(method)
    options = tyro.cli(type(default), default=default, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    if resumed is not None:
        if options.log_dir is not None and options.log_dir.resolve() != resumed.resolve():
            raise ValueError(
                f"a resumed run stays in its own folder, {resumed}, but log_dir is {options.log_dir}; drop --log-dir, "
                "or resume a copy"
            )
        options = dataclasses.replace(options, log_dir=resumed, resume=resumed)
        if names := changed(default, options):
            raise ValueError(
                f"{', '.join(names)} cannot change when {resumed} is resumed: it would be another run; drop the "
                "flags, or start a new run without --resume"
            )
    return options


def changed(before: RunOptions, now: RunOptions) -> list[str]:
    """The options that differ, but must not within one run."""
    old, new = to_json(before), to_json(now)
    return sorted(name for name in old if old[name] != new[name] and name not in now.may_change_on_resume)


def _resumed_folder(arguments: Collection[str]) -> Path | None:
    values = _values_of("--resume", arguments)
    if len(values) > 1:
        raise ValueError(f"resume must be given once, got {' and '.join(map(str, values))}; name one run")
    return Path(values[0]) if values and values[0] is not None else None


def _resumed_options(run: Path, default: RunOptions) -> dict[str, Any]:
    """The stored options of a run of the launcher whose options without flags these are."""
    config, launcher = read_config(run), default.launcher
    if (made_by := str(config.get("launcher"))) != launcher:
        raise ValueError(
            f"{run} is a run of {made_by}.py, not of {launcher}.py; go on with: {command(made_by, '--resume', run)}"
        )
    return {name: value for name, value in config["options"].items() if name not in default.retired}


def value_of(flag: str, arguments: Collection[str]) -> str | None:
    """The value of a flag on the command line; None without it. Of several the last one counts, as for the parser."""
    return (_values_of(flag, arguments) or [None])[-1]


def _values_of(flag: str, arguments: Collection[str]) -> list[str | None]:
    """The values of a flag on the command line, each as `--flag value` or `--flag=value`."""
    values = []
    for argument, following in itertools.zip_longest(arguments, list(arguments)[1:]):
        name, assigned, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            values.append(value if assigned else following)
    return values
