"""Runs that the viewer shows, trained once for all tests."""

import pytest

from metarl_l2f.launchers import cheetah_dir, navigation
from metarl_l2f.runs import serving

from .viewed import TINY, viewer_of


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert navigation.main([*TINY, "--log-dir", str(folder / "l2f")]) == 0
    assert navigation.main([*TINY, "--method", "maml", "--initial-std", "0.1", "--log-dir", str(folder / "maml")]) == 0
    assert cheetah_dir.main([*TINY, "--log-dir", str(folder / "cheetah")]) == 0
    return folder


@pytest.fixture(scope="session")
def pair(runs):
    made = viewer_of(runs / "l2f", runs / "maml")
    yield made
    made.close()


@pytest.fixture(scope="session")
def cheetah(runs):
    made = viewer_of(runs / "cheetah")
    yield made
    made.close()


@pytest.fixture(scope="session")
def client(pair):
    return serving.application(pair).test_client()
