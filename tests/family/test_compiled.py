"""Compiled meta-updates: the same up to rounding, and the same to the last digit wherever uncompiled ones are."""

import dataclasses
from types import SimpleNamespace

import torch
from parallel.groups import by_ranks
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metarl_l2f import MetaRL, MetaRLSettings
from metarl_l2f.parallel.trees import tensors_of
from metarl_l2f.rl.adaptation import Adaptation
from metarl_l2f.rl.trpo import MetaSurrogate
from metarl_l2f.training import checkpoint

from .small import HORIZON, TASKS, small
from .test_runs import without_times


def compiled(one):
    """The same learner and data, whose adaptation is traced."""
    again = Adaptation(one.learner, one.settings.gradient, tasks_per_shard=TASKS, horizon=HORIZON, compiled=True)
    return one._replace(adaptation=again)


def test_a_compiled_trust_region_computes_what_an_uncompiled_one_does(caplog):
    one = small("e-maml+l2f", steps=1)
    parameters = one.learner.meta_parameters()
    origin = parameters_to_vector(parameters).detach().clone()
    vector = torch.randn(len(origin), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def results(one):
        surrogate = MetaSurrogate(one.adaptation, one.data, one.share)
        before, gradient, old = surrogate.gradient()
        product = surrogate.curvature()
        found = [torch.tensor(before), gradient, product(vector), product(gradient), *tensors_of(old)]
        vector_to_parameters(origin + 0.01 * vector, parameters)
        found += map(torch.tensor, surrogate.value_and_kl(old))
        vector_to_parameters(origin, parameters)
        return found

    ours = compiled(one)
    torch.testing.assert_close(results(ours), results(one), rtol=1e-10, atol=1e-12)
    assert len(ours.adaptation.shards.traces) == 3 and not caplog.records


def test_a_compiled_promp_goes_where_an_uncompiled_one_goes_while_its_penalties_change(caplog):
    one, other = small("promp", steps=1), small("promp", steps=1)
    ways = []
    for each in (one, compiled(other)):
        metrics = []
        for _ in range(2):
            made = each.outer.update(each.adaptation, SimpleNamespace(data=each.data, share=each.share))
            metrics.append(made.metrics)
        weights = [line["inner_kl_weight/step_0"] for line in metrics]
        assert weights[0] != weights[1]
        ways.append((parameters_to_vector(each.learner.parameters()).detach(), metrics))
    torch.testing.assert_close(ways[1], ways[0], rtol=1e-9, atol=1e-11)
    assert not caplog.records


def run_of(group=None, threads=1):
    """First-order MAML, which is traced the soonest, in shards of two of four tasks."""
    settings = MetaRLSettings.for_domain("navigation", "first-order-maml")
    policy = dataclasses.replace(settings.policy, hidden_sizes=(4,))
    settings = dataclasses.replace(settings, policy=policy, tasks_per_batch=4, episodes_per_task=3, horizon=5)
    arguments = {"group": group, "threads": threads, "tasks_per_shard": 2, "compiled": True}
    return MetaRL("metarl_l2f/Navigation2D-v0", settings, {"horizon": 5}, **arguments)


def first_of(run):
    """The metrics of the first iteration, without those that ranks round differently."""
    return {tag: value for tag, value in without_times(run.iterate(1)).items() if not tag.startswith("conflict/")}


def first_on_ranks(group):
    run = run_of(group)
    line = first_of(run)
    run.close()
    return line


def test_a_compiled_run_is_the_same_to_the_last_digit_resumed_and_on_any_number_of_threads_and_ranks(tmp_path):
    unbroken, resumed = run_of(), run_of(threads=2)
    first = first_of(unbroken)
    checkpoint.save(tmp_path / "checkpoint.pt", unbroken.state_dict())
    resumed.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt"))
    assert without_times(resumed.iterate(2)) == without_times(unbroken.iterate(2))
    assert by_ranks(first_on_ranks, 2) == [first] * 2
    for run in (unbroken, resumed):
        assert None not in run.adaptation.shards.traces.values()
        run.close()
