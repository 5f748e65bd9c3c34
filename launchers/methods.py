"""Print the family of methods: what each changes, its equation, and where it is published."""

from metarl_l2f.program import as_program

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from metarl_l2f.methods import ALONE, ATTENUATED, METHODS, named
from metarl_l2f.rl.settings import DOMAINS, MetaRLSettings
from metarl_l2f.runs.command_line import USER_ERRORS, fail, read_alone
from metarl_l2f.training.config import flat, to_json


@dataclass(frozen=True)
class Options:
    """The table of methods, or one method's constants in every domain of reinforcement learning.

    Every training launcher takes a name as --method NAME, and every name but maml-two-sigmas and l2f-paper also with
    +l2f behind it: then adaptation starts from an attenuated initialisation. l2f is maml+l2f.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """A method, such as promp or alfa+l2f, whose constants are printed domain by domain."""


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse and print."""
    try:
        options = read_alone(Options, arguments)
        print(table() if options.name is None else constants(options.name))
    except USER_ERRORS as error:
        return fail(error)
    return 0


def table() -> str:
    """Every method with its parts, equation and source."""
    blocks = []
    for name, method in METHODS.items():
        parts = ", ".join(f"{part.rpartition('.')[2]} {value}" for part, value in method.parts.items())
        lines = [name, f"  {method.label}: {method.equation}", f"  {method.source}"]
        blocks.append("\n".join([*lines, *([f"  parts: {parts}"] if parts else [])]))
    alone = ", ".join(ALONE)
    return "\n".join([*blocks, f"Each but {alone} also with {ATTENUATED} behind it; l2f is maml{ATTENUATED}."])


def constants(name: str) -> str:
    """A method's settings, a row each, and a column for every domain."""
    columns = {domain: flat(to_json(MetaRLSettings.for_domain(domain, name))) for domain in DOMAINS}
    rows = [["", *columns]]
    for option in dict.fromkeys(option for column in columns.values() for option in column):
        rows.append([option, *(str(column.get(option)) for column in columns.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"{named(name).label}: {named(name).method.equation}", *lines])


if __name__ == "__main__":
    sys.exit(main())
