"""`ddm-coord serve`: the listening side. Sites connect to it; it connects to nobody.

Members come over mutual TLS with certificates that the roster pins; a change of the roster counts
from the next handshake and, on open connections, from the next call. Requests of strangers are
taken on a port of their own, if at all.
"""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from coordinator.folder import CoordinatorFolder
from coordinator.metrics import ServerMetrics
from coordinator.patience import Patience
from coordinator.service import EnrolmentService, ExchangeService
from coordinator.sink import Limits, Sink, has_room
from coordinator.view import PublishedView
from ddm_fed import console
from ddm_fed.errors import MachineError
from ddm_fed.exchange import server_options, services
from ddm_fed.signing import TlsKey, site_certificates_pem

SPARE_THREADS = 8
SITES_BEFORE = 64  # threads wait for as many sites, however few the roster has today
STOP_S = 10.0
HEALTH_NAME = "ddm_fed.exchange.v1.ExchangeService"
TEND_S = 30.0


@dataclass(frozen=True)
class ServerOptions:
    """How a coordinator listens.

    Attributes:
        listen: HOST:PORT for members; port 0 takes a free one.
        enroll: HOST:PORT for requests of strangers; None takes none.
        limits: What a sender may take up.
        patience_s: How long a stream may go without progress.
        share_ensemble: Whether members may fetch the newest ensemble.
    """

    listen: str
    enroll: str | None = None
    limits: Limits = field(default_factory=Limits)
    patience_s: float = 60.0
    share_ensemble: bool = False


@dataclass(frozen=True)
class Listening:
    """A running server.

    Attributes:
        port: For members.
        enroll_port: For strangers, or None.
        fingerprint: Of the certificate it shows.
    """

    port: int
    enroll_port: int | None
    fingerprint: str


@contextmanager
def serving(
    home: CoordinatorFolder,
    options: ServerOptions,
    metrics: ServerMetrics,
    take_request: Callable[[bytes], bool],
) -> Iterator[Listening]:
    """Runs the server during the block; afterwards calls may end, and all that arrived is safe.

    Args:
        home: The coordinator.
        options: How it listens.
        metrics: Counts calls.
        take_request: Keeps a stranger's request; returns whether its keys are in the roster.

    Raises:
        StateError: nothing is published, or the coordinator has no certificate in the roster.
        MachineError: it cannot listen there.
    """
    view = PublishedView(home)
    key = home.tls(home.chain())
    sink = Sink(home, options.limits, view)
    sink.expire()
    patience = Patience(options.patience_s)
    service = ExchangeService(
        home, sink, view, metrics, patience, share_ensemble=options.share_ensemble
    )
    status = health.HealthServicer()
    server = _server(2 * SITES_BEFORE + SPARE_THREADS)
    services.add_ExchangeServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    port = _listen(server, options.listen, _member_credentials(view, key))
    enroll_port = None
    servers = [server]
    if options.enroll is not None:
        door = _server(SPARE_THREADS)
        strangers = EnrolmentService(take_request, metrics, service.guard)
        services.add_EnrolmentServiceServicer_to_server(strangers, door)
        pair = [(key.private_pem, key.certificate_pem)]
        enroll_port = _listen(door, options.enroll, grpc.ssl_server_credentials(pair))
        servers.append(door)
    for item in servers:
        item.start()
    ended = Event()
    try:
        with ThreadPoolExecutor(1, "tending") as tending:
            tending.submit(_tend, home, sink, status, ended)
            try:
                yield Listening(port, enroll_port, key.fingerprint)
            finally:
                ended.set()
                status.enter_graceful_shutdown()
                for stopped in [item.stop(STOP_S) for item in servers]:
                    stopped.wait()
    finally:
        patience.close()
        sink.close()


def _server(threads: int) -> grpc.Server:
    pool = ThreadPoolExecutor(threads, "rpc")
    return grpc.server(pool, options=server_options(), maximum_concurrent_rpcs=threads)


def _listen(server: grpc.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise MachineError(
            f"{address} cannot be listened on",
            hint="another program has the port, or the host is not this machine's: choose another "
            "with --listen",
        ) from None


def _member_credentials(view: PublishedView, key: TlsKey) -> grpc.ServerCredentials:
    pair = (key.private_pem, key.certificate_pem)

    def configuration() -> grpc.ServerCertificateConfiguration:
        # with no member yet, only our own certificate, whose key nobody else has
        pinned = site_certificates_pem(view.current().trust.roster) or key.certificate_pem
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=pinned)

    return grpc.dynamic_ssl_server_credentials(
        configuration(), configuration, require_client_authentication=True
    )


def _tend(home: CoordinatorFolder, sink: Sink, status: health.HealthServicer, ended: Event) -> None:
    """Says whether there is room, and ends what nobody continues, as long as the server runs."""
    states = health_pb2.HealthCheckResponse
    while True:
        room = has_room(home, sink.limits)
        for name in ("", HEALTH_NAME):
            status.set(name, states.SERVING if room else states.NOT_SERVING)
        for digest in sink.expire():
            console.log_line({"event": "expired", "submission_sha256": digest})
        if ended.wait(TEND_S):
            return


def wait_for_end() -> None:
    """Returns once the process is asked to end: by Ctrl-C or SIGTERM."""
    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
