"""Learning on a CUDA device: it is there or refused, and its numbers agree with the CPU's and with each other."""

import dataclasses

import pytest
import torch

from metarl_l2f.core.attenuation import Attenuation
from metarl_l2f.core.update_rules import InnerLoop
from metarl_l2f.parallel import devices
from metarl_l2f.parallel.devices import Recorded
from metarl_l2f.parallel.trees import mapped, moved, tensors_of
from metarl_l2f.rl.experiment import MetaRL
from metarl_l2f.rl.settings import MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.trpo import TrustRegion
from metarl_l2f.supervised.classification import Classifier, ImageProblem
from metarl_l2f.supervised.episodes import Images, Shape, Task
from metarl_l2f.supervised.experiment import MetaSupervised
from metarl_l2f.supervised.settings import SupervisedSettings
from metarl_l2f.supervised.sinusoid import Curves, SinusoidProblem
from metarl_l2f.training import checkpoint
from metarl_l2f.training.loop import train

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", ""])
def test_a_device_of_another_kind_is_refused(name):
    with pytest.raises(ValueError, match="device must be cpu, cuda or cuda:NUMBER, got"):
        devices.prepare(name)


@pytest.mark.parametrize("count, name, found", [(0, "cuda", "none; PyTorch's CUDA build"), (1, "cuda:1", "1 of them")])
def test_a_cuda_device_that_is_not_there_is_refused(monkeypatch, count, name, found):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=f"device must be one of this machine's, got {name}, and it has {found}"):
        devices.prepare(name)


def test_tf32_goes_with_a_cuda_device_only():
    with pytest.raises(ValueError, match="tf32 needs a CUDA device, got cpu"):
        devices.prepare("cpu", tf32=True)


def test_the_cpu_is_left_as_it_is():
    assert devices.prepare("cpu") == CPU
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_tree_keeps_its_shape_on_the_way():
    task = Task(*(torch.full((2,), float(number)) for number in range(5)))
    tree = {"tasks": [task, task], "pair": (task.query, {})}
    doubled = mapped(lambda tensor: 2 * tensor, tree)
    assert type(doubled["tasks"][1]) is Task and type(doubled["pair"]) is tuple
    assert [float(t[0]) for t in tensors_of(doubled)] == [0, 2, 4, 6, 8, 0, 2, 4, 6, 8, 4]


def test_what_is_there_already_is_not_copied():
    tensor = torch.ones(2)
    assert moved((tensor,), CPU)[0] is tensor


def sinusoids(device=CPU, compiled=False, **settings):
    curves = Curves(frequency=(0.8, 1.2))
    chosen = SupervisedSettings(
        tasks_per_batch=5,
        attenuation=Attenuation(scope="filter", initial_gamma=0.9),
        inner=InnerLoop(2, 0.01, learn_inner_lr=True),
        validation_tasks=4,
        diagnostics_every=2,
        **settings,
    )
    problem = SinusoidProblem(curves, curves, shots=6, hidden_sizes=(8, 8))
    return MetaSupervised(problem, chosen, device=device, compiled=compiled, task_chunk=3)


def images(device=CPU, compiled=False, batching="loop"):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(4)
    data = Images(
        torch.randint(0, 256, (24, 1, 28, 28), generator=generator, dtype=torch.uint8), labels, tuple("abcdef")
    )
    problem = ImageProblem(dict.fromkeys(("train", "val", "test"), data), Shape(3, 1, 2), Classifier(filters=8), 1)
    chosen = SupervisedSettings(tasks_per_batch=2, inner=InnerLoop(1, 0.1), validation_tasks=2, diagnostics_every=2)
    return MetaSupervised(problem, chosen, device=device, compiled=compiled, batching=batching, task_chunk=2)


def navigation(device=CPU, threads=1):
    settings = MetaRLSettings(
        tasks_per_batch=4,
        episodes_per_task=5,
        horizon=8,
        policy=PolicyNetwork((8,), "tanh", 0.2),
        initial_std_gamma=0.5,
        region=TrustRegion(fisher_fraction=1.0),
    )
    return MetaRL("metarl_l2f/Navigation2D-v0", settings, {"horizon": 8}, threads, device=device)


EXPERIMENTS = {
    "sinusoids": sinusoids,
    "images": images,
    "images, vmapped": lambda *where: images(*where, batching="vmap"),
}


def cuda():
    return devices.prepare("cuda")


def trained(experiment, iterations=3):
    metrics = [experiment.iterate(number) for number in range(1, iterations + 1)]
    state = {name: value.cpu() for name, value in experiment.learner.state_dict().items()}
    experiment.close()
    return [{tag: v for tag, v in line.items() if not tag.startswith("time/")} for line in metrics], state


@pytest.mark.gpu
@pytest.mark.parametrize("build", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_supervised_learning_there_is_that_of_the_cpu(build):
    # Adam divides by the gradient's size: rounding may turn a step around where a gradient is near 0. So, one step's
    # scores and the gradient itself.
    here, there = build(), build(cuda())
    weights = (0.0,) * (here.settings.inner.inner_steps - 1) + (1.0,)
    tasks = here._draw(1)
    ours, theirs = (e.meta_loss.gradient(tasks, weights) for e in (here, there))
    torch.testing.assert_close(theirs[0].loss, ours[0].loss, rtol=1e-4, atol=1e-5)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert other.device.type == "cuda"
        torch.testing.assert_close(other.cpu(), mine, rtol=1e-3, atol=1e-4)
    evaluated, started, seen = there.meta_loss.evaluate(tasks, 2), there.meta_loss.starts(tasks), there.meta_loss
    for value in tensors_of([theirs[0], evaluated, started, seen.inspect(tasks, 1)]):
        assert value.device == CPU
    here.close(), there.close()


@pytest.mark.gpu
@pytest.mark.parametrize("build", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_a_recorded_gradient_is_the_gradient_to_the_last_digit(build):
    plain, recorded = (trained(build(cuda(), compiled)) for compiled in (False, True))
    assert plain[0] == recorded[0]
    for name, value in plain[1].items():
        assert torch.equal(value, recorded[1][name]), name


@pytest.mark.gpu
def test_a_recording_reads_parameters_as_they_are_now():
    weight = torch.ones(2, device=cuda(), requires_grad=True)
    double = Recorded(lambda tree: (tree[0] * weight,))
    ones = torch.ones(2, device="cuda")
    assert double((ones,))[0].tolist() == [1, 1]
    with torch.no_grad():
        weight.mul_(3)
    assert double((2 * ones,))[0].tolist() == [6, 6]
    assert double((torch.ones(1, device="cuda"),))[0].tolist() == [3, 3]  # another shape: another recording


@pytest.mark.gpu
@pytest.mark.parametrize(
    "build, score", [(sinusoids, "mse/step_2"), (images, "accuracy/step_1"), (navigation, "return/step_1")]
)
def test_a_resumed_run_there_is_the_unbroken_one(build, score, tmp_path):
    def run(folder, iterations, resume=False):
        experiment = build(cuda())
        keys = {"validation_key": f"validation/{score}", "progress_key": score}
        train(experiment, folder, iterations=iterations, config={}, resume=resume, validate_every=10, **keys)
        experiment.close()

    run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    run(tmp_path / "parts", 4, resume=True)
    whole, parts = (checkpoint.load(tmp_path / name / "checkpoint.pt")["experiment"] for name in ("whole", "parts"))
    assert all(map(torch.equal, tensors_of(whole["learner"]), tensors_of(parts["learner"])))


@pytest.mark.gpu
def test_reinforcement_learning_there_is_that_of_the_cpu():
    lines, state = trained(navigation(), 2)
    others, there = trained(navigation(cuda(), threads=2), 2)
    for line, other in zip(lines, others, strict=True):
        for tag in ("return/step_0", "return/step_1", "kl", "surrogate/change", "conflict/network"):
            assert other[tag] == pytest.approx(line[tag], rel=2e-3, abs=1e-5), tag
    for name, value in state.items():
        torch.testing.assert_close(there[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
def test_a_policy_adapted_there_plays_here():
    experiment = navigation(cuda())
    found = experiment.adaptation.inspect(experiment.validation_rollouts()[0])
    assert all(value.device == CPU for value in tensors_of(found)) and found.metrics()["landscape/smoothness"] > 0
    adapted = experiment.adapt(task=experiment.held_out_tasks(1, 1)[0], episodes=3)
    assert dataclasses.is_dataclass(adapted.policy) and adapted.policy([0.0, 0.0]).shape == (2,)
    experiment.close()
