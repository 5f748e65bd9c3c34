"""Who may import whom: `make lint` keeps the contracts of setup.cfg, and here each is seen to notice what breaks it."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
VAGUE_NAMES = ("common", "helper", "helpers", "util", "utils")

CONFIG = configparser.ConfigParser()
CONFIG.read(REPOSITORY / "setup.cfg", "utf-8")
CONTRACTS = [name.rpartition(":")[2] for name in CONFIG.sections() if name.startswith("importlinter:contract:")]

VIOLATIONS = {
    "layers": {
        "metarl_l2f.core.learner": "from ..rl.episodes import Episodes",
        "metarl_l2f.training.checkpoint": "from ..core.learner import MetaLearner",
        "metarl_l2f.rl.trpo": "def f():\n    from ..supervised import meta_loss",
        "metarl_l2f.parallel.shards": "from metarl_l2f.envs.navigation import move",
    },
    "cycles": {"metarl_l2f.rl.episodes": "from .experiment import MetaRL"},
    "programs": {
        "metarl_l2f.launchers.evaluate": "from metarl_l2f.launchers.figures import Options",
        "studies.study": "from metarl_l2f.launchers import navigation",
        "benchmarks.soak": "import studies.study",
    },
    "installed_names": {"metarl_l2f.runs.load": "import envs.navigation"},
    "public_names": {"metarl_l2f.training.loop": "from metarl_l2f import MetaRL"},
    "environments": {"metarl_l2f.envs.base": "from ..training.seeding import generator"},
    "simulators": {
        "metarl_l2f.core.learner": "import gymnasium",
        "metarl_l2f.rl.trpo": "from gymnasium.vector import VectorEnv",
        "metarl_l2f.rl.sampling": "import mujoco",
    },
    "workers": {"metarl_l2f.rl.copies": "import torch\nfrom .spaces import observed_space"},
    "command_lines": {"metarl_l2f.training.metrics": "import tyro", "metarl_l2f.envs.base": "import argparse"},
    "progress": {"metarl_l2f.rl.experiment": "from tqdm import tqdm"},
}
"""By contract, modules and a line that breaks it there."""


@pytest.fixture
def tree(tmp_path):
    """A copy of the code under its installed names."""
    package = tmp_path / "metarl_l2f"
    places = {"metarl_l2f": package, "envs": package / "envs", "launchers": package / "launchers"}
    for source, target in (places | {name: tmp_path / name for name in ("studies", "benchmarks")}).items():
        shutil.copytree(REPOSITORY / source, target, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def lint(tree, *flags):
    """The exit status of import-linter, and what it printed."""
    command = [*LINT, "--no-logo", "--no-cache", str(REPOSITORY / "setup.cfg"), *flags]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_the_contracts_are_kept(tree):
    status, said = lint(tree)
    assert status == 0 and f"Contracts: {len(CONTRACTS)} kept, 0 broken." in said, said


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_contract_names_every_module_that_breaks_it(tree, contract):
    for module, lines in VIOLATIONS[contract].items():
        with open(tree / f"{module.replace('.', '/')}.py", "a", encoding="utf-8") as file:
            file.write(f"\n{lines}\n")
    status, said = lint(tree, "--contract", contract)
    assert status == 1 and "0 kept, 1 broken." in said, said
    # Circles are told with names relative to their package.
    assert all(f".{module.rpartition('.')[2]} -> " in said for module in VIOLATIONS[contract]), said


def test_a_new_part_must_have_a_layer(tree):
    (tree / "metarl_l2f" / "unplaced.py").touch()
    status, said = lint(tree, "--contract", "layers")
    assert status == 1 and "unplaced" in said


def test_names_say_what_is_inside():
    folders = ("metarl_l2f", "envs", "launchers", "tests", "benchmarks", "studies", "examples")
    paths = [path.relative_to(REPOSITORY) for name in folders for path in (REPOSITORY / name).rglob("*.py")]
    parts = {part.rpartition("_")[2] for path in paths for part in path.with_suffix("").parts}
    assert paths and parts.isdisjoint(VAGUE_NAMES)


def test_every_folder_of_the_library_is_installed():
    # An editable install finds a package that setup.cfg forgets; a wheel would leave it out.
    listed = set(CONFIG["options"]["packages"].split())
    found = {".".join(path.relative_to(REPOSITORY).parent.parts) for path in (REPOSITORY / "metarl_l2f").rglob("*.py")}
    assert found <= listed, f"add to `packages` in setup.cfg: {', '.join(sorted(found - listed))}"
