"""A folder of its own for every journey, with what the documents expect to lie there."""

import contextlib
import fcntl
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarl_l2f.launchers import embeddings

from .documents import ROOT
from .table import JOURNEYS, Recipe, shortened

PARTS = ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
PARTS += ("launchers", "benchmarks", "studies", "examples", "envs", "metarl_l2f", "tests")
"""Of the working copy, what commands name by relative paths."""
DEFAULTS = ("OMP_NUM_THREADS", "MPLBACKEND", "PYTHONWARNINGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
"""Variables that the test suite sets, or make where it starts the suite, and a reader does not."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long journeys belong to `make test-journeys`."""
    if not config.getoption("--thorough"):
        long = [item for item in items if item.get_closest_marker("journey")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture
def environment() -> dict[str, str]:
    """A reader's variables, once the environment is activated."""
    variables = {name: value for name, value in os.environ.items() if name not in DEFAULTS}
    return variables | {"PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": sys.prefix}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like the working copy, without anything that a run left there."""
    for name in PARTS:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for results in filter(Path.is_dir, (ROOT / "results").iterdir()):
        (tmp_path / "results" / results.name).mkdir(parents=True)
    return tmp_path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Path]:
    """made(recipe): a folder with what a recipe makes; made once, however many processes test."""
    base = tmp_path_factory.getbasetemp()
    shelf = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"
    shelf.mkdir(exist_ok=True)

    def make(recipe: Recipe) -> Path:
        path = shelf / "_".join(recipe).replace("--", "")
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not Path(f"{path}.done").exists():
                _make(recipe, path, make)
                Path(f"{path}.done").touch()
        return path

    return make


@pytest.fixture
def furnish(made: Callable[[Recipe], Path], folder: Path) -> Callable[[dict[str, Recipe]], None]:
    """furnish(places): puts copies of what recipes make into the folder."""

    def put(places: dict[str, Recipe]) -> None:
        for name, recipe in places.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if recipe[0] == "copy" and (ROOT / recipe[1]).is_dir():
                shutil.copytree(ROOT / recipe[1], folder / name, dirs_exist_ok=True)
            elif recipe[0] == "copy":
                shutil.copy(ROOT / recipe[1], folder / name)
            else:
                shutil.copytree(made(recipe), folder / name)

    return put


def _make(recipe: Recipe, path: Path, make: Callable[[Recipe], Path]) -> None:
    kind, *flags = recipe
    if kind == "data":
        return {"folder": folder_of_images, "omniglot": omniglot}[flags[0]](path)
    with _silent():
        if kind == "embeddings":
            assert embeddings.main([str(make(("prototypes",))), "--out", str(path)]) == 0
        else:
            if kind == "leo":
                flags += ["--embeddings", str(make(("embeddings",)))]
            launcher = importlib.import_module(f"metarl_l2f.launchers.{kind}")
            short = shortened([*flags, "--log-dir", str(path)], JOURNEYS[f"launchers/{kind}.py"].short)
            assert launcher.main(short) == 0
    return None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


# --- Data sets, tiny ---


def folder_of_images(path: Path) -> None:
    """{train,val,test}/<class>/*.png, three classes of four pictures each."""
    for split in ("train", "val", "test"):
        for label in "abc":
            _pictures(path / split / f"{split}_{label}", 4)


def omniglot(path: Path) -> None:
    """<alphabet>/character<number>/*.png, of the alphabets that the documents name and one to learn from."""
    for alphabet in ("Latin", "Tagalog", "Japanese_(katakana)", "Sanskrit"):
        for number in range(1, 4):
            _pictures(path / alphabet / f"character{number:02}", 4)


def _pictures(path: Path, number: int) -> None:
    path.mkdir(parents=True)
    generator = np.random.default_rng(list("/".join(path.parts[-3:]).encode()))  # No two pictures are alike.
    for index in range(number):
        Image.fromarray(generator.integers(0, 2, (28, 28), np.uint8) * 255).save(path / f"{index}.png")
