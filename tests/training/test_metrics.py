"""The metrics log: one line an iteration, the same in TensorBoard, no line twice after a resume."""

import builtins
import json
import math
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # type: ignore[import-untyped]

from metarl_l2f.training import metrics
from metarl_l2f.training.metrics import MetricsLog, Shown


def log_iterations(directory, iterations, resume_from=None, offset=0.0):
    with MetricsLog(directory, resume_from) as log:
        for iteration in iterations:
            log.write(iteration, {"return/step_0": offset + iteration, "kl": 0.5})


def board(directory, tag):
    """What TensorBoard shows: (step, value) of one tag."""
    return [(event.step, event.value) for event in EventAccumulator(str(directory)).Reload().Scalars(tag)]


def test_a_line_holds_the_iteration_and_the_metrics_in_their_order(tmp_path):
    with MetricsLog(tmp_path, None) as log:
        log.write(1, {"return/step_1": -20.5, "env_steps": 400, "kl": 0.1})
        # On disk at once, not when the log is closed.
        written = (tmp_path / "metrics.jsonl").read_text()
    assert written == '{"iteration": 1, "return/step_1": -20.5, "env_steps": 400, "kl": 0.1}\n'


def test_what_is_written_is_read_back_exactly(tmp_path):
    with MetricsLog(tmp_path, None) as log:
        log.write(1, {"a": 0.1, "b": 1e-300})
        log.write(2, {"a": 1 / 3})
    expected = [{"iteration": 1, "a": 0.1, "b": 1e-300}, {"iteration": 2, "a": 1 / 3}]
    assert metrics.read(tmp_path / "metrics.jsonl") == metrics.read(tmp_path) == expected


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path):
    with MetricsLog(tmp_path, None) as log:
        log.write(1, {"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor(2.0), "d": True})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 1, "a": 0.5, "b": 3, "c": 2.0, "d": 1}\n'


def test_numbers_that_are_not_finite_are_null(tmp_path):
    with MetricsLog(tmp_path, None) as log:
        log.write(1, {"nan": math.nan, "inf": math.inf, "one": 1.0})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    # Strict JSON, which knows neither NaN nor Infinity.
    assert json.loads(line, parse_constant=pytest.fail) == {"iteration": 1, "nan": None, "inf": None, "one": 1.0}


@pytest.mark.parametrize("value", [None, "high", [1.0], torch.zeros(2)])
def test_a_metric_that_is_not_a_number_is_named_and_nothing_is_written(tmp_path, value):
    with MetricsLog(tmp_path, None) as log, pytest.raises(TypeError, match="the metric 'kl' must be one number, got"):
        log.write(1, {"return": 1.0, "kl": value})
    assert metrics.read(tmp_path) == []


def test_tensorboard_shows_the_same_numbers(tmp_path):
    log_iterations(tmp_path, [1, 2, 3])
    assert board(tmp_path, "return/step_0") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert board(tmp_path, "kl") == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_tensorboard_shows_an_iteration_at_once(tmp_path):
    with MetricsLog(tmp_path, None) as log:
        for iteration in (1, 2, 3):  # the first is always shown
            log.write(iteration, {"kl": 0.5})
            assert len(board(tmp_path, "kl")) == iteration


def test_tensorboard_shows_histograms_and_pictures(tmp_path):
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [0, 1])
    with MetricsLog(tmp_path, None) as log:
        log.show(7, Shown({}, {"gamma/a": np.array([0.1, 0.9])}, {"paths": figure}))
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    (histogram,), (picture,) = events.Histograms("gamma/a"), events.Images("paths")
    assert (histogram.step, histogram.histogram_value.min, histogram.histogram_value.max) == (7, 0.1, 0.9)
    assert picture.step == 7 and picture.encoded_image_string.startswith(b"\x89PNG")


def test_a_new_log_gathers_tags_into_charts_and_a_resumed_one_does_not_again(tmp_path):
    log_iterations(tmp_path, [1])
    log_iterations(tmp_path, [2], resume_from=1)
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts["conflict by layer, radians"] == ["^conflict/"]


def test_the_charts_gather_the_tags_of_runs():
    tags = [
        "return/step_0",
        "validation/mse/step_1",
        "gamma/layers.0.weight/mean",
        "conflict/network",
        "landscape/smoothness",
    ]
    patterns = [pattern for charts in metrics.BOARD.values() for _, found in charts.values() for pattern in found]
    assert all(any(re.search(pattern, tag) for pattern in patterns) for tag in tags)


def test_a_resumed_log_drops_what_comes_after_the_checkpoint(tmp_path):
    log_iterations(tmp_path, [1, 2, 3, 4])
    # TensorBoard orders a folder's files by the second in their names, and both of these are of the same second.
    (events,) = tmp_path.glob("events.out.*")
    events.rename(tmp_path / "events.out.tfevents.0000000001.earlier")
    log_iterations(tmp_path, [3, 4, 5], resume_from=2, offset=10.0)
    assert [(line["iteration"], line["return/step_0"]) for line in metrics.read(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 13.0),
        (4, 14.0),
        (5, 15.0),
    ]
    assert board(tmp_path, "return/step_0") == [(1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0), (5, 15.0)]


def test_lines_that_stay_keep_their_bytes(tmp_path):
    log_iterations(tmp_path, [1, 2, 3])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    log_iterations(tmp_path, [], resume_from=3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_ignored_and_replaced(tmp_path, cut):
    log_iterations(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    # Without its last byte, the end of line, the third line is still whole.
    assert len(metrics.read(path)) == (3 if cut == 1 else 2)
    log_iterations(tmp_path, [3], resume_from=2)
    assert path.read_bytes() == whole


def test_a_last_line_of_zeros_as_after_a_power_cut_is_ignored(tmp_path):
    log_iterations(tmp_path, [1])
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(bytes(30))
    assert len(metrics.read(tmp_path)) == 1


@pytest.mark.parametrize("line", ['{"iteration": 1, "re', "3", '{"kl": 1}', "\xff"])
def test_damage_before_the_last_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"iteration": 1}}\n{line}\n{{"iteration": 3}}\n', encoding="latin-1")
    with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl is damaged .* delete that line"):
        metrics.read(path)
    with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl is damaged"):
        MetricsLog(tmp_path, resume_from=3)


def test_a_new_log_does_not_continue_an_old_one(tmp_path):
    log_iterations(tmp_path, [1])
    with pytest.raises(FileExistsError, match=r"metrics\.jsonl"):
        MetricsLog(tmp_path, None)
    assert len(metrics.read(tmp_path)) == 1


def open_on_full_disk(_, mode):
    return builtins.open("/dev/full", mode)  # a device that fails as a full disk does


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch):
    log_iterations(tmp_path, [1])
    with MetricsLog(tmp_path, resume_from=1) as log:
        monkeypatch.setattr(metrics, "open", open_on_full_disk, raising=False)
        with pytest.raises(OSError, match=r"No space left on device .*can be resumed.*: '.*metrics.jsonl'"):
            log.write(2, {"kl": 0.5})
    assert len(metrics.read(tmp_path)) == 1
