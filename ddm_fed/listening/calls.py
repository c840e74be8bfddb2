"""One call to a server, from who asks to the status it ends with.

A call costs nothing that is short before somebody has said whose it is: who calls, and whether it
may, is judged when its head arrives, and only then its message is awaited, for some seconds. gRPC's
own handlers of single messages do it the other way round: there a call whose message never comes
holds a thread for as long as its connection, and no code of ours sees it. So all calls are taken as
streams (`ddm_fed.exchange.handlers`), which looks the same on the wire.

Strangers learn that they are strangers, and nothing else. Errors of this program travel whole, so
that a site's program shows them as if they had happened there; of anything unforeseen the other
side learns a number only, under which the reason is logged here.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import wraps
from secrets import token_hex
from threading import Lock
from types import TracebackType
from typing import Any, Protocol

import grpc

from ddm_fed import console
from ddm_fed.errors import DdmFedError, MalformedError
from ddm_fed.exchange import DATE, details_of, status_of
from ddm_fed.listening.callers import Caller, Guard
from ddm_fed.listening.watchdog import Watchdog

MESSAGE_S = 10.0
REFUSED_LINE_S = 1.0


class CallCounts(Protocol):
    """Counts calls."""

    def rpc_ended(self, rpc: str, code: str) -> None:
        """Counts a call of `rpc` that ended with the status `code`, such as `OK`."""


@dataclass(frozen=True)
class CallContext:
    """What every call of a service needs.

    Attributes:
        guard: Says who calls, and whether it may.
        metrics: Counts calls.
        watchdog: Ends those that make no progress.
        refused: Says when calls that were refused for their number are logged.
        message_s: How long the one message of a call may take, from its head on.
    """

    guard: Guard
    metrics: CallCounts
    watchdog: Watchdog
    refused: "Seldom" = field(default_factory=lambda: Seldom(REFUSED_LINE_S))
    message_s: float = MESSAGE_S


class Seldom:
    """Lets a line through now and then, so that nobody fills the disk with what is refused it.

    Args:
        seconds: At least so long between two lines about the same caller.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._lock = seconds, Lock()
        self._last: dict[str, tuple[float, int]] = {}  # when, and how many were kept back since

    def lines(self, who: str) -> int:
        """Returns for how many calls of `who` a line may speak now; 0 for none."""
        moment = time.monotonic()
        with self._lock:
            at, kept = self._last.get(who, (moment - self._seconds, 0))
            speaks = moment - at >= self._seconds
            self._last[who] = (moment, 0) if speaks else (at, kept + 1)
        return kept + 1 if speaks else 0


class Answering(AbstractContextManager["Answering"]):
    """Answers one call: use it around everything that is done for it.

    Args:
        rpc: Name of the call.
        call_context: What it needs.
        context: gRPC's.
    """

    def __init__(self, rpc: str, call_context: CallContext, context: grpc.ServicerContext) -> None:
        self._rpc, self._call_context, self._context = rpc, call_context, context
        self._began, self._who = time.monotonic(), "unknown"
        self._given_up = self._admitted = False
        self._place = ExitStack()

    def __enter__(self) -> "Answering":
        return self

    def give_up(self) -> None:
        """Ends the call from another thread: whoever waits for its next message waits no more."""
        self._given_up = True
        self._context.cancel()

    def watching(self, seconds: float | None = None) -> AbstractContextManager[Callable[[], None]]:
        """Gives the call up if the function that is yielded is not called for too long."""
        return self._call_context.watchdog.watching(self.give_up, seconds)

    def caller(self) -> Caller:
        """Returns who asks, by the roster of this moment; the call ends here if it is nobody."""
        found = self._call_context.guard.caller(self._context.peer(), self._context.auth_context())
        if found is None:
            self._log("UNAUTHENTICATED")
            self._context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "this certificate is in no roster of ours"
            )
        self._who = found.site
        return found

    def admit(self) -> None:
        """Takes one of the calls that whoever asks may have under way, until this one ends.

        Raises:
            QuotaError: it has as many already, or asks too often.
        """
        admitting = self._call_context.guard.admitting(self.caller(), self._context.peer())
        self._place.enter_context(admitting)
        self._admitted = True
        # as HTTP does: by it `ddm-site doctor` compares clocks
        self._context.set_trailing_metadata(((DATE, formatdate(usegmt=True)),))

    def only(self, requests: Iterator[Any]) -> Any:
        """Returns the one message of a call.

        Raises:
            MalformedError: there is none.
        """
        with self.watching(self._call_context.message_s):
            for request in requests:
                return request
        raise MalformedError(
            f"the call `{self._rpc}` came without its message",
            hint="another program called, or one of another version: compare versions",
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._place.close()
        expected = DdmFedError | grpc.RpcError | GeneratorExit
        if self._given_up and (error is None or isinstance(error, expected)):
            self._log("TOO_SLOW")
            if isinstance(error, DdmFedError):  # of a stream that we cut: its end was no end
                self._context.abort(grpc.StatusCode.CANCELLED, "too slow")
        elif error is None or isinstance(error, GeneratorExit):
            self._log("OK" if error is None else "CANCELLED")
        elif isinstance(error, DdmFedError):
            status = status_of(error)
            calls = 1 if self._admitted else self._call_context.refused.lines(self._who)
            self._log(status.name, calls=calls, ddm=error.code, reason=error.message)
            self._context.set_trailing_metadata(details_of(error))
            self._context.abort(status, error.code)
        elif isinstance(error, grpc.RpcError):  # the other side hung up
            self._log("CANCELLED")
        elif not _is_abort(error):
            number = token_hex(4)
            lines = traceback.format_exception(kind, error, trace)
            self._log("INTERNAL", number=number, reason="".join(lines)[-2000:])
            self._context.abort(grpc.StatusCode.INTERNAL, f"unforeseen, logged as {number}")

    def _log(self, code: str, calls: int = 1, **facts: object) -> None:
        self._call_context.metrics.rpc_ended(self._rpc, code)
        if calls == 0:
            return
        if calls > 1:
            facts["calls"] = calls
        took_ms = round((time.monotonic() - self._began) * 1000)
        console.log_line(
            {"rpc": self._rpc, "site": self._who, "code": code, "ms": took_ms, **facts}
        )


def _is_abort(error: BaseException) -> bool:
    return type(error) is Exception and not error.args  # all that `context.abort` raises


def answers(method: Any) -> Any:
    """Makes `method(self, call, request)` answer those whom the service's guard lets in."""

    @wraps(method)
    def answer(self: Any, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        with Answering(method.__name__, self.call_context, context) as call:
            call.admit()
            return method(self, call, call.only(requests))

    return answer


def takes(method: Any) -> Any:
    """Like `answers`, for a method that reads messages as they come, and watches them."""

    @wraps(method)
    def answer(self: Any, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        with Answering(method.__name__, self.call_context, context) as call:
            call.admit()
            return method(self, call, requests)

    return answer


def streams(method: Any) -> Any:
    """Like `answers`, for a method that yields; whoever does not read is given up."""

    @wraps(method)
    def answer(self: Any, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        with Answering(method.__name__, self.call_context, context) as call:
            call.admit()
            for response in method(self, call, call.only(requests)):
                with call.watching():
                    yield response

    return answer
