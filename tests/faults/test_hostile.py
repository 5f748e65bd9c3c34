"""Files that would run code when read the usual way are read by every reader of ours, and nothing runs."""

import ast
import builtins
import contextlib
import io
import json
import operator
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from metarl_l2f.launchers import evaluate, figures, navigation, play, viewer
from metarl_l2f.reports.evaluation import load_evaluation
from metarl_l2f.runs.load import read_config, read_state
from metarl_l2f.supervised.data.images import load_images
from metarl_l2f.supervised.data.pickles import load_arrays
from metarl_l2f.supervised.leo.embeddings import load_embeddings
from metarl_l2f.training import checkpoint, metrics
from metarl_l2f.training.run_folder import RunFolder

from .runs import TINY

ROOT = Path(__file__).parents[2]


class Call:
    """Unpickles as the result of a call."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def calls(canary):
    """Calls each of which would leave the canary behind."""
    script = canary.with_name("script.py")
    script.write_text(f"import os; os.mkdir({str(canary)!r})\n")
    return {
        "mkdir": Call(os.mkdir, str(canary)),
        "system": Call(os.system, f"touch {canary}"),
        "popen": Call(subprocess.check_call, ["touch", str(canary)]),
        "exec": Call(exec, f"import os; os.mkdir({str(canary)!r})"),
        "eval": Call(eval, f"__import__('os').mkdir({str(canary)!r})"),
        "touch": Call(Path.touch, canary),
        "method": Call(operator.methodcaller("mkdir"), canary),
        "script": Call(runpy.run_path, str(script)),
        "torch.save": Call(torch.save, 1, str(canary)),
        "numpy.save": Call(np.save, f"{canary}", 1),
        "import": Call(builtins.__import__, "antigravity"),
    }


def archive(**members):
    """A zip archive in memory."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/"), data)
    return content.getvalue()


def forms(call):
    """A hostile call in every form of file that somebody might hand over."""
    torch_file, old_torch_file, entry, array = (io.BytesIO() for _ in range(4))
    torch.save({"state": call}, torch_file)
    torch.save(call, old_torch_file, _use_new_zipfile_serialization=False)
    torch.save({"format": 1, "sha256": "", "state": {"iteration": 1, "experiment": call}}, entry)
    np.save(array, np.array([call, None], object), allow_pickle=True)
    pickled = {f"pickle {protocol}": pickle.dumps({"data": call}, protocol) for protocol in (0, 2, 4, 5)}
    return pickled | {
        "torch": torch_file.getvalue(),
        "old torch": old_torch_file.getvalue(),
        "checkpoint": entry.getvalue(),
        "numpy": array.getvalue(),
        "numpy archive": archive(**{"data.npy": array.getvalue(), "labels.npy": array.getvalue()}),
        "torch script": archive(x__data__pkl=pickle.dumps(call), x__version="3", x__code__x="import os"),
    }


def readers(folder, content):
    """Every reader of files that the package has, given this content under the name it looks for."""

    def put(*names):
        for name in names:
            (folder / name).write_bytes(content)
        return folder

    def images(*names):
        def read():
            load_images(put(*names))

        return read

    splits = ("train", "val", "test")
    return {
        "a checkpoint": lambda: checkpoint.load(put("checkpoint.pt") / "checkpoint.pt"),
        "the newest checkpoint": lambda: RunFolder(put("checkpoint.pt", "previous.pt")).newest(),
        "a run's checkpoint": lambda: read_state(put("best.pt") / "best.pt", {"environment": {}}),
        "a pickle": lambda: load_arrays(put("arrays.pkl") / "arrays.pkl"),
        "embeddings": lambda: load_embeddings(put(*(f"{split}_embeddings.pkl" for split in splits))),
        "CIFAR-FS": images(*(f"CIFAR_FS_{split}.pickle" for split in splits)),
        "FC100": images(*(f"FC100_{split}.pickle" for split in splits)),
        "FC100, archives": images(*(f"FC100_{split}.npz" for split in splits)),
        "miniImageNet": images(*(f"mini-imagenet-cache-{split}.pkl" for split in splits)),
        "tieredImageNet": images(
            *(f"{split}_{part}" for split in splits for part in ("images.npz", "labels.pkl", "images_png.pkl"))
        ),
        "metrics": lambda: metrics.read(put("metrics.jsonl")),
        "a configuration": lambda: read_config(put("config.json")),
        "an evaluation": lambda: load_evaluation(put("evaluation.json") / "evaluation.json"),
    }


def test_nothing_in_a_hostile_file_runs(tmp_path, amount, record_property):
    canary = tmp_path / "canary"
    hostile = calls(canary)
    chosen = list(hostile)[: amount(3, len(hostile))]
    tried = 0
    for name in chosen:
        for form, content in forms(hostile[name]).items():
            for reader in readers(tmp_path, b""):
                folder = tmp_path / f"{name} {form} {reader}"
                folder.mkdir()
                # Not all is an error: old torch files begin with a pickle of a number, and that is read.
                with contextlib.suppress(ValueError):
                    readers(folder, content)[reader]()
                assert not canary.exists(), f"{reader} ran {name} in {form}"
                tried += 1
    record_property("hostile/files read", tried)
    record_property("hostile/files that ran code", 0)


@pytest.mark.parametrize("name", ["mkdir", "system", "popen", "exec", "eval", "touch", "method", "script"])
def test_the_canary_would_notice(tmp_path, name):
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(calls(canary)[name]))
    assert canary.exists()


UNSAFE = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads"),
    *("torch.load", "torch.jit.load", "numpy.load", "np.load", "marshal.loads", "shelve.open"),
    *("eval", "exec", "yaml.load", "joblib.load"),
}
"""Calls and bases that may run what they read."""


def unsafe_in(path):
    """Where a file uses one of them, but for those that are told not to: torch's weights_only, NumPy's allow_pickle."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
        keywords = {word.arg: word.value for word in getattr(node, "keywords", [])}
        told = {name: getattr(value, "value", None) for name, value in keywords.items()}
        if told.get("weights_only") is True or told.get("allow_pickle") is False:
            continue
        found += [f"{path.name}: {ast.unparse(name)}" for name in names if ast.unparse(name) in UNSAFE]
    return found


def test_no_other_reader_could_run_code():
    folders = ("metarl_l2f", "envs", "launchers", "benchmarks", "studies")
    found = [use for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) for use in unsafe_in(path)]
    # The reader of pickles that admits arrays alone, and both ends of a worker's own pipe.
    assert sorted(set(found)) == [
        "copies.py: cloudpickle.loads",
        "pickles.py: pickle.Unpickler",
        "workers.py: cloudpickle.loads",
    ]


# --- A run's configuration ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run of 2D navigation."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = ["--iterations", "1", "--evaluation-tasks", "2", "--log-dir", str(folder)]
    assert navigation.main([*TINY, *arguments]) == 0
    return folder


def with_environment(trained, folder, change):
    """A copy of the run whose configuration says something else of its environment, or of its launcher."""
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


CHANGES = {
    "a module": lambda config: config["environment"].update(id="hostile_canary:metarl_l2f/Navigation2D-v0"),
    "another environment": lambda config: config["environment"].update(id="CartPole-v1"),
    "an argument": lambda config: config["environment"]["arguments"].update(render_mode="rgb_array"),
    "an entry point": lambda config: config["environment"]["arguments"].update(entry_point="hostile_canary:make"),
    "another value": lambda config: config["environment"]["arguments"].update(goal_range=3.0),
    "no dictionary": lambda config: config.update(environment="hostile_canary:metarl_l2f/Navigation2D-v0"),
    "an unknown launcher": lambda config: config.update(launcher="hostile_canary"),
}
READERS = {
    "evaluate": lambda run: evaluate.main([run, "--tasks", "2", "--episodes", "2"]),
    "play": lambda run: play.main([run, "--out", f"{run}/film.gif"]),
    "viewer": lambda run: viewer.main([run, "--port", "0"]),
    "figures": lambda run: figures.main([run, "--out", f"{run}/pictures"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_configuration_makes_no_reader_import_or_build_what_its_launcher_does_not(
    change, trained, tmp_path, monkeypatch, capsys
):
    (tmp_path / "hostile_canary.py").write_text("import metarl_l2f\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = with_environment(trained, tmp_path / "run", CHANGES[change])
    for name, reader in READERS.items():
        assert reader(str(run)) == 2, name
        said = capsys.readouterr().err
        assert "error: " in said and ("put back what was there" in said or "hostile_canary" in said), said
        assert "hostile_canary" not in sys.modules


def test_options_of_other_versions_keep_no_run_from_being_evaluated(trained, tmp_path):
    def change(config):
        config["options"]["an_option_of_another_version"] = 1
        del config["options"]["rank_timeout"]

    run = with_environment(trained, tmp_path / "run", change)
    assert READERS["evaluate"](str(run)) == 0
