"""The supervised programs, from the command line to the files they leave."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarl_l2f.launchers import embeddings, evaluate, figures, image_classification, leo, play, prototypes, sinusoid
from metarl_l2f.reports.fits import sinusoid_fit
from metarl_l2f.runs.command_line import parse
from metarl_l2f.runs.images import ImageData
from metarl_l2f.supervised.leo.embeddings import load_embeddings
from metarl_l2f.supervised.settings import SupervisedSettings
from metarl_l2f.training import metrics

TINY_SINUSOID = (
    "--iterations 3 --tasks-per-batch 2 --validation-tasks 2 --evaluation-tasks 3 --evaluation-repeats 2 --threads 1"
)
TINY_IMAGES = (
    "--iterations 2 --tasks-per-batch 2 --ways 3 --queries 2 --filters 4 --validation-tasks 2 --validate-every 1 "
    "--evaluation-tasks 3 --threads 1"
)


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory):
    """A data set in folders: three splits of four classes of six images, whose names differ by "-" and "_" alone."""
    root = tmp_path_factory.mktemp("data") / "tiny"
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("a-b", "a_b", "a-b_", "a_b-"):
            folder = root / split / f"{split} {name}"
            folder.mkdir(parents=True)
            pattern = random.integers(0, 200, (16, 16))
            for image in range(6):
                pixels = (pattern + random.integers(0, 50, (16, 16))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{image}.png")
    return root


@pytest.fixture(scope="module")
def prototypical(tmp_path_factory, folder_of_images):
    """A run of launchers/prototypes.py."""
    folder = tmp_path_factory.mktemp("runs") / "prototypes"
    flags = f"--data {folder_of_images} --iterations 2 --ways 4 --queries 2 --filters 4 --validation-ways 3"
    assert prototypes.main([*flags.split(), "--evaluation-tasks", "3", "--log-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, prototypical):
    """A folder of embeddings made by that run's network."""
    folder = tmp_path_factory.mktemp("embeddings")
    assert embeddings.main([str(prototypical), "--out", str(folder)]) == 0
    return folder


def trained_leo(files, folder, *flags):
    few = "--iterations 2 --ways 3 --queries 2 --tasks-per-batch 2 --validation-tasks 2 --evaluation-tasks 3"
    assert leo.main([*few.split(), "--embeddings", str(files), "--log-dir", str(folder), *flags]) == 0
    return folder


def scores_of(path):
    return np.array(json.loads(path.read_text())["scores"])


def test_a_sinusoid_run_is_evaluated_drawn_and_drawn_beside_another(tmp_path, capsys):
    maml, l2f = tmp_path / "maml", tmp_path / "l2f"
    assert sinusoid.main([*TINY_SINUSOID.split(), "--method", "maml", "--log-dir", str(maml)]) == 0
    assert (
        sinusoid.main([*TINY_SINUSOID.split(), "--disjoint", "both", "--beside", str(maml), "--log-dir", str(l2f)]) == 0
    )
    printed = capsys.readouterr().out
    assert "L2F on sinusoid, seed 1" in printed and "mse (mean over 6 held-out tasks" in printed
    content = json.loads((l2f / "evaluation.json").read_text())
    assert np.array(content["scores"]).shape == (6, 6)
    assert content["protocol"]["disjoint"] == "both"
    assert {"sinusoid_fit.png", "learning_curve.png"} <= {path.name for path in l2f.iterdir()}
    assert (l2f / "sinusoid_fit.png").stat().st_size > (maml / "sinusoid_fit.png").stat().st_size


def test_frequencies_and_ranges_follow_their_flags():
    for flags, frequency, apart in (
        ([], (0.8, 1.2), False),
        (["--no-vary-frequency"], (1.0, 1.0), False),
        (["--disjoint", "amplitude", "--no-vary-frequency"], (1.0, 1.0), True),
    ):
        families = parse(sinusoid.Sinusoid(), flags).problem().families
        assert {family.frequency for family in families.values()} == {frequency}
        assert families["train"] == families["val"]
        assert (families["train"].amplitude != families["test"].amplitude) == apart


def test_a_launcher_that_runs_as_a_program_reads_runs_of_its_own(tmp_path):
    # Its options are then those of __main__, and a run's those of the imported module.
    root = Path(__file__).parents[1]
    flags = [*TINY_SINUSOID.split(), "--beside", str(root / "tests" / "recorded" / "sinusoid")]
    program = [sys.executable, str(root / "launchers" / "sinusoid.py"), *flags, "--log-dir", str(tmp_path / "run")]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "sinusoid_fit.png").exists()


def test_a_run_to_be_drawn_beside_is_looked_for_before_training(tmp_path, capsys):
    flags = [*TINY_SINUSOID.split(), "--beside", str(tmp_path / "nothing"), "--log-dir", str(tmp_path / "run")]
    assert sinusoid.main(flags) == 2
    assert f"{tmp_path / 'nothing'} holds no run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_two_runs_of_one_method_are_both_drawn(tmp_path, monkeypatch):
    drawn = []

    def noted(tasks, fits, **how):
        drawn.append(list(fits))
        return sinusoid_fit(tasks, fits, **how)

    monkeypatch.setattr(sinusoid, "sinusoid_fit", noted)
    for name, beside in (("first", []), ("second", ["--beside", str(tmp_path / "first")])):
        assert sinusoid.main([*TINY_SINUSOID.split(), *beside, "--log-dir", str(tmp_path / name)]) == 0
    assert drawn[-1] == ["L2F", "first"]


def test_a_sinusoid_run_resumes_to_the_same_numbers(tmp_path):
    flags = TINY_SINUSOID.split()[2:]
    assert sinusoid.main(["--iterations", "4", *flags, "--log-dir", str(tmp_path / "whole")]) == 0
    assert sinusoid.main(["--iterations", "2", *flags, "--log-dir", str(tmp_path / "parts")]) == 0
    assert sinusoid.main(["--iterations", "4", "--resume", str(tmp_path / "parts")]) == 0
    whole, parts = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("whole", "parts"))
    assert whole["scores"] == parts["scores"]


def test_a_run_with_a_cosine_schedule_keeps_its_length(tmp_path, capsys):
    flags = [*TINY_SINUSOID.split(), "--schedule", "cosine", "--log-dir", str(tmp_path / "run")]
    assert sinusoid.main(flags) == 0
    assert sinusoid.main(["--resume", str(tmp_path / "run")]) == 0
    assert sinusoid.main(["--resume", str(tmp_path / "run"), "--iterations", "5"]) == 2
    assert "iterations cannot change from 3 to 5" in capsys.readouterr().err


def test_figures_draws_supervised_runs(tmp_path, folder_of_images):
    for method in ("l2f", "maml"):
        flags = [*TINY_SINUSOID.split(), "--inspect-every", "1", "--method", method]
        assert sinusoid.main([*flags, "--log-dir", str(tmp_path / method)]) == 0
    runs = [str(tmp_path / "l2f"), str(tmp_path / "maml")]
    assert figures.main([*runs, "--out", str(tmp_path / "curves"), "--tasks", "3"]) == 0
    assert {"sinusoid_fit.pdf", "landscape.png", "manual_attenuation.png"} <= {
        p.name for p in (tmp_path / "curves").iterdir()
    }
    images = ["--data", str(folder_of_images), *TINY_IMAGES.split(), "--log-dir", str(tmp_path / "images")]
    assert image_classification.main(images) == 0
    assert figures.main([images[-1], "--out", str(tmp_path / "letters"), "--tasks", "3", "--no-manual"]) == 0
    names = {path.name for path in (tmp_path / "letters").iterdir()}
    assert {"episode_l2f.png", "conflict.pdf"} <= names and "manual_attenuation.png" not in names


def test_evaluate_repeats_what_a_supervised_run_printed(tmp_path, capsys):
    assert sinusoid.main([*TINY_SINUSOID.split(), "--log-dir", str(tmp_path / "run")]) == 0
    at_end = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluate.main([str(tmp_path / "run"), "--out", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["scores"] == at_end["scores"]
    assert evaluate.main([str(tmp_path / "run"), "--tasks", "4", "--steps", "2", "--seed", "9"]) == 0
    assert np.array(json.loads((tmp_path / "run" / "evaluation.json").read_text())["scores"]).shape == (8, 3)


@pytest.mark.parametrize(
    "flags",
    [
        "--method maml --first-order",
        "--method maml --adapt head",
        "--method maml --learn-inner-lr --inner-lr-scope weight",
        "--scope weight --embedding raw --transform affine --task-chunk 2 --batching vmap",
        "--inner-steps 2 --learn-inner-lr --per-step-norm --multi-step-iterations 2 --first-order-iterations 1",
        "--inner-steps 2 --per-step-norm --statistics running",
        "--adapt head --conditioning none --schedule constant --pooling max",
        "--backbone resnet12 --filters 2",
    ],
)
def test_every_method_and_ablation_is_a_flag(tmp_path, folder_of_images, flags):
    run = tmp_path / "run"
    arguments = [*TINY_IMAGES.split(), "--data", str(folder_of_images), "--log-dir", str(run), *flags.split()]
    assert image_classification.main(arguments) == 0
    lines = metrics.read(run)
    assert lines[-1]["loss"] is not None
    assert {"episode.png", "learning_curve.png", "evaluation.json"} <= {path.name for path in run.iterdir()}


def test_what_is_adapted_and_attenuated_follows_the_flags(folder_of_images):
    def learner(**changes):
        default = image_classification.ImageClassification()
        images = dataclasses.replace(default.images, data=folder_of_images)
        shape = dataclasses.replace(default.shape, queries=2, ways=3)
        return dataclasses.replace(default, images=images, shape=shape, **changes).experiment().learner

    whole, head = learner(), learner(adapt="head")
    assert len(whole.rule.names) == 6 and head.rule.names == ["head.weight", "head.bias"]
    assert whole.attenuator.names == head.attenuator.names == whole.rule.names
    assert not any("norm" in name for name in whole.attenuator.names)
    cavia = SupervisedSettings.for_problem("image_classification", "cavia+l2f")
    context = learner(settings=cavia)
    assert context.rule.names == ["blocks.2.film.context"]
    assert set(context.attenuator.names) == {*whole.attenuator.names, "blocks.2.film.linear.weight"}
    with pytest.raises(ValueError, match=r"adapt='head' moves .*, but method 'cavia\+l2f' adapts the context"):
        learner(settings=cavia, adapt="head")


def test_mirrored_classes_are_learned_from_but_not_tested_on(folder_of_images):
    plain, mirrored = (ImageData(folder_of_images, mirror=mirror).load() for mirror in (False, True))
    assert {split: len(data.classes) for split, data in mirrored.items()} == {
        split: len(data.classes) * (2 if split == "train" else 1) for split, data in plain.items()
    }
    assert len(ImageData(mirror=True).load()["train"].classes) == 2 * len(ImageData().load()["train"].classes)


def test_a_run_finds_its_images_from_any_folder(tmp_path, folder_of_images, monkeypatch):
    monkeypatch.chdir(folder_of_images.parent)
    run = tmp_path / "run"
    flags = [*TINY_IMAGES.split(), "--data", folder_of_images.name, "--log-dir", str(run)]
    assert image_classification.main(flags) == 0
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([str(run), "--tasks", "2"]) == 0
    assert (
        json.loads((run / "evaluation.json").read_text())["protocol"]["problem"] == f"images: {folder_of_images.name}"
    )


def test_a_film_of_a_supervised_run_is_refused(tmp_path, capsys):
    assert sinusoid.main([*TINY_SINUSOID.split(), "--evaluation-tasks", "0", "--log-dir", str(tmp_path / "run")]) == 0
    assert play.main([str(tmp_path / "run")]) == 2
    assert "is a run of sinusoid.py; give one of reinforcement learning (ant, cheetah_dir, " in capsys.readouterr().err


def test_images_condition_on_the_prototypes_of_a_trained_network(tmp_path, folder_of_images, prototypical):
    flags = ["--conditioning", "prototype", "--prototypes", str(prototypical), "--data", str(folder_of_images)]
    assert image_classification.main([*TINY_IMAGES.split(), *flags, "--log-dir", str(tmp_path / "run")]) == 0


def test_the_official_protocol_averages_three_models_and_prints_both_intervals(tmp_path, folder_of_images, capsys):
    run = tmp_path / "run"
    flags = [*TINY_IMAGES.split()[2:], "--iterations", "4", "--data", str(folder_of_images), "--protocol", "official"]
    assert image_classification.main([*flags, "--log-dir", str(run)]) == 0
    printed = capsys.readouterr().out
    assert len(list(run.glob("best_*.pt"))) == 3
    accuracy = json.loads((run / "evaluation.json").read_text())["mean"][-1]
    deviation = (accuracy * (1 - accuracy)) ** 0.5
    assert f"three models: {100 * accuracy:.2f} ± {100 * deviation:.2f} %" in printed


def test_leo_learns_from_embeddings_made_here(tmp_path, embedded, capsys):
    made = load_embeddings(embedded)
    assert {split: data.vectors.shape for split, data in made.items()} == dict.fromkeys(
        ("train", "val", "test"), (24, 4)
    )
    for split, data in made.items():
        assert set(data.classes) == {f"{split} {name}" for name in ("a-b", "a_b", "a-b_", "a_b-")}
        assert data.counts.tolist() == [6] * 4
    run = trained_leo(embedded, tmp_path / "leo")
    assert "LEO (l2f)" in capsys.readouterr().out
    assert scores_of(run / "evaluation.json").shape == (3, 11)  # decoded, five latent steps, five of fine-tuning


def test_evaluate_repeats_what_leo_and_prototypical_runs_printed(tmp_path, embedded, prototypical, capsys):
    for run, columns in ((trained_leo(embedded, tmp_path / "leo"), 11), (prototypical, 1)):
        at_end, out = scores_of(run / "evaluation.json"), tmp_path / "again.json"
        assert at_end.shape == (3, columns)
        assert evaluate.main([str(run), "--out", str(out)]) == 0
        assert np.array_equal(scores_of(out), at_end)
        (run / "report.html").unlink()
        assert evaluate.main([str(run), "--tasks", "5"]) == 0
        five = scores_of(run / "evaluation.json")
        assert five.shape == (5, columns) and np.array_equal(five[:3], at_end)
        assert "over 5 held-out tasks" in (run / "report.html").read_text()
        capsys.readouterr()
        for flag in ("--steps", "--episodes", "--later-lr-factor"):
            assert evaluate.main([str(run), flag, "2"]) == 2
            assert f"for which {flag} mean nothing; drop them" in capsys.readouterr().err


def test_a_prototypical_network_tells_classes_that_differ_by_the_nearest_prototype(prototypical):
    # Patterns up to 200 apart with noise of 50: an embedding that hardly learned tells them by their brightness.
    assert scores_of(prototypical / "evaluation.json").mean() > 1 / 3
    assert json.loads((prototypical / "evaluation.json").read_text())["protocol"]["ways"] == 3


def test_two_leo_runs_are_compared_and_unlike_ones_refused(tmp_path, embedded, prototypical, capsys):
    ours, theirs = trained_leo(embedded, tmp_path / "l2f"), trained_leo(embedded, tmp_path / "leo", "--method", "leo")
    capsys.readouterr()
    assert evaluate.main(["--compare", str(ours), str(theirs), "--out", str(tmp_path / "both.json")]) == 0
    assert "A − B, paired" in capsys.readouterr().out
    expected = (scores_of(ours / "evaluation.json") - scores_of(theirs / "evaluation.json")).mean(0)
    assert json.loads((tmp_path / "both.json").read_text())["a_minus_b"] == pytest.approx(expected)
    shorter = trained_leo(embedded, tmp_path / "short", "--finetuning-steps", "2")
    for other, text in ((shorter, "as many steps, got 10 and 7"), (prototypical, "must share one protocol")):
        assert evaluate.main(["--compare", str(ours), str(other)]) == 2
        assert text in capsys.readouterr().err


def test_a_run_that_was_not_evaluated_is_evaluated_later(tmp_path, embedded, monkeypatch):
    curves = [*TINY_SINUSOID.split(), "--evaluation-tasks", "0", "--evaluation-repeats", "1"]
    assert sinusoid.main([*curves, "--log-dir", str(tmp_path / "curves")]) == 0
    monkeypatch.chdir(embedded.parent)
    run = trained_leo(embedded.name, tmp_path / "leo", "--evaluation-tasks", "0")
    monkeypatch.chdir(tmp_path)
    for folder, number in ((tmp_path / "curves", 100), (run, 600)):
        assert evaluate.main([str(folder)]) == 0
        assert len(scores_of(folder / "evaluation.json")) == number


@pytest.mark.parametrize("program", [leo, prototypes])
def test_models_whose_steps_are_their_own_have_no_option_for_steps(program, capsys):
    with pytest.raises(SystemExit):
        program.main(["--evaluation-steps", "2"])
    assert "--evaluation-steps" in capsys.readouterr().err


def test_a_prototypical_network_is_told_before_training_that_it_cannot_be_evaluated(tmp_path, folder_of_images, capsys):
    data = tmp_path / "data"
    shutil.copytree(folder_of_images, data)
    shutil.rmtree(data / "test" / "test a-b")
    shutil.rmtree(data / "test" / "test a_b")
    flags = f"--data {data} --iterations 2 --ways 4 --queries 2 --filters 4 --validation-ways 3 --log-dir".split()
    assert prototypes.main([*flags, str(tmp_path / "run")]) == 2
    assert "3-way episodes need 3 classes, but test of" in capsys.readouterr().err
    assert prototypes.main([*flags, str(tmp_path / "run"), "--evaluation-tasks", "0"]) == 0


@pytest.mark.parametrize(
    ("program", "flags", "text"),
    [
        (sinusoid, "--shots 0", "shots must be a whole number of points, 1 or more, got 0"),
        (image_classification, "--data /nowhere", "/nowhere"),
        (image_classification, "--channels 3", "channels need a data set of yours; name it with --data"),
        (image_classification, "--ways 500", "500-way episodes need 500 classes, but"),
        (image_classification, "--conditioning prototype", "embedding_size goes with conditioning='prototype'"),
        (image_classification, "--prototypes /nowhere", "/nowhere holds no run"),
        (leo, "", "name a folder of embeddings with --embeddings"),
        (leo, "--embeddings /nowhere", "/nowhere"),
        (leo, "--embeddings /nowhere --published cifar", "published must be one of miniImageNet with 1 shot"),
        (evaluate, "/nowhere", "/nowhere holds no run"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, capsys, program, flags, text):
    arguments = flags.split() if program is evaluate else [*flags.split(), "--log-dir", str(tmp_path / "run")]
    assert program.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and text in error and error.count("\n") == 1


def test_a_run_of_another_launcher_is_refused(tmp_path, prototypical, capsys):
    assert figures.main([str(prototypical), "--out", str(tmp_path / "pictures")]) == 2
    assert "is a run of prototypes.py, which these figures know nothing of" in capsys.readouterr().err
    assert sinusoid.main([*TINY_SINUSOID.split(), "--log-dir", str(tmp_path / "run")]) == 0
    assert embeddings.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    assert "holds a run of sinusoid.py; give one of prototypes.py" in capsys.readouterr().err
