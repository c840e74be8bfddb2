"""The transparency log as two files, read only as a whole and only if everything in it holds.

    leaves.jsonl     one signed statement a line: a receipt, or a removal
    checkpoint       the signed head: number of leaves and Merkle root

The log is public. The leaf of a statement is the hash of its payload. Rules, in order.

1. The checkpoint is of this federation's log, signed by the active coordinator key.
2. The file has that many leaves, and their Merkle root is the signed one.
3. Every statement is signed by a coordinator key that could sign at its place, says its place
   itself, and is of this federation.
4. The sequence numbers of a site rise, among those of its receipts that count.

A receipt counts unless the rosters say by now that nobody could sign for its site at its place: the
key that could was a thief's. It stays in the log, which forgets nothing, but decides nothing.

Whoever saw an earlier head checks that the log continues it: a log that does not is a fork, and the
two signed heads prove it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Self

from ddm_fed.errors import LogError, RollbackError
from ddm_fed.limits import MAX_LEAF_BYTES, MAX_LEAVES, MAX_LOG_BYTES
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    RECEIPT_PREDICATE,
    REMOVAL_PREDICATE,
    LogHead,
    Receipt,
    Removal,
    Statement,
)
from ddm_fed.signing import VerifyKey, open_envelope, peek_payload
from ddm_fed.storage.files import open_regular, read_bounded
from ddm_fed.trust import (
    Checkpoint,
    InclusionProof,
    MerkleTree,
    RosterChain,
    leaf_hash,
    open_checkpoint,
)

LEAVES_FILE = "leaves.jsonl"
CHECKPOINT_FILE = "checkpoint"
LOG_FILES = (LEAVES_FILE, CHECKPOINT_FILE)
SUBMISSION_FILE = "submission.dsse.json"


@dataclass(frozen=True)
class LogEntry:
    """One leaf: the statement, and the envelope it came in."""

    index: int
    envelope: bytes
    payload: bytes
    statement: Statement[Receipt] | Statement[Removal]

    @property
    def leaf(self) -> bytes:
        """The leaf's hash."""
        return leaf_hash(self.payload)

    @property
    def receipt(self) -> Receipt | None:
        """The receipt, if it is one."""
        predicate = self.statement.predicate
        return predicate if isinstance(predicate, Receipt) else None

    @property
    def removal(self) -> Removal | None:
        """The removal, if it is one."""
        predicate = self.statement.predicate
        return predicate if isinstance(predicate, Removal) else None

    @property
    def submission_sha256(self) -> str:
        """The digest of the submission a receipt is about."""
        return self.statement.subject[0].digest.sha256


class _Index:
    """What is asked of a log again and again: its tree, and its receipts by site and by digest.

    A log and those that continue it share one. Every log looks at its own first entries only, so
    what was appended later is not in it.
    """

    def __init__(self, entries: Iterable[LogEntry]) -> None:
        self.tree = MerkleTree()
        self.by_site: dict[str, list[LogEntry]] = {}
        self.by_submission: dict[str, LogEntry] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: LogEntry) -> None:
        """Adds the next entry."""
        self.tree.append(entry.leaf)
        if entry.receipt is not None:
            self.by_site.setdefault(entry.receipt.site, []).append(entry)
            self.by_submission.setdefault(entry.submission_sha256, entry)


@dataclass(frozen=True)
class Log:
    """A verified log. `read_log` makes one from files, the coordinator from what it wrote.

    Example:
        With the published folder of a federation that admitted three sites:

        >>> log = read_log(published, trust.chain)
        >>> log.size, log.last_sequence("hospital-b"), log.head == log.head_at(3)
        (3, 1, True)
        >>> len(log.proof(0).path)
        2
    """

    origin: str
    entries: tuple[LogEntry, ...]
    checkpoint: bytes
    void: frozenset[int] = frozenset()
    """Places of the receipts that do not count."""
    shared: _Index | None = field(default=None, repr=False, compare=False)

    @cached_property
    def _index(self) -> _Index:
        return _Index(self.entries) if self.shared is None else self.shared

    @property
    def leaves(self) -> Sequence[bytes]:
        """The leaf hashes."""
        return self._index.tree.leaves[: self.size]

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self.entries)

    def head_at(self, size: int) -> LogHead:
        """Returns what the head of this log was when it had `size` leaves."""
        return LogHead(size=size, root=self._index.tree.root(size).hex())

    @cached_property
    def head(self) -> LogHead:
        """The present head."""
        return self.head_at(self.size)

    def proof(self, index: int) -> InclusionProof:
        """Returns the proof that the leaf `index` is in the log under its checkpoint."""
        path = self._index.tree.inclusion_path(index, self.size)
        return InclusionProof(index, path, self.checkpoint)

    def extended(self, envelope: bytes, chain: RosterChain) -> Self:
        """Returns this log with the leaf in `envelope`, which alone is verified (rules 3 and 4).

        What is here was verified before. The result has the checkpoint of this log still: whoever
        may sign signs one over the new `head`, and puts it in.

        Raises:
            RefusedError: the leaf does not hold, or does not come next.
        """
        entry = read_entry(envelope, self.size, chain, chain.log_keys(self.size))
        void = self.void
        if is_void(entry, chain):
            void |= {entry.index}
        elif entry.receipt is not None:
            require_rises(entry, entry.receipt, self.last_sequence(entry.receipt.site))
        index = self._index
        if index.tree.size != self.size:  # this log was continued otherwise already
            index = _Index(self.entries)
        index.add(entry)
        return replace(self, entries=(*self.entries, entry), void=void, shared=index)

    def receipts(self, *, site: str | None = None, size: int | None = None) -> Iterator[LogEntry]:
        """Yields the entries that are receipts, of `site` and among the first `size` if given."""
        end = self.size if size is None else min(size, self.size)
        found = self.entries if site is None else self._index.by_site.get(site, ())
        for entry in takewhile(lambda entry: entry.index < end, found):
            if entry.receipt is not None:
                yield entry

    def counted(self, site: str) -> Iterator[tuple[LogEntry, Receipt]]:
        """Yields the receipts of `site` that count, oldest first, each with its entry."""
        for entry in self.receipts(site=site):
            if entry.receipt is not None and entry.index not in self.void:
                yield entry, entry.receipt

    def last_sequence(self, site: str) -> int:
        """Returns the highest number of `site` that counts, 0 if there is none."""
        return max((receipt.sequence for _, receipt in self.counted(site)), default=0)

    def newest(self, site: str, *, size: int | None = None) -> LogEntry | None:
        """Returns the newest receipt of `site`, among the first `size` leaves if given."""
        return max(self.receipts(site=site, size=size), key=lambda e: e.index, default=None)

    def find(self, submission_sha256: str) -> LogEntry | None:
        """Returns the receipt for this submission."""
        found = self._index.by_submission.get(submission_sha256)
        return found if found is not None and found.index < self.size else None

    def current(self, plan_sha256: str, *, with_void: bool = False) -> dict[str, LogEntry]:
        """Returns the newest receipt under this plan of every site that was not removed since.

        Args:
            plan_sha256: The plan.
            with_void: Also look at receipts that do not count.
        """
        found: dict[str, LogEntry] = {}
        for entry in self.entries:
            if entry.index in self.void and not with_void:
                continue
            if entry.receipt is not None and entry.receipt.plan_sha256 == plan_sha256:
                found[entry.receipt.site] = entry
            elif entry.removal is not None:
                found.pop(entry.removal.site, None)
        return found


def read_entry(
    data: bytes,
    index: int,
    chain: RosterChain,
    keys: Iterable[VerifyKey],
    *,
    what: str | None = None,
) -> LogEntry:
    """Returns the statement in the envelope `data`, which claims to be leaf `index` (rule 3).

    Args:
        data: The envelope.
        index: The place it must say it has.
        chain: The federation's rosters.
        keys: Coordinator keys that may have signed it.
        what: Its name, for messages; by default its place.

    Raises:
        LogError: it says another place, federation or kind.
        RefusedError: form or signature do not hold.
    """
    what = what or f"log entry {index}"
    signed = open_envelope(data, IN_TOTO_PAYLOAD, keys, what=what)
    kind = _kind(signed.payload, what)
    statement = kind.from_json(signed.payload, what=what)
    predicate = statement.predicate
    if isinstance(predicate, Receipt) and [item.name for item in statement.subject] != [
        SUBMISSION_FILE
    ]:
        raise LogError(
            f"{what} is a receipt for something other than one submission",
            hint="it was not written by this program; keep it, and ask the coordinator",
        )
    found = (predicate.federation, predicate.log_index)
    expected = (chain.current.federation, index)
    if found != expected:
        raise LogError(
            f"{what} says it is entry {found[1]} of `{found[0]}`, expected {expected[1]} of "
            f"`{expected[0]}`",
            hint="the log was reordered or mixed with another; keep it, and ask the coordinator",
        )
    return LogEntry(index, data, signed.payload, statement)


def _kind(payload: bytes, what: str) -> type[Statement[Receipt]] | type[Statement[Removal]]:
    # The marker decides only which validator reads the payload; the validator refuses the rest.
    if f'"predicateType":"{REMOVAL_PREDICATE}"'.encode() in payload:
        return Statement[Removal]
    if f'"predicateType":"{RECEIPT_PREDICATE}"'.encode() in payload:
        return Statement[Receipt]
    raise LogError(
        f"{what} is neither a receipt nor a removal",
        hint="one signed document was put in the place of another; keep it, ask the coordinator",
    )


def read_log(folder: Path, chain: RosterChain) -> Log:
    """Returns the log in `folder` if every rule of this module holds.

    Raises:
        LogError: a leaf is missing, too many, altered or in another place.
        RefusedError: form or signature of the checkpoint or of a leaf do not hold.
    """
    note = read_bounded(folder / CHECKPOINT_FILE, MAX_DOCUMENT_BYTES)
    head, _ = open_checkpoint(
        note, chain.log_origin, chain.coordinator_keys(None), what="the checkpoint"
    )
    lines = list(_lines(folder / LEAVES_FILE, head.size))
    _require_head(lines, head)
    return log_of(lines, chain, note)


def log_of(lines: Iterable[bytes], chain: RosterChain, checkpoint: bytes) -> Log:
    """Returns the log of the leaves `lines`, verified by rules 3 and 4.

    Raises:
        RefusedError: an entry does not hold.
    """
    entries = tuple(read_entries(lines, chain))
    void = frozenset(entry.index for entry in entries if is_void(entry, chain))
    return Log(chain.log_origin, entries, checkpoint, void)


def is_void(entry: LogEntry, chain: RosterChain) -> bool:
    """Returns whether `entry` is a receipt for what nobody could sign at its place."""
    site = chain.site(entry.receipt.site) if entry.receipt is not None else None
    if site is None:
        return False
    able = {key.role for key in site.keys if key.may_sign_at(entry.index)}
    return not able.issuperset(site.require_at(entry.index))


def read_entries(lines: Iterable[bytes], chain: RosterChain) -> Iterator[LogEntry]:
    """Yields the verified entries in `lines` (rules 3 and 4).

    Raises:
        RefusedError: an entry does not hold.
    """
    last: dict[str, int] = {}
    for index, line in enumerate(lines):
        entry = read_entry(line, index, chain, chain.log_keys(index))
        if entry.receipt is not None and not is_void(entry, chain):
            site = entry.receipt.site
            require_rises(entry, entry.receipt, last.get(site, 0))
            last[site] = entry.receipt.sequence
        yield entry


def require_rises(entry: LogEntry, receipt: Receipt, last: int) -> None:
    """Refuses a receipt whose number does not follow `last`, the highest of its site (rule 4).

    Raises:
        LogError: it does not.
    """
    if receipt.sequence <= last:
        raise LogError(
            f"log entry {entry.index} admits sequence {receipt.sequence} of `{receipt.site}` after "
            f"{last}",
            hint="an older submission was admitted again; ask the coordinator",
        )


def _lines(file: Path, expected: int) -> Iterator[bytes]:
    """Yields the lines of `file`, and refuses it if there are not exactly `expected`."""
    if expected > MAX_LEAVES:
        raise LogError(
            f"the log claims {expected} leaves, at most {MAX_LEAVES} are read",
            hint="no federation admits so many; ask the coordinator",
        )
    taken = 0
    with open_regular(file) as source:
        for index in range(expected):
            line = source.readline(MAX_LEAF_BYTES + 1)
            taken += len(line)
            if len(line) > MAX_LEAF_BYTES or taken > MAX_LOG_BYTES:
                raise LogError(
                    f"entry {index} of the log goes beyond {MAX_LEAF_BYTES} bytes, or the log "
                    f"beyond {MAX_LOG_BYTES}",
                    hint="no receipt and no removal is as long; ask the coordinator",
                )
            if not line.endswith(b"\n"):
                raise LogError(
                    f"the log has {index} whole leaves, its checkpoint was signed over {expected}",
                    hint="a leaf was removed, or the copy is incomplete; fetch it again",
                )
            yield line[:-1]
        if source.read(1):
            raise LogError(
                f"the log has more than the {expected} leaves its checkpoint was signed over",
                hint="a leaf was added, or the checkpoint is older; fetch both again",
            )


def _require_head(lines: list[bytes], head: Checkpoint) -> None:
    tree = MerkleTree(
        leaf_hash(peek_payload(line, IN_TOTO_PAYLOAD, what=f"log entry {index}"))
        for index, line in enumerate(lines)
    )
    found = tree.root().hex()
    if found != head.root:
        raise LogError(
            f"the {head.size} leaves of the log have the root {found}, its checkpoint was signed "
            f"over {head.root}",
            hint="a leaf was altered, removed or reordered; fetch the log again, and compare the "
            "checkpoint with another site's",
        )


def require_continues(log: Log, seen: Log, *, what: str) -> None:
    """Refuses `log` unless it continues `seen`, a verified earlier state of it.

    Raises:
        RollbackError: it is an earlier state.
        LogError: the two cannot both be true; both signed heads are in the message.
    """
    common = min(log.size, seen.size)
    if log.head_at(common) != seen.head_at(common):
        pairs = zip(log.leaves, seen.leaves, strict=False)
        first = next(i for i, (ours, theirs) in enumerate(pairs) if ours != theirs)
        raise LogError(
            f"{what}: the coordinator showed two histories, which differ from entry {first} on. "
            f"One signed head: {_one_line(seen)}. The other: {_one_line(log)}",
            hint="keep both folders: together they prove it; ask the coordinator's people",
        )
    if log.size < seen.size:
        raise RollbackError(
            f"{what}: its log has {log.size} leaves, {seen.size} were seen before",
            hint="fetch the newest published folder",
        )


def _one_line(log: Log) -> str:
    return " | ".join(line for line in log.checkpoint.decode().splitlines() if line)
