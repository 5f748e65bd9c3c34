"""Who may import whom: the rules of docs/architecture.md, read off the source with `ast`.

A rule is a function from sources to violations. Each is tested on this repository, where it must find nothing, and on
lines that break it, where it must name the file and the line. Direct imports count wherever they stand: inside
functions and under `if TYPE_CHECKING` too.
"""

import ast
import configparser
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("metarl_l2f", "envs", "launchers", "tests", "benchmarks", "studies", "examples")

SIMULATORS = ("gymnasium", "mujoco")
COMMAND_LINES = ("argparse", "click", "fire", "getopt", "optparse", "tyro")
ALGORITHMS = tuple(
    f"metarl_l2f.{name}"
    for name in ("core", "diagnostics", "networks", "rl", "supervised", "envs", "reports", "launchers")
)
STEP_ENVIRONMENTS = tuple(
    f"metarl_l2f/rl/{name}.py" for name in ("sampling", "vectorise", "copies", "workers", "spaces", "adapted")
)
VAGUE_NAMES = ("common", "helper", "helpers", "util", "utils")


@dataclass(frozen=True)
class Source:
    """One Python file."""

    path: str
    """Relative to the repository, with forward slashes."""
    tree: ast.Module

    @property
    def package(self) -> list[str]:
        """The package that relative imports start from; envs/ and launchers/ are installed inside metarl_l2f."""
        folders = self.path.split("/")[:-1]
        return ["metarl_l2f", *folders] if folders[0] in ("envs", "launchers") else folders


@dataclass(frozen=True)
class Import:
    """One imported name: `from .navigation import Navigation` in envs/ is metarl_l2f.envs.navigation.Navigation."""

    where: str
    """file:line."""
    name: str
    relative: bool

    def is_of(self, modules: Iterable[str]) -> bool:
        """Whether this is one of the modules, or something inside one."""
        return any(self.name == module or self.name.startswith(f"{module}.") for module in modules)


def read_sources(root: Path) -> list[Source]:
    """Parse every Python file in the folders that hold code; folders that do not exist hold none."""
    paths = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return [Source(path.relative_to(root).as_posix(), ast.parse(path.read_text("utf-8"))) for path in paths]


def imports(source: Source) -> Iterator[Import]:
    """Every import statement of a file, with relative ones made absolute."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            where = f"{source.path}:{node.lineno}"
            yield from (Import(where, alias.name, relative=False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            where = f"{source.path}:{node.lineno}"
            # One dot is the package itself, each further dot its parent.
            start = source.package[: len(source.package) - node.level + 1] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            yield from (Import(where, f"{module}.{alias.name}", relative=node.level > 0) for alias in node.names)


def is_public_name(found: Import) -> bool:
    """Whether this reaches for what metarl_l2f/__init__.py gathers from everywhere: `from metarl_l2f import L2F`.

    That hides which part is meant, so restricted folders may not do it. `__version__` and its like are no part.
    """
    parent, _, name = found.name.rpartition(".")
    return found.name == "metarl_l2f" or (parent == "metarl_l2f" and not name.startswith("__"))


def core_knows_neither_reward_nor_image(sources: list[Source]) -> Iterator[str]:
    forbidden = (
        *SIMULATORS,
        *(f"metarl_l2f.{name}" for name in ("rl", "supervised", "envs", "reports", "launchers")),
    )
    for source in sources:
        if source.path.startswith("metarl_l2f/core/"):
            for found in imports(source):
                if found.is_of(forbidden) or found.name == "metarl_l2f":
                    yield f"{found.where}: core imports {found.name}, but it serves every domain and may know none"


def only_sampling_knows_the_simulators(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        if source.path.startswith("metarl_l2f/rl/") and source.path not in STEP_ENVIRONMENTS:
            for found in imports(source):
                if found.is_of(SIMULATORS):
                    yield f"{found.where}: imports {found.name}; only {', '.join(STEP_ENVIRONMENTS)} step environments"


def workers_start_without_torch(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        if source.path == "metarl_l2f/rl/copies.py":
            for found in imports(source):
                if found.is_of(["torch", "metarl_l2f"]):
                    yield f"{found.where}: imports {found.name}, but worker processes run this file as a script"


def envs_import_only_each_other(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        if source.path.startswith("envs/"):
            for found in imports(source):
                if found.is_of(["metarl_l2f.envs", "envs"]) and not found.relative:
                    yield f"{found.where}: imports {found.name}; write it as a relative import"
                elif found.is_of(["metarl_l2f"]) and not found.is_of(["metarl_l2f.envs"]):
                    yield f"{found.where}: imports {found.name}; environments need no other part of the library"


def training_knows_no_algorithm(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        if source.path.startswith("metarl_l2f/training/"):
            for found in imports(source):
                if found.is_of(ALGORITHMS) or is_public_name(found):
                    yield f"{found.where}: training imports {found.name}, but it must serve any algorithm"


def only_launchers_parse_and_print(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        if source.path.startswith(("metarl_l2f/", "envs/")):
            if source.path.startswith("metarl_l2f/runs/"):
                continue  # What launchers share.
            for found in imports(source):
                if found.is_of(COMMAND_LINES):
                    yield f"{found.where}: imports {found.name}; only launchers/ read the command line"
                if found.is_of(["tqdm"]) and not source.path.startswith("metarl_l2f/training/"):
                    yield f"{found.where}: imports {found.name}; progress is shown by metarl_l2f/training/"
            for node in ast.walk(source.tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                    yield f"{source.path}:{node.lineno}: calls print; only launchers/ print (raise or return instead)"


def names_say_what_is_inside(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for name in Path(source.path).with_suffix("").parts:
            if name.rpartition("_")[-1] in VAGUE_NAMES:
                yield f"{source.path}:1: {name!r} says nothing about its content; name it after what it does"


RULES = {
    core_knows_neither_reward_nor_image: {
        "metarl_l2f/core/learner.py": [
            "import gymnasium",
            "from mujoco import MjModel",
            "from .. import rl",
            "from ..rl.trpo import step",
            "def f():\n    import metarl_l2f.supervised.images",
        ],
    },
    only_sampling_knows_the_simulators: {
        "metarl_l2f/rl/__init__.py": ["import mujoco"],
        "metarl_l2f/rl/adaptation.py": [
            "import gymnasium as gym",
            "from gymnasium.vector import VectorEnv",
            "import mujoco.batch",
        ],
    },
    workers_start_without_torch: {
        "metarl_l2f/rl/copies.py": ["import torch", "from torch import Tensor", "from .episodes import Episodes"],
    },
    envs_import_only_each_other: {
        "envs/__init__.py": ["from .. import core", "import metarl_l2f", "import metarl_l2f.envs.navigation"],
        "envs/navigation.py": [
            "from ..core import L2F",
            "from metarl_l2f.rl import sampling",
            "from envs import half_cheetah",
        ],
    },
    training_knows_no_algorithm: {
        "metarl_l2f/training/checkpoint.py": [
            "from ..core import L2F",
            "from .. import L2F",
            "from .. import networks",
            "from metarl_l2f import L2F",
            "from metarl_l2f.reports.evaluation import evaluate",
            "import metarl_l2f.envs",
            "import metarl_l2f",
        ],
    },
    only_launchers_parse_and_print: {
        "metarl_l2f/core/learner.py": ["import argparse", "from tqdm import tqdm", "print(1)"],
        "metarl_l2f/training/metrics.py": ["import tyro", "def f():\n    print(1)"],
        "envs/navigation.py": ["from tyro import cli", "print(1)"],
    },
    names_say_what_is_inside: {
        "metarl_l2f/rl/utils.py": [""],
        "metarl_l2f/common/losses.py": [""],
        "launchers/plot_helpers.py": [""],
        "tests/helpers.py": [""],
    },
}
"""Each rule with snippets that break it, by the file they would stand in."""

ALLOWED = {
    "metarl_l2f/core/learner.py": ["import math", "import torch", "from ..networks import MLP"],
    "metarl_l2f/reports/evaluation.py": ["import gymnasium", "from ..rl import sampling"],
    "metarl_l2f/rl/sampling.py": ["import gymnasium", "import mujoco", "from .vectorise import vectorise"],
    "metarl_l2f/rl/copies.py": ["import gymnasium", "import cloudpickle"],
    "metarl_l2f/rl/workers.py": ["import gymnasium", "from .copies import Copies"],
    "metarl_l2f/rl/adaptation.py": ["from .. import core", "from ..core import L2F", "from .sampling import Sampler"],
    "metarl_l2f/training/metrics.py": [
        "from tqdm import tqdm",
        "from metarl_l2f import __version__",
        "from . import seeding",
    ],
    "envs/navigation.py": [
        "import gymnasium",
        "import mujoco",
        "from . import half_cheetah",
        "from .half_cheetah import x",
    ],
    "launchers/navigation.py": ["import tyro", "from metarl_l2f.envs.navigation import Navigation", "print(1)"],
    "benchmarks/common_random_numbers.py": ["print(1)"],
}
"""Files that break no rule."""

Rule = Callable[[list[Source]], Iterator[str]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_repository_keeps_the_rule(rule: Rule) -> None:
    violations = list(rule(read_sources(REPOSITORY)))
    assert not violations, "\n".join(["", *violations])


@pytest.mark.parametrize(
    ("rule", "path", "snippet"),
    [
        (rule, path, snippet)
        for rule, files in RULES.items()
        for path, snippets in files.items()
        for snippet in snippets
    ],
)
def test_a_violation_is_found_at_its_line(tmp_path: Path, rule: Rule, path: str, snippet: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(snippet, "utf-8")
    line = snippet.count("\n") + 1
    (violation,) = rule(read_sources(tmp_path))
    assert violation.startswith(f"{path}:{line}: ")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_what_is_allowed_is_let_through(tmp_path: Path, rule: Rule) -> None:
    for path, lines in ALLOWED.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("\n".join(lines), "utf-8")
    assert list(rule(read_sources(tmp_path))) == []


def test_every_folder_of_the_library_is_installed() -> None:
    # An editable install finds a package that setup.cfg forgets; a wheel would leave it out.
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg", "utf-8")
    listed = set(config["options"]["packages"].split())
    found = {".".join(path.relative_to(REPOSITORY).parent.parts) for path in (REPOSITORY / "metarl_l2f").rglob("*.py")}
    assert found <= listed, f"add to `packages` in setup.cfg: {', '.join(sorted(found - listed))}"
