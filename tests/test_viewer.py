"""The viewer: its answers are evaluation's, what it refuses it says, and the page shows what was answered."""

import configparser
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from metarl_l2f.core.parameters import layer_of
from metarl_l2f.envs import domain_of
from metarl_l2f.envs.navigation import MAX_STEP
from metarl_l2f.launchers import cheetah_dir, navigation, rand_params, sinusoid, viewer
from metarl_l2f.runs import film, reinforcement, serving, viewing

HORIZON = 6
TINY = [
    *("--iterations", "2", "--tasks-per-batch", "3", "--episodes-per-task", "3", "--horizon", str(HORIZON)),
    *("--hidden-sizes", "4", "--evaluation-tasks", "0", "--threads", "1"),
]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Where tests run in the background, Ctrl-C is ignored, and Python keeps it so.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from metarl_l2f.launchers.viewer import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert navigation.main([*TINY, "--log-dir", str(folder / "l2f")]) == 0
    assert navigation.main([*TINY, "--method", "maml", "--initial-std", "0.1", "--log-dir", str(folder / "maml")]) == 0
    assert cheetah_dir.main([*TINY, "--log-dir", str(folder / "cheetah")]) == 0
    return folder


def viewer_of(*folders):
    made = viewing.Viewer([viewing.ViewedRun(folder) for folder in folders])
    made.measure()
    return made


@pytest.fixture(scope="module")
def pair(runs):
    made = viewer_of(runs / "l2f", runs / "maml")
    yield made
    made.close()


@pytest.fixture(scope="module")
def cheetah(runs):
    made = viewer_of(runs / "cheetah")
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(pair):
    return serving.application(pair).test_client()


def adapted(client, **question):
    response = client.post("/api/adapt", json=question)
    assert response.status_code == 200, response.json
    return response.json


# --- Answers ---


def test_returns_of_the_held_out_task_are_exactly_those_of_evaluation(runs, client):
    answer = adapted(client, task=None, steps=2, episodes=4, seed=3)
    assert (answer["steps"], answer["episodes"], answer["seed"]) == (2, 4, 3)
    for name, found in zip(("l2f", "maml"), answer["runs"], strict=True):
        _, experiment = reinforcement.load_policy(runs / name)
        evaluation, _, tasks = reinforcement.evaluate(experiment, tasks=1, episodes=4, steps=2, seed=3)
        experiment.close()
        assert answer["task"] == tasks[0].tolist()
        assert found["returns"] == evaluation.scores[0].tolist()


def test_a_task_in_numbers_is_answered_like_the_same_task_by_seed(client):
    held_out = adapted(client, seed=3, steps=1)
    by_numbers = adapted(client, task=held_out["task"], seed=3, steps=1)
    # By whichever way it came, the seed's own task is marked, for its numbers are those of evaluate.py.
    assert held_out["held_out"] and by_numbers["held_out"]
    assert not adapted(client, task=held_out["task"], seed=4, steps=1)["held_out"]
    for ours, theirs in zip(held_out["runs"], by_numbers["runs"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_two_runs_answer_side_by_side(client):
    about = client.get("/api/about").json
    assert [run["method"] for run in about["runs"]] == ["L2F", "MAML"]
    l2f, maml = adapted(client, task=[0.2, 0.1])["runs"]
    assert l2f["returns"] != maml["returns"]


def test_gamma_lies_between_0_and_1_by_tensor_and_maml_has_none(client, pair):
    l2f, maml = adapted(client, task=[0.2, 0.1])["runs"]
    assert list(l2f["gamma"]) == pair.runs[0].experiment.learner.attenuator.names
    assert all(0 < gamma < 1 for gamma in l2f["gamma"].values())
    assert maml["gamma"] == {}


def test_conflict_is_the_angle_to_the_sum_of_the_training_tasks_gradients(client, pair):
    task, run = np.array([0.2, 0.1], np.float32), pair.runs[0]
    gradients = run.experiment.evaluate([task], 4, 0, 5).start.gradients
    (found, _) = adapted(client, task=[0.2, 0.1], episodes=4, seed=5, steps=1)["runs"]
    for layer in {"network", *map(layer_of, gradients)}:
        names = [name for name in gradients if layer in ("network", layer_of(name))]
        u = np.concatenate([gradients[name][0].double().numpy().ravel() for name in names])
        v = np.concatenate([run.gradients[name].double().sum(0).numpy().ravel() for name in names])
        angle = np.arccos(u @ v / np.sqrt((u @ u) * (v @ v)))
        assert found["conflict"][layer] == pytest.approx(angle, rel=1e-6)
    assert len(run.gradients[names[0]]) == 3  # Training tasks of the run.


def test_paths_begin_at_the_start_and_end_when_episodes_do(client):
    (l2f, _) = adapted(client, task=[0.4, 0.4], steps=2, episodes=12)["runs"]
    assert len(l2f["paths"]) == 3  # Before adaptation, after one step, after two.
    for episodes in l2f["paths"]:
        assert len(episodes) == viewing.PATHS_SHOWN < 12
        for path in map(np.array, episodes):
            assert path.shape == (HORIZON + 1, 2)
            assert path[0].tolist() == [0, 0]
            assert np.abs(np.diff(path, axis=0)).max() <= MAX_STEP + 2 * 10.0**-viewing.DECIMALS


def test_questions_that_come_together_are_answered_one_after_the_other(client):
    questions = [{"task": [0.1 * number, 0.0], "steps": 1, "episodes": 3} for number in range(4)]
    alone = [adapted(client, **question)["runs"][0]["returns"] for question in questions]
    together = {}

    def ask(number):
        fresh = client.application.test_client()
        together[number] = adapted(fresh, **questions[number])["runs"][0]["returns"]

    threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(4)] == alone


def test_directions_have_numbers_but_no_paths(cheetah):
    client = serving.application(cheetah).test_client()
    about = client.get("/api/about").json
    assert (about["kind"], about["accepted"]) == ("direction", [-1.0, 1.0])
    backwards, forwards = (adapted(client, task=[d], episodes=2)["runs"][0] for d in (-1, 1))
    assert backwards["returns"] != forwards["returns"]
    assert "paths" not in forwards
    wrong = client.post("/api/adapt", json={"task": [0.5]})
    assert wrong.json["error"] == "direction must be -1 (backwards) or 1 (forwards), got 0.5"


def test_speeds_may_lie_half_the_trained_range_outside_it():
    domain = domain_of("metarl_l2f/HalfCheetahVel-v0", min_speed=1.0, max_speed=3.0)
    tasks = viewing.tasks_of(domain, "HalfCheetahVel-v0")
    assert (tasks.kind, tasks.trained, tasks.accepted) == ("speed", (1.0, 3.0), (0.0, 4.0))
    assert tasks.checked([0]) == (0.0,)


# --- Films ---


@pytest.fixture(scope="module")
def graphics():
    try:
        film.working_graphics()
    except ValueError as error:
        pytest.skip(str(error))


def test_a_film_shows_an_episode_of_every_policy(cheetah, graphics):
    client = serving.application(cheetah).test_client()
    question = {"task": [1], "steps": 1, "episodes": 2}
    gif, mp4 = (client.post(f"/api/film/0.{form}", json=question) for form in ("gif", "mp4"))
    assert (gif.status_code, gif.mimetype, gif.data[:4]) == (200, "image/gif", b"GIF8")
    assert (mp4.status_code, mp4.mimetype, mp4.data[4:8]) == (200, "video/mp4", b"ftyp")


def test_the_first_picture_of_a_body_looks_like_those_that_follow(cheetah, graphics):
    experiment = cheetah.runs[0].experiment
    adapted = experiment.adapt(task=1.0, steps=1, episodes=2)
    env = film.filmable(experiment.env, experiment.env_kwargs, 60)
    before, after = film.film(env, adapted, 1.0, HORIZON, seed=1, size=60)
    env.close()
    assert before.frames[0].tobytes() == after.frames[0].tobytes()


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/film/1.mp4", 400, "there is no run 1; they are numbered from 0 to 0"),
        ("/api/film/0.avi", 400, "a film is one of mp4, gif, got 'avi'"),
        ("/api/film/-1.mp4", 404, "there is nothing at"),
        ("/api/film/..%2f..%2fconfig.json", 404, "there is nothing at"),
    ],
)
def test_films_that_are_not_there(cheetah, path, status, said):
    response = serving.application(cheetah).test_client().post(path, json={})
    assert response.status_code == status
    assert said in response.json["error"]


def test_where_nothing_can_draw_the_page_is_told_so(runs, monkeypatch):
    def cannot():
        raise ValueError("MuJoCo cannot draw on this machine")

    monkeypatch.setattr(film, "working_graphics", cannot)
    blind = viewer_of(runs / "cheetah")
    response = serving.application(blind).test_client().post("/api/film/0.gif", json={"task": [1]})
    blind.close()
    assert (response.status_code, response.json) == (400, {"error": "MuJoCo cannot draw on this machine"})


# --- What is refused ---


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


# --- The program ---


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


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_which_addresses_only_this_machine_reaches(host, local):
    assert serving.is_local(host) is local


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


# --- The page ---


def test_the_page_is_shipped_and_loads_nothing_from_elsewhere(client):
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg", "utf-8")
    assert serving.PAGE.name in config["options.package_data"]["metarl_l2f.runs"].split()
    response = client.get("/")
    assert response.mimetype == "text/html"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert set(re.findall(r"\w+://[^\s\"'`]+", response.text)) == {"http://www.w3.org/2000/svg"}  # A name, no address.


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
