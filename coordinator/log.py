"""The coordinator's own copy of the transparency log: appended here, published from here.

Appending a whole line to `log/leaves.jsonl` is the moment of admission or removal. The checkpoint,
the published copies and the receipts all follow from that file, and are made again after a kill.

A command verifies the whole log once, when it reads it (`read_book`), and holds what it read. A
leaf it appends is verified by itself, before it is written, and written only to the very files that
were read: which file it is, its size and the times it changed are compared each time, on the
descriptor that is written to. Where they differ the whole log is verified again and must be the
same. The head is signed over what is in memory, never over what the disk says by then: an altered
leaf is not signed, and whoever reads the log next finds it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import StateError, naming
from ddm_fed.limits import MAX_LOG_BYTES
from ddm_fed.records import MAX_DOCUMENT_BYTES, LogHead
from ddm_fed.storage.files import (
    drop_torn_line,
    open_regular,
    open_to_append,
    read_bounded,
    sync_folder,
    write_atomically,
)
from ddm_fed.trust import Checkpoint, RosterChain, open_checkpoint, sign_checkpoint
from ddm_fed.trust.log import CHECKPOINT_FILE, LEAVES_FILE, LOG_FILES, Log, log_of


class _Stamp(NamedTuple):
    """What changes with every change of a file. Nobody sets `changed_ns` but the system's clock."""

    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, facts: os.stat_result) -> "_Stamp":
        return cls(facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


@dataclass(frozen=True)
class OwnLog(Log):
    """The log as this process read or wrote it; for as long as it holds the folder's lock.

    Attributes:
        leaves_stamp: Of `leaves.jsonl`.
        checkpoint_stamp: Of `checkpoint`.
    """

    leaves_stamp: _Stamp | None = None
    checkpoint_stamp: _Stamp | None = None


def read_book(home: CoordinatorFolder, chain: RosterChain) -> OwnLog:
    """Returns the log, finishing what a kill interrupted: a torn line, a checkpoint left behind.

    Raises:
        StateError: the log is shorter or other than the head that was signed last.
        RefusedError: an entry does not hold.
    """
    leaves, file = home.log / LEAVES_FILE, home.log / CHECKPOINT_FILE
    open_to_append(leaves).close()  # there may be none yet
    drop_torn_line(leaves)
    with open_regular(leaves) as source:
        stamp = _Stamp.of(os.fstat(source.fileno()))
        lines = source.read(MAX_LOG_BYTES + 1).split(b"\n")[:-1]
    log = log_of(lines, chain, b"")
    signed = read_bounded(file, MAX_DOCUMENT_BYTES) if file.exists() else b""
    if signed:
        _require_head(home, log, signed, chain)
    own = OwnLog(log.origin, log.entries, signed, log.void, leaves_stamp=stamp)
    return _with_signed_head(home, chain, own)


def _with_signed_head(home: CoordinatorFolder, chain: RosterChain, log: OwnLog) -> OwnLog:
    """Returns the log with a checkpoint over its head, which is on disk then."""
    checkpoint = Checkpoint(origin=log.origin, size=log.size, root=log.head.root)
    note = sign_checkpoint(checkpoint, home.key(chain))
    file = home.log / CHECKPOINT_FILE
    if note != log.checkpoint:  # signatures are deterministic: equal heads have equal bytes
        write_atomically(file, note)
    return replace(log, checkpoint=note, checkpoint_stamp=_Stamp.of(file.lstat()))


def _require_head(home: CoordinatorFolder, log: Log, signed: bytes, chain: RosterChain) -> None:
    keys = chain.all_coordinator_keys()
    head, _ = open_checkpoint(signed, chain.log_origin, keys, what="our own checkpoint")
    if head.size > log.size or log.head_at(head.size) != LogHead(size=head.size, root=head.root):
        raise StateError(
            f"the log in {home.log} has {log.size} leaves and is not the one whose head over "
            f"{head.size} leaves was signed",
            hint="it was cut or altered: restore the folder from backup; never sign another head "
            "of this size, the sites would take it for a second history",
        )


def append(home: CoordinatorFolder, chain: RosterChain, log: OwnLog, envelope: bytes) -> OwnLog:
    """Appends the signed statement in `envelope` as the next leaf; returns the log after it.

    Args:
        home: The coordinator, whose lock this process holds.
        chain: The published rosters.
        log: As this process read it, or as the last `append` returned it.
        envelope: What is appended.

    Raises:
        RefusedError: the leaf does not hold or does not come next; nothing was written.
        StateError: the log on disk is no longer `log`; nothing was written or signed.
    """
    grown = log.extended(envelope, chain)
    if not _is_unchanged(home, log):
        found = read_book(home, chain)
        if found.head != log.head:
            raise _changed(home, log)
        log = found
    line = envelope + b"\n"
    with _appending(home.log / LEAVES_FILE) as file:
        before = _Stamp.of(os.fstat(file.fileno()))
        if before != log.leaves_stamp:
            raise _changed(home, log)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
        after = _Stamp.of(os.fstat(file.fileno()))
    if after.size_bytes != before.size_bytes + len(line):
        raise _changed(home, log)
    return _with_signed_head(home, chain, replace(grown, leaves_stamp=after))


@contextmanager
def _appending(path: Path) -> Iterator[BinaryIO]:
    with naming(path):
        with open_to_append(path) as file:
            yield file
        sync_folder(path.parent)


def _is_unchanged(home: CoordinatorFolder, log: OwnLog) -> bool:
    try:
        leaves = (home.log / LEAVES_FILE).lstat()
        checkpoint = (home.log / CHECKPOINT_FILE).lstat()
    except FileNotFoundError:
        return False
    return (_Stamp.of(leaves), _Stamp.of(checkpoint)) == (log.leaves_stamp, log.checkpoint_stamp)


def _changed(home: CoordinatorFolder, log: Log) -> StateError:
    return StateError(
        f"the log in {home.log} is no longer the one of {log.size} leaves that this command read",
        hint="somebody else wrote there, or put another in its place: find out who, and restore "
        "the folder from backup if the next command does not take it",
    )


def publish_log(home: CoordinatorFolder, log: Log, *, since: int = 0) -> None:
    """Brings the published copies in line with the log, and the receipts from leaf `since` on."""
    leaves = b"".join(entry.envelope + b"\n" for entry in log.entries)
    for name, data in zip(LOG_FILES, (leaves, log.checkpoint), strict=True):
        target = home.published / name
        if not target.exists() or target.read_bytes() != data:
            write_atomically(target, data)
    for entry in log.entries[since:]:
        if entry.receipt is None:
            continue
        target = home.receipts / f"{entry.submission_sha256}.dsse.json"
        if not target.exists():
            write_atomically(target, entry.envelope)
