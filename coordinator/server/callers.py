"""Who is on the other end of a connection, and how much it may ask for, before a word is read."""

import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Any, Protocol

from coordinator.published import PublishedView
from coordinator.server.gate import Gate
from ddm_fed.errors import QuotaError
from ddm_fed.signing import who_is

CALLS_PER_S, MOST_CALLS_IN_A_ROW = 20.0, 100.0
STRANGERS_CALLS_PER_S, STRANGERS_CALLS_IN_A_ROW = 2.0, 20.0
CALLS_AT_ONCE = 8  # of one site, over all its connections
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


class Members:
    """Tells members by the roster of this moment; each has calls of its own.

    Args:
        view: What is published.
        gate: In front of their port.
    """

    def __init__(self, view: PublishedView, gate: Gate) -> None:
        self._view, self._gate = view, gate
        self._places = Places(CALLS_AT_ONCE)
        self._buckets = Buckets(CALLS_PER_S, MOST_CALLS_IN_A_ROW)

    def caller(self, peer: str, auth: Mapping[str, Any]) -> Caller | None:
        """Returns the site that is connected; None if the roster of now does not list it."""
        found = auth.get("x509_pem_cert")
        if not found:
            return None
        der = ssl.PEM_cert_to_DER_cert(found[0].decode("ascii"))
        site = who_is(self._view.current().trust.roster, der)
        if site is None:
            return None
        self._gate.judged(peer, site)
        return Caller(site)

    @contextmanager
    def admitting(self, caller: Caller, peer: str) -> Iterator[None]:
        """Takes one of the site's calls.

        Raises:
            QuotaError: it has as many already, or asks too often.
        """
        with self._gate.counting_refusals(peer):
            self._buckets.require(caller.site, f"`{caller.site}`")
            self._places.take(caller.site, f"`{caller.site}`")
        try:
            yield
        finally:
            self._places.leave(caller.site)


class Strangers:
    """Takes calls of anybody: one at a time on a connection, some in a row from an address.

    Args:
        gate: In front of their port. It keeps few connections, and none for long.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._places = Places(1)
        self._buckets = Buckets(STRANGERS_CALLS_PER_S, STRANGERS_CALLS_IN_A_ROW)

    def caller(self, peer: str, auth: Mapping[str, Any]) -> Caller | None:
        """Returns that it is a stranger, whatever it shows."""
        del peer, auth
        return Caller("strangers")

    @contextmanager
    def admitting(self, caller: Caller, peer: str) -> Iterator[None]:
        """Takes the one call of this connection.

        Raises:
            QuotaError: it has one already, or there are too many from its address.
        """
        del caller
        address = self._gate.address(peer)
        with self._gate.counting_refusals(peer):
            self._buckets.require(address, "your address")
            self._places.take(peer, "this connection")
        try:
            yield
        finally:
            self._places.leave(peer)


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
