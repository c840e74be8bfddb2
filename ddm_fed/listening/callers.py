"""Who is on the other end of a connection, and how much it may ask for, before a word is read."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Any, Protocol

from ddm_fed.errors import QuotaError

MOST_BUCKETS = 4096


@dataclass(frozen=True)
class Caller:
    """Whoever calls.

    Attributes:
        site: As its pinned certificate says; "strangers" where nobody shows one.
    """

    site: str


class Guard(Protocol):
    """Says who calls, and whether it may, before a message of it is awaited."""

    def caller(self, peer: str, auth: Mapping[str, Any]) -> Caller | None:
        """Returns who is connected; None if it is nobody who may call.

        Args:
            peer: The connection, as gRPC calls it.
            auth: What TLS found out about it: by name, a list of bytes.
        """

    @contextmanager
    def admitting(self, caller: Caller, peer: str) -> Iterator[None]:
        """Takes one of the calls that the caller may have under way, during the block.

        Raises:
            QuotaError: it has as many already, or asks too often.
        """


class Places:
    """So many calls at once for each holder."""

    def __init__(self, each: int) -> None:
        self._each, self._taken = each, Counter[str]()
        self._lock = Lock()

    def take(self, holder: str, who: str) -> None:
        """Takes a place, to be left again.

        Raises:
            QuotaError: the holder has all it may have.
        """
        with self._lock:
            if self._taken[holder] >= self._each:
                raise QuotaError(
                    f"{self._each} requests of {who} are under way already",
                    hint="wait until one has ended; if no program of yours does that, a key is "
                    "stolen",
                )
            self._taken[holder] += 1

    def leave(self, holder: str) -> None:
        """Gives a place back."""
        with self._lock:
            self._taken[holder] -= 1
            if not self._taken[holder]:
                del self._taken[holder]


class Buckets:
    """A token bucket for each holder: so many calls in a row, so many a second in the long run."""

    def __init__(self, per_s: float, in_a_row: float) -> None:
        self._per_s, self._in_a_row = per_s, in_a_row
        self._left: dict[str, tuple[float, float]] = {}  # tokens, and when
        self._lock = Lock()

    def require(self, holder: str, who: str) -> None:
        """Takes one token.

        Raises:
            QuotaError: none is left.
        """
        with self._lock:
            moment = monotonic()
            tokens = self._tokens(holder, moment)
            if tokens < 1:
                raise QuotaError(
                    f"there are more than {self._per_s:.0f} requests a second from {who}",
                    hint="wait some seconds; if no program of yours does that, a key is stolen",
                )
            if len(self._left) >= MOST_BUCKETS:
                self._left = {
                    name: kept
                    for name, kept in self._left.items()
                    if self._tokens(name, moment) < self._in_a_row
                }
            self._left[holder] = tokens - 1, moment

    def _tokens(self, holder: str, moment: float) -> float:
        tokens, at = self._left.get(holder, (self._in_a_row, moment))
        return min(self._in_a_row, tokens + (moment - at) * self._per_s)
