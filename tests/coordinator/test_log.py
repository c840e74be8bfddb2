"""The coordinator's own log: a leaf is verified once, and appended only to what was read."""

import os
import shutil
from pathlib import Path

import pytest
from federation import Federation, flip

from coordinator.log import OwnLog, append, publish_log, read_book
from ddm_fed.errors import LogError, RefusedError, StateError
from ddm_fed.records import Receipt, now, sha256_hex
from ddm_fed.signing import SigningKey
from ddm_fed.trust import RosterChain
from ddm_fed.trust import log as trust_log
from ddm_fed.trust.log import read_log
from ddm_fed.trust.receipts import sign_receipt

A = "hospital-a"


@pytest.fixture
def fed(copy_of) -> Federation:
    """A coordinator whose log has three leaves."""
    return copy_of("admitted", A)


@pytest.fixture
def chain(fed: Federation) -> RosterChain:
    return fed.home.chain()


def receipt(fed: Federation, log: OwnLog, key: SigningKey | None = None, **fields) -> bytes:
    """A receipt of the next number of a site, for the next place of the log."""
    chosen = {"sequence": log.last_sequence(A) + 1, "log_index": log.size, **fields}
    trust = fed.trust
    found = Receipt(
        federation="test",
        site=A,
        plan_sha256=trust.plan_sha256,
        roster=trust.chain.reference,
        admitted_at=now(),
        **chosen,
    )
    return sign_receipt(found, sha256_hex(str(chosen).encode()), key or fed.coordinator_key())


def files(fed: Federation) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in fed.home.log.iterdir()}


def refused_untouched(fed: Federation, chain: RosterChain, log: OwnLog) -> None:
    """Asserts that nothing is appended or signed, and that the next reader refuses the log."""
    before = files(fed)
    with pytest.raises((StateError, RefusedError)):
        append(fed.home, chain, log, receipt(fed, log))
    assert files(fed) == before


def test_appended_leaves_are_the_log_that_a_reader_verifies(fed, chain):
    log = read_book(fed.home, chain)
    for _ in range(9):
        log = append(fed.home, chain, log, receipt(fed, log))
    read = read_book(fed.home, chain)
    assert (read.entries, read.checkpoint, read.void) == (log.entries, log.checkpoint, log.void)
    assert (read.head, read.size) == (log.head, 12)
    publish_log(fed.home, log)
    assert read_log(fed.published, chain).head == log.head


def test_append_verifies_the_new_leaf_and_no_other(fed, chain, monkeypatch):
    log, verified, real = read_book(fed.home, chain), [], trust_log.read_entry

    def counting(data, index, *rest, **options):
        verified.append(index)
        return real(data, index, *rest, **options)

    monkeypatch.setattr(trust_log, "read_entry", counting)
    for _ in range(5):
        log = append(fed.home, chain, log, receipt(fed, log))
    assert verified == [3, 4, 5, 6, 7]
    read_book(fed.home, chain)  # a start verifies them all
    assert verified[5:] == list(range(8))


def test_leaf_that_does_not_hold_is_never_written(fed, chain):
    log = read_book(fed.home, chain)
    offered = (
        receipt(fed, log, log_index=2),
        receipt(fed, log, sequence=log.last_sequence(A)),
        receipt(fed, log, fed.key(A)),
        receipt(fed, log)[:-2],
    )
    before = files(fed)
    for envelope in offered:
        with pytest.raises(RefusedError):
            append(fed.home, chain, log, envelope)
        assert files(fed) == before
    with pytest.raises(LogError, match="admits sequence"):
        append(fed.home, chain, log, offered[1])


def test_leaf_altered_between_reading_and_appending_is_found(fed, chain):
    log = read_book(fed.home, chain)
    flip(fed.home.log / "leaves.jsonl", 300)
    refused_untouched(fed, chain, log)
    with pytest.raises((StateError, RefusedError)):
        read_book(fed.home, chain)


def test_leaf_altered_between_two_appends_is_found_though_its_time_was_set_back(fed, chain):
    log = read_book(fed.home, chain)
    log = append(fed.home, chain, log, receipt(fed, log))
    leaves = fed.home.log / "leaves.jsonl"
    facts = leaves.stat()
    flip(leaves, 300)
    os.utime(leaves, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    refused_untouched(fed, chain, log)


def test_log_put_back_to_an_earlier_state_is_not_appended_to(fed, chain, scratch: Path):
    earlier = Path(shutil.copytree(fed.home.log, scratch / "earlier"))
    log = read_book(fed.home, chain)
    log = append(fed.home, chain, log, receipt(fed, log))
    for file in earlier.iterdir():  # whole, signed, and a rollback all the same
        shutil.copyfile(file, fed.home.log / file.name)
    refused_untouched(fed, chain, log)


def test_leaf_appended_by_another_process_is_not_overlooked(fed, chain):
    log = read_book(fed.home, chain)
    append(fed.home, chain, read_book(fed.home, chain), receipt(fed, log))
    refused_untouched(fed, chain, log)


@pytest.mark.parametrize("name", ["leaves.jsonl", "checkpoint"])
def test_log_exchanged_for_a_link_is_not_written_through(fed, chain, scratch: Path, name: str):
    log = read_book(fed.home, chain)
    elsewhere = shutil.move(fed.home.log / name, scratch / name)
    (fed.home.log / name).symlink_to(elsewhere)
    refused_untouched(fed, chain, log)


def test_log_that_was_only_touched_is_appended_to(fed, chain):
    log = read_book(fed.home, chain)
    for name in ("leaves.jsonl", "checkpoint"):
        (fed.home.log / name).touch()
    log = append(fed.home, chain, log, receipt(fed, log))
    assert read_book(fed.home, chain).head == log.head


def test_torn_line_of_a_failed_append_is_dropped_by_the_next(fed, chain):
    log = read_book(fed.home, chain)
    with (fed.home.log / "leaves.jsonl").open("ab") as file:
        file.write(b'{"payload"')
    log = append(fed.home, chain, log, receipt(fed, log))
    assert read_book(fed.home, chain).head == log.head


def test_altered_leaf_that_no_stamp_shows_is_never_signed(fed, chain, monkeypatch):
    log = read_book(fed.home, chain)
    flip(fed.home.log / "leaves.jsonl", 300)
    leaves = fed.home.log / "leaves.jsonl"
    unseen = type(log.leaves_stamp).of(leaves.stat())  # as if the system had kept the old times
    log = OwnLog(
        *(log.origin, log.entries, log.checkpoint, log.void),
        leaves_stamp=unseen,
        checkpoint_stamp=log.checkpoint_stamp,
    )
    grown = append(fed.home, chain, log, receipt(fed, log))
    honest = read_log_of(grown, chain)
    assert grown.head == honest.head  # over what was verified
    with pytest.raises((StateError, RefusedError)):
        read_book(fed.home, chain)


def read_log_of(log: OwnLog, chain: RosterChain):
    return trust_log.log_of([entry.envelope for entry in log.entries], chain, log.checkpoint)


def test_two_continuations_of_one_log_do_not_mix(fed, chain):
    log = read_book(fed.home, chain)
    one = log.extended(receipt(fed, log), chain)
    two = log.extended(receipt(fed, log, sequence=9), chain)
    three = one.extended(receipt(fed, one), chain)
    assert log.size == 3
    assert log.find(one.entries[3].submission_sha256) is None
    assert [e.index for e in two.receipts(site=A)][-1] == 3
    assert two.last_sequence(A) == 9
    assert three.last_sequence(A) == one.last_sequence(A) + 1
    assert three.head_at(4) == one.head
    assert one.head != two.head
    for grown in (one, two, three):
        assert grown.head == read_log_of(grown, chain).head
        assert grown.proof(2).path == read_log_of(grown, chain).proof(2).path
    assert log.head == read_log_of(log, chain).head
