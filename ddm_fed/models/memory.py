"""What the steps of a network allocate is taken again by the next step, not from the system.

A step frees its activations and the next one asks for the same sizes. glibc gives blocks above some
size (at most 32 MiB, by default) back to the system at once, and each new one is zeroed page by
page when it is first touched: an eighth of a step of the smallest DiT.
"""

import ctypes
from functools import cache

# names of malloc.h, and values that `mallopt` takes as a C int
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, BLOCK_BYTES, BLOCK_BYTES_OF_OLD = 2**31 - 1, 2**30, 2**25


@cache
def keep_freed_memory() -> bool:
    """Lets this process keep what it frees for what it allocates next, until it ends.

    Blocks above 1 GiB, such as a data set, still go back to the system, and so does what is free
    above 2 GiB. What is computed does not change.

    Returns:
        Whether the C library knows how; only glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # an older glibc knows no threshold above 32 MiB
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)) and bool(
        mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES) or mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES_OF_OLD)
    )
