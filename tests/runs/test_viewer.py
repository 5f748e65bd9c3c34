"""The viewer as a program: its flags and addresses, and the page in a browser."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest

from metarl_l2f.launchers import navigation, rand_params, sinusoid, viewer
from metarl_l2f.runs import reinforcement

from .viewed import TINY

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Where tests run in the background, Ctrl-C is ignored, and Python keeps it so.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from metarl_l2f.launchers.viewer import main
sys.exit(main(sys.argv[1:]))
"""


def failing(capsys, *arguments) -> str:
    """What a refused command line says; its exit status is 2, whoever noticed."""
    try:
        status = viewer.main(list(map(str, arguments)))
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_runs_that_cannot_be_shown_are_refused(runs, tmp_path, capsys):
    l2f, wide, other, curves = runs / "l2f", *(tmp_path / name for name in ("wide", "other", "curves"))
    assert "holds no run" in failing(capsys, tmp_path)
    assert "holds no run" in failing(capsys, l2f, tmp_path / "missing")
    said = failing(capsys, l2f, runs / "cheetah")
    assert "two runs are compared on one environment" in said and "HalfCheetahDir" in said
    assert navigation.main([*TINY, "--goal-range", "1", "--log-dir", str(wide)]) == 0
    assert "goal_range=1.0" in failing(capsys, l2f, wide)
    assert rand_params.main([*TINY, "--log-dir", str(other)]) == 0
    assert "the viewer shows goals on the plane, directions and speeds" in failing(capsys, other)
    tiny = ["--iterations", "1", "--tasks-per-batch", "2", "--evaluation-tasks", "0", "--threads", "1"]
    assert sinusoid.main([*tiny, "--log-dir", str(curves)]) == 0
    assert "is a run of sinusoid.py; give one of reinforcement learning" in failing(capsys, curves)


def test_a_port_in_use_is_named_with_the_way_out(runs, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = failing(capsys, runs / "l2f", "--port", port)
    assert said == (
        f"error: cannot serve on 127.0.0.1, port {port}: Address already in use; choose another with --port, or "
        "--port 0 for any that is free"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "70000"], "port must lie in [0, 65535], got 70000"),
        (["--threads", "0"], "threads must be a whole number, 1 or more, got 0"),
        (["--host", "no.such.invalid"], "cannot serve on no.such.invalid, port 8000"),
    ],
)
def test_flags_out_of_range_are_refused(runs, capsys, flags, said):
    assert said in failing(capsys, runs / "l2f", *flags)


def started(*arguments):
    """The program, and the address that it prints."""
    program = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in program.stdout:
        if found := re.search(r"http://\S+", line):
            return program, found[0]
    program.wait()
    raise AssertionError(program.stderr.read())


def ended(program) -> None:
    """Ctrl-C ends it, without a word."""
    program.send_signal(signal.SIGINT)
    out, errors = program.communicate(timeout=300)
    assert (program.returncode, out, errors) == (0, "", "")


def ask(url, body=None):
    """Status and JSON of an answer."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_real_server_on_all_addresses_asks_for_its_token_and_survives(runs):
    program, url = started(runs / "l2f", "--host", "0.0.0.0")
    try:
        host, port, token = re.fullmatch(r"http://(.+):(\d+)/\?token=(\S{16,})", url).groups()
        assert host == socket.gethostname()
        base = f"http://127.0.0.1:{port}"
        assert ask(f"{base}/api/about")[0] == 403
        question = f"{base}/api/adapt?token={token}"
        assert ask(question, b"[")[0] == 400
        assert ask(question, b" " * 2**20) == (413, {"error": "a question has at most 4096 bytes"})
        with socket.create_connection(("127.0.0.1", int(port))) as raw:
            raw.sendall(f"GET /../../etc/passwd?token={token} HTTP/1.0\r\n\r\n".encode())
            assert raw.makefile("rb").readline() == b"HTTP/1.0 404 NOT FOUND\r\n"
        status, answer = ask(question, b'{"task": [0.1, 0.2], "steps": 1}')
        assert status == 200 and len(answer["runs"][0]["returns"]) == 2
        ended(program)
    finally:
        program.kill()
        program.communicate()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_click_on_the_plane_shows_what_evaluation_gives(runs):
    api = pytest.importorskip("playwright.sync_api")
    program, url = started(runs / "l2f", runs / "maml")
    problems = []
    try:
        with api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text))
            page.goto(url)
            page.wait_for_selector("body[data-state=ready]")
            before = page.locator("canvas").first.screenshot()
            held_out = page.locator(".subject").all_inner_texts()
            place = page.locator("canvas").first.bounding_box()
            page.mouse.click(place["x"] + 0.7 * place["width"], place["y"] + 0.4 * place["height"])
            page.wait_for_selector("body[data-state=ready]")
            goal = [float(page.locator(f"#task-{number}").input_value()) for number in (0, 1)]
            numbers = page.locator("article").evaluate_all(
                "panels => panels.map(panel => Array.from(panel.querySelectorAll('[data-return]'), "
                "number => [number.dataset.return, number.innerText]))"
            )
            chosen = page.locator(".subject").all_inner_texts()
            headings = page.locator("article").first.locator(".why h2").all_inner_texts()
            gammas = page.locator("article").first.locator("[data-name='mean.layers.0.weight']").all_inner_texts()
            assert page.locator("canvas").first.screenshot() != before
            page.fill("#task-0", "0.6")
            page.press("#task-0", "Enter")
            page.wait_for_selector("body[data-state=ready]")
            beyond = page.locator(".subject").first.inner_text()
            page.fill("#episodes", "0")
            page.press("#episodes", "Enter")
            page.wait_for_selector("body[data-state=refused]")
            refusal = page.inner_text("#status")
            browser.close()
        ended(program)
    finally:
        program.kill()
        program.communicate()
    # The browser itself reports the refusal.
    assert [problem for problem in problems if "400 (BAD REQUEST)" not in problem] == []
    assert refusal == "episodes must be a whole number from 1 to 100, got 0"
    assert 0.4 < goal[0] < 0.5 and 0.2 < goal[1] < 0.25  # 1.08 · 2 · (0.7 − 0.5), 1.08 · 2 · (0.5 − 0.4)
    # Both panels say that their numbers are of one task, and of which.
    assert len(held_out) == len(chosen) == 2
    assert all(text.startswith("Held-out task of seed 1: goal (") for text in held_out)
    place = ", ".join(f"{number:.2f}" for number in goal)
    assert all(text.startswith(f"Chosen task: goal ({place})\nOne task, not a mean over tasks") for text in chosen)
    assert "means of its 20 episodes" in chosen[0]
    assert beyond.startswith(f"Chosen task: goal (0.60, {goal[1]:.2f}), outside the range of training")
    assert "that this task keeps" in headings[0] and "to the sum of 3 training tasks" in headings[1]
    for name, shown in zip(("l2f", "maml"), numbers, strict=True):
        _, experiment = reinforcement.load_policy(runs / name)
        rollouts = experiment.evaluate([np.array(goal, np.float32)], 20, 3, seed=1)
        experiment.close()
        returns = reinforcement.mean_returns(rollouts)[0]
        assert [float(exact) for exact, _ in shown] == returns.tolist()
        assert [text for _, text in shown] == [f"{value:.2f}".replace("-", "−") for value in returns]
        if name == "l2f":
            gamma = experiment.learner.gammas_by_tensor(rollouts.start.gamma)["mean.layers.0.weight"]
            assert gammas == [f"{float(gamma):.2f}"]
