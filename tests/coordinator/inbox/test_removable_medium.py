"""What a courier brings: whole bundles come in, everything else is named and left alone."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import run
from federation import (
    SITES,
    Federation,
    create_federation,
    flip,
    forge_manifest,
    make_odd_file,
    sign_files,
    snapshot,
)

from coordinator.inbox.removable_medium import (
    Found,
    Importer,
    candidates,
    require_medium,
    write_back,
)
from coordinator.roster import changes
from ddm_fed.bundle.verify import ENVELOPE_FILE, EXPERT_FILE, ROUTER_FILE
from ddm_fed.errors import (
    DigestError,
    FileSetError,
    LogError,
    MachineError,
    SignatureError,
    StateError,
)
from ddm_fed.remote import open_folder
from ddm_fed.storage.files import PART_PREFIX
from ddm_fed.trust.published import PLAN_FILE
from sites.outbox import stages as outbox
from sites.transport import removable_medium

A, B, C = SITES


@pytest.fixture(scope="module")
def exported(stages, tmp_path_factory) -> Federation:
    """Three sites that released their bundles, and the medium of a courier who was at each."""
    fed = stages.drafted.copy(tmp_path_factory.mktemp("medium"), "consortium", *SITES)
    for name in SITES:
        outbox.review(fed.site(name), fed.trust)
        outbox.release(fed.site(name), fed.trust)
        (found,) = removable_medium.export(fed.site(name), fed.trust, fed.path / "medium")
        assert found.state == "sent"
    return fed


@pytest.fixture
def fed(exported: Federation, scratch: Path) -> Federation:
    """A coordinator with an empty inbox, and the sites."""
    return exported.copy(scratch / "fed", "consortium", *SITES)


@pytest.fixture
def medium(exported: Federation, scratch: Path) -> Path:
    """The medium."""
    return Path(shutil.copytree(exported.path / "medium", scratch / "medium" / "ddm"))


def bundle_of(fed: Federation, medium: Path, name: str) -> Path:
    (released,) = fed.site(name).released.iterdir()
    return medium / "incoming" / released.name


def take(fed: Federation, folder: Path) -> dict[str, Found]:
    source = open_folder(str(folder))
    require_medium(fed.home, source)
    importer = Importer(fed.home, source, reserve_bytes=0)
    return {entry.name: importer.take(entry) for entry in candidates(source)[0]}


def states(found: dict[str, Found]) -> list[str]:
    return sorted(item.state for item in found.values())


# The journey


def test_medium_with_three_sites_is_admitted_like_three_folders(fed, medium, stages):
    found = take(fed, medium)
    assert states(found) == ["admitted"] * 3
    assert {item.site for item in found.values()} == set(SITES)
    direct = {entry.submission_sha256 for entry in stages.admitted.log.receipts()}
    assert {entry.submission_sha256 for entry in fed.log.receipts()} == direct
    assert {item.digest for item in found.values()} == direct
    kept = {path.name: path.read_bytes() for path in fed.home.blobs.folder.iterdir()}
    expected = {p.name: p.read_bytes() for p in stages.admitted.home.blobs.folder.iterdir()}
    assert kept == expected
    assert list(fed.home.partial.iterdir()) == list(fed.home.incoming.iterdir()) == []


def test_receipts_and_the_published_folder_come_back_and_are_verified(fed, medium):
    found = take(fed, medium)
    written = write_back(fed.home, open_folder(str(medium)), list(found.values()))
    assert (written.receipts, written.error) == (3, None)
    assert snapshot(medium / "published") == snapshot(fed.published)
    for name in SITES:
        returned = removable_medium.bring_back(fed.site(name), medium)
        (digest,) = returned.admitted
        assert returned.waiting == ()
        assert not returned.older
        assert returned.published == fed.site(name).path / "published"
        assert snapshot(returned.published) == snapshot(fed.published)
        kept = fed.site(name).receipts / f"{digest}.dsse.json"
        assert kept.read_bytes() == found[digest].receipt
        assert fed.look(name).log.size == 3


def test_medium_that_comes_twice_is_admitted_once(fed, medium):
    first = take(fed, medium)
    shutil.rmtree(medium / "receipts", ignore_errors=True)
    second = take(fed, medium)
    assert {name: item.receipt for name, item in first.items()} == {
        name: item.receipt for name, item in second.items()
    }
    assert fed.log.size == 3


def test_sums_beside_a_bundle_are_those_that_sha256sum_checks(fed, medium):
    sums = sorted(path.name for path in medium.glob("*.sha256"))
    assert len(sums) == 3
    check = ["sha256sum", "--check", "--strict", *sums]
    assert subprocess.run(check, cwd=medium, capture_output=True, check=False).returncode == 0
    flip(bundle_of(fed, medium, A) / EXPERT_FILE, 1000)
    assert subprocess.run(check, cwd=medium, capture_output=True, check=False).returncode == 1


def test_export_says_what_the_folder_is_and_adds_nothing_to_a_bundle(fed, medium):
    for name in SITES:
        bundle = bundle_of(fed, medium, name)
        assert snapshot(bundle) == snapshot(fed.site(name).released / bundle.name)
    assert "ddm-coord import" in (medium / "README.txt").read_text()
    names = {path.name for path in medium.iterdir()}
    assert names - {path.name for path in medium.glob("*.sha256")} == {"incoming", "README.txt"}


def test_export_without_anything_released_writes_nothing(copy_of, scratch):
    fed = copy_of("drafted", A)
    with pytest.raises(StateError, match="nothing is released"):
        removable_medium.export(fed.site(A), fed.trust, scratch / "medium")
    assert not (scratch / "medium").exists()


def test_export_again_keeps_what_is_whole_and_repairs_what_is_not(fed, medium):
    bundle = bundle_of(fed, medium, A)
    (again,) = removable_medium.export(fed.site(A), fed.trust, medium)
    assert again.state == "waiting"
    flip(bundle / ROUTER_FILE, 50)
    (again,) = removable_medium.export(fed.site(A), fed.trust, medium)
    assert again.state == "sent"
    assert snapshot(bundle) == snapshot(fed.site(A).released / bundle.name)


# Copies that are not whole


def cut(bundle: Path) -> None:
    os.truncate(bundle / EXPERT_FILE, 1000)


def lengthen(bundle: Path) -> None:
    with (bundle / EXPERT_FILE).open("ab") as file:
        file.write(b"more")


def add_file(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("x")


PARTIAL = {
    "a file is short": (cut, r"`expert.safetensors` has 1,000 of [\d,]{6,} bytes"),
    "a file is long": (lengthen, r"`expert.safetensors` has ([\d,]+) of [\d,]+ bytes"),
    "a file is missing": (
        lambda bundle: (bundle / ROUTER_FILE).unlink(),
        "`router.safetensors` is missing",
    ),
    "the manifest is missing": (
        lambda bundle: (bundle / ENVELOPE_FILE).unlink(),
        "the manifest `submission.dsse.json` is missing, there is `expert.safetensors`, "
        "`router.safetensors`",
    ),
    "the manifest is empty": (
        lambda bundle: os.truncate(bundle / ENVELOPE_FILE, 0),
        "`submission.dsse.json` has 0 bytes",
    ),
    "nothing is there": (
        lambda bundle: [file.unlink() for file in bundle.iterdir()],
        "the manifest `submission.dsse.json` is missing, there is no file",
    ),
    "a file is too much": (add_file, "`notes.txt` does not belong there"),
    "it was broken off": (
        lambda bundle: bundle.rename(bundle.with_name(f"{PART_PREFIX}{bundle.name}")),
        "its copy was broken off",
    ),
}


@pytest.mark.parametrize("case", PARTIAL)
def test_partial_copy_is_named_and_nothing_of_it_is_taken(fed, medium, case):
    spoil, says = PARTIAL[case]
    spoil(bundle_of(fed, medium, A))
    before = snapshot(medium)
    found = take(fed, medium)
    assert states(found) == ["admitted", "admitted", "partial"]
    (partial,) = [item for item in found.values() if item.state == "partial"]
    assert re.search(says, partial.reason)
    assert partial.code == FileSetError.code
    assert {entry.receipt.site for entry in fed.log.receipts()} == {B, C}
    assert list(fed.home.partial.iterdir()) == list(fed.home.refused.iterdir()) == []
    assert snapshot(medium) == before


@pytest.mark.parametrize("case", ["a file is short", "a file is missing", "the manifest is empty"])
def test_partial_copy_that_is_exported_again_is_admitted(fed, medium, case):
    PARTIAL[case][0](bundle_of(fed, medium, A))
    assert states(take(fed, medium)) == ["admitted", "admitted", "partial"]
    removable_medium.export(fed.site(A), fed.trust, medium)
    assert states(take(fed, medium)) == ["admitted"] * 3


def test_bundle_damaged_on_the_medium_is_refused_and_admitted_once_repaired(fed, medium):
    bundle = bundle_of(fed, medium, A)
    flip(bundle / EXPERT_FILE, 4000)
    refused = take(fed, medium)[bundle.name]
    assert (refused.state, refused.code, refused.site) == ("refused", DigestError.code, A)
    assert f"`{EXPERT_FILE}`" in refused.reason
    assert list(fed.home.partial.iterdir()) == list(fed.home.incoming.iterdir()) == []
    removable_medium.export(fed.site(A), fed.trust, medium)
    assert take(fed, medium)[bundle.name].state == "admitted"


# A hostile medium


@pytest.mark.parametrize("kind", ["link", "folder-link", "dangling", "fifo"])
@pytest.mark.parametrize("place", ["beside", "inside", "for a file", "for the manifest"])
def test_link_or_fifo_is_refused_unread(fed, medium, kind, place):
    bundle = bundle_of(fed, medium, A)
    if place in ("for a file", "for the manifest"):
        name = EXPERT_FILE if place == "for a file" else ENVELOPE_FILE
        (bundle / name).unlink()
        odd, at = bundle / name, bundle.name
    else:
        odd = (bundle if place == "inside" else medium / "incoming") / "odd"
        at = bundle.name if place == "inside" else "odd"
    make_odd_file(odd, kind)
    found = take(fed, medium)[at]
    assert (found.state, found.code) == ("refused", FileSetError.code)
    assert ("symbolic link" if "link" in kind or kind == "dangling" else "regular") in found.reason


@pytest.mark.parametrize("name", ["receipts", "published", "incoming"])
def test_folder_of_the_medium_that_is_a_link_is_not_followed(fed, medium, scratch, name):
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir()
    found = list(take(fed, medium).values())
    if name == "incoming":
        (medium / name).rename(elsewhere / name)
        (medium / name).symlink_to(elsewhere / name)
        with pytest.raises(FileSetError, match="not a folder but a link"):
            take(fed, medium)
        return
    (medium / name).symlink_to(elsewhere)
    written = write_back(fed.home, open_folder(str(medium)), found)
    assert isinstance(written.error, FileSetError)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["..x", "a b", "-rf\n", "\x1b[31mred", "x" * 200, "é", "%2e%2e"])
def test_folder_with_a_name_we_never_use_is_refused_and_cannot_steer_a_terminal(fed, medium, name):
    bundle = bundle_of(fed, medium, A)
    shutil.copytree(bundle, medium / "incoming" / name)
    found = take(fed, medium)
    assert found[name].state == "refused"
    assert found[name].name.isprintable()
    assert found[bundle.name].state == "admitted"


def test_bundle_of_another_federation_is_refused(fed, medium):
    bundle = bundle_of(fed, medium, A)
    forge_manifest(bundle, lambda fields: fields.update(federation="other"), fed.key(A))
    found = take(fed, medium)[bundle.name]
    assert (found.state, found.code) == ("refused", "DDM204")


def test_bundle_of_a_stranger_is_refused(fed, medium, scratch):
    stranger = create_federation(scratch / "other", sites=("mallory",))
    bundle = bundle_of(fed, medium, A)
    key = stranger.key("mallory")
    forge_manifest(bundle, lambda fields: fields.update(site="mallory"), key)
    assert take(fed, medium)[bundle.name].code == "DDM203"


def test_manifest_signed_with_another_key_of_a_member_is_refused(fed, medium):
    bundle = bundle_of(fed, medium, A)
    forge_manifest(bundle, lambda fields: fields.update(sequence=7), fed.key(B))
    assert take(fed, medium)[bundle.name].state == "refused"


def test_bundle_larger_than_the_plan_allows_is_refused_before_a_byte_is_read(fed, medium):
    bundle = bundle_of(fed, medium, A)

    def enlarge(fields):
        fields["files"][0]["size_bytes"] = 1 << 40

    forge_manifest(bundle, enlarge, fed.key(A))
    os.truncate(bundle / EXPERT_FILE, 1 << 40)  # a hole: it takes no room
    read = []
    source = open_folder(str(medium))
    importer = Importer(fed.home, source, reserve_bytes=0)
    (entry,) = [entry for entry in candidates(source)[0] if entry.name == bundle.name]
    found = importer.take(entry, read.append)
    assert (found.state, found.code, found.site) == ("refused", "DDM219", A)
    assert read == []
    assert list(fed.home.partial.iterdir()) == []


def test_manifest_that_is_a_gigabyte_is_refused(fed, medium):
    bundle = bundle_of(fed, medium, A)
    os.truncate(bundle / ENVELOPE_FILE, 1 << 30)
    assert take(fed, medium)[bundle.name].code == "DDM201"


def test_hundreds_of_junk_folders_keep_no_bundle_from_being_found(fed, medium):
    for number in range(1200):
        (medium / "incoming" / f"0junk-{number:04d}").mkdir()
    source = open_folder(str(medium))
    entries, left = candidates(source)
    assert (len(entries), left) == (1000, 203)
    found = take(fed, medium)
    assert states(found) == ["admitted"] * 3 + ["partial"] * 997


def test_weights_refused_for_their_values_are_taken_in_once_only(fed, medium):
    bundle = bundle_of(fed, medium, A)
    data = bytearray((bundle / EXPERT_FILE).read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    digest = sign_files(bundle, fed.key(A), expert=bytes(data))
    for _ in range(2):
        found = take(fed, medium)[bundle.name]
        assert (found.state, found.code, found.digest) == ("refused", "DDM218", digest)
        assert len(list(fed.home.refused.iterdir())) == 1


# The medium and the coordinator


def test_read_only_medium_is_read_and_the_receipts_stay_here(fed, medium, scratch):
    mounted = scratch / "mounted"
    mounted.mkdir()
    bound = subprocess.run(
        ["mount", "--bind", "-o", "ro", medium, mounted], capture_output=True, check=False
    )
    if bound.returncode:
        pytest.skip("needs the right to mount")
    try:
        if os.access(mounted, os.W_OK):
            subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        ended = run("ddm-coord", "import", mounted, "--coordinator", fed.home.path)
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert ended.code == 0, ended.err
    assert "could not be written back" in ended.err
    assert str(fed.home.receipts) in ended.err
    assert len(list(fed.home.receipts.iterdir())) == 3
    assert not (medium / "receipts").exists()


def test_medium_that_fails_half_way_loses_nothing_that_came_in(fed, medium, monkeypatch):
    source = open_folder(str(medium))
    importer = Importer(fed.home, source, reserve_bytes=0)
    first, *_ = candidates(source)[0]
    monkeypatch.setattr("coordinator.inbox.removable_medium.BLOCK_BYTES", 1000)
    read = []

    def fail(count):
        read.append(count)
        if len(read) == 4:
            raise MachineError("the medium was pulled out", hint="put it back")

    with pytest.raises(MachineError):
        importer.take(first, fail)
    again = []
    assert importer.take(first, again.append).state == "admitted"
    assert again[0] == 3000  # what is safe is not read again


def test_own_inbox_is_no_medium(fed):
    with pytest.raises(StateError, match="own inbox"):
        require_medium(fed.home, open_folder(str(fed.inbox)))


def test_folder_without_bundles_is_no_medium(fed, scratch):
    with pytest.raises(StateError, match="no folder `incoming`"):
        require_medium(fed.home, open_folder(str(scratch)))


def test_mounted_inbox_of_another_place_is_taken_in_the_same_way(fed, medium, scratch):
    inbox = scratch / "share" / "inbox"
    shutil.copytree(medium / "incoming", inbox / "incoming")
    (inbox / "receipts").mkdir()
    assert states(take(fed, inbox)) == ["admitted"] * 3


def test_full_disk_of_the_coordinator_is_said_and_the_bundle_waits(fed, medium):
    source = open_folder(str(medium))
    importer = Importer(fed.home, source, reserve_bytes=1 << 60)
    found = importer.take(candidates(source)[0][0])
    assert (found.state, found.code) == ("waiting", "DDM503")


# What comes back


def test_receipt_that_somebody_changed_is_refused(fed, medium):
    found = take(fed, medium)
    write_back(fed.home, open_folder(str(medium)), list(found.values()))
    digest = bundle_of(fed, medium, A).name
    receipt = medium / "receipts" / f"{digest}.dsse.json"
    other = bundle_of(fed, medium, B).name
    shutil.copyfile(medium / "receipts" / f"{other}.dsse.json", receipt)
    assert "is not a receipt for" in str(
        removable_medium.bring_back(fed.site(A), medium).wrong[digest]
    )
    flip(receipt, 60)
    found = removable_medium.bring_back(fed.site(A), medium)
    assert (found.admitted, [*found.wrong]) == ((), [digest])
    assert list(fed.site(A).receipts.iterdir()) == []


def test_published_folder_that_somebody_changed_is_refused(fed, medium):
    write_back(fed.home, open_folder(str(medium)), list(take(fed, medium).values()))
    before = snapshot(fed.site(A).seen)
    flip(medium / "published" / PLAN_FILE, 200)
    with pytest.raises((SignatureError, Exception)):
        removable_medium.bring_back(fed.site(A), medium)
    assert snapshot(fed.site(A).seen) == before
    assert not (fed.site(A).path / "published").exists()


def test_older_published_folder_is_left_alone_and_receipts_still_count(fed, medium):
    old = list(take(fed, medium).values())
    write_back(fed.home, open_folder(str(medium)), old)
    changes.renew(fed.home)
    fed.look(A)
    before = snapshot(fed.site(A).seen)
    returned = removable_medium.bring_back(fed.site(A), medium)
    assert returned.older
    assert returned.published is None
    assert len(returned.admitted) == 1
    assert snapshot(fed.site(A).seen) == before


def test_published_folder_of_another_history_is_an_error(fed, medium, copy_of, scratch):
    write_back(fed.home, open_folder(str(medium)), list(take(fed, medium).values()))
    removable_medium.bring_back(fed.site(A), medium)
    fork = scratch / "fork"
    shutil.copytree(medium, fork)
    leaves = fork / "published" / "leaves.jsonl"
    lines = leaves.read_bytes().splitlines(keepends=True)
    leaves.write_bytes(b"".join([lines[1], lines[0], lines[2]]))
    with pytest.raises(LogError):
        removable_medium.bring_back(fed.site(A), fork)


def test_published_folder_that_is_a_link_is_refused(fed, medium):
    shutil.rmtree(medium / "published", ignore_errors=True)
    (medium / "published").symlink_to(fed.published)
    with pytest.raises(FileSetError, match="symbolic link"):
        removable_medium.bring_back(fed.site(A), medium)


def test_medium_without_anything_for_the_site_says_what_waits(fed, medium):
    returned = removable_medium.bring_back(fed.site(A), medium)
    assert returned.admitted == ()
    assert returned.waiting == (bundle_of(fed, medium, A).name,)
    assert returned.published is None


def test_folder_that_nobody_wrote_for_the_site_is_no_medium(fed, scratch):
    (scratch / "photos").mkdir()
    with pytest.raises(StateError, match="none of the folders published, receipts, incoming"):
        removable_medium.bring_back(fed.site(A), scratch)


# The commands


def test_commands_take_a_bundle_to_the_coordinator_and_bring_the_receipt_back(fed, scratch):
    folder, site, hub = scratch / "medium", fed.site(A).path, fed.home.path
    ended = run("ddm-site", "export", folder, "--site", site, "--plan", fed.published)
    assert ended.code == 0, ended.err
    assert "ddm-coord import" in ended.err
    ended = run("ddm-coord", "import", folder, "--coordinator", hub, "--json")
    assert ended.code == 0, ended.err
    (told,) = json.loads(ended.out)
    assert (told["site"], told["state"], told["admitted"]) == (A, "admitted", True)
    ended = run("ddm-site", "import", folder, "--site", site, "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert [item["state"] for item in told["submissions"]] == ["admitted"]
    assert Path(told["published"]) == site / "published"
    ended = run("ddm-site", "submit", "--site", site, "--plan", site / "published", "--to", folder)
    assert "admitted" in ended.err


def test_command_ends_with_1_and_names_what_is_partial(fed, medium):
    cut(bundle_of(fed, medium, A))
    ended = run("ddm-coord", "import", medium, "--coordinator", fed.home.path)
    assert ended.code == 1
    assert ended.out.count("admitted") == 2
    assert "partial: DDM205" in ended.out
    assert "`expert.safetensors` has 1,000 of" in ended.err
    assert len(list((medium / "receipts").iterdir())) == 2


def test_site_that_is_none_is_told_so(scratch):
    ended = run("ddm-site", "import", scratch, "--site", scratch)
    assert ended.code == 1
    assert "there is no site.toml" in ended.err
    assert not (scratch / ".lock").exists()
