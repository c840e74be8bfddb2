"""What one member or stranger makes the coordinator keep: refused bundles, proofs, weights."""

import os
import shutil
import time
from collections import namedtuple

import pytest
from federation import SITES, Federation, forge_manifest, sign_files, tensor_bytes
from member import Member, at_work, bundles_of, honest_wait, served

import coordinator.inbox.quotas as keeping
from coordinator.inbox.admission import admit_arrivals
from coordinator.inbox.quotas import EVIDENCE_KEPT, REFUSED_KEPT, owner_of
from coordinator.inbox.upload import Limits, Uploads
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.errors import QuotaError
from sites.outbox.released import read_released

A, B, C = SITES
Disk = namedtuple("Disk", "total used free")


@pytest.fixture
def fed(copy_of) -> Federation:
    return copy_of("released", *SITES)


def kept_of(fed: Federation, site: str | None) -> list:
    found = fed.home.refused.iterdir()
    return sorted(path.name for path in found if owner_of(path, fed.trust.chain) == site)


def broken(member: Member, folder, number: int):
    """Returns a truly signed bundle whose weights are refused only after all of it arrived."""
    path = member.forged(folder / str(number), lambda fields: fields.update(sequence=number + 1))
    key = member._fed.key(member.name)
    sign_files(path, key, expert=tensor_bytes({"x": number}, bytes(100_000)))
    return read_released(path)


def test_honest_bundle_is_admitted_while_one_member_floods_with_refused_ones(fed, scratch):
    with served(fed) as port:
        attacker = Member(fed, port, A)
        bundles = [broken(attacker, scratch / "broken", number) for number in range(1, 25)]

        def flood() -> None:
            for bundle in bundles:
                attacker.bring(bundle)

        with at_work([flood]):
            time.sleep(0.5)
            waited = honest_wait(fed, port, B)
    assert waited < 15
    assert len(kept_of(fed, A)) == REFUSED_KEPT


def deliver(fed: Federation, member: Member, folder, number: int) -> None:
    bundle = broken(member, folder, number)
    shutil.copytree(bundle.folder, fed.home.incoming / bundle.digest)
    admit_arrivals(fed.home, fed.trust)


def test_refused_bundles_of_one_site_push_out_its_oldest_and_nobody_elses(fed, scratch):
    deliver(fed, Member(fed, 0, B), scratch / "b", 1)
    (of_b,) = kept_of(fed, B)
    seen = []
    for number in range(1, REFUSED_KEPT + 3):
        deliver(fed, Member(fed, 0, A), scratch / "a", number)
        (new,) = set(kept_of(fed, A)) - set(seen)
        seen.append(new)
    assert kept_of(fed, A) == sorted(seen[-REFUSED_KEPT:])
    assert kept_of(fed, B) == [of_b]


def test_junk_that_nobody_signed_pushes_out_only_junk(fed, scratch):
    deliver(fed, Member(fed, 0, A), scratch / "a", 1)
    (of_a,) = kept_of(fed, A)
    for number in range(REFUSED_KEPT + 3):
        (fed.home.incoming / f"junk-{number}").mkdir()
        admit_arrivals(fed.home, fed.trust)
    assert len(kept_of(fed, None)) == REFUSED_KEPT
    assert kept_of(fed, A) == [of_a]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_arrival_larger_than_any_bundle_is_not_kept(fed, kind):
    arrival = fed.home.incoming / "junk"
    file = arrival / "x" if kind == "folder" else arrival
    file.parent.mkdir(exist_ok=True)
    file.touch()
    os.truncate(file, fed.trust.plan.submission.max_bytes + 1)  # sparse
    admit_arrivals(fed.home, fed.trust)
    (left,) = fed.home.refused.iterdir()
    assert left.is_dir()
    assert not list(left.iterdir())


def test_proofs_against_one_site_are_bounded(copy_of, scratch):
    fed = copy_of("admitted", *SITES)
    stored = fed.stored(A)
    member = Member(fed, 0, A)
    for number in range(12):

        def edit(fields, number=number):
            fields["issued_at"] = f"2026-11-01T00:00:{number:02d}Z"

        path = member.forged(scratch / str(number), edit)
        shutil.copytree(path, fed.home.incoming / f"{number:064x}")
        admit_arrivals(fed.home, fed.trust)
    (folder,) = fed.home.evidence.iterdir()
    kept = {path.name for path in folder.iterdir()}
    assert f"{stored.payload_sha256}.dsse.json" in kept
    assert len(kept) <= EVIDENCE_KEPT


def test_member_with_its_share_of_the_disk_leaves_room_for_the_others(
    copy_of, scratch, monkeypatch
):
    fed = copy_of("admitted", *SITES)
    member = Member(fed, 0, A)
    path = member.forged(scratch / "next", lambda fields: fields.update(sequence=2))
    seen = fed.log.head

    def edit(fields):
        fields["seen_checkpoint"] = seen.model_dump()
        fields["supersedes"] = fed.log.newest(A).submission_sha256

    forge_manifest(path, edit, fed.key(A))
    bundle = read_released(path)
    size = bundle.body.size_bytes
    uploads = Uploads(fed.home, Limits(reserve_bytes=0))
    free = 4 * size
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda _: Disk(0, 0, free))
    with pytest.raises(QuotaError, match="its share of the disk"):
        uploads.begin(bundle.envelope, carrier=A, site=A)
    free = 20 * size
    uploads.begin(bundle.envelope, carrier=A, site=A).discard()


def test_many_waiting_bundles_of_one_site_are_enough(fed, scratch):
    member = Member(fed, 0, A)
    *waiting, last = bundles_of(
        member,
        scratch / "many",
        keeping.MOST_WAITING + 1,
        lambda fields, number: fields.update(sequence=number + 1),
    )
    for bundle in waiting:
        shutil.copytree(bundle.folder, fed.home.incoming / bundle.digest)
    uploads = Uploads(fed.home)
    with pytest.raises(QuotaError, match="wait in the inbox"):
        uploads.begin(last.envelope, carrier=A, site=A)
    honest = read_released(Member(fed, 0, B).original)
    uploads.begin(honest.envelope, carrier=B, site=B).discard()


def test_refused_bundles_give_way_where_the_disk_is_full(fed, scratch, monkeypatch):
    for number in (1, 2, 3):
        deliver(fed, Member(fed, 0, A), scratch / "a", number)
    newest = max(  # names know seconds only
        fed.home.refused.iterdir(),
        key=lambda path: (path.name[: keeping.STAMP], path.lstat().st_ctime_ns),
    ).name
    bundle = read_released(Member(fed, 0, A).original)

    def free(_):
        return Disk(0, 0, 100 if len(list(fed.home.refused.iterdir())) > 1 else 10**9)

    monkeypatch.setattr(keeping.shutil, "disk_usage", free)
    Uploads(fed.home, Limits(reserve_bytes=0)).begin(bundle.envelope, carrier=A, site=A).discard()
    assert [path.name for path in fed.home.refused.iterdir()] == [newest]
    assert (fed.home.refused / newest / ENVELOPE_FILE).exists()
