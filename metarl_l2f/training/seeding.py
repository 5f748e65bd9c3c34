"""Random numbers that depend on what they are for, never on who draws them.

Every generator is keyed by (seed, stream, keys...), for example (seed, POLICY, iteration, task, phase). The number of
a worker, thread or process is never a key, so a run is the same however it is spread; and a resumed run needs no
generator state, for the generators of an iteration are made anew from its number.
"""

import enum
import operator

import numpy as np
import torch

# Every number takes this many bytes of the key, so that no two different keys are written alike.
KEY_BYTES = 8


class Stream(enum.IntEnum):
    """What random numbers are for; streams of one seed are independent.

    A value, once given, keeps its meaning: 3, 7 and 8 are spent.
    """

    INIT = 0
    """Initial parameters of networks."""
    TASKS = 1
    """Which tasks a meta-batch holds."""
    POLICY = 2
    """Actions sampled from a policy."""
    VALIDATION = 4
    """Everything about validation during training."""
    EVALUATION = 5
    """Everything about evaluation after training, on held-out tasks."""
    DATA = 6
    """Samples of a supervised task: the support and query of an episode, label noise."""
    LAYERS = 9
    """What a network's random layers, such as dropout, draw for a task."""


def generator(seed: int, stream: Stream, *keys: int) -> np.random.Generator:
    """A NumPy generator keyed by (seed, stream, keys...).

    Args:
        seed: the run's seed, 0 or more.
        stream: what the numbers are for.
        keys: which of them, each 0 or more, e.g. iteration, task, phase. Keys of different lengths are different keys.

    Returns:
        A generator that is the same on every machine and at every call.

    Raises:
        ValueError: a number is not an integer from 0 to 2⁶⁴ − 1.
    """
    return np.random.Generator(np.random.Philox(_seed_sequence(seed, stream, *keys)))


def torch_generator(seed: int, stream: Stream, *keys: int) -> torch.Generator:
    """A torch generator on the CPU, keyed as in `generator`; for initialising networks.

    torch's CPU generator keeps only 32 bits of its seed. That is plenty for the networks of a run; for numbers drawn at
    every iteration use `generator`.

    Args:
        seed: the run's seed, 0 or more.
        stream: what the numbers are for.
        keys: which of them, each 0 or more.

    Returns:
        A generator that draws the same whatever device the result is moved to.

    Raises:
        ValueError: a number is not an integer from 0 to 2⁶⁴ − 1.
    """
    (torch_seed,) = _seed_sequence(seed, stream, *keys).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(torch_seed))


def _seed_sequence(seed: int, stream: Stream, *keys: int) -> np.random.SeedSequence:
    # SeedSequence splits its entropy into 32-bit words and pads with zeros: to it [1, 2] is [1, 2, 0], and [2³²] is
    # [0, 1]. With the length first and a fixed width for every number, different keys are different words.
    named = [("seed", seed), ("stream", stream), *((f"keys[{i}]", key) for i, key in enumerate(keys))]
    numbers = [_key(name, value) for name, value in named]
    words = np.array([len(numbers), *numbers], dtype=f"<u{KEY_BYTES}").view("<u4")
    return np.random.SeedSequence(words.tolist())


def _key(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 2 ** (8 * KEY_BYTES):
        raise ValueError(
            f"{name} of a random stream must be an integer from 0 to 2**{8 * KEY_BYTES} - 1, got {value!r}; "
            "number seeds, iterations and tasks from 0 upwards"
        )
    return number
