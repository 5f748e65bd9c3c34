"""Checks of numbers: of settings before they are used, and of parameters after they were updated."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

IN_WORDS = {
    "(0, inf)": "be positive and finite",
    "[0, inf)": "be finite and not negative",
    "(-inf, inf)": "be finite",
}
"""How intervals are said that have no upper bound; others are quoted."""


def check_number(name: str, value: float, interval: str) -> None:
    """Refuse a number outside of an interval, as it is or rounded to float32, which parameters and losses are.

    Args:
        name: what errors call it.
        value: the number.
        interval: such as "(0, 1]": a square bracket includes the bound; "inf" stands for any finite number.
    Raises:
        ValueError: 0.99999999 is in (0, 1), for instance, but float32 makes 1 of it.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    rounded = torch.tensor(value, dtype=torch.float32).item()
    for number, note in ((value, ""), (rounded, f", of which float32 makes {rounded:g}")):
        above = number > low or (interval[0] == "[" and number == low)
        below = number < high or (interval[-1] == "]" and number == high)
        if not (math.isfinite(number) and above and below):
            raise ValueError(f"{name} must {IN_WORDS.get(interval, f'lie in {interval}')}, got {value}{note}")


def check_numbers(settings: object, interval: str, *names: str) -> None:
    """`check_number` for attributes of settings."""
    for name in names:
        check_number(name, getattr(settings, name), interval)


def check_finite(values: Mapping[str, Tensor], iteration: int, advice: str) -> None:
    """Refuse parameters that an update left infinite or not a number, before they are saved.

    Args:
        values: parameters and buffers by name; those of integers are not looked at.
        iteration: the meta-iteration that updated them.
        advice: what to change, for the error.
    Raises:
        ValueError: some are not finite; names the first tensor of them.
    """
    numbers = {name: value.detach() for name, value in values.items() if value.is_floating_point() and value.numel()}
    if get_total_norm(list(numbers.values()), math.inf).isfinite():  # All tensors in one go.
        return
    name = next(name for name, value in numbers.items() if not value.isfinite().all())
    raise ValueError(
        f"iteration {iteration} left {name} with numbers that are not finite, and was not saved: the checkpoint before "
        f"it is whole. Start a new run with {advice}"
    )
