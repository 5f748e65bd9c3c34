"""The viewer's server: what it refuses it says, and it answers nobody else."""

import configparser
import re
import threading
from pathlib import Path

import pytest

from metarl_l2f.runs import serving, viewing

from .viewed import adapted


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ('{"task": [0.1]}', r"task must be a list of 2 numbers (x, y), got [0.1]"),
        ('{"task": [0.1, 0.2, 0.3]}', "task must be a list of 2 numbers"),
        ('{"task": ["a", 0]}', "task must be a list of 2 numbers (x, y), got ['a', 0]"),
        ('{"task": [true, 0]}', "task must be a list of 2 numbers"),
        ('{"task": {"x": 0, "y": 0}}', "task must be a list of 2 numbers"),
        ('{"task": [NaN, 0]}', "x must lie between -1 and 1, got nan"),
        ('{"task": [0, Infinity]}', "y must lie between -1 and 1, got inf"),
        ('{"task": [0, 1e999]}', "y must lie between -1 and 1, got inf"),
        ('{"task": [0, 1.01]}', "y must lie between -1 and 1, got 1.01"),
        (f'{{"task": [{"9" * 3000}, 0]}}', "x must lie between -1 and 1, got 9999"),
        ('{"steps": 0}', "steps must be a whole number from 1 to 5, got 0"),
        ('{"steps": 6}', "steps must be a whole number from 1 to 5, got 6"),
        ('{"steps": 1.5}', "steps must be a whole number from 1 to 5, got 1.5"),
        ('{"steps": NaN}', "steps must be a whole number from 1 to 5, got nan"),
        ('{"steps": true}', "steps must be a whole number from 1 to 5, got True"),
        ('{"episodes": 0}', "episodes must be a whole number from 1 to 100, got 0"),
        ('{"episodes": 101}', "episodes must be a whole number from 1 to 100, got 101"),
        ('{"episodes": null}', "episodes must be a whole number from 1 to 100, got None"),
        ('{"seed": -1}', "seed must be a whole number from 0 to 2147483647, got -1"),
        ('{"step": 1}', "'step' is no part of a question; it may have task, steps, episodes, seed"),
        ("[1, 2]", "a question must be an object with task, steps, episodes, seed, got [1, 2]"),
        ("", "a question must be JSON: Expecting value"),
        ("{", "a question must be JSON: Expecting property name"),
        ("[" * 4000, "a question must be JSON"),
        (b"\xff\xfe", "a question must be JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_question_without_an_answer_is_refused_with_the_reason(client, question, said):
    for path in ("/api/adapt", "/api/film/0.gif"):
        response = client.post(path, data=question, content_type="application/json")
        assert response.status_code == 400
        assert said in response.json["error"]
        assert len(response.json["error"]) < 300
    assert client.get("/api/about").status_code == 200


def test_a_form_of_another_site_is_no_question(client):
    response = client.post("/api/adapt", data='{"task": [0, 0]}', content_type="text/plain")
    assert (response.status_code, response.json["error"]) == (
        400,
        "a question must be application/json, got text/plain",
    )


@pytest.mark.parametrize("path", ["/api/adapt", "/api/film/0.gif"])
def test_a_giant_question_is_not_read(client, path):
    response = client.post(path, data=b" " * 5000, content_type="application/json")
    assert (response.status_code, response.json["error"]) == (413, "a question has at most 4096 bytes")


@pytest.mark.parametrize(
    "path",
    ["/no/such", "/../config.json", "/%2e%2e/config.json", "/..%2f..%2fetc/passwd", "/viewer.py"],
)
def test_there_is_nothing_but_the_page_and_its_questions(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert response.json["error"].startswith("there is nothing at /")
    assert client.get("/api/adapt").status_code == 405


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("LOCALHOST", 200)),
        *(
            ("evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("localhost.evil.example:8000", 403),
            ("10.0.0.1", 403),
        ),
    ],
)
def test_a_name_that_was_made_to_point_here_is_refused(client, host, status):
    for path in ("/", "/api/about", "/no/such"):
        response = client.get(path, headers={"Host": host})
        assert response.status_code == (404 if (path, status) == ("/no/such", 200) else status)
    assert status == 200 or "answers" in response.json["error"]


@pytest.mark.parametrize("path", ["/", "/api/about", "/no/such"])
def test_elsewhere_every_request_needs_the_token(pair, path):
    client = serving.application(pair, token="secret").test_client()
    for query in ("", "?token=", "?token=Secret", "?token=ß"):
        response = client.get(path + query)
        assert response.status_code == 403
        assert "?token=" in response.json["error"]
    found = client.get(f"{path}?token=secret", headers={"Host": "any.example"})
    assert found.status_code == (404 if path == "/no/such" else 200)


def test_a_failure_is_told_and_the_next_question_answered(client, pair, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pair.runs[0], "answer", lambda task, asked: {}["missing"])
        response = client.post("/api/adapt", json={})
    assert (response.status_code, response.json["error"]) == (
        500,
        "the viewer failed; the terminal it runs in says why",
    )
    assert adapted(client)["runs"]


def test_who_waits_too_long_is_told_to_try_again(client, pair, monkeypatch):
    monkeypatch.setattr(viewing, "PATIENCE", 0.01)
    free = threading.Event()
    pair._thread.submit(free.wait)
    response = client.post("/api/adapt", json={})
    free.set()
    assert response.status_code == 503
    assert "too much was asked before; try again" in response.json["error"]


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_which_addresses_only_this_machine_reaches(host, local):
    assert serving.is_local(host) is local


def test_the_page_is_shipped_and_loads_nothing_from_elsewhere(client):
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg", "utf-8")
    assert serving.PAGE.name in config["options.package_data"]["metarl_l2f.runs"].split()
    response = client.get("/")
    assert response.mimetype == "text/html"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert set(re.findall(r"\w+://[^\s\"'`]+", response.text)) == {"http://www.w3.org/2000/svg"}  # A name, no address.
