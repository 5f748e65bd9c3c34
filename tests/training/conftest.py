"""What tests of a stopped run are compared with."""

import pytest

from .walk import left_by, run


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unbroken")
    run(directory)
    return left_by(directory)
