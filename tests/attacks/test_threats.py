"""The threat table of docs/trust.md, a test a row: what each attacker tries on a real federation.

Other files try each rule in depth; this one shows that no row of the table is without its proof.
"""

import ast
import base64
import json
import os
import re
import shutil
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import commands
import pytest
import torch
from federation import (
    SITES,
    Federation,
    Json,
    a_plan,
    flip,
    forge,
    forge_manifest,
    make_odd_file,
    manifest,
    payload_of,
    sign_files,
    tensor_bytes,
)
from safetensors.torch import load as load_tensors

from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import Verdict, admit_arrivals, admitted_bundles, current_members
from coordinator.roster import changes, proposals
from ddm_fed import errors
from ddm_fed.bundle.submission import read_submission
from ddm_fed.bundle.verify import (
    ENVELOPE_FILE,
    EXPERT_FILE,
    VerifiedBundle,
    read_weights,
    verify_bundle,
)
from ddm_fed.ensemble.folder import STATEMENT_FILE, VerifiedEnsemble, verify_ensemble
from ddm_fed.ensemble.staleness import find_staleness
from ddm_fed.errors import (
    CountersignatureError,
    DigestError,
    EquivocationError,
    ExpiredError,
    FileSetError,
    LogError,
    MalformedError,
    PlanMismatchError,
    RefusedError,
    ReplayError,
    RevokedKeyError,
    RollbackError,
    RosterError,
    SignatureError,
    SizeError,
    UnknownSignerError,
    ValuesError,
    WeightsError,
)
from ddm_fed.records import SiteKey, canonical_json, now, sha256_hex
from ddm_fed.signing import ROSTER_PAYLOAD, SigningKey
from ddm_fed.storage.blob_store import BlobStore
from ddm_fed.trust import Trust, require_in_force
from ddm_fed.trust.log import LEAVES_FILE
from ddm_fed.trust.published import PLAN_FILE, read_published, roster_file
from sites.outbox import stages as outbox
from sites.outbox.approve import approve_request, approve_review
from sites.published import look
from sites.rotation import replace_officer, replace_site_key
from sites.transport import submit
from sites.transport.base import FolderTransport
from sites.workspace import ROTATION_FILE

A, B, C = SITES
PAGES, OWN = Path(__file__).parents[2] / "docs", 19  # rows whose tests are in this file
STRANGER = SigningKey.from_seed(bytes([77] * 32))


@pytest.fixture
def fed(copy_of) -> Federation:
    """A coordinator in whose inbox nothing lies yet, and the sites."""
    federation: Federation = copy_of("submitted", *SITES)
    for arrival in federation.home.incoming.iterdir():
        shutil.rmtree(arrival)
    return federation


@pytest.fixture
def verified(ensemble: Path, stages) -> VerifiedEnsemble:
    return verify_ensemble(ensemble, stages.admitted.root)


@contextmanager
def refusal(error: type[RefusedError], code: str, match: str | None = None) -> Iterator[None]:
    """Asserts that the block is refused with exactly this class and code."""
    with pytest.raises(error, match=match) as caught:
        yield
    assert (caught.type, caught.value.code) == (error, code)


def verify(bundle: Path, trust: Trust, moment: datetime | None = None, **options) -> VerifiedBundle:
    return verify_bundle(bundle, trust, moment or now(), **options)


def offer(fed: Federation, bundle: Path, name: str = "arrival", **options) -> Verdict:
    """Delivers a copy of `bundle`, or of a file, as the only arrival, and returns its verdict."""
    target = fed.home.incoming / name
    shutil.copytree(bundle, target) if bundle.is_dir() else shutil.copyfile(bundle, target)
    (verdict,) = admit_arrivals(fed.home, fed.trust, **options)
    return verdict


def assert_refused(verdict: Verdict, error: type[RefusedError], code: str) -> None:
    assert (type(verdict.error), verdict.error.code, verdict.admitted) == (error, code, None)


def renumbered(bundle: Path, sequence: int, key: SigningKey) -> Path:
    """Returns a copy of `bundle` that its site signed with another number."""
    copy = Path(shutil.copytree(bundle, bundle.with_name(f"number-{sequence}")))
    forge_manifest(copy, lambda fields: fields.update(sequence=sequence), key)
    return copy


def rewrite(envelope: Path, edit: Callable[[Json], None]) -> None:
    """Edits an envelope around its payload."""
    document = json.loads(envelope.read_bytes())
    edit(document)
    envelope.write_bytes(canonical_json(document))


def signed_by(bundle: Path, *keys: SigningKey) -> None:
    """Signs the manifest of `bundle` as it is, with these keys instead."""
    forge(bundle / ENVELOPE_FILE, lambda _: None, *keys)


def appoint_officer(fed: Federation, name: str, other: Path) -> SigningKey:
    """Makes an officer whom the roster asks for beside the site, once it has admitted `other`."""
    assert offer(fed, other).error is None  # a policy begins at a place of the log of its own
    officer = SigningKey.generate()
    file = replace_officer(fed.site(name), fed.trust, officer.public)
    approve_request(file, officer)
    assert changes.rotate_site(fed.home, file).published
    fed.look(name)
    return officer


# 1


def test_threat_01_replay_of_an_older_expert(fed: Federation, bundle: Path, site_keys):
    second, third = (renumbered(bundle, number, site_keys[A]) for number in (2, 3))
    first_verdict, third_verdict = offer(fed, bundle), offer(fed, third)
    assert (first_verdict.error, third_verdict.error) == (None, None)
    assert_refused(offer(fed, second), ReplayError, "DDM208")
    # what was admitted once has its leaf already: sent again, it changes nothing
    again = offer(fed, bundle)
    assert again.admitted.entry == first_verdict.admitted.entry
    assert fed.log.size == 2
    assert current_members(fed.home, fed.trust, fed.log)[A].submission.sequence == 3


# 2


def test_threat_02_substitution_across_plans_federations_and_documents(
    fed: Federation, bundle: Path, trust: Trust, site_keys
):
    proposals.publish_plan(fed.home, a_plan(steps="steps = 4"))
    assert_refused(offer(fed, bundle), PlanMismatchError, "DDM204")
    forge_manifest(bundle, lambda fields: fields.update(federation="other"), site_keys[A])
    with refusal(PlanMismatchError, "DDM204", "federation `other`"):
        verify(bundle, trust)
    shutil.copyfile(fed.published / roster_file(1), fed.published / PLAN_FILE)
    with refusal(MalformedError, "DDM201", "the plan is of type"):
        read_published(fed.published, fed.root)


# 3


def test_threat_03_site_that_claims_to_be_another_site(fed: Federation, bundle: Path, site_keys):
    signed_by(bundle, site_keys[B])
    assert manifest(bundle)["predicate"]["site"] == A
    assert_refused(offer(fed, bundle), UnknownSignerError, "DDM203")


# 4


def test_threat_04_roster_rolled_back_frozen_forged_or_with_a_gap(fed: Federation, scratch: Path):
    older = Path(shutil.copytree(fed.published, scratch / "older"))
    changes.renew(fed.home)
    fed.look(A)
    with refusal(RollbackError, "DDM217", "its newest roster is 2, 3 was seen before"):
        look(fed.site(A), older)
    # a coordinator that shows the same roster for ever is noticed when it expires
    trust = fed.trust
    require_in_force(trust, now())
    with refusal(ExpiredError, "DDM209", "roster 3 expired"):
        require_in_force(trust, trust.roster.expires_at)
    gap = Path(shutil.copytree(fed.published, scratch / "gap"))
    (gap / roster_file(2)).unlink()
    with refusal(RosterError, "DDM211", "roster 2 says it is version 3"):
        look(fed.site(A), gap)
    forged = Path(shutil.copytree(fed.published, scratch / "forged"))
    signed = fed.coordinator_key()
    forge(forged / roster_file(3), lambda _: None, signed, kind=ROSTER_PAYLOAD)
    with refusal(UnknownSignerError, "DDM203", "roster 3"):
        look(fed.site(A), forged)
    assert fed.look(A).trust.roster.version == 3


def test_threat_04_two_rosters_of_one_version(fed: Federation, scratch: Path):
    other = Federation(scratch / "other")
    shutil.copytree(fed.path, other.path)
    changes.renew(fed.home)
    changes.revoke(other.home, C)
    fed.look(A)
    with refusal(RosterError, "DDM211", "there are two rosters 3"):
        look(fed.site(A), other.published)


def test_threat_04_log_rolled_back(fed: Federation, bundle: Path, scratch: Path):
    older = Path(shutil.copytree(fed.published, scratch / "older"))
    offer(fed, bundle)
    fed.look(A)
    with refusal(RollbackError, "DDM217", "its log has 0 leaves, 1 were seen before"):
        look(fed.site(A), older)


# 5


def test_threat_05_old_key_counts_before_its_replacement_and_not_after(
    fed: Federation, bundle: Path, site_keys
):
    before = offer(fed, bundle)
    replace_site_key(fed.site(A), fed.trust, lost=False)
    assert changes.rotate_site(fed.home, fed.site(A).path / ROTATION_FILE).published
    with_old = renumbered(bundle, 2, site_keys[A])
    assert_refused(offer(fed, with_old), RevokedKeyError, "DDM214")
    assert fed.key(A).public != site_keys[A].public
    assert offer(fed, renumbered(bundle, 3, fed.key(A))).error is None
    chain, envelope = fed.home.chain(), before.admitted.envelope
    read_submission(envelope, chain, 0, what="the first")
    with refusal(RevokedKeyError, "DDM214"):
        read_submission(envelope, chain, 1, what="the first")
    # and the new key does not reach back to before it was enrolled
    newest = admitted_bundles(fed.home, fed.trust, fed.log)[-1]
    with refusal(RevokedKeyError, "DDM214"):
        read_submission(newest.envelope, chain, 0, what="the third")


# 6


def test_threat_06_revocation_decides_by_the_place_in_the_log(
    copy_of, bundle: Path, site_keys, verified: VerifiedEnsemble
):
    fed: Federation = copy_of("admitted")
    changes.revoke(fed.home, A)
    assert_refused(offer(fed, renumbered(bundle, 2, site_keys[A])), RevokedKeyError, "DDM214")
    assert current_members(fed.home, fed.trust, fed.log).keys() == set(SITES)
    assert find_staleness(verified, fed.home.chain(), fed.log).stale == ()


def test_threat_06_stolen_key_makes_the_ensemble_stale(copy_of, verified: VerifiedEnsemble):
    fed: Federation = copy_of("admitted")
    place = fed.stored(A).entry.index
    changes.revoke(fed.home, A, compromised_since=place)
    assert current_members(fed.home, fed.trust, fed.log).keys() == {B, C}
    (reason,) = find_staleness(verified, fed.home.chain(), fed.log).stale
    assert f"`{A}`" in reason


# 7


@pytest.mark.parametrize(("minutes", "accepted"), [(-11, False), (-9, True), (9, True), (11, True)])
def test_threat_07_clock_that_is_off(bundle: Path, trust: Trust, minutes: int, accepted: bool):
    issued = datetime.fromisoformat(manifest(bundle)["predicate"]["issued_at"])
    moment = issued + timedelta(minutes=minutes)
    if accepted:
        assert verify(bundle, trust, moment).site == A
    else:
        with refusal(ExpiredError, "DDM209", "in the future"):
            verify(bundle, trust, moment)


@pytest.mark.parametrize(
    ("minutes", "accepted"), [(-11, True), (-9, True), (0, False), (9, False), (11, False)]
)
def test_threat_07_expiry_has_no_grace(bundle: Path, trust: Trust, minutes: int, accepted: bool):
    expires = datetime.fromisoformat(manifest(bundle)["predicate"]["expires_at"])
    moment = expires + timedelta(minutes=minutes)
    if accepted:
        assert verify(bundle, trust, moment).site == A
    else:
        with refusal(ExpiredError, "DDM209", "expired at"):
            verify(bundle, trust, moment)


def test_threat_07_ensemble_of_expired_bundles_is_judged_at_its_time_in_the_log(
    verified: VerifiedEnsemble,
):
    for bundle, member in zip(verified.bundles, verified.record.members, strict=True):
        folder = verified.folder / "sites" / member.site
        moment = bundle.submission.expires_at
        with refusal(ExpiredError, "DDM209"):
            verify(folder, verified.trust, moment, position=member.log_index)
        admitted_at = verified.log.entries[member.log_index].receipt.admitted_at
        assert verify(folder, verified.trust, admitted_at, position=member.log_index)


# 8


def no_signature(document: Json) -> None:
    document["signatures"] = []


def own_algorithm(document: Json) -> None:
    document["signatures"][0]["alg"] = "none"


def algorithm_of_the_envelope(document: Json) -> None:
    document["alg"] = "none"


@pytest.mark.parametrize("edit", [no_signature, own_algorithm, algorithm_of_the_envelope])
def test_threat_08_unsigned_or_with_an_algorithm_of_its_own(fed: Federation, bundle: Path, edit):
    rewrite(bundle / ENVELOPE_FILE, edit)
    assert_refused(offer(fed, bundle), MalformedError, "DDM201")


def test_threat_08_signed_by_an_unknown_key(fed: Federation, bundle: Path):
    signed_by(bundle, STRANGER)
    assert_refused(offer(fed, bundle), UnknownSignerError, "DDM203")


@pytest.mark.parametrize("beside", [False, True])
def test_threat_08_signed_for_other_tools_only(fed: Federation, bundle: Path, beside: bool):
    shutil.copyfile(bundle / ENVELOPE_FILE, bundle / "model.sig")
    if not beside:
        (bundle / ENVELOPE_FILE).unlink()
    assert_refused(offer(fed, bundle), FileSetError, "DDM205")


def test_threat_08_ensemble_signed_for_other_tools_only(ensemble: Path, stages):
    (ensemble / STATEMENT_FILE).rename(ensemble / "model.sig")
    with refusal(FileSetError, "DDM205", "ensemble"):
        verify_ensemble(ensemble, stages.admitted.root)


# 9


def test_threat_09_tricks_with_the_set_of_signatures(
    fed: Federation, bundle: Path, site_keys, stages
):
    officer = appoint_officer(fed, A, stages.submitted.arrival(B))
    payload = payload_of(bundle / ENVELOPE_FILE)

    def under_two_names(document: Json) -> None:
        one = document["signatures"][0]
        document["signatures"] = [one, {**one, "keyid": officer.public.keyid}]

    def twice(document: Json) -> None:
        document["signatures"] *= 2

    for trick in (under_two_names, twice):
        signed_by(bundle, site_keys[A])
        rewrite(bundle / ENVELOPE_FILE, trick)
        assert_refused(offer(fed, bundle), CountersignatureError, "DDM215")

    def bad_beside_good(document: Json) -> None:
        document["signatures"][1]["sig"] = base64.b64encode(bytes(64)).decode()

    signed_by(bundle, site_keys[A], officer)
    rewrite(bundle / ENVELOPE_FILE, bad_beside_good)
    assert_refused(offer(fed, bundle), SignatureError, "DDM202")

    def too_many(document: Json) -> None:
        document["signatures"] *= 17

    signed_by(bundle, site_keys[A])
    rewrite(bundle / ENVELOPE_FILE, too_many)
    assert_refused(offer(fed, bundle), MalformedError, "DDM201")
    assert payload_of(bundle / ENVELOPE_FILE) == payload


def test_threat_09_site_key_as_the_key_of_its_officer(fed: Federation, site_keys):
    chain = fed.home.chain()
    site = chain.current.site(A)
    double = SiteKey(role="dpo", public_key=site_keys[A].public.hex, from_log_size=0)
    changed = site.model_copy(update={"keys": (*site.keys, double)})
    others = tuple(changed if item.name == A else item for item in chain.current.sites)
    with refusal(MalformedError, "DDM201", "a key is listed twice"):
        proposals.next_roster(fed.home, chain, sites=others)


# 10


def rewrites(path: Path, honest: bytes) -> None:
    path.write_bytes(honest[:-1] + b"\x42")
    path.write_bytes(honest)


def renames(path: Path, honest: bytes) -> None:
    other = path.with_name(".x")
    other.write_bytes(bytes(len(honest)))
    other.replace(path)
    other.write_bytes(honest)
    other.replace(path)


def truncates(path: Path, honest: bytes) -> None:
    os.truncate(path, len(honest) // 2)
    path.write_bytes(honest)


@pytest.mark.parametrize("attack", [rewrites, renames, truncates])
@pytest.mark.parametrize("stored", [True, False])
def test_threat_10_file_changed_between_verifying_and_loading(
    bundle: Path, trust: Trust, scratch: Path, attack: Callable[[Path, bytes], None], stored: bool
):
    honest = (bundle / EXPERT_FILE).read_bytes()
    tensors, stop = load_tensors(honest), threading.Event()
    (scratch / "store").mkdir()
    store = BlobStore(scratch / "store") if stored else None

    def run() -> None:
        while not stop.is_set():
            attack(bundle / EXPERT_FILE, honest)
            time.sleep(0.0005)

    attacker = threading.Thread(target=run)
    attacker.start()
    try:
        for _ in range(6):
            try:
                loaded = read_weights(verify(bundle, trust, store=store), EXPERT_FILE)
            except RefusedError:
                continue
            assert loaded.keys() == tensors.keys()
            assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
            for kept in (scratch / "store").iterdir():
                assert sha256_hex(kept.read_bytes()) == kept.name
    finally:
        stop.set()
        attacker.join()


def test_threat_10_what_is_swapped_after_verifying_is_never_loaded(bundle: Path, trust: Trust):
    held = verify(bundle, trust)
    flip(bundle / EXPERT_FILE, -1)
    with refusal(DigestError, "DDM206", "changed after it was verified"):
        read_weights(held, EXPERT_FILE)


# 11


@pytest.mark.parametrize("kind", ["link", "folder-link", "dangling", "fifo", "socket"])
def test_threat_11_links_and_special_files(
    fed: Federation, bundle: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    arrival = fed.home.incoming / "arrival"
    shutil.copytree(bundle, arrival)
    (arrival / EXPERT_FILE).unlink()
    if kind == "socket":
        monkeypatch.chdir(arrival)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(EXPERT_FILE)
    else:
        make_odd_file(arrival / EXPERT_FILE, kind)
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert_refused(verdict, FileSetError, "DDM205")


def test_threat_11_linked_folder(fed: Federation, bundle: Path):
    (fed.home.incoming / "arrival").symlink_to(bundle)
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert_refused(verdict, FileSetError, "DDM205")
    assert bundle.is_dir()


def test_threat_11_hard_link_reaches_nothing_in_the_store(fed: Federation, bundle: Path):
    arrival = fed.home.incoming / "arrival"
    shutil.copytree(bundle, arrival, copy_function=os.link)
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    honest = (bundle / EXPERT_FILE).read_bytes()
    flip(bundle / EXPERT_FILE, -1)
    kept = fed.home.blobs.open(verdict.admitted.sha256[EXPERT_FILE])
    assert kept.read_bytes() == honest


@pytest.mark.parametrize(
    "name",
    ["expe\u0301rt.safetensors", "EXPERT.safetensors", "n" * 250, "submission.dsse.json.bak"],
    ids=["decomposed", "other-case", "long", "twin"],
)
def test_threat_11_twin_of_a_file(fed: Federation, bundle: Path, name: str):
    (bundle / name).write_bytes(b"")
    assert_refused(offer(fed, bundle), FileSetError, "DDM205")


@pytest.mark.parametrize("name", ["../expert.safetensors", "/etc/passwd", "n" * 300, "..", ""])
def test_threat_11_name_that_leads_elsewhere(fed: Federation, bundle: Path, site_keys, name: str):
    def rename(statement: Json) -> None:
        statement["subject"][0]["name"] = name

    forge(bundle / ENVELOPE_FILE, rename, site_keys[A])
    assert_refused(offer(fed, bundle), MalformedError, "DDM201")


# 12


def make_archive(path: Path, content: Path) -> None:
    match path.suffix:
        case ".tar":
            with tarfile.open(path, "w") as tar:
                tar.add(content, "bundle")
        case ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.write(content / EXPERT_FILE, EXPERT_FILE)
        case ".pt":
            torch.save({"w": torch.zeros(3)}, path)


@pytest.mark.parametrize("suffix", [".tar", ".zip", ".pt"])
@pytest.mark.parametrize("place", ["alone", "inside"])
def test_threat_12_archive_is_refused_unread(
    fed: Federation, bundle: Path, scratch: Path, monkeypatch, suffix: str, place: str
):
    archive = scratch / f"expert{suffix}"
    make_archive(archive, bundle)
    hashed: list[int] = []
    opened: list[str] = []
    really_open = os.open

    def watched(path, *arguments, **options):
        opened.append(os.fspath(path))
        return really_open(path, *arguments, **options)

    if place == "inside":
        shutil.move(archive, bundle / archive.name)
        (bundle / EXPERT_FILE).unlink()
    monkeypatch.setattr(os, "open", watched)
    offered = bundle if place == "inside" else archive
    name = "arrival" if place == "inside" else archive.name
    verdict = offer(fed, offered, name, advance=hashed.append)
    assert_refused(verdict, FileSetError, "DDM205")
    assert hashed == []
    assert not [path for path in opened if str(path).endswith(suffix)]


def test_threat_12_archive_under_the_name_of_weights(
    fed: Federation, bundle: Path, scratch: Path, site_keys
):
    for suffix in (".tar", ".zip", ".pt"):
        make_archive(scratch / f"expert{suffix}", bundle)
        data = (scratch / f"expert{suffix}").read_bytes()
        disguised = Path(shutil.copytree(bundle, scratch / f"with{suffix}"))
        sign_files(disguised, site_keys[A], expert=data)
        assert_refused(offer(fed, disguised), WeightsError, "DDM207")


# 13


def test_threat_13_same_submission_twice_is_admitted_once(fed: Federation, bundle: Path):
    for name in ("one", "two"):
        shutil.copytree(bundle, fed.home.incoming / name)
    one, two = admit_arrivals(fed.home, fed.trust)
    assert one.admitted.entry == two.admitted.entry == offer(fed, bundle).admitted.entry
    assert fed.log.size == 1


def test_threat_13_two_payloads_of_one_number_are_evidence(
    fed: Federation, bundle: Path, site_keys, scratch: Path
):
    other = Path(shutil.copytree(bundle, scratch / "other"))
    told = {"program": "ddm-fed 9.9"}
    forge_manifest(other, lambda fields: fields["training"].update(told), site_keys[A])
    first = offer(fed, bundle)
    assert_refused(offer(fed, other), EquivocationError, "DDM213")
    kept = {file.read_bytes() for file in (fed.home.evidence / f"{A}-1").iterdir()}
    assert kept == {(bundle / ENVELOPE_FILE).read_bytes(), (other / ENVELOPE_FILE).read_bytes()}
    assert fed.log.newest(A) == first.admitted.entry


# 14


def with_last(value: float) -> Callable[[bytes], bytes]:
    raw = torch.tensor([value], dtype=torch.float32).numpy().tobytes()
    return lambda data: data[:-4] + raw


def edit_header(edit: Callable[[Json], bytes]) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        more = edit(header)
        return tensor_bytes(canonical_json(header), data[end:] + more)

    return change


def transpose(header: Json) -> bytes:
    tensor = next(
        item for item in header.values() if len(item["shape"]) > 1 and len(set(item["shape"])) > 1
    )
    tensor["shape"] = tensor["shape"][::-1]
    return b""


def add_tensor(header: Json) -> bytes:
    end = max(item["data_offsets"][1] for item in header.values())
    header["zz"] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
    return bytes(4)


WRONG = {
    "nan": (with_last(float("nan")), ValuesError, "DDM218"),
    "infinity": (with_last(float("-inf")), ValuesError, "DDM218"),
    "huge": (with_last(1e30), ValuesError, "DDM218"),
    "transposed": (edit_header(transpose), WeightsError, "DDM207"),
    "extra-tensor": (edit_header(add_tensor), WeightsError, "DDM207"),
}


@pytest.mark.parametrize(("change", "error", "code"), WRONG.values(), ids=WRONG)
def test_threat_14_weights_nobody_can_use(
    fed: Federation, bundle: Path, site_keys, change, error: type[RefusedError], code: str
):
    sign_files(bundle, site_keys[A], expert=change((bundle / EXPERT_FILE).read_bytes()))
    assert_refused(offer(fed, bundle), error, code)
    assert list(fed.home.blobs.folder.iterdir()) == []


# 15


def test_threat_15_header_bomb(bundle: Path, trust: Trust, site_keys):
    names = {
        f"tensor-{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        for index in range(30_000)
    }
    for bomb in (tensor_bytes(names), tensor_bytes(b"{}", length=1 << 40)):
        sign_files(bundle, site_keys[A], expert=bomb)
        begun = time.perf_counter()
        with refusal(WeightsError, "DDM207", "header"):
            verify(bundle, trust)
        assert time.perf_counter() - begun < 1


def test_threat_15_endless_data(bundle: Path, trust: Trust, site_keys):
    with (bundle / EXPERT_FILE).open("ab") as file:
        file.truncate(file.tell() + (1 << 30))  # a hole: it takes no room
    hashed: list[int] = []
    with refusal(DigestError, "DDM206"):
        verify(bundle, trust, advance=hashed.append)
    assert sum(hashed) < 1 << 24

    def declare(fields: Json) -> None:
        fields["files"][0]["size_bytes"] = trust.plan.submission.max_bytes + 1

    forge_manifest(bundle, declare, site_keys[A])
    with refusal(SizeError, "DDM219"):
        verify(bundle, trust, advance=hashed.append)


# 16


def test_threat_16_missing_countersignature_is_added_later(copy_of, stages, scratch: Path):
    fed: Federation = copy_of("drafted", A)
    officer = appoint_officer(fed, A, stages.submitted.arrival(B))
    draft = Path(shutil.copytree(outbox.newest_draft(fed.site(A)), scratch / "draft"))
    before = payload_of(draft / ENVELOPE_FILE)
    assert_refused(offer(fed, draft), CountersignatureError, "DDM215")
    signed_by(draft, officer)
    assert_refused(offer(fed, draft), UnknownSignerError, "DDM203")
    folder = outbox.review(fed.site(A), fed.trust).folder
    with refusal(CountersignatureError, "DDM215"):
        outbox.release(fed.site(A), fed.trust)
    elsewhere = Path(shutil.copytree(folder, scratch / "medium"))
    approve_review(elsewhere, officer)
    shutil.copytree(elsewhere, folder, dirs_exist_ok=True)
    released = outbox.release(fed.site(A), fed.trust)
    assert payload_of(released / ENVELOPE_FILE) == before
    submit.submit(fed.site(A), fed.trust, FolderTransport(fed.inbox))
    (verdict,) = admit_arrivals(fed.home, fed.trust)
    assert verdict.admitted.payload_sha256 == released.name


# 17


def test_threat_17_coordinator_that_shows_two_histories(stages, scratch: Path):
    one = stages.submitted.copy(scratch / "one", "consortium", A, B)
    two = stages.submitted.copy(scratch / "two", "consortium")
    for fed, kept in ((one, A), (two, B)):
        for name in SITES:
            if name != kept:
                shutil.rmtree(fed.arrival(name))
        admit_arrivals(fed.home, fed.trust)
    one.look(A)
    look(one.site(B), two.published)
    heads = [fed.log.checkpoint.decode().split() for fed in (one, two)]
    with pytest.raises(LogError, match="two histories") as caught:
        look(one.site(A), two.published)
    assert caught.value.code == "DDM216"
    assert all(word in caught.value.message for head in heads for word in head)
    ended = commands.run(
        "ddm-coord", "check-consistency", one.path / A, one.path / B, "--root", one.root
    )
    shown = "".join(ended.err.split())
    assert ended.code == 1
    assert "DDM216" in shown
    assert all(word in shown for head in heads for word in head)


# 18


def restate(ensemble: Path, key: SigningKey, edit: Callable[[Json], None] = lambda _: None) -> None:
    """Signs what the folder holds now with `key`, as a coordinator could that lies."""

    def edit_all(statement: Json) -> None:
        there = [item for item in statement["subject"] if (ensemble / item["name"]).exists()]
        for subject in there:
            subject["digest"]["sha256"] = sha256_hex((ensemble / subject["name"]).read_bytes())
        statement["subject"] = there
        edit(statement["predicate"])

    forge(ensemble / STATEMENT_FILE, edit_all, key)


@pytest.mark.parametrize("attack", ["delete", "reorder"])
def test_threat_18_leaf_deleted_or_moved(ensemble: Path, stages, attack: str):
    root, leaves = stages.admitted.root, ensemble / LEAVES_FILE
    lines = leaves.read_bytes().splitlines(keepends=True)
    leaves.write_bytes(b"".join(lines[:-1] if attack == "delete" else lines[::-1]))
    with refusal(DigestError, "DDM206", f"`{LEAVES_FILE}`"):
        verify_ensemble(ensemble, root)
    restate(ensemble, stages.admitted.coordinator_key())
    with refusal(LogError, "DDM216", "the log has 2 whole|leaves of the log have the root"):
        verify_ensemble(ensemble, root)


def test_threat_18_expert_dropped(ensemble: Path, stages):
    shutil.rmtree(ensemble / "sites" / B)
    for suffix in ("dsse.json", "tlog-proof"):
        (ensemble / "receipts" / f"{B}.{suffix}").unlink()

    def drop(record: Json) -> None:
        record["members"] = [item for item in record["members"] if item["site"] != B]

    restate(ensemble, stages.admitted.coordinator_key(), drop)
    with refusal(LogError, "DDM216", f"`{B}` for this plan; the ensemble neither has it nor"):
        verify_ensemble(ensemble, stages.admitted.root)


def test_threat_18_weights_swapped(ensemble: Path, stages):
    one, two = (ensemble / "sites" / name / EXPERT_FILE for name in (A, B))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    restate(ensemble, stages.admitted.coordinator_key())
    with refusal(DigestError, "DDM206", f"the bundle {A}: `{EXPERT_FILE}`"):
        verify_ensemble(ensemble, stages.admitted.root)


# 19


def test_threat_19_ensemble_signed_by_a_coordinator_key_that_was_replaced(copy_of, scratch: Path):
    fed: Federation = copy_of("admitted")
    old = fed.coordinator_key()
    assert changes.rotate_coordinator(fed.home).published
    assemble(fed.home, scratch / "newer", router=None, without=())
    assert verify_ensemble(scratch / "newer", fed.root).signers == {fed.coordinator_key().public}
    restate(scratch / "newer", old)
    with refusal(UnknownSignerError, "DDM203", "the ensemble is signed by"):
        verify_ensemble(scratch / "newer", fed.root)


def test_threat_19_ensemble_of_a_stolen_coordinator_key_is_stale(
    copy_of, verified: VerifiedEnsemble
):
    fed: Federation = copy_of("admitted")
    assert find_staleness(verified, fed.home.chain(), fed.log).stale == ()
    changes.rotate_coordinator(fed.home, compromised_since=verified.log.size)
    (reason,) = find_staleness(verified, fed.home.chain(), fed.log).stale
    assert "coordinator key" in reason


# Every refusal


def subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def errors_that_tests_use() -> set[str]:
    """Returns the names that test files use, imports aside."""
    return {
        node.id
        for file in Path(__file__).parents[1].rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(node, ast.Name)
    }


@pytest.fixture(scope="module")
def used_names() -> set[str]:
    return errors_that_tests_use()


REFUSALS = [kind for kind in subclasses(RefusedError) if kind.__module__ == errors.__name__]


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSALS, ids=lambda kind: kind.code)
def test_every_refusal_is_provoked_by_a_test(kind: type[RefusedError], used_names: set[str]):
    assert kind.__name__ in used_names


def threats_on_the_page() -> dict[int, list[str]]:
    """Returns the tests that each row of the table in docs/trust.md names."""
    page = (PAGES / "trust.md").read_text()
    table = page.partition("## Threats")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \|.+\| ([^|]+) \|$", table, re.MULTILINE)
    return {int(number): re.findall(r"`(\w+)`", tests) for number, tests in rows}


def test_every_row_of_the_threat_table_has_a_test():
    page = threats_on_the_page()
    assert list(page) == list(range(1, 22))
    assert all(page.values())


def test_tests_that_tables_of_attacks_name_exist():
    named = {name for row, tests in threats_on_the_page().items() if row > OWN for name in tests}
    table = (PAGES / "remote_experts.md").read_text().partition("## Attacks")[2]
    named |= set(re.findall(r"`(test_\w+)`", table))
    texts = [path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py")]
    there = {name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    assert len(named) > 20
    assert named - there == set()


def test_threat_table_names_every_test_in_its_row():
    here = [name for name in globals() if name.startswith("test_threat_") and name[12].isdigit()]
    rows: dict[int, list[str]] = {}
    for name in here:
        rows.setdefault(int(name[12:14]), []).append(name)
    page = threats_on_the_page()
    assert {row: tests for row, tests in page.items() if row <= OWN} == rows
