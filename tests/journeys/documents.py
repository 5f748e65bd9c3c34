"""The commands and snippets that the documents print.

bash itself reads the ```bash blocks, so that variables, loops, functions and braces mean what they mean to a reader.
Nothing in them is run: bash finds no program, and notes each one that it was to start.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "results").glob("*/README.md")),
]

PROGRAMS = ("python", "torchrun", "tensorboard", "make")
"""A code span that begins with one of these and goes on is a command, too."""

BEFORE = r"""
exec 3>> "$NOTES"
note() {
  printf -v words '%s\037' "${BASH_LINENO[-2]}" "$@"
  printf '%s\036' "$words" >&3  # At once: the programs of a pipeline are noted at the same time.
}
command_not_found_handle() { note "$@"; }
source() { note source "$@"; }
PATH=/nowhere
"""
"""What bash reads before a block: every program, which it cannot find, is noted with its arguments, after the line of
the document that starts it."""


class Command(NamedTuple):
    """A command that a document prints."""

    document: str
    """The document's path in the repository."""
    line: int
    words: tuple[str, ...]
    block: bool = True
    """Whether it stands in a block, not in a line of prose or of a table."""

    def __str__(self) -> str:
        return f"{self.document}:{self.line} `{' '.join(self.words)}`"


class Snippet(NamedTuple):
    """A block of Python that a document prints."""

    document: str
    line: int
    """Of its fence."""
    code: str


class Block(NamedTuple):
    """What stands between two fences."""

    line: int
    """Of the opening fence."""
    kind: str
    """What follows the opening fence, such as `bash`."""
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document."""
    fences = re.finditer(r"^```([^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [Block(text.count("\n", 0, fence.start()) + 1, fence[1].strip(), fence[2]) for fence in fences]


def commands(path: Path, root: Path = ROOT) -> list[Command]:
    """Every command of a document: those of its ```bash blocks, and code spans that begin with one of PROGRAMS.

    Of commands that differ in numbers only, as loops over seeds make them, the first stands for all.
    """
    text, name = path.read_text("utf-8"), str(path.relative_to(root))
    found = [
        (line, words, True)
        for block in blocks(text)
        if block.kind == "bash"
        for line, words in _read_by_bash(block.text, block.line)
    ]
    prose = _without_blocks(text)
    for span in re.finditer(rf"`((?:{'|'.join(PROGRAMS)}) (?:[^`\n]|\n(?!\n))+)`", prose):
        read = _read_by_bash(span[1].replace("\n", " "), prose.count("\n", 0, span.start()))
        found += [(line, words, False) for line, words in read]
    alike = {re.sub(r"\d+", "0", "\0".join(each[1])): each for each in sorted(found, reverse=True)}
    return sorted(Command(name, *each) for each in alike.values())


def _without_blocks(text: str) -> str:
    """A document whose fenced blocks are empty lines, so that the others keep their numbers."""
    return re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)


def _read_by_bash(script: str, line: int) -> list[tuple[int, tuple[str, ...]]]:
    """The commands of a script whose first line follows this line of a document, each with its own line.

    Raises:
        ValueError: bash cannot read it.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, block, notes = (Path(folder) / name for name in ("before", "block", "notes"))
        before.write_text(BEFORE, "utf-8")
        block.write_text("\n" * line + script, "utf-8")
        environment = {"BASH_ENV": str(before), "NOTES": str(notes), "HOME": "home", "LC_ALL": "C.UTF-8"}
        (Path(folder) / "empty").mkdir()  # Patterns such as runs/* find nothing there, and stay what they are.
        read = subprocess.run(
            ["bash", str(block)], cwd=f"{folder}/empty", env=environment, capture_output=True, text=True
        )
        if "syntax error" in read.stderr or not notes.exists():
            raise ValueError(f"bash cannot read the block after line {line}: {read.stderr}")
        noted = [entry.split("\x1f")[:-1] for entry in notes.read_text("utf-8").split("\x1e")[:-1]]
    return [(int(number), tuple(words)) for number, *words in noted]


def snippets(path: Path, root: Path = ROOT) -> list[Snippet]:
    """Every block of Python of a document, but those that open with ```python no-run."""
    found = [block for block in blocks(path.read_text("utf-8")) if block.kind == "python"]
    return [Snippet(str(path.relative_to(root)), block.line, block.text) for block in found]
