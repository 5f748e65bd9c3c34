"""The numbers that docs/findings.md takes from figures are those of the files beside the figures."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
lines_of = runpy.run_path(str(ROOT / "studies" / "figure_numbers.py"))["lines_of"]
FINDINGS = " ".join((ROOT / "docs" / "findings.md").read_text("utf-8").split())


def test_means_intervals_and_paired_differences_by_hand(tmp_path):
    path = tmp_path / "numbers.csv"
    rows = ["conflict,L2F,1,net,1", "conflict,L2F,2,net,3", "conflict,MAML,1,net,0", "conflict,MAML,2,net,0"]
    path.write_text("figure,method,seed,what,value\n" + "\n".join(rows) + "\ngamma,L2F,1,net,0.5\n")
    # Two seeds, 1 and 3: s = √2, and t₀.₉₇₅ with one degree of freedom is 12.706, so ± 12.706 · √2 / √2.
    assert lines_of(path, "conflict") == [
        "conflict\tnet\tL2F\t2\t2.000 ± 12.706",
        "conflict\tnet\tMAML\t2\t0.000 ± 0.000",
        "conflict\tnet\tL2F − MAML\t2\t2.000 ± 12.706",
    ]


@pytest.mark.parametrize(
    ("figure", "what", "who", "digits", "said"),
    [
        ("conflict", "network", "L2F", 2, "over the network {} rad"),
        ("conflict", "network", "MAML", 2, "against MAML's {}, where 20"),
        ("conflict", "network", "L2F − MAML", 2, "paired by seed {}, lower"),
        ("conflict", "log_std", "L2F − MAML", 2, "log σ ({})"),
        ("conflict", "mean.layers.2", "L2F − MAML", 2, "the last layer ({})"),
        ("landscape_at_end", "landscape/loss_range", "L2F", 1, "the loss ranges over {} (MAML"),
        ("landscape_at_end", "landscape/loss_range", "L2F − MAML", 2, "paired +{}) and"),
        ("landscape_at_end", "landscape/gradient_change_range", "L2F − MAML", 0, "paired +{}); the largest"),
        ("landscape_at_end", "landscape/smoothness", "L2F − MAML", 0, "paired +{}. The reason is σ"),
        ("scores_by_step", "return after 1", "L2F", 1, "{} against −10.7"),
    ],
)
def test_findings_say_what_navigations_numbers_say(figure, what, who, digits, said):
    for line in lines_of(ROOT / "results" / "figures" / "navigation" / "numbers.csv", figure):
        _, name, method, _, value = line.split("\t")
        if (name, method) == (what, who):
            rounded = re.sub(r"-?[\d.]+", lambda number: f"{float(number[0]):.{digits}f}", value).replace("-", "−")
            assert said.format(rounded) in FINDINGS
            return
    raise AssertionError(f"numbers.csv has no {what} of {who}")
