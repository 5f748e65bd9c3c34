"""The benchmark of the family: what it says of figures, and which meta-iterations it compares."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def methods(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("methods")


def figures(methods, method, ratio, memory=0.5, noise=0.0):
    turns = [
        (methods.Turn(ratio * (1 + sign * noise), 0.25, 0.75), methods.Turn(1.0, 0.5, 0.5))
        for sign in (-1, -1, -1, -1, 0, 1, 1, 1, 1)
    ]
    return methods.figures(method, turns, memory)


@pytest.mark.parametrize(
    ("method", "ratio", "verdict"),
    [
        *(("promp", 0.99, "ok"), ("promp", 1.01, "TOO SLOW")),
        *(("anil", 0.89, "ok"), ("anil", 0.91, "TOO SLOW"), ("anil+l2f", 1.29, "ok"), ("anil+l2f", 1.31, "TOO SLOW")),
        *(("l2f", 1.31, "TOO SLOW"), ("boil", 5.0, "ok")),
    ],
)
def test_a_method_is_too_slow_beyond_its_largest_ratio(methods, method, ratio, verdict):
    found = figures(methods, method, ratio)
    assert found.verdict == verdict and found.ratio.median == ratio and (found.sampling, found.update) == (0.25, 0.75)


def test_noise_concludes_nothing_and_memory_always_counts(methods):
    assert figures(methods, "promp", 0.5, noise=0.2).verdict == "too noisy to conclude"
    assert figures(methods, "promp", 0.5, noise=0.2, memory=1.6).verdict == "TOO MUCH MEMORY"


def test_every_method_is_paired_with_a_run_of_maml_that_is_as_far_in_training(methods, monkeypatch):
    calls, closed = [], []

    def experiment(method, options):
        def iterate(number):
            calls.append((method, number))
            return {"time/iteration": 2.0, "time/sampling": 0.5, "time/update": 1.5}

        return SimpleNamespace(iterate=iterate, close=lambda: closed.append(method))

    monkeypatch.setattr(methods, "experiment", experiment)
    monkeypatch.setattr(methods, "quiet_machine", lambda: None)
    found = methods.measure(methods.Options(methods=("promp",), turns=2, memory=False))
    # MAML with itself, then ProMP with MAML, of which the order changes from one meta-iteration to the next.
    orders = [["promp", "maml"], ["maml", "promp"]]
    expected = [
        (method, number)
        for number in range(1, methods.WARM_UP + 3)
        for method in ("maml", "maml", *orders[(number + 1) % 2])
    ]
    assert calls == expected and closed == ["maml", "maml", "promp", "maml"]
    assert [one.method for one in found] == ["maml", "promp"] and [one.ratio.turns for one in found] == [2, 2]
    assert (found[1].sampling, found[1].update) == (0.25, 0.75)
