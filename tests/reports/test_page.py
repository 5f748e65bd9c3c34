"""The report of a run: one file that holds everything, with all that is inserted escaped."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from metarl_l2f.launchers import evaluate, navigation
from metarl_l2f.reports.evaluation import Evaluation
from metarl_l2f.reports.page import write_report
from metarl_l2f.reports.style import save
from metarl_l2f.training.config import command


class Balanced(HTMLParser):
    """Notes what stays open, and every address a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def folder(tmp_path):
    options = {
        "settings": {"method": "l2f", "seed": 3, "inner": {"inner_lr": 0.1}},
        "note": "<script>alert(1)</script>",
        "iterations": 10,
    }
    config = {"launcher": "cheetah_vel", "options": options, "command": "python x.py --a '<b>'", "git_commit": "abc"}
    versions = {"metarl_l2f": "0.9", "torch": "2.13.0"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"versions": versions}))
    lines = [{"iteration": i, "env_steps": 1000 * i, "time/iteration": 30.0} for i in (1, 2, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_report_tells_everything_in_one_file(folder):
    Evaluation(np.array([[-10.0, -2.0], [-14.0, -4.0]]), {"environment": "Nav<2>", "seed": 3}).save(
        folder / "evaluation.json"
    )
    save(Figure(figsize=(1, 1)), folder / "learning_curve.png")
    save(Figure(figsize=(1, 1)), folder / "a<b>_c.png")
    page = write_report(folder, "Can it & will it?").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == [] and [address[:21] for address in parser.fetched] == ["data:image/png;base64"] * 2
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL))
    for said in (
        "L2F on cheetah vel, seed 3",
        "Can it &amp; will it?",
        "-12.00",
        "-3.00",
        "2 held-out tasks",
        "10,000",
    ):
        assert said in text, said
    # 1, 1 and 8 iterations of 30 s.
    assert "5 min" in text and "settings.inner.inner_lr" in text and "2.13.0" in text and "abc" in text
    assert page.startswith("<!doctype html>\n")
    assert (
        "--a &#39;&lt;b&gt;&#39;" in text
        and "a&lt;b&gt; c" in page
        and not any(raw in page for raw in ("<script>", "Nav<2>", "<b>"))
    )


def test_a_run_that_was_given_more_iterations_takes_two_commands(folder):
    again = "--resume FOLDER --iterations 10"
    assert again not in write_report(folder, "?").read_text()
    config = json.loads((folder / "config.json").read_text())
    config["options"]["iterations"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    page = write_report(folder, "?").read_text()
    assert f"python x.py --a &#39;&lt;b&gt;&#39;\n{command('cheetah_vel')} {again}</pre>" in page


@pytest.mark.parametrize(
    ("commit", "said"), [("abc", "<p>With metarl_l2f 0.9, at commit abc. "), (None, "<p>With metarl_l2f 0.9. ")]
)
def test_the_version_is_named_and_the_commit_where_there_is_one(folder, commit, said):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"git_commit": commit}))
    assert said in write_report(folder, "?").read_text()


def test_a_run_that_is_not_evaluated_yet_says_so(folder):
    page = write_report(folder, "?").read_text()
    assert "Not evaluated yet" in page and "None yet" in page


def test_training_leaves_a_report_and_evaluating_renews_it(tmp_path):
    flags = "--iterations 1 --tasks-per-batch 2 --episodes-per-task 2 --horizon 4 --hidden-sizes 3 --threads 1"
    assert navigation.main([*flags.split(), "--evaluation-tasks", "2", "--log-dir", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "walk to a goal you cannot see" in page and page.count("<img ") == 4 and "2 held-out tasks" in page
    assert "Paths on held-out tasks" in page  # The domain's caption.
    assert evaluate.main([str(tmp_path / "run"), "--tasks", "3", "--episodes", "2"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "3 held-out tasks" in page and "Paths on held-out tasks" in page
