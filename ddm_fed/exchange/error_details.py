"""Errors across a connection: the same class, code, message and hint on both sides."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from ddm_fed.errors import (
    BusyError,
    DdmFedError,
    DigestError,
    ExchangeError,
    MachineError,
    OffsetError,
    QuotaError,
    RefusedError,
    RevokedKeyError,
    SizeError,
)
from ddm_fed.exchange.v1 import exchange_pb2 as messages

DETAILS_KEY = "ddm-error-bin"
Metadata = tuple[tuple[str, bytes], ...]

# the first class that an error is of decides
_STATUS: tuple[tuple[type[DdmFedError], grpc.StatusCode], ...] = (
    (OffsetError, grpc.StatusCode.OUT_OF_RANGE),
    (QuotaError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (BusyError, grpc.StatusCode.ABORTED),
    (MachineError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DigestError, grpc.StatusCode.DATA_LOSS),
    (SizeError, grpc.StatusCode.INVALID_ARGUMENT),
    (RevokedKeyError, grpc.StatusCode.PERMISSION_DENIED),
    (RefusedError, grpc.StatusCode.INVALID_ARGUMENT),
    (DdmFedError, grpc.StatusCode.FAILED_PRECONDITION),
)


def status_of(error: DdmFedError) -> grpc.StatusCode:
    """Returns the gRPC status under which `error` travels."""
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def details_of(error: DdmFedError) -> Metadata:
    """Returns `error` as trailing metadata."""
    refusal = messages.Refusal(code=error.code, message=error.message, hint=error.hint)
    return ((DETAILS_KEY, refusal.SerializeToString()),)


@dataclass(frozen=True)
class Failure:
    """What went wrong with a call.

    Attributes:
        status: gRPC's.
        details: The words that came with it; "" without any.
        error: What the other side raised; None if the connection itself failed.
    """

    status: grpc.StatusCode
    details: str
    error: DdmFedError | None


def failure_of(raised: grpc.RpcError) -> Failure:
    """Returns what gRPC knows of a call that failed."""
    call: Any = raised  # every error of a channel is a `grpc.Call` too, which its types cannot say
    error = None
    for key, value in call.trailing_metadata() or ():
        if key == DETAILS_KEY:
            found = messages.Refusal.FromString(value)
            error = rebuilt(found.code, found.message, found.hint)
    return Failure(call.code() or grpc.StatusCode.UNKNOWN, call.details() or "", error)


def rebuilt(code: str, message: str, hint: str) -> DdmFedError:
    """Returns the error that another program of this kind described."""
    kind = next((k for k in _kinds(DdmFedError) if k.code == code), ExchangeError)
    return kind(message, hint=hint)


def _kinds(kind: type[DdmFedError]) -> Iterator[type[DdmFedError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)
