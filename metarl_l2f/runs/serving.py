"""The viewer's server: a page, and JSON answers to its questions, with what keeps other sites and machines out."""

import ipaddress
import json
import logging
import secrets
import socket
from pathlib import Path
from typing import Any

import waitress
from flask import Flask, Response, jsonify, request
from waitress import wasyncore
from werkzeug.exceptions import HTTPException

from .viewing import Busy, Refused, Viewer

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


def application(viewer: Viewer, token: str | None = None) -> Flask:
    """The page, and the answers to its questions; errors come back as {"error": the reason}.

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
    """The content of a question.

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
    """Whether a host's name or address is that of the loopback interface."""
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
    """The address to open in a browser; one that stands for all of this machine's gives way to its name."""
    host = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{f'?token={token}' if token else ''}"
