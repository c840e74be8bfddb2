"""One visit to one site that waits to be asked: its bundles come part by part, its receipts go.

A visit is a conversation: it yields what to ask next and is sent the answer, or None if none came.
Who carries the questions decides how long to try; closed in the middle, a visit loses nothing, and
the next one goes on from the bytes that are safe. Nothing the site says about sizes, places or
digests is believed: they are in its signed manifest, or chosen here.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from coordinator.inbox.outcome import Refusal, deliver
from coordinator.inbox.upload import Arrived, Upload, Uploads
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import DdmFedError, ExchangeError, MalformedError, RefusedError, SizeError
from ddm_fed.exchange.flower import (
    MAX_MANIFEST_BYTES,
    MAX_OFFERED,
    MIN_PART_BYTES,
    PART,
    PROTOCOL,
    RECEIPT,
    STAT,
)
from ddm_fed.records import IN_TOTO_PAYLOAD, BundleState, Statement, Submission, sha256_hex
from ddm_fed.signing import peek_payload

Action = Literal["stat", "part", "receipt"]


@dataclass(frozen=True)
class Ask:
    """A question to a site.

    Attributes:
        action: Which.
        facts: Its arguments.
        data: Bytes that go with it, by name.
    """

    action: Action
    facts: Mapping[str, str | int]
    data: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a site said; none of it is believed."""

    facts: Mapping[str, object]
    data: Mapping[str, bytes]


@dataclass(frozen=True)
class Event:
    """Something worth a line: progress, or what became of a bundle or of a whole visit.

    Attributes:
        carrier: Who was visited.
        state: What became of it; None while it is under way.
        facts: The rest, as it is printed.
    """

    carrier: str
    state: BundleState | None
    facts: Mapping[str, str | int]


Report = Callable[[Event], None]
Talk = Generator[Ask, Answer | None, None]


@dataclass(frozen=True)
class Visit:
    """A visit to one site.

    Attributes:
        home: The coordinator.
        uploads: Where its bundles arrive.
        carrier: The site's name with the transport, for limits and records.
        site: Whose bundles it may bring; None lets it be a courier.
        part_bytes: Most bytes of one part.
        report: Told what happens.
    """

    home: CoordinatorFolder
    uploads: Uploads
    carrier: str
    site: str | None
    part_bytes: int
    report: Report

    def talk(self) -> Talk:
        """Yields questions until everything the site offers was admitted, refused or has failed."""
        try:
            manifests = _manifests((yield from _asked(Ask(STAT, {"protocol": PROTOCOL}))))
        except DdmFedError as error:
            self._tell(_state_of(error), error=error)
            return
        offered = {}
        for manifest in manifests:
            try:
                offered[manifest] = _peek(manifest)
            except RefusedError as error:
                self._tell(
                    BundleState.REFUSED, digest="a manifest that cannot be read", error=error
                )
        newest = max((submission.sequence for _, submission in offered.values()), default=0)
        for manifest, (digest, submission) in offered.items():
            try:
                if submission.plan_sha256 == self.uploads.view.current().trust.plan_sha256:
                    yield from self._take(manifest)
                else:
                    self._tell(BundleState.EARLIER_PLAN, digest=digest)
            except RefusedError as error:
                overtaken = submission.sequence < newest
                state = BundleState.SUPERSEDED if overtaken else BundleState.REFUSED
                self._tell(state, digest=digest, error=error)
            except DdmFedError as error:
                self._tell(BundleState.FAILED, digest=digest, error=error)

    def _take(self, manifest: bytes) -> Talk:
        found = self.uploads.begin(manifest, carrier=self.carrier, site=self.site)
        if not isinstance(found, Arrived):
            with self.uploads.finishing(found):
                try:
                    yield from self._pull(found)
                    found.commit()
                finally:
                    found.close()
        outcome = deliver(self.home, found.digest)
        if outcome.refusal is not None:
            self._tell(BundleState.REFUSED, digest=found.digest, error=outcome.refusal)
        elif outcome.receipt is None:
            self._tell(BundleState.WAITING, digest=found.digest)
        else:
            self._tell(BundleState.ADMITTED, digest=found.digest)
            facts: dict[str, str | int] = {"protocol": PROTOCOL, "digest": found.digest}
            _checked((yield from _asked(Ask(RECEIPT, facts, {found.digest: outcome.receipt}))))
            self._tell(None, event="receipt kept", digest=found.digest)

    def _pull(self, upload: Upload) -> Talk:
        length = self.part_bytes
        have = upload.have()
        self._tell(None, event="from", digest=upload.digest, bytes=have, of=upload.size_bytes)
        while have < upload.size_bytes:
            wanted = min(length, upload.size_bytes - have)
            facts: dict[str, str | int] = {"protocol": PROTOCOL, "digest": upload.digest}
            answer = yield Ask(PART, facts | {"offset": have, "length": wanted})
            if answer is None:  # a thin or broken link may still carry less at a time
                length = min(self.part_bytes, max(MIN_PART_BYTES, length // 2))
                continue
            length = min(self.part_bytes, 2 * length)
            data = _checked(answer).data.get(upload.digest, b"")
            if len(data) != wanted:
                raise MalformedError(
                    f"`{self.carrier}` sent {len(data)} bytes where {wanted} were asked for",
                    hint="its program differs from ours, or it does not tell the truth",
                )
            upload.write(have, data)
            have = upload.have()
            self._tell(None, event="part", digest=upload.digest, bytes=have, of=upload.size_bytes)

    def _tell(
        self,
        state: BundleState | None,
        *,
        error: DdmFedError | Refusal | None = None,
        **facts: str | int,
    ) -> None:
        if error is not None:
            facts |= {"code": error.code, "message": error.message, "hint": error.hint}
        self.report(Event(self.carrier, state, facts))


def _asked(ask: Ask) -> Generator[Ask, Answer | None, Answer]:
    """Asks until there is an answer; whoever carries the questions ends it."""
    while (answer := (yield ask)) is None:
        pass
    return answer


def _checked(answer: Answer) -> Answer:
    """Returns the answer unless the site says that it could not do what it was asked.

    Raises:
        ExchangeError: it does; only a code crosses, the site's own log has the words.
    """
    refused = answer.facts.get("refused")
    if refused is not None:
        raise ExchangeError(
            f"the site answered with the error {str(refused)[:8]}",
            hint="the SuperNode's log at the site says more; docs/errors.md explains the code",
        )
    return answer


def _manifests(answer: Answer) -> list[bytes]:
    """Returns the manifests a site offers, oldest first.

    Raises:
        SizeError: too many, or too large.
    """
    found = list(_checked(answer).data.values())
    if len(found) > MAX_OFFERED or any(len(data) > MAX_MANIFEST_BYTES for data in found):
        raise SizeError(
            f"{len(found)} manifests of up to {max(map(len, found))} bytes are offered at once, "
            f"{MAX_OFFERED} of {MAX_MANIFEST_BYTES} bytes are allowed",
            hint="the site runs another program, or does not tell the truth",
        )
    return found


def _peek(manifest: bytes) -> tuple[str, Submission]:
    payload = peek_payload(manifest, IN_TOTO_PAYLOAD, what="the offered manifest")
    statement = Statement[Submission].from_json(payload, what="the offered manifest")
    return sha256_hex(payload), statement.predicate


def _state_of(error: DdmFedError) -> BundleState:
    return BundleState.REFUSED if isinstance(error, RefusedError) else BundleState.FAILED
