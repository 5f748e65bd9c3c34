"""A run on one page: report.html, a single file with its pictures inside, made from the run's folder alone."""

import base64
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..methods import label_of
from ..training import metrics
from ..training.checkpoint import CheckpointError
from ..training.checkpoint import load as load_checkpoint
from ..training.config import command, flat
from ..training.files import write_atomically
from ..training.run_folder import CHECKPOINT_FILE, CONFIG_FILE
from .evaluation import Evaluation, load_evaluation

REPORT_FILE = "report.html"
EVALUATION_FILE = "evaluation.json"
TEMPLATE = "page.html"

CAPTIONS = {
    "conflict": "How much tasks disagree about the initialisation, by layer; dashed: as many unrelated gradients.",
    "gamma": "How much of each tensor is kept, for each task.",
    "learning_curve": "Learning curve: the score before adaptation and after each inner step, over training.",
}
"""Captions of the pictures that every run has; those of a problem come with the call."""

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # Names, options and paths may hold anything.
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(folder: Path, question: str, captions: Mapping[str, str] | None = None) -> Path:
    """Write report.html into a run's folder, from config.json, metrics.jsonl, evaluation.json and its pictures.

    Args:
        folder: the folder of a run that has begun; parts whose files are not there yet are left out.
        question: what the run tries to find out, in a sentence or two.
        captions: captions of the problem's own pictures, by the names of their files; others are named after theirs.
    Returns:
        The path of report.html.
    Raises:
        OSError: the report could not be written.
    """
    config = json.loads((folder / CONFIG_FILE).read_text())
    settings, log = config["options"]["settings"], metrics.read(folder)
    evaluation = load_evaluation(folder / EVALUATION_FILE) if (folder / EVALUATION_FILE).exists() else None
    page = TEMPLATES.get_template(TEMPLATE).render(
        title=f"{_method(settings)} on {config['launcher'].replace('_', ' ')}, seed {settings['seed']}",
        question=question,
        evaluation=evaluation,
        protocol=_protocol(evaluation) if evaluation else None,
        pictures=[_picture(path, {**CAPTIONS, **(captions or {})}) for path in sorted(folder.glob("*.png"))],
        facts=_facts(log, config, _done(folder, log)),
        commands="\n".join(_commands(log, config)),
        origin=_origin(config),
        options=list(flat(config["options"]).items()),
    )
    write_atomically(folder / REPORT_FILE, page.encode())
    return folder / REPORT_FILE


def _method(settings: Mapping[str, Any]) -> str:
    return label_of(str(settings.get("method", "prototypical network")))


def _protocol(evaluation: Evaluation) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_said(value)}" for name, value in evaluation.protocol.items())


def _picture(path: Path, captions: Mapping[str, str]) -> dict[str, str]:
    caption = captions.get(path.stem, path.stem.replace("_", " "))
    return {"data": base64.b64encode(path.read_bytes()).decode(), "caption": caption}


def _commands(log: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[str]:
    """What repeats the run: the command that began it and, if it was given more iterations later, one that goes on."""
    done, planned = (log[-1]["iteration"] if log else 0), config["options"]["iterations"]
    resumed = command(config["launcher"], "--resume", "FOLDER", "--iterations", done)
    return [config["command"], *([resumed] if done > planned else [])]


def _origin(config: Mapping[str, Any]) -> str:
    """Which code made the run: the version, and the commit where it ran from a working copy."""
    version = f"metarl_l2f {config.get('versions', {}).get('metarl_l2f', 'of an unknown version')}"
    return version + (f", at commit {config['git_commit']}" if config["git_commit"] else "")


def _done(folder: Path, log: Sequence[Mapping[str, Any]]) -> int:
    """The iterations that a run's checkpoint counts; those of its metrics where it has none that can be read."""
    with contextlib.suppress(CheckpointError):
        return load_checkpoint(folder / CHECKPOINT_FILE)["iteration"]
    return log[-1]["iteration"] if log else 0


def _facts(log: Sequence[Mapping[str, Any]], config: Mapping[str, Any], done: int) -> list[list[object]]:
    facts: list[list[object]] = [["meta-iterations", f"{done:,}"]]
    if lacking := metrics.gap(log, done, config["options"].get("log_every", 1)):
        facts.append(["missing", f"{lacking}; what follows leaves them out"])
    if log and "env_steps" in log[-1]:
        facts.append(["environment steps", f"{log[-1]['env_steps']:,}"])
    if log:
        covered = [line["iteration"] for line in log]
        spans = [last - first for first, last in zip([0, *covered], covered, strict=False)]
        seconds = sum(span * (line.get("time/iteration") or 0.0) for span, line in zip(spans, log, strict=True))
        facts.append(["time of training", _duration(seconds)])
    return [*facts, *([name, version] for name, version in config.get("versions", {}).items())]


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
