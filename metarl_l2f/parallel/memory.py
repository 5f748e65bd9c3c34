"""The allocator's settings: freed memory is kept, which saves page faults for arrays made anew at every step."""

import contextlib
import ctypes

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
