"""`ddm-coord serve`: the listening side. Sites connect to it; it connects to nobody.

Members come over mutual TLS with certificates that the roster pins. A change of the roster counts
from the next call on connections that are open, and within a second for new ones. Requests of
strangers are taken on a port of their own, if at all. Nobody holds anything of either before it is
judged: connections by the gate (`ddm_fed.listening.gate`), calls when their head has come
(`ddm_fed.listening.calls`). Of both, each has its own share.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Event
from time import monotonic

from coordinator.inbox.upload import Limits, Uploads, has_room
from coordinator.published import PublishedView
from coordinator.server.callers import CALLS_AT_ONCE, Members, Strangers
from coordinator.server.health import HEALTH, HealthService
from coordinator.server.service import EnrolmentService, ExchangeService
from coordinator.status.metrics import ServerMetrics
from coordinator.workspace import CoordinatorFolder
from ddm_fed import console
from ddm_fed.errors import DdmFedError
from ddm_fed.exchange import handlers, messages
from ddm_fed.listening import (
    MOST_MEMBERS,
    MOST_STRANGERS,
    MOST_WAITING,
    CallContext,
    Gate,
    Listener,
    TlsIdentity,
    Watchdog,
    seats,
)
from ddm_fed.signing import site_certificates_pem

SITES_BEFORE = 64  # threads are there for as many sites, however few the roster has today
SPARE_THREADS = 8
STOP_S = 10.0
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
        home, uploads, view, call_context, metrics, share_ensemble=options.share_ensemble
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
