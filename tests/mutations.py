"""Break the code on purpose, one line at a time, and see that a test fails: `make test-mutations`, some minutes.

`mutations.toml` lists what is broken. Every mutation replaces one piece of text in a copy of the package; tests of that
file then run against the copy. One that no test notices is a test that is missing. Words on the command line choose
the mutations whose file or new text contains one of them.
"""

import contextlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import tomllib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
PROCESSES = 2


class Mutation(NamedTuple):
    """One change of one file of metarl_l2f/."""

    file: str
    old: str
    """A text that stands in the file exactly once."""
    new: str
    """The text that takes its place."""
    tests: tuple[str, ...]
    """The tests that run, in this order, until one fails: the likeliest first, then whole files."""

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()} -> {self.new.strip() or '(nothing)'}"


def listed() -> list[Mutation]:
    """The mutations of mutations.toml."""
    files = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    return [
        Mutation(file, old, new, tuple(plan["tests"])) for file, plan in files.items() for old, new in plan["mutations"]
    ]


def occurrences(mutation: Mutation) -> int:
    """How often the text that a mutation replaces stands in its file."""
    return (ROOT / "metarl_l2f" / mutation.file).read_text("utf-8").count(mutation.old)


class FirstFailure:
    """A plugin of pytest that keeps the name of the first test that fails."""

    test: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.test is None:
            self.test = report.nodeid


def killer(mutation: Mutation | None, tests: tuple[str, ...]) -> str | None:
    """The first test that fails against a copy of the package with one mutation, or none; None if all pass.

    It runs in a process of its own that has imported nothing of the package yet.

    Raises:
        RuntimeError: the tests do not even start.
    """
    failure = FirstFailure()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        package = Path(folder, "metarl_l2f")
        shutil.copytree(ROOT / "metarl_l2f", package)
        for part in ("envs", "launchers"):  # setup.cfg takes them from elsewhere.
            (package / part).symlink_to(ROOT / part)
        if mutation is not None:
            path = package / mutation.file
            path.write_text(path.read_text("utf-8").replace(mutation.old, mutation.new), "utf-8")
        sys.path.insert(0, folder)
        os.environ |= {"PYTHONPATH": folder, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # Unused plugins take a second.
        os.chdir(ROOT)
        options = ["--quiet", "--exitfirst", "-p", "no:cacheprovider", "-k", "not compiled"]
        code = pytest.main([*options, *(f"tests/{test}" for test in tests)], plugins=[failure])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"{mutation}: the tests end with {code!r}\n{said.getvalue()}")
    return failure.test


def main(words: list[str]) -> int:
    """Try every mutation; 1 if the unbroken copy fails or any mutation survives."""
    chosen = [m for m in listed() if not words or any(word in m.file or word in m.new for word in words)]
    if misplaced := [mutation for mutation in chosen if occurrences(mutation) != 1]:
        for mutation in misplaced:
            print(f"{mutation.file} holds {mutation.old!r} {occurrences(mutation)} times, not once", file=sys.stderr)
        return 1
    # Processes are forked from one that has imported what takes long, so that each starts at once.
    os.environ["OMP_NUM_THREADS"] = "1"  # as in conftest.py, before torch is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "gymnasium", "matplotlib.figure"])
    survived = []
    with ProcessPoolExecutor(PROCESSES, context, max_tasks_per_child=1) as pool:
        suites = dict.fromkeys(test.partition("::")[0] for mutation in chosen for test in mutation.tests)
        if failed := [test for test in pool.map(killer, [None] * len(suites), [(suite,) for suite in suites]) if test]:
            print(f"the unbroken code fails {', '.join(failed)}; mend that first", file=sys.stderr)
            return 1
        killers = pool.map(killer, chosen, [mutation.tests for mutation in chosen])
        for mutation, test in zip(chosen, bar := tqdm(killers, total=len(chosen), unit="mutation"), strict=True):
            bar.write(f"SURVIVED  {mutation}" if test is None else f"killed    {mutation}  by {test}")
            survived += [mutation] if test is None else []
    print(f"{len(chosen) - len(survived)} passed, {len(survived)} failed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
