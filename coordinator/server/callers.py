"""Who is on the other end of a connection to the coordinator: members, or strangers."""

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from coordinator.published import PublishedView
from ddm_fed.listening import Buckets, Caller, Gate, Places
from ddm_fed.signing import who_is

CALLS_PER_S, MOST_CALLS_IN_A_ROW = 20.0, 100.0
STRANGERS_CALLS_PER_S, STRANGERS_CALLS_IN_A_ROW = 2.0, 20.0
CALLS_AT_ONCE = 8  # of one site, over all its connections


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
