"""Conflict, landscape and attenuation, against what is known by hand."""

import math

import pytest
import torch
from torch import nn
from torch.func import vmap

from metarl_l2f.core.attenuation import Attenuation
from metarl_l2f.core.learner import meta_learner
from metarl_l2f.core.update_rules import InnerLoop
from metarl_l2f.diagnostics import (
    STEP_GRID,
    conflict_by_task,
    degree_of_conflict,
    gradient_cosines,
    landscape,
    manual_attenuation,
)
from metarl_l2f.inspection import collapse_warnings, gap_warning


def test_orthogonal_gradients_are_a_quarter_pi_from_their_sum():
    conflict = degree_of_conflict({"a.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]])})
    assert conflict["a"] == pytest.approx(math.pi / 4)


def test_equal_gradients_do_not_conflict():
    assert degree_of_conflict({"a.weight": torch.ones(3, 4)})["a"] == pytest.approx(0.0, abs=1e-6)


def test_conflict_is_per_layer_and_for_the_network():
    gradients = {
        "a.weight": torch.tensor([[1.0], [1.0]]),
        "a.bias": torch.tensor([[0.0], [0.0]]),
        "b.weight": torch.tensor([[1.0], [-2.0]]),
    }
    conflict = degree_of_conflict(gradients)
    assert conflict["a"] == pytest.approx(0.0, abs=1e-6)
    assert conflict["b"] == pytest.approx(math.pi / 2)  # the sum −1 is opposite to 1 (π) and along −2 (0)
    # network: (1, 0, 1) and (1, 0, −2), sum (2, 0, −1): cosines 1/√10 and 4/5
    assert conflict["network"] == pytest.approx((math.acos(10**-0.5) + math.acos(0.8)) / 2)


def test_zero_gradients_are_no_nan():
    assert degree_of_conflict({"a": torch.zeros(2, 3)})["a"] == pytest.approx(math.pi / 2)


def test_conflict_of_each_task_is_its_own_angle():
    # Sum (2, 1): (1, 0) is arctan(1/2) off, (1, 1) is arctan(1/3) off.
    angles = conflict_by_task({"a.weight": torch.tensor([[1.0, 0.0], [1.0, 1.0]])})["a"]
    assert angles.tolist() == pytest.approx([math.atan(1 / 2), math.atan(1 / 3)])


def test_conflict_with_a_distribution_of_other_tasks():
    own, others = {"a": torch.tensor([[0.0, 2.0]])}, {"a": torch.tensor([[1.0, 1.0], [2.0, -1.0]])}
    assert conflict_by_task(own, others)["network"].tolist() == pytest.approx([math.pi / 2])  # their sum is (3, 0)


def test_cosine_of_gradients_before_and_after():
    before = {"a.weight": torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "b.weight": torch.tensor([[0.0], [1.0]])}
    after = {"a.weight": torch.tensor([[0.0, 3.0], [-2.0, 0.0]]), "b.weight": torch.tensor([[4.0], [2.0]])}
    cosines = gradient_cosines(before, after)
    assert cosines["a"].tolist() == pytest.approx([0.0, -1.0])
    assert cosines["b"].tolist() == pytest.approx([0.0, 1.0])
    # network: (1, 0, 0) · (0, 3, 4) = 0; (1, 0, 1) · (−2, 0, 2) = 0
    assert cosines["network"].tolist() == pytest.approx([0.0, 0.0])


# ---- landscape ----------------------------------------------------------------------------------------------------


def test_landscape_of_a_quadratic_is_known():
    """L = ½ (3 x² + y²) at (1, 1): ∇L = (3, 1), and H d = (9, 1) along d = ∇L, whatever the distance."""

    def loss(params):
        return 0.5 * (3 * params["x"].square() + params["y"].square())

    params = {"x": torch.tensor(1.0), "y": torch.tensor(1.0)}
    distances = (0.1, 0.2, 0.5)
    found = landscape(loss, params, {"x": torch.tensor(3.0), "y": torch.tensor(1.0)}, distances)
    # L(θ − η d) = ½ (3 (1 − 3η)² + (1 − η)²): 1.14, 0.56, 0.5 at η = 0.1, 0.2, 0.5.
    assert found.losses.tolist() == pytest.approx([1.14, 0.56, 0.5])
    assert found.gradient_changes.tolist() == pytest.approx([eta * math.sqrt(82) for eta in (0.1, 0.2, 0.5)])
    assert float(found.smoothness) == pytest.approx(math.sqrt(82 / 10))
    assert float(found.loss_range()) == pytest.approx(0.64)
    assert float(found.gradient_change_range()) == pytest.approx(0.4 * math.sqrt(82))


def test_landscape_along_the_steepest_axis_finds_the_largest_eigenvalue():
    def loss(params):
        return 0.5 * (3 * params["x"].square() + params["y"].square())

    params = {"x": torch.tensor(1.0), "y": torch.tensor(0.0)}
    assert float(landscape(loss, params, {"x": torch.tensor(0.3)}).smoothness) == pytest.approx(3.0)


def test_landscape_leaves_out_what_the_step_does_not_move():
    """L = x² z at (1, 2): along x, ∂L/∂x = 2 x z changes by 4 a unit; ∂L/∂z, which changes too, does not count."""

    def loss(params):
        return params["x"].square() * params["z"]

    found = landscape(loss, {"x": torch.tensor(1.0), "z": torch.tensor(2.0)}, {"x": torch.tensor(1.0)}, (0.5,))
    assert found.losses.tolist() == [0.5] and found.gradient_changes.tolist() == [2.0]
    assert float(found.smoothness) == 4.0


def test_landscape_is_vmapped_over_tasks_and_a_gradient_of_zero_is_no_nan():
    def task(scale):
        params = {"x": torch.tensor([1.0, -1.0])}
        return landscape(lambda p: scale * p["x"].pow(4).sum(), params, {"x": scale * 0.04 * params["x"] ** 3})

    found = vmap(task)(torch.tensor([0.0, 1.0, 2.0]))
    assert found.losses.shape == (3, 8) and found.smoothness[0] == 0
    for row, scale in enumerate((0.0, 1.0, 2.0)):
        torch.testing.assert_close(found.losses[row], task(torch.tensor(scale)).losses)


def test_the_grid_looks_from_half_a_step_to_four():
    def loss(params):
        return params["x"]

    found = landscape(loss, {"x": torch.tensor(0.0)}, {"x": torch.tensor(1.0)})
    assert found.losses.tolist() == [-0.5, -1.0, -1.5, -2.0, -2.5, -3.0, -3.5, -4.0] == [-eta for eta in STEP_GRID]
    assert float(found.smoothness) == 0.0


def test_a_large_gap_between_training_and_held_out_tasks_is_said():
    assert gap_warning(0.95, before=0.2, after=0.9) is None
    assert "the gap is large" in gap_warning(0.95, before=0.2, after=0.4)  # lost 0.55 of 0.2
    assert "the gap is large" in gap_warning(0.1, before=3.0, after=2.0)  # an error: less is better
    assert gap_warning(0.5, before=0.2, after=0.9) is None  # held-out tasks are the easier ones


# ---- attenuation --------------------------------------------------------------------------------------------------


def learner(attenuation=None, **options):
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    return meta_learner(network, attenuation, InnerLoop(), generator=torch.Generator().manual_seed(0), **options)


def test_manual_attenuation_shrinks_one_layer_at_a_time_and_gives_it_back():
    l2f = learner()
    before = {name: value.detach().clone() for name, value in l2f.theta.items()}
    seen = []

    def score():
        seen.append([float(l2f.theta[name].detach().norm() / before[name].norm()) for name in ("0.weight", "1.weight")])
        return float(len(seen))

    found = manual_attenuation(l2f, (0.1, 0.5), score)
    assert found == {"0": [1.0, 2.0], "1": [3.0, 4.0]}
    assert torch.tensor(seen).tolist() == [pytest.approx(row) for row in [[0.1, 1], [0.5, 1], [1, 0.1], [1, 0.5]]]
    assert all(torch.equal(value, before[name]) for name, value in l2f.theta.items())


def test_manual_attenuation_of_a_logarithm_shrinks_its_exponential():
    l2f = learner()
    l2f.network.logarithmic = ("1.bias",)
    with torch.no_grad():
        l2f.theta["1.bias"].fill_(math.log(0.4))
    found = manual_attenuation(l2f, (0.5, 1.0), lambda: float(l2f.theta["1.bias"].detach().exp()[0]))
    assert found == {"0": [pytest.approx(0.4)] * 2, "1": [pytest.approx(0.2), pytest.approx(0.4)]}


def test_manual_attenuation_gives_the_layer_back_when_measuring_fails():
    l2f = learner()
    before = l2f.theta["0.weight"].detach().clone()
    with pytest.raises(ZeroDivisionError):
        manual_attenuation(l2f, (0.1,), lambda: 1 / 0)
    assert torch.equal(l2f.theta["0.weight"], before)


def test_gamma_that_does_nothing_is_said():
    l2f = learner(Attenuation())
    assert l2f.attenuator.names == ["0.weight", "0.bias", "1.weight", "1.bias"]
    kept, forgetting = torch.full((5, 4), 0.995), torch.full((5, 4), 0.5)
    forgetting[:, 2] = 0.001
    assert ["L2F has become MAML" in text for text in collapse_warnings(l2f, kept)] == [True]
    assert ["in 1.weight: what" in text for text in collapse_warnings(l2f, forgetting)] == [True]
    kept[0, 0] = forgetting[0, 2] = 0.5  # one task is enough
    assert collapse_warnings(l2f, kept) == collapse_warnings(l2f, forgetting) == []
    assert collapse_warnings(learner(), torch.empty(5, 0)) == []
