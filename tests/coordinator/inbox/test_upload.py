"""What arrives byte by byte: resumed, bounded, and never half-taken for whole."""

import json
import os
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from federation import SITES, Federation, forge_manifest, snapshot
from hypothesis import given
from hypothesis import strategies as st

from coordinator.inbox.outcome import deliver, outcome_of
from coordinator.inbox.upload import SYNC_BYTES, Arrived, Limits, Upload, Uploads
from coordinator.inbox.upload_progress import PROGRESS_FILE
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.errors import (
    BusyError,
    DigestError,
    FileSetError,
    OffsetError,
    PlanMismatchError,
    QuotaError,
    SignatureError,
    SizeError,
)
from ddm_fed.exchange.body import Body
from ddm_fed.records import FileSize
from ddm_fed.trust.receipts import read_receipt
from sites.outbox.released import Released, read_released
from sites.outbox.stages import find_bundles

A, B, C = SITES
STEP = 100_003


@pytest.fixture
def fed(copy_of) -> Federation:
    """Three sites with released bundles, and a coordinator that has none of them."""
    return copy_of("released", *SITES)


def released(fed: Federation, name: str = A) -> Released:
    (folder,) = find_bundles(fed.site(name).released)
    return read_released(folder)


def feed(upload: Upload, bundle: Released, until: int | None = None) -> None:
    """Writes what is missing, in steps that no file is a multiple of."""
    end = bundle.body.size_bytes if until is None else until
    with bundle.reading() as reader:
        while (have := upload.have()) < end:
            upload.write(have, reader.read(have, min(STEP, end - have)))


def arrive(fed: Federation, uploads: Uploads, name: str = A) -> Path:
    bundle = released(fed, name)
    upload = uploads.begin(bundle.envelope, carrier=name)
    feed(upload, bundle)
    with uploads.finishing(upload):
        return upload.commit()


# The body


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    offset=st.integers(0, 200),
    length=st.integers(0, 200),
)
def test_spans_of_a_body_are_those_of_the_files_end_to_end(sizes, offset, length):
    files = [FileSize(name=f"f{i}", size_bytes=size) for i, size in enumerate(sizes)]
    flat = [(file.name, place) for file in files for place in range(file.size_bytes)]
    found = [
        (name, start + step)
        for name, start, count in Body(files).spans(offset, length)
        for step in range(count)
    ]
    assert found == flat[offset : offset + length]


def test_body_that_became_shorter_is_refused(fed):
    bundle = released(fed)
    os.truncate(bundle.folder / "router.safetensors", 10)
    with bundle.reading() as reader, pytest.raises(DigestError, match="ends before byte"):
        reader.read(0, bundle.body.size_bytes)


# The way in


def test_bundle_sent_in_pieces_arrives_as_it_was_released(fed):
    bundle, where = released(fed), arrive(fed, Uploads(fed.home))
    assert where == fed.home.incoming / bundle.digest
    assert snapshot(where) == snapshot(bundle.folder)
    assert list(fed.home.partial.iterdir()) == []


def test_bundle_that_arrived_gets_the_receipt_of_any_other_way(fed):
    digest = arrive(fed, Uploads(fed.home)).name
    outcome = deliver(fed.home, digest)
    entry = read_receipt(outcome.receipt, digest, fed.trust.chain, what="the receipt")
    assert entry.receipt.site == A
    assert outcome == outcome_of(fed.home, digest) == deliver(fed.home, digest)


def test_delivery_while_another_command_works_leaves_the_bundle_waiting(fed):
    digest = arrive(fed, Uploads(fed.home)).name
    with fed.home.changing():
        outcome = deliver(fed.home, digest, timeout_s=0.3)
    assert (outcome.receipt, outcome.refusal) == (None, None)
    assert deliver(fed.home, digest).receipt is not None


def test_offer_of_what_is_admitted_gets_its_entry_and_takes_nothing(fed):
    bundle, uploads = released(fed), Uploads(fed.home)
    deliver(fed.home, arrive(fed, uploads).name)
    found = uploads.begin(bundle.envelope, carrier=A)
    assert isinstance(found, Arrived)
    assert found.entry.submission_sha256 == bundle.digest
    assert list(fed.home.partial.iterdir()) == []


def test_upload_goes_on_in_another_process_from_what_is_safe(fed):
    bundle, first = released(fed), Uploads(fed.home)
    upload = first.begin(bundle.envelope, carrier=A)
    feed(upload, bundle, until=300_000)
    first.close()
    second = Uploads(fed.home)
    again = second.begin(bundle.envelope, carrier=A)
    assert again.have() == 300_000
    feed(again, bundle)
    assert snapshot(again.commit()) == snapshot(bundle.folder)


def test_bytes_that_were_not_made_safe_are_asked_for_again(fed):
    """A kill between two safe points: the files hold more than progress.json says."""
    bundle, first = released(fed), Uploads(fed.home)
    upload = first.begin(bundle.envelope, carrier=A)
    feed(upload, bundle, until=STEP)
    with bundle.reading() as reader:
        upload.write(STEP, reader.read(STEP, STEP))
    assert STEP < SYNC_BYTES
    upload._held.close()  # as the system does for a process that is gone
    again = Uploads(fed.home).begin(bundle.envelope, carrier=A)
    assert again.have() == STEP
    feed(again, bundle)
    assert snapshot(again.commit()) == snapshot(bundle.folder)


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"site": "x"}', 10**12, -1, "null", '"5"', "1.5"]
)
def test_damaged_progress_begins_anew(fed, damage):
    bundle, first = released(fed), Uploads(fed.home)
    feed(first.begin(bundle.envelope, carrier=A), bundle, until=STEP)
    first.close()
    file = fed.home.partial / bundle.digest / PROGRESS_FILE
    if str(damage)[:1] in "[{" or damage == "":
        file.write_text(damage)
    else:  # the right form, and a number that cannot be
        file.write_text(file.read_text().replace(f" {STEP},", f" {damage},"))
    again = Uploads(fed.home).begin(bundle.envelope, carrier=A)
    assert again.have() == 0
    feed(again, bundle)
    assert snapshot(again.commit()) == snapshot(bundle.folder)


def test_bytes_are_made_safe_while_the_next_ones_come(fed, monkeypatch):
    monkeypatch.setattr("coordinator.inbox.upload.SYNC_BYTES", 2 * STEP)
    bundle, uploads = released(fed), Uploads(fed.home)
    upload = uploads.begin(bundle.envelope, carrier=A)
    with bundle.reading() as reader:
        for offset in range(0, 6 * STEP, STEP):
            upload.write(offset, reader.read(offset, STEP))
    known = json.loads((fed.home.partial / bundle.digest / PROGRESS_FILE).read_bytes())
    assert known["committed_bytes"] >= 2 * STEP
    feed(upload, bundle)
    assert snapshot(upload.commit()) == snapshot(bundle.folder)


# What is refused


def test_wrong_offset_is_refused_and_says_where_it_stands(fed):
    bundle = released(fed)
    upload = Uploads(fed.home).begin(bundle.envelope, carrier=A)
    upload.write(0, b"abc")
    for offset in (0, 2, 4, 10**9):
        with pytest.raises(OffsetError, match="stands at byte 3"):
            upload.write(offset, b"x")


def test_byte_beyond_what_was_signed_is_refused(fed):
    bundle = released(fed)
    upload = Uploads(fed.home).begin(bundle.envelope, carrier=A)
    feed(upload, bundle)
    with pytest.raises(SizeError, match="was signed with"):
        upload.write(upload.size_bytes, b"x")
    assert snapshot(upload.commit()) == snapshot(bundle.folder)


def test_commit_of_a_part_is_refused_and_keeps_it(fed):
    bundle = released(fed)
    upload = Uploads(fed.home).begin(bundle.envelope, carrier=A)
    feed(upload, bundle, until=STEP)
    with pytest.raises(OffsetError, match=f"has {STEP} of"):
        upload.commit()
    feed(upload, bundle)
    upload.commit()


@pytest.mark.parametrize("place", [0, STEP, -1])
def test_altered_byte_is_found_before_the_bundle_is_in_the_inbox(fed, place):
    bundle, uploads = released(fed), Uploads(fed.home)
    upload = uploads.begin(bundle.envelope, carrier=A)
    with bundle.reading() as reader:
        data = bytearray(reader.read(0, bundle.body.size_bytes))
    data[place] ^= 1
    upload.write(0, bytes(data))
    with uploads.finishing(upload), pytest.raises(DigestError, match="is not what was signed"):
        upload.commit()
    assert list(fed.home.incoming.iterdir()) == list(fed.home.partial.iterdir()) == []
    arrive(fed, uploads)


def test_manifest_that_admission_would_refuse_takes_no_space(fed):
    uploads, bundle = Uploads(fed.home), released(fed)
    envelope = json.loads(bundle.envelope)
    broken = json.dumps(envelope | {"payload": envelope["payload"][::-1]}).encode()
    altered = dict(envelope, signatures=[dict(envelope["signatures"][0], sig="AAAA")])
    forged = Path(shutil.copytree(bundle.folder, fed.path / "forged"))
    forge_manifest(forged, lambda s: s.update(plan_sha256="0" * 64), fed.key(A))
    for offered, error in (
        (broken, Exception),
        (json.dumps(altered).encode(), SignatureError),
        ((forged / ENVELOPE_FILE).read_bytes(), PlanMismatchError),
    ):
        with pytest.raises(error):
            uploads.begin(offered, carrier=A)
    assert list(fed.home.partial.iterdir()) == []


def test_manifest_signed_over_more_files_is_refused_before_a_byte(fed):
    forged = Path(shutil.copytree(released(fed).folder, fed.path / "forged"))

    def add(fields):
        fields["files"].append({"name": "more.safetensors", "size_bytes": 1})

    forge_manifest(forged, add, fed.key(A))
    with pytest.raises(FileSetError):
        Uploads(fed.home).begin((forged / ENVELOPE_FILE).read_bytes(), carrier=A)


def test_bundle_of_another_site_than_the_connection_is_refused(fed):
    with pytest.raises(PlanMismatchError, match="the connection is of"):
        Uploads(fed.home).begin(released(fed, B).envelope, carrier=A, site=A)


def test_courier_may_bring_the_bundles_of_several_sites(fed):
    uploads = Uploads(fed.home, Limits(open_uploads=3))
    for name in SITES:
        bundle = released(fed, name)
        upload = uploads.begin(bundle.envelope, carrier="courier")
        feed(upload, bundle)
        upload.commit()
    assert len(list(fed.home.incoming.iterdir())) == 3


# Limits


def test_second_process_may_not_take_the_same_bundle_in(fed):
    bundle, uploads = released(fed), Uploads(fed.home)
    upload = uploads.begin(bundle.envelope, carrier=A)
    assert uploads.begin(bundle.envelope, carrier=A) is upload
    with pytest.raises(BusyError):
        Uploads(fed.home).begin(bundle.envelope, carrier=A)
    feed(upload, bundle)
    upload.commit()


def test_carrier_with_too_many_unfinished_uploads_is_refused(fed):
    uploads = Uploads(fed.home, Limits(open_uploads=2))
    for name in (A, B):
        uploads.begin(released(fed, name).envelope, carrier="courier")
    with pytest.raises(QuotaError, match="2 unfinished uploads"):
        uploads.begin(released(fed, C).envelope, carrier="courier")
    assert isinstance(uploads.begin(released(fed, C).envelope, carrier=C), Upload)


def test_disk_at_its_reserve_refuses_before_a_byte(fed):
    free = shutil.disk_usage(fed.path).free
    with pytest.raises(QuotaError, match="bytes free"):
        Uploads(fed.home, Limits(reserve_bytes=2 * free)).begin(released(fed).envelope, carrier=A)
    assert list(fed.home.partial.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_full_disk_refuses_and_keeps_what_other_uploads_have(fed):
    bundle, disk = released(fed), fed.home.partial
    size = bundle.body.size_bytes + 3 * STEP
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        uploads = Uploads(fed.home, Limits(reserve_bytes=0))
        first = uploads.begin(bundle.envelope, carrier=A)
        feed(first, bundle, until=STEP)
        with pytest.raises(QuotaError, match="no room"):
            uploads.begin(released(fed, B).envelope, carrier=B)
        assert [path.name for path in disk.iterdir()] == [bundle.digest]
        feed(first, bundle)
        assert first.have() == bundle.body.size_bytes
        uploads.close()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_upload_that_nobody_continues_ends(fed):
    bundle, uploads = released(fed), Uploads(fed.home, Limits(keep=timedelta(seconds=-1)))
    uploads.begin(bundle.envelope, carrier=A)
    assert uploads.expire() == []  # it is in hand
    uploads.close()
    assert uploads.expire() == [bundle.digest]
    assert list(fed.home.partial.iterdir()) == []


def test_upload_killed_after_it_reached_the_inbox_leaves_nothing_behind(fed):
    bundle, uploads = released(fed), Uploads(fed.home)
    upload = uploads.begin(bundle.envelope, carrier=A)
    feed(upload, bundle)
    uploads.close()
    (fed.home.partial / bundle.digest / "bundle").rename(fed.home.incoming / bundle.digest)
    again = Uploads(fed.home)
    assert isinstance(again.begin(bundle.envelope, carrier=A), Arrived)
    assert again.expire() == [bundle.digest]
    assert deliver(fed.home, bundle.digest).receipt is not None


def test_upload_in_the_hands_of_another_process_does_not_end(fed):
    bundle, uploads = released(fed), Uploads(fed.home)
    uploads.begin(bundle.envelope, carrier=A)
    assert Uploads(fed.home, Limits(keep=timedelta(seconds=-1))).expire() == []


def test_upload_that_is_fresh_stays(fed):
    bundle, uploads = released(fed), Uploads(fed.home)
    feed(uploads.begin(bundle.envelope, carrier=A), bundle, until=STEP)
    uploads.close()
    assert uploads.expire() == []
    assert uploads.begin(bundle.envelope, carrier=A).have() == STEP
