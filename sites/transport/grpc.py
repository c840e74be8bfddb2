"""The way over a network: gRPC with mutual TLS, both certificates pinned by the roster.

A site only connects outwards. Whatever breaks, it asks where the coordinator stands and goes on
from there, until nothing has moved for as long as its timeout.
"""

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc

from ddm_fed.bundle.verify import VerifiedBundle
from ddm_fed.errors import (
    BusyError,
    DdmFedError,
    DigestError,
    ExchangeError,
    OffsetError,
    OptionError,
    QuotaError,
)
from ddm_fed.exchange import (
    CHUNK_BYTES,
    Failure,
    client_options,
    failure_of,
    messages,
    rebuilt,
    services,
)
from ddm_fed.exchange.body import Body, BodyReader, open_body
from ddm_fed.exchange.retries import Retries
from ddm_fed.progress import Advance
from ddm_fed.records import BundleState, sha256_hex
from ddm_fed.remote.proxies import proxy_to
from ddm_fed.signing import server_certificates_pem
from ddm_fed.trust import Trust
from sites.outbox.stages import member_of
from sites.transport.address import Address
from sites.transport.base import Sent
from sites.workspace import SiteFolder

CALL_S, COMMIT_S, STREAM_S = 30.0, 600.0, 20 * 60.0
DAMAGED_TRIES = 2
# of the other side, or of what lies between: asked again, it may answer
PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
_PROXY_HINT = "ask whether the proxy lets CONNECT through, or name the host in no_proxy; "
_DIRECT_HINT = (
    "; its certificate is looked at directly, not through the proxy that is set here: bring what "
    "is published another way first, such as by a removable medium, and no such look is needed"
)
STRANGER = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
Answer = TypeVar("Answer")


def _retries(
    address: Address, timeout_s: float, heard: Callable[[DdmFedError | None], object] | None = None
) -> Retries[grpc.RpcError]:
    """Returns how calls to `address` are tried again.

    Args:
        address: Who is called.
        timeout_s: How long nothing may move.
        heard: Called with what the coordinator said of a call that failed; may raise it.
    """

    def judged(error: grpc.RpcError) -> None:
        failure = failure_of(error)
        judge(failure, address)
        if heard is not None:
            heard(failure.error)

    def told(error: grpc.RpcError) -> DdmFedError:
        failure = failure_of(error)
        return failure.error or _unreachable(failure, address, timeout_s)

    return Retries(grpc.RpcError, timeout_s, judge=judged, told=told)


def _unreachable(failure: Failure, address: Address, timeout_s: float) -> ExchangeError:
    proxy = proxy_to(address.host)
    through = f" through {proxy}," if proxy else ""
    return ExchangeError(
        f"nothing has moved between here and {address.target}{through} for "
        f"{timeout_s:.0f} seconds: {_words(failure)}",
        hint="check the address and the network, and that the coordinator runs `ddm-coord "
        f"serve`; {_PROXY_HINT if proxy else ''}if others get through, this site's certificate "
        "may not be in its roster. Then run the same command again: it continues from there",
    )


def judge(failure: Failure, address: Address) -> None:
    """Returns if a later try may succeed.

    Raises:
        DdmFedError: it will not; the error that the coordinator raised, if it did.
    """
    if failure.error is not None:
        if not isinstance(failure.error, OffsetError | QuotaError | BusyError | DigestError):
            raise failure.error
        return
    if failure.status in STRANGER:
        raise ExchangeError(
            f"the coordinator at {address.target} does not know this site's certificate",
            hint="it is not in the roster in force: ask its people, or send a request with "
            "`ddm-site enroll`",
        )
    if failure.status not in PASSING:
        raise ExchangeError(
            f"{address.target} answered {failure.status.name}: {_words(failure)}",
            hint="another program may listen there, or it runs another version: compare versions",
        )


def _words(failure: Failure) -> str:
    return failure.details[:300] or "no reason was given"


def retried(call: Callable[[], Answer], address: Address, *, timeout_s: float) -> Answer:
    """Returns what `call` does, tried again while the other side cannot be reached.

    Raises:
        DdmFedError: nothing moved for `timeout_s`, or the coordinator refused.
    """
    return _retries(address, timeout_s).run(call)


def pinned_certificate(address: Address, *, timeout_s: float) -> bytes:
    """Returns the certificate that `address` shows, as PEM, if it is the one in the address.

    Args:
        address: Where it is, with its pin.
        timeout_s: How long to try.

    Raises:
        ExchangeError: it is another, or nothing answers.
    """
    directly = _DIRECT_HINT if proxy_to(address.host) else ""

    def unreached(error: OSError) -> ExchangeError:
        return ExchangeError(
            f"{address.target} cannot be reached: {error}",
            hint="check the address and the network, and that the coordinator runs `ddm-coord "
            f"serve`{directly}",
        )

    place = address.host.strip("[]"), address.port
    pem = Retries(OSError, timeout_s, told=unreached).run(
        lambda: ssl.get_server_certificate(place, timeout=CALL_S)
    )
    found = f"sha256:{sha256_hex(ssl.PEM_cert_to_DER_cert(pem))}"
    if found != address.pin:
        raise ExchangeError(
            f"{address.target} shows the certificate {found}, expected {address.pin}",
            hint="somebody else listens there, or the coordinator replaced its certificate: ask "
            "its people for the address anew",
        )
    return pem.encode()


@contextmanager
def channel_to(
    address: Address, server_pem: bytes, client: tuple[bytes, bytes] | None
) -> Iterator[grpc.Channel]:
    """Yields a channel to exactly the server of these certificates.

    Args:
        address: Where it is.
        server_pem: Its certificates; during a rotation there are two.
        client: Our private key and certificate as PEM; None for strangers.
    """
    key, certificate = client or (None, None)
    credentials = grpc.ssl_channel_credentials(server_pem, key, certificate)
    with grpc.secure_channel(address.target, credentials, client_options()) as channel:
        yield channel


def server_pem(address: Address, trust: Trust | None, *, timeout_s: float) -> bytes:
    """Returns the certificates that the coordinator may show.

    Args:
        address: Where it is; its pin counts where no roster is known.
        trust: What is known of the federation.
        timeout_s: How long to try where it has to be asked.

    Raises:
        OptionError: neither names one.
        ExchangeError: it shows another, or does not answer.
    """
    listed = server_certificates_pem(trust.roster) if trust is not None else b""
    if listed:
        return listed
    if address.pin is None:
        raise OptionError(
            f"grpcs://{address.target}: nothing says which certificate the coordinator has to show",
            hint="give the whole address that `ddm-coord serve` prints, grpcs://HOST:PORT#sha256:…",
        )
    return pinned_certificate(address, timeout_s=timeout_s)


class GrpcTransport:
    """Sends bundles to `ddm-coord serve`.

    Args:
        address: Where it listens.
        site: The sender.
        trust: Its federation, whose roster pins the certificates of both.
        timeout_s: How long to go on without progress.
    """

    def __init__(
        self, address: Address, site: SiteFolder, trust: Trust, *, timeout_s: float
    ) -> None:
        self._address, self._timeout_s = address, timeout_s
        key = site.tls(member_of(site, trust))
        self._client = (key.private_pem, key.certificate_pem)
        self._server_pem = server_pem(address, trust, timeout_s=timeout_s)

    @contextmanager
    def _service(self) -> Iterator[services.ExchangeServiceStub]:
        with channel_to(self._address, self._server_pem, self._client) as channel:
            yield services.ExchangeServiceStub(channel)

    def collect(self, digest: str) -> bytes | None:
        """Returns the receipt, if the bundle was admitted since it was sent."""
        asked = messages.QueryWriteStatusRequest(submission_sha256=digest)
        with self._service() as service:

            def ask() -> bytes | None:
                try:
                    return service.QueryWriteStatus(asked, timeout=CALL_S).receipt_envelope or None
                except grpc.RpcError as raised:
                    if isinstance(failure_of(raised).error, OffsetError):
                        return None  # it was never offered there
                    raise

            return retried(ask, self._address, timeout_s=self._timeout_s)

    def send(self, bundle: VerifiedBundle, folder: Path, advance: Advance) -> Sent:
        """Offers the manifest, sends what is missing of the body, and waits for the verdict.

        Raises:
            RefusedError: the coordinator refused it, with its reason.
            ExchangeError: nothing moved for the timeout.
        """
        body = Body(bundle.submission.files)
        with self._service() as service, open_body(folder, body) as reader:
            return _Sending(service, self._address, self._timeout_s, bundle, reader, advance).run()


class _Sending:
    """One bundle on its way, through any number of connections."""

    def __init__(
        self,
        service: services.ExchangeServiceStub,
        address: Address,
        timeout_s: float,
        bundle: VerifiedBundle,
        reader: BodyReader,
        advance: Advance,
    ) -> None:
        self._service, self._bundle = service, bundle
        self._reader, self._advance = reader, advance
        self._retries = _retries(address, timeout_s, self._note_damage)
        self._shown = self._damaged = self._safe = 0

    def run(self) -> Sent:
        """Returns what became of it."""
        return self._retries.run(self._try_once)

    def _note_damage(self, told: DdmFedError | None) -> None:
        if isinstance(told, DigestError):
            self._damaged += 1
            if self._damaged > DAMAGED_TRIES:
                raise told

    def _try_once(self) -> Sent:
        offer = messages.BeginUploadRequest(submission_envelope=self._bundle.envelope)
        found = self._service.BeginUpload(offer, timeout=CALL_S)
        if found.state == messages.BUNDLE_STATE_ADMITTED:
            return Sent(BundleState.ADMITTED, found.receipt_envelope)
        if found.state == messages.BUNDLE_STATE_UPLOADING:
            self._moved_to(found.committed_bytes)
            if found.committed_bytes < self._reader.body.size_bytes:
                parts = self._parts(found.submission_sha256, found.committed_bytes)
                answer = self._service.WriteUpload(parts, timeout=STREAM_S)
                self._moved_to(answer.committed_bytes)
        end = messages.CommitUploadRequest(submission_sha256=self._bundle.payload_sha256)
        verdict = self._service.CommitUpload(end, timeout=COMMIT_S)
        if verdict.state == messages.BUNDLE_STATE_REFUSED:
            why = verdict.refusal
            raise rebuilt(why.code, why.message, why.hint)
        if verdict.state == messages.BUNDLE_STATE_ADMITTED:
            return Sent(BundleState.ADMITTED, verdict.receipt_envelope)
        return Sent(BundleState.WAITING)

    def _moved_to(self, safe: int) -> None:
        if safe > self._safe:
            self._retries.progress()
        self._safe = safe
        if safe > self._shown:
            self._advance(safe - self._shown)
            self._shown = safe

    def _parts(self, digest: str, offset: int) -> Iterator[messages.WriteUploadRequest]:
        while data := self._reader.read(offset, CHUNK_BYTES):
            yield messages.WriteUploadRequest(submission_sha256=digest, offset=offset, data=data)
            offset += len(data)
            # gRPC takes the next part only as the connection carries off the last ones
            if offset > self._shown:
                self._advance(offset - self._shown)
                self._shown = offset
            digest = ""  # said once in a stream


def enroll(address: Address, request: bytes, *, timeout_s: float) -> bool:
    """Leaves a signed request with the coordinator; returns whether its keys are in the roster.

    Args:
        address: Where it takes requests of strangers, with its certificate.
        request: The envelope.
        timeout_s: How long to try.

    Raises:
        RefusedError: the coordinator refused it, with its reason.
        ExchangeError: nothing answers.
    """
    pem = server_pem(address, None, timeout_s=timeout_s)
    with channel_to(address, pem, None) as channel:
        service = services.EnrolmentServiceStub(channel)
        wish = messages.EnrollRequest(request_envelope=request)
        answer = retried(lambda: service.Enroll(wish, timeout=CALL_S), address, timeout_s=timeout_s)
    return bool(answer.state == messages.ENROLMENT_STATE_MEMBER)
