"""One call to the coordinator, from who asks to the status it ends with.

Strangers learn that they are strangers, and nothing else. Errors of this program travel whole, so
that a site's program shows them as if they had happened there; of anything unforeseen the other
side learns a number only, under which the reason is logged here.
"""

import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import wraps
from secrets import token_hex
from types import TracebackType
from typing import Any

import grpc

from coordinator.guard import Caller, Guard
from coordinator.metrics import ServerMetrics
from ddm_fed import console
from ddm_fed.errors import DdmFedError
from ddm_fed.exchange import details_of, status_of


class Answering(AbstractContextManager["Answering"]):
    """Answers one call: use it around everything that is done for it.

    Args:
        rpc: Name of the call.
        guard: Tells callers.
        context: gRPC's.
        metrics: Counts calls.
    """

    def __init__(
        self, rpc: str, guard: Guard, context: grpc.ServicerContext, metrics: ServerMetrics
    ) -> None:
        self._rpc, self._guard, self._context, self._metrics = rpc, guard, context, metrics
        self._began, self._who = time.monotonic(), "unknown"

    def __enter__(self) -> "Answering":
        return self

    def cancel(self) -> None:
        """Ends the call from another thread: whoever waits for its next message waits no more."""
        self._context.cancel()

    def caller(self) -> Caller:
        """Returns who asks, by the roster of this moment; the call ends here if it is nobody."""
        found = self._guard.caller(self._context.auth_context())
        if found is None:
            self._log("UNAUTHENTICATED")
            self._context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "this certificate is in no roster of ours"
            )
        self._who = found.site
        return found

    def admitted(self) -> Caller:
        """Returns who asks, if it does not ask too often.

        Raises:
            QuotaError: it does.
        """
        found = self.caller()
        self._guard.require_rate(found)
        return found

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, GeneratorExit):
            self._log("OK" if error is None else "CANCELLED")
        elif isinstance(error, DdmFedError):
            status = status_of(error)
            self._log(status.name, ddm=error.code, reason=error.message)
            self._context.set_trailing_metadata(details_of(error))
            self._context.abort(status, error.code)
        elif isinstance(error, grpc.RpcError):  # the other side hung up, or was too slow
            self._log("CANCELLED")
        elif not _is_abort(error):
            number = token_hex(4)
            lines = traceback.format_exception(kind, error, trace)
            self._log("INTERNAL", number=number, reason="".join(lines)[-2000:])
            self._context.abort(grpc.StatusCode.INTERNAL, f"unforeseen, logged as {number}")

    def _log(self, code: str, **facts: object) -> None:
        self._metrics.rpc_ended(self._rpc, code)
        took_ms = round((time.monotonic() - self._began) * 1000)
        console.log_line(
            {"rpc": self._rpc, "site": self._who, "code": code, "ms": took_ms, **facts}
        )


def _is_abort(error: BaseException) -> bool:
    return type(error) is Exception and not error.args  # all that `context.abort` raises


def answers(method: Any) -> Any:
    """Makes `method(self, call, request)` answer members of the roster only."""

    @wraps(method)
    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        with Answering(method.__name__, self.guard, context, self.metrics) as call:
            return method(self, call, request)

    return answer


def streams(method: Any) -> Any:
    """Like `answers`, for a method that yields."""

    @wraps(method)
    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with Answering(method.__name__, self.guard, context, self.metrics) as call:
            yield from method(self, call, request)

    return answer
