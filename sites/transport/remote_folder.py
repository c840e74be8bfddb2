"""A bundle to a folder elsewhere: a bucket, an SFTP server, a medium; whatever fsspec reaches.

    incoming/DIGEST/            the tensor files, and the manifest last: without it, it is partial
    incoming/.part-DIGEST/      the same under way, where a whole folder can be renamed in one step
    receipts/DIGEST.dsse.json   what comes back

Nobody answers over there, so sizes say how far an earlier attempt came; the digests are for the
coordinator to check. What is read here is hashed on its way.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ddm_fed.bundle.verify import ENVELOPE_FILE, VerifiedBundle
from ddm_fed.errors import DigestError, ExchangeError
from ddm_fed.exchange.retries import Retries
from ddm_fed.progress import Advance
from ddm_fed.records import MAX_DOCUMENT_BYTES, BundleState, FileSize
from ddm_fed.remote import open_folder
from ddm_fed.storage.files import BLOCK_BYTES, PART_PREFIX, open_regular
from ddm_fed.storage.output_folder import require_ours
from sites.transport.base import INBOX_MARKS, Sent

if TYPE_CHECKING:
    from ddm_fed.remote import RemoteFolder, Source

Result = TypeVar("Result")
_INBOX = "an inbox has a folder `incoming`: name the folder it is in, or make it there"


class RemoteFolderTransport:
    """A folder elsewhere, with the folders of a coordinator's inbox in it.

    Args:
        text: A URL that fsspec knows, or a path.
        timeout_s: How long to try on without progress.

    Raises:
        StateError: it is not there, has no driver here, or refused us.
        ExchangeError: it could not be reached for as long as that.
    """

    def __init__(self, text: str, *, timeout_s: float = 300.0) -> None:
        self._timeout_s = timeout_s
        self._remote: RemoteFolder | None = None
        self._text = text
        self._trying(lambda _: None)  # says at once that there is no such place

    def collect(self, digest: str) -> bytes | None:
        """Returns the receipt in `receipts`, if there is one."""
        path = f"receipts/{digest}.dsse.json"
        return self._trying(lambda remote: remote.read(path, MAX_DOCUMENT_BYTES))

    def send(self, bundle: VerifiedBundle, folder: Path, advance: Advance) -> Sent:
        """Copies what is not there yet, the manifest last.

        Raises:
            DigestError: a file here is no longer what was signed; its copy is removed.
            ExchangeError: the other side is gone for longer than the timeout.
        """
        furthest, retries = 0, self._retries()

        def reached(done: int) -> None:
            nonlocal furthest
            if done > furthest:  # a second attempt over the same bytes is no progress
                advance(done - furthest)
                furthest = done
                retries.progress()

        return self._trying(lambda remote: _Sending(remote, bundle, folder, reached).run(), retries)

    def _retries(self) -> Retries[ExchangeError]:
        return Retries(ExchangeError, self._timeout_s)

    def _trying(
        self,
        action: "Callable[[RemoteFolder], Result]",
        retries: Retries[ExchangeError] | None = None,
    ) -> Result:
        def once() -> Result:
            try:
                if self._remote is None:
                    self._remote = open_folder(self._text, timeout_s=self._timeout_s)
                    if self._remote.path is not None:
                        require_ours(self._remote.path, INBOX_MARKS, hint=_INBOX)
                return action(self._remote)
            except ExchangeError:
                self._remote = None  # the next attempt connects anew
                raise

        return (retries or self._retries()).run(once)


class _Sending:
    """One attempt to bring one bundle."""

    def __init__(
        self,
        remote: "RemoteFolder",
        bundle: VerifiedBundle,
        folder: Path,
        reached: Callable[[int], None],
    ) -> None:
        self._remote, self._bundle, self._folder = remote, bundle, folder
        self._reached, self._done = reached, 0

    def run(self) -> Sent:
        remote, digest = self._remote, self._bundle.payload_sha256
        target = place = f"incoming/{digest}"
        there = self._sizes(target)
        if remote.renames and not there:  # nobody takes what is under way for whole
            place = f"incoming/{PART_PREFIX}{digest}"
            there = self._sizes(place)
        files, envelope = self._bundle.submission.files, self._bundle.envelope
        wanted = {file.name: file.size_bytes for file in files} | {ENVELOPE_FILE: len(envelope)}
        whole = place == target and wanted.items() <= there.items()
        whole = whole and remote.read(f"{place}/{ENVELOPE_FILE}", len(envelope)) == envelope
        if whole and remote.path is None:
            return Sent(BundleState.WAITING)
        sent = [self._send(f"{place}/{file.name}", file, there.get(file.name, 0)) for file in files]
        if whole and not any(sent):
            return Sent(BundleState.WAITING)
        remote.write(f"{place}/{ENVELOPE_FILE}", envelope)
        if place != target:
            remote.rename(place, target)
        return Sent(BundleState.SENT)

    def _sizes(self, place: str) -> dict[str, int]:
        found = self._remote.entries(place)
        return {entry.name: entry.size_bytes for entry in found if entry.kind == "file"}

    def _send(self, path: str, file: FileSize, there: int) -> int:
        """Brings one file, from where its copy ends if that can be continued.

        Returns how many bytes were sent.
        """
        goes_on = there == file.size_bytes or (self._remote.appends and there < file.size_bytes)
        begin, start = self._done, there if goes_on else 0
        with open_regular(self._folder / file.name) as source:
            digest = _hash(source, start)
            if not self._agrees(path, start, digest.digest()):
                source.seek(0)
                digest, start = hashlib.sha256(), 0
            self._note(begin + start)
            if start < file.size_bytes:
                with self._remote.writing(path, append=start > 0) as target:
                    for block in _blocks(source, file.size_bytes - start):
                        digest.update(block)
                        target.write(block)
                        self._note(self._done + len(block))
        if digest.hexdigest() != self._bundle.sha256[file.name]:
            self._remote.remove(path)
            raise DigestError(
                f"`{file.name}` in {self._folder} is no longer what was signed: found "
                f"{digest.hexdigest()}, signed {self._bundle.sha256[file.name]}",
                hint="it was damaged after it was released; restore it from backup, or train and "
                "release again. Its copy on the way was removed",
            )
        return file.size_bytes - start

    def _note(self, done: int) -> None:
        self._done = done
        self._reached(done)

    def _agrees(self, path: str, length: int, digest: bytes) -> bool:
        """Returns whether what is there already is ours; asked only where it costs no network."""
        if length == 0 or self._remote.path is None:
            return True
        with self._remote.reading(path) as copy:
            return _hash(copy, length).digest() == digest


def _hash(source: "Source", length: int) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for block in _blocks(source, length):
        digest.update(block)
    return digest


def _blocks(source: "Source", length: int) -> Iterator[bytes]:
    while length and (block := source.read(min(BLOCK_BYTES, length))):
        yield block
        length -= len(block)
