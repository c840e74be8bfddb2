"""Bundles that a courier brings: on a removable medium, on a share, or in a folder at any URL.

    SOURCE/incoming/DIGEST/     what is there: whole, partial, or not ours
    SOURCE/receipts/            what goes back: signed receipts
    SOURCE/published/           and the present plan, rosters and log

Nothing on a medium is believed. A bundle comes in by the same resumable upload as over a network,
so that a kill loses no byte that is safe, and it is verified after it has arrived. Nothing is
deleted there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from coordinator.inbox import outcome as delivery
from coordinator.inbox.upload import Arrived, Limits, Upload, Uploads
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.submission import read_submission
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.errors import (
    BusyError,
    DdmFedError,
    FileSetError,
    MachineError,
    PolicyError,
    QuotaError,
    RefusedError,
    StateError,
    ValuesError,
    WeightsError,
    printable,
)
from ddm_fed.progress import Advance
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    BundleState,
    FileSize,
    Statement,
    Submission,
    now,
    sha256_hex,
)
from ddm_fed.remote import Entry, RemoteFolder
from ddm_fed.signing import peek_payload
from ddm_fed.storage.files import BLOCK_BYTES, PART_PREFIX
from ddm_fed.storage.junk import is_junk
from ddm_fed.trust import require_in_force
from ddm_fed.trust.published import published_files

CARRIER = "import"
MOST_FOLDERS = 1000  # of one medium in one run; the likely ones come first
SHOWN = 5
README_FILE, README_BEGINS = "README.txt", b"This folder carries bundles of DDM-Fed"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
# verdicts on the content itself: the same bytes would be refused again
_FINAL = {WeightsError.code, ValuesError.code, PolicyError.code}


@dataclass(frozen=True)
class Found:
    """What became of one thing in `incoming`.

    Attributes:
        name: Of its folder, as it may be shown.
        state: Admitted; waiting for the coordinator; refused; or not whole.
        digest: Of its manifest, if it has a readable one.
        site: Whose it is, once a signature proves it.
        code: Of the error.
        reason: Why it is refused, waits, or is partial.
        hint: What to do.
        receipt: The signed receipt.
    """

    name: str
    state: BundleState
    digest: str | None = None
    site: str | None = None
    code: str | None = None
    reason: str | None = None
    hint: str | None = None
    receipt: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Written:
    """What was written back to the medium.

    Attributes:
        receipts: How many receipts are there now.
        error: Why nothing more could be written, if so.
        foreign: Whether nothing there came from a site, so that nothing was written at all.
    """

    receipts: int
    error: DdmFedError | None = None
    foreign: bool = False


def require_medium(home: CoordinatorFolder, medium: RemoteFolder) -> None:
    """Refuses a source that holds no bundles, or is this coordinator's own inbox.

    Raises:
        StateError: it is one of these.
        FileSetError: its `incoming` leads elsewhere.
    """
    kind = medium.kind_of("incoming")
    if kind is None:
        raise StateError(
            f"there is no folder `incoming` in {medium.name}",
            hint="name the folder that `ddm-site export` wrote, not the medium it lies on",
        )
    if kind != "folder":
        raise FileSetError(
            f"`incoming` in {medium.name} is not a folder but a {kind}",
            hint="a link could lead anywhere: copy the folder that `ddm-site export` wrote",
        )
    if medium.path is not None and (medium.path / "incoming").resolve() == home.incoming.resolve():
        raise StateError(
            f"{medium.name} is this coordinator's own inbox",
            hint="run `ddm-coord admit`: what lies there has arrived already",
        )


def candidates(medium: RemoteFolder) -> tuple[list[Entry], int]:
    """Returns what lies in `incoming`, the likely bundles first, and how many things are not named.

    Somebody may have filled the medium with junk; it must not keep bundles from being found. Those
    of one site come in the order of their numbers: the later one would refuse the earlier.
    """
    found = [entry for entry in medium.entries("incoming") if not is_junk(entry.name)]
    found.sort(key=lambda entry: (_DIGEST.fullmatch(entry.name) is None, entry.name))
    named = found[:MOST_FOLDERS]
    named.sort(key=lambda entry: (_DIGEST.fullmatch(entry.name) is None, _number(medium, entry)))
    return named, len(found[MOST_FOLDERS:])


def _number(medium: RemoteFolder, entry: Entry) -> int:
    """Returns the number that a bundle claims, for its place among others; 0 if it cannot."""
    if entry.kind != "folder" or _SAFE.fullmatch(entry.name) is None:
        return 0
    try:
        envelope = medium.read(f"incoming/{entry.name}/{ENVELOPE_FILE}", MAX_DOCUMENT_BYTES) or b""
        payload = peek_payload(envelope, IN_TOTO_PAYLOAD, what=_called(entry.name))
        return Statement[Submission].from_json(payload, what=_called(entry.name)).predicate.sequence
    except (RefusedError, MachineError, StateError):
        return 0


class Importer:
    """Takes in what lies on one medium.

    Args:
        home: The coordinator.
        medium: Where the bundles are.
        timeout_s: How long another command may hold the coordinator's folder.
        reserve_bytes: Left free on the coordinator's disk.

    Raises:
        StateError: nothing is published yet.
        ExpiredError: the plan or the roster is no longer in force.
    """

    def __init__(
        self,
        home: CoordinatorFolder,
        medium: RemoteFolder,
        *,
        timeout_s: float = 60.0,
        reserve_bytes: int = Limits.reserve_bytes,
    ) -> None:
        self._home, self._medium, self._timeout_s = home, medium, timeout_s
        # one person stands behind every medium, and may leave any of them unfinished
        self._uploads = Uploads(
            home, Limits(reserve_bytes=reserve_bytes, open_uploads=MOST_FOLDERS)
        )
        require_in_force(self._uploads.view.current().trust, now())

    def take(self, entry: Entry, advance: Advance = lambda _: None) -> Found:
        """Takes in one thing of `incoming`, from where an earlier attempt came to.

        Args:
            entry: As `candidates` lists it.
            advance: Told the bytes that were read.

        Raises:
            MachineError: the medium or a disk here failed; what was taken in is kept.
            ExchangeError: the medium cannot be reached any more; what was taken in is kept.
        """
        name = printable(entry.name)
        try:
            return self._take(entry, name, advance)
        except RefusedError as error:
            return _because(error, name, BundleState.REFUSED)
        finally:
            self._uploads.close()  # what came in is safe, and another process may go on

    def _take(self, entry: Entry, name: str, advance: Advance) -> Found:
        if entry.name.startswith(PART_PREFIX):
            return _because(_unfinished(name), name, BundleState.PARTIAL)
        files = self._listed(entry, name)
        manifest = files.pop(ENVELOPE_FILE, None)
        if manifest is None:
            return _because(_without_manifest(name, files), name, BundleState.PARTIAL)
        if manifest == 0:  # a removable medium that was pulled out keeps names, and loses bytes
            error = _partial(name, [f"`{ENVELOPE_FILE}` has 0 bytes"])
            return _because(error, name, BundleState.PARTIAL)
        path = f"incoming/{entry.name}"
        envelope = self._medium.read(f"{path}/{ENVELOPE_FILE}", MAX_DOCUMENT_BYTES) or b""
        digest = sha256_hex(peek_payload(envelope, IN_TOTO_PAYLOAD, what=_called(name)))
        published = self._uploads.view.current()
        entry_of_log = published.log.find(digest)
        if entry_of_log is not None and entry_of_log.receipt is not None:
            return self._outcome(name, digest, entry_of_log.receipt.site)
        statement, _ = read_submission(
            envelope, published.trust.chain, published.log.size, what=_called(name)
        )
        site = statement.predicate.site
        earlier = delivery.outcome_of(self._home, digest).refusal
        if earlier is not None and earlier.code in _FINAL:
            return self._outcome(name, digest, site)
        problems = list(_differences(statement, files))
        if problems:
            return _because(_partial(name, problems), name, BundleState.PARTIAL, digest, site)
        try:
            upload = self._uploads.begin(envelope, carrier=CARRIER)
            if not isinstance(upload, Arrived):
                self._copy(upload, path, advance)
                with self._uploads.finishing(upload):
                    upload.commit()
        except (QuotaError, BusyError) as error:
            return _because(error, name, BundleState.WAITING, digest, site)
        except RefusedError as error:
            return _because(error, name, BundleState.REFUSED, digest, site)
        return self._outcome(name, digest, site)

    def _listed(self, entry: Entry, name: str) -> dict[str, int]:
        """Returns the sizes of the plain files in a bundle's folder, by name.

        Raises:
            FileSetError: it is no folder, or holds anything else.
        """
        if entry.kind != "folder" or _SAFE.fullmatch(entry.name) is None:
            shown = (
                f"is {_article(entry.kind)}"
                if entry.kind != "folder"
                else "has a name that we do not use"
            )
            raise FileSetError(f"`{name}` {shown}, not the folder of a bundle", hint=_COPY_AGAIN)
        inside = [
            item
            for item in self._medium.entries(f"incoming/{entry.name}")
            # nothing of it is read or taken in
            if not (is_junk(item.name) and item.kind in ("file", "folder"))
        ]
        odd = [item for item in inside if item.kind != "file"]
        if odd:
            told = ", ".join(
                f"`{printable(item.name)}` is {_article(item.kind)}" for item in odd[:SHOWN]
            )
            raise FileSetError(f"{_called(name)} is refused: {told}", hint=_COPY_AGAIN)
        return {
            item.name: item.size_bytes
            for item in inside
            if not item.name.startswith(PART_PREFIX)  # of a file that was not finished
        }

    def _copy(self, upload: Upload, path: str, advance: Advance) -> None:
        at = upload.have()
        advance(at)
        for name, start, length in upload.body.spans(at, upload.size_bytes - at):
            with self._medium.reading(f"{path}/{name}", start) as file:
                while length and (block := file.read(min(BLOCK_BYTES, length))):
                    at = upload.write(at, block)
                    length -= len(block)
                    advance(len(block))

    def _outcome(self, name: str, digest: str, site: str) -> Found:
        outcome = delivery.deliver(self._home, digest, timeout_s=self._timeout_s)
        if outcome.receipt is not None:
            return Found(name, BundleState.ADMITTED, digest, site, receipt=outcome.receipt)
        if outcome.refusal is not None:
            why = outcome.refusal
            return Found(name, BundleState.REFUSED, digest, site, why.code, why.message, why.hint)
        return Found(name, BundleState.WAITING, digest, site)


def write_back(home: CoordinatorFolder, medium: RemoteFolder, found: list[Found]) -> Written:
    """Writes receipts and the published documents to the medium, as far as it can be written.

    What is there already is not written again. Where nothing came from a site, it is somebody's
    own folder, and left as it is.
    """
    written = 0
    if not any(item.site is not None for item in found) and not _is_exported(medium):
        return Written(0, foreign=True)
    try:
        for item in found:
            if item.receipt is not None:
                _write(medium, f"receipts/{item.digest}.dsse.json", item.receipt)
                written += 1
        for name in published_files(home.published):
            file = home.published / name
            if file.exists():
                _write(medium, f"published/{name}", file.read_bytes())
    except (MachineError, StateError, FileSetError) as error:
        return Written(written, error)
    return Written(written)


def _is_exported(medium: RemoteFolder) -> bool:
    """Returns whether `ddm-site export` made it."""
    text = medium.read(README_FILE, MAX_DOCUMENT_BYTES) or b""
    return text.startswith(README_BEGINS)


def _write(medium: RemoteFolder, path: str, data: bytes) -> None:
    if medium.read(path, len(data)) != data:
        medium.write(path, data)


def _differences(statement: Statement[Submission], files: dict[str, int]) -> Iterator[str]:
    """Yields what is missing, short or too much against the signed manifest."""
    signed: tuple[FileSize, ...] = statement.predicate.files
    for file in signed:
        there = files.get(file.name)
        if there is None:
            yield f"`{file.name}` is missing"
        elif there != file.size_bytes:
            yield f"`{file.name}` has {there:,} of {file.size_bytes:,} bytes"
    extra = sorted(files.keys() - {file.name for file in signed})
    yield from (f"`{printable(name)}` does not belong there" for name in extra[:SHOWN])
    if extra[SHOWN:]:
        yield f"nor do {len(extra) - SHOWN} other files"


def _called(name: str) -> str:
    return f"the bundle {name[:16]}"


def _article(kind: str) -> str:
    return {"link": "a symbolic link", "file": "a file", "folder": "a folder"}.get(
        kind, "not a regular file"
    )


_COPY_AGAIN = "only folders with plain files belong here; copy the original folder again"
_RESUME = "run the same `ddm-site export` or copy again: it continues from there; then import again"


def _partial(name: str, problems: list[str]) -> FileSetError:
    return FileSetError(f"{_called(name)} is not whole: {', '.join(problems)}", hint=_RESUME)


def _without_manifest(name: str, files: dict[str, int]) -> FileSetError:
    there = ", ".join(f"`{printable(file)}`" for file in sorted(files)[:SHOWN]) or "no file"
    return _partial(name, [f"the manifest `{ENVELOPE_FILE}` is missing, there is {there}"])


def _unfinished(name: str) -> FileSetError:
    return _partial(name.removeprefix(PART_PREFIX), ["its copy was broken off"])


def _because(
    error: DdmFedError,
    name: str,
    state: BundleState,
    digest: str | None = None,
    site: str | None = None,
) -> Found:
    return Found(name, state, digest, site, error.code, error.message, error.hint)
