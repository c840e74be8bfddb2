"""Admission and assembly: what is stored is what was signed, whoever writes to the inbox."""

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from federation import (
    SITES,
    Federation,
    flip,
    forge,
    forge_manifest,
    make_odd_file,
    payload_of,
    snapshot,
)

from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import Admitted, Verdict, admit_arrivals, current_members
from coordinator.journal import refusals
from coordinator.roster import changes
from coordinator.status.report import site_states
from ddm_fed.bundle.verify import ENVELOPE_FILE, EXPERT_FILE, ROUTER_FILE, TENSOR_FILES
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.errors import (
    DigestError,
    EquivocationError,
    ExpiredError,
    OptionError,
    RefusedError,
    ReplayError,
    StateError,
)
from ddm_fed.records import sha256_hex
from ddm_fed.signing import PLAN_PAYLOAD, SigningKey
from ddm_fed.storage.files import PART_PREFIX
from ddm_fed.trust.log import LOG_FILES, read_log
from ddm_fed.trust.receipts import read_receipt
from sites.workspace import SiteFolder, SiteSettings

A, B, C = SITES


@pytest.fixture
def fed(copy_of) -> Federation:
    """A coordinator in whose inbox only the bundle of hospital-a lies."""
    federation: Federation = copy_of("submitted")
    for name in (B, C):
        shutil.rmtree(federation.arrival(name))
    return federation


@pytest.fixture
def admitted(copy_of) -> Federation:
    """A coordinator that has admitted all three."""
    return copy_of("admitted")


def admit(fed: Federation, **options) -> list[Verdict]:
    return admit_arrivals(fed.home, fed.trust, **options)


def admit_one(fed: Federation, **options) -> Verdict:
    (verdict,) = admit(fed, **options)
    return verdict


def incoming(fed: Federation) -> list[str]:
    return sorted(path.name for path in fed.home.incoming.iterdir())


def manifests(fed: Federation) -> Path:
    return fed.home.path / "store" / "manifests"


def members_of(fed: Federation) -> dict[str, Admitted]:
    return current_members(fed.home, fed.trust, fed.log)


def stored_digests(fed: Federation) -> list[str]:
    """Returns what is in the store: manifest, weights and leaf of each, and nothing besides."""
    assert_store_is_what_was_signed(fed)
    found = sorted(path.name.removesuffix(".dsse.json") for path in manifests(fed).iterdir())
    assert sorted(entry.submission_sha256 for entry in fed.log.receipts()) == found
    return found


def assert_store_is_what_was_signed(fed: Federation) -> None:
    """Asserts that the stored files are those, and have the digests, that the sites signed."""
    signed = {
        subject["digest"]["sha256"]
        for path in manifests(fed).iterdir()
        for subject in payload_of(path)["subject"]
    }
    stored = {path.name: sha256_hex(path.read_bytes()) for path in fed.home.blobs.folder.iterdir()}
    assert stored == {digest: digest for digest in signed}


# What is admitted


def test_arrival_is_admitted_into_the_store_with_a_published_receipt(fed: Federation):
    verdict = admit_one(fed)
    digest = verdict.admitted.payload_sha256
    assert (stored_digests(fed), incoming(fed)) == ([digest], [])
    data = (fed.home.receipts / f"{digest}.dsse.json").read_bytes()
    entry = read_receipt(data, digest, fed.trust.chain, what="receipt")
    assert (entry.receipt.site, entry.receipt.sequence, entry.index) == (A, 1, 0)
    assert read_log(fed.published, fed.trust.chain).entries == (entry,)


def test_store_of_all_three_sites_is_what_they_signed(admitted: Federation):
    assert members_of(admitted).keys() == set(SITES)
    assert_store_is_what_was_signed(admitted)


def test_admitted_files_are_read_only_in_a_private_store(admitted: Federation):
    files = [*admitted.home.blobs.folder.iterdir(), *manifests(admitted).iterdir()]
    assert len(files) == 3 * (len(TENSOR_FILES) + 1)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o440}
    assert stat.S_IMODE((admitted.home.path / "store").stat().st_mode) == 0o700


def test_manifest_whose_leaf_was_never_written_does_not_stay_in_the_store(fed: Federation):
    """Killed between manifest and leaf, and the arrival withdrawn before the next command."""
    for name in (f"{'0' * 64}.dsse.json", f"{PART_PREFIX}{'0' * 64}.dsse.json"):
        (manifests(fed) / name).write_bytes(b"{}")
    admit(fed)
    assert len(stored_digests(fed)) == 1
    assert len(list(manifests(fed).iterdir())) == 1


def test_admission_tells_every_byte_it_hashed(fed: Federation):
    counted: list[int] = []
    tensors = sum((fed.arrival(A) / name).stat().st_size for name in TENSOR_FILES)
    admit(fed, advance=counted.append)
    assert sum(counted) == tensors


def test_same_bundle_twice_is_idempotent_and_keeps_its_receipt(fed: Federation, scratch: Path):
    shutil.copytree(fed.arrival(A), scratch / "again")
    first = admit_one(fed).admitted
    before = [snapshot(fed.home.path / name) for name in ("store", "log", "published")]
    shutil.move(scratch / "again", fed.home.incoming / "another-name")
    second = admit_one(fed).admitted
    assert second.entry == first.entry
    assert [snapshot(fed.home.path / name) for name in ("store", "log", "published")] == before
    assert incoming(fed) == []


def test_newer_sequence_replaces_the_member(fed: Federation, site_keys, scratch: Path):
    newer = Path(shutil.copytree(fed.arrival(A), scratch / "newer"))
    forge_manifest(newer, lambda fields: fields.update(sequence=2), site_keys[A])
    admit_one(fed)
    shutil.move(newer, fed.home.incoming / "newer")
    assert admit_one(fed).error is None
    assert members_of(fed)[A].submission.sequence == 2
    assert len(stored_digests(fed)) == 2


def test_bundle_is_admitted_after_another_site_joined(fed: Federation, scratch: Path):
    before = fed.trust.roster.version
    joining = SiteSettings(name="hospital-d", root=fed.root, max_epsilon=Decimal(10))
    SiteFolder.create(scratch / "hospital-d", joining)
    changes.add(fed.home, [scratch / "hospital-d" / "enrolment.dsse.json"])
    assert fed.trust.roster.version == before + 1
    assert admit_one(fed).error is None


def test_store_stays_usable_after_a_member_left_the_roster(admitted: Federation):
    changes.revoke(admitted.home, C, compromised_since=0)
    assert admit(admitted) == []
    assert members_of(admitted).keys() == {A, B}


# What is refused


def test_admission_refuses_older_sequence(fed: Federation, site_keys, scratch: Path):
    newer = Path(shutil.copytree(fed.arrival(A), scratch / "newer"))
    forge_manifest(newer, lambda fields: fields.update(sequence=2), site_keys[A])
    older = Path(shutil.move(fed.arrival(A), scratch / "older"))
    shutil.move(newer, fed.home.incoming / "newer")
    admit_one(fed)
    shutil.move(older, fed.home.incoming / "older")
    verdict = admit_one(fed)
    assert isinstance(verdict.error, ReplayError)
    assert verdict.error.code == "DDM208"
    assert f"`{A}` has the sequence number 1, 2 was admitted already" in verdict.error.message


def test_admission_refuses_another_submission_of_the_same_sequence(
    fed: Federation, site_keys, scratch: Path
):
    other = Path(shutil.copytree(fed.arrival(A), scratch / "other"))
    renamed = {"program": "ddm-fed 9.9"}
    offered = forge_manifest(other, lambda fields: fields["training"].update(renamed), site_keys[A])
    admit_one(fed)
    shutil.move(other, fed.home.incoming / "other")
    signed = (fed.home.incoming / "other" / ENVELOPE_FILE).read_bytes()
    verdict = admit_one(fed)
    assert isinstance(verdict.error, EquivocationError)
    assert verdict.error.code == "DDM213"
    assert f"`{A}` signed two submissions with the number 1" in verdict.error.message
    admitted = fed.stored(A)
    assert stored_digests(fed) == [admitted.payload_sha256]
    assert snapshot(fed.home.evidence) == {
        f"{A}-1/{admitted.payload_sha256}.dsse.json": admitted.envelope,
        f"{A}-1/{offered}.dsse.json": signed,
    }


def test_refused_bundle_is_kept_as_it_arrived_with_the_reason(fed: Federation):
    flip(fed.arrival(A) / EXPERT_FILE, -1)
    name, before = fed.arrival(A).name, snapshot(fed.arrival(A))
    verdict = admit_one(fed)
    (entry,) = refusals(fed.home)
    assert isinstance(verdict.error, DigestError)
    assert (entry["code"], entry["arrival"]) == ("DDM206", name)
    assert f"`{EXPERT_FILE}` is not what was signed" in entry["message"]
    assert snapshot(fed.home.refused / entry["kept_as"]) == before
    assert (incoming(fed), stored_digests(fed)) == ([], [])
    assert list(fed.home.receipts.iterdir()) == []


def test_one_refusal_does_not_stop_the_others(copy_of):
    fed: Federation = copy_of("submitted")
    flip(fed.arrival(B) / ROUTER_FILE, -1)
    admit(fed)
    assert members_of(fed).keys() == {A, C}
    assert [entry["code"] for entry in refusals(fed.home)] == ["DDM206"]


def test_two_refusals_of_one_name_in_one_second_are_both_kept(fed: Federation):
    for _ in range(3):
        (fed.home.incoming / "junk").mkdir()
        admit_one_of(fed, "junk")
    kept = [entry["kept_as"] for entry in refusals(fed.home)]
    assert len(set(kept)) == 3
    assert all((fed.home.refused / name).is_dir() for name in kept)


def admit_one_of(fed: Federation, name: str) -> Verdict:
    for path in fed.home.incoming.iterdir():
        if path.name != name:
            shutil.rmtree(path)
    return admit_one(fed)


def test_status_shows_refusals_and_members(fed: Federation):
    (fed.home.incoming / "junk").mkdir()
    admit(fed)
    report = site_states(fed.home).as_json()
    states = {row["site"]: row["state"] for row in report["sites"]}
    assert states == {A: "admitted", B: "in the roster", C: "in the roster"}
    assert [entry["code"] for entry in report["refused"]] == ["DDM205"]


def test_expired_plan_admits_nothing(fed: Federation):
    forge(
        fed.home.published / "plan.dsse.json",
        lambda plan: plan.update(expires_at="2026-01-01T00:00:00Z"),
        fed.coordinator_key(),
        kind=PLAN_PAYLOAD,
    )
    with pytest.raises(ExpiredError, match="the plan expired on 2026-01-01"):
        admit(fed)
    assert len(incoming(fed)) == 1


# Odd arrivals


def test_copy_a_transport_is_still_writing_is_left_alone(fed: Federation):
    part = fed.home.incoming / f"{PART_PREFIX}{fed.arrival(A).name}"
    fed.arrival(A).rename(part)
    assert admit(fed) == []
    assert incoming(fed) == [part.name]


def test_plain_file_in_the_inbox_is_refused_by_name(fed: Federation):
    (fed.home.incoming / "notes.txt").write_bytes(b"hello")
    verdicts = {verdict.name: verdict for verdict in admit(fed)}
    assert "notes.txt" in verdicts["notes.txt"].error.message
    assert verdicts["notes.txt"].error.code == "DDM205"
    assert len(stored_digests(fed)) == 1


@pytest.mark.parametrize("kind", ["link", "folder-link", "dangling", "fifo"])
def test_odd_file_in_the_inbox_is_refused_without_blocking(fed: Federation, kind: str):
    make_odd_file(fed.home.incoming / "odd", kind)
    verdicts = {verdict.name: verdict for verdict in admit(fed)}
    assert verdicts["odd"].error.code == "DDM205"
    assert (incoming(fed), len(stored_digests(fed))) == ([], 1)


def test_link_to_a_valid_bundle_is_refused_and_the_bundle_untouched(fed: Federation, scratch: Path):
    real = Path(shutil.move(fed.arrival(A), scratch / "real"))
    (fed.home.incoming / "link").symlink_to(real)
    assert admit_one(fed).error.code == "DDM205"
    assert sorted(path.name for path in real.iterdir()) == sorted([*TENSOR_FILES, ENVELOPE_FILE])


ODD_NAMES = {
    "not-utf8": os.fsdecode(b"\xff\xfe"),
    "control-characters": "\x1b[2J\x07",
    "line-feed": "a\nb",
    "255-bytes": "x" * 255,
    "240-bytes-in-60-characters": "\N{GRINNING FACE}" * 60,
    "looks-like-an-option": "--help",
}


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
@pytest.mark.parametrize("kind", ["folder", "plain-file"])
def test_arrival_with_an_odd_name_is_refused_and_shown_escaped(
    fed: Federation, name: str, kind: str
):
    shutil.rmtree(fed.arrival(A))
    if kind == "folder":
        (fed.home.incoming / name).mkdir()
    else:
        (fed.home.incoming / name).write_bytes(b"")
    verdict = admit_one(fed)
    assert verdict.error.code == "DDM205"
    (entry,) = refusals(fed.home)
    assert all(text.isprintable() for text in [verdict.name, *map(str, entry.values())])


def test_valid_bundle_in_a_folder_with_an_odd_name_is_admitted(fed: Federation):
    fed.arrival(A).rename(fed.home.incoming / os.fsdecode(b"\xff\x1b[2J"))
    assert admit_one(fed).error is None


def test_status_of_an_inbox_with_an_odd_name_is_printable(fed: Federation):
    (fed.home.incoming / os.fsdecode(b"\xff\x1b[2J")).mkdir()
    assert all(name.isprintable() for name in site_states(fed.home).as_json()["arrivals"])


HOSTILE_DOCUMENTS = {
    "broken-surrogate": b'{"\\ud800":1,"\\ud800":2}',
    "control-characters": b'{"\\u001b[2J":1}',
    "endless-key": b'{"' + b"k" * 500_000 + b'":1}',
}


@pytest.mark.parametrize("data", HOSTILE_DOCUMENTS.values(), ids=HOSTILE_DOCUMENTS)
def test_hostile_manifest_is_refused_with_a_short_printable_reason(fed: Federation, data: bytes):
    (fed.arrival(A) / ENVELOPE_FILE).write_bytes(data)
    assert admit_one(fed).error.code == "DDM201"
    (entry,) = refusals(fed.home)
    assert entry["message"].isprintable()
    assert len(entry["message"]) < 10_000


def test_manifest_with_a_date_beyond_the_calendar_is_refused(fed: Federation):
    forge_manifest(
        fed.arrival(A),
        lambda fields: fields.update(issued_at="0001-01-01T00:00:00+14:00"),
        SigningKey.from_seed(bytes(32)),
    )
    assert admit_one(fed).error.code == "DDM201"


def test_endlessly_nested_arrival_is_refused(fed: Federation, scratch: Path):
    level, top = scratch / "deep", scratch / "top"
    level.mkdir()
    for _ in range(1100):
        top.mkdir()
        level.rename(top / "d")
        top.rename(level)
    shutil.rmtree(fed.arrival(A))
    level.rename(fed.home.incoming / "deep")
    try:
        assert admit_one(fed).error.code == "DDM205"
    finally:
        subprocess.run(["rm", "-rf", fed.home.incoming, fed.home.refused], check=True)


# An attacker who can write to the inbox, while we read it


def once(attack: Callable[[], object]) -> Callable[..., None]:
    waiting = [attack]

    def run(*_: object) -> None:
        if waiting:
            waiting.pop()()

    return run


def test_arrival_deleted_while_it_is_verified_does_not_stop_the_others(copy_of):
    fed: Federation = copy_of("submitted")
    first = min(fed.home.incoming.iterdir())
    verdicts = admit(fed, advance=once(lambda: shutil.rmtree(first)))
    assert [verdict.error is None for verdict in verdicts] == [False, True, True]


def test_arrival_renamed_while_it_is_verified_does_not_stop_the_others(copy_of):
    fed: Federation = copy_of("submitted")
    first = min(fed.home.incoming.iterdir())
    verdicts = admit(fed, advance=once(lambda: first.rename(first.with_name(".part-x"))))
    assert len(verdicts) == 3
    assert_store_is_what_was_signed(fed)


def test_arrival_withdrawn_after_it_was_hashed_is_still_admitted(fed: Federation):
    arrival, hashed = fed.arrival(A), []

    def withdraw(count: int) -> None:
        hashed.append(count)
        if len(hashed) == len(TENSOR_FILES):
            shutil.rmtree(arrival)

    assert admit_one(fed, advance=withdraw).error is None
    assert_store_is_what_was_signed(fed)


def test_arrival_that_became_a_link_after_it_was_hashed_removes_nothing_elsewhere(
    fed: Federation, scratch: Path
):
    arrival, hashed = fed.arrival(A), []
    (scratch / "victim").mkdir()
    (scratch / "victim" / "data").write_bytes(b"mine")

    def replace(count: int) -> None:
        hashed.append(count)
        if len(hashed) == len(TENSOR_FILES):
            shutil.rmtree(arrival)
            arrival.symlink_to(scratch / "victim")

    assert admit_one(fed, advance=replace).error is None
    assert (scratch / "victim" / "data").read_bytes() == b"mine"


def _rewrite(path: Path, honest: bytes) -> None:
    path.write_bytes(honest[:-1] + b"\x42")
    path.write_bytes(honest)


def _truncate(path: Path, honest: bytes) -> None:
    os.truncate(path, len(honest) // 2)
    path.write_bytes(honest)


def _rename(path: Path, honest: bytes) -> None:
    path.rename(path.with_name("away"))
    path.with_name("away").rename(path)


def _replace(path: Path, honest: bytes) -> None:
    path.with_name(".x").write_bytes(bytes(len(honest)))
    path.with_name(".x").replace(path)
    path.with_name(".x").write_bytes(honest)
    path.with_name(".x").replace(path)


@pytest.mark.parametrize("attack", [_rewrite, _truncate, _rename, _replace])
def test_file_attacked_all_the_time_is_stored_as_signed_or_refused(
    fed: Federation, scratch: Path, attack: Callable[[Path, bytes], None]
):
    honest = Path(shutil.copytree(fed.arrival(A), scratch / "honest"))
    weights = (honest / EXPERT_FILE).read_bytes()
    shutil.rmtree(fed.arrival(A))
    stop = threading.Event()
    target = fed.home.incoming / "bundle" / EXPERT_FILE

    def run() -> None:
        while not stop.is_set():
            try:
                attack(target, weights)
            except OSError:  # moved away by admission
                continue

    attacker = threading.Thread(target=run)
    attacker.start()
    try:
        for attempt in range(6):
            delivery = Path(shutil.copytree(honest, scratch / f"delivery-{attempt}"))
            shutil.rmtree(target.parent, ignore_errors=True)
            if not target.parent.exists():
                delivery.rename(target.parent)
            for verdict in admit(fed):
                assert verdict.error is None or isinstance(verdict.error, RefusedError)
            assert_store_is_what_was_signed(fed)
    finally:
        stop.set()
        attacker.join()


# An inbox in which others own the files


def permissions_hold(folder: Path) -> bool:
    (folder / "closed").mkdir(mode=0)
    hold = not os.access(folder / "closed", os.R_OK)
    (folder / "closed").rmdir()
    return hold


def test_arrival_that_may_not_be_read_is_refused_and_does_not_stop_the_others(
    copy_of, scratch: Path
):
    if not permissions_hold(scratch):
        pytest.skip("this user may read everything, whatever its mode says")
    fed: Federation = copy_of("submitted")
    (fed.home.incoming / "closed").mkdir(mode=0)
    verdicts = {verdict.name: verdict for verdict in admit(fed)}
    assert verdicts["closed"].error.code == "DDM205"
    assert len(stored_digests(fed)) == 3


def test_arrival_that_may_not_be_removed_is_admitted_and_does_not_stop_the_others(
    copy_of, scratch: Path
):
    if not permissions_hold(scratch):
        pytest.skip("this user may remove everything, whatever its mode says")
    fed: Federation = copy_of("submitted")
    for arrival in fed.home.incoming.iterdir():
        arrival.chmod(0o555)
    assert all(verdict.error is None for verdict in admit(fed))
    for arrival in fed.home.incoming.iterdir():
        arrival.chmod(0o755)
    assert len(stored_digests(fed)) == 3


# Killed


def leave_in_store(fed: Federation) -> list[Path]:
    left = [fed.home.blobs.path(name) for name in (f"{PART_PREFIX}{'0' * 64}", "0" * 64)]
    for path in left:
        path.write_bytes(b"half")
    return left


def test_leftover_of_a_killed_admission_is_removed_from_the_store(fed: Federation):
    leave_in_store(fed)
    digest = admit_one(fed).admitted.payload_sha256
    assert stored_digests(fed) == [digest]


def test_leftover_of_a_killed_admission_is_no_member(admitted: Federation):
    left = leave_in_store(admitted)
    assert admit(admitted) == []
    assert len(members_of(admitted)) == 3
    assert not any(path.exists() for path in left)


def test_receipt_appears_though_the_process_was_killed_before_publishing_it(
    admitted: Federation,
):
    before = snapshot(admitted.home.receipts)
    for path in admitted.home.receipts.iterdir():
        path.unlink()
    assert admit(admitted) == []
    assert snapshot(admitted.home.receipts) == before


def test_arrival_left_by_a_kill_after_admission_is_cleared_with_the_same_receipt(
    fed: Federation, scratch: Path
):
    kept = Path(shutil.copytree(fed.arrival(A), scratch / "kept"))
    name = fed.arrival(A).name
    entry = admit_one(fed).admitted.entry
    (receipt,) = fed.home.receipts.iterdir()
    receipt.unlink()
    shutil.copytree(kept, fed.home.incoming / name)
    assert admit_one(fed).admitted.entry == entry
    assert receipt.read_bytes() == entry.envelope
    assert incoming(fed) == []


def test_only_one_process_at_a_time_changes_the_coordinator(fed: Federation):
    with (
        fed.home.changing(),
        pytest.raises(StateError, match="another process is working in"),
        fed.home.changing(),
    ):
        pass


# A member's weights that break a later step


def test_bundle_that_names_a_file_twice_never_stops_an_assembly(
    fed: Federation, site_keys, scratch: Path
):
    forge(
        fed.arrival(A) / ENVELOPE_FILE,
        lambda statement: statement["subject"].append(statement["subject"][0]),
        site_keys[A],
    )
    if admit_one(fed).error is None:
        assemble(fed.home, scratch / "ensemble", router=None, without=[B, C])


# Assembly


def put_together(fed: Federation, target: Path, *without: str) -> Path:
    assemble(fed.home, target, router=None, without=without)
    return target


def test_assembly_with_a_missing_site_names_it(fed: Federation, scratch: Path):
    admit(fed)
    with pytest.raises(StateError, match=f"nothing is admitted yet from {B}, {C}") as caught:
        put_together(fed, scratch / "ensemble")
    assert caught.value.hint.endswith(f"--without {B} --without {C}")
    assert not (scratch / "ensemble").exists()


def test_assembly_without_a_site_that_is_left_out_on_purpose_works(fed: Federation, scratch: Path):
    admit(fed)
    target = put_together(fed, scratch / "ensemble", B, C)
    assert [bundle.site for bundle in verify_ensemble(target, fed.root).bundles] == [A]


def test_assembly_without_an_unknown_site_is_refused(admitted: Federation, scratch: Path):
    with pytest.raises(OptionError, match="--without hospital-x: this site is not in the roster"):
        put_together(admitted, scratch / "ensemble", "hospital-x")


def test_assembly_without_anyone_is_refused(admitted: Federation, scratch: Path):
    with pytest.raises(OptionError, match="no site is left to assemble"):
        put_together(admitted, scratch / "ensemble", *SITES)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_assembly_into_an_existing_target_is_refused(
    admitted: Federation, scratch: Path, kind: str
):
    target = scratch / "ensemble"
    target.mkdir() if kind == "folder" else target.write_bytes(b"mine")
    with pytest.raises(StateError, match="ensemble exists already"):
        put_together(admitted, target)


def test_assembly_of_a_store_that_was_tampered_with_is_refused_and_leaves_nothing(
    admitted: Federation, scratch: Path
):
    weights = admitted.home.blobs.path(admitted.stored(B).sha256[EXPERT_FILE])
    weights.chmod(0o640)
    flip(weights, -1)
    with pytest.raises(DigestError, match=f"`sites/{B}/{EXPERT_FILE}` is not what was signed"):
        put_together(admitted, scratch / "ensemble")
    assert sorted(path.name for path in scratch.iterdir()) == ["admitted"]


def test_assembly_removes_the_leftover_of_a_killed_one(admitted: Federation, scratch: Path):
    leftover = scratch / f"{PART_PREFIX}ensemble" / "sites"
    leftover.mkdir(parents=True)
    (leftover / "evil").write_bytes(b"")
    assert len(verify_ensemble(put_together(admitted, scratch / "ensemble"), admitted.root).bundles)
    assert not leftover.exists()


def test_assembly_twice_gives_the_same_bytes(admitted: Federation, stages, scratch: Path):
    assert snapshot(put_together(admitted, scratch / "ensemble")) == snapshot(stages.ensemble)


def test_assembly_without_a_site_equals_that_of_a_federation_it_never_sent_to(
    admitted: Federation, copy_of, scratch: Path
):
    dropped = snapshot(put_together(admitted, scratch / "dropped", C))
    other: Federation = copy_of("submitted")
    shutil.rmtree(other.arrival(C))
    admit(other)
    never = snapshot(put_together(other, scratch / "never", C))
    # The log says forever that it was admitted once; nothing else tells the two apart.
    assert payload_of(scratch / "dropped" / "ensemble.dsse.json")["predicate"]["left_out"] == [C]
    assert without_log(dropped, scratch / "dropped") == without_log(never, scratch / "never")


def without_log(files: dict[str, bytes], folder: Path) -> tuple[dict[str, bytes], dict]:
    """Returns files and statement of an ensemble without what the other leaves of the log set."""

    def follows_log(name: str) -> bool:
        return name in LOG_FILES or name.startswith("receipts/")

    statement = payload_of(folder / "ensemble.dsse.json")
    statement["subject"] = [s for s in statement["subject"] if not follows_log(s["name"])]
    for member in statement["predicate"]["members"]:
        del member["log_index"]
    for field in ("log", "left_out"):
        del statement["predicate"][field]
    kept = {
        name: data
        for name, data in files.items()
        if name != "ensemble.dsse.json" and not follows_log(name)
    }
    return kept, statement
