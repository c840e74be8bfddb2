"""Attacks on a bundle: whatever is changed, by whomever, is refused and named."""

import base64
import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from time import process_time

import pytest
from federation import (
    PLAN_TOML,
    Federation,
    Json,
    a_plan,
    chain,
    flip,
    forge,
    forge_manifest,
    make_odd_file,
    move_to_plan,
    sign_files,
    tensor_bytes,
)

from coordinator.roster import changes, proposals
from ddm_fed.bundle.verify import (
    ENVELOPE_FILE,
    EXPERT_FILE,
    ROUTER_FILE,
    TENSOR_FILES,
    VerifiedBundle,
    read_weights,
    verify_bundle,
)
from ddm_fed.errors import (
    DigestError,
    ExpiredError,
    FileSetError,
    MalformedError,
    PlanMismatchError,
    PolicyError,
    RefusedError,
    SignatureError,
    UnknownSignerError,
    WeightsError,
)
from ddm_fed.models import expert_tensors
from ddm_fed.privacy import epsilon_text
from ddm_fed.records import GaussianEvent, Plan, now, read_plan_toml, sha256_hex
from ddm_fed.signing import SigningKey
from ddm_fed.storage.blob_store import BlobStore
from ddm_fed.trust import Trust

A, B = "hospital-a", "hospital-b"


def verify(bundle: Path, trust: Trust, moment: datetime | None = None, **options) -> VerifiedBundle:
    return verify_bundle(bundle, trust, moment or now(), **options)


@pytest.fixture(scope="module")
def verified(stages, trust: Trust, tmp_path_factory) -> VerifiedBundle:
    """The honest bundle, verified once into a folder of its own."""
    kept = tmp_path_factory.mktemp("kept")
    return verify(stages.submitted.arrival(A), trust, store=BlobStore(kept))


def test_honest_bundle_verifies(verified: VerifiedBundle):
    assert verified.site == A
    assert verified.submission.sequence == 1
    assert verified.noise_multipliers.keys() == {"location", "shape"}


def test_verified_copy_has_the_bytes_that_arrived(verified: VerifiedBundle, stages):
    arrived = stages.submitted.arrival(A)
    assert verified.envelope == (arrived / ENVELOPE_FILE).read_bytes()
    for name in TENSOR_FILES:
        assert verified.files[name] != arrived / name
        assert verified.files[name].read_bytes() == (arrived / name).read_bytes()


def under(trust: Trust, plan: Plan) -> Trust:
    """Returns `trust` as it would be had `plan` been published."""
    return dataclasses.replace(trust, plan=plan, plan_sha256=sha256_hex(plan.to_json()))


# One byte


@pytest.mark.parametrize("name", TENSOR_FILES)
@pytest.mark.parametrize("position", [0, 8, 150, -1])
def test_flipped_byte_of_a_tensor_file_is_refused(
    bundle: Path, trust: Trust, name: str, position: int
):
    flip(bundle / name, position)
    with pytest.raises(DigestError, match=f"the bundle bundle: `{name}` is not what was signed"):
        verify(bundle, trust)


@pytest.mark.parametrize("field", ["payload", "sig"])
def test_flipped_byte_of_the_manifest_is_refused(bundle: Path, trust: Trust, field: str):
    envelope = json.loads((bundle / ENVELOPE_FILE).read_bytes())
    holder = envelope if field == "payload" else envelope["signatures"][0]
    raw = bytearray(base64.b64decode(holder[field]))
    raw[raw.find(b"csprng") if field == "payload" else 9] ^= 2  # stays JSON, so it is reached
    holder[field] = base64.b64encode(raw).decode()
    (bundle / ENVELOPE_FILE).write_text(json.dumps(envelope))
    with pytest.raises((SignatureError, MalformedError), match="the bundle bundle"):
        verify(bundle, trust)


def test_edited_number_of_the_manifest_is_refused(bundle: Path, trust: Trust):
    envelope = json.loads((bundle / ENVELOPE_FILE).read_bytes())
    payload = base64.b64decode(envelope["payload"])
    edited = payload.replace(b'"releases_epsilon":"2.0000"', b'"releases_epsilon":"1.0000"')
    assert edited != payload
    envelope["payload"] = base64.b64encode(edited).decode()
    (bundle / ENVELOPE_FILE).write_text(json.dumps(envelope))
    with pytest.raises(SignatureError, match="the bundle bundle carries a signature of ed25519:"):
        verify(bundle, trust)


@pytest.mark.parametrize("name", [*TENSOR_FILES, ENVELOPE_FILE])
def test_random_flips_are_refused_or_leave_the_signed_payload(
    bundle: Path, trust: Trust, verified: VerifiedBundle, name: str
):
    honest = (bundle / name).read_bytes()
    draw = random.Random(name)
    for _ in range(14):
        flip(bundle / name, draw.randrange(len(honest)), draw.randrange(1, 256))
        try:
            found = verify(bundle, trust)
        except RefusedError:
            pass
        else:  # a changed keyid or unused bits of base64: hints, which nothing believes
            assert name == ENVELOPE_FILE
            assert found.payload_sha256 == verified.payload_sha256
        (bundle / name).write_bytes(honest)


# Who signed, and for what


def test_bundle_of_an_unknown_site_is_refused(bundle: Path, trust: Trust, site_keys):
    forge_manifest(bundle, lambda fields: fields.update(site="hospital-x"), site_keys[A])
    with pytest.raises(UnknownSignerError, match="claims to come from `hospital-x`, which is not"):
        verify(bundle, trust)


def test_member_that_claims_to_be_another_member_is_refused(bundle: Path, trust: Trust, site_keys):
    forge_manifest(bundle, lambda fields: None, site_keys[B])
    with pytest.raises(UnknownSignerError, match=site_keys[B].public.keyid[:24]):
        verify(bundle, trust)


def test_member_that_renames_its_own_bundle_is_refused(bundle: Path, trust: Trust, site_keys):
    forge_manifest(bundle, lambda fields: fields.update(site=B), site_keys[A])
    with pytest.raises(UnknownSignerError, match=site_keys[A].public.keyid[:24]):
        verify(bundle, trust)


@pytest.mark.parametrize("key", ["root_key", "coordinator_key"])
def test_bundle_signed_by_the_coordinator_is_refused(bundle: Path, trust: Trust, stages, key: str):
    signer: SigningKey = getattr(stages.submitted, key)()
    forge_manifest(bundle, lambda fields: None, signer)
    with pytest.raises(UnknownSignerError, match=signer.public.keyid[:24]):
        verify(bundle, trust)


def test_bundle_without_signatures_is_refused(bundle: Path, trust: Trust):
    envelope = json.loads((bundle / ENVELOPE_FILE).read_bytes())
    envelope["signatures"] = []
    (bundle / ENVELOPE_FILE).write_text(json.dumps(envelope))
    with pytest.raises(MalformedError, match=r"the bundle bundle .*`signatures`"):
        verify(bundle, trust)


def test_enrolment_request_in_place_of_a_manifest_is_refused(bundle: Path, trust: Trust, stages):
    shutil.copyfile(stages.submitted.site(A).path / "enrolment.dsse.json", bundle / ENVELOPE_FILE)
    with pytest.raises(MalformedError, match=r"the bundle bundle is of type `.*enrolment"):
        verify(bundle, trust)


def test_bundle_of_another_plan_is_refused(bundle: Path, copy_of):
    fed: Federation = copy_of("submitted")
    proposals.publish_plan(fed.home, a_plan(steps="steps = 4"))
    with pytest.raises(PlanMismatchError, match="the bundle bundle was made for the plan"):
        verify(bundle, fed.trust)


def test_bundle_of_another_federation_is_refused(bundle: Path, trust: Trust, site_keys):
    forge_manifest(bundle, lambda fields: fields.update(federation="other"), site_keys[A])
    with pytest.raises(PlanMismatchError, match="made for the federation `other`, expected `test`"):
        verify(bundle, trust)


@pytest.mark.parametrize("reference", [{"version": 1}, {"version": 3}, {"sha256": "0" * 64}])
def test_bundle_of_a_roster_never_published_is_refused(
    bundle: Path, trust: Trust, site_keys, reference: Json
):
    forge_manifest(bundle, lambda fields: fields["roster"].update(reference), site_keys[A])
    with pytest.raises(PlanMismatchError, match="which is not in the published chain"):
        verify(bundle, trust)


def test_bundle_of_an_earlier_roster_of_the_chain_verifies(bundle: Path, copy_of):
    fed: Federation = copy_of("submitted")
    cited = fed.trust.roster.version
    changes.revoke(fed.home, "hospital-c")
    assert fed.trust.roster.version == cited + 1
    assert verify(bundle, fed.trust).submission.roster.version == cited


# The folder


def test_renamed_file_is_refused(bundle: Path, trust: Trust):
    (bundle / EXPERT_FILE).rename(bundle / "expert.SAFETENSORS")
    with pytest.raises(FileSetError, match=r"`expert\.safetensors` is missing, `expert\.SAFETEN"):
        verify(bundle, trust)


@pytest.mark.parametrize("name", ["notes.txt", "expert.pt", ".hidden", "inner/file", "model.sig"])
def test_extra_file_is_refused(bundle: Path, trust: Trust, name: str):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"")
    with pytest.raises(FileSetError, match=f"`{name}` does not belong there"):
        verify(bundle, trust)


@pytest.mark.parametrize("name", [*TENSOR_FILES, ENVELOPE_FILE])
def test_missing_file_is_refused(bundle: Path, trust: Trust, name: str):
    (bundle / name).unlink()
    with pytest.raises(FileSetError, match=f"`{name}` is missing"):
        verify(bundle, trust)


@pytest.mark.parametrize("name", [*TENSOR_FILES, ENVELOPE_FILE])
def test_link_to_the_right_file_is_refused(bundle: Path, trust: Trust, name: str):
    (bundle / name).rename(bundle.parent / "elsewhere")
    (bundle / name).symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(FileSetError, match=f"`{name}` is a symbolic link"):
        verify(bundle, trust)


@pytest.mark.parametrize("name", [*TENSOR_FILES, ENVELOPE_FILE])
def test_fifo_in_place_of_a_file_is_refused_without_blocking(bundle: Path, trust: Trust, name: str):
    (bundle / name).unlink()
    make_odd_file(bundle / name, "fifo")
    with pytest.raises(FileSetError, match=f"`{name}` is not a regular file"):
        verify(bundle, trust)


def test_folder_in_place_of_a_file_is_refused(bundle: Path, trust: Trust):
    (bundle / EXPERT_FILE).unlink()
    (bundle / EXPERT_FILE).mkdir()
    with pytest.raises(FileSetError, match=f"`{EXPERT_FILE}` is missing"):
        verify(bundle, trust)


def test_linked_bundle_folder_is_refused(bundle: Path, trust: Trust):
    (bundle.parent / "link").symlink_to(bundle)
    with pytest.raises(FileSetError, match=r"the bundle link is refused: `\.` is a symbolic link"):
        verify(bundle.parent / "link", trust)


def test_hard_linked_file_verifies_since_its_copy_is_what_counts(
    bundle: Path, trust: Trust, tmp_path: Path
):
    os.link(bundle / EXPERT_FILE, tmp_path / "second-name")
    (tmp_path / "kept").mkdir()
    kept = verify(bundle, trust, store=BlobStore(tmp_path / "kept")).files[EXPERT_FILE]
    assert kept.stat().st_nlink == 1


def test_swapped_tensor_files_are_refused(bundle: Path, trust: Trust):
    (bundle / EXPERT_FILE).rename(bundle / "t")
    (bundle / ROUTER_FILE).rename(bundle / EXPERT_FILE)
    (bundle / "t").rename(bundle / ROUTER_FILE)
    with pytest.raises(DigestError, match=f"`{EXPERT_FILE}` is not what was signed"):
        verify(bundle, trust)


def test_weights_of_another_member_are_refused(bundle: Path, trust: Trust, stages):
    shutil.copyfile(stages.submitted.arrival(B) / EXPERT_FILE, bundle / EXPERT_FILE)
    with pytest.raises(DigestError, match=f"`{EXPERT_FILE}` is not what was signed"):
        verify(bundle, trust)


# Time


def test_bundle_is_refused_from_the_second_it_expires(
    bundle: Path, trust: Trust, verified: VerifiedBundle
):
    with pytest.raises(ExpiredError, match="the bundle bundle expired at"):
        verify(bundle, trust, verified.submission.expires_at)


def test_bundle_from_eleven_minutes_in_the_future_is_refused(
    bundle: Path, trust: Trust, verified: VerifiedBundle
):
    with pytest.raises(ExpiredError, match=r"the bundle bundle was issued at .*, in the future"):
        verify(bundle, trust, verified.submission.issued_at - timedelta(minutes=11))


def test_bundle_from_a_clock_nine_minutes_ahead_is_accepted(
    bundle: Path, trust: Trust, verified: VerifiedBundle
):
    found = verify(bundle, trust, verified.submission.issued_at - timedelta(minutes=9))
    assert found.payload_sha256 == verified.payload_sha256


def test_bundle_valid_for_longer_than_the_plan_allows_is_refused(
    bundle: Path, trust: Trust, site_keys
):
    forge_manifest(
        bundle, lambda fields: fields.update(expires_at="2126-11-23T00:00:00Z"), site_keys[A]
    )
    with pytest.raises(RefusedError, match="the bundle bundle"):
        verify(bundle, trust)


def test_bundle_trained_for_other_steps_than_the_plan_asks_is_refused(
    bundle: Path, trust: Trust, site_keys
):
    forge_manifest(bundle, lambda fields: fields["training"].update(steps=1), site_keys[A])
    with pytest.raises(PlanMismatchError, match="trained for 1 steps, the plan asks for 3"):
        verify(bundle, trust)


@pytest.mark.parametrize("field", ["issued_at", "expires_at"])
def test_bundle_with_a_date_beyond_the_calendar_is_refused(bundle: Path, trust: Trust, field: str):
    forge_manifest(
        bundle,
        lambda fields: fields.update({field: "0001-01-01T00:00:00+14:00"}),
        SigningKey.from_seed(bytes(32)),  # anybody's: it is read before a signature is checked
    )
    with pytest.raises(MalformedError, match=rf"`predicate\.{field}`"):
        verify(bundle, trust)


# The manifest against the files


def test_manifest_with_wrong_size_is_refused(bundle: Path, trust: Trust, site_keys):
    def edit(fields: Json) -> None:
        fields["files"][0]["size_bytes"] += 1

    forge_manifest(bundle, edit, site_keys[A])
    with pytest.raises(
        DigestError, match=r"`expert\.safetensors` is not .*: found \d+ bytes, sign"
    ):
        verify(bundle, trust)


def test_manifest_with_wrong_size_leaves_the_stored_copy_of_the_same_digest(
    bundle: Path, trust: Trust, site_keys, tmp_path: Path
):
    store = BlobStore(tmp_path)
    kept = verify(bundle, trust, store=store).files[EXPERT_FILE]
    honest = kept.read_bytes()

    def edit(fields: Json) -> None:
        fields["files"][0]["size_bytes"] += 1

    forge_manifest(bundle, edit, site_keys[A])
    with pytest.raises(DigestError, match=r"found \d+ bytes"):
        verify(bundle, trust, store=store)
    assert kept.read_bytes() == honest


def test_manifest_of_more_bytes_than_the_plan_allows_is_refused(
    bundle: Path, trust: Trust, site_keys
):
    def edit(fields: Json) -> None:
        fields["files"][0]["size_bytes"] = 2**40

    forge_manifest(bundle, edit, site_keys[A])
    with pytest.raises(FileSetError, match=rf"has {2**40 + 264} bytes, the plan allows {2**32}"):
        verify(bundle, trust)


def edit_subject(edit: Callable[[list], None]) -> Callable[[Json], None]:
    return lambda statement: edit(statement["subject"])


def digest(name: str, text: str = "0" * 64) -> Json:
    return {"name": name, "digest": {"sha256": text}}


@pytest.mark.parametrize(
    "edit", [lambda items: items.append(digest("notes.txt")), lambda items: items.pop()]
)
def test_manifest_over_other_files_is_refused(bundle: Path, trust: Trust, site_keys, edit):
    forge(bundle / ENVELOPE_FILE, edit_subject(edit), site_keys[A])
    with pytest.raises(FileSetError, match=r"is signed over .*, expected \['expert"):
        verify(bundle, trust)


def test_manifest_with_sizes_of_other_files_is_refused(bundle: Path, trust: Trust, site_keys):
    extra = {"name": "notes.txt", "size_bytes": 1}
    forge_manifest(bundle, lambda fields: fields["files"].append(extra), site_keys[A])
    with pytest.raises(FileSetError, match=r"is signed over .*notes\.txt"):
        verify(bundle, trust)


def test_manifest_that_names_a_file_twice_is_refused(bundle: Path, trust: Trust, site_keys):
    forge(bundle / ENVELOPE_FILE, edit_subject(lambda items: items.append(items[0])), site_keys[A])
    with pytest.raises(RefusedError, match=r"expert\.safetensors"):
        verify(bundle, trust)


def test_manifest_that_hides_the_size_of_a_file_behind_a_second_one_is_refused(
    bundle: Path, trust: Trust, site_keys
):
    small = under(trust, read_plan_toml(f"{PLAN_TOML}\n[submission]\nmax_bytes = 1000\n"))

    def edit(fields: Json) -> None:
        move_to_plan(fields, small.plan_sha256)
        fields["files"].append({"name": EXPERT_FILE, "size_bytes": 1})

    forge_manifest(bundle, edit, site_keys[A])
    with pytest.raises(RefusedError, match="the bundle bundle"):
        verify(bundle, small)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "A", "a//b", "", "a\n", "é"])
def test_manifest_with_a_dangerous_file_name_is_refused(
    bundle: Path, trust: Trust, site_keys, name: str
):
    forge(
        bundle / ENVELOPE_FILE,
        edit_subject(lambda items: items.append(digest(name))),
        site_keys[A],
    )
    with pytest.raises(MalformedError, match=r"`subject\.2\.name`"):
        verify(bundle, trust)


def test_statement_of_another_kind_is_refused(bundle: Path, trust: Trust, site_keys):
    forge(
        bundle / ENVELOPE_FILE,
        lambda statement: statement.update(predicateType="urn:ddm-fed:other:v1"),
        site_keys[A],
    )
    with pytest.raises(PlanMismatchError, match="is a statement of type `urn:ddm-fed:other:v1`"):
        verify(bundle, trust)


@pytest.mark.parametrize("field", ["trained_on", "privcy"])
def test_manifest_with_a_field_we_do_not_know_is_refused(
    bundle: Path, trust: Trust, site_keys, field: str
):
    forge_manifest(bundle, lambda fields: fields.update({field: 1}), site_keys[A])
    with pytest.raises(MalformedError, match=rf"`predicate\.{field}`: unknown key"):
        verify(bundle, trust)


# Weights a member signed, that are not what the plan asks for


def nan_at_the_end(data: bytes) -> bytes:
    return data[:-4] + bytes.fromhex("0000c07f")


def with_metadata(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    return tensor_bytes(b'{"__metadata__":{},' + data[9 : 8 + length], data[8 + length :])


WRONG_WEIGHTS = {
    "nan-in-the-last-value": (nan_at_the_end, WeightsError, "it holds NaN"),
    "trailing-byte": (lambda data: data + b"x", WeightsError, "its tensors end at"),
    "metadata": (
        with_metadata,
        WeightsError,
        "carries metadata",
    ),
    "pickle": (lambda data: b"\x80\x04N.", WeightsError, "header claims"),
    "one-byte": (lambda data: b"x", WeightsError, "header claims"),
}


@pytest.mark.parametrize(("change", "error", "problem"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_weights_nobody_can_use_are_refused_though_signed(
    bundle: Path, trust: Trust, site_keys, change, error: type, problem: str
):
    sign_files(bundle, site_keys[A], expert=change((bundle / EXPERT_FILE).read_bytes()))
    with pytest.raises(error, match=rf"the bundle bundle: `expert\.safetensors`.*{problem}"):
        verify(bundle, trust)


def test_weights_of_another_architecture_are_refused_though_signed(
    bundle: Path, trust: Trust, site_keys
):
    names = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    sign_files(bundle, site_keys[A], expert=tensor_bytes(names, bytes(4)))
    with pytest.raises(WeightsError, match=r"`expert\.safetensors` is refused: it lacks the tens"):
        verify(bundle, trust)


def test_router_with_more_numbers_than_the_plan_asks_for_is_refused(
    bundle: Path, trust: Trust, site_keys
):
    names = {
        "location": {"dtype": "I64", "shape": [5], "data_offsets": [0, 40]},
        "shape": {"dtype": "I64", "shape": [1000], "data_offsets": [40, 8040]},
    }
    sign_files(bundle, site_keys[A], router=tensor_bytes(names, bytes(8040)))
    with pytest.raises(WeightsError, match=r"`router\.safetensors`: tensor `shape` is refused"):
        verify(bundle, trust)


# Privacy: the arithmetic, whatever the site signs


def forge_privacy(
    bundle: Path, key: SigningKey, edit: Callable[[Json], None], *, chained: bool = False
) -> None:
    """Edits the privacy statement and signs it; `chained` makes the ledger consistent again."""

    def edit_all(fields: Json) -> None:
        edit(fields["privacy"])
        if chained:
            chain(fields["privacy"]["ledger"])

    forge_manifest(bundle, edit_all, key)


def restate(privacy: Json) -> None:
    """States the epsilon that the ledger really adds up to."""
    events = [
        GaussianEvent.model_validate_json(json.dumps(entry["event"]))
        for entry in privacy["ledger"]
        if entry["event"]["kind"] == "gaussian"
    ]
    privacy["releases_epsilon"] = epsilon_text(events, float(privacy["delta"]))


def set_noise(privacy: Json, *noises: str) -> None:
    for entry, noise in zip(privacy["ledger"][1:], noises, strict=True):
        entry["event"]["noise_multiplier"] = noise


@pytest.mark.parametrize("index", [0, 1])
def test_ledger_with_an_entry_removed_is_refused(bundle: Path, trust: Trust, site_keys, index: int):
    forge_privacy(bundle, site_keys[A], lambda privacy: privacy["ledger"].pop(index))
    with pytest.raises(PolicyError, match=f"ledger entry {index} does not follow"):
        verify(bundle, trust)


def test_ledger_in_another_order_is_refused(bundle: Path, trust: Trust, site_keys):
    forge_privacy(bundle, site_keys[A], lambda privacy: privacy["ledger"].reverse())
    with pytest.raises(PolicyError, match="ledger entry 0 does not follow"):
        verify(bundle, trust)


def test_ledger_with_an_edited_entry_is_refused(bundle: Path, trust: Trust, site_keys):
    def edit(privacy: Json) -> None:
        privacy["ledger"][1]["recorded_at"] = "2020-01-01T00:00:00Z"

    forge_privacy(bundle, site_keys[A], edit)
    with pytest.raises(PolicyError, match="ledger entry 2 does not follow"):
        verify(bundle, trust)


def test_ledger_with_less_noise_than_its_stated_epsilon_is_refused(
    bundle: Path, trust: Trust, site_keys
):
    forge_privacy(
        bundle, site_keys[A], lambda privacy: set_noise(privacy, "3.9877", "2"), chained=True
    )
    with pytest.raises(
        PolicyError, match=r"it states epsilon 2\.0000, its ledger adds up to 2\.\d"
    ):
        verify(bundle, trust)


def test_stated_epsilon_below_that_of_the_ledger_is_refused(bundle: Path, trust: Trust, site_keys):
    forge_privacy(bundle, site_keys[A], lambda privacy: privacy.update(releases_epsilon="1.9990"))
    with pytest.raises(PolicyError, match=r"it states epsilon 1\.9990, its ledger adds up to 2\.0"):
        verify(bundle, trust)


def test_noise_from_a_test_stream_is_refused(bundle: Path, trust: Trust, site_keys):
    forge_privacy(bundle, site_keys[A], lambda privacy: privacy.update(randomness="test"))
    with pytest.raises(PolicyError, match="its noise came from a test stream"):
        verify(bundle, trust)


def test_epsilon_at_another_delta_is_refused(bundle: Path, trust: Trust, site_keys):
    forge_privacy(bundle, site_keys[A], lambda privacy: privacy.update(delta="0.01"))
    with pytest.raises(PolicyError, match=r"it states epsilon at delta 0\.01, the plan 0\.00001"):
        verify(bundle, trust)


def test_ledger_over_the_plans_epsilon_is_refused(bundle: Path, trust: Trust, site_keys):
    def edit(privacy: Json) -> None:
        earlier = privacy["ledger"][1] | {"plan_sha256": "0" * 64}
        earlier["event"] = {"kind": "gaussian", "noise_multiplier": "1.5"}
        privacy["ledger"].insert(0, earlier)
        restate(privacy)

    forge_privacy(bundle, site_keys[A], edit, chained=True)
    with pytest.raises(
        PolicyError, match=r"its ledger adds up to epsilon 3\.\d+, the plan allows 3"
    ):
        verify(bundle, trust)


def test_router_release_dearer_than_the_plan_allows_is_refused(
    bundle: Path, trust: Trust, site_keys
):
    def edit(privacy: Json) -> None:
        set_noise(privacy, "3.5", "2")
        restate(privacy)

    forge_privacy(bundle, site_keys[A], edit, chained=True)
    with pytest.raises(PolicyError, match=r"its router release cost 2\.\d+, the plan allows 2"):
        verify(bundle, trust)


@pytest.mark.parametrize("change", ["missing", "not-private", "of-another-plan"])
def test_router_release_missing_from_the_ledger_is_refused(
    bundle: Path, trust: Trust, site_keys, change: str
):
    def edit(privacy: Json) -> None:
        shape = privacy["ledger"].pop()
        if change == "not-private":
            silent = {"event": {"kind": "non_private"}, "mechanism": "no-noise"}
            privacy["ledger"].append(shape | silent)
        elif change == "of-another-plan":
            privacy["ledger"].append(shape | {"plan_sha256": "0" * 64})
        restate(privacy)

    forge_privacy(bundle, site_keys[A], edit, chained=True)
    with pytest.raises(PolicyError, match=r"has entries for the router's \['location'\] only"):
        verify(bundle, trust)


def test_expert_called_private_against_its_ledger_is_refused(bundle: Path, trust: Trust, site_keys):
    forge_privacy(bundle, site_keys[A], lambda privacy: privacy.update(expert_is_private=True))
    with pytest.raises(PolicyError, match="does not say how its expert was trained"):
        verify(bundle, trust)


def test_expert_missing_from_the_ledger_is_refused(bundle: Path, trust: Trust, site_keys):
    forge_privacy(bundle, site_keys[A], lambda privacy: privacy["ledger"].pop(0), chained=True)
    with pytest.raises(PolicyError, match="does not say how its expert was trained"):
        verify(bundle, trust)


def test_expert_without_privacy_is_refused_where_the_plan_demands_it(
    bundle: Path, trust: Trust, site_keys
):
    strict = a_plan(
        max_epsilon='max_epsilon = 8\nmust_be_private = ["router", "expert"]\n'
        "[privacy.sgd]\nepsilon = 8\nunits = 32\nclip_norm = 1",
    )
    stricter = under(trust, strict)
    forge_manifest(bundle, lambda fields: move_to_plan(fields, stricter.plan_sha256), site_keys[A])
    with pytest.raises(PolicyError, match="its expert was trained without privacy"):
        verify(bundle, stricter)


@pytest.mark.parametrize("noise", ["0.01", "0.0000001", "0.0000000000000000001"])
def test_ledger_with_next_to_no_noise_is_refused_without_endless_arithmetic(
    bundle: Path, trust: Trust, site_keys, noise: str
):
    forge_privacy(
        bundle, site_keys[A], lambda privacy: set_noise(privacy, "4", noise), chained=True
    )
    with pytest.raises((PolicyError, MalformedError), match="the bundle bundle is"):
        verify(bundle, trust)


def test_ledger_of_two_thousand_different_entries_is_priced_quickly(
    bundle: Path, trust: Trust, site_keys
):
    def edit(privacy: Json) -> None:
        last = privacy["ledger"][-1]
        del last["nonce"]  # as in earlier versions: so many entries fit into a document
        for index in range(1900):
            other = {"kind": "gaussian", "noise_multiplier": f"1000.{index:04d}5"}
            privacy["ledger"].append(last | {"event": other, "purpose": "other"})

    forge_privacy(bundle, site_keys[A], edit, chained=True)
    started = process_time()
    with pytest.raises(PolicyError, match=r"it states epsilon 2\.0000, its ledger adds up to 2\.0"):
        verify(bundle, trust)
    assert process_time() - started < 2


# Changed while it is verified, or after


def advance_once(attack: Callable[[], object]) -> Callable[[int], None]:
    """Attacks when the first file has been hashed."""
    waiting = [attack]
    return lambda _: (waiting.pop()(), None)[1] if waiting else None


def rewrite_all(bundle: Path) -> None:
    for name in (*TENSOR_FILES, ENVELOPE_FILE):
        (bundle / name).write_bytes(b"evil")


def test_bundle_deleted_while_it_is_verified_is_refused(bundle: Path, trust: Trust, tmp_path: Path):
    attack = advance_once(lambda: shutil.rmtree(bundle))
    with pytest.raises(FileSetError, match=r"router\.safetensors cannot be opened"):
        verify(bundle, trust, store=BlobStore(tmp_path), advance=attack)


def test_file_that_becomes_a_folder_while_it_is_verified_is_refused(
    bundle: Path, trust: Trust, tmp_path: Path
):
    def attack() -> None:
        (bundle / ROUTER_FILE).unlink()
        (bundle / ROUTER_FILE).mkdir()

    with pytest.raises(FileSetError, match=r"router\.safetensors"):
        verify(bundle, trust, store=BlobStore(tmp_path), advance=advance_once(attack))


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_file_that_becomes_odd_while_it_is_verified_is_refused_without_blocking(
    bundle: Path, trust: Trust, tmp_path: Path, kind: str
):
    def attack() -> None:
        (bundle / ROUTER_FILE).unlink()
        make_odd_file(bundle / ROUTER_FILE, kind)

    with pytest.raises(FileSetError, match=r"router\.safetensors"):
        verify(bundle, trust, store=BlobStore(tmp_path), advance=advance_once(attack))


def test_kept_copy_is_what_was_signed_though_all_is_rewritten_after_hashing(
    bundle: Path, trust: Trust, tmp_path: Path, verified: VerifiedBundle
):
    seen: list[int] = []

    def attack(count: int) -> None:
        seen.append(count)
        if len(seen) == 2:  # both tensor files were hashed
            rewrite_all(bundle)

    kept = verify(bundle, trust, store=BlobStore(tmp_path), advance=attack)
    assert {name: sha256_hex(kept.files[name].read_bytes()) for name in TENSOR_FILES} == (
        verified.sha256
    )


@pytest.fixture
def after(verified: VerifiedBundle, scratch: Path) -> VerifiedBundle:
    """The verified bundle in a folder that something else can write to."""
    files = {name: scratch / name for name in TENSOR_FILES}
    for name, path in files.items():
        shutil.copyfile(verified.files[name], path)
    return dataclasses.replace(verified, files=files)


def test_read_weights_returns_the_tensors_of_the_plan(after: VerifiedBundle, trust: Trust):
    weights = read_weights(after, EXPERT_FILE)
    table = expert_tensors(trust.plan.data, trust.plan.expert.default)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        name: shape for name, (_, shape) in table.items()
    }


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_read_weights_refuses_a_file_changed_after_verification(after: VerifiedBundle, name: str):
    flip(after.files[name], -1)
    with pytest.raises(DigestError, match=f"`{name}` of `hospital-a` changed after it was verif"):
        read_weights(after, name)


def test_read_weights_refuses_a_pickle_put_there_after_verification(after: VerifiedBundle):
    after.files[EXPERT_FILE].write_bytes(b"\x80\x04N.")
    with pytest.raises(DigestError, match=f"`{EXPERT_FILE}` of `hospital-a` changed"):
        read_weights(after, EXPERT_FILE)


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_read_weights_refuses_an_odd_file_put_there_after_verification(
    after: VerifiedBundle, kind: str
):
    after.files[EXPERT_FILE].unlink()
    make_odd_file(after.files[EXPERT_FILE], kind)
    with pytest.raises(FileSetError, match=r"expert\.safetensors"):
        read_weights(after, EXPERT_FILE)
