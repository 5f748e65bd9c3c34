"""Commands and snippets are found in documents as a reader's shell finds them, and each of them has a journey."""

import re

import pytest

from . import table
from .documents import DOCUMENTS, ROOT, Command, Snippet, commands, snippets

PAGE = """\
Run `make sinusoid` or
`python launchers/ant.py
--seed 1`; not `python`, nor `launchers/ant.py --seed 2`.

```bash
source .venv/bin/activate
S="--seed 1 --threads 2"    # what all have
for method in l2f maml; do
  python launchers/ant.py $S --method $method \\
      --log-dir "my runs/$method"
done
torchrun --nproc-per-node 2 launchers/ant.py
for seed in 1 2 3; do python launchers/ant.py --seed $seed; done
python x.py runs/* | tee log
```
```python
x = 1
```
```python no-run
x = 2
```
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_bash_reads_commands_with_their_lines(page, tmp_path):
    ant = ("python", "launchers/ant.py")
    shared = ("--seed", "1", "--threads", "2", "--method")
    assert commands(page, tmp_path) == [
        Command("page.md", 1, ("make", "sinusoid"), block=False),
        Command("page.md", 2, (*ant, "--seed", "1"), block=False),
        Command("page.md", 6, ("source", ".venv/bin/activate")),
        Command("page.md", 9, (*ant, *shared, "l2f", "--log-dir", "my runs/l2f")),
        Command("page.md", 9, (*ant, *shared, "maml", "--log-dir", "my runs/maml")),
        Command("page.md", 12, ("torchrun", "--nproc-per-node", "2", "launchers/ant.py")),
        # Line 13 differs from line 2 in numbers only.
        Command("page.md", 14, ("python", "x.py", "runs/*")),
        Command("page.md", 14, ("tee", "log")),
    ]


def test_nothing_of_a_block_is_run(tmp_path):
    (tmp_path / "page.md").write_text(f"```bash\ntouch {tmp_path}/made\nrm -r {tmp_path}\n```\n")
    assert [command.words[0] for command in commands(tmp_path / "page.md", tmp_path)] == ["touch", "rm"]
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


def test_a_block_that_bash_cannot_read_is_an_error(tmp_path):
    (tmp_path / "page.md").write_text("```bash\nfor x in\n```\n")
    with pytest.raises(ValueError, match="bash cannot read the block after line 1"):
        commands(tmp_path / "page.md", tmp_path)


def test_snippets_marked_no_run_are_left_out(page, tmp_path):
    assert snippets(page, tmp_path) == [Snippet("page.md", 16, "x = 1\n")]


def test_the_readme_shows_commands_and_python():
    assert commands(ROOT / "README.md") and snippets(ROOT / "README.md")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_has_a_journey(path):
    uncovered = []
    for command in commands(path):
        try:
            table.program_of(command.words)
        except LookupError as error:
            uncovered.append(f"{command}: {error}")
    assert not uncovered, "\n".join(uncovered)


def test_a_command_without_a_journey_is_named_with_what_to_do():
    with pytest.raises(
        LookupError, match=re.escape("no journey covers launchers/new.py; say in tests/journeys/table.py")
    ):
        table.program_of(("python", "launchers/new.py"))


def test_snippets_that_learn_set_one_thread():
    """Threads inside small operations only wait for each other; launchers set one themselves."""
    learning = [s for path in DOCUMENTS for s in snippets(path) if re.search(r"\bMeta(RL|Supervised)\(", s.code)]
    assert len(learning) >= 2
    for snippet in learning:
        assert "torch.set_num_threads(1)" in snippet.code, f"{snippet.document}:{snippet.line}"


def test_flags_are_replaced_added_and_left_out():
    words = ["python", "x.py", "a", "--keep", "1", "--change", "2", "3", "--drop", "--tail"]
    assert table.shortened(words, {"--change": "4", "--add": "5 6", "--drop": None, "--alone": ""}) == [
        *("python", "x.py", "a", "--keep", "1", "--tail"),
        *("--change", "4", "--add", "5", "6", "--alone"),
    ]


def test_a_command_finds_runs_where_it_reads_and_nothing_where_it_writes():
    reads = ["runs/navigation/L2F", "L2F_2", "runs/sinusoid/disjoint_*"]
    assert table.found_by(["python", "x.py", *reads, "--out", "omniglot", "--log-dir", "runs/sinusoid/maml"]) == {
        "runs/navigation/L2F": ("navigation",),
        "L2F_2": ("navigation", "--seed", "2"),
        "runs/sinusoid/disjoint_both_l2f": ("sinusoid", "--disjoint", "both", "--method", "l2f"),
        "runs/sinusoid/disjoint_both_maml": ("sinusoid", "--disjoint", "both", "--method", "maml"),
    }
