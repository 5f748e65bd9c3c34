"""Numbers, counts and choices out of range are refused before a run, and numbers that are not finite never saved."""

import dataclasses
import math
import re
import typing
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from metarl_l2f import (
    Attenuation,
    Curves,
    InnerLoop,
    MetaOptimiser,
    MetaRL,
    MetaRLSettings,
    MetaSupervised,
    PolicyGradient,
    PolicyNetwork,
    SupervisedSettings,
    TrustRegion,
)
from metarl_l2f.checks import check_choice, check_choices, check_count, check_counts, check_finite, check_number
from metarl_l2f.launchers import leo, navigation, sinusoid
from metarl_l2f.rl import trpo
from metarl_l2f.rl.trpo import StepLog
from metarl_l2f.supervised.leo.experiment import LEOSettings
from metarl_l2f.supervised.prototypes import PrototypeSettings
from metarl_l2f.training.checkpoint import load
from metarl_l2f.training.metrics import read

SETTINGS = (
    *(Attenuation, Curves, InnerLoop, LEOSettings, MetaOptimiser, MetaRLSettings, PolicyGradient, PolicyNetwork),
    *(PrototypeSettings, SupervisedSettings, TrustRegion),
)
TINY = ["--tasks-per-batch", "3", "--hidden-sizes", "4", "--threads", "1", "--inspect-every", "0"]
TINY += ["--evaluation-tasks", "0"]


def numbers_of(kind):
    """The fields of a dataclass that hold floats, as (name, a function from a float to what the field holds)."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if float in (hint := hints[field.name], *typing.get_args(hint)):
            pair = typing.get_origin(hint) is tuple
            yield field.name, (lambda number: (number, number)) if pair else (lambda number: number)


@pytest.mark.parametrize("kind", SETTINGS)
def test_no_settings_take_numbers_that_are_not_finite_in_float32(kind):
    for name, held in numbers_of(kind):
        for number in (math.nan, math.inf, -math.inf, 1e39):
            with pytest.raises(ValueError, match=rf"{name}|initial γ"):
                kind(**{name: held(number)})


def test_all_numbers_of_settings_are_looked_at():
    assert {name for name, _ in numbers_of(TrustRegion)} == {"max_kl", "damping", "backtrack_ratio", "fisher_fraction"}
    assert {name for name, _ in numbers_of(MetaRLSettings)} == {"initial_std_gamma"}
    assert {name for name, _ in numbers_of(Curves)} == {"amplitude", "phase", "frequency"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Attenuation(initial_gamma=0.99999999),
            r"γ must lie in \(0, 1\), got 0.99999999, of which .* makes 1$",
        ),
        (lambda: MetaRLSettings(initial_std_gamma=1e-46), r"lie in \(0, 1\), got 1e-46, of which float32 makes 0$"),
        (
            lambda: InnerLoop(inner_lr=1e-46),
            "inner_lr must be positive and finite, got 1e-46, of which float32 makes 0",
        ),
        (lambda: PolicyNetwork(initial_std=1e-50), "initial_std must be positive and finite"),
        (
            lambda: MetaOptimiser(meta_lr=1e39),
            "meta_lr must be positive and finite, got 1e[+]39, of which .* makes inf$",
        ),
        (lambda: PrototypeSettings(lr=0.0), "lr must be positive and finite, got 0.0$"),
        (lambda: LEOSettings(dropout=0.99999999), r"dropout must lie in \[0, 1\), got 0.99999999, of which"),
    ],
)
def test_numbers_count_as_float32_holds_them(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bounds_belong_to_an_interval_or_not():
    for interval, inside, outside in (
        ("[0, 1]", (0.0, 0.5, 1.0, 0.99999999), (-1e-9, 1.1)),
        ("(0, 1)", (1e-30, 0.9999), (0.0, 1.0)),
        ("[0, inf)", (0.0, 1e-60, 3e38), (-1.0, 1e39)),
    ):
        for number in inside:
            check_number("x", number, interval)
        for number in outside:
            with pytest.raises(ValueError, match="x must"):
                check_number("x", number, interval)


def test_a_number_is_quoted_with_its_unit():
    with pytest.raises(ValueError, match=r"^timeout must be positive and finite, got 0.0 seconds$"):
        check_number("timeout", 0.0, "(0, inf)", "seconds")


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "2", None, math.nan, torch.tensor(2)])
def test_a_count_is_a_whole_number_of_at_least_one(value):
    expected = f"shots must be a whole number, 1 or more, got {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        check_count("shots", value)


def test_counts_may_start_elsewhere_and_name_what_they_count():
    check_count("ways", 2, 2)
    check_count("ways", np.int64(3), 2)
    check_count("workers", 0, 0)
    with pytest.raises(ValueError, match=r"^horizon must be a whole number of steps, 2 or more, got 1$"):
        check_count("horizon", 1, 2, "steps")
    with pytest.raises(ValueError, match=r"^queries must be a whole number, 1 or more, got 0$"):
        check_counts(SimpleNamespace(shots=1, queries=0), 1, "shots", "queries")


@pytest.mark.parametrize("accepted", [typing.Literal["max", "stride"], ("max", "stride"), {"max": 1, "stride": 2}])
def test_a_choice_is_one_of_a_type_or_of_values(accepted):
    check_choice("pooling", "stride", accepted)
    expected = r"^pooling must be one of 'max', 'stride', got 'mean'$"
    with pytest.raises(ValueError, match=expected):
        check_choice("pooling", "mean", accepted)
    with pytest.raises(ValueError, match=expected):
        check_choices(SimpleNamespace(size=3, pooling="mean"), size=(3, None), pooling=accepted)


def test_an_infinite_parameter_is_named_with_its_iteration_and_what_to_change():
    values = {"count": torch.tensor(3), "w": torch.ones(2), "b": torch.tensor([0.0, math.nan]), "none": torch.empty(0)}
    with pytest.raises(ValueError, match=r"iteration 7 left b with numbers that are not finite.* with a smaller lr$"):
        check_finite(values, 7, "a smaller lr")
    check_finite({**values, "b": torch.zeros(1)}, 7, "a smaller lr")


# --- Runs: one option each that lets float32 overflow, though it is finite itself ---


@pytest.mark.parametrize(
    ("program", "flags", "refused"),
    [
        (navigation, ["--initial-gamma", "0.99999999"], "an initial γ must lie in (0, 1), got 0.99999999"),
        (sinusoid, ["--meta-lr", "1e39"], "meta_lr must be positive and finite, got 1e+39"),
        (leo, ["--lr", "inf"], "lr must be positive and finite, got inf"),
    ],
)
def test_a_run_with_such_options_does_not_begin(tmp_path, capsys, program, flags, refused):
    try:
        status = program.main([*flags, "--iterations", "1", "--log-dir", str(tmp_path / "run")])
    except SystemExit as ended:  # What the parser itself refuses.
        status = ended.code
    assert status == 2
    assert refused in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_supervised_run_that_overflows_ends_and_keeps_its_last_checkpoint(tmp_path, capsys, monkeypatch):
    iterate = MetaSupervised.iterate

    def overflowing(self, iteration):
        if iteration == 3:
            self.optimiser.param_groups[0]["lr"] = 1e39
        return iterate(self, iteration)

    monkeypatch.setattr(MetaSupervised, "iterate", overflowing)
    flags = [*TINY, "--iterations", "5", "--validate-every", "1", "--checkpoint-every", "1", "--log-every", "1"]
    assert sinusoid.main([*flags, "--log-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "error: iteration 3 left network." in error and "with a smaller meta_lr or inner_lr" in error
    state = load(tmp_path / "run" / "checkpoint.pt")
    assert state["iteration"] == len(read(tmp_path / "run")) == 2
    assert all(value.isfinite().all() for value in state["experiment"]["learner"].values())


def test_a_trust_region_step_that_float32_cannot_hold_counts_as_infinitely_far(monkeypatch):
    settings = MetaRLSettings(tasks_per_batch=2, episodes_per_task=2, horizon=5, policy=PolicyNetwork((4,)))
    experiment = MetaRL("metarl_l2f/Navigation2D-v0", settings, {"horizon": 5})
    before = {name: value.clone() for name, value in experiment.learner.state_dict().items()}
    judged = []

    def step(gradient, product, evaluate, surrogate, region):
        for length in (0.0, 1e39):
            # Of the last attenuation factor's bias: whatever it is, γ stays between 0 and 1.
            judged.append(evaluate(torch.zeros_like(gradient).index_fill_(0, torch.tensor(-1), length)))
        return torch.zeros_like(gradient), StepLog(0.0, 0.0, 0.0, 0.0, 2, False, "of the test")

    monkeypatch.setattr(trpo, "trust_region_step", step)
    experiment.iterate(1)
    assert math.isfinite(judged[0][0]) and judged[1] == (math.inf, math.inf)
    assert all(value.equal(before[name]) for name, value in experiment.learner.state_dict().items())
    experiment.close()


def test_reinforcement_learning_ends_where_a_parameter_is_not_finite(monkeypatch):
    settings = MetaRLSettings(tasks_per_batch=2, episodes_per_task=2, horizon=5, policy=PolicyNetwork((4,)))
    experiment = MetaRL("metarl_l2f/Navigation2D-v0", settings, {"horizon": 5})
    update = experiment.outer.update

    def overflowing(adaptation, rollouts):
        log = update(adaptation, rollouts)
        with torch.no_grad():
            experiment.learner.theta["mean.layers.0.bias"][0] = math.inf
        return log

    monkeypatch.setattr(experiment.outer, "update", overflowing)
    with pytest.raises(ValueError, match=r"iteration 4 left .*bias .*with a smaller max_kl or inner_lr"):
        experiment.iterate(4)
    experiment.close()
