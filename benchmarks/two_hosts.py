"""Two hosts on one machine: two network namespaces run one job with torchrun, and the link between them is cut.

Needs root and iproute2. Three runs of the same tiny navigation job: whole; with the link cut for a while, after which
torchrun's next attempt goes on from the last checkpoint; and with the link cut for good, which both ranks must report.
"""

from metarl_l2f.program import as_program

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from metarl_l2f.training.checkpoint import load
from metarl_l2f.training.config import provenance
from metarl_l2f.training.metrics import read

HOSTS = ("metarl-a", "metarl-b")  # Namespaces.
LINKS = ("metarl-va", "metarl-vb")  # Both ends of the cable, one in each.
ADDRESSES = ("10.251.7.1", "10.251.7.2")
PORT = 29511
NAVIGATION = Path(__file__).parents[1] / "launchers" / "navigation.py"


@dataclass(frozen=True)
class Options:
    """Run a job on two hosts and cut the link between them, as root."""

    iterations: int = 12
    """Meta-iterations of the job."""
    cut_after: int = 4
    """Lines of metrics after which the link is cut."""
    cut_seconds: float = 20.0
    """Seconds for which the link stays cut, where it comes back."""
    rank_timeout: float = 10.0
    """Seconds that a rank waits for the other."""
    wait: float = 300.0
    """Seconds to wait for anything before giving up."""
    out: Path | None = None
    """File to write the outcome to, json; by default nothing is written."""


def ip(*arguments: str) -> None:
    """Call iproute2's ip."""
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """Two namespaces, joined by a cable, while this lasts."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", LINKS[0], "netns", HOSTS[0], "type", "veth", "peer", "name", LINKS[1], "netns", HOSTS[1])
        for host, link, address in zip(HOSTS, LINKS, ADDRESSES, strict=True):
            ip("-n", host, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", host, "link", "set", link, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], stderr=subprocess.DEVNULL)


def link(state: str) -> None:
    """Plug the cable in (`up`), or pull it (`down`)."""
    ip("-n", HOSTS[0], "link", "set", LINKS[0], state)


def start(node: int, folder: Path, options: Options, restarts: int) -> subprocess.Popen:
    """torchrun on one of the hosts, with one rank; its output goes to a file beside the run."""
    command = ["ip", "netns", "exec", HOSTS[node], sys.executable, "-m", "torch.distributed.run"]
    command += ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", str(restarts), "--rdzv-id", folder.name]
    # A host's name says nothing of its address here, so each is told whether it is the one to meet at.
    meeting = f"is_host={int(node == 0)},join_timeout=120,read_timeout=30"
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}"]
    command += ["--rdzv-conf", meeting, "--local-addr", ADDRESSES[node]]
    command += [str(NAVIGATION), "--log-dir", str(folder / "run"), "--iterations", str(options.iterations)]
    command += ["--tasks-per-batch", "4", "--tasks-per-shard", "1", "--episodes-per-task", "4", "--horizon", "20"]
    command += ["--threads", "1", "--inspect-every", "0", "--evaluation-tasks", "0", "--validate-every", "5"]
    command += ["--rank-timeout", str(options.rank_timeout)]
    # Else a group that starts again may meet under the addresses of the one that broke, which nobody listens to.
    fresh = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment = os.environ | fresh | {"GLOO_SOCKET_IFNAME": LINKS[node], "OMP_NUM_THREADS": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"node{node}.log", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def lines(folder: Path) -> int:
    """Meta-iterations that the run has logged."""
    return len(read(folder / "run")) if (folder / "run" / "metrics.jsonl").exists() else 0


def ended(node: subprocess.Popen) -> int:
    """The exit status of a torchrun, which may have to be ended: it waits long for a host that it has lost."""
    node.terminate()
    try:
        return node.wait(30)
    except subprocess.TimeoutExpired:
        node.kill()
        return node.wait()


def complaints(folder: Path, node: int) -> list[str]:
    """Complaints of a host's rank about the others."""
    lines = (folder / f"node{node}.log").read_text().splitlines()
    return [line.partition("error: ")[2] for line in lines if "error: rank" in line]


def job(folder: Path, options: Options, restarts: int, cut: float | None) -> dict[str, object]:
    """Run one job, with the link cut for some seconds, for good (infinity), or never (None); returns its outcome."""
    link("up")
    nodes = [start(node, folder, options, restarts) for node in range(2)]
    begin, pulled = time.monotonic(), None
    try:
        while any(node.poll() is None for node in nodes):
            now = time.monotonic() - begin
            # torchrun itself goes on waiting for the other host for minutes; what the ranks said is known by then.
            if now > options.wait or (cut == float("inf") and all(complaints(folder, node) for node in range(2))):
                break
            if cut is not None and pulled is None and lines(folder) >= options.cut_after:
                link("down")
                pulled = now
                print(f"  {now:.0f} s: link cut after iteration {lines(folder)}", flush=True)
            if pulled is not None and cut is not None and now - pulled > cut:
                link("up")
                print(f"  {now:.0f} s: link back", flush=True)
                cut = None
            time.sleep(0.2)
    finally:
        codes = [ended(node) for node in nodes]
    said = [sentence for node in range(2) for sentence in complaints(folder, node)]
    return {"iterations": lines(folder), "exit codes": codes, "ranks said": said, "seconds": time.monotonic() - begin}


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same parameters, to the last bit."""
    ours, theirs = (load(folder / "run" / "checkpoint.pt")["experiment"]["learner"] for folder in (one, other))
    return all(torch.equal(ours[name], value) for name, value in theirs.items())


@as_program
def main() -> None:
    """Run the three jobs, and print what came of them."""
    options = tyro.cli(Options)
    if os.geteuid() != 0 or shutil.which("ip") is None:
        sys.exit("error: network namespaces need root and iproute2 (apt-get install iproute2)")
    outcome: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary, two_hosts():
        whole, back, gone = (Path(temporary) / name for name in ("whole", "back", "gone"))
        for folder, restarts, cut in ((whole, 0, None), (back, 3, options.cut_seconds), (gone, 0, float("inf"))):
            print({"whole": "unbroken", "back": "link cut, then back", "gone": "link cut for good"}[folder.name])
            outcome[folder.name] = found = job(folder, options, restarts, cut)
            for name, value in found.items():
                print(f"  {name}: {value}", flush=True)
            if found["iterations"] == 0 or os.environ.get("SHOW_LOGS"):
                print("".join((folder / f"node{node}.log").read_text() for node in range(2)))
        if (back / "run" / "checkpoint.pt").exists():
            outcome["same parameters"] = same(whole, back)
            print(f"interrupted and unbroken run end with the same parameters: {outcome['same parameters']}")
    if options.out is not None:
        options.out.write_text(json.dumps(outcome | provenance(), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
