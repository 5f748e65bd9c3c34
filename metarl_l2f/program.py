"""What every program passes through: a signal ends it without a traceback, and any terminal can show its text.

Launchers import this module before all others, and so does the package itself: whatever takes seconds to import comes
after it. A program of somebody else that imports the package keeps its own signal handlers.
"""

import codecs
import contextlib
import functools
import importlib.util
import io
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

PLAIN = "metarl_l2f.plain"
"""The name under which `_replaced` is registered with Python's codecs."""
SPELLED = {
    **{"−": "-", "–": "-", "—": "-", "±": "+/-", "×": "x", "·": "*", "⁄": "/", "’": "'", "‖": "||", "′": "'"},
    **{"→": "->", "↦": "->", "←": "<-", "≤": "<=", "≥": ">=", "≈": "~", "∇": "grad ", "∂": "d", "√": "sqrt"},
    **{"°": " degrees", "∈": "in", "⊥": "stop"},
}
"""How characters that Unicode does not decompose are written in ASCII."""


class Stopped(KeyboardInterrupt):
    """A signal ends the program; its notes say how to go on."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def as_program(main: Callable[..., int | None]) -> Callable[..., int]:
    """Decorate the main function of a program, which returns its exit status, or None for 0.

    SIGINT (Ctrl-C) and SIGTERM unwind it, print one line, and make the status 128 plus the signal's number; another
    one ends the process at once. Characters that standard output or standard error cannot encode are replaced.
    """

    @functools.wraps(main)
    def program(*arguments: Any, **named: Any) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=PLAIN)
        with _unwound_by_signals():
            try:
                return main(*arguments, **named) or 0
            except KeyboardInterrupt as stop:  # Of a second Ctrl-C in training, too.
                signum = getattr(stop, "signum", signal.SIGINT)
                if os.environ.get("RANK", "0") == "0":
                    sys.stderr.write("; ".join([str(Stopped(signum)), *getattr(stop, "__notes__", [])]) + "\n")
                if STARTED_HERE:
                    with contextlib.suppress(OSError):  # Who read it may have gone.
                        sys.stdout.flush()
                    _leave(signum, None)  # The interpreter takes seconds to clear up what a run has in memory.
                return 128 + signum

    return program


@contextlib.contextmanager
def _unwound_by_signals() -> Iterator[None]:
    """While entered, the first SIGINT or SIGTERM raises Stopped, and another ends the process."""

    def stop(signum: int, frame: FrameType | None) -> None:
        for number in handled:
            signal.signal(number, _leave)
        raise Stopped(signum)

    # torchrun sends SIGTERM to the ranks that are left after one has failed. They may wait for it outside of Python,
    # where no handler runs, so that the system must end them.
    handled = (signal.SIGINT,) if "RANK" in os.environ else (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():  # Python lets only that one handle signals.
        yield
        return
    previous = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave(signum: int, frame: FrameType | None) -> None:
    """End the process here and now: every file of a run is whole at any moment (`training/checkpoint.py`)."""
    os._exit(128 + signum)


def _started_here() -> bool:
    """Whether this process was started to run one of the launchers."""
    if sys.argv[:1] == ["-m"]:  # python -m metarl_l2f.launchers.NAME imports the package before it knows the file.
        return any(argument.startswith("metarl_l2f.launchers.") for argument in sys.orig_argv)
    launchers = importlib.util.find_spec("metarl_l2f.launchers")
    folders = (launchers and launchers.submodule_search_locations) or []
    return Path(sys.argv[0] if sys.argv else "").resolve().parent in [Path(folder).resolve() for folder in folders]


# --- Characters ---


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """What a stream writes instead of characters that its encoding lacks; an error handler of Python's codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(in_ascii, error.object[error.start : error.end])), error.end


def in_ascii(character: str) -> str:
    """A character in ASCII, as it is read out or nearly so: − is "-", ± is "+/-", γ is "gamma", ² is "^2"."""
    if character.isascii() or character in SPELLED:
        return SPELLED.get(character, character)
    name, decomposed = unicodedata.name(character, ""), unicodedata.normalize("NFKD", character)
    if name.startswith("GREEK"):
        return name.rpartition(" ")[2].lower().replace("lamda", "lambda")
    if decomposed == character:
        return "" if unicodedata.combining(character) else "?"
    raised = "^" if unicodedata.decomposition(character).startswith("<super>") else ""
    return raised + "".join(map(in_ascii, decomposed))


codecs.register_error(PLAIN, _replaced)
STARTED_HERE = _started_here()
if STARTED_HERE:
    signal.signal(signal.SIGINT, _leave)
