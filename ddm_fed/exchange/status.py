"""Errors across a connection: the same class, code, message and hint on both sides."""

from collections.abc import Iterator

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


def error_of(failure: grpc.RpcError) -> DdmFedError | None:
    """Returns the error the other side raised; None if the connection itself failed."""
    trailing = failure.trailing_metadata() if isinstance(failure, grpc.Call) else ()
    for key, value in trailing or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            found = messages.Refusal.FromString(value)
            return rebuilt(found.code, found.message, found.hint)
    return None


def rebuilt(code: str, message: str, hint: str) -> DdmFedError:
    """Returns the error that another program of this kind described."""
    kind = next((k for k in _kinds(DdmFedError) if k.code == code), ExchangeError)
    return kind(message, hint=hint)


def _kinds(kind: type[DdmFedError]) -> Iterator[type[DdmFedError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)
