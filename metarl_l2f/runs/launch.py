"""From a launcher's options to a finished run: read the command line, train with resume, evaluate, draw, report.

One `launch` serves all experiments; what they differ in, it asks of their options (`options.RunOptions`).
"""

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure

from ..methods import label_of
from ..parallel.memory import quiet_machine
from ..parallel.ranks import Group, join
from ..reports.curves import learning_curve
from ..reports.page import EVALUATION_FILE, REPORT_FILE, write_report
from ..reports.style import save
from ..training.checkpoint import CheckpointError
from ..training.checkpoint import load as load_checkpoint
from ..training.config import command, from_json, provenance, to_json
from ..training.files import writing
from ..training.loop import Outcome, optional, train
from ..training.run_folder import CHECKPOINT_FILE, CONFIG_FILE, RunFolder
from .command_line import USER_ERRORS, changed, fail, parse, value_of
from .inspection import inspector, pictures_of
from .load import checkpoint_of, read_config, read_state
from .options import RunOptions

Options = TypeVar("Options", bound=RunOptions)


def launch(default: RunOptions, arguments: list[str] | None = None) -> int:
    """Read the command line; train, or continue, one run; then evaluate it on held-out tasks and draw its pictures.

    Args:
        default: the launcher's options without flags.
        arguments: the command line; by default the process's own.
    Returns:
        The exit status.
    """
    try:
        with started(default, arguments) as (options, group):
            return trained(options, group)
    except USER_ERRORS as error:
        return fail(error)


@contextlib.contextmanager
def started(default: Options, arguments: list[str] | None = None) -> Iterator[tuple[Options, Group]]:
    """A training launcher's options, and the ranks that share its run, where torchrun started some.

    Of the ranks only rank 0 prints, and reads the folder of a resumed run.

    Args:
        default: its options without flags.
        arguments: the command line; by default the process's own.
    Raises:
        ValueError: an option is wrong, or the group may be started again, but would not find its run.
        RankError: the others cannot be reached.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    quiet_machine()
    with join(_rank_timeout(default, arguments)) as group, contextlib.ExitStack() as silence:
        if not group.first:
            nowhere = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            logging.disable(logging.WARNING)
        options = parse(default, arguments, group)
        if group.restarts and options.log_dir is None:
            raise ValueError(
                "torchrun may restart this run (--max-restarts), and then must find it again: name its folder with "
                "--log-dir"
            )
        yield options, group


def trained(options: RunOptions, group: Group) -> int:
    """Train, or continue, one run, and report on it when it is done; one that is done and reported on stays as it is.

    Args:
        options: the run's options.
        group: the processes that share it.
    Returns:
        The exit status.
    """
    options, folder = placed(options, group)
    if options.resume is not None:
        options.check_resumed(group.from_first(lambda: read_config(folder)["options"]))
    experiment = options.experiment(group)
    try:
        options.check_report(experiment, group)
        print(f"{options.title()}, seed {options.seed}; writing to {folder}")
        begin = time.monotonic()
        with _resumable(options.launcher, folder, group):
            group.from_first(lambda: _check_checkpoint(options, folder))
            outcome = _train(options, experiment, folder, group)
            if outcome.interrupted is not None:
                print(
                    f"stopped after iteration {outcome.iteration} by {signal.Signals(outcome.interrupted).name}; "
                    f"{_how_to_go_on(options.launcher, folder)}"
                )
                return 128 + outcome.interrupted
            group.from_first(lambda: _report(options, experiment, folder, outcome, begin))
            return 0
    finally:
        experiment.close()


def placed(options: Options, group: Group) -> tuple[Options, Path]:
    """The options, and the run's folder: the same for all ranks.

    Under torchrun a run that the folder already holds is continued, if it is this one: torchrun starts a group again
    with the command that it was first started with.
    """

    def found() -> tuple[Path, bool]:
        folder = options.folder()
        if group.restarts is None or options.resume is not None or not (folder / CONFIG_FILE).exists():
            return folder, options.resume is not None
        stored = read_config(folder)
        same = stored["launcher"] == options.launcher and not changed(
            from_json(type(options), stored["options"]), options
        )
        return folder, same

    folder, resuming = group.from_first(found)
    return dataclasses.replace(options, resume=folder if resuming else None), folder


def _train(options: RunOptions, experiment: Any, folder: Path, group: Group) -> Outcome:
    judged = options.judged()
    return train(
        experiment,
        folder,
        iterations=options.iterations,
        config={
            "launcher": options.launcher,
            **options.trained_on(),
            "options": to_json(options),
            **provenance(),
        },
        resume=options.resume is not None,
        validate_every=options.validate_every,
        validation_key=f"validation/{judged.tag}",
        progress_key=judged.tag,
        higher_is_better=judged.higher_is_better,
        checkpoint_every=options.checkpoint_every,
        log_every=options.log_every,
        keep_best=options.keep_best,
        inspect=inspector(options, experiment, group) if options.inspect_every else None,
        inspect_every=options.inspect_every or 1,
        group=group,
    )


def _check_checkpoint(options: RunOptions, folder: Path) -> None:
    """Refuse to continue from a checkpoint of another run."""
    if options.resume is not None and (folder / CHECKPOINT_FILE).exists():
        read_state(RunFolder(folder).newest(), options.identity(), options.may_change_on_resume)


def _report(options: RunOptions, experiment: Any, folder: Path, outcome: Outcome, begin: float) -> None:
    """Evaluate, draw and print a run that is done, unless that was done before."""
    if outcome.start == outcome.iteration and _has_its_report(options, folder):
        print(f"{folder / REPORT_FILE} is up to date; to evaluate otherwise: {command('evaluate', folder)}")
        return
    print(f"iteration {outcome.iteration} done, {time.monotonic() - begin:.0f} s")
    with writing(folder):
        draw(folder, lambda: {"learning_curve": learning_curve([folder], score=options.judged().drawn)})
        if options.evaluation_tasks:
            _evaluate(options, experiment, folder)
        write_report(folder, options.question(), options.captions())
    print("wrote " + ", ".join(sorted(str(path) for path in folder.glob("*.[jph][snt][ogm]*"))))


def _has_its_report(options: RunOptions, folder: Path) -> bool:
    """Whether a run was reported on since its last checkpoint, with these options."""
    try:
        newer = (folder / REPORT_FILE).stat().st_mtime >= (folder / CHECKPOINT_FILE).stat().st_mtime
    except FileNotFoundError:
        return False
    stored, asked = read_config(folder)["options"], to_json(options)
    return newer and all(stored.get(name) == asked[name] for name in options.of_report)


def _evaluate(options: RunOptions, experiment: Any, folder: Path) -> None:
    """Evaluate the best checkpoint; write the scores, draw what they came from, and print the table."""
    experiment.load_state_dict(load_checkpoint(checkpoint_of(folder, "best"))["experiment"])
    evaluation, look = options.evaluate(experiment, folder, options.seed)
    evaluation.save(folder / EVALUATION_FILE)
    if look is not None:
        draw(folder, look.pictures)
        draw(folder, lambda: pictures_of(look.inspection(), label_of(options.method)))
    print("\n".join(filter(None, [evaluation.table(), options.notes(evaluation)])))


def draw(folder: Path, pictures: Callable[[], Mapping[str, Figure]]) -> None:
    """Save pictures of a run that is done, by name; without those that fail, which a warning names.

    Args:
        folder: the run's folder.
        pictures: a function that makes them.
    """
    made: Mapping[str, Figure] = {}
    with optional("a picture"):
        made = pictures()
    for name, figure in made.items():
        with optional(f"the picture {name}"):
            save(figure, folder / f"{name}.png")


def _rank_timeout(default: RunOptions, arguments: list[str]) -> float:
    """The time-out with which ranks meet, before the rest of the command line is read."""
    value = value_of("--rank-timeout", arguments)
    try:
        return default.rank_timeout if value is None else float(value)
    except ValueError:
        return default.rank_timeout  # Reading the command line explains what is wrong with it.


@contextlib.contextmanager
def _resumable(launcher: str, folder: Path, group: Group) -> Iterator[None]:
    """Add to a signal that stops training, and to an error of the disk, how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if group.first and (folder / CONFIG_FILE).exists():
            stop.add_note(_how_to_go_on(launcher, folder))
        raise
    except (OSError, CheckpointError) as error:
        if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
            error.add_note(f"--resume {folder} continues what was begun, --log-dir names another folder")
        raise


def _how_to_go_on(launcher: str, folder: Path) -> str:
    return f"go on with:\n  {command(launcher, '--resume', folder)}"
