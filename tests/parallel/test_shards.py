"""Each rank's share of the tasks, and sums, means and gatherings over shares."""

import numpy as np
import pytest
import torch

from metarl_l2f.diagnostics import degree_of_conflict
from metarl_l2f.parallel.shards import Share

from .groups import Fake


def test_shares_are_whole_shards_that_cover_all_tasks_once():
    # 7 tasks in shards of 2 are 2 + 2 + 2 + 1; three ranks take two, one and one shards.
    shares = [Share(7, Fake(rank, 3), unit=2) for rank in range(3)]
    assert [share.rows for share in shares] == [slice(0, 4), slice(4, 6), slice(6, 7)]
    assert all(share.counted == [True] * 3 for share in shares)


def test_a_rank_without_a_shard_repeats_the_last_one_which_does_not_count():
    idle = Share(2, Fake(2, 3, [torch.tensor([1.0]), torch.tensor([10.0])]))
    assert idle.rows == slice(1, 2) and idle.counted == [True, True, False]
    assert idle.sum(torch.tensor([100.0])) == torch.tensor([11.0])
    assert idle.gather(torch.tensor([100.0])).tolist() == [1.0, 10.0]


def test_means_weigh_each_rank_by_its_tasks():
    # Two of three tasks here, of mean 3; one elsewhere, of 9: its third of the mean arrives. (3 + 3 + 9) / 3 = 5.
    share = Share(3, Fake(0, 2, [torch.tensor([9.0 / 3, 0.0])]))
    mean, other = share.mean((torch.tensor(3.0), torch.tensor(0.0)))
    assert float(mean) == pytest.approx(5.0) and float(other) == 0.0


def test_sums_of_a_tree_travel_as_one_message_and_keep_shapes_and_types():
    share = Share(2, Fake(0, 2, [torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)]))
    found = share.sum({"a": torch.tensor([[10.0, 20.0]]), "b": torch.tensor(30.0, dtype=torch.float64)})
    assert found["a"].tolist() == [[11.0, 22.0]] and found["a"].dtype == torch.float32
    assert float(found["b"]) == 33.0 and found["b"].dtype == torch.float64


def test_conflict_with_tasks_elsewhere_is_that_of_all_tasks_together():
    gradients = {"w": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0]])}
    here = {"w": gradients["w"][:2]}

    def with_the_third(tree):
        if isinstance(tree, dict):  # Σ of gradients
            return {"w": tree["w"] + gradients["w"][2:].double()}
        angles, number = tree
        third = torch.arccos(torch.tensor(8 / np.sqrt(5 * 13)))  # (1, 2) · (2, 3) / (√5 √13)
        return {layer: total + third for layer, total in angles.items()}, number + 1

    assert degree_of_conflict(here, with_the_third) == pytest.approx(degree_of_conflict(gradients), abs=1e-6)


@pytest.mark.parametrize(("number", "unit"), [(0, 1), (3, 0)])
def test_a_share_of_nothing_is_refused(number, unit):
    with pytest.raises(ValueError, match=r"(number|unit) must be a whole number of tasks, 1 or more, got 0"):
        Share(number, unit=unit)
