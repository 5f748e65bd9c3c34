"""Ranks compute what one process does, agree on when to stop, and say so when they lose each other."""

import contextlib
import dataclasses
import logging
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from metarl_l2f.core import Attenuation, InnerLoop
from metarl_l2f.diagnostics import degree_of_conflict
from metarl_l2f.launchers import embeddings, evaluate, figures, navigation, play, run, viewer
from metarl_l2f.launchers.navigation import Navigation
from metarl_l2f.parallel.ranks import Group, RankError, StoppedError, join
from metarl_l2f.parallel.shards import Share
from metarl_l2f.rl.experiment import MetaRL
from metarl_l2f.rl.settings import MetaRLSettings, PolicyNetwork
from metarl_l2f.rl.trpo import TrustRegion
from metarl_l2f.supervised.classification import Classifier, ImageProblem
from metarl_l2f.supervised.episodes import Images, Shape
from metarl_l2f.supervised.experiment import MetaSupervised
from metarl_l2f.supervised.leo.embeddings import SPLITS, Embeddings
from metarl_l2f.supervised.leo.experiment import LEOExperiment, LEOSettings
from metarl_l2f.supervised.settings import SupervisedSettings
from metarl_l2f.supervised.sinusoid import Curves, SinusoidProblem
from metarl_l2f.training.loop import train
from metarl_l2f.training.metrics import Shown

# A server that has imported torch forks ranks at once, instead of each of them importing it anew.
RANKS = multiprocessing.get_context("forkserver")
RANKS.set_forkserver_preload(["metarl_l2f.rl.experiment", "metarl_l2f.supervised.experiment", "torch._dynamo"])
ITERATIONS = 5


class Plane(gymnasium.Env):
    """Walk towards a point; in float64 all the way, as navigation is not."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float64)

    def sample_tasks(self, number, generator):
        return generator.uniform(-0.5, 0.5, (number, 2))

    def reset(self, *, seed=None, options=None):
        self.position, self.goal = np.zeros(2), options["task"]
        return self.position, {}

    def step(self, action):
        self.position = self.position + np.clip(action, -0.1, 0.1)
        return self.position, -np.square(self.position - self.goal).sum(), False, False, {}


class Fake(Group):
    """One of several ranks, whose sums and gatherings with the others are known beforehand."""

    def __init__(self, rank, size, others=()):
        self.rank, self.size, self.others = rank, size, list(others)

    def sum(self, values):
        return values + sum(self.others)

    def gather(self, value):
        return [*self.others[: self.rank], value, *self.others[self.rank :]]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def one_of(size, rank, port):
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def meta_rl(group, dtype):
    """Seven tasks in shards of two; L2F with all that it has to sum over ranks."""
    settings = MetaRLSettings(
        tasks_per_batch=7,
        episodes_per_task=3,
        horizon=5,
        policy=PolicyNetwork((8,), "tanh", 0.5),
        attenuation=Attenuation(initial_gamma=0.9),
        inner=InnerLoop(learn_inner_lr=True),
        region=TrustRegion(fisher_fraction=1.0),
    )
    env = Plane if dtype == torch.float64 else "metarl_l2f/Navigation2D-v0"
    return MetaRL(env, settings, {} if env is Plane else {"horizon": 5}, group=group, tasks_per_shard=2)


def supervised(group, dtype):
    curves = Curves()
    problem = SinusoidProblem(curves, curves, 5, 5, (8,))
    settings = SupervisedSettings(tasks_per_batch=7, validation_tasks=5, diagnostics_every=2)
    return MetaSupervised(problem, settings, group=group)


def classification(group, dtype):
    """Three classes a task, of noise: what is learned does not matter."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 1, 16, 16), generator=random, dtype=torch.uint8)
    images = Images(pixels, torch.arange(6).repeat_interleave(5), tuple("abcdef"))
    data = {"train": images, "val": images, "test": images}
    problem = ImageProblem(data, Shape(3, 1, 2), Classifier(filters=4), 1)
    settings = SupervisedSettings(tasks_per_batch=5, validation_tasks=3, diagnostics_every=2)
    return MetaSupervised(problem, settings, group=group)


def latent(group, dtype):
    """LEO + L2F on embeddings of noise."""
    vectors = torch.nn.functional.normalize(torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    data = Embeddings(vectors, torch.arange(6).repeat_interleave(5), tuple("abcdef"))
    settings = LEOSettings(
        method="l2f", ways=3, shots=1, queries=2, latent_size=4, tasks_per_batch=5, validation_tasks=3
    )
    return LEOExperiment(dict.fromkeys(SPLITS, data), settings, group=group)


def trained(build, dtype, group):
    """Metrics without times, and the parameters, after some iterations and a validation."""
    torch.set_default_dtype(dtype)
    experiment = build(group, dtype)
    with contextlib.ExitStack() as stack:
        if hasattr(experiment, "close"):
            stack.callback(experiment.close)
        lines = [experiment.iterate(number) for number in range(1, ITERATIONS + 1)]
        lines.append(experiment.validate(ITERATIONS))
    metrics = [{tag: value for tag, value in line.items() if not tag.startswith("time/")} for line in lines]
    learner = experiment.model if isinstance(experiment, LEOExperiment) else experiment.learner
    return metrics, parameters_to_vector(learner.parameters()).detach().numpy()


def rank_of(work, timeout, size, rank, port, answers):
    torch.set_num_threads(1)
    os.environ |= one_of(size, rank, port)
    with join(timeout) as group:
        answer = work(group)
    answers.put((rank, answer))


def by_ranks(work, size, timeout=60.0):
    """What `work(group)` gives each of `size` ranks, in their order."""
    port, answers = free_port(), RANKS.Queue()
    ranks = [RANKS.Process(target=rank_of, args=(work, timeout, size, rank, port, answers)) for rank in range(size)]
    for process in ranks:
        process.start()
    found = dict(answers.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join()
    return [found[rank] for rank in range(size)]


@pytest.mark.parametrize(
    ("build", "dtype", "sizes", "tolerance"),
    [
        (meta_rl, torch.float32, (2, 3, 4), 1e-5),
        (meta_rl, torch.float64, (2, 3, 4), 1e-10),
        (supervised, torch.float32, (2, 3, 4), 1e-5),
        (classification, torch.float32, (3,), 1e-5),
        (latent, torch.float32, (3,), 1e-5),
    ],
)
def test_any_number_of_ranks_gives_the_answer_of_one_process(build, dtype, sizes, tolerance):
    try:
        metrics, parameters = trained(build, dtype, None)
    finally:
        torch.set_default_dtype(torch.float32)
    for size in sizes:
        ranks = by_ranks(partial(trained, build, dtype), size)
        for found_metrics, found in ranks:
            np.testing.assert_array_equal(found, ranks[0][1])  # in lockstep to the last bit
            np.testing.assert_allclose(found, parameters, rtol=0, atol=tolerance)
            for line, expected in zip(found_metrics, metrics, strict=True):
                assert line == pytest.approx(expected, rel=tolerance, abs=tolerance)


# ---- shares -----------------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=r"must be 1 or more, got"):
        Share(number, unit=unit)


# ---- the group --------------------------------------------------------------------------------------------------


def test_without_torchrun_a_process_is_alone_and_nothing_is_imported():
    code = (
        "import sys; from metarl_l2f.launchers import navigation; from metarl_l2f.parallel.ranks import join;"
        "group = join(1.0); assert type(group).__name__ == 'Group' and group.first;"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_rank_that_cannot_reach_the_others_says_so_within_its_time_out(monkeypatch):
    for name, value in one_of(2, 1, free_port()).items():  # rank 0, which would answer, is not there
        monkeypatch.setenv(name, value)
    with pytest.raises(
        RankError, match=r"rank 1 of 2, on .*, lost the others after .* s while they met \(it waits 1 s"
    ):
        join(1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.5, 1e30, math.inf, math.nan])
def test_a_time_out_that_no_rank_can_wait_for_is_refused(seconds, capsys):
    assert navigation.main(["--rank-timeout", str(seconds)]) == 2
    expected = f"error: rank_timeout must be a number of seconds from 1 to 31536000 (a year), got {seconds:g}\n"
    assert capsys.readouterr().err == expected


def failed(work):
    """The error that something raises, as text."""
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def with_rank_0(group):
    """What ranks have of rank 0's work: one that takes longer than they wait for each other, and one that fails."""
    begin = time.monotonic()
    made = group.from_first(lambda: (time.sleep(1.5 * group.timeout), "made")[1])
    return made, time.monotonic() - begin, failed(lambda: group.from_first(lambda: 1 / 0))


def test_ranks_wait_for_rank_0_however_long_it_works_and_stop_with_it():
    (made, _, error), (others_made, waited, others_error) = by_ranks(with_rank_0, 2, timeout=4.0)
    assert made == others_made == "made" and waited > 4.0
    assert error == "ZeroDivisionError: division by zero"
    assert others_error == "StoppedError: rank 1 stopped, for rank 0 did, which says why"


def test_that_rank_0_stopped_is_printed_by_rank_0_alone(capsys):
    assert run.fail(StoppedError("rank 1 stopped, for rank 0 did, which says why")) == 2
    assert capsys.readouterr().err == ""


def together(group):
    """What ranks have of work that fails on one of them, before or between messages; then of work that does not."""

    def work(failing):
        total = group.sum(torch.ones(1))
        if group.rank == failing:
            raise KeyError("here")
        return float(total), group.gather(group.rank)

    return [
        failed(lambda: group.together(lambda: 1 / group.rank)),
        failed(lambda: group.together(lambda: work(1))),
        failed(lambda: group.together(lambda: work(None))),
    ]


def test_what_fails_on_one_rank_fails_on_all_and_all_go_on():
    assert by_ranks(together, 2) == 2 * [
        [
            "TogetherError: rank 0: ZeroDivisionError: division by zero",
            "TogetherError: rank 1: KeyError: 'here'",
            (2.0, [0, 1]),
        ]
    ]


THREADS_LEFT = """
import os, torch
from pathlib import Path
from metarl_l2f.parallel.ranks import join
threads = lambda: {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
with join(60.0) as group:
    import torch._dynamo  # torch.func does so at its first use
    assert any("gloo" in name for name in threads()), threads()
assert not any("gloo" in name for name in threads()), threads()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted by Linux's /proc")
def test_no_thread_of_gloo_outlives_the_group():
    subprocess.run([sys.executable, "-c", THREADS_LEFT], check=True, env=os.environ | one_of(1, 0, free_port()))


def test_ranks_in_different_states_are_told_apart():
    Fake(0, 2, ["same"]).check_alike("same", "the state")
    with pytest.raises(RankError, match="the state of rank 0 differs from that of rank 1"):
        Fake(0, 2, ["other"]).check_alike("same", "the state")


# ---- the loop and the launchers ---------------------------------------------------------------------------------


class Counter:
    """An experiment that counts its iterations."""

    def __init__(self):
        self.count = 0

    def iterate(self, iteration):
        self.count = iteration
        return {"score": 1.0}

    def validate(self, iteration):
        return {"validation/score": 1.0}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Second(Group):
    """Rank 1 of two, as `train` sees it; rank 0 has a state, or got a signal."""

    rank, size = 1, 2

    def __init__(self, signum=0, answers=()):
        self.signum, self.answers = signum, list(answers)

    def largest(self, number):
        return max(number, self.signum)

    def gather(self, value):
        return [value, value]

    def from_first(self, make):
        return self.answers.pop(0)


def trained_by(group, folder, resume=False):
    experiment = Counter()
    arguments = {"validate_every": 1, "validation_key": "validation/score", "progress_key": "score"}
    outcome = train(experiment, folder, iterations=5, config={}, resume=resume, group=group, **arguments)
    return experiment, outcome


def test_another_rank_than_the_first_writes_nothing_and_takes_its_state_from_it(tmp_path):
    stored = {"iteration": 3, "ranking": [], "window": {}, "experiment": {"count": 3}}
    experiment, outcome = trained_by(Second(answers=[None, stored]), tmp_path / "run", resume=True)
    assert (outcome.start, outcome.iteration, experiment.count) == (3, 5, 5)
    assert not (tmp_path / "run").exists()


def test_a_signal_to_one_rank_stops_all_after_the_same_iteration(tmp_path):
    nothing = {"iteration": 0, "ranking": [], "window": {}}
    _, outcome = trained_by(Second(signal.SIGTERM, [None, nothing]), tmp_path)
    assert (outcome.iteration, outcome.interrupted) == (1, signal.SIGTERM)


def trained_with_failing_inspections(folder, group):
    """How far a run comes whose inspections fail on rank 1, between two messages; and what this rank says of it."""

    def inspect(line):
        group.sum(torch.ones(1))
        if group.rank == 1:
            raise OSError("no picture here")
        group.gather("seen")
        return Shown({}, {}, {})

    said, arguments = [], {"validate_every": 1, "validation_key": "validation/score", "progress_key": "score"}
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("metarl_l2f").addHandler(handler)
    outcome = train(Counter(), folder, iterations=2, config={}, resume=False, group=group, inspect=inspect, **arguments)
    return outcome.iteration, said


def test_an_inspection_that_fails_on_one_rank_is_given_up_by_all_and_training_goes_on(tmp_path):
    end = "failed, and the run goes on without it: rank 1: OSError: no picture here"
    expected = (2, [f"the inspection after iteration {number} {end}" for number in (1, 2)])
    assert by_ranks(partial(trained_with_failing_inspections, tmp_path), 2) == [expected, expected]


class Started(Group):
    """Alone, but started by torchrun."""

    restarts = 1


def test_a_group_that_is_started_again_continues_its_own_run_and_no_other(tmp_path):
    options = dataclasses.replace(Navigation(), log_dir=tmp_path, iterations=7)
    config = run.to_json(dataclasses.replace(options, iterations=5))
    (tmp_path / "config.json").write_text(run.json.dumps({"launcher": "navigation", "options": config}))
    again, folder = run.placed(options, Started(), "navigation", "l2f", 1)
    assert folder == tmp_path and again.resume == tmp_path  # iterations may differ
    by_hand, _ = run.placed(options, Group(), "navigation", "l2f", 1)
    other, _ = run.placed(dataclasses.replace(options, squared=True), Started(), "navigation", "l2f", 1)
    assert by_hand.resume is None and other.resume is None


def test_only_rank_0_reads_the_folder_of_a_resumed_run(tmp_path):
    run_options = dataclasses.replace(Navigation(), squared=True, rank_timeout=5.0)
    folder = tmp_path / "on rank 0's host alone"
    options = run.parse(Navigation(), ["--resume", str(folder)], Second(answers=[run.to_json(run_options)]))
    assert options.squared and options.log_dir == options.resume == folder
    assert options.rank_timeout == Navigation().rank_timeout  # The group waits as the command line says.


@pytest.mark.parametrize("build", [meta_rl, supervised, classification, latent])
def test_surplus_ranks_are_named_by_rank_0_alone(build, caplog):
    experiments = [build(Fake(rank, 9), torch.float32) for rank in range(2)]
    assert [re.sub(r"\d+", "n", record.getMessage())[:34] for record in caplog.records] == [
        "n of n ranks have nothing to do: t"
    ]
    tasks, shards = (7, 4) if build is meta_rl else (7, 7) if build is supervised else (5, 5)
    assert f"{9 - shards} of 9 ranks" in caplog.text and f"the {tasks} tasks of a meta-batch" in caplog.text
    for experiment in experiments:
        getattr(experiment, "close", lambda: None)()


@pytest.mark.parametrize(("given", "seconds"), [("--rank-timeout=7", 7.0), ("--rank_timeout 7", 7.0), ("", 300.0)])
def test_ranks_meet_with_the_time_out_of_the_command_line(monkeypatch, given, seconds):
    met = []
    monkeypatch.setattr(run, "join", lambda timeout: met.append(timeout) or Group())
    with run.started(Navigation(), given.split()) as (options, _):
        assert met == [options.rank_timeout] == [seconds]


def test_a_group_that_may_be_started_again_needs_a_folder_with_a_name(monkeypatch):
    monkeypatch.setattr(run, "join", lambda timeout: Started())
    with pytest.raises(ValueError, match="name its folder with --log-dir"), run.started(Navigation(), []):
        pass


@pytest.mark.parametrize("program", [embeddings, evaluate, figures, play, viewer])
def test_what_ranks_cannot_share_is_refused_once(program, monkeypatch, capsys):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert program.main(["a-run"]) == 2
    expected = "error: only training is shared: each of 2 ranks would do all of this; start it without torchrun\n"
    assert capsys.readouterr().err == expected


def test_each_rank_takes_its_part_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert run.own_cores() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert run.own_cores() == 2


def test_a_process_that_is_confined_to_some_cores_has_as_many_threads():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from metarl_l2f.launchers.run import "
    code += "own_cores; print(own_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"
