"""Settings of the process that make training fast: freed memory is kept, and operations use one thread."""

import contextlib
import ctypes

import torch

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Have the allocator reuse large blocks that were freed, instead of giving them back to the system at once.

    By default glibc maps every block above a threshold anew, and the system clears it page by page. Activations and
    gradients are blocks of that size and are needed again within milliseconds. With another C library this does
    nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows.
        library = ctypes.CDLL(None)
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            library.mallopt(parameter, LARGEST)


def quiet_machine() -> None:
    """Keep freed memory, and let operations use one thread each: threads work on whole tasks (`shards.py`)."""
    torch.set_num_threads(1)
    keep_freed_memory()
