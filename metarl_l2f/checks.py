"""Checks of settings and arguments before they are used, and of parameters after they were updated."""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

IN_WORDS = {
    "(0, inf)": "be positive and finite",
    "[0, inf)": "be finite and not negative",
    "(-inf, inf)": "be finite",
}
"""How errors describe intervals without an upper bound; they quote all others."""


def check_number(name: str, value: float, interval: str, unit: str = "") -> None:
    """Refuse a number that lies outside of an interval, either as it is or after rounding to float32.

    Parameters and losses are float32, so 0.99999999, for instance, is not in (0, 1): float32 rounds it to 1.

    Args:
        name: the name that the error uses.
        value: the number.
        interval: the interval as text, such as "(0, 1]": a square bracket includes the bound, and "inf" stands for any
            finite number.
        unit: the unit of the number in the plural, such as "seconds", or "" for none.
    Raises:
        ValueError: the number lies outside.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    rounded = torch.tensor(value, dtype=torch.float32).item()
    for number, note in ((value, ""), (rounded, f", of which float32 makes {rounded:g}")):
        above = number > low or (interval[0] == "[" and number == low)
        below = number < high or (interval[-1] == "]" and number == high)
        if not (math.isfinite(number) and above and below):
            found = f"{value} {unit}".rstrip()
            raise ValueError(f"{name} must {IN_WORDS.get(interval, f'lie in {interval}')}, got {found}{note}")


def check_numbers(settings: object, interval: str, *names: str) -> None:
    """Apply `check_number` to attributes of settings."""
    for name in names:
        check_number(name, getattr(settings, name), interval)


def check_count(name: str, value: Any, least: int = 1, unit: str = "") -> None:
    """Refuse anything but a whole number of `least` or more.

    Args:
        name: the name that the error uses.
        value: the number; a bool or a float is refused, even a whole one.
        least: the smallest number that is accepted.
        unit: the counted things in the plural, such as "steps", or "" where the name says it.
    Raises:
        ValueError: the value is no such number.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        kind = f"a whole number of {unit}" if unit else "a whole number"
        raise ValueError(f"{name} must be {kind}, {least} or more, got {value!r}")


def check_counts(settings: object, least: int, *names: str) -> None:
    """Apply `check_count` to attributes of settings."""
    for name in names:
        check_count(name, getattr(settings, name), least)


def check_choice(name: str, value: object, accepted: Any) -> None:
    """Refuse a value that is not among those accepted.

    Args:
        name: the name that the error uses.
        value: the value.
        accepted: a `Literal` type, or an iterable of values.
    Raises:
        ValueError: the value is none of them; the error lists them.
    """
    choices: Iterable[object] = get_args(accepted) or tuple(accepted)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_choices(settings: object, **accepted: Any) -> None:
    """Apply `check_choice` to attributes of settings, each given with its `Literal` type or iterable."""
    for name, choices in accepted.items():
        check_choice(name, getattr(settings, name), choices)


def check_finite(values: Mapping[str, Tensor], iteration: int, advice: str) -> None:
    """Refuse parameters that an update left infinite or not a number, before they are saved.

    Args:
        values: parameters and buffers by name; integer tensors are skipped.
        iteration: the meta-iteration that updated them.
        advice: what to change, for the error.
    Raises:
        ValueError: some numbers are not finite; the error names the first tensor that holds one.
    """
    numbers = {name: value.detach() for name, value in values.items() if value.is_floating_point() and value.numel()}
    if get_total_norm(list(numbers.values()), math.inf).isfinite():  # All tensors in one go.
        return
    name = next(name for name, value in numbers.items() if not value.isfinite().all())
    raise ValueError(
        f"iteration {iteration} left {name} with numbers that are not finite, and was not saved: the checkpoint before "
        f"it is whole. Start a new run with {advice}"
    )
