"""The documentation says what is so: its keys, files, fields and flags exist, and its code runs."""

import contextlib
import fnmatch
import importlib.util
import io
import json
import math
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from metarl_l2f import MetaRL, MetaRLSettings, PolicyNetwork
from metarl_l2f.launchers import cheetah_dir, navigation, sinusoid
from metarl_l2f.supervised.leo.embeddings import Embeddings
from metarl_l2f.supervised.leo.experiment import LEOExperiment, LEOSettings
from metarl_l2f.training.metrics import BOARD, read

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
METRICS = ROOT / "docs" / "metrics.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = [path for folder in ("launchers", "benchmarks", "studies") for path in sorted((ROOT / folder).glob("*.py"))]

OTHER_PROGRAMS_FLAGS = {
    "--logdir",
    "--figures",
    "--nproc-per-node",
    "--nnodes",
    "--max-restarts",
    "--shutdown-timeout",
    "--rdzv-id",
    "--rdzv-backend",
    "--rdzv-endpoint",
    "--nodes",
    "--ntasks-per-node",
    "--cpus-per-task",
    "--requeue",
}
"""Flags in the documentation of programs which are not ours: TensorBoard's, torchrun's, Slurm's, pytest's."""


# --- What docs/metrics.md promises ---


def documented(heading: str) -> set[str]:
    """The code names in the first column of the tables under a heading of docs/metrics.md."""
    _, _, rest = METRICS.read_text("utf-8").partition(f"\n## {heading}\n")
    section = rest.partition("\n## ")[0]
    names = {name for row in section.splitlines() if row.startswith("| `") for name in _code(row.split(" | ")[0])}
    assert names, f"docs/metrics.md has no table under {heading!r}"
    return names


def _code(text: str) -> list[str]:
    return re.findall("`([^`]+)`", text)


def described_by(key: str, patterns: set[str]) -> list[str]:
    """Which documented patterns describe a key; `<k>` stands for a number, any other `<name>` for a name."""
    found = []
    for pattern in patterns:
        literal = re.split(r"(<\w+>)", pattern)
        parts = [{"<k>": r"\d+"}.get(p, r"[\w.]+") if p.startswith("<") else re.escape(p) for p in literal]
        if re.fullmatch("".join(parts), key):
            found.append(pattern)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with everything on that adds keys."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = "--iterations 2 --tasks-per-batch 2 --episodes-per-task 2 --horizon 4 --hidden-sizes 3 --inner-steps 2 "
    flags += "--learn-inner-lr --inspect-every 1 --evaluation-tasks 2 --evaluation-steps 1 --threads 1 --log-dir"
    assert navigation.main([*flags.split(), str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("return/step_12", "return/step_<k>"),
        ("gamma/mean.layers.0.weight/std", "gamma/<tensor>/std"),
        ("conflict/log_std", "conflict/<layer>"),
    ],
)
def test_a_pattern_describes_its_keys(key, pattern):
    assert described_by(key, {pattern}) == [pattern]


@pytest.mark.parametrize("key", ["return/step_", "return/step_one", "validation/return/step_1", "return/step_1/x"])
def test_a_pattern_describes_no_other_key(key):
    assert described_by(key, {"return/step_<k>", "gamma/<tensor>/std"}) == []


@pytest.fixture(scope="module")
def cheetah_run(tmp_path_factory):
    """A finished run on batched physics."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = "--iterations 1 --tasks-per-batch 2 --episodes-per-task 2 --horizon 4 --hidden-sizes 3 "
    flags += "--evaluation-tasks 2 --evaluation-steps 1 --threads 1 --log-dir"
    assert cheetah_dir.main([*flags.split(), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def promp_run(tmp_path_factory):
    """A finished run whose meta-update is by Adam, and whose step sizes and decays are generated."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = "--method alfa --outer promp --iterations 1 --tasks-per-batch 2 --episodes-per-task 2 --horizon 4 "
    flags += "--hidden-sizes 3 --evaluation-tasks 0 --threads 1 --log-dir"
    assert navigation.main([*flags.split(), str(folder)]) == 0
    return folder


def test_every_documented_key_is_logged(run, cheetah_run, promp_run):
    keys = {key for folder in (run, cheetah_run, promp_run) for line in read(folder) for key in line}
    used = {pattern for key in keys for pattern in described_by(key, documented("Keys"))}
    # Several ranks log time/ranks, and these runs have one.
    assert documented("Keys") - used == {"time/ranks"}, "documented in docs/metrics.md, but no run logs it"


def test_every_logged_key_is_documented(run, cheetah_run, promp_run):
    keys = {key for folder in (run, cheetah_run, promp_run) for line in read(folder) for key in line}
    unknown = [key for key in keys if not described_by(key, documented("Keys"))]
    assert not unknown, "logged, but not in docs/metrics.md"


def test_tensorboards_charts_gather_every_logged_key(run, cheetah_run, promp_run):
    patterns = [pattern for charts in BOARD.values() for _, found in charts.values() for pattern in found]
    keys = {key for folder in (run, cheetah_run, promp_run) for line in read(folder) for key in line}
    drawn = {key for key in keys for pattern in patterns if re.search(pattern, key)}
    assert keys - drawn == {"iteration", "env_steps"}  # The axes of other charts.
    of_updates = {"clip_fraction", "kl", "kl/epoch_4", "inner_kl/step_0", "inner_kl_weight/step_0", "gradient_norm"}
    assert of_updates | {"explained_variance/step_1", "entropy/step_1", "surrogate/change"} <= drawn


def test_every_key_of_maml_is_documented():
    settings = MetaRLSettings("maml", tasks_per_batch=2, episodes_per_task=2, horizon=3, policy=PolicyNetwork((3,)))
    maml = MetaRL("metarl_l2f/Navigation2D-v0", settings)
    for key in maml.iterate(1) | maml.validate(1):
        assert described_by(key, documented("Keys")), key


@pytest.fixture(scope="module")
def sinusoid_run(tmp_path_factory):
    """A finished supervised run with everything on that adds keys."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = "--iterations 2 --tasks-per-batch 2 --inner-steps 2 --learn-inner-lr --diagnostics-every 1 "
    flags += "--inspect-every 1 --threads 1 --evaluation-tasks 2 --evaluation-repeats 2 --log-dir"
    assert sinusoid.main([*flags.split(), str(folder)]) == 0
    return folder


def test_supervised_keys_are_documented_and_logged(sinusoid_run):
    keys = {key for line in read(sinusoid_run) for key in line} - {"iteration"}
    patterns = documented("Keys of supervised runs")
    assert [key for key in keys if not described_by(key, patterns)] == []
    assert patterns == {pattern for key in keys for pattern in described_by(key, patterns)}


def test_leos_keys_are_documented_and_logged():
    data = Embeddings(torch.eye(8).repeat_interleave(3, 0), torch.arange(8).repeat_interleave(3), tuple("abcdefgh"))
    run = LEOExperiment(dict.fromkeys(("train", "val", "test"), data), LEOSettings(queries=2, validation_tasks=2))
    keys, patterns = run.iterate(1) | run.validate(1), documented("Keys of LEO runs")
    assert [key for key in keys if not described_by(key, patterns)] == []
    assert patterns == {pattern for key in keys for pattern in described_by(key, patterns)}


def test_a_run_leaves_exactly_the_documented_files(run, cheetah_run, sinusoid_run):
    files = [path.name for folder in (run, cheetah_run, sinusoid_run) for path in folder.iterdir()]
    patterns = documented("Files of a run")
    assert [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not fnmatch.filter(files, pattern)] == []


def test_evaluation_json_holds_exactly_the_documented_fields(run):
    content = json.loads((run / "evaluation.json").read_text())
    assert content.keys() == documented("evaluation.json")
    (row,) = [row for row in METRICS.read_text("utf-8").splitlines() if row.startswith("| `protocol`")]
    assert {"protocol", *content["protocol"]} == set(_code(row))


def test_every_link_inside_the_metrics_page_leads_to_a_heading():
    text = METRICS.read_text("utf-8")
    headings = {re.sub(r"[^\w\s-]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in _headings(text)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def _headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


# --- The example; snippets and commands are run by tests/journeys ---


def test_the_example_of_an_own_environment_runs():
    spec = importlib.util.spec_from_file_location("own_environment", ROOT / "examples" / "own_environment.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    results = example.main(iterations=1, episodes=2, horizon=3)
    # Position and target lie in [−1, 1]: three steps cost at most 3 · 2.
    assert [len(returns) for returns in results] == [3, 3, 3]
    assert all(math.isfinite(value) and -6 <= value <= 0 for returns in results for value in returns)


# --- Flags ---


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Every flag that the --help of one of our programs lists."""
    return set().union(*(flags_in(_help(program)) for program in PROGRAMS))


def _help(program: Path) -> str:
    """What `python PROGRAM --help` prints; nothing, where a file is no program but a part of several."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [str(program), "--help"])
        patch.syspath_prepend(program.parent)  # As `python PROGRAM` does.
        try:
            runpy.run_path(str(program), run_name="__main__")
        except SystemExit as stopped:
            assert not stopped.code, program
    return printed.getvalue()


def test_flags_are_found_in_text_and_nothing_else_is():
    assert flags_in("`--seed 2`, --log-dir=x and [--squared]; not |---|, a--b, --- or -n") == {
        *("--seed", "--log-dir", "--squared"),
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_in_the_documentation_exists(path, flags):
    unknown = flags_in(path.read_text("utf-8")) - flags - OTHER_PROGRAMS_FLAGS
    assert not unknown, "no launcher or benchmark has these; correct them, or add another program's to the list above"
