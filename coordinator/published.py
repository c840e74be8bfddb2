"""What is published just now, for whoever answers many questions about it.

Reading verifies every signature of rosters, plan and log. A server keeps the result until one of
the files changes.
"""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from time import sleep

from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import RefusedError
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log, read_log
from ddm_fed.trust.published import published_files

ATTEMPTS, PAUSE_S = 10, 0.1
Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of change of each file."""


@dataclass(frozen=True)
class Published:
    """Plan, rosters and log that belong together."""

    trust: Trust
    log: Log


class PublishedView:
    """The published documents of a coordinator, verified again when they change.

    Args:
        home: The coordinator.
    """

    def __init__(self, home: CoordinatorFolder) -> None:
        self._home, self._lock = home, Lock()
        self._stamp: Stamp = ()
        self._found: Published | None = None

    def current(self) -> Published:
        """Returns what is published now.

        Raises:
            StateError: nothing is published yet.
            RefusedError: a document does not hold.
        """
        with self._lock:
            for attempt in range(ATTEMPTS):
                stamp = _stamp_of(self._home.published)
                if self._found is not None and stamp == self._stamp:
                    return self._found
                try:
                    self._found, self._stamp = self._read(), stamp
                except RefusedError:  # another process may be between two files just now
                    if attempt == ATTEMPTS - 1:
                        raise
                    sleep(PAUSE_S)
            return self._read()

    def _read(self) -> Published:
        trust = self._home.trust()
        return Published(trust, read_log(self._home.published, trust.chain))


def _stamp_of(folder: Path) -> Stamp:
    found = []
    for name in published_files(folder):
        file = folder / name
        if file.exists():
            facts = file.stat()
            found.append((name, facts.st_ino, facts.st_size, facts.st_mtime_ns))
    return tuple(found)
