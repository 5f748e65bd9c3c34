"""Look at a trained run in a browser: choose a task, and watch its policy adapt; MAML beside L2F, if two are given."""

from metarl_l2f.program import as_program

import secrets
import sys
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metarl_l2f.checks import check_count, check_number
from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.runs.command_line import USER_ERRORS, fail, read_alone
from metarl_l2f.runs.options import own_cores
from metarl_l2f.runs.serving import address, answer, application, is_local, listening
from metarl_l2f.runs.viewing import ViewedRun, Viewer


@dataclass(frozen=True)
class Options:
    """A page that shows how a trained run adapts: paths or films before and after each gradient step, γ, and conflict.

    2D navigation: click a goal on the plane. HalfCheetah and Ant: choose a direction or a speed. With a second run of
    the same environment, such as one of MAML, both answer side by side. The returns are those of evaluate.py --tasks 1.

    The page needs no network, and without --host only this machine reaches it. Ctrl-C ends it.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    beside: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN2]")] = None
    """Folder of a second run of the same environment, to compare."""
    checkpoint: Literal["best", "latest"] = "best"
    """The best by validation, or the latest."""
    port: int = 8000
    """Port to serve on; 0 takes any that is free, and prints it."""
    host: str = "127.0.0.1"
    """Address to serve on. On any that other machines can reach, such as 0.0.0.0, the page's address carries a random
    token, without which nothing is answered. The token travels unencrypted: use it in networks you trust, or tunnel
    through ssh instead."""
    open: bool = False
    """Open the page in a browser."""
    threads: int = field(default_factory=own_cores)
    """CPU threads; changes no number."""

    def __post_init__(self) -> None:
        check_number("port", self.port, "[0, 65535]")
        check_count("threads", self.threads)


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, load, listen, measure, and answer until Ctrl-C."""
    try:
        options = read_alone(Options, arguments)
        quiet_machine()
        folders = [options.run, *([options.beside] if options.beside else [])]
        viewer = Viewer([ViewedRun(folder, options.checkpoint, options.threads) for folder in folders])
        try:
            serve(viewer, options)
        finally:
            viewer.close()
    except USER_ERRORS as error:
        return fail(error)
    except KeyboardInterrupt:
        pass  # Before the server ran, which takes it for its end.
    return 0


def serve(viewer: Viewer, options: Options) -> None:
    """Print where the page is, and answer until Ctrl-C."""
    token = None if is_local(options.host) else secrets.token_urlsafe(16)
    with listening(options.host, options.port) as listener:
        print(f"measuring the gradients of {viewer.about()['training_tasks']} training tasks ...", flush=True)
        viewer.measure()
        url = address(options.host, listener.getsockname()[1], token)
        print(f"{' beside '.join(run.about()['method'] for run in viewer.runs)}: {url}  (Ctrl-C ends)", flush=True)
        if options.open:
            webbrowser.open(url)
        answer(application(viewer, token), listener)


if __name__ == "__main__":
    sys.exit(main())
