"""The pages of methods say what is so: flags, the code that they name, links, and the scores of the pilots."""

import dataclasses
import importlib
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from journeys.documents import snippets

from metarl_l2f import MetaRL
from metarl_l2f.methods import METHODS
from metarl_l2f.reports.evaluation import Evaluation
from metarl_l2f.rl.settings import MetaRLSettings
from metarl_l2f.training.config import flat, to_json

ROOT = Path(__file__).parents[1]
DOCS, RESULTS = ROOT / "docs", ROOT / "results" / "methods"
PAGES = sorted((DOCS / "methods").glob("*.md"))
PILOTS = runpy.run_path(str(ROOT / "studies" / "pilots.py"))
Pilot, Study = PILOTS["Pilot"], PILOTS["Study"]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def methods_of(page: Path) -> list[str]:
    """The methods whose pilots a page shows."""
    (section,) = PILOTS["SECTION"].finditer(page.read_text("utf-8"))
    return section[2].split()


# --- Pages ---


def test_every_method_has_one_page_and_the_index_leads_to_it():
    named = [method for page in PAGES for method in methods_of(page)]
    assert sorted(named) == sorted(["l2f", *METHODS])
    index = (DOCS / "methods.md").read_text("utf-8")
    for page in PAGES:
        for method in methods_of(page):
            assert re.search(rf"^\| `{method}` \|.*\({re.escape(f'methods/{page.name}')}\) \|$", index, re.MULTILINE)


@every_page
def test_flags_have_the_values_that_the_page_says(page):
    header, _, *rows = re.search(r"^(\| Flag \|.*\n)((?:\|.*\n)+)", page.read_text("utf-8"), re.MULTILINE)[
        0
    ].splitlines()
    methods = re.findall(r"`([^`]+)`", header)
    assert methods and set(methods) <= set(methods_of(page)) and rows
    for column, method in enumerate(methods, start=1):
        settings = flat(to_json(MetaRLSettings.for_domain("navigation", method)))
        values = {name.rpartition(".")[2]: str(value) for name, value in settings.items()}
        for row in rows:
            flag, *said = (cell.strip() for cell in row.strip("|").split("|"))
            assert said[column - 1] == values[flag.strip("`-").replace("-", "_")], (method, flag)


@every_page
def test_the_code_that_a_page_names_is_there(page):
    names = re.findall(r"`((?:core|rl|networks)(?:\.\w+)+)`", page.read_text("utf-8"))
    assert names
    for name in names:
        package, module, *attributes = name.split(".")
        found = importlib.import_module(f"metarl_l2f.{package}.{module}")
        for attribute in attributes:
            found = getattr(found, attribute)


@every_page
def test_a_method_logs_the_keys_that_its_page_tells_to_watch(page):
    watched = page.read_text("utf-8").partition("\n## What to watch\n")[2].partition("\n## ")[0]
    singles = {"kl", "gradient_norm", "clip_fraction", "cg_residual"}
    keys = {
        key for key in re.findall("`([^`]+)`", watched) if key in singles or re.fullmatch(r"[a-z_]+/[\w<>./]+", key)
    }
    keys = {key for key in keys if not key.startswith("gradient_cosine/") and not key.endswith(".md")}
    settings = MetaRLSettings.for_domain("navigation", methods_of(page)[0])
    policy = dataclasses.replace(settings.policy, hidden_sizes=(4, 4))
    sizes = {"tasks_per_batch": 2, "episodes_per_task": 2, "horizon": 4}
    run = MetaRL("metarl_l2f/Navigation2D-v0", dataclasses.replace(settings, policy=policy, **sizes), {"horizon": 4})
    logged = run.iterate(1)
    run.close()
    patterns = {key: re.sub(r"<\w+>", r"[\\w.]+", key) for key in keys}
    assert keys
    assert [key for key, pattern in patterns.items() if not any(re.fullmatch(pattern, name) for name in logged)] == []


@pytest.mark.parametrize("page", [*PAGES, DOCS / "methods.md", RESULTS / "README.md"], ids=lambda page: page.stem)
def test_links_and_pictures_are_there(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / link).exists(), link


def test_the_examples_of_own_parts_are_short():
    examples = snippets(DOCS / "add_a_method.md")
    assert len(examples) == 2
    assert all(len([line for line in one.code.splitlines() if line]) < 25 for one in examples)


# --- Pilots ---


@pytest.mark.parametrize("page", PILOTS["pages"](DOCS), ids=lambda page: page.stem)
def test_a_page_shows_the_scores_that_are_kept(page):
    assert page.read_text("utf-8") == PILOTS["renewed"](PILOTS["read"](RESULTS), page, DOCS), (
        "run python studies/pilots.py --again results/methods --docs docs"
    )


def changes_of(method: str) -> str:
    """The flags by which a method's settings differ from MAML's today."""
    settings = to_json(MetaRLSettings.for_domain("navigation", method))
    return PILOTS["changes_of"](settings, PILOTS["settings_of_maml"]())


def by_hand() -> "Study":
    """MAML with two seeds, ProMP with one, and one of MAML with another step size; two held-out tasks, one step."""
    study, outer = Study([], {}, {}, PILOTS["settings_of_maml"]()), changes_of("promp")
    runs = [
        ("maml", "", 1, -10.0),
        ("maml", "", 2, -14.0),
        ("maml", "--inner-lr 0.5", 1, -50.0),
        ("promp", outer, 1, -17.0),
    ]
    for method, changes, seed, after in runs:
        pilot = Pilot(method, changes, seed, 2, 2 if method == "maml" else 1, 2_000_000, 90.0 * seed, "abc")
        study.pilots.append(pilot)
        study.evaluations[pilot.key] = Evaluation(np.array([[-40.0, after - 1], [-30.0, after + 1]]), {})
        study.logs[pilot.key] = [
            {"iteration": n, "env_steps": n * 1_000_000, "return/step_0": -40.0, "return/step_1": -40.0 + n}
            for n in (1, 2)
        ]
    return study


def test_the_table_by_hand():
    # MAML's seeds: −10 and −14, mean −12; s = 2 √2, and t₀.₉₇₅ with one degree of freedom is 12.706: ± 25.41.
    assert PILOTS["everything"](by_hand()) == [
        "|  | Seeds | before | 1 step | Environment steps | Minutes, fastest |",
        "|---|---|---|---|---|---|",
        "| `maml` | 2 | −35.00 ± 0.00 | −12.00 ± 25.41 | 2.00 M | 1.5 |",
        "| `promp` | 1 | −35.00 | −17.00 | 2.00 M | 1.5 |",
        "",
        "The bar is the return of untuned MAML after one step, −16. Below it: `promp` (−17.00).",
        "Evaluated at an earlier iteration than the last, for it validated better: `promp` 1 (1).",
        "Without pilots yet: "
        + ", ".join(f"`{m}`" for m in PILOTS["named_in_order"]() if m not in ("maml", "promp"))
        + ".",
    ]
    assert PILOTS["others"](by_hand())[2:] == ["| `maml` | `--inner-lr 0.5` | 1 | 2 | −35.00 | −50.00 |"]


def test_a_study_is_read_back_as_it_was_written_and_drawn(tmp_path):
    study = by_hand()
    PILOTS["write"](study, tmp_path / "results" / "methods")
    again = PILOTS["read"](tmp_path / "results" / "methods")
    assert (again.pilots, again.logs) == (study.pilots, study.logs)
    for key, evaluation in study.evaluations.items():
        np.testing.assert_array_equal(again.evaluations[key].scores, evaluation.scores)
    pages = tmp_path / "docs" / "methods"
    pages.mkdir(parents=True)
    (pages / "promp.md").write_text("# ProMP\n<!-- pilots: promp -->\nold\n<!-- end of pilots -->\nThe end.\n")
    whole = tmp_path / "results" / "methods" / "README.md"
    whole.write_text(
        "".join(f"<!-- pilots: {kind} -->\n<!-- end of pilots -->\n" for kind in ("all", "overview", "others"))
    )
    (pages.parent / "methods.md").write_text("<!-- pilots: overview -->\n<!-- end of pilots -->\n")
    assert PILOTS["main"](["--again", str(whole.parent), "--docs", str(tmp_path / "docs")]) == 0
    page = (pages / "promp.md").read_text()
    assert "old" not in page and page.endswith("<!-- end of pilots -->\nThe end.\n")
    assert "![Learning curves of MAML and ProMP](promp.png)" in page and "| `promp` | 1 | −35.00 | −17.00 |" in page
    assert "Below it: `promp`" in whole.read_text() and "`--inner-lr 0.5`" in whole.read_text()
    assert "(../../docs/methods/overview.png)" in whole.read_text()
    assert "(methods/overview.png)" in (pages.parent / "methods.md").read_text()
    assert {"promp.png", "overview.png"} <= {path.name for path in pages.iterdir()}


def test_settings_are_told_from_mamls_by_their_flags():
    assert (changes_of("maml"), changes_of("anil")) == ("", "--adapts head")
    settings = to_json(MetaRLSettings.for_domain("navigation", "maml"))
    settings["seed"], settings["inner"]["inner_lr"], settings["inner"]["learn_inner_lr"] = 7, 0.5, False
    settings["policy"]["hidden_sizes"] = [8, 4]
    flags = PILOTS["changes_of"](settings, PILOTS["settings_of_maml"]())
    assert flags == "--hidden-sizes 8 4 --inner-lr 0.5 --no-learn-inner-lr"


def test_pilots_from_before_a_constant_changed_are_not_reported_as_the_methods_own():
    study = by_hand()
    earlier = study._replace(reference={**study.reference, "inner.inner_lr": 0.5})
    assert (len(study.of("maml")), study.of("promp")[0].seed) == (2, 1)
    assert earlier.of("maml") == earlier.of("promp") == []
