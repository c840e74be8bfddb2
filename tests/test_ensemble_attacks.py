"""Attacks on an ensemble: an outsider with folder and fingerprint finds every change by name."""

import base64
import json
import shutil
from collections.abc import Callable
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
)

from coordinator import members
from coordinator.assemble import assemble
from ddm_fed.assembly import STATEMENT_FILE, load_ensemble, verify_ensemble, write_ensemble
from ddm_fed.bundle import ENVELOPE_FILE, EXPERT_FILE, ROUTER_FILE
from ddm_fed.errors import (
    DdmFedError,
    DigestError,
    ExpiredError,
    FileSetError,
    PlanMismatchError,
    RefusedError,
    RosterError,
    StateError,
    UnknownSignerError,
)
from ddm_fed.records import sha256_hex
from ddm_fed.signing import SigningKey
from sites.folder import SiteFolder, SiteSettings

A, B, C = SITES
FILES = {
    STATEMENT_FILE: "the ensemble",
    "plan.dsse.json": "the plan",
    "roster-0001.dsse.json": "roster 1",
}
for _site in SITES:
    FILES[f"receipts/{_site}.dsse.json"] = f"`receipts/{_site}.dsse.json` is not what"
    FILES[f"sites/{_site}/{ENVELOPE_FILE}"] = f"`sites/{_site}/{ENVELOPE_FILE}` is not what"
    FILES[f"sites/{_site}/{EXPERT_FILE}"] = f"the bundle {_site}: `{EXPERT_FILE}` is not what"
    FILES[f"sites/{_site}/{ROUTER_FILE}"] = f"the bundle {_site}: `{ROUTER_FILE}` is not what"


@pytest.fixture(scope="session")
def root(stages) -> str:
    return stages.admitted.root


@pytest.fixture(scope="session")
def coordinator(stages) -> SigningKey:
    return stages.admitted.home.key()


def swap(one: Path, other: Path) -> None:
    middle = one.with_name("in-between")
    one.rename(middle)
    other.rename(one)
    middle.rename(other)


def restate(ensemble: Path, key: SigningKey, edit: Callable[[Json], None] = lambda _: None) -> None:
    """Makes the statement true of what the folder holds now, and signs it with `key`."""

    def edit_all(statement: Json) -> None:
        for subject in statement["subject"]:
            data = (ensemble / subject["name"]).read_bytes()
            subject["digest"]["sha256"] = sha256_hex(data)
        edit(statement["predicate"])

    forge(ensemble / STATEMENT_FILE, edit_all, key)


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
    other = SigningKey.from_seed(bytes(32)).public.keyid
    with pytest.raises(RosterError, match=f"roster 1 is of the root key {root}, pinned is {other}"):
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
    expected = {"roster-0001.dsse.json": "there is no roster", "plan.dsse.json": "plan.dsse.json"}
    assert expected.get(name, f"`{name}` is missing") in caught.value.message


def test_removed_statement_is_refused(ensemble: Path, root: str):
    (ensemble / STATEMENT_FILE).unlink()
    with pytest.raises(FileSetError, match=r"ensemble\.dsse\.json cannot be opened"):
        verify_ensemble(ensemble, root)


@pytest.mark.parametrize("name", ["plan.dsse.json", "roster-0001.dsse.json"])
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
    with pytest.raises(StateError, match=r"there is no plan\.dsse\.json in .*hospital-a"):
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
    key = fed.home.root_key() if signer == "root" else fed.key(signer)
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
    members.publish(fed.home, a_plan(steps="steps = 4"))
    shutil.copyfile(fed.home.published / "plan.dsse.json", ensemble / "plan.dsse.json")
    with pytest.raises(PlanMismatchError, match="the ensemble names the plan"):
        verify_ensemble(ensemble, root)


# Rosters


def enroll_another(fed: Federation, name: str) -> None:
    settings = SiteSettings.model_validate_json(
        json.dumps({"name": name, "root_keyid": fed.root, "max_epsilon": "1"})
    )
    site = SiteFolder.create(fed.path / name, settings)
    members.enroll(fed.home, site.path / "enrolment.dsse.json", expected_keyid=None)
    members.publish(fed.home, a_plan())


@pytest.fixture
def two_rosters(copy_of, scratch: Path) -> Path:
    """An ensemble made under roster 2, of bundles made under roster 1."""
    fed: Federation = copy_of("admitted")
    enroll_another(fed, "hospital-d")
    assemble(fed.home, scratch / "two", router=None, without=["hospital-d"])
    return scratch / "two"


def test_ensemble_under_a_later_roster_than_its_bundles_verifies(two_rosters: Path, root: str):
    assert verify_ensemble(two_rosters, root).trust.roster.version == 2


def test_ensemble_rolled_back_to_an_older_roster_is_refused(two_rosters: Path, root: str):
    (two_rosters / "roster-0002.dsse.json").unlink()
    with pytest.raises(PlanMismatchError, match="the ensemble names the roster"):
        verify_ensemble(two_rosters, root)


def test_ensemble_without_its_first_roster_is_refused(two_rosters: Path, root: str):
    (two_rosters / "roster-0001.dsse.json").unlink()
    with pytest.raises(RosterError, match="roster 1 says it is version 2"):
        verify_ensemble(two_rosters, root)


def test_ensemble_with_a_newer_roster_added_is_refused(ensemble: Path, root: str, copy_of):
    fed: Federation = copy_of("admitted")
    enroll_another(fed, "hospital-d")
    shutil.copy(fed.home.published / "roster-0002.dsse.json", ensemble)
    with pytest.raises(PlanMismatchError, match="the ensemble names the roster"):
        verify_ensemble(ensemble, root)


# What even the coordinator, with its own key, cannot do


def reissue(ensemble: Path, site: str, key: SigningKey, *, receipt: bool = True) -> None:
    """Makes receipt and statement true of the manifest that lies in the place of `site`."""
    envelope = json.loads((ensemble / "sites" / site / ENVELOPE_FILE).read_bytes())
    submission = sha256_hex(base64.b64decode(envelope["payload"]))

    def point(statement: Json) -> None:
        statement["subject"][0]["digest"]["sha256"] = submission

    if receipt:
        forge(ensemble / "receipts" / f"{site}.dsse.json", point, key)

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
    with pytest.raises(PlanMismatchError, match=f"the receipt of `{B}` is not a receipt for the"):
        verify_ensemble(ensemble, root)


def test_receipt_signed_by_its_own_site_is_refused(
    ensemble: Path, root: str, coordinator: SigningKey, site_keys
):
    forge(ensemble / "receipts" / f"{B}.dsse.json", lambda _: None, site_keys[B])
    restate(ensemble, coordinator)
    with pytest.raises(UnknownSignerError, match=f"the receipt of `{B}` is signed by ed25519:"):
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
    forge(
        ensemble / "receipts" / f"{C}.dsse.json",
        lambda statement: statement["predicate"].update(admitted_at=late),
        coordinator,
    )
    restate(ensemble, coordinator)
    with pytest.raises(ExpiredError, match=f"the bundle {C} expired at"):
        verify_ensemble(ensemble, root)


def test_ensemble_of_bundles_that_expired_since_verifies(
    stages, root: str, coordinator: SigningKey, site_keys, scratch: Path
):
    fed: Federation = stages.admitted
    member = Path(shutil.copytree(fed.stored(A).folder, scratch / "member"))
    dates = {"issued_at": "2020-01-01T00:00:00Z", "expires_at": "2020-03-01T00:00:00Z"}
    digest = forge_manifest(member / "bundle", lambda fields: fields.update(dates), site_keys[A])

    def admit_then(statement: Json) -> None:
        statement["subject"][0]["digest"]["sha256"] = digest
        statement["predicate"]["admitted_at"] = "2020-02-01T00:00:00Z"

    forge(member / "receipt.dsse.json", admit_then, coordinator)
    parts = {A: (member / "bundle", member / "receipt.dsse.json")}
    write_ensemble(scratch / "old", fed.home.published, fed.trust, parts, "mixture", coordinator)
    assert verify_ensemble(scratch / "old", root).bundles[0].site == A


# After verification


def test_weights_changed_after_verification_are_never_loaded(ensemble: Path, root: str):
    verified = verify_ensemble(ensemble, root)
    flip(ensemble / "sites" / C / EXPERT_FILE, -1)
    with pytest.raises(DigestError, match=f"`{EXPERT_FILE}` of `{C}` changed after it was verif"):
        load_ensemble(verified)
