"""From one fingerprint to every key: each broken link of the chain is refused by name."""

import base64
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from federation import Federation, Json, a_plan, create_federation, forge, payload_of

from coordinator import members
from ddm_fed.errors import (
    ExpiredError,
    MalformedError,
    PlanMismatchError,
    RosterError,
    SignatureError,
    StateError,
    UnknownSignerError,
    WeakKeyError,
)
from ddm_fed.published import read_published
from ddm_fed.records import (
    Plan,
    Roster,
    RosterReference,
    RosterSite,
    canonical_json,
    now,
    sha256_hex,
)
from ddm_fed.signing import (
    ENROLMENT_PAYLOAD,
    PLAN_PAYLOAD,
    ROSTER_PAYLOAD,
    SigningKey,
    Trust,
    establish_trust,
    require_in_force,
    seal,
)
from sites.folder import SiteFolder, SiteSettings

ROOT, COORDINATOR, SITE, MALLORY, LATER = (
    SigningKey.from_seed(bytes([index] * 32)) for index in range(1, 6)
)
ISSUED = datetime(2026, 11, 23, tzinfo=UTC)
EXPIRES = ISSUED + timedelta(days=365)


def roster(version: int, previous: bytes | None, **changed: object) -> bytes:
    """Returns the payload of a roster that follows `previous`."""
    fields = {
        "federation": "test",
        "version": version,
        "previous_sha256": None if previous is None else sha256_hex(previous),
        "issued_at": ISSUED,
        "expires_at": EXPIRES,
        "root_key": ROOT.public.hex,
        "coordinator_key": COORDINATOR.public.hex,
        "sites": (
            RosterSite(name="hospital-a", public_key=SITE.public.hex, enrolled_at=ISSUED),
            RosterSite(
                name=f"hospital-v{version}",
                public_key=SigningKey.from_seed(bytes([100 + version] * 32)).public.hex,
                enrolled_at=ISSUED,
            ),
        ),
    }
    return Roster(**(fields | changed)).to_json()


R1 = roster(1, None)
R2 = roster(2, R1)
R3 = roster(3, R2)
PLAN = a_plan()


def signed(payload: bytes, key: SigningKey = ROOT, kind: str = ROSTER_PAYLOAD) -> bytes:
    return seal(payload, kind, [key])


def signed_plan(
    plan: Plan = PLAN, key: SigningKey = COORDINATOR, kind: str = PLAN_PAYLOAD
) -> bytes:
    return seal(plan.to_json(), kind, [key])


def establish(*rosters: bytes, plan: bytes | None = None, pinned: SigningKey = ROOT) -> Trust:
    return establish_trust(pinned.public.keyid, rosters, plan or signed_plan())


def test_honest_chain_gives_its_newest_roster_and_plan():
    trust = establish(signed(R1), signed(R2), signed(R3))
    assert (trust.roster.version, trust.plan) == (3, PLAN)
    assert trust.roster_reference == RosterReference(version=3, sha256=sha256_hex(R3))


def test_trust_knows_every_roster_of_the_chain_and_no_other():
    trust = establish(signed(R1), signed(R2))
    assert trust.knows(RosterReference(version=1, sha256=sha256_hex(R1)))
    assert trust.knows(RosterReference(version=2, sha256=sha256_hex(R2)))
    assert not trust.knows(RosterReference(version=2, sha256=sha256_hex(R1)))
    assert not trust.knows(RosterReference(version=3, sha256=sha256_hex(R3)))


def test_roster_of_another_root_than_the_pinned_one_is_refused():
    with pytest.raises(
        RosterError,
        match=f"roster 1 is of the root key {ROOT.public.keyid}, pinned is {MALLORY.public.keyid}",
    ):
        establish(signed(R1), pinned=MALLORY)


def test_roster_naming_the_pinned_root_but_signed_by_another_key_is_refused():
    with pytest.raises(UnknownSignerError, match="roster 1 is signed by"):
        establish(signed(R1, MALLORY))


def test_roster_signed_by_the_coordinator_key_is_refused():
    with pytest.raises(UnknownSignerError, match="roster 2 is signed by"):
        establish(signed(R1), signed(R2, COORDINATOR))


def test_roster_that_hands_over_to_another_root_is_refused():
    other = roster(2, R1, root_key=MALLORY.public.hex)
    with pytest.raises(RosterError, match="roster 2 is of the root key"):
        establish(signed(R1), signed(other, MALLORY))


def test_roster_with_a_weak_root_key_is_refused_though_it_was_pinned():
    weak = b"\1" + bytes(31)
    payload = R1.replace(ROOT.public.hex.encode(), weak.hex().encode())
    with pytest.raises(WeakKeyError, match="0100000000000000"):
        establish_trust(f"ed25519:{sha256_hex(weak)}", [signed(payload)], signed_plan())


def test_roster_with_a_weak_coordinator_key_is_refused():
    weak = R1.replace(COORDINATOR.public.hex.encode(), b"01" + b"00" * 31)
    with pytest.raises(WeakKeyError, match="0100000000000000"):
        establish(signed(weak))


def test_no_roster_is_refused():
    with pytest.raises(RosterError, match="there is no roster"):
        establish()


CHAIN = {
    "gap-at-the-start": ([R2, R3], "roster 1 says it is version 2"),
    "gap-in-the-middle": ([R1, R3], "roster 2 says it is version 3"),
    "reordered": ([R1, R3, R2], "roster 2 says it is version 3"),
    "first-twice": ([R1, R1], "roster 2 says it is version 1"),
    "last-twice": ([R1, R2, R2], "roster 3 says it is version 2"),
    "rewritten-first": (
        [roster(1, None, expires_at=EXPIRES + timedelta(days=1)), R2],
        "roster 2 says it is version 2 after " + sha256_hex(R1)[:16],
    ),
    "rewritten-middle": (
        [R1, roster(2, R1, expires_at=EXPIRES + timedelta(days=1)), R3],
        "roster 3 says it is version 3 after " + sha256_hex(R2)[:16],
    ),
    "other-federation": ([R1, roster(2, R1, federation="other")], "roster 2 is of federation"),
}


@pytest.mark.parametrize(("payloads", "problem"), CHAIN.values(), ids=CHAIN)
def test_broken_chain_of_rosters_is_refused(payloads: list[bytes], problem: str):
    with pytest.raises(RosterError, match=problem):
        establish(*(signed(payload) for payload in payloads))


def test_roster_edited_after_signing_is_refused():
    envelope = json.loads(signed(R1))
    edited = R1.replace(b"hospital-a", b"hospital-m")
    envelope["payload"] = base64.b64encode(edited).decode()
    with pytest.raises(SignatureError, match="roster 1 carries a signature"):
        establish(canonical_json(envelope))


def test_plan_signed_by_another_key_is_refused():
    with pytest.raises(UnknownSignerError, match="the plan is signed by"):
        establish(signed(R1), plan=signed_plan(key=MALLORY))


def test_plan_signed_by_the_root_key_is_refused():
    with pytest.raises(UnknownSignerError, match="the plan is signed by"):
        establish(signed(R1), plan=signed_plan(key=ROOT))


def test_plan_signed_by_a_site_is_refused():
    with pytest.raises(UnknownSignerError, match="the plan is signed by"):
        establish(signed(R1), plan=signed_plan(key=SITE))


def test_plan_signed_by_a_coordinator_key_that_was_replaced_is_refused():
    moved = roster(2, R1, coordinator_key=LATER.public.hex)
    with pytest.raises(UnknownSignerError, match="the plan is signed by"):
        establish(signed(R1), signed(moved))


def test_plan_signed_by_the_coordinator_key_of_the_newest_roster_is_believed():
    moved = roster(2, R1, coordinator_key=LATER.public.hex)
    trust = establish(signed(R1), signed(moved), plan=signed_plan(key=LATER))
    assert trust.coordinator_key == LATER.public


def test_plan_of_another_federation_is_refused():
    other = a_plan(federation='federation = "other"')
    with pytest.raises(PlanMismatchError, match="the plan is of federation `other`, the roster of"):
        establish(signed(R1), plan=signed_plan(other))


def test_roster_offered_as_plan_is_refused():
    with pytest.raises(MalformedError, match=r"the plan is of type `application/vnd\.ddm-fed\.ros"):
        establish(signed(R1), plan=signed(R1, COORDINATOR))


def test_plan_offered_as_roster_is_refused():
    with pytest.raises(MalformedError, match=r"roster 1 is of type `application/vnd\.ddm-fed\.pl"):
        establish(signed_plan(key=ROOT))


def test_roster_payload_signed_as_a_plan_is_refused():
    with pytest.raises(MalformedError, match="the plan is not a valid Plan"):
        establish(signed(R1), plan=signed(R1, COORDINATOR, PLAN_PAYLOAD))


def test_plan_with_unknown_field_is_refused_though_signed():
    payload = canonical_json({**json.loads(PLAN.to_json()), "backdoor": 1})
    with pytest.raises(MalformedError, match="the plan is not a valid Plan: `backdoor`: unknown"):
        establish(signed(R1), plan=seal(payload, PLAN_PAYLOAD, [COORDINATOR]))


# In force


def test_plan_and_roster_are_in_force_until_they_expire():
    require_in_force(establish(signed(R1)), EXPIRES - timedelta(seconds=1))


def test_expired_roster_is_refused():
    with pytest.raises(ExpiredError, match="roster 2 expired on 2027-11-23 00:00 UTC"):
        require_in_force(establish(signed(R1), signed(R2)), EXPIRES)


def test_expired_plan_is_refused():
    late = roster(1, None, expires_at=datetime(2040, 1, 1, tzinfo=UTC))
    with pytest.raises(ExpiredError, match="the plan expired on 2036-01-01 00:00 UTC"):
        require_in_force(establish(signed(late)), datetime(2036, 1, 1, tzinfo=UTC))


def test_expired_earlier_roster_does_not_matter():
    old = roster(1, None, expires_at=ISSUED + timedelta(days=1))
    require_in_force(establish(signed(old), signed(roster(2, old))), ISSUED + timedelta(days=2))


# The published folder, and how it comes to be


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Federation:
    """A federation of one site, then two: two rosters. Never changed."""
    fed = create_federation(tmp_path_factory.mktemp("small"), sites=("hospital-a",))
    join(fed, "hospital-b")
    members.publish(fed.home, PLAN)
    return fed


@pytest.fixture
def fed(small: Federation, scratch: Path) -> Federation:
    return small.copy(scratch, "consortium", "hospital-a")


def join(fed: Federation, name: str, **changed: object) -> None:
    settings = {"name": name, "root_keyid": fed.root, "max_epsilon": Decimal(10)} | changed
    site = SiteFolder.create(fed.path / f"{name}-new", SiteSettings(**settings))
    members.enroll(fed.home, site.path / "enrolment.dsse.json", expected_keyid=None)


def test_published_folder_is_read_by_anyone_who_has_the_fingerprint(
    fed: Federation, tmp_path: Path
):
    shutil.copytree(fed.home.published, tmp_path / "elsewhere")
    trust = read_published(tmp_path / "elsewhere", fed.root)
    assert [site.name for site in trust.roster.sites] == ["hospital-a", "hospital-b"]


def test_published_folder_without_plan_is_refused_by_name(fed: Federation):
    (fed.home.published / "plan.dsse.json").unlink()
    with pytest.raises(StateError, match=r"there is no plan\.dsse\.json in .*published"):
        read_published(fed.home.published, fed.root)


def test_published_folder_without_first_roster_is_refused(fed: Federation):
    (fed.home.published / "roster-0001.dsse.json").unlink()
    with pytest.raises(RosterError, match="roster 1 says it is version 2"):
        read_published(fed.home.published, fed.root)


def test_published_folder_without_rosters_is_refused(fed: Federation):
    for path in fed.home.published.glob("roster-*"):
        path.unlink()
    with pytest.raises(RosterError, match="there is no roster"):
        read_published(fed.home.published, fed.root)


def test_published_rosters_that_swapped_names_are_refused(fed: Federation):
    one, two = (fed.home.published / f"roster-000{index}.dsse.json" for index in (1, 2))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(RosterError, match="roster 1 says it is version 2"):
        read_published(fed.home.published, fed.root)


def test_publish_with_the_same_members_keeps_the_roster(fed: Federation):
    published = members.publish(fed.home, a_plan(steps="steps = 4"))
    assert (published.roster.version, published.roster_is_new) == (2, False)


def test_publish_after_the_roster_expired_issues_a_new_one(fed: Federation):
    past = now() - timedelta(days=1)

    def expire(fields: Json) -> None:
        fields["expires_at"] = f"{past:%Y-%m-%dT%H:%M:%SZ}"

    last = fed.home.published / "roster-0002.dsse.json"
    forge(last, expire, fed.home.root_key(), kind=ROSTER_PAYLOAD)
    members.publish(fed.home, PLAN)
    require_in_force(fed.trust, now())


def test_publish_refuses_a_plan_of_another_federation(fed: Federation):
    with pytest.raises(PlanMismatchError, match="the plan is of federation `other`"):
        members.publish(fed.home, a_plan(federation='federation = "other"'))


# Enrolment


def request_of(fed: Federation) -> Path:
    return fed.path / "hospital-a" / "enrolment.dsse.json"


def enroll(fed: Federation, expected_keyid: str | None = None):
    return members.enroll(fed.home, request_of(fed), expected_keyid=expected_keyid)


def test_enrolment_twice_is_idempotent(fed: Federation):
    before = payload_of(fed.home.enrolled / "hospital-a.dsse.json")
    assert enroll(fed).site == "hospital-a"
    assert payload_of(fed.home.enrolled / "hospital-a.dsse.json") == before


def test_enrolment_with_another_key_than_read_out_is_refused(fed: Federation):
    with pytest.raises(PlanMismatchError, match="the request of `hospital-a` brings the key"):
        enroll(fed, expected_keyid=MALLORY.public.keyid)


def test_enrolment_for_another_coordinator_is_refused(fed: Federation):
    with pytest.raises(PlanMismatchError, match="`hospital-c` wants to join the coordinator"):
        join(fed, "hospital-c", root_keyid=MALLORY.public.keyid)


def test_enrolment_under_a_taken_name_is_refused(fed: Federation):
    with pytest.raises(StateError, match="the name of `hospital-a` is enrolled already"):
        join(fed, "hospital-a")


def forge_request(fed: Federation, edit: Callable[[Json], None], *keys: SigningKey) -> None:
    forge(request_of(fed), edit, *keys, kind=ENROLMENT_PAYLOAD)


def test_enrolment_of_a_taken_key_under_a_new_name_is_refused(fed: Federation):
    forge_request(fed, lambda fields: fields.update(site="hospital-z"), fed.key("hospital-a"))
    with pytest.raises(StateError, match="the key of `hospital-z` is enrolled already, as `hosp"):
        enroll(fed)


def test_enrolment_of_a_key_its_sender_does_not_hold_is_refused(fed: Federation):
    stolen = fed.home.key().public.hex
    forge_request(fed, lambda fields: fields.update(public_key=stolen), fed.key("hospital-a"))
    with pytest.raises(UnknownSignerError, match=r"the enrolment request enrolment\.dsse\.json"):
        enroll(fed)


def test_enrolment_of_a_weak_key_is_refused(fed: Federation):
    forge_request(fed, lambda fields: fields.update(public_key="01" + "00" * 31), MALLORY)
    with pytest.raises(WeakKeyError, match="0100000000000000"):
        enroll(fed)
