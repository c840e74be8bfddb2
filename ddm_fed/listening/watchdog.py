"""Ends calls that make no progress, so that a slow or dead sender holds nothing for long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from time import monotonic

CHECK_S = 0.5


class Watchdog:
    """Watches calls in a thread of its own.

    Args:
        seconds: How long a call may go without progress.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._calls: dict[object, tuple[float, Callable[[], object]]] = {}
        self._lock, self._ended = Lock(), Event()
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def watching(
        self, end: Callable[[], object], seconds: float | None = None
    ) -> Iterator[Callable[[], None]]:
        """Calls `end` if the function that is yielded is not called for too long.

        Args:
            end: Called once, from another thread.
            seconds: How long that is; by default, and at most, what this one was made with.
        """
        key, limit = object(), min(self.seconds, seconds or self.seconds)

        def progress() -> None:
            with self._lock:
                self._calls[key] = (monotonic() + limit, end)

        progress()
        try:
            yield progress
        finally:
            with self._lock:
                self._calls.pop(key, None)

    def _watch(self) -> None:
        while not self._ended.wait(min(CHECK_S, self.seconds / 2)):
            with self._lock:
                late = [(k, end) for k, (at, end) in self._calls.items() if monotonic() > at]
                for key, _ in late:
                    del self._calls[key]
            for _, end in late:
                end()

    def close(self) -> None:
        """Ends the watch."""
        self._ended.set()
        self._thread.join()
