"""Attacks on an ensemble: an outsider with folder and fingerprint finds every change by name."""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from federation import (
    SITES,
    Federation,
    Json,
    a_plan,
    flip,
    forge,
    forge_manifest,
    make_odd_file,
    payload_of,
    snapshot,
)

from coordinator.ensembles.assemble import assemble
from coordinator.ensembles.remove import remove
from coordinator.roster import changes, proposals
from ddm_fed.bundle.verify import ENVELOPE_FILE, EXPERT_FILE, ROUTER_FILE
from ddm_fed.ensemble.folder import STATEMENT_FILE, verify_ensemble
from ddm_fed.ensemble.load import load_ensemble
from ddm_fed.ensemble.staleness import find_staleness
from ddm_fed.errors import (
    DdmFedError,
    DigestError,
    ExpiredError,
    FileSetError,
    LogError,
    PlanMismatchError,
    RefusedError,
    RosterError,
    StateError,
    UnknownSignerError,
)
from ddm_fed.records import IN_TOTO_PAYLOAD, canonical_json, sha256_hex
from ddm_fed.signing import SigningKey, seal
from ddm_fed.trust import (
    Checkpoint,
    InclusionProof,
    MerkleTree,
    leaf_hash,
    read_proof,
    sign_checkpoint,
    write_proof,
)
from ddm_fed.trust.log import CHECKPOINT_FILE, LEAVES_FILE
from ddm_fed.trust.published import read_seen
from sites.workspace import SiteFolder, SiteSettings

A, B, C = SITES
FILES = {
    STATEMENT_FILE: "the ensemble",
    "plan.dsse.json": "the plan",
    "roster-0001.dsse.json": "roster 1",
    "roster-0002.dsse.json": "roster 2",
    LEAVES_FILE: f"`{LEAVES_FILE}` is not what",
    CHECKPOINT_FILE: f"`{CHECKPOINT_FILE}` is not what",
}
for _site in SITES:
    FILES[f"receipts/{_site}.dsse.json"] = f"`receipts/{_site}.dsse.json` is not what"
    FILES[f"receipts/{_site}.tlog-proof"] = f"`receipts/{_site}.tlog-proof` is not what"
    FILES[f"sites/{_site}/{ENVELOPE_FILE}"] = f"`sites/{_site}/{ENVELOPE_FILE}` is not what"
    FILES[f"sites/{_site}/{EXPERT_FILE}"] = f"the bundle {_site}: `{EXPERT_FILE}` is not what"
    FILES[f"sites/{_site}/{ROUTER_FILE}"] = f"the bundle {_site}: `{ROUTER_FILE}` is not what"


@pytest.fixture(scope="session")
def root(stages) -> str:
    return stages.admitted.root


@pytest.fixture(scope="session")
def coordinator(stages) -> SigningKey:
    return stages.admitted.coordinator_key()


def swap(one: Path, other: Path) -> None:
    middle = one.with_name("in-between")
    one.rename(middle)
    other.rename(one)
    middle.rename(other)


def restate(ensemble: Path, key: SigningKey, edit: Callable[[Json], None] = lambda _: None) -> None:
    """Makes the statement true of what the folder holds now, and signs it with `key`."""

    def edit_all(statement: Json) -> None:
        held = [item for item in statement["subject"] if (ensemble / item["name"]).exists()]
        statement["subject"] = held
        for subject in held:
            data = (ensemble / subject["name"]).read_bytes()
            subject["digest"]["sha256"] = sha256_hex(data)
        edit(statement["predicate"])

    forge(ensemble / STATEMENT_FILE, edit_all, key)


def leaves(ensemble: Path) -> list[bytes]:
    return (ensemble / LEAVES_FILE).read_bytes().splitlines()


def write_leaves(ensemble: Path, lines: list[bytes]) -> None:
    (ensemble / LEAVES_FILE).write_bytes(b"".join(line + b"\n" for line in lines))


def payload(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"])


def place(ensemble: Path, site: str) -> int:
    """Returns the entry of the log that admitted `site`."""
    return payload_of(ensemble / "receipts" / f"{site}.dsse.json")["predicate"]["log_index"]


def relog(ensemble: Path, lines: list[bytes], key: SigningKey) -> None:
    """Makes log, checkpoint, receipts, proofs and statement agree on the leaves `lines`.

    A member's receipt and proof follow the last of `lines` that speaks of it and is at the place
    it was admitted at; a member without one keeps what it has.
    """
    hashes = [leaf_hash(payload(line)) for line in lines]
    origin = (ensemble / CHECKPOINT_FILE).read_text().splitlines()[0]
    head = {"size": len(lines), "root": MerkleTree(hashes).root().hex()}
    note = sign_checkpoint(Checkpoint(origin=origin, **head), key)
    places = {site: place(ensemble, site) for site in members_of(ensemble)}
    write_leaves(ensemble, lines)
    (ensemble / CHECKPOINT_FILE).write_bytes(note)
    for site, index in places.items():
        if index < len(lines):
            (ensemble / "receipts" / f"{site}.dsse.json").write_bytes(lines[index])
            proof = InclusionProof(index, MerkleTree(hashes).inclusion_path(index), note)
            (ensemble / "receipts" / f"{site}.tlog-proof").write_bytes(write_proof(proof))
    restate(ensemble, key, lambda record: record.update(log=head))


def members_of(ensemble: Path) -> list[str]:
    record = payload_of(ensemble / STATEMENT_FILE)["predicate"]
    return [member["site"] for member in record["members"]]


def relog_receipt(
    ensemble: Path,
    site: str,
    edit: Callable[[Json], None],
    key: SigningKey,
    *,
    signer: SigningKey | None = None,
) -> None:
    """Edits the receipt of `site` in the log, signed by `signer`, and makes all agree with it."""
    lines = leaves(ensemble)
    index = place(ensemble, site)
    statement = json.loads(payload(lines[index]))
    edit(statement)
    lines[index] = seal(canonical_json(statement), IN_TOTO_PAYLOAD, [signer or key])
    relog(ensemble, lines, key)


def test_listed_files_are_those_of_the_ensemble(stages):
    found = {
        path.relative_to(stages.ensemble).as_posix()
        for path in stages.ensemble.rglob("*")
        if path.is_file()
    }
    assert found == set(FILES)


def test_ensemble_verifies_elsewhere_with_nothing_but_the_fingerprint(
    ensemble: Path, root: str, monkeypatch
):
    monkeypatch.chdir(ensemble)
    verified = verify_ensemble(Path(), root)
    assert [bundle.site for bundle in verified.bundles] == list(SITES)


def test_ensemble_under_another_fingerprint_is_refused(ensemble: Path, root: str):
    other = "sha256:" + "0" * 64
    with pytest.raises(RosterError, match=f"roster 1 has the digest {root}, pinned is {other}"):
        verify_ensemble(ensemble, other)


# One byte of every file


@pytest.mark.parametrize(("name", "named"), FILES.items(), ids=FILES)
def test_flipped_byte_of_a_file_is_refused_and_the_file_named(
    ensemble: Path, root: str, name: str, named: str
):
    flip(ensemble / name, (ensemble / name).stat().st_size // 2)
    with pytest.raises(DdmFedError) as caught:
        verify_ensemble(ensemble, root)
    assert caught.value.code.startswith("DDM2")
    assert named in caught.value.message


@pytest.mark.parametrize("name", [name for name in FILES if name != STATEMENT_FILE])
def test_removed_file_is_refused_and_the_file_named(ensemble: Path, root: str, name: str):
    (ensemble / name).unlink()
    with pytest.raises(DdmFedError) as caught:
        verify_ensemble(ensemble, root)
    expected = {
        "roster-0001.dsse.json": "roster 1 has the digest",
        "roster-0002.dsse.json": "the ensemble names the roster",
        "plan.dsse.json": "plan.dsse.json",
    }
    assert expected.get(name, f"`{name}` is missing") in caught.value.message


def test_removed_statement_is_refused(ensemble: Path, root: str):
    (ensemble / STATEMENT_FILE).unlink()
    with pytest.raises(FileSetError, match=r"ensemble\.dsse\.json cannot be opened"):
        verify_ensemble(ensemble, root)


@pytest.mark.parametrize(
    "name", ["plan.dsse.json", "roster-0001.dsse.json", "roster-0002.dsse.json"]
)
def test_changed_hint_of_a_document_is_refused_by_its_digest(ensemble: Path, root: str, name: str):
    document = json.loads((ensemble / name).read_bytes())
    document["signatures"][0]["keyid"] = ""  # decides nothing, so the signature still holds
    (ensemble / name).write_text(json.dumps(document))
    with pytest.raises(DigestError, match=f"`{name}` is not what the ensemble was signed with"):
        verify_ensemble(ensemble, root)


# The folder


def test_removed_member_is_refused(ensemble: Path, root: str):
    shutil.rmtree(ensemble / "sites" / B)
    with pytest.raises(FileSetError, match=f"`sites/{B}/{EXPERT_FILE}` is missing"):
        verify_ensemble(ensemble, root)


@pytest.mark.parametrize(
    "name", ["notes.txt", ".hidden", f"sites/{A}/notes.txt", "sites/x/expert.pt"]
)
def test_extra_file_is_refused(ensemble: Path, root: str, name: str):
    (ensemble / name).parent.mkdir(exist_ok=True)
    (ensemble / name).write_bytes(b"")
    with pytest.raises(FileSetError, match=f"the ensemble is refused: `{name}` does not belong"):
        verify_ensemble(ensemble, root)


@pytest.mark.parametrize("name", [STATEMENT_FILE, "plan.dsse.json", f"sites/{B}/{EXPERT_FILE}"])
def test_link_to_the_right_file_is_refused(ensemble: Path, root: str, name: str):
    (ensemble / name).rename(ensemble.parent / "elsewhere")
    (ensemble / name).symlink_to(ensemble.parent / "elsewhere")
    with pytest.raises(FileSetError, match=f"`{name}` is a symbolic link"):
        verify_ensemble(ensemble, root)


def test_fifo_in_place_of_a_receipt_is_refused_without_blocking(ensemble: Path, root: str):
    name = f"receipts/{A}.dsse.json"
    (ensemble / name).unlink()
    make_odd_file(ensemble / name, "fifo")
    with pytest.raises(FileSetError, match=f"`{name}` is not a regular file"):
        verify_ensemble(ensemble, root)


def test_linked_ensemble_folder_is_refused(ensemble: Path, root: str):
    (ensemble.parent / "link").symlink_to(ensemble)
    with pytest.raises(FileSetError, match=r"the ensemble is refused: .* is a symbolic link"):
        verify_ensemble(ensemble.parent / "link", root)


def test_folder_that_is_no_ensemble_is_refused(ensemble: Path, root: str):
    with pytest.raises(StateError, match=r"hospital-a is no ensemble"):
        verify_ensemble(ensemble / "sites" / A, root)


# Parts that changed places


@pytest.mark.parametrize("name", [EXPERT_FILE, ROUTER_FILE])
def test_files_swapped_between_two_members_are_refused(ensemble: Path, root: str, name: str):
    swap(ensemble / "sites" / A / name, ensemble / "sites" / B / name)
    with pytest.raises(DigestError, match=f"the bundle {A}: `{name}` is not what was signed"):
        verify_ensemble(ensemble, root)


def test_members_swapped_as_a_whole_are_refused(ensemble: Path, root: str):
    swap(ensemble / "sites" / A, ensemble / "sites" / B)
    with pytest.raises(DigestError, match=f"`sites/{A}/{ENVELOPE_FILE}` is not what the ensemble"):
        verify_ensemble(ensemble, root)


def test_receipts_swapped_are_refused(ensemble: Path, root: str):
    swap(ensemble / "receipts" / f"{A}.dsse.json", ensemble / "receipts" / f"{B}.dsse.json")
    with pytest.raises(DigestError, match=f"`receipts/{A}.dsse.json` is not what the ensemble"):
        verify_ensemble(ensemble, root)


# Who signed the statement


@pytest.mark.parametrize("signer", ["root", A])
def test_statement_signed_by_another_key_of_the_roster_is_refused(
    ensemble: Path, root: str, stages, signer: str
):
    fed: Federation = stages.admitted
    key = fed.root_key() if signer == "root" else fed.key(signer)
    restate(ensemble, key)
    with pytest.raises(
        UnknownSignerError, match=f"the ensemble is signed by {key.public.keyid[:24]}"
    ):
        verify_ensemble(ensemble, root)


def test_statement_of_another_ensemble_is_refused(ensemble: Path, root: str, stages, scratch: Path):
    assemble(stages.admitted.home, scratch / "other", router=None, without=[C])
    shutil.copyfile(scratch / "other" / STATEMENT_FILE, ensemble / STATEMENT_FILE)
    with pytest.raises(FileSetError, match=f"`receipts/{C}.dsse.json` does not belong there"):
        verify_ensemble(ensemble, root)


def test_manifest_of_a_member_in_place_of_the_statement_is_refused(ensemble: Path, root: str):
    shutil.copyfile(ensemble / "sites" / A / ENVELOPE_FILE, ensemble / STATEMENT_FILE)
    with pytest.raises(UnknownSignerError, match="the ensemble is signed by"):
        verify_ensemble(ensemble, root)


def test_receipt_in_place_of_the_statement_is_refused(ensemble: Path, root: str):
    shutil.copyfile(ensemble / "receipts" / f"{A}.dsse.json", ensemble / STATEMENT_FILE)
    with pytest.raises(DdmFedError, match="the ensemble is not a valid"):
        verify_ensemble(ensemble, root)


def test_ensemble_with_the_plan_of_another_is_refused(ensemble: Path, root: str, copy_of):
    fed: Federation = copy_of("admitted")
    proposals.publish_plan(fed.home, a_plan(steps="steps = 4"))
    shutil.copyfile(fed.home.published / "plan.dsse.json", ensemble / "plan.dsse.json")
    with pytest.raises(PlanMismatchError, match="the ensemble names the plan"):
        verify_ensemble(ensemble, root)


# Rosters


def enroll_another(fed: Federation, name: str) -> None:
    settings = SiteSettings(name=name, root=fed.root, max_epsilon=Decimal(1))
    site = SiteFolder.create(fed.path / name, settings)
    changes.add(fed.home, [site.path / "enrolment.dsse.json"])


@pytest.fixture
def later_roster(copy_of, scratch: Path) -> Path:
    """An ensemble made under roster 3, of bundles made under roster 2."""
    fed: Federation = copy_of("admitted")
    enroll_another(fed, "hospital-d")
    assemble(fed.home, scratch / "two", router=None, without=["hospital-d"])
    return scratch / "two"


def test_ensemble_under_a_later_roster_than_its_bundles_verifies(later_roster: Path, root: str):
    assert verify_ensemble(later_roster, root).trust.roster.version == 3


def test_ensemble_rolled_back_to_an_older_roster_is_refused(later_roster: Path, root: str):
    (later_roster / "roster-0003.dsse.json").unlink()
    with pytest.raises(PlanMismatchError, match="the ensemble names the roster"):
        verify_ensemble(later_roster, root)


def test_ensemble_without_its_first_roster_is_refused(later_roster: Path, root: str):
    (later_roster / "roster-0001.dsse.json").unlink()
    with pytest.raises(RosterError, match="roster 1 has the digest"):
        verify_ensemble(later_roster, root)


def test_ensemble_without_a_roster_in_between_is_refused(later_roster: Path, root: str):
    (later_roster / "roster-0002.dsse.json").unlink()
    with pytest.raises(RosterError, match="roster 2 says it is version 3"):
        verify_ensemble(later_roster, root)


def test_ensemble_with_a_newer_roster_added_is_refused(ensemble: Path, root: str, copy_of):
    fed: Federation = copy_of("admitted")
    enroll_another(fed, "hospital-d")
    shutil.copy(fed.home.published / "roster-0003.dsse.json", ensemble)
    with pytest.raises(PlanMismatchError, match="the ensemble names the roster"):
        verify_ensemble(ensemble, root)


# What even the coordinator, with its own key, cannot do


def reissue(ensemble: Path, site: str, key: SigningKey, *, receipt: bool = True) -> None:
    """Makes log and statement true of the manifest that lies in the place of `site`."""
    envelope = (ensemble / "sites" / site / ENVELOPE_FILE).read_bytes()
    submission = sha256_hex(payload(envelope))

    def point(statement: Json) -> None:
        statement["subject"][0]["digest"]["sha256"] = submission

    if receipt:
        relog_receipt(ensemble, site, point, key)

    def name(record: Json) -> None:
        record["members"][SITES.index(site)]["submission_sha256"] = submission

    restate(ensemble, key, name)


def edit_manifest(ensemble: Path, key: SigningKey) -> None:
    forge_manifest(ensemble / "sites" / B, lambda fields: fields["training"].update(steps=9), key)


def test_honest_ensemble_restated_by_its_coordinator_verifies(
    ensemble: Path, root: str, coordinator: SigningKey
):
    reissue(ensemble, B, coordinator)
    assert len(verify_ensemble(ensemble, root).bundles) == 3


def test_coordinator_that_changes_a_members_weights_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey
):
    flip(ensemble / "sites" / B / EXPERT_FILE, -1)
    restate(ensemble, coordinator)
    with pytest.raises(DigestError, match=f"the bundle {B}: `{EXPERT_FILE}` is not what was sign"):
        verify_ensemble(ensemble, root)


def test_coordinator_that_edits_a_members_manifest_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey
):
    edit_manifest(ensemble, coordinator)
    reissue(ensemble, B, coordinator)
    with pytest.raises(UnknownSignerError, match=f"the bundle {B} is signed by ed25519:"):
        verify_ensemble(ensemble, root)


def test_member_whose_receipt_is_for_another_submission_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey, site_keys
):
    edit_manifest(ensemble, site_keys[B])
    reissue(ensemble, B, coordinator, receipt=False)
    with pytest.raises(LogError, match=rf"the ensemble has submission \w+… of `{B}` from entry"):
        verify_ensemble(ensemble, root)


def test_member_that_is_not_the_submission_its_receipt_is_for_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey, site_keys
):
    def a_second_less(fields: Json) -> None:
        end = datetime.fromisoformat(fields["expires_at"]) - timedelta(days=1)
        fields["expires_at"] = f"{end:%Y-%m-%dT%H:%M:%SZ}"

    forge_manifest(ensemble / "sites" / B, a_second_less, site_keys[B])
    restate(ensemble, coordinator)
    with pytest.raises(PlanMismatchError, match=f"the member `{B}` names the submission"):
        verify_ensemble(ensemble, root)


def test_receipt_that_is_not_the_entry_of_the_log_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey, site_keys
):
    index = place(ensemble, B)
    forge(ensemble / "receipts" / f"{B}.dsse.json", lambda _: None, site_keys[B])
    restate(ensemble, coordinator)
    with pytest.raises(LogError, match=f"the receipt of `{B}` is not entry {index} of the log"):
        verify_ensemble(ensemble, root)


def test_receipt_signed_by_its_own_site_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey, site_keys
):
    relog_receipt(ensemble, B, lambda _: None, coordinator, signer=site_keys[B])
    index = place(ensemble, B)
    with pytest.raises(UnknownSignerError, match=f"log entry {index} is signed by ed25519:"):
        verify_ensemble(ensemble, root)


def test_coordinator_that_puts_one_member_in_the_place_of_another_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey
):
    shutil.rmtree(ensemble / "sites" / B)
    shutil.copytree(ensemble / "sites" / A, ensemble / "sites" / B)
    reissue(ensemble, B, coordinator)
    with pytest.raises(PlanMismatchError, match=f"the member `{B}` names the site `{A}`"):
        verify_ensemble(ensemble, root)


def test_coordinator_that_counts_a_member_twice_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey
):
    restate(ensemble, coordinator, lambda record: record["members"].append(record["members"][1]))
    with pytest.raises(RefusedError, match="the ensemble"):
        verify_ensemble(ensemble, root)


def test_coordinator_that_admits_after_expiry_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey
):
    late = payload_of(ensemble / "sites" / C / ENVELOPE_FILE)["predicate"]["expires_at"]
    relog_receipt(
        ensemble, C, lambda entry: entry["predicate"].update(admitted_at=late), coordinator
    )
    with pytest.raises(ExpiredError, match=f"the bundle {C} expired at"):
        verify_ensemble(ensemble, root)


def test_ensemble_of_bundles_that_expired_since_verifies(
    ensemble: Path, root: str, coordinator: SigningKey, site_keys
):
    dates = {"issued_at": "2020-01-01T00:00:00Z", "expires_at": "2020-03-01T00:00:00Z"}
    forge_manifest(ensemble / "sites" / A, lambda fields: fields.update(dates), site_keys[A])
    relog_receipt(
        ensemble,
        A,
        lambda entry: entry["predicate"].update(admitted_at="2020-02-01T00:00:00Z"),
        coordinator,
    )
    reissue(ensemble, A, coordinator)
    assert verify_ensemble(ensemble, root).bundles[0].site == A


# The log


def test_lost_leaf_is_refused_and_the_file_named(ensemble: Path, root: str):
    write_leaves(ensemble, leaves(ensemble)[:-1])
    with pytest.raises(DigestError, match=f"`{LEAVES_FILE}` is not what the ensemble was signed"):
        verify_ensemble(ensemble, root)


@pytest.mark.parametrize("index", range(3))
def test_coordinator_that_loses_a_leaf_is_refused_by_its_own_checkpoint(
    ensemble: Path, root: str, coordinator: SigningKey, index: int
):
    lines = leaves(ensemble)
    del lines[index]
    write_leaves(ensemble, lines)
    restate(ensemble, coordinator)
    with pytest.raises(LogError, match="the log has 2 whole leaves, its checkpoint was signed ove"):
        verify_ensemble(ensemble, root)


def test_coordinator_that_signs_a_log_without_a_member_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey
):
    last = next(site for site in SITES if place(ensemble, site) == 2)
    relog(ensemble, leaves(ensemble)[:-1], coordinator)
    with pytest.raises(LogError, match=f"the log admitted nothing of `{last}` for this plan"):
        verify_ensemble(ensemble, root)


def test_coordinator_that_signs_a_log_without_its_first_leaf_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey
):
    relog(ensemble, leaves(ensemble)[1:], coordinator)
    with pytest.raises(LogError, match="log entry 0 says it is entry 1 of"):
        verify_ensemble(ensemble, root)


def test_reordered_leaves_are_refused_by_the_checkpoint(
    ensemble: Path, root: str, coordinator: SigningKey
):
    one, two, three = leaves(ensemble)
    write_leaves(ensemble, [two, one, three])
    restate(ensemble, coordinator)
    with pytest.raises(LogError, match="the 3 leaves of the log have the root"):
        verify_ensemble(ensemble, root)


def test_coordinator_that_signs_a_reordered_log_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey
):
    one, two, three = leaves(ensemble)
    relog(ensemble, [one, three, two], coordinator)
    with pytest.raises(LogError, match="log entry 1 says it is entry 2 of"):
        verify_ensemble(ensemble, root)


def test_ensemble_that_names_another_log_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey
):
    restate(ensemble, coordinator, lambda record: record["log"].update(root="0" * 64))
    with pytest.raises(PlanMismatchError, match=f"the ensemble names the log `{'0' * 64}`"):
        verify_ensemble(ensemble, root)


def test_altered_hash_of_a_log_proof_is_refused(ensemble: Path, root: str, coordinator: SigningKey):
    file = ensemble / "receipts" / f"{B}.tlog-proof"
    proof = read_proof(file.read_bytes(), what="it")
    file.write_bytes(write_proof(replace(proof, path=(bytes(32), *proof.path[1:]))))
    restate(ensemble, coordinator)
    with pytest.raises(LogError, match=f"the log proof of `{B}` leads to the root"):
        verify_ensemble(ensemble, root)


def test_log_proof_of_another_member_is_refused(ensemble: Path, root: str, coordinator: SigningKey):
    swap(ensemble / "receipts" / f"{A}.tlog-proof", ensemble / "receipts" / f"{B}.tlog-proof")
    restate(ensemble, coordinator)
    with pytest.raises(LogError, match=f"the log proof of `{A}`"):
        verify_ensemble(ensemble, root)


def drop(ensemble: Path, site: str, key: SigningKey, *, left_out: tuple[str, ...]) -> None:
    shutil.rmtree(ensemble / "sites" / site)
    for file in (ensemble / "receipts").glob(f"{site}.*"):
        file.unlink()

    def edit(record: Json) -> None:
        record["members"] = [item for item in record["members"] if item["site"] != site]
        record["left_out"] = list(left_out)

    restate(ensemble, key, edit)


def test_coordinator_that_silently_drops_a_member_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey
):
    index = place(ensemble, B)
    drop(ensemble, B, coordinator, left_out=())
    with pytest.raises(
        LogError, match=f"the log admitted at entry {index} of `{B}` for this plan; .* neither has"
    ):
        verify_ensemble(ensemble, root)


def test_ensemble_that_says_whom_it_left_out_verifies(
    ensemble: Path, root: str, coordinator: SigningKey
):
    drop(ensemble, B, coordinator, left_out=(B,))
    verified = verify_ensemble(ensemble, root)
    assert verified.record.left_out == (B,)
    assert [bundle.site for bundle in verified.bundles] == [A, C]


def test_older_submission_than_the_newest_in_the_log_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey
):
    lines = leaves(ensemble)
    index = place(ensemble, B)
    newer = json.loads(payload(lines[index]))
    newer["subject"][0]["digest"]["sha256"] = "5" * 64
    newer["predicate"].update(sequence=newer["predicate"]["sequence"] + 1, log_index=len(lines))
    newest = seal(canonical_json(newer), IN_TOTO_PAYLOAD, [coordinator])
    relog(ensemble, [*lines, newest], coordinator)
    with pytest.raises(
        LogError, match=f"of `{B}` from entry {index}, the newest in the log is {'5' * 16}… at ent"
    ):
        verify_ensemble(ensemble, root)


# Removal


def test_ensemble_after_a_removal_is_the_one_assembled_without_the_site(copy_of, scratch: Path):
    fed: Federation = copy_of("admitted")
    assemble(fed.home, scratch / "before", router=None, without=[B])
    remove(fed.home, B, reason="consent withdrawn", delete_weights=False)
    assemble(fed.home, scratch / "after", router=None, without=())
    assemble(fed.home, scratch / "without", router=None, without=[B])
    assert snapshot(scratch / "after") == snapshot(scratch / "without")
    assert snapshot(scratch / "after" / "sites") == snapshot(scratch / "before" / "sites")
    assert verify_ensemble(scratch / "after", fed.root).record.left_out == ()


def test_ensemble_with_a_removed_member_is_stale_and_still_verifies(
    ensemble: Path, root: str, copy_of
):
    fed: Federation = copy_of("admitted")
    remove(fed.home, B, reason="consent withdrawn", delete_weights=False)
    verified = verify_ensemble(ensemble, root)
    found = find_staleness(verified, *read_seen(fed.published, root))
    assert len(found.stale) == 1
    assert found.stale[0].startswith(f"`{B}` was removed on ")
    assert found.stale[0].endswith(": consent withdrawn")


# After verification


def test_weights_changed_after_verification_are_never_loaded(ensemble: Path, root: str):
    verified = verify_ensemble(ensemble, root)
    flip(ensemble / "sites" / C / EXPERT_FILE, -1)
    with pytest.raises(DigestError, match=f"`{EXPERT_FILE}` of `{C}` changed after it was verif"):
        load_ensemble(verified)


def test_statement_that_says_it_is_of_another_kind_is_refused(ensemble: Path, root: str, stages):
    forge(
        ensemble / STATEMENT_FILE,
        lambda statement: statement.update(predicateType="urn:ddm-fed:other:v1"),
        stages.admitted.coordinator_key(),
    )
    with pytest.raises(PlanMismatchError, match="names the predicate type `urn:ddm-fed:other:v1`"):
        verify_ensemble(ensemble, root)
