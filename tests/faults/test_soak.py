"""Nothing grows: the short form of benchmarks/soak.py."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def soak_program():
    spec = importlib.util.spec_from_file_location("soak", ROOT / "benchmarks" / "soak.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


soak = soak_program()
TINY = ["--tasks-per-batch", "2", "--episodes-per-task", "2", "--horizon", "5", "--hidden-sizes", "4"]


@pytest.mark.parametrize("kind", soak.kinds())
def test_closed_environments_leave_nothing_behind(kind, amount, record_property):
    cycles = amount(2, 20)
    grown = soak.leaked(soak.kinds()[kind], cycles)
    assert (grown.threads, grown.files, grown.processes, grown.shared) == (0, 0, 0, 0)
    record_property(f"soak/cycles of {kind}, nothing left", cycles)


def test_a_leak_would_be_noticed():
    opened = []

    class Leaky:
        action_space = soak.gymnasium.spaces.Discrete(2)

        def reset(self, seed):
            opened.append(open("/dev/null"))  # noqa: SIM115

        def step(self, action):
            pass

        def close(self):
            pass

    assert soak.leaked(Leaky, 3).files == 3
    for file in opened:
        file.close()


def test_growth_is_that_of_the_last_tenth_over_the_first_one_after_the_warm_up():
    # 100 samples: the first 20 do not count; then 100 for 8 of them, later 103.
    memory = [500.0] * 20 + [100.0] * 8 + [101.0] * 64 + [103.0] * 8
    assert soak.growth(memory) == pytest.approx(0.03)


def test_a_run_does_not_grow(amount, record_property):
    iterations = amount(30, 300)
    looks = ["--inspect-every", str(iterations // 6)]  # The first falls into the warm-up.
    seen = soak.watched("navigation.py", iterations, [*TINY, *looks])
    growth = soak.growth([what.memory for what in seen])
    assert growth < 0.02
    assert len({(what.processes, what.threads) for what in seen}) == 1
    record_property(f"soak/growth of memory over {iterations} tiny iterations", f"{growth:.3%}")
