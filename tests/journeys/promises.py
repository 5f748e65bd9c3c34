"""What commands promise to leave behind, looked at: files are there, and they open."""

import json
import math
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

from metarl_l2f.training import checkpoint, metrics

HEADINGS = ("What came out", "Pictures", "What it took", "Do it again", "Configuration")
"""Of report.html."""


def holds_a_run(folder: Path) -> None:
    """A folder holds a finished run: metrics, checkpoints, pictures, an evaluation and the report."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["launcher"] and config["options"] and config["command"]
    lines = metrics.read(folder)
    done = checkpoint.load(folder / "checkpoint.pt")["iteration"]
    assert lines[-1]["iteration"] == done >= 1
    assert 1 <= checkpoint.load(folder / "best.pt")["iteration"] <= done
    assert list(folder.glob("events.out.tfevents.*")), "nothing for TensorBoard"
    is_picture(folder / "learning_curve.png")
    holds_an_evaluation(folder / "evaluation.json")
    is_report(folder / "report.html")


def holds_an_evaluation(path: Path) -> None:
    """An evaluation.json has a finite mean for every number of steps, and its interval."""
    found = json.loads(path.read_text("utf-8"))
    assert found["mean"] and all(map(math.isfinite, found["mean"])), path
    assert found["protocol"]


def is_report(path: Path) -> None:
    """A report.html has all its parts, and its pictures inside."""
    page = path.read_text("utf-8")
    for heading in HEADINGS:
        assert f"<h2>{heading}</h2>" in page, heading
    assert "data:image/png;base64," in page
    assert "Not evaluated yet" not in page
    assert re.search(r"<pre>.*\bpython\b", page), "the report says not how to do it again"


def is_picture(path: Path) -> None:
    """A picture decodes, and is not of one colour."""
    if path.suffix == ".pdf":
        assert path.read_bytes().startswith(b"%PDF") and b"%%EOF" in path.read_bytes()[-32:]
        return
    with Image.open(path) as picture:
        picture.load()
        assert len(picture.convert("RGB").getcolors(2**24) or [0, 0]) > 1, f"{path} is empty"


def is_film(path: Path) -> None:
    """A film has frames, and more than one."""
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert frames > 1 and seconds > 0


def names_what_it_wrote(out: str, folder: Path) -> list[Path]:
    """The last line of a training launcher: `wrote` and files, each of which is there."""
    last = out.splitlines()[-1]
    assert last.startswith("wrote "), out
    files = [folder / name for name in last.removeprefix("wrote ").split(", ")]
    assert files and all(file.is_file() for file in files), last
    return files


def run_of(out: str, folder: Path) -> Path:
    """The folder that a launcher said it writes to."""
    (name,) = re.findall(r"; writing to (.+)$", out, re.MULTILINE)
    return folder / name


def ended_well(run: subprocess.CompletedProcess[str]) -> None:
    """A program ended with status 0, and neither a traceback nor a warning on the way."""
    said = f"{run.args} ended with status {run.returncode}\n{run.stdout[-3000:]}\n{run.stderr[-6000:]}"
    assert run.returncode == 0, said
    assert "Traceback" not in run.stderr and "Warning" not in run.stderr, said
