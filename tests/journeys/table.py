"""How each program that the documents name is shortened, what it needs to find, and what it promises."""

import csv
import fnmatch
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from metarl_l2f.supervised.leo.embeddings import load_embeddings

from . import promises

# --- Shortening ---

Flags = Mapping[str, str | None]
"""Flags and their values, several in one string; an empty one for a flag alone, None for one to leave out."""

REINFORCEMENT: Flags = {
    **{
        "--iterations": "2",
        "--tasks-per-batch": "2",
        "--episodes-per-task": "2",
        "--horizon": "5",
        "--hidden-sizes": "4",
    },
    **{"--evaluation-tasks": "2", "--evaluation-steps": "1", "--threads": "1"},
}
SINUSOID: Flags = {
    **{"--iterations": "2", "--tasks-per-batch": "2", "--validation-tasks": "5", "--threads": "1"},
    **{"--evaluation-tasks": "2", "--evaluation-repeats": "2", "--compile": None},
}
IMAGES: Flags = {
    **{"--iterations": "1", "--tasks-per-batch": "1", "--validation-tasks": "2", "--evaluation-tasks": "2"},
    **{"--ways": "2", "--shots": "1", "--queries": "1", "--filters": "4", "--threads": "1", "--compile": None},
}
PROTOTYPES: Flags = {
    **{"--iterations": "1", "--ways": "2", "--shots": "1", "--queries": "1", "--validation-tasks": "2"},
    **{"--validation-ways": "2", "--filters": "4", "--evaluation-tasks": "2"},
}
LEO: Flags = {
    **{"--iterations": "1", "--tasks-per-batch": "1", "--validation-tasks": "2", "--evaluation-tasks": "2"},
    **{"--ways": "2", "--shots": "1", "--queries": "1"},
}
ON_RESUME: Flags = {"--iterations": "3", "--evaluation-tasks": "2", "--evaluation-steps": "1", "--threads": "1"}
"""What may still be chosen when a run is resumed."""
ONE_HOST: Flags = {"--nnodes": "1", "--nproc-per-node": "2", "--rdzv-id": "1", "--rdzv-endpoint": "localhost:0"}
"""torchrun's own."""


def shortened(words: Sequence[str], flags: Flags) -> list[str]:
    """A command with these flags instead of its own of the same names; the others stay."""
    kept, skipping = [], False
    for word in words:
        if word.startswith("--"):
            skipping = word.partition("=")[0] in flags
        if not skipping:
            kept.append(word)
    for flag, value in flags.items():
        kept += [] if value is None else [flag, *value.split()]
    return kept


# --- Promises ---

Promise = Callable[[str, Path, Sequence[str]], None]
"""Looks at what a program printed, the folder it ran in, and its words."""


def trains(out: str, folder: Path, words: Sequence[str]) -> None:
    """A training launcher leaves a run with its evaluation, and names its files at the end."""
    run = promises.run_of(out, folder)
    if "--log-dir" in words:
        assert run == folder / words[words.index("--log-dir") + 1]
    else:
        assert run.parent.parent == folder / "runs" or "--resume" in words, (
            "a run of its own name lies in runs/LAUNCHER"
        )
    promises.holds_a_run(run)
    files = promises.names_what_it_wrote(out, folder)
    assert {"report.html", "evaluation.json", "learning_curve.png"} <= {file.name for file in files}


def evaluates(out: str, folder: Path, words: Sequence[str]) -> None:
    """evaluate.py prints a table; of one run it writes evaluation.json and renews the report."""
    assert re.search(r"^steps  ", out, re.MULTILINE) and re.search(r"^ +\d+ ", out, re.MULTILINE), out
    if "--compare" not in words:
        (written,) = re.findall(r"^wrote (.+)$", out, re.MULTILINE)
        promises.holds_an_evaluation(folder / written)
        promises.is_report((folder / written).with_name("report.html"))


def films(out: str, folder: Path, words: Sequence[str]) -> None:
    """play.py writes a film, and says returns."""
    (written,) = re.findall(r"^wrote ([^;]+); .*return", out, re.MULTILINE)
    promises.is_film(folder / written)


def draws(out: str, folder: Path, words: Sequence[str]) -> None:
    """figures.py writes every picture that it names, twice, and numbers.csv."""
    names, where = re.search(r"^wrote (.+) and numbers\.csv to (.+)$", out, re.MULTILINE).groups()
    for name in names.split(", "):
        for path in (folder / where).glob(f"{name}.*"):
            promises.is_picture(path)
        assert (folder / where / f"{name}.png").exists()
    rows_of(folder / where / "numbers.csv")


def embeds(out: str, folder: Path, words: Sequence[str]) -> None:
    """embeddings.py writes a file a split, which leo.py reads."""
    found = load_embeddings(folder / words[words.index("--out") + 1])
    assert found.keys() == {"train", "val", "test"}


def lists(out: str, folder: Path, words: Sequence[str]) -> None:
    """methods.py prints every method's equation, or one method's constants by domain."""
    assert "ProMP" in out and "E[" in out and ("navigation" in out or "cavia" in out)


def writes_tables(out: str, folder: Path, words: Sequence[str]) -> None:
    """A study or a benchmark writes its csv files, or prints alone."""
    if "--out" not in words:
        assert out.strip()
        return
    where = folder / words[words.index("--out") + 1]
    tables = [where] if where.is_file() else list(where.glob("*.csv"))
    assert tables
    for table in tables:
        rows_of(table)


def measures(out: str, folder: Path, words: Sequence[str]) -> None:
    """A benchmark prints figures, and writes them where it is told to."""
    assert re.search(r"\d", out)
    if "--out" in words:
        assert json.loads((folder / words[words.index("--out") + 1]).read_text())["figures"]


def prints(out: str, folder: Path, words: Sequence[str]) -> None:
    """A program says something."""
    assert out.strip()


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file, at least one."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows, f"{path} has no rows"
    return rows


# --- Programs ---


class Journey(NamedTuple):
    """How a program is run, and what it promises."""

    short: Flags
    promise: Promise


JOURNEYS: Mapping[str, Journey] = {
    **{
        f"launchers/{name}.py": Journey(REINFORCEMENT, trains)
        for name in ("navigation", "cheetah_dir", "cheetah_vel", "ant", "rand_params")
    },
    "launchers/sinusoid.py": Journey(SINUSOID, trains),
    "launchers/image_classification.py": Journey(IMAGES, trains),
    "launchers/prototypes.py": Journey(PROTOTYPES, trains),
    "launchers/leo.py": Journey(LEO, trains),
    "launchers/embeddings.py": Journey({}, embeds),
    "launchers/methods.py": Journey({}, lists),
    "launchers/evaluate.py": Journey({"--tasks": "2"}, evaluates),
    "launchers/figures.py": Journey({"--tasks": "2"}, draws),
    "launchers/play.py": Journey({"--size": "200"}, films),
    "studies/study.py": Journey({"--tasks": "2", "--episodes": "2 3"}, writes_tables),
    "studies/supervised_study.py": Journey({}, writes_tables),
    "studies/leaving_ranges.py": Journey({"--curves": "5"}, writes_tables),
    "benchmarks/meta_iteration.py": Journey(
        {"--iterations": "1", "--tasks-per-batch": "2", "--episodes-per-task": "2", "--horizon": "5"}, measures
    ),
    "benchmarks/locomotion.py": Journey(
        {"--turns": "1", "--tasks": "2 3", "--tasks-per-batch": "2", "--episodes-per-task": "2", "--horizon": "5"},
        measures,
    ),
    "benchmarks/methods.py": Journey(
        {
            **{"--methods": "promp anil+l2f", "--turns": "1", "--tasks-per-batch": "2", "--episodes-per-task": "2"},
            **{"--horizon": "5", "--threads": "1"},
        },
        writes_tables,
    ),
    "benchmarks/pictures.py": Journey(
        {
            **{"--side": "16", "--tasks-per-batch": "2", "--episodes-per-task": "2", "--horizon": "5"},
            **{"--iterations": "1"},
        },
        writes_tables,
    ),
    "benchmarks/task_batching.py": Journey({"--rounds": "1", "--iterations": "1"}, measures),
    "benchmarks/scaling.py": Journey(
        {"--ranks": "2", "--iterations": "1", "--tasks-per-batch": "2", "--episodes-per-task": "2", "--horizon": "5"},
        measures,
    ),
    "benchmarks/soak.py": Journey(
        {"--navigation": "30", "--cheetah": "0", "--tasks": "2", "--episodes": "2", "--cycles": "1"}, measures
    ),
    "studies/figure_numbers.py": Journey({}, prints),
    # The pages are those of the working copy, which a journey leaves alone.
    "studies/pilots.py": Journey({"--docs": None}, writes_tables),
    # Makes network namespaces, which takes root, and minutes.
    "benchmarks/two_hosts.py": Journey({"--help": ""}, prints),
}

SERVERS = ("launchers/viewer.py", "tensorboard")
"""Programs that answer until Ctrl-C."""

NOT_OURS = ("head", "scontrol")
"""What a script of Slurm's calls before it comes to our program."""

TARGETS_SHOWN: Mapping[str, str] = {
    "install": "pip install",
    "lint": "ruff check .*lint-imports",
    "test": "ruff check .*mypy .*pytest",
    "test-faults": "pytest .*tests/faults",
    "test-journeys": "pytest .*tests/journeys",
    "test-mutations": "python tests/mutations.py",
    "coverage": "pytest .*--cov",
}
"""Targets of make that take minutes or need a network: these commands are what they would run."""


def program_of(words: Sequence[str]) -> str:
    """The program that a command runs: a script's path, or a name.

    Raises:
        LookupError: there is no journey for it.
    """
    first = words[0]
    if first in ("python", "torchrun", "srun"):
        scripts = [word for word in words if word.endswith(".py")]
        modules = [
            word.removeprefix("metarl_l2f.launchers.") for word in words if word.startswith("metarl_l2f.launchers.")
        ]
        found = scripts[0] if scripts else f"launchers/{modules[0]}.py" if modules else first
    elif first == "make":
        name = {"images": "image_classification"}.get(words[1], words[1].replace("-", "_"))
        found = f"make {words[1]}" if words[1] in TARGETS_SHOWN else f"launchers/{name}.py"
    else:
        found = first
    if found in JOURNEYS or found in SERVERS or found in NOT_OURS or found in ("source", *_targets()):
        return found
    raise LookupError(
        f"no journey covers {found}; say in tests/journeys/table.py how it is shortened, and what it promises"
    )


def _targets() -> list[str]:
    return [f"make {name}" for name in TARGETS_SHOWN]


def to_run(words: Sequence[str]) -> list[str]:
    """The words that a test runs for a command that trains, looks or measures."""
    words = ["1" if word == "S" else word for word in words]  # A seed.
    program = program_of(words)
    if program in _targets():
        # As if the package had just changed, so that `install` has something to do.
        fresh = ["-W", "setup.cfg"] if words[1] == "install" else ["-o", ".venv/installed"]
        return ["make", "--dry-run", *fresh, *words[1:]]
    short = ON_RESUME if "--resume" in words else JOURNEYS[program].short
    if words[0] == "make":
        given = [part for word in words[2:] for part in shlex.split(word.removeprefix("ARGS="))]
        return ["make", "-o", ".venv/installed", words[1], f"ARGS={shlex.join(shortened(given, short))}"]
    if words[0] == "srun":
        words = words[1:]
    if words[0] == "torchrun":
        number = next(place for place, word in enumerate(words) if word.endswith(".py"))
        ours = {flag: value for flag, value in ONE_HOST.items() if flag in words}
        rest = [word for word in words[1:number] if word]
        return [words[0], *shortened(rest, ours), *shortened(words[number:], short)]
    return shortened(words, short)


# --- What a command finds ---

Recipe = tuple[str, ...]
"""A launcher and flags, of the run that lies where a document says; or `data` and the name of a data set,
or `copy` and a file of the working copy."""

FOUND: tuple[tuple[str, Recipe], ...] = (
    (r"runs/(\w+)/RUN", (r"\1",)),
    (r"runs/navigation/L2F|L2F(?:_RUNS)?", ("navigation",)),
    (r"runs/navigation/MAML|MAML(?:_RUNS)?", ("navigation", "--method", "maml")),
    (r"L2F_(\d)", ("navigation", "--seed", r"\1")),
    (r"MAML_(\d)", ("navigation", "--method", "maml", "--seed", r"\1")),
    (r"runs/(navigation|cheetah_dir|cheetah_vel)/([\w-]+)_seed(\d)", (r"\1", "--method", r"\2", "--seed", r"\3")),
    (r"runs/methods/([\w-]+)_seed(\d+)", ("navigation", "--method", r"\1", "--seed", r"\2")),
    (r"results/methods", ("copy", "results/methods")),
    (r"runs/sinusoid/(l2f|maml)", ("sinusoid", "--method", r"\1")),
    (r"runs/sinusoid/disjoint_both_(l2f|maml)", ("sinusoid", "--disjoint", "both", "--method", r"\1")),
    (r"RUNS", ("image_classification",)),
    (r"runs/prototypes/glyphs|runs/prototypes_omniglot", ("prototypes",)),
    (r"runs/embeddings\w*", ("embeddings",)),
    (r"PATH", ("data", "folder")),
    (r"omniglot", ("data", "omniglot")),
    (r"(results/\S+\.csv(?:\.gz)?)", ("copy", r"\1")),
)
"""Places that documents name, and what lies there."""

SEEDS = (1, 2)
METHODS = ("l2f", "maml", "maml-two-sigmas")
SEVERAL = (
    *(f"runs/navigation/{method}_seed{seed}" for method in METHODS for seed in SEEDS),
    *(f"runs/cheetah_{task}/{method}_seed{seed}" for task in ("dir", "vel") for method in METHODS for seed in SEEDS),
    *(f"runs/methods/{method}_seed{seed}" for method in ("maml", "promp") for seed in SEEDS),
    *(f"runs/sinusoid/{kind}{method}" for kind in ("", "disjoint_both_") for method in ("l2f", "maml")),
)
"""Places that patterns such as runs/navigation/* stand for."""


def found_by(words: Sequence[str]) -> dict[str, Recipe]:
    """What must lie where for a command, by path; not where it is to write itself."""
    places, flag = {}, ""
    for word in words:
        flag = word if word.startswith("--") else flag
        for name in _places(word) if flag not in ("--log-dir", "--out") else ():
            for pattern, recipe in FOUND:
                if match := re.fullmatch(pattern, name):
                    places[name] = tuple(match.expand(part) for part in recipe)
    return places


def _places(word: str) -> tuple[str, ...]:
    """The places that a word of a command names."""
    if word == "runs":
        return ("runs/navigation/L2F",)
    return tuple(name for name in SEVERAL if fnmatch.fnmatch(name, word)) if is_pattern(word) else (word,)


def is_pattern(word: str) -> bool:
    """Whether a shell replaces a word by what it finds."""
    return "*" in word or "?" in word
