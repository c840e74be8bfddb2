"""Who is on the other end of a connection, and how much it may ask for in which time."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Any

from coordinator.view import PublishedView
from ddm_fed.errors import QuotaError
from ddm_fed.signing import who_is

CALLS_PER_S, MOST_CALLS_AT_ONCE = 20.0, 100.0


@dataclass(frozen=True)
class Caller:
    """A site, as its pinned certificate says."""

    site: str


class Guard:
    """Tells callers by the roster of this moment.

    Args:
        view: What is published.
    """

    def __init__(self, view: PublishedView) -> None:
        self._view = view
        self._buckets: dict[str, Bucket] = {}
        self._lock = Lock()

    def caller(self, auth: Mapping[str, Any]) -> Caller | None:
        """Returns who is connected; None if it is nobody that the roster lists now.

        Args:
            auth: What TLS found out about the peer: by name, a list of bytes.
        """
        found = auth.get("x509_pem_cert")
        if not found:
            return None
        der = ssl.PEM_cert_to_DER_cert(found[0].decode("ascii"))
        site = who_is(self._view.current().trust.roster, der)
        return None if site is None else Caller(site)

    def require_rate(self, caller: Caller) -> None:
        """Refuses a caller that asks too often.

        Raises:
            QuotaError: it does.
        """
        with self._lock:
            bucket = self._buckets.setdefault(caller.site, Bucket())
        bucket.require(f"`{caller.site}`")


class Bucket:
    """A token bucket: so many calls at once, so many a second in the long run."""

    def __init__(self) -> None:
        self._tokens, self._at = MOST_CALLS_AT_ONCE, monotonic()
        self._lock = Lock()

    def require(self, who: str) -> None:
        """Takes one token.

        Raises:
            QuotaError: none is left.
        """
        with self._lock:
            moment = monotonic()
            refilled = self._tokens + (moment - self._at) * CALLS_PER_S
            self._tokens, self._at = min(MOST_CALLS_AT_ONCE, refilled), moment
            if self._tokens < 1:
                raise QuotaError(
                    f"there are more than {CALLS_PER_S:.0f} requests a second from {who}",
                    hint="wait some seconds; if no program of yours does that, a key is stolen",
                )
            self._tokens -= 1
