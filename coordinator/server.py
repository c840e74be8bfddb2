"""`ddm-coord serve`: the listening side. Sites connect to it; it connects to nobody.

Members come over mutual TLS with certificates that the roster pins. A change of the roster counts
from the next call on connections that are open, and within a second for new ones. Requests of
strangers are taken on a port of their own, if at all.
"""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event
from time import monotonic, sleep

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from coordinator.folder import CoordinatorFolder
from coordinator.metrics import ServerMetrics
from coordinator.patience import Patience
from coordinator.service import EnrolmentService, ExchangeService
from coordinator.sink import Limits, Sink, has_room
from coordinator.view import PublishedView
from ddm_fed import console
from ddm_fed.errors import DdmFedError, MachineError
from ddm_fed.exchange import server_options, services
from ddm_fed.signing import site_certificates_pem

SPARE_THREADS = 8
SITES_BEFORE = 64  # threads wait for as many sites, however few the roster has today
STOP_S = 10.0
HEALTH_NAME = "ddm_fed.exchange.v1.ExchangeService"
TEND_S, ROSTER_S = 30.0, 0.5
RENEW_S, REOPEN_TRIES, REOPEN_PAUSE_S = 1.0, 50, 0.2


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
    view, status = PublishedView(home), health.HealthServicer()
    key = home.tls(home.chain())
    sink = Sink(home, options.limits, view)
    sink.expire()
    patience = Patience(options.patience_s)
    service = ExchangeService(
        home, sink, view, metrics, patience, share_ensemble=options.share_ensemble
    )

    def answer_members(server: grpc.Server) -> None:
        services.add_ExchangeServiceServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(status, server)

    def answer_strangers(server: grpc.Server) -> None:
        strangers = EnrolmentService(take_request, metrics, service.guard)
        services.add_EnrolmentServiceServicer_to_server(strangers, server)

    threads = 2 * SITES_BEFORE + SPARE_THREADS
    doors = [Door(options.listen, threads, answer_members, lambda: member_identity(home, view))]
    if options.enroll is not None:
        doors.append(
            Door(options.enroll, SPARE_THREADS, answer_strangers, lambda: own_identity(home))
        )
    ended = Event()
    try:
        for door in doors:
            door.open()
        with ThreadPoolExecutor(1, "tending") as tending:
            tending.submit(_tend, home, sink, status, doors, ended)
            try:
                enroll_port = doors[1].port if options.enroll is not None else None
                yield Listening(doors[0].port, enroll_port, key.fingerprint)
            finally:
                ended.set()
                status.enter_graceful_shutdown()
        for stopped in [door.stop(STOP_S) for door in doors]:
            stopped.wait()
    finally:
        patience.close()
        sink.close()


@dataclass(frozen=True)
class TlsIdentity:
    """What a handshake needs: our key and certificate, and whom we let in.

    Attributes:
        private_pem: Our key.
        certificate_pem: Our certificate.
        members_pem: Certificates of those who may connect; None lets anybody in.
    """

    private_pem: bytes = field(repr=False)
    certificate_pem: bytes
    members_pem: bytes | None

    def credentials(self) -> grpc.ServerCredentials:
        """Returns it as gRPC takes it.

        gRPC can also ask for a new set in every handshake (`dynamic_ssl_server_credentials`). In
        grpcio 1.85 that ends the whole process with a fault when connections come and go quickly,
        which any stranger could bring about; so a changed roster opens the door anew.
        """
        pair = [(self.private_pem, self.certificate_pem)]
        return grpc.ssl_server_credentials(
            pair, root_certificates=self.members_pem, require_client_auth=bool(self.members_pem)
        )


def own_identity(home: CoordinatorFolder) -> TlsIdentity:
    """Returns our identity towards strangers."""
    key = home.tls(home.chain())
    return TlsIdentity(key.private_pem, key.certificate_pem, None)


def member_identity(home: CoordinatorFolder, view: PublishedView) -> TlsIdentity:
    """Returns our identity towards the members of the roster in force."""
    chain = view.current().trust.chain
    key = home.tls(chain)
    # with no member yet, only our own certificate, whose key nobody else has
    members = site_certificates_pem(chain.current) or key.certificate_pem
    return TlsIdentity(key.private_pem, key.certificate_pem, members)


class Door:
    """A port, and the gRPC server behind it, which is replaced when its identity changes.

    Args:
        address: HOST:PORT; port 0 takes a free one, and keeps it.
        threads: Most calls at once.
        answer: Adds the services to a server.
        identify: Returns the identity of this moment.
    """

    def __init__(
        self,
        address: str,
        threads: int,
        answer: Callable[[grpc.Server], None],
        identify: Callable[[], TlsIdentity],
    ) -> None:
        self._address, self._threads = address, threads
        self._answer, self._identify = answer, identify
        self.port = 0

    def open(self) -> None:
        """Begins to listen.

        Raises:
            MachineError: it cannot.
        """
        identity = self._identify()
        pool = ThreadPoolExecutor(self._threads, "rpc")
        self._server = grpc.server(
            pool, options=server_options(), maximum_concurrent_rpcs=self._threads
        )
        self._answer(self._server)
        host, _, port = self._address.rpartition(":")
        place = f"{host}:{self.port or port}"
        try:
            self.port = self._server.add_secure_port(place, identity.credentials())
        except RuntimeError:
            raise MachineError(
                f"{place} cannot be listened on",
                hint="another program has the port, or the host is not this machine's: choose "
                "another with --listen",
            ) from None
        self._server.start()
        self._identity = identity

    def renew(self) -> bool:
        """Opens anew if the identity has changed; returns whether it had.

        Calls that last longer than a moment are cut, and go on from there: that is what sites do
        after any break.

        Raises:
            MachineError: the port could not be taken again.
        """
        if self._identify() == self._identity:
            return False
        self._server.stop(RENEW_S).wait()
        for _ in range(REOPEN_TRIES - 1):
            with suppress(MachineError):  # the system may need a moment to free it
                self.open()
                return True
            sleep(REOPEN_PAUSE_S)
        self.open()
        return True

    def stop(self, grace_s: float) -> Event:
        """Takes no more calls; returns what is set once all have ended, or were cut."""
        found: Event = self._server.stop(grace_s)
        return found


def _tend(
    home: CoordinatorFolder,
    sink: Sink,
    status: health.HealthServicer,
    doors: list[Door],
    ended: Event,
) -> None:
    """Follows the roster, the room on the disk, and what nobody continues, until `ended`."""
    states, checked = health_pb2.HealthCheckResponse, -TEND_S
    while not ended.is_set():
        if monotonic() - checked >= TEND_S:
            checked = monotonic()
            room = has_room(home, sink.limits)
            for name in ("", HEALTH_NAME):
                status.set(name, states.SERVING if room else states.NOT_SERVING)
            for digest in sink.expire():
                console.log_line({"event": "expired", "submission_sha256": digest})
        try:
            for door in doors:
                if door.renew():
                    console.log_line({"event": "opened anew", "port": door.port})
        except DdmFedError as error:  # what holds now goes on to hold until this is put right
            console.log_line({"event": "not renewed", "code": error.code, "reason": error.message})
        ended.wait(ROSTER_S)


def wait_for_end() -> None:
    """Returns once the process is asked to end: by Ctrl-C or SIGTERM."""
    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
