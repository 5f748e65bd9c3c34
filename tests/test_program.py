"""What programs print where there is no UTF-8."""

from metarl_l2f.program import in_ascii

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = [
    *("--tasks-per-batch", "3", "--episodes-per-task", "2", "--horizon", "8", "--hidden-sizes", "4"),
    *("--threads", "1", "--iterations", "1", "--evaluation-tasks", "2"),
]


@pytest.mark.parametrize(
    ("character", "spelled"),
    [
        *(("−", "-"), ("±", "+/-"), ("×", "x"), ("γ", "gamma"), ("λ", "lambda"), ("Σ", "sigma"), ("²", "^2")),
        *(("½", "1/2"), ("⁻", "^-"), ("…", "..."), ("ₙ", "n"), ("é", "e"), ("\u0304", ""), ("x", "x")),
        *(("中", "?"), ("\udcff", "?")),
    ],
)
def test_characters_are_spelled_in_ascii(character, spelled):
    assert in_ascii(character) == spelled


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_terminals_without_utf_8_are_shown_what_they_can_show(tmp_path, encoding):
    def printed(*arguments):
        done = subprocess.run(
            [sys.executable, str(ROOT / "launchers" / "navigation.py"), *map(str, arguments)],
            capture_output=True,
            encoding=encoding,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    words = " ".join(printed("--help").split())
    assert "attenuate the action noise sigma, too (log sigma + log gamma)" in words.lower()
    assert f"-distance{'²' if encoding == 'latin-1' else '^2'} (as papers print it)" in words
    if encoding == "ascii":  # One training will do.
        table = printed(*TINY, "--log-dir", tmp_path / "run")
        assert " +/- " in table and "?" not in table
