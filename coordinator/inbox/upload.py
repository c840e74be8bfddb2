"""Where bundles arrive over a network, byte by byte: one place for every way of travel.

    begin(manifest) -> Upload      signatures, plan and sequence hold before a byte is taken
    write(offset, data)            only from where it stands
    pause()                        what was written is on disk, and will be after a kill
    commit()                       sizes and digests hold; the bundle is in the inbox

An unfinished bundle lies in `inbox/partial/DIGEST/`, which only the coordinator can write:

    bundle/          the manifest, and the tensor files at their full length from the beginning
    progress.json    who sends it and how much of it is safe, for `status` and for the next start
    lock             held by the one process that takes it in

What is committed is judged once more, from its first rule, like everything that lies in the inbox.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock, RLock

from coordinator.inbox.ledger_prices import Prices
from coordinator.inbox.manifest import judge_manifest
from coordinator.inbox.quotas import make_room, require_share
from coordinator.inbox.upload_progress import PROGRESS_FILE, Progress, read_progress
from coordinator.published import Published, PublishedView
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.submission import read_submission
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.errors import (
    DigestError,
    MachineError,
    OffsetError,
    PlanMismatchError,
    QuotaError,
    SizeError,
)
from ddm_fed.exchange.body import Body, Span
from ddm_fed.records import Statement, Submission, now
from ddm_fed.storage.files import (
    BLOCK_BYTES,
    exclusive,
    is_locked,
    sync_folder,
    write_atomically,
)
from ddm_fed.storage.junk import is_junk
from ddm_fed.trust import require_in_force
from ddm_fed.trust.log import LogEntry

BUNDLE_FOLDER, LOCK_FILE = "bundle", "lock"
SYNC_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """What a sender may take up.

    Attributes:
        reserve_bytes: Left free on the disk whatever arrives.
        open_uploads: Unfinished bundles of one carrier.
        keep: How long an unfinished bundle is kept after its last byte.
    """

    reserve_bytes: int = 1 << 30
    open_uploads: int = 2
    keep: timedelta = timedelta(days=7)


@dataclass(frozen=True)
class Arrived:
    """A bundle that needs no byte more: it waits in the inbox, or is admitted with a receipt."""

    digest: str
    entry: LogEntry | None


class Upload:
    """An unfinished bundle. `Uploads` makes it; threads may share it."""

    def __init__(
        self, folder: Path, target: Path, statement: Statement[Submission], carrier: str
    ) -> None:
        self.digest, self.site, self.carrier = folder.name, statement.predicate.site, carrier
        self.body = Body(statement.predicate.files)
        self._signed = {item.name: item.digest.sha256 for item in statement.subject}
        self._folder, self._target = folder, target
        # descriptors are closed when it ends: no thread may still be writing to them then
        self._lock = RLock()
        self._held = ExitStack()
        self._have = self._safe = self._flushing = 0
        self._flusher = ThreadPoolExecutor(1, "flush")
        self._flush: Future[None] | None = None
        self._hashes = {file.name: hashlib.sha256() for file in self.body.files}
        self._files: dict[str, int] = {}

    @property
    def size_bytes(self) -> int:
        """Length of the whole body."""
        return self.body.size_bytes

    def open(self) -> None:
        """Takes the files in hand, as long as they will be, and finds out how much is there.

        Raises:
            BusyError: another process is taking it in.
            QuotaError: the disk is full.
        """
        self._held.enter_context(exclusive(self._folder / LOCK_FILE))
        bundle = self._folder / BUNDLE_FOLDER
        bundle.mkdir(exist_ok=True)
        for file in self.body.files:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            descriptor = os.open(bundle / file.name, flags, 0o600)
            self._held.callback(os.close, descriptor)
            self._files[file.name] = descriptor
            try:
                os.posix_fallocate(descriptor, 0, file.size_bytes)
            except OSError as error:
                raise QuotaError(
                    f"there is no room for the {self.size_bytes} bytes of `{self.site}`: "
                    f"{error.strerror}",
                    hint="the coordinator's people have to make room; what was sent is kept",
                ) from None
        known = read_progress(self._folder)
        if known is not None and known.is_of(self.size_bytes):
            self._take_up(known.committed_bytes)
        self._note()

    def _take_up(self, committed: int) -> None:
        for name, start, length in self.body.spans(0, committed):
            digest, at = self._hashes[name], start
            while at < start + length:
                block = os.pread(self._files[name], min(BLOCK_BYTES, start + length - at), at)
                digest.update(block)
                at += len(block)
        self._have = self._safe = self._flushing = committed

    def have(self) -> int:
        """Returns how many bytes of the body are safe: the sender goes on from there."""
        self.pause()
        return self._safe

    def write(self, offset: int, data: bytes) -> int:
        """Takes the next bytes; returns how many there are now.

        Raises:
            OffsetError: they are not the next.
            SizeError: they reach past what was signed.
            MachineError: the disk refused.
        """
        with self._lock:
            self._require_next(offset, len(data))
            taken, view = 0, memoryview(data)
            for name, start, length in self.body.spans(offset, len(data)):
                piece = view[taken : taken + length]
                _write_all(self._files[name], piece, start)
                self._hashes[name].update(piece)
                taken += length
            self._have += taken
            if self._have - self._flushing >= SYNC_BYTES:
                self._flush_behind()
            return self._have

    def _flush_behind(self) -> None:
        """Makes what was written safe while the next bytes come; at most one flush behind."""
        self._join()
        spans = list(self.body.spans(self._safe, self._have - self._safe))
        self._flushing = self._have
        self._flush = self._flusher.submit(self._sync, spans)

    def _sync(self, spans: list[Span]) -> None:
        for name, _, _ in spans:
            os.fdatasync(self._files[name])

    def _join(self) -> None:
        if self._flush is not None:
            self._flush.result()
            self._flush, self._safe = None, self._flushing
            self._note()

    def _require_next(self, offset: int, length: int) -> None:
        if offset != self._have or not self._files:
            raise OffsetError(
                f"the upload {self.digest[:16]}… stands at byte {self._have}, offered was byte "
                f"{offset}",
                hint="ask where it stands, and go on from there",
            )
        if offset + length > self.size_bytes:
            raise SizeError(
                f"the upload {self.digest[:16]}… was signed with {self.size_bytes} bytes, offered "
                f"were {offset + length}",
                hint="the site sends something other than it signed; release it again",
            )

    def pause(self) -> None:
        """Makes what was written safe."""
        with self._lock:
            if self._safe == self._have or not self._files:
                return
            self._join()
            self._sync(list(self.body.spans(self._safe, self._have - self._safe)))
            self._safe = self._flushing = self._have
            self._note()

    def _note(self) -> None:
        progress = Progress(self.site, self.carrier, self.size_bytes, self._safe, now())
        write_atomically(self._folder / PROGRESS_FILE, progress.to_json())

    def commit(self) -> Path:
        """Moves the whole bundle into the inbox; returns where it lies.

        Raises:
            OffsetError: bytes are missing.
            DigestError: it is not what was signed; nothing of it is kept.
        """
        with self._lock:
            if self._have < self.size_bytes or not self._files:
                raise OffsetError(
                    f"the upload {self.digest[:16]}… has {self._have} of {self.size_bytes} bytes",
                    hint="send the rest first",
                )
            self._require_signed()
            self.pause()
            bundle = self._folder / BUNDLE_FOLDER
            sync_folder(bundle)
            bundle.rename(self._target)
            sync_folder(self._target.parent)
            self.discard()
            return self._target

    def _require_signed(self) -> None:
        for name, digest in self._hashes.items():
            if digest.hexdigest() != self._signed[name]:
                self.discard()
                raise DigestError(
                    f"`{name}` of the upload {self.digest[:16]}… is not what was signed: found "
                    f"{digest.hexdigest()}, signed {self._signed[name]}",
                    hint="it was damaged on its way or at the site; send it again",
                )

    def close(self) -> None:
        """Makes it safe and lets go of it; another process may take it up."""
        with self._lock:
            try:
                self.pause()
            finally:
                self._let_go()

    def discard(self) -> None:
        """Lets go of it, and of everything that arrived of it."""
        with self._lock:
            self._let_go()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _let_go(self) -> None:
        self._flusher.shutdown()  # descriptors are closed only when nothing is at work on them
        self._flush = None
        self._files.clear()
        self._held.close()


class Uploads:
    """Takes bundles in, for one coordinator. Threads may share it.

    Args:
        home: The coordinator.
        limits: What a sender may take up.
        view: What is published; by default read from `home`.
    """

    def __init__(
        self,
        home: CoordinatorFolder,
        limits: Limits | None = None,
        view: PublishedView | None = None,
    ) -> None:
        self.home, self.limits = home, limits or Limits()
        self.view, self.prices = view or PublishedView(home), Prices()
        self._open: dict[str, Upload] = {}
        self._lock = Lock()

    def begin(self, envelope: bytes, *, carrier: str, site: str | None = None) -> Upload | Arrived:
        """Returns the upload that a signed manifest announces, as far as it came before.

        Nothing of a bundle is taken that admission would refuse for its manifest.

        Args:
            envelope: The manifest.
            carrier: Who brings it, by the transport's own word: for limits and records.
            site: Whose it has to be; None lets a courier bring it.

        Raises:
            RefusedError: the first rule that fails.
            QuotaError: there is no room, or this carrier has too much open.
            BusyError: another process is taking it in.
        """
        published, what = self.view.current(), f"the bundle that `{carrier}` offers"
        trust, log = published.trust, published.log
        require_in_force(trust, now())
        manifest = read_submission(envelope, trust.chain, log.size, what=what)
        statement, digest = manifest
        submission = statement.predicate
        if site is not None and submission.site != site:
            raise PlanMismatchError(
                f"{what} is of `{submission.site}`, the connection is of `{site}`",
                hint="a site sends its own bundles; a courier uses the folder exchange",
            )
        target = self.home.incoming / digest
        entry = log.find(digest)
        if entry is not None or target.exists():
            return Arrived(digest, entry)
        judge_manifest(self.home, trust, log, manifest, what=what)
        self.prices.require(submission, digest, trust, what=what)
        with self._lock:
            known = self._open.get(digest)
            if known is not None:
                return known
            self._require_room(published, submission, carrier, digest)
            folder = self.home.partial / digest
            (folder / BUNDLE_FOLDER).mkdir(parents=True, exist_ok=True)
            write_atomically(folder / BUNDLE_FOLDER / ENVELOPE_FILE, envelope)
            upload = Upload(folder, target, statement, carrier)
            try:
                upload.open()
            except QuotaError:
                if upload.have() == 0:
                    upload.discard()
                else:
                    upload.close()
                raise
            self._open[digest] = upload
        return upload

    def find(self, digest: str) -> Upload | None:
        """Returns the upload of this digest, if this process has it in hand."""
        return self._open.get(digest)

    @contextmanager
    def finishing(self, upload: Upload) -> Iterator[None]:
        """Lets go of `upload` after the block, however it ends."""
        try:
            yield
        finally:
            with self._lock:
                self._open.pop(upload.digest, None)

    def close(self) -> None:
        """Makes everything safe that is in hand."""
        with self._lock:
            for upload in self._open.values():
                upload.close()
            self._open.clear()

    def expire(self) -> list[str]:
        """Deletes what nobody has continued for long, or was moved on; returns the digests."""
        gone = []
        with self._lock:
            for folder in sorted(self.home.partial.iterdir()):
                if not folder.is_dir() or is_junk(folder.name):
                    continue
                known = read_progress(folder)
                moved_on = not (folder / BUNDLE_FOLDER).exists()  # a kill came right after that
                ended = known is None or now() - known.updated_at > self.limits.keep
                if (ended or moved_on) and not is_locked(folder / LOCK_FILE):
                    shutil.rmtree(folder, ignore_errors=True)
                    gone.append(folder.name)
        return gone

    def _require_room(
        self, published: Published, submission: Submission, carrier: str, digest: str
    ) -> None:
        size_bytes, chain = Body(submission.files).size_bytes, published.trust.chain
        folders = [path for path in self.home.partial.iterdir() if path.name != digest]
        unfinished = [known for path in folders if (known := read_progress(path)) is not None]
        mine = [known for known in unfinished if known.carrier == carrier]
        if len(mine) >= self.limits.open_uploads:
            raise QuotaError(
                f"`{carrier}` has {len(mine)} unfinished uploads, {self.limits.open_uploads} are "
                "allowed",
                hint="finish or abandon those first; unfinished ones end after "
                f"{self.limits.keep.days} days",
            )
        # once on its way in, and once more in the store
        present = 0 if not (self.home.partial / digest / PROGRESS_FILE).exists() else size_bytes
        needed = 2 * size_bytes - present + self.limits.reserve_bytes
        reserve = self.limits.reserve_bytes
        require_share(self.home, chain, published.log, submission.site, size_bytes, reserve)
        free = make_room(self.home, chain, submission.site, needed)
        if free < needed:
            raise QuotaError(
                f"the coordinator has {free} bytes free, {needed} are needed to take this in and "
                "keep its reserve",
                hint="its people have to make room; run the same command again then",
            )


def has_room(home: CoordinatorFolder, limits: Limits) -> bool:
    """Returns whether the disk has more than its reserve left."""
    return shutil.disk_usage(home.path).free > limits.reserve_bytes


def _write_all(descriptor: int, data: memoryview, start: int) -> None:
    written = 0
    while written < len(data):
        try:
            written += os.pwrite(descriptor, data[written:], start + written)
        except OSError as error:
            raise MachineError(
                f"the coordinator's disk refused to write: {error.strerror}",
                hint="its people have to look at it; what was sent before is kept",
            ) from None
