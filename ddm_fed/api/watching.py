"""Progress of long work in a notebook or a script, as the commands show it; or none."""

from collections.abc import Iterator
from contextlib import contextmanager

from ddm_fed import console
from ddm_fed.progress import Advance


@contextmanager
def counted(description: str, total: int, unit: str, *, progress: bool) -> Iterator[Advance]:
    """Yields what is told how many more of `total` are done; shows it if `progress`."""
    if not progress:
        yield lambda _: None
        return
    with console.advancing(description, total, unit) as advance:
        yield advance


@contextmanager
def moved(description: str, total: int, *, progress: bool) -> Iterator[Advance]:
    """Yields what is told how many more of `total` bytes are done; shows it if `progress`."""
    if not progress:
        yield lambda _: None
        return
    with console.moving_bytes(description, total) as advance:
        yield advance
