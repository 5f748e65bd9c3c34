"""Finished and interrupted runs, read from their folders."""

import dataclasses
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..training.checkpoint import CheckpointError
from ..training.checkpoint import load as load_checkpoint
from ..training.config import flat, from_json, to_json
from ..training.run_folder import BEST_FILE, CHECKPOINT_FILE, CONFIG_FILE
from .options import DeviceOptions, RunOptions
from .registry import options_of, training_launchers

logger = logging.getLogger(__name__)
Kind = TypeVar("Kind", bound=RunOptions)


def read_config(run: Path) -> dict[str, Any]:
    """A run's config.json.

    Raises:
        ValueError: the folder holds no run, or its configuration is damaged.
    """
    path = Path(run) / CONFIG_FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{run} holds no run: there is no {path}; give the folder that a launcher wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it, or start a new run") from error
    if not isinstance(content, dict) or not isinstance(content.get("options"), dict):
        raise ValueError(f"{path} is not a run's configuration: it has no options; restore it, or start a new run")
    return content


def kind_of(run: Path) -> type[RunOptions]:
    """The class of the options of the launcher that made a run.

    Raises:
        ValueError: the folder holds no run, or one of a launcher that is not here.
    """
    launcher = read_config(run).get("launcher")
    try:
        return options_of(launcher)
    except LookupError:
        raise ValueError(
            f"{run} says it is a run of {launcher!r}, which is no launcher here; give another folder"
        ) from None


def checked_kind(run: Path, expected: type[Kind]) -> type[Kind]:
    """`kind_of` a run, which must be a certain kind or derive from it.

    Raises:
        ValueError: it is of another.
    """
    kind = kind_of(run)
    if not issubclass(kind, expected):
        names = ", ".join(name for name, other in training_launchers().items() if issubclass(other, expected))
        raise ValueError(f"{run} is a run of {read_config(run)['launcher']}.py; give one of {expected.kind} ({names})")
    return kind


def load_options(run: Path) -> RunOptions:
    """The options that a run was started with.

    Those of other versions are left out where config.json also names the problem, which is compared.

    Raises:
        ValueError: they are not those of its launcher, or not of the problem that config.json names.
    """
    config, kind = read_config(run), kind_of(run)
    known = {field.name for field in dataclasses.fields(kind)}
    stored = {name: value for name, value in config["options"].items() if name in known}
    options: RunOptions = from_json(kind, stored)
    if (unknown := config["options"].keys() - known - {*kind.retired}) and not options.trained_on():
        raise ValueError(f"{config['launcher']}.py has no option {sorted(unknown)}; {run} is of another version")
    for key, expected in to_json(options.trained_on()).items():
        if (found := config.get(key)) != expected:
            raise ValueError(
                f"{run / CONFIG_FILE} says that the run was trained on {found}, but {config['launcher']}.py with the "
                f"options there trains on {expected}; put back what was there"
            )
    return options


def load_run(
    run: Path, checkpoint: str = "best", threads: int = 1, later_lr_factor: float | None = None
) -> tuple[RunOptions, Any]:
    """Rebuild a trained experiment from its folder, with its options.

    The problem is that of its launcher with these options, never one that a file names: gymnasium imports what an
    environment's id says before a colon, and environments may read files that an argument names.

    Args:
        run: the folder.
        checkpoint: `best` by validation (the latest where none was validated yet), or `latest`.
        threads: CPU threads.
        later_lr_factor: step size of steps beyond the trained ones, relative to the last; by default as in training.
    Raises:
        ValueError: there is no run, its checkpoint is damaged, or does not fit the configuration.
    """
    options: Any = load_options(run).to_evaluate(threads)
    if later_lr_factor is not None:
        inner = dataclasses.replace(options.settings.inner, later_lr_factor=later_lr_factor)
        options = dataclasses.replace(options, settings=dataclasses.replace(options.settings, inner=inner))
    experiment = options.experiment()
    try:
        state = read_state(checkpoint_of(run, checkpoint), options.identity(), options.may_change_on_resume)
        experiment.load_state_dict(state)
    except BaseException:
        experiment.close()
        raise
    return options, experiment


def load_run_of(launcher: str, run: Path) -> Any:
    """The trained experiment of a run that must be one of a certain launcher: the best by validation.

    Args:
        launcher: its name.
        run: the folder.
    Raises:
        ValueError: the run is of another launcher, or cannot be loaded.
    """
    # By name: the launcher that runs as a program defines its options a second time.
    if (made_by := read_config(run).get("launcher")) != launcher:
        raise ValueError(f"{run} holds a run of {made_by}.py; give one of {launcher}.py")
    return load_run(run)[1]


def checkpoint_of(run: Path, checkpoint: str) -> Path:
    """The file of a run's `best` checkpoint by validation, or of its `latest`.

    Where no validation was done yet, the best is the latest, which a warning says.

    Raises:
        CheckpointError: the best one is gone.
    """
    best, latest = Path(run) / BEST_FILE, Path(run) / CHECKPOINT_FILE
    if checkpoint != "best":
        return latest
    if not best.exists():
        content = load_checkpoint(latest)
        if ranking := content.get("ranking"):
            raise CheckpointError(
                f"{best} is missing, though the validation after iteration {ranking[0]['iteration']} was the best; put "
                f"it back, or copy {CHECKPOINT_FILE} there to take the latest, of iteration {content['iteration']}"
            )
        logger.warning("%s has no %s, for no validation gave a number yet; taking %s", run, BEST_FILE, CHECKPOINT_FILE)
        return latest
    return best


def read_state(
    checkpoint: Path, trained_on: Mapping[str, Any], may_change: Collection[str] = DeviceOptions.may_change_on_resume
) -> dict[str, Any]:
    """An experiment's state from a checkpoint of a certain problem.

    Args:
        checkpoint: the file, in its run's folder.
        trained_on: entries of config.json that say what the run is trained on, as `RunOptions.identity` gives them.
        may_change: options that need not be those of config.json.

    Raises:
        CheckpointError: it is missing, damaged, of another kind or problem, or was trained with other options.
    """
    content = load_checkpoint(checkpoint)
    for key, expected in trained_on.items():
        try:
            found, state = content["config"][key], content["experiment"]
        except (KeyError, TypeError):
            raise CheckpointError(
                f"{checkpoint} holds no such experiment: no {key}; give the folder of a run"
            ) from None
        if found != expected:
            raise CheckpointError(
                f"{checkpoint} was trained on {found}, but the run is on {expected}; put the run's own checkpoint back"
            )
    own, said = (flat(found["options"]) for found in (content["config"], read_config(checkpoint.parent)))
    edited = sorted(name for name in own.keys() & said.keys() if own[name] != said[name] and name not in may_change)
    if edited:
        raise CheckpointError(
            f"{checkpoint} was trained with other options than {CONFIG_FILE} says: "
            + ", ".join(f"{name} {own[name]} (not {said[name]})" for name in edited)
            + "; put back what was there"
        )
    return state
