"""LEO's training: settings, noise, clipping, resuming, validation and evaluation."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch

from metarl_l2f.core.attenuation import Attenuation
from metarl_l2f.supervised.leo import experiment as leo_experiment
from metarl_l2f.supervised.leo.experiment import (
    LEO,
    PUBLISHED,
    LEOExperiment,
    LEOSettings,
    draw_noise,
    renamed_since_0_1,
)
from metarl_l2f.training import checkpoint
from metarl_l2f.training.checkpoint import CheckpointError

from .tiny import METHODS, SIZE, TINY, data, random, splits


def test_too_few_classes_or_rows_are_refused():
    with pytest.raises(ValueError, match="3-way episodes need 3 classes, but val has 2"):
        LEOExperiment(splits() | {"val": data(classes=2)}, TINY)
    with pytest.raises(ValueError, match="need 9 images of every class, but 'class 0' in train has 8"):
        LEOExperiment(splits(), dataclasses.replace(TINY, shots=4, queries=5))


def test_clipping_cuts_entries_and_then_the_norm():
    # (3, 0.05) → (0.1, 0.05), of norm 0.05 √5 → times 0.1 / that
    clipped = leo_experiment.clip(torch.tensor([3.0, 0.05]), 0.1)
    torch.testing.assert_close(clipped, torch.tensor([2.0, 1.0]) * 0.1 / 5**0.5)
    assert leo_experiment.clip(torch.tensor([-0.03, 0.04]), 0.1).tolist() == pytest.approx([-0.03, 0.04])
    assert leo_experiment.clip(torch.zeros(2), 0.1).tolist() == [0.0, 0.0]


def test_leos_parameters_are_its_three_networks_and_step_sizes():
    model = LEO(SIZE, dataclasses.replace(TINY, latent_lr=2.0))
    networks = ["encoder", "decoder", "relation.0", "relation.1", "relation.2"]
    assert sorted(model.params) == sorted([*networks, "latent_lr", "finetuning_lr"])
    assert model.latent_lr.tolist() == [2.0] * 4
    assert model.finetuning_lr.tolist() == pytest.approx([0.1] * SIZE)


def test_states_of_version_0_1_get_the_names_of_this_one():
    state = LEO(SIZE, TINY).state_dict()
    older = {name.replace("attenuator.mlp.", "l2f.attenuator."): value for name, value in state.items()}
    older |= {"l2f.network.weights": torch.zeros(3, SIZE), "l2f.step_sizes": torch.zeros(1, 1)}
    assert "l2f.attenuator.0.weight" in older
    assert renamed_since_0_1(older).keys() == state.keys() == renamed_since_0_1(state).keys()


def test_dropout_keeps_a_part_and_scales_it_up():
    noise = draw_noise(dataclasses.replace(TINY, tasks_per_batch=200), SIZE, random())
    for mask, shape in ((noise.support, (200, 5, 6, SIZE)), (noise.query, (200, 6, SIZE))):
        assert mask.shape == shape and mask.dtype == torch.float32
        assert mask.unique().tolist() == pytest.approx([0.0, 4 / 3])
        assert mask.mean().item() == pytest.approx(1.0, abs=0.03)
    assert noise.latent.shape == (200, 3, 4) and noise.weights.shape == (200, 3, 3, SIZE)
    assert noise.weights.std().item() == pytest.approx(1.0, abs=0.05)


def test_every_iteration_has_tasks_and_noise_of_its_own(monkeypatch):
    experiment, seen = LEOExperiment(splits(), TINY), []
    assess = experiment._assess
    monkeypatch.setattr(experiment, "_assess", lambda *arguments: seen.append(arguments) or assess(*arguments))
    for iteration in (1, 2, 1):
        experiment.iterate(iteration)
    (tasks, noise, _), (later_tasks, later_noise, _), (tasks_again, noise_again, _) = seen
    assert not torch.equal(tasks.support, later_tasks.support) and torch.equal(tasks.support, tasks_again.support)
    for part, later, again in zip(noise, later_noise, noise_again, strict=True):
        assert not torch.equal(part, later) and torch.equal(part, again)


def test_adam_sees_clipped_gradients():
    experiment = LEOExperiment(splits(), dataclasses.replace(TINY, clip=1e-4))
    assert experiment.iterate(1)["gradient_norm"] > 0.01
    norms = {name: p.grad.norm().item() for name, p in experiment.model.named_parameters() if p.grad is not None}
    assert norms["decoder"] == pytest.approx(1e-4)
    assert max(norms.values()) < 1.01e-4


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, method):
    settings = dataclasses.replace(TINY, method=method, lr=0.01)
    whole = LEOExperiment(splits(), settings)
    for iteration in (1, 2):
        whole.iterate(iteration)
    checkpoint.save(tmp_path / "checkpoint.pt", whole.state_dict())
    resumed = LEOExperiment(splits(), dataclasses.replace(settings, seed=1))
    resumed.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt"))
    for iteration in (3, 4):
        ours, theirs = whole.iterate(iteration), resumed.iterate(iteration)
        assert ours.pop("time/iteration") and theirs.pop("time/iteration")
        assert ours == theirs
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_checkpoint_of_another_method_or_embedding_is_refused():
    state = LEOExperiment(splits(), TINY).state_dict()
    with pytest.raises(CheckpointError, match=r"attenuator\.mlp\.0\.bias is \(3,\), expected none"):
        LEOExperiment(splits(), dataclasses.replace(TINY, method="leo")).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"encoder is \(5, 4\), expected \(7, 4\)"):
        LEOExperiment(splits(size=7), TINY).load_state_dict(state)


@pytest.mark.parametrize("method", METHODS)
def test_the_query_loss_falls_where_classes_lie_apart(method):
    settings = dataclasses.replace(TINY, method=method, lr=0.01, kl=0.001, dropout=0.1, shots=1, latent_size=8)
    experiment = LEOExperiment(splits(classes=12, size=16, spread=0.1), settings)
    losses = [experiment.iterate(iteration)["loss/query"] for iteration in range(1, 61)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert experiment.evaluate("test", 50, seed=0)[:, -1].mean() > 0.75


def test_metrics_name_every_term_and_every_step():
    metrics = LEOExperiment(splits(), TINY).iterate(1)
    steps = [f"accuracy/step_{step}" for step in range(5)]
    terms = ["loss", "loss/query", "loss/kl", "loss/encoder_penalty", "gradient_norm"]
    assert set(metrics) == {*steps, *terms, "gamma/weights/mean", "gamma/weights/std", "time/iteration"}
    assert 0 < metrics["gamma/weights/mean"] < 1
    assert all(isinstance(value, float) for value in metrics.values())


def test_validation_repeats_and_changes_nothing():
    experiment = LEOExperiment(splits(), TINY)
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    assert experiment.validate(1) == experiment.validate(2)
    assert list(experiment.validate(1)) == [f"validation/accuracy/step_{step}" for step in range(5)]
    assert all(torch.equal(value, before[name]) for name, value in experiment.model.state_dict().items())


def test_evaluation_scores_every_task_alike_however_many_are_held_at_once(monkeypatch):
    experiment = LEOExperiment(splits(), TINY)
    many = experiment.evaluate("test", 7, seed=3)
    monkeypatch.setattr(leo_experiment, "TASKS_AT_ONCE", 3)
    assert many.shape == (7, 5)
    np.testing.assert_allclose(experiment.evaluate("test", 7, seed=3), many)
    np.testing.assert_allclose(experiment.evaluate("test", 2, seed=3), many[:2])
    assert not np.array_equal(experiment.evaluate("test", 7, seed=4), many)
    with pytest.raises(ValueError, match="tasks must be a whole number, 1 or more, got 0"):
        experiment.evaluate("test", 0, seed=3)


def test_two_methods_with_one_seed_start_alike_and_meet_the_same_tasks():
    models, accuracies = [], []
    for method in METHODS:
        experiment = LEOExperiment(splits(), dataclasses.replace(TINY, method=method))
        models.append({name: p.clone() for name, p in experiment.model.params.items()})
        accuracies.append(experiment.iterate(1)["accuracy/step_0"])
    assert accuracies[0] == accuracies[1]
    assert all(torch.equal(p, models[1][name]) for name, p in models[0].items())


def test_an_update_that_is_not_finite_is_rejected_with_a_warning(caplog):
    experiment = LEOExperiment(splits(), TINY)
    with torch.no_grad():
        experiment.model.latent_lr[0] = 3e38
    before = experiment.model.decoder.clone()
    with caplog.at_level(logging.WARNING):
        metrics = experiment.iterate(1)
    assert "iteration 1: the update was rejected" in caplog.text
    assert not math.isfinite(metrics["gradient_norm"])
    assert torch.equal(experiment.model.decoder, before)


def test_no_fine_tuning_is_a_choice():
    experiment = LEOExperiment(splits(), dataclasses.replace(TINY, finetuning_steps=0))
    assert "accuracy/step_3" not in experiment.iterate(1)
    assert experiment.evaluate("val", 2, seed=0).shape == (2, 3)


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_weights_are_settings(case):
    settings = LEOSettings(shots=case[1], **PUBLISHED[case])
    assert (settings == LEOSettings()) == (case == ("miniImageNet", 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 0}, "ways must be a whole number, 1 or more, got 0"),
        ({"inner_steps": 0}, "inner_steps must be a whole number, 1 or more"),
        ({"finetuning_steps": -1}, "finetuning_steps must be a whole number, 0 or more, got -1"),
        ({"kl": -1.0}, "kl must be finite and not negative"),
        ({"kl": math.nan}, "kl must be finite and not negative"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"method": "maml"}, "method must be one of 'l2f', 'leo', got 'maml'"),
        ({"attenuation": Attenuation(conditioning="prototype")}, "conditioning must be 'gradient' or 'none'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LEOSettings(**changes)
