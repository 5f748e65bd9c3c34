"""A run on one page: report.html, a single file with its pictures inside, made from the run's folder alone."""

import base64
import contextlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

CAPTIONS = {
    "conflict": "How much tasks disagree about the initialisation, by layer; dashed: as many unrelated gradients.",
    "gamma": "How much of each tensor is kept, for each task.",
    "learning_curve": "Learning curve: the score before adaptation and after each inner step, over training.",
    "navigation_paths": "Paths on held-out tasks, before adaptation and after each inner step; stars are goals.",
    "speeds": "Forward speed on held-out tasks, before adaptation and after each inner step.",
    "sinusoid_fit": "Held-out curves: given points, and the fits before adaptation and after each inner step.",
    "episode": "One held-out episode: the images learned from, and how new images were classified.",
}

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; color: #333; max-width: 54rem; margin: 2rem auto; padding: 0 1rem }}
  h1 {{ font-size: 1.7rem; line-height: 1.2 }}
  h2 {{ font-size: 1.15rem; margin: 2.2rem 0 0.6rem; border-bottom: 1px solid #e8e8e8 }}
  table {{ border-collapse: collapse }}
  th, td {{ text-align: left; padding: 0.15rem 1.2rem 0.15rem 0; vertical-align: top }}
  th {{ font-weight: 600 }}
  td.number {{ text-align: right; font-variant-numeric: tabular-nums }}
  code, pre {{ font: 0.85rem/1.45 ui-monospace, monospace; background: #f5f5f5; border-radius: 3px }}
  code {{ padding: 0.1rem 0.25rem; overflow-wrap: anywhere }}
  pre {{ padding: 0.6rem 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere }}
  figure {{ margin: 1rem 0 1.8rem }}
  img {{ max-width: 100% }}
  figcaption {{ font-size: 0.9rem; color: #666 }}
  summary {{ cursor: pointer }}
</style>
<h1>{title}</h1>
<p>{question}</p>
<h2>What came out</h2>
{evaluation}
<h2>Pictures</h2>
{pictures}
<h2>What it took</h2>
{facts}
<h2>Do it again</h2>
<pre>{command}</pre>
<p>With {origin}. Where the run's folder is still there, choose another (<code>--log-dir</code>). The numbers of a
run depend on its options and its seed, not on the number of threads.</p>
<h2>Configuration</h2>
<details><summary>Every option as it was resolved</summary>
{options}
</details>
</html>
"""


def write_report(folder: Path, question: str) -> Path:
    """Write report.html into a run's folder, from config.json, metrics.jsonl, evaluation.json and its pictures.

    Args:
        folder: of a run that has begun; what is not there yet is left out.
        question: what the run tries to find out, a sentence or two.
    Returns:
        The file's path.
    """
    config = json.loads((folder / CONFIG_FILE).read_text())
    settings, log = config["options"]["settings"], metrics.read(folder)
    evaluated = folder / EVALUATION_FILE
    page = PAGE.format(
        title=html.escape(f"{_method(settings)} on {config['launcher'].replace('_', ' ')}, seed {settings['seed']}"),
        question=html.escape(question),
        evaluation=_scores(load_evaluation(evaluated)) if evaluated.exists() else "<p>Not evaluated yet.</p>",
        pictures="".join(map(_picture, sorted(folder.glob("*.png")))) or "<p>None yet.</p>",
        facts=_table(_facts(log, config, _done(folder, log))),
        command=html.escape("\n".join(_commands(log, config))),
        origin=html.escape(_origin(config)),
        options=_table(list(flat(config["options"]).items())),
    )
    write_atomically(folder / REPORT_FILE, page.encode())
    return folder / REPORT_FILE


def _method(settings: Mapping[str, Any]) -> str:
    return label_of(str(settings.get("method", "prototypical network")))


def _scores(evaluation: Evaluation) -> str:
    digits = evaluation.digits
    rows = [
        [step, f"{interval.mean:.{digits}f}", interval.margin(digits)]
        for step, interval in enumerate(evaluation.intervals())
    ]
    table = _table(rows, ["gradient steps", "mean", "95 % interval"])
    protocol = ", ".join(f"{name.replace('_', ' ')} {_said(value)}" for name, value in evaluation.protocol.items())
    return (
        f"<p>Mean {html.escape(evaluation.score)} over {len(evaluation.scores)} held-out tasks, and its 95 % interval "
        f"over tasks, which says nothing about other seeds.</p>{table}"
        f"<p>Protocol: {html.escape(protocol)}.</p>"
    )


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = html.escape(CAPTIONS.get(path.stem, path.stem.replace("_", " ")))
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


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


def _table(rows: Sequence[Sequence[object]], heading: Sequence[str] = ()) -> str:
    """Rows of text; under a heading, rows of numbers."""
    cell = '<td class="number">' if heading else "<td>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heading)
    body = "".join("<tr>" + "".join(f"{cell}{html.escape(str(value))}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"
