"""Somebody has a copy of a site's signing key, and uses it before anybody notices."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from federation import Federation, forge_manifest, payload_of

from coordinator.inbox.admission import admit_arrivals, current_members
from coordinator.log import append, publish_log, read_book
from ddm_fed.bundle.submission import MOST_UNSENT
from ddm_fed.records import MAX_COUNT, Receipt, now, sha256_hex
from ddm_fed.signing import peek_payload
from ddm_fed.trust.log import read_log
from ddm_fed.trust.receipts import sign_receipt

A, B, C = "hospital-a", "hospital-b", "hospital-c"


@pytest.fixture
def fed(copy_of) -> Federation:
    """A coordinator that has admitted the site's bundle, and the site."""
    return copy_of("admitted", A)


def thiefs_bundle(fed: Federation, folder: Path, sequence: int) -> Path:
    """What a thief of the key makes of the bundle that everybody can have from the ensemble."""
    released = next((fed.path / A / "outbox" / "released").iterdir())
    bundle = Path(shutil.copytree(released, folder))

    def edit(fields):
        fields |= {"sequence": sequence, "supersedes": fed.log.newest(A).submission_sha256}
        fields["seen_checkpoint"] = json.loads(fed.log.head.to_json())

    forge_manifest(bundle, edit, fed.key(A))
    return bundle


def offer(fed: Federation, bundle: Path):
    shutil.move(bundle, fed.home.incoming / bundle.name)
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    return verdict


def admit_as_earlier_versions_did(fed: Federation, bundle: Path) -> None:
    """Writes the receipt of a bundle into the log, whatever its number is."""
    envelope = (bundle / "submission.dsse.json").read_bytes()
    digest = sha256_hex(peek_payload(envelope, "application/vnd.in-toto+json", what="it"))
    receipt = Receipt(
        federation="test",
        site=A,
        sequence=payload_of(bundle / "submission.dsse.json")["predicate"]["sequence"],
        log_index=fed.log.size,
        plan_sha256=fed.trust.plan_sha256,
        roster=fed.trust.chain.reference,
        admitted_at=now(),
    )
    fed.home.manifest(digest).write_bytes(envelope)
    signed = sign_receipt(receipt, digest, fed.coordinator_key())
    chain = fed.home.chain()
    publish_log(fed.home, append(fed.home, chain, read_book(fed.home, chain), signed))


def rotate(run, fed: Federation, compromised_since: int) -> None:
    assert run("ddm-site", "rotate", "--site", fed.path / A, "--plan", fed.published)[0] == 0
    code, _, err = run(
        *("ddm-coord", "roster", "rotate", fed.path / A / "rotation.dsse.json"),
        *("--coordinator", fed.home.path, "--compromised-since", compromised_since),
    )
    assert code == 0, err


def train_and_send(run, fed: Federation, scratch: Path) -> None:
    """The site's whole way, with its new key."""
    data = scratch / "images.npz"
    rng = np.random.default_rng(3)
    np.savez(data, images=rng.integers(0, 255, (24, 8, 8), dtype=np.uint8))
    common = ("--site", fed.path / A, "--plan", fed.published)
    for words in (
        ("train", *common, "--data", data, "--restart", "--precision", "float32"),
        ("review", *common),
        ("release", *common),
        ("submit", *common, "--to", fed.inbox),
    ):
        code, _, err = run("ddm-site", *words)
        assert code == 0, err


def test_number_that_leaves_none_for_the_site_is_refused(fed, scratch):
    verdict = offer(fed, thiefs_bundle(fed, scratch / "thief", MAX_COUNT))
    assert verdict.error is not None
    assert verdict.error.code == "DDM208"
    assert f"has the sequence number {MAX_COUNT}, the last that counts is 1" in (
        verdict.error.message
    )


@pytest.mark.parametrize(("sequence", "taken"), [(1 + MOST_UNSENT, True), (2 + MOST_UNSENT, False)])
def test_numbers_may_be_left_out_within_the_bound_and_no_further(fed, scratch, sequence, taken):
    verdict = offer(fed, thiefs_bundle(fed, scratch / "thief", sequence))
    assert (verdict.error is None) == taken


@pytest.mark.parametrize("sequence", [2, 2 + MOST_UNSENT - 1])
def test_site_goes_on_after_a_thief_submitted_and_the_key_was_replaced(run, fed, scratch, sequence):
    place = fed.log.size
    assert offer(fed, thiefs_bundle(fed, scratch / "thief", sequence)).error is None
    rotate(run, fed, compromised_since=place)
    assert fed.log.void == {place}
    # what the thief sent does not count: what the site sent before does again
    members = current_members(fed.home, fed.trust, fed.log)
    assert (members[A].submission.sequence, members[A].entry.index < place) == (1, True)
    train_and_send(run, fed, scratch)
    code, _, err = run("ddm-coord", "admit", "--coordinator", fed.home.path)
    assert code == 0, err
    members = current_members(fed.home, fed.trust, fed.log)
    assert members[A].submission.sequence == 2
    assert read_log(fed.published, fed.trust.chain).size == place + 2
    target = scratch / "ensemble"
    code, _, err = run("ddm-coord", "assemble", "--coordinator", fed.home.path, target)
    assert code == 0, err
    code, out, err = run("ddm-coord", "verify", target, "--root", fed.root, "--json")
    assert code == 0, err
    assert {member["site"] for member in json.loads(out)["members"]} == {A, B, C}
    # and a removal names what counts
    words = ("remove", A, "--coordinator", fed.home.path, "--reason", "asked to")
    code, _, err = run("ddm-coord", *words, "--out", scratch / "without")
    assert code == 0, err
    assert fed.log.entries[-1].removal.through_sequence == 2


def test_last_number_in_the_log_is_an_error_without_a_traceback_and_a_way_back(run, fed, scratch):
    place = fed.log.size
    admit_as_earlier_versions_did(fed, thiefs_bundle(fed, scratch / "thief", MAX_COUNT))
    data = scratch / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.savez(data, images=pixels)
    common = ("--site", fed.path / A, "--plan", fed.published)
    words = ("train", *common, "--data", data, "--restart", "--precision", "float32")
    code, _, err = run("ddm-site", *words)
    assert (code, "Traceback" in err) == (1, False)
    assert f"error[DDM104]: the log has the number {MAX_COUNT} in the name of `{A}`" in err
    assert "--compromised-since" in err
    rotate(run, fed, compromised_since=place)
    train_and_send(run, fed, scratch)
    code, _, err = run("ddm-coord", "admit", "--coordinator", fed.home.path)
    assert code == 0, err
    assert current_members(fed.home, fed.trust, fed.log)[A].submission.sequence == 2


def test_thiefs_ledger_does_not_bind_the_site(run, fed, scratch):
    """What a thief claims to have spent is not what the site spent."""
    place = fed.log.size
    bundle = thiefs_bundle(fed, scratch / "thief", 2)

    def longer(fields):
        ledger = fields["privacy"]["ledger"]
        last = sha256_hex(json.dumps(ledger[-1], sort_keys=True, separators=(",", ":")).encode())
        ledger.append(ledger[0] | {"index": 3, "previous_sha256": last, "nonce": "0" * 16})

    forge_manifest(bundle, longer, fed.key(A))
    assert offer(fed, bundle).error is None
    code, _, err = run("ddm-site", "rotate", "--site", fed.path / A, "--plan", fed.published)
    assert code == 0
    code, _, err = run("ddm-site", "ledger", "--site", fed.path / A)
    assert (code, "error[DDM210]" in err) == (1, True)
    rotate(run, fed, compromised_since=place)
    train_and_send(run, fed, scratch)
    assert run("ddm-coord", "admit", "--coordinator", fed.home.path)[0] == 0
    assert run("ddm-site", "ledger", "--site", fed.path / A)[0] == 0
