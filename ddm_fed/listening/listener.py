"""A port with a gate in front and a gRPC server behind it."""

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event

import grpc

from ddm_fed.errors import MachineError
from ddm_fed.exchange import MAX_MESSAGE_BYTES, server_options
from ddm_fed.listening.gate import Gate

RENEW_S = 1.0


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


class Listener:
    """A port, its gate, and the gRPC server behind that, which is replaced as its identity changes.

    Args:
        gate: In front of it.
        identify: Returns the identity of this moment.
        handlers: Of the services.
        threads: Returns how many calls it has to be able to answer at once.
        calls_at_once: Of one connection.
        message_bytes: The longest message that is taken.
    """

    def __init__(
        self,
        gate: Gate,
        identify: Callable[[], TlsIdentity],
        handlers: list[grpc.GenericRpcHandler],
        *,
        threads: Callable[[], int],
        calls_at_once: int,
        message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._message_bytes = message_bytes
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
            options=server_options(
                calls_at_once=self._calls_at_once, message_bytes=self._message_bytes
            ),
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


def wait_for_end() -> None:
    """Returns once the process is asked to end: by Ctrl-C or SIGTERM."""
    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
