"""Look at a trained run in a browser: choose a task, and watch its policy adapt; MAML beside L2F, if two are given."""

from metarl_l2f.program import as_program

import ipaddress
import json
import logging
import secrets
import socket
import sys
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import waitress
from flask import Flask, Response, jsonify, request
from waitress import wasyncore
from werkzeug.exceptions import HTTPException

from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.runs.command_line import USER_ERRORS, fail, read_alone
from metarl_l2f.runs.options import own_cores
from metarl_l2f.runs.viewing import Busy, Refused, ViewedRun, Viewer

PAGE = Path(__file__).with_name("viewer.html")
LARGEST_QUESTION = 4096  # Bytes; a real one has a hundred.
LARGEST_BODY = 2**24  # Bytes; of what is larger the server reads nothing, and says so in plain text.
CONNECTIONS = 8  # Threads that take requests; a question keeps one waiting until its turn is over.

HEADERS = {
    # The page is one file: nothing from elsewhere is loaded, shown, framed, or sent to.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # The address may hold the token.
    "Cache-Control": "no-store",
}


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
    """Where to serve; 0 takes any that is free, and prints it."""
    host: str = "127.0.0.1"
    """Address to serve on. On any that other machines can reach, such as 0.0.0.0, the page's address carries a random
    token, without which nothing is answered. The token travels unencrypted: use it in networks you trust, or tunnel
    through ssh instead."""
    open: bool = False
    """Open the page in a browser."""
    threads: int = field(default_factory=own_cores)
    """CPU threads; changes no number."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must lie between 0 and 65535, got {self.port}")
        if self.threads < 1:
            raise ValueError(f"threads must be 1 or more, got {self.threads}")


# --- The server ---


def application(viewer: Viewer, token: str | None = None) -> Flask:
    """The page, and the answers to its questions; whatever is wrong comes back as {"error": why}.

    Args:
        viewer: answers.
        token: every request must carry it, as ?token=…; None: requests must name this machine as their host instead,
            which keeps other sites' pages out that had their own name point here (DNS rebinding).
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_QUESTION
    app.json.sort_keys = False  # type: ignore[attr-defined]  # Tensors come in the network's order.
    page = PAGE.read_text("utf-8")

    @app.before_request
    def check_who_asks() -> tuple[Response, int] | None:
        if token is None and not is_local(_host_name(request.host)):
            return _refusal(403, "the viewer answers to localhost and 127.0.0.1 alone; open it under these names")
        if token and not secrets.compare_digest(request.args.get("token", "").encode(), token.encode()):
            return _refusal(403, "the address must end in ?token=…, as the program printed it")
        return None

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    @app.get("/")
    def index() -> Response:
        return Response(page, mimetype="text/html")

    @app.get("/api/about")
    def about() -> Response:
        return jsonify(viewer.about())

    @app.post("/api/adapt")
    def adapt() -> Response:
        return jsonify(viewer.adapt(_content()))

    @app.post("/api/film/<int:number>.<form>")
    def film(number: int, form: str) -> Response:
        return Response(viewer.film(_content(), number, form), mimetype="image/gif" if form == "gif" else "video/mp4")

    @app.errorhandler(Refused)
    def refused(error: Refused) -> tuple[Response, int]:
        return _refusal(400, str(error))

    @app.errorhandler(Busy)
    def busy(error: Busy) -> tuple[Response, int]:
        return _refusal(503, str(error))

    @app.errorhandler(HTTPException)
    def misunderstood(error: HTTPException) -> tuple[Response, int]:
        code = error.code or 500
        known = {
            404: f"there is nothing at {request.path}; the page is at /",
            413: f"a question has at most {LARGEST_QUESTION} bytes",
            500: "the viewer failed; the terminal it runs in says why",
        }
        return _refusal(code, known.get(code, error.description or error.name))

    return app


def _content() -> Any:
    """What a question says.

    Raises:
        Refused: it is no JSON. Other sites' pages cannot send what calls itself JSON without being allowed to.
    """
    body = request.get_data()
    if not request.is_json:
        raise Refused(f"a question must be application/json, got {request.mimetype or 'no content type'}")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(f"a question must be JSON: {error}") from None


def _refusal(status: int, message: str) -> tuple[Response, int]:
    return jsonify(error=message), status


def is_local(host: str) -> bool:
    """Whether a host's name or address means this machine to itself, whoever is asked."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host_name(host: str) -> str:
    """A Host header without its port: "[::1]:8000" is ::1."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return name


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ValueError: the address cannot be had; says what to do.
    """
    try:
        family, *_, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(found[:2], family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise ValueError(
            f"cannot serve on {host}, port {port}: {reason}; choose another with --port, or --port 0 for any that is "
            "free"
        ) from error


def answer(app: Flask, listener: socket.socket) -> None:
    """Answer what comes through a socket until Ctrl-C; then end every connection."""
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # That a question waits for its turn is no news.
    connections: dict[int, Any] = {}
    server = waitress.create_server(
        app,
        map=connections,
        sockets=[listener],
        threads=CONNECTIONS,
        max_request_body_size=LARGEST_BODY,
        ident=None,
    )
    try:
        server.run()
    finally:
        wasyncore.close_all(connections)


def address(host: str, port: int, token: str | None) -> str:
    """What to open in a browser; an address that stands for all of this machine's gives way to its name."""
    host = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{f'?token={token}' if token else ''}"


# --- The program ---


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
