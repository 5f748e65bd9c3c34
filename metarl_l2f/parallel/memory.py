"""Memory that stays with the process: fewer page faults for arrays that come and go at every step."""

import contextlib
import ctypes

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Have the allocator reuse large blocks that were freed, instead of giving them back to the system at once.

    By default glibc maps every block above a threshold anew, and the system clears it page by page. Here blocks of that
    size, activations and gradients, are needed again within milliseconds. Does nothing where the C library is another.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows.
        library = ctypes.CDLL(None)
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            library.mallopt(parameter, LARGEST)
