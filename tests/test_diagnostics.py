"""The degree of conflict, against angles known by hand."""

import math

import pytest
import torch

from metarl_l2f.diagnostics import degree_of_conflict


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
