"""Every command that the documents print, run to its end in a folder of its own; what it promises is there."""

import json
import re
import shutil
import signal
import sys
import urllib.request

import pytest

from . import programs, promises, table
from .documents import DOCUMENTS, ROOT, Command, commands, snippets

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def distinct(found: list[Command]) -> list[Command]:
    """Of a command that several documents print, the first."""
    return list({command.words: command for command in reversed(found)}.values())[::-1]


COMMANDS = distinct([command for path in DOCUMENTS for command in commands(path)])


def is_server(command: Command) -> bool:
    return table.program_of(command.words) in table.SERVERS


def parameters(chosen: list[Command]) -> list:
    """Commands as parameters of a test; the README's blocks belong to the short form of the suite, too."""
    return [
        pytest.param(
            command,
            id=f"{command.document}:{command.line}",
            marks=[] if command.document == "README.md" and command.block else pytest.mark.journey,
        )
        for command in chosen
    ]


def known(command: Command) -> bool:
    """Whether there is a journey; where there is none, test_documents.py says so."""
    try:
        return table.program_of(command.words) not in table.NOT_OURS
    except LookupError:
        return False


OURS = [command for command in COMMANDS if known(command)]


@pytest.mark.parametrize("command", parameters([c for c in OURS if not is_server(c) and c.words[0] != "source"]))
def test_a_command_does_what_it_promises(command, folder, environment, furnish):
    program = table.program_of(command.words)
    furnish(table.found_by(command.words))
    words = table.to_run(command.words)
    outcome = programs.run(words, folder, environment)
    promises.ended_well(outcome)
    if program.startswith("make "):
        shown = " ".join(outcome.stdout.split())
        assert re.search(table.TARGETS_SHOWN[command.words[1]], shown), shown
    else:
        table.JOURNEYS[program].promise(outcome.stdout, folder, words)


@pytest.mark.parametrize("command", parameters([c for c in OURS if c.words[0] == "source"]))
def test_activating_finds_the_package(command, folder, environment):
    if not (folder / command.words[1]).exists():
        pytest.skip("these tests do not run in a virtual environment")
    script = f"{' '.join(command.words)} && python -c 'import metarl_l2f; print(metarl_l2f.__file__)'"
    outcome = programs.run(["bash", "-c", script], folder, environment | {"PATH": "/usr/bin:/bin"})
    promises.ended_well(outcome)
    assert "metarl_l2f" in outcome.stdout


# --- Servers ---


def fetched(url, question=None):
    """What a server answers, as text."""
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


def looked_at_in_a_browser(url):
    """A click on each plane moves the goal, and the page says whose numbers it shows."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("body[data-state=ready]")
        assert page.locator(".subject").first.inner_text().startswith("Held-out task")
        place = page.locator("canvas").first.bounding_box()
        page.mouse.click(place["x"] + 0.7 * place["width"], place["y"] + 0.4 * place["height"])
        page.locator(".subject", has_text="Chosen task").first.wait_for()
        page.wait_for_selector("body[data-state=ready]")
        assert page.locator("[data-return]").count() >= 4
        browser.close()


def viewer_answers(url, runs):
    assert "<title>" in fetched(url)
    answer = json.loads(fetched(f"{url}api/adapt", {"task": [0.3, -0.2], "steps": 2}))
    assert [len(run["returns"]) for run in answer["runs"]] == [3] * runs
    if CHROMIUM is not None:
        looked_at_in_a_browser(url)


def tensorboard_answers(url, runs):
    tags = json.loads(fetched(f"{url}data/plugin/scalars/tags"))
    assert len(tags) == runs
    assert all("validation/return/step_1" in found for found in tags.values()), tags


@pytest.mark.parametrize("command", parameters([c for c in OURS if is_server(c)]))
def test_a_server_answers_until_ctrl_c(command, folder, environment, furnish):
    found = table.found_by(command.words)
    furnish(found)
    answers = tensorboard_answers if command.words[0] == "tensorboard" else viewer_answers
    with programs.started([*command.words, "--port", "0"], folder, environment | {"PYTHONUNBUFFERED": "1"}) as server:
        try:
            said = ""
            while (address := re.search(r"http://\S+", said)) is None:
                line = server.stdout.readline()
                assert line, said
                said += line
            answers(address[0], len(found))
            server.send_signal(signal.SIGINT)
            said += server.communicate(timeout=60)[0]
        finally:
            server.kill()
    assert server.returncode == 0, said
    assert "Traceback" not in said


# --- Python ---

SNIPPETS = [snippet for path in DOCUMENTS for snippet in snippets(path)]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: f"{snippet.document}:{snippet.line}")
def test_a_snippet_runs_as_it_is_printed(snippet, tmp_path, environment):
    # Empty lines in front, so that a traceback shows the document's own line numbers.
    (tmp_path / "snippet.py").write_text("\n" * snippet.line + snippet.code, "utf-8")
    outcome = programs.run([sys.executable, "snippet.py"], tmp_path, environment)
    promises.ended_well(outcome)
    assert "print(" not in snippet.code or outcome.stdout.strip()


@pytest.mark.journey
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs_to_its_end(path, tmp_path, environment):
    outcome = programs.run([sys.executable, str(path)], tmp_path, environment)
    promises.ended_well(outcome)
    before, after, _ = (float(line.rpartition(" ")[2]) for line in outcome.stdout.splitlines()[-3:])
    assert after > before, "meta-training made nothing better"
