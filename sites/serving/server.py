"""`ddm-site serve-expert`: a port that lets in the coordinator, and answers what was agreed.

Nobody else gets past the handshake, and nobody holds anything before it is judged: the gate and the
calls are those of the coordinator's own port (`ddm_fed.listening`).
"""

import base64
import hashlib
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch

from ddm_fed.ensemble.pool import ExpertPool
from ddm_fed.errors import PlanMismatchError, StateError
from ddm_fed.exchange import handlers, messages
from ddm_fed.exchange.questions import FLOAT, most_bytes, read_question
from ddm_fed.flows import ClassCondition
from ddm_fed.listening import (
    Answering,
    CallContext,
    Caller,
    Gate,
    Listener,
    Places,
    TlsIdentity,
    Watchdog,
    answers,
    seats,
)
from ddm_fed.records import DataSpec, Roster
from ddm_fed.signing import TlsKey, server_certificates_pem
from ddm_fed.storage.files import exclusive
from ddm_fed.trust import Trust
from sites.outbox.stages import member_of
from sites.serving.allowance import Allowance
from sites.serving.expert import HeldExpert, open_held_expert
from sites.workspace import SiteFolder

SERVED_FILE = "served.jsonl"
EXPERTS = messages.DESCRIPTOR.services_by_name["ExpertService"]
CALLS_AT_ONCE, SPARE_THREADS = 4, 4
CONNECTIONS, WAITING = 4, 64
SLOWEST_BYTES_PER_S = 64 << 10  # of a question, which may be long
LEAST_MESSAGE_S, STOP_S = 10.0, 10.0
EXPERT_HINT = "`ddm-coord verify` names the expert of each member; assemble anew, or ask the site"


@dataclass(frozen=True)
class Serving:
    """A running server.

    Attributes:
        port: Where it listens.
        fingerprint: Of the certificate it shows.
        held: What it answers for.
        allowance: What is left.
    """

    port: int
    fingerprint: str
    held: HeldExpert
    allowance: Allowance


class OnlyCoordinator:
    """Lets in whoever shows a certificate that the roster lists for the coordinator.

    Args:
        roster: The roster.
        gate: In front of the port.
    """

    def __init__(self, roster: Roster, gate: Gate) -> None:
        self._listed, self._gate = frozenset(roster.server_certificates), gate
        self._places = Places(CALLS_AT_ONCE)

    def caller(self, peer: str, auth: Mapping[str, Any]) -> Caller | None:
        """Returns the coordinator, or None if it is somebody else."""
        found = auth.get("x509_pem_cert")
        if not found or _base64_of(found[0]) not in self._listed:
            return None
        self._gate.judged(peer, "coordinator")
        return Caller("coordinator")

    @contextmanager
    def admitting(self, caller: Caller, peer: str) -> Iterator[None]:
        """Takes one of the calls that it may have under way.

        Raises:
            QuotaError: it has as many already.
        """
        with self._gate.counting_refusals(peer):
            self._places.take(caller.site, "the coordinator")
        try:
            yield
        finally:
            self._places.leave(caller.site)


def _base64_of(pem: bytes) -> str:
    return base64.b64encode(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).decode()


class ExpertService:
    """Answers questions.

    Args:
        held: The expert.
        data: What images are.
        allowance: What may be answered.
        device: Where it computes.
        call_context: What every call needs.
    """

    def __init__(
        self,
        held: HeldExpert,
        data: DataSpec,
        allowance: Allowance,
        device: str,
        call_context: CallContext,
    ) -> None:
        self.call_context = call_context
        self._held, self._data, self._allowance = held, data, allowance
        self._pool = ExpertPool.of([held.expert], devices=[device])
        self._computing = Lock()  # one question at a time has all the processors

    @answers
    def Evaluate(
        self, call: Answering, request: messages.EvaluateRequest
    ) -> messages.EvaluateResponse:
        """Returns what the expert says, once that is paid for."""
        held = self._held
        if request.expert_sha256 != held.sha256:
            raise PlanMismatchError(
                f"asked was the expert {request.expert_sha256[:16]!r}, this site serves "
                f"{held.sha256[:16]}…",
                hint=EXPERT_HINT,
            )
        question = read_question(
            request,
            self._data,
            at_once=held.remote.batch_size,
            largest_time=held.expert.largest_time,
        )
        with self._computing, torch.inference_mode():
            call.caller()  # it may have waited
            self._allowance.charge(question.id, len(question))
            asked = None
            if question.classes is not None:
                asked = ClassCondition(torch.tensor(question.classes))
            velocities = self._pool.ask(
                0, torch.tensor(question.states), torch.tensor(question.times), asked
            )
            answer = velocities.float().contiguous().numpy().astype(FLOAT, copy=False).tobytes()
            self._allowance.answered(question.id, hashlib.sha256(answer).hexdigest())
        return messages.EvaluateResponse(
            expert_sha256=held.sha256,
            velocities=answer,
            evaluations_left=max(0, self._allowance.left),
        )


class _Counts:
    """Counts calls; nobody asks yet."""

    def __init__(self) -> None:
        self._calls: Counter[tuple[str, str]] = Counter()

    def rpc_ended(self, rpc: str, code: str) -> None:
        """Counts a call."""
        self._calls[rpc, code] += 1


def _own_key(site: SiteFolder, trust: Trust) -> TlsKey:
    key = site.tls(member_of(site, trust))
    if not trust.roster.server_certificates:
        raise StateError(
            "the roster lists no certificate of the coordinator, so nobody could be let in",
            hint="the coordinator makes one with `ddm-coord roster rotate --server-certificate`",
        )
    if not key.details.both_ways:
        raise StateError(
            f"the certificate {key.fingerprint[:23]}… is of an earlier version and only connects",
            hint="make one that also serves with `ddm-site rotate --certificate`, and fetch the "
            "roster that lists it",
        )
    return key


@contextmanager
def serving_expert(
    site: SiteFolder, trust: Trust, listen: str, device: str = "cpu"
) -> Iterator[Serving]:
    """Serves the site's expert during the block.

    The roster is the one of `trust` until the end: start it again after a change.

    Args:
        site: Whose expert.
        trust: The plan it was made under, and the roster.
        listen: HOST:PORT; port 0 takes a free one.
        device: Where the expert computes.

    Raises:
        StateError: nothing is there to be served, or there is no certificate to serve with.
        DigestError: the expert is no longer the one that was committed to.
        BusyError: another process serves it.
        MachineError: it cannot listen there.
    """
    held, key = open_held_expert(site, trust), _own_key(site, trust)
    log = site.work(trust.plan_sha256) / SERVED_FILE
    identity = TlsIdentity(
        key.private_pem, key.certificate_pem, server_certificates_pem(trust.roster)
    )
    with exclusive(log.with_suffix(".lock")):
        allowance = Allowance(log, held.remote.evaluations)
        longest = most_bytes(trust.plan)
        message_s = max(LEAST_MESSAGE_S, longest / SLOWEST_BYTES_PER_S)
        watchdog = Watchdog(message_s)
        gate = Gate(listen, seats(1 / 2, WAITING, CONNECTIONS))
        guard = OnlyCoordinator(trust.roster, gate)
        context = CallContext(guard, _Counts(), watchdog, message_s=message_s)
        service = ExpertService(held, trust.plan.data, allowance, device, context)
        listener = Listener(
            gate,
            lambda: identity,
            [handlers(EXPERTS, service)],
            threads=lambda: CALLS_AT_ONCE + SPARE_THREADS,
            calls_at_once=2 * CALLS_AT_ONCE,
            message_bytes=longest,
        )
        try:
            listener.open()
            yield Serving(listener.port, key.fingerprint, held, allowance)
            listener.stop(STOP_S).wait()
        finally:
            listener.close()
            watchdog.close()
