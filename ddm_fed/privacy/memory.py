"""Freed memory that is kept: activations and gradients of units are large, and made anew."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
ALL = 2**31 - 1


def keep_freed_memory() -> None:
    """Makes this process keep the memory it frees; where that is not known to work, does nothing.

    By default glibc gives large blocks back to the system at once and asks for them again in the
    next part of a step, and the system clears every page of them each time. The largest use of
    memory stays what it was.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, ALL)
    libc.mallopt(M_TRIM_THRESHOLD, ALL)
