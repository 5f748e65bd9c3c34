"""What every test runs under: one thread a process, no window, no clock; and how far the fault suites go."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch and matplotlib are imported; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch
from matplotlib.figure import Figure

from metarl_l2f.training.config import provenance

torch.set_num_threads(1)  # so that pytest-xdist's processes do not fight over the cores

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no reason to fail
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run the fault suites in full, and print their figures")
    parser.addoption("--figures", type=Path, help="write the fault suites' figures into this JSON file, too")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def nothing_optional_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What fails in an inspection or a picture is a warning to a run, but fails its test, unless it clears the log."""
    yield
    failed = [record.getMessage() for record in caplog.get_records("call") if "goes on without it" in record.msg]
    assert not failed, failed


@pytest.fixture
def fits_its_page() -> Callable[[Figure], None]:
    """fits_its_page(figure): nothing that is drawn reaches beyond the picture's edges."""

    def check(figure: Figure) -> None:
        figure.draw_without_rendering()
        inside = figure.get_tightbbox()
        assert inside.x0 >= 0 and inside.y0 >= 0
        assert inside.x1 <= figure.get_figwidth() and inside.y1 <= figure.get_figheight()

    return check


@pytest.fixture
def amount(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """amount(short, full): how many, in `make test` and in `make test-faults`."""
    return lambda short, full: full if request.config.getoption("--thorough") else short


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session: pytest.Session) -> Iterator[None]:
    session.config.stash[BEGUN] = time.time()
    yield


BEGUN = pytest.StashKey[float]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what the fault suites counted (their properties), and write it if asked."""
    figures = dict(pair for report in terminalreporter.getreports("passed") for pair in report.user_properties)
    if figures and config.getoption("--thorough"):
        terminalreporter.section("figures")
        for name, value in figures.items():
            terminalreporter.write_line(f"{name:<60} {value}")
    if (path := config.getoption("--figures")) is not None:
        wall = round(time.time() - config.stash[BEGUN])
        path.write_text(json.dumps({"figures": figures, "wall_s": wall} | provenance(), indent=1) + "\n")
