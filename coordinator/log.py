"""The coordinator's own copy of the transparency log: appended here, published from here.

Appending a whole line to `log/leaves.jsonl` is the moment of admission or removal. The checkpoint,
the published copies and the receipts all follow from that file, and are made again after a kill.
"""

from dataclasses import replace

from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import StateError
from ddm_fed.records import MAX_DOCUMENT_BYTES, LogHead
from ddm_fed.storage.files import (
    append_durably,
    drop_torn_line,
    read_bounded,
    write_atomically,
)
from ddm_fed.trust import Checkpoint, RosterChain, open_checkpoint, sign_checkpoint
from ddm_fed.trust.log import CHECKPOINT_FILE, LEAVES_FILE, LOG_FILES, Log, log_of


def read_book(home: CoordinatorFolder, chain: RosterChain) -> Log:
    """Returns the log, finishing what a kill interrupted: a torn line, a checkpoint left behind.

    Raises:
        StateError: the log is shorter or other than the head that was signed last.
        RefusedError: an entry does not hold.
    """
    leaves = home.log / LEAVES_FILE
    drop_torn_line(leaves)
    lines = leaves.read_bytes().split(b"\n")[:-1] if leaves.exists() else []
    log = log_of(lines, chain, b"")
    file = home.log / CHECKPOINT_FILE
    signed = read_bounded(file, MAX_DOCUMENT_BYTES) if file.exists() else b""
    if signed:
        _require_head(home, log, signed, chain)
    active = home.key(chain)
    note = sign_checkpoint(Checkpoint(origin=log.origin, size=log.size, root=log.head.root), active)
    if note != signed:  # signatures are deterministic: equal heads have equal bytes
        write_atomically(file, note)
    return replace(log, checkpoint=note)


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


def append(home: CoordinatorFolder, chain: RosterChain, envelope: bytes) -> Log:
    """Appends the signed statement in `envelope` as the next leaf; returns the log after it."""
    append_durably(home.log / LEAVES_FILE, envelope)
    return read_book(home, chain)


def publish_log(home: CoordinatorFolder, log: Log) -> None:
    """Brings the published copies and the receipts in line with the log."""
    leaves = b"".join(entry.envelope + b"\n" for entry in log.entries)
    for name, data in zip(LOG_FILES, (leaves, log.checkpoint), strict=True):
        target = home.published / name
        if not target.exists() or target.read_bytes() != data:
            write_atomically(target, data)
    for entry in log.receipts():
        target = home.receipts / f"{entry.submission_sha256}.dsse.json"
        if not target.exists():
            write_atomically(target, entry.envelope)
