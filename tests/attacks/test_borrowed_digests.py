"""A digest is no proof of a file, and another site's file is not one's own."""

import json
import shutil

import pytest
from federation import SITES, Federation, forge, sign_files
from member import Member, served

from coordinator.inbox.admission import admit_arrivals
from coordinator.inbox.upload import Uploads
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.errors import DigestError, ReplayError
from ddm_fed.storage.blob_store import BlobStore
from sites.outbox.released import read_released

A, B, C = SITES


@pytest.fixture
def fed(copy_of) -> Federation:
    """Only `hospital-a` is admitted; the others' bundles are released."""
    found = copy_of("released", *SITES)
    original = Member(found, 0, A).original
    shutil.copytree(original, found.home.incoming / original.name)
    (verdict,) = admit_arrivals(found.home, found.trust)
    assert verdict.error is None
    return found


def next_of_a(fed: Federation, folder):
    """Returns a bundle of `hospital-a` with the same files and the next number."""
    member = Member(fed, 0, A)

    def edit(fields):
        fields.update(
            sequence=2,
            seen_checkpoint=fed.log.head.model_dump(),
            supersedes=fed.log.newest(A).submission_sha256,
        )

    return member.forged(folder, edit)


def test_bundle_with_an_empty_file_is_refused_though_the_store_has_its_digest(fed, scratch):
    bundle = next_of_a(fed, scratch / "next")
    (bundle / "expert.safetensors").write_bytes(b"")
    shutil.copytree(bundle, fed.home.incoming / ("0" * 64))
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert isinstance(verdict.error, DigestError)
    assert fed.log.size == 1


def test_bundle_with_the_same_true_files_is_admitted(fed, scratch):
    shutil.copytree(next_of_a(fed, scratch / "next"), fed.home.incoming / ("0" * 64))
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert verdict.error is None


def borrowed(fed: Federation, folder, *, empty: bool):
    """Returns a bundle of `hospital-b` with the expert of `hospital-a`, by digest or in truth."""
    member = Member(fed, 0, B)
    path = member.forged(folder, lambda fields: None)
    expert = (Member(fed, 0, A).original / "expert.safetensors").read_bytes()
    sign_files(path, fed.key(B), expert=expert)
    if empty:
        (path / "expert.safetensors").write_bytes(b"")
    return path


@pytest.mark.parametrize("empty", [True, False], ids=["by digest", "with the file"])
def test_expert_of_another_site_is_refused_with_its_name(fed, scratch, empty):
    path = borrowed(fed, scratch / "borrowed", empty=empty)
    shutil.copytree(path, fed.home.incoming / ("0" * 64))
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert isinstance(verdict.error, ReplayError)
    assert f"`{A}`" in verdict.error.message
    assert fed.log.size == 1


def test_expert_of_another_site_is_refused_over_the_network_before_a_byte(fed, scratch):
    bundle = read_released(borrowed(fed, scratch / "borrowed", empty=False))
    with pytest.raises(ReplayError, match="was admitted for"):
        Uploads(fed.home).begin(bundle.envelope, carrier=B, site=B)
    with served(fed, "--reserve", "0") as port:
        answer = Member(fed, port, B).bring(bundle)
    assert getattr(answer, "code", answer) == ReplayError.code


def test_store_hashes_what_arrived_and_keeps_what_it_had(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    store = BlobStore(folder)
    data = tmp_path / "data"
    data.write_bytes(b"weights")
    digest = "9fa8b6d0c9e4d2b9bb4ac8e1d0ad42d7b27cc2a87d4f5a5e8d0ab2f2a5cbb1c2"
    with pytest.raises(DigestError) as caught:
        store.add(data, sha256=digest, size_bytes=7, what="it")
    true = caught.value.message.split("found ")[1].split(",")[0]
    kept = store.add(data, sha256=true, size_bytes=7, what="it")
    data.write_bytes(b"another")
    with pytest.raises(DigestError):
        store.add(data, sha256=true, size_bytes=7, what="it")
    assert kept.read_bytes() == b"weights"
    assert [path.name for path in folder.iterdir()] == [true]


def test_member_of_the_manifest_named_twice_is_no_way_around(fed, scratch):
    path = borrowed(fed, scratch / "twice", empty=False)

    def edit(statement):
        statement["subject"].append(json.loads(json.dumps(statement["subject"][0])))

    forge(path / ENVELOPE_FILE, edit, fed.key(B))
    shutil.copytree(path, fed.home.incoming / ("0" * 64))
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert verdict.error is not None
    assert fed.log.size == 1
