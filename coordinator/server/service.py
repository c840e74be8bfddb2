"""What members ask the coordinator over gRPC, and how it answers.

`protos/ddm_fed/exchange/v1/exchange.proto` says what every call is for. Documents are handed out
as they are published: whoever reads them verifies them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from coordinator.ensembles.newest import newest_ensemble
from coordinator.inbox.outcome import Outcome, claimed_site, deliver, outcome_of
from coordinator.inbox.upload import SYNC_BYTES, Upload, Uploads
from coordinator.published import PublishedView
from coordinator.status.metrics import ServerMetrics
from coordinator.status.report import site_row
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.reference import REFERENCE_FILE, VECTORS_FILE, reference_sha256
from ddm_fed.errors import BusyError, OffsetError, PlanMismatchError, SizeError, StateError
from ddm_fed.exchange import CHUNK_BYTES, messages, services
from ddm_fed.listening import Answering, CallContext, Caller, answers, streams, takes
from ddm_fed.records import MAX_DOCUMENT_BYTES
from ddm_fed.storage.files import open_regular, read_bounded
from ddm_fed.trust.published import PLAN_FILE, roster_files

DOCUMENTS_BYTES = 1 << 20  # of one answer; a single document may be as long
COMMIT_TIMEOUT_S = 60.0
PROGRESS_BYTES = 64 << 10  # less than that within the timeout is no progress


class ExchangeService(services.ExchangeServiceServicer):
    """Answers members.

    Args:
        home: The coordinator.
        uploads: Takes bundles in.
        view: What is published.
        call_context: What every call needs.
        metrics: Counts what is received.
        share_ensemble: Whether members may fetch the newest ensemble.
    """

    def __init__(
        self,
        home: CoordinatorFolder,
        uploads: Uploads,
        view: PublishedView,
        call_context: CallContext,
        metrics: ServerMetrics,
        *,
        share_ensemble: bool,
    ) -> None:
        self.call_context = call_context
        self._home, self._uploads, self._view = home, uploads, view
        self._share_ensemble, self._metrics = share_ensemble, metrics
        self._admitting = Lock()  # one thread verifies; the others find their bundle admitted
        self._deciding: set[str] = set()
        self._writers: dict[str, object] = {}

    @answers
    def GetPlan(
        self, call: Answering, request: messages.GetPlanRequest
    ) -> messages.GetPlanResponse:
        """Returns the signed plan."""
        return messages.GetPlanResponse(plan_envelope=self._document(PLAN_FILE))

    @answers
    def GetRoster(
        self, call: Answering, request: messages.GetRosterRequest
    ) -> messages.GetRosterResponse:
        """Returns rosters in order, as many as fit."""
        names = roster_files(self._home.published)[request.known_version :]
        chosen: list[bytes] = []
        for name in names:
            data = self._document(name)
            if chosen and sum(map(len, chosen)) + len(data) > DOCUMENTS_BYTES:
                break
            chosen.append(data)
        more = len(chosen) < len(names)
        return messages.GetRosterResponse(roster_envelopes=chosen, has_more=more)

    @streams
    def GetLog(
        self, call: Answering, request: messages.GetLogRequest
    ) -> Iterator[messages.GetLogResponse]:
        """Yields leaves and, last, the head over them."""
        log = self._view.current().log
        leaves: list[bytes] = []
        for entry in log.entries[request.first_leaf :]:
            if leaves and sum(map(len, leaves)) + len(entry.envelope) > DOCUMENTS_BYTES:
                yield messages.GetLogResponse(leaf_envelopes=leaves)
                leaves = []
            leaves.append(entry.envelope)
        yield messages.GetLogResponse(leaf_envelopes=leaves, checkpoint=log.checkpoint)

    @streams
    def GetReference(
        self, call: Answering, request: messages.GetReferenceRequest
    ) -> Iterator[messages.GetReferenceResponse]:
        """Yields the reference of heads."""
        if not (self._home.published / REFERENCE_FILE).exists():
            raise StateError(
                "no reference is published",
                hint="the coordinator makes it with `ddm-coord reference` once every site's first "
                "bundle is admitted",
            )
        yield messages.GetReferenceResponse(reference_envelope=self._document(REFERENCE_FILE))
        with open_regular(self._home.published / VECTORS_FILE) as file:
            while data := file.read(CHUNK_BYTES):
                yield messages.GetReferenceResponse(data=data)

    @answers
    def BeginUpload(
        self, call: Answering, request: messages.BeginUploadRequest
    ) -> messages.BeginUploadResponse:
        """Verifies a manifest, and says where its bundle stands."""
        site = call.caller().site
        found = self._uploads.begin(request.submission_envelope, carrier=site, site=site)
        if isinstance(found, Upload):
            return messages.BeginUploadResponse(
                submission_sha256=found.digest,
                state=messages.BUNDLE_STATE_UPLOADING,
                committed_bytes=found.have(),
            )
        state, receipt = messages.BUNDLE_STATE_ARRIVED, b""
        if found.entry is not None:
            state, receipt = messages.BUNDLE_STATE_ADMITTED, found.entry.envelope
        return messages.BeginUploadResponse(
            submission_sha256=found.digest, state=state, receipt_envelope=receipt
        )

    @takes
    def WriteUpload(
        self, call: Answering, request: Iterator[messages.WriteUploadRequest]
    ) -> messages.WriteUploadResponse:
        """Takes bytes of a body. The newest stream of a bundle is the one that counts."""
        caller, token = call.caller(), object()
        upload, checked, marked = None, 0, 0
        try:
            with self._metrics.writing(), call.watching() as progress:
                for part in request:
                    _require_bytes(part, caller)
                    if upload is None:
                        upload = self._own(part.submission_sha256, caller)
                        self._writers[upload.digest] = token
                        marked = part.offset
                    self._require_newest(upload, token)
                    have = upload.write(part.offset, part.data)
                    self._metrics.received(caller.site, len(part.data))
                    if have - marked >= PROGRESS_BYTES:
                        marked = have
                        progress()
                    if have - checked >= SYNC_BYTES:
                        checked = have
                        call.caller()  # a connection outlives the roster it began under
        finally:
            if upload is not None:
                upload.pause()
                if self._writers.get(upload.digest) is token:
                    del self._writers[upload.digest]
        return messages.WriteUploadResponse(committed_bytes=upload.have() if upload else 0)

    def _own(self, digest: str, caller: Caller) -> Upload:
        upload = self._uploads.find(digest)
        if upload is None:
            raise _unknown(digest)
        if upload.carrier != caller.site:
            raise PlanMismatchError(
                f"the upload {digest[:16]}… is not of `{caller.site}`",
                hint="a site sends its own bundles",
            )
        return upload

    def _require_newest(self, upload: Upload, token: object) -> None:
        if self._writers.get(upload.digest) is not token:
            raise OffsetError(
                f"another connection of `{upload.site}` goes on with the upload "
                f"{upload.digest[:16]}…",
                hint="one program is enough; this one may stop",
            )

    @answers
    def QueryWriteStatus(
        self, call: Answering, request: messages.QueryWriteStatusRequest
    ) -> messages.QueryWriteStatusResponse:
        """Says where a bundle stands that this member began to send."""
        caller, digest = call.caller(), request.submission_sha256
        if self._uploads.find(digest) is not None:
            return messages.QueryWriteStatusResponse(
                state=messages.BUNDLE_STATE_UPLOADING,
                committed_bytes=self._own(digest, caller).have(),
            )
        found = _committed(self._outcome(digest, caller))
        return messages.QueryWriteStatusResponse(
            state=found.state, receipt_envelope=found.receipt_envelope, refusal=found.refusal
        )

    def _outcome(self, digest: str, caller: Caller) -> Outcome:
        """Returns what became of a bundle of this member's that is no longer on its way."""
        if claimed_site(self._home, self._view.current().log, digest) != caller.site:
            raise _unknown(digest)
        return outcome_of(self._home, digest)

    @answers
    def CommitUpload(
        self, call: Answering, request: messages.CommitUploadRequest
    ) -> messages.CommitUploadResponse:
        """Verifies and admits what was sent."""
        caller, digest = call.caller(), request.submission_sha256
        if self._uploads.find(digest) is not None:
            upload = self._own(digest, caller)
            with self._uploads.finishing(upload):
                upload.commit()
        elif self._outcome(digest, caller) != Outcome():
            return _committed(self._outcome(digest, caller))
        with self._one_each(caller.site), self._admitting:
            return _committed(deliver(self._home, digest, timeout_s=COMMIT_TIMEOUT_S))

    @contextmanager
    def _one_each(self, site: str) -> Iterator[None]:
        """Lets one bundle of each site wait for its verdict: who sends many holds up nobody else.

        Raises:
            BusyError: another one of this site waits already.
        """
        if site in self._deciding:
            raise BusyError(
                f"another bundle of `{site}` is just being verified",
                hint="ask again in a moment",
            )
        self._deciding.add(site)
        try:
            yield
        finally:
            self._deciding.discard(site)

    @answers
    def GetStatus(
        self, call: Answering, request: messages.GetStatusRequest
    ) -> messages.GetStatusResponse:
        """Says what the coordinator knows of the asking site, and of nobody else."""
        site = call.caller().site
        published = self._view.current()
        row = site_row(self._home, published.trust, published.log, site)
        return messages.GetStatusResponse(
            federation=published.trust.plan.federation,
            site=site,
            state=row.state,
            waiting_for=row.waiting_for,
            plan_sha256=published.trust.plan_sha256,
            roster_version=published.trust.roster.version,
            log_size=published.log.size,
            has_reference=reference_sha256(self._home.published, published.trust) is not None,
        )

    @answers
    def GetEnsemble(
        self, call: Answering, request: messages.GetEnsembleRequest
    ) -> messages.GetEnsembleResponse:
        """Lists the files of the newest ensemble."""
        self._require_shared()
        found = newest_ensemble(self._home)
        files = [
            messages.EnsembleFile(name=name, size_bytes=size) for name, size in found.files.items()
        ]
        return messages.GetEnsembleResponse(ensemble_sha256=found.sha256, files=files)

    @streams
    def ReadEnsemble(
        self, call: Answering, request: messages.ReadEnsembleRequest
    ) -> Iterator[messages.ReadEnsembleResponse]:
        """Yields a file of the ensemble."""
        self._require_shared()
        found = newest_ensemble(self._home)
        if found.sha256 != request.ensemble_sha256 or request.name not in found.files:
            raise StateError(
                f"the newest ensemble is {found.sha256[:16]}…, asked for was `{request.name}` of "
                f"{request.ensemble_sha256[:16]}…",
                hint="another one was assembled meanwhile: fetch that",
            )
        if request.offset > found.files[request.name]:
            raise OffsetError(
                f"`{request.name}` has {found.files[request.name]} bytes, asked for was byte "
                f"{request.offset}",
                hint="fetch it from its beginning",
            )
        with open_regular(found.folder / request.name) as file:
            file.seek(request.offset)
            while data := file.read(CHUNK_BYTES):
                yield messages.ReadEnsembleResponse(data=data)

    def _require_shared(self) -> None:
        if not self._share_ensemble:
            raise StateError(
                "this coordinator hands out no ensembles",
                hint="ask its people for a copy, or to start `ddm-coord serve --share-ensemble`",
            )

    def _document(self, name: str) -> bytes:
        self._view.current()  # nothing is handed out that does not hold
        return read_bounded(self._home.published / name, MAX_DOCUMENT_BYTES)


def _unknown(digest: str) -> OffsetError:
    return OffsetError(
        f"the upload {digest[:16]}… has not begun here",
        hint="offer its manifest first; `ddm-site submit` does that",
    )


def _require_bytes(part: messages.WriteUploadRequest, caller: Caller) -> None:
    if not part.data:
        raise SizeError(
            f"`{caller.site}` sent a piece without bytes",
            hint="no program of ours does that: another one has the site's key, or an older "
            "version; compare versions",
        )


def _committed(outcome: Outcome) -> messages.CommitUploadResponse:
    if outcome.receipt is not None:
        return messages.CommitUploadResponse(
            state=messages.BUNDLE_STATE_ADMITTED, receipt_envelope=outcome.receipt
        )
    if outcome.refusal is not None:
        refusal = messages.Refusal(**vars(outcome.refusal))
        return messages.CommitUploadResponse(state=messages.BUNDLE_STATE_REFUSED, refusal=refusal)
    return messages.CommitUploadResponse(state=messages.BUNDLE_STATE_ARRIVED)


class EnrolmentService(services.EnrolmentServiceServicer):
    """Keeps the requests of strangers for people to decide on.

    Args:
        take: Verifies and keeps a request; returns whether its keys are in the roster.
        call_context: What every call needs.
    """

    def __init__(self, take: Callable[[bytes], bool], call_context: CallContext) -> None:
        self._take, self.call_context = take, call_context

    @answers
    def Enroll(self, call: Answering, request: messages.EnrollRequest) -> messages.EnrollResponse:
        """Takes a request."""
        del call
        member = self._take(request.request_envelope)
        name = "MEMBER" if member else "WAITING"
        return messages.EnrollResponse(state=f"ENROLMENT_STATE_{name}")
