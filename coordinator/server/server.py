"""`ddm-coord serve`: the listening side. Sites connect to it; it connects to nobody.

Members come over mutual TLS with certificates that the roster pins. A change of the roster counts
from the next call on connections that are open, and within a second for new ones. Requests of
strangers are taken on a port of their own, if at all. Nobody holds anything of either before it is
judged: connections by the gate (`coordinator.server.gate`), calls when their head has come
(`coordinator.server.calls`). Of both, each has its own share.
"""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Event
from time import monotonic

import grpc

from coordinator.inbox.upload import Limits, Uploads, has_room
from coordinator.published import PublishedView
from coordinator.server.callers import CALLS_AT_ONCE, Members, Strangers
from coordinator.server.calls import CallContext
from coordinator.server.connection_limits import MOST_MEMBERS, MOST_STRANGERS, MOST_WAITING, seats
from coordinator.server.gate import Gate
from coordinator.server.health import HEALTH, HealthService
from coordinator.server.service import EnrolmentService, ExchangeService
from coordinator.server.watchdog import Watchdog
from coordinator.status.metrics import ServerMetrics
from coordinator.workspace import CoordinatorFolder
from ddm_fed import console
from ddm_fed.errors import DdmFedError, MachineError
from ddm_fed.exchange import handlers, messages, server_options
from ddm_fed.signing import site_certificates_pem

SITES_BEFORE = 64  # threads are there for as many sites, however few the roster has today
SPARE_THREADS = 8
STOP_S, RENEW_S = 10.0, 1.0
TEND_S, ROSTER_S = 30.0, 0.5
STRANGER_S = 30.0  # for all that a stranger may want
EXCHANGE = messages.DESCRIPTOR.services_by_name["ExchangeService"]
ENROLMENT = messages.DESCRIPTOR.services_by_name["EnrolmentService"]


@dataclass(frozen=True)
class ServerOptions:
    """How a coordinator listens.

    Attributes:
        listen: HOST:PORT for members; port 0 takes a free one.
        enroll: HOST:PORT for requests of strangers; None takes none.
        limits: What a sender may take up.
        timeout_s: How long a stream may go without progress.
        share_ensemble: Whether members may fetch the newest ensemble.
    """

    listen: str
    enroll: str | None = None
    limits: Limits = field(default_factory=Limits)
    timeout_s: float = 60.0
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
    view, key = PublishedView(home), home.tls(home.chain())
    uploads = Uploads(home, options.limits, view)
    uploads.expire()
    watchdog = Watchdog(options.timeout_s)
    gate = Gate(options.listen, seats(1 / 2, MOST_WAITING, MOST_MEMBERS), metrics.ended)
    call_context = CallContext(Members(view, gate), metrics, watchdog)
    service = ExchangeService(
        home, uploads, view, call_context, share_ensemble=options.share_ensemble
    )
    health = HealthService(call_context, EXCHANGE.full_name)
    members = Listener(
        gate,
        lambda: member_identity(home, view),
        [handlers(EXCHANGE, service), handlers(HEALTH, health)],
        threads=lambda: _threads(len(view.current().trust.roster.sites)),
        calls_at_once=2 * CALLS_AT_ONCE,  # more than it may have: it is told so
    )
    listeners = [members]
    if options.enroll is not None:
        few = seats(3 / 8, MOST_STRANGERS, 0, STRANGER_S)
        outer = Gate(options.enroll, few, metrics.ended)
        strangers = EnrolmentService(take_request, CallContext(Strangers(outer), metrics, watchdog))
        listeners.append(
            Listener(
                outer,
                lambda: own_identity(home),
                [handlers(ENROLMENT, strangers)],
                threads=lambda: few.desk + SPARE_THREADS,
                calls_at_once=1,
            )
        )
    ended = Event()
    with ExitStack() as stack:
        stack.callback(uploads.close)
        stack.callback(watchdog.close)
        for listener in listeners:
            stack.callback(listener.close)
            listener.open()
        with ThreadPoolExecutor(1, "tending") as tending:
            tending.submit(_tend, home, uploads, health, listeners, ended)
            try:
                enroll_port = listeners[1].port if options.enroll is not None else None
                yield Listening(listeners[0].port, enroll_port, key.fingerprint)
            finally:
                ended.set()
                health.serving = False
        for stopped in [listener.stop(STOP_S) for listener in listeners]:
            stopped.wait()


def _threads(sites: int) -> int:
    """Returns how many threads answer members: as many as all of them may have calls at once.

    So no site holds one that another has a right to. A thread is made when it is first needed.
    """
    return CALLS_AT_ONCE * max(SITES_BEFORE, sites) + SPARE_THREADS


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
        which any stranger could bring about; so a changed roster opens the port anew.
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


class Listener:
    """A port, its gate, and the gRPC server behind that, which is replaced as its identity changes.

    Args:
        gate: In front of it.
        identify: Returns the identity of this moment.
        handlers: Of the services.
        threads: Returns how many calls it has to be able to answer at once.
        calls_at_once: Of one connection.
    """

    def __init__(
        self,
        gate: Gate,
        identify: Callable[[], TlsIdentity],
        handlers: list[grpc.GenericRpcHandler],
        *,
        threads: Callable[[], int],
        calls_at_once: int,
    ) -> None:
        self._gate, self._identify, self._handlers = gate, identify, handlers
        self._threads, self._calls_at_once = threads, calls_at_once
        self._opened = 0

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._gate.port

    def open(self) -> None:
        """Begins to listen.

        Raises:
            MachineError: it cannot.
        """
        self._identity = self._identify()
        self._gate.open()
        self._server = self._begin(self._identity)

    def _begin(self, identity: TlsIdentity) -> grpc.Server:
        threads = self._threads()
        server = grpc.server(
            ThreadPoolExecutor(threads, "rpc"),
            options=server_options(calls_at_once=self._calls_at_once),
            # what comes above that is of somebody who is about to be refused
            maximum_concurrent_rpcs=2 * threads,
        )
        server.add_generic_rpc_handlers(tuple(self._handlers))
        self._opened += 1
        place = self._gate.folder / f"server-{self._opened}"
        try:
            server.add_secure_port(f"unix:{place}", identity.credentials())
        except RuntimeError as error:
            raise MachineError(
                f"{place} cannot be used to listen on: {error}",
                hint="make room, or set TMPDIR to another folder of this machine's own disk",
            ) from None
        server.start()
        self._gate.lead_to(place)
        return server

    def renew(self) -> bool:
        """Puts another server behind the gate if the identity has changed; returns whether it had.

        Calls that last longer than a moment are cut, and go on from there: that is what sites do
        after any break.

        Raises:
            MachineError: there can be no other.
        """
        identity = self._identify()
        if identity == self._identity:
            return False
        old, self._server = self._server, self._begin(identity)
        self._identity = identity
        old.stop(RENEW_S).wait()
        return True

    def stop(self, grace_s: float) -> Event:
        """Takes no more calls; returns what is set once all have ended, or were cut."""
        found: Event = self._server.stop(grace_s)
        return found

    def close(self) -> None:
        """Listens no more."""
        self._gate.close()


def _tend(
    home: CoordinatorFolder,
    uploads: Uploads,
    health: HealthService,
    listeners: list[Listener],
    ended: Event,
) -> None:
    """Follows the roster, the room on the disk, and what nobody continues, until `ended`."""
    checked = -TEND_S
    while not ended.is_set():
        if monotonic() - checked >= TEND_S:
            checked = monotonic()
            health.serving = has_room(home, uploads.limits)
            for digest in uploads.expire():
                console.log_line({"event": "expired", "submission_sha256": digest})
        try:
            for listener in listeners:
                if listener.renew():
                    console.log_line({"event": "opened anew", "port": listener.port})
        except DdmFedError as error:  # what holds now goes on to hold until this is put right
            console.log_line({"event": "not renewed", "code": error.code, "reason": error.message})
        ended.wait(ROSTER_S)


def wait_for_end() -> None:
    """Returns once the process is asked to end: by Ctrl-C or SIGTERM."""
    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
