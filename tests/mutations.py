"""Break the code on purpose, one line at a time, and see that a test fails: `make test-mutations`, some minutes.

Every mutation replaces one piece of text, which must stand in its file exactly once, in a copy of the package; the
tests of that file then run against the copy. One that no test notices is a test that is missing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
TESTS = {
    "core.py": ("test_core.py", "test_adaptation.py", "test_supervised.py"),
    "rl/trpo.py": ("test_trpo.py", "test_adaptation.py", "faults/test_trust_region.py"),
    "rl/episodes.py": ("test_episodes.py", "test_adaptation.py"),
}
"""Which tests are asked, in this order, until one fails."""


class Mutation(NamedTuple):
    """One change of one file of metarl_l2f/."""

    file: str
    old: str
    new: str


MUTATIONS = [
    Mutation("core.py", "forgotten[name] = factor * theta[name]", "forgotten[name] = factor + theta[name]"),
    Mutation("core.py", "theta[name] + factor.clamp_min", "theta[name] - factor.clamp_min"),
    Mutation("core.py", "forgotten[name] + delta[name]", "forgotten[name] - delta[name]"),
    Mutation("core.py", "params[name] - alpha[name] * g for", "params[name] + alpha[name] * g for"),
    Mutation("core.py", "params[name] - alpha[name] * g for", "params[name] - g for"),
    Mutation(
        "core.py",
        "_sum_like(g, owner).flatten() for g, owner in pairs]).detach()",
        "_sum_like(g, owner).flatten() for g, owner in pairs])",
    ),
    Mutation("core.py", "g.numel() // owner.numel()", "g.numel()"),
    Mutation("core.py", "if size == 1]", "if size > 1]"),
    Mutation("core.py", 'counts.sqrt() if scale == "standardised" else counts', "counts"),
    Mutation("core.py", "[g / size for g, size in", "[g for g, size in"),
    Mutation("core.py", "precision.eps * squares.amax()", "0 * squares.amax()"),
    Mutation("core.py", "output = output.sigmoid()", "output = output.tanh()"),
    Mutation("core.py", "gamma.logit() if squashed else gamma", "gamma"),
    Mutation("core.py", "self.inner.later_lr_factor * self.step_sizes[-1]", "self.step_sizes[-1]"),
    Mutation("core.py", "self.step_sizes[step] if step < trained", "self.step_sizes[0] if step < trained"),
    Mutation("core.py", "if self.inner.first_order else result", "if not self.inner.first_order else result"),
    Mutation("core.py", "at_init = known and number == 0", "at_init = known"),
    Mutation("core.py", "self.gradients(loss, path[-1])", "self.gradients(loss, path[0])"),
    Mutation("core.py", "used += sizes.numel()", "used += 1"),
    Mutation("core.py", "size if axis < kept else 1", "size if axis <= kept else 1"),
    Mutation("core.py", '"layer": layers[layer_of(name)]', '"layer": number'),
    Mutation("core.py", 'name.rpartition(".")[0]', 'name.partition(".")[0]'),
    Mutation("core.py", "min(entries, WIDEST_ATTENUATOR)", "entries"),
    Mutation("core.py", "gamma[self._owned_entries()[name]] = value", "gamma[:] = value"),
    Mutation("core.py", "{name: gradients[name] for name in self.adapted_names}, self", "gradients, self"),
    Mutation("core.py", "output = self.free.clone()", "output = self.free.detach()"),
    Mutation("core.py", "gamma, delta = output.chunk(2)", "delta, gamma = output.chunk(2)"),
    Mutation("core.py", "embedding = prototype", "embedding = torch.zeros_like(prototype)"),
    Mutation("core.py", "if step < trained else", "if step < trained - 1 else"),
    Mutation("core.py", "in enumerate(losses)", "in enumerate(losses[:-1])"),
    Mutation("core.py", "used + torch.arange(sizes.numel())", "torch.arange(sizes.numel())"),
    Mutation("rl/trpo.py", "in range(region.backtracks)", "in range(region.backtracks - 1)"),
    Mutation("rl/trpo.py", "math.isfinite(surrogate) and math.isfinite(kl) and surrogate", "surrogate"),
    Mutation("rl/trpo.py", "not (gradient.isfinite().all() and math.isfinite(surrogate_before))", "False"),
    Mutation("rl/trpo.py", "and math.isfinite(curvature) and curvature > 0", "and math.isfinite(curvature)"),
    Mutation("rl/trpo.py", "squared / (direction @ image)", "squared / (direction @ direction)"),
    Mutation("rl/trpo.py", "residual - length * image", "residual + length * image"),
    Mutation("rl/trpo.py", "residual + (following / squared) * direction", "residual"),
    Mutation("rl/trpo.py", "if squared < tolerance", "if squared > tolerance"),
    Mutation("rl/trpo.py", "for _ in range(iterations)", "for _ in range(iterations - 1)"),
    Mutation("rl/trpo.py", "full = -math.sqrt(", "full = math.sqrt("),
    Mutation("rl/trpo.py", "2 * region.max_kl / curvature", "region.max_kl / curvature"),
    Mutation("rl/trpo.py", "product(v) + region.damping * v", "product(v)"),
    Mutation("rl/trpo.py", "region.backtrack_ratio**tried", "region.backtrack_ratio ** (tried + 1)"),
    Mutation("rl/trpo.py", "surrogate < surrogate_before and kl", "kl"),
    Mutation("rl/trpo.py", "surrogate < surrogate_before and kl <= region.max_kl", "surrogate < surrogate_before"),
    Mutation("rl/trpo.py", "remainder.norm() / gradient.norm()", "remainder.norm()"),
    Mutation("rl/trpo.py", "if not gradient.any()", "if gradient.any()"),
    Mutation("rl/episodes.py", "rewards[..., t] + discount * later", "rewards[..., t] + later"),
    Mutation("rl/episodes.py", "in reversed(range(rewards.shape[-1]))", "in range(rewards.shape[-1])"),
    Mutation("rl/episodes.py", "range(rewards.shape[-1])", "range(rewards.shape[-1] - 1)"),
    Mutation("rl/episodes.py", "[values[..., 1:], torch.zeros_like(values[..., :1])]", "[values]"),
    Mutation("rl/episodes.py", "rewards + discount * following - values", "rewards + discount * following + values"),
    Mutation("rl/episodes.py", "rewards + discount * following - values", "rewards + following - values"),
    Mutation("rl/episodes.py", "rewards + discount * following - values", "rewards + discount * following"),
    Mutation("rl/episodes.py", "discount * gae_lambda)", "gae_lambda)"),
    Mutation("rl/episodes.py", "torch.zeros_like(values[..., :1])", "values[..., -1:]"),
    Mutation("rl/episodes.py", "keepdim=True) / count) * mask", "keepdim=True) / count)"),
    Mutation("rl/episodes.py", "keepdim=True) / count).sqrt()", "keepdim=True) / count)"),
    Mutation("rl/episodes.py", "centred / (deviation + 1e-8)", "centred"),
    Mutation("rl/episodes.py", "(values * mask).sum", "values.sum"),
    Mutation("rl/episodes.py", "mask / episodes.mask.sum((-2, -1), keepdim=True)", "mask / episodes.mask.shape[-1]"),
    Mutation("rl/episodes.py", "return self.rewards.sum(-1)", "return self.rewards.mean(-1)"),
    Mutation("rl/episodes.py", "int(self.mask.sum())", "self.mask.numel()"),
]


def copied(folder: Path) -> Path:
    """A copy of the package in a folder, complete with what setup.cfg takes from elsewhere."""
    package = folder / "metarl_l2f"
    shutil.copytree(ROOT / "metarl_l2f", package, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("envs", "launchers"):
        (package / part).symlink_to(ROOT / part)
    return package


def noticed(folder: Path, tests: tuple[str, ...]) -> str | None:
    """The first test that fails against the package in a folder, or None.

    The program, not `python -m pytest`, which would put the current folder, and so the unbroken package, first.
    """
    for test in tests:
        options = ["--quiet", "--exitfirst", "--no-header", "-p", "no:cacheprovider", "-k", "not compiled"]
        done = subprocess.run(
            [Path(sys.executable).with_name("pytest"), *options, str(ROOT / "tests" / test)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode == 1:
            failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
            return failed[0].removeprefix("FAILED ").partition(" - ")[0] if failed else test
        if done.returncode != 0:
            return f"{test} does not even start"
    return None


def main() -> int:
    """Try every mutation; 1 if the unbroken copy fails or any mutation survives."""
    survived = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = copied(folder)
        every = tuple(dict.fromkeys(test for tests in TESTS.values() for test in tests))
        if (failed := noticed(folder, every)) is not None:
            print(f"the unbroken code fails {failed}; mend that first", file=sys.stderr)
            return 1
        for mutation in (bar := tqdm(MUTATIONS, unit="mutation")):
            path = package / mutation.file
            whole = path.read_text("utf-8")
            if whole.count(mutation.old) != 1:
                print(
                    f"{mutation.file} holds {mutation.old!r} {whole.count(mutation.old)} times, not once",
                    file=sys.stderr,
                )
                return 1
            path.write_text(whole.replace(mutation.old, mutation.new), "utf-8")
            killer = noticed(folder, TESTS[mutation.file])
            path.write_text(whole, "utf-8")
            bar.write(f"{'SURVIVED' if killer is None else 'killed'}  {mutation.file}: {mutation.new}  {killer or ''}")
            survived += [mutation] if killer is None else []
    print(f"{len(MUTATIONS) - len(survived)} passed, {len(survived)} failed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
