"""From one fingerprint to every key: each broken link of the chain is refused by name."""

import base64
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from federation import Federation, Json, a_plan, create_federation, forge

from coordinator.roster import changes, proposals
from ddm_fed.errors import (
    CountersignatureError,
    ExpiredError,
    MalformedError,
    PlanMismatchError,
    RosterError,
    SignatureError,
    StateError,
    UnknownSignerError,
    WeakKeyError,
)
from ddm_fed.records import Plan, RangedKey, RosterReference, canonical_json, now, sha256_hex
from ddm_fed.signing import (
    ENROLMENT_PAYLOAD,
    PLAN_PAYLOAD,
    ROSTER_PAYLOAD,
    SigningKey,
    seal,
)
from ddm_fed.trust import (
    RosterChain,
    Trust,
    establish_chain,
    establish_trust,
    pin_of,
    require_in_force,
)
from ddm_fed.trust.published import read_published
from sites.workspace import SiteFolder, SiteSettings

ROOT, ROOT_B, ROOT_C, ROOT_D, COORDINATOR, LATER, SITE, OLD_SITE, OTHER_SITE, MALLORY = (
    SigningKey.from_seed(bytes([index] * 32)) for index in range(1, 11)
)
ISSUED = datetime(2026, 11, 23, tzinfo=UTC)
EXPIRES = "2027-11-23T00:00:00Z"
ONE_DAY_LATER = "2027-11-24T00:00:00Z"


def ranged(key: SigningKey, start: int = 0, **changed: object) -> Json:
    """Returns the entry of a key that signs from log size `start` on."""
    return {"public_key": key.public.hex, "from_log_size": start} | changed


def policy(start: int, *require: str) -> Json:
    return {"require": require or ("site",), "from_log_size": start}


def site(name: str, *keys: Json, **changed: object) -> Json:
    fields = {
        "name": name,
        "enrolled_at": "2026-11-23T00:00:00Z",
        "policies": [policy(0)],
        "keys": [{"role": "site"} | key for key in keys],
    }
    return fields | changed


def root_role(threshold: int, *keys: SigningKey) -> Json:
    return {"keys": [key.public.hex for key in keys], "threshold": threshold}


OLD_KEY = ranged(OLD_SITE, 1, revoked_at_log_size=6, compromised_since_log_size=4)
SITE_KEY = ranged(SITE, 2)
MEMBER = site("hospital-a", OLD_KEY, SITE_KEY)


def first(**changed: object) -> bytes:
    """Returns the payload of a roster 1."""
    fields = {
        "format": 1,
        "federation": "test",
        "version": 1,
        "previous_sha256": None,
        "issued_at": "2026-11-23T00:00:00Z",
        "expires_at": EXPIRES,
        "root": root_role(1, ROOT),
        "coordinator": [ranged(COORDINATOR)],
        "sites": [MEMBER],
    }
    return canonical_json(fields | changed)


def after(previous: bytes, **changed: object) -> bytes:
    """Returns the payload of the roster that follows `previous`, with changes."""
    fields = json.loads(previous)
    fields |= {"version": fields["version"] + 1, "previous_sha256": sha256_hex(previous)}
    return canonical_json(fields | changed)


R1 = first()
R2 = after(R1, sites=[MEMBER, site("hospital-b", ranged(OTHER_SITE))])
R3 = after(R2)
R4 = after(R3)
PLAN = a_plan()


def signed(payload: bytes, *keys: SigningKey, kind: str = ROSTER_PAYLOAD) -> bytes:
    return seal(payload, kind, keys or [ROOT])


def signed_plan(
    plan: Plan = PLAN, key: SigningKey = COORDINATOR, kind: str = PLAN_PAYLOAD
) -> bytes:
    return seal(plan.to_json(), kind, [key])


def establish(*envelopes: bytes, plan: bytes | None = None, root: str = pin_of(R1)) -> Trust:
    return establish_trust(root, envelopes, plan or signed_plan())


def follow(start: bytes, *envelopes: bytes, by: tuple[SigningKey, ...] = (ROOT,)) -> RosterChain:
    """Returns the chain from the pinned payload `start`, signed `by`, through `envelopes`."""
    return establish_chain(pin_of(start), [signed(start, *by), *envelopes])


def test_honest_chain_gives_its_newest_roster_and_plan():
    trust = establish(signed(R1), signed(R2), signed(R3))
    assert (trust.roster.version, trust.plan) == (3, PLAN)
    assert trust.plan_sha256 == sha256_hex(PLAN.to_json())
    assert trust.chain.reference == RosterReference(version=3, sha256=sha256_hex(R3))
    assert trust.root == pin_of(R1) == f"sha256:{sha256_hex(R1)}"
    assert trust.chain.log_origin == f"ddm-fed/test/{sha256_hex(R1)}"


def test_chain_knows_every_roster_it_holds_and_no_other():
    chain = follow(R1, signed(R2))
    assert chain.knows(RosterReference(version=1, sha256=sha256_hex(R1)))
    assert chain.knows(RosterReference(version=2, sha256=sha256_hex(R2)))
    assert not chain.knows(RosterReference(version=2, sha256=sha256_hex(R1)))
    assert not chain.knows(RosterReference(version=3, sha256=sha256_hex(R3)))


# The pin


def test_roster_of_another_digest_than_the_pinned_one_is_refused():
    pinned = pin_of(first(root=root_role(1, MALLORY)))
    with pytest.raises(
        RosterError, match=f"roster 1 has the digest {pin_of(R1)}, pinned is {pinned}"
    ):
        establish(signed(R1), root=pinned)


def test_first_roster_rewritten_by_its_own_root_key_is_refused():
    with pytest.raises(RosterError, match="roster 1 has the digest"):
        establish(signed(first(expires_at=ONE_DAY_LATER)))


def test_second_roster_pinned_in_place_of_the_first_is_refused():
    with pytest.raises(RosterError, match="roster 1 says it is version 2"):
        establish(signed(R2), root=pin_of(R2))


def test_pinned_roster_signed_by_another_key_is_refused():
    with pytest.raises(UnknownSignerError, match="roster 1 is signed by"):
        establish(signed(R1, MALLORY))


@pytest.mark.parametrize("key", [COORDINATOR, SITE, MALLORY], ids=["coordinator", "site", "none"])
def test_roster_signed_by_anything_but_a_root_key_is_refused(key: SigningKey):
    with pytest.raises(UnknownSignerError, match="roster 2 is signed by"):
        follow(R1, signed(R2, key))


def test_roster_with_a_weak_root_key_is_refused_though_it_was_pinned():
    weak = first(root={"keys": ["01" + "00" * 31], "threshold": 1})
    with pytest.raises(WeakKeyError, match="0100000000000000"):
        follow(weak)


def test_roster_with_a_weak_coordinator_key_is_refused():
    weak = first(coordinator=[{"public_key": "01" + "00" * 31, "from_log_size": 0}])
    with pytest.raises(WeakKeyError, match="0100000000000000"):
        establish(signed(weak), root=pin_of(weak))


def test_no_roster_is_refused():
    with pytest.raises(RosterError, match="there is no roster"):
        establish()


def test_roster_edited_after_signing_is_refused():
    envelope = json.loads(signed(R2))
    edited = R2.replace(b"hospital-b", b"hospital-m")
    envelope["payload"] = base64.b64encode(edited).decode()
    with pytest.raises(SignatureError, match="roster 2 carries a signature"):
        follow(R1, canonical_json(envelope))


# Version and predecessor


CHAIN = {
    "gap-in-the-middle": ([R1, R3], "roster 2 says it is version 3"),
    "gap-at-the-end": ([R1, R2, R4], "roster 3 says it is version 4"),
    "reordered": ([R1, R3, R2], "roster 2 says it is version 3"),
    "first-twice": ([R1, R1], "roster 2 says it is version 1"),
    "last-twice": ([R1, R2, R2], "roster 3 says it is version 2"),
    "back-to-an-earlier": ([R1, R2, R3, R2], "roster 4 says it is version 2"),
    "version-jumps": ([R1, after(R1, version=3)], "roster 2 says it is version 3"),
    "version-stays": ([R1, R2, after(R2, version=2)], "roster 3 says it is version 2"),
    "digest-of-another": (
        [R1, after(R1, previous_sha256="0" * 64)],
        "roster 2 says it is version 2 after 0000000000000000, expected version 2 after "
        + sha256_hex(R1)[:16],
    ),
    "digest-of-one-too-old": (
        [R1, R2, after(R2, previous_sha256=sha256_hex(R1))],
        "roster 3 says it is version 3 after " + sha256_hex(R1)[:16],
    ),
    "rewritten-middle": (
        [R1, after(R1, expires_at=ONE_DAY_LATER), R3],
        "roster 3 says it is version 3 after " + sha256_hex(R2)[:16],
    ),
    "other-federation": (
        [R1, after(R1, federation="other")],
        "roster 2 is of federation `other`, the one before of `test`",
    ),
}


@pytest.mark.parametrize(("payloads", "problem"), CHAIN.values(), ids=CHAIN)
def test_broken_chain_of_rosters_is_refused(payloads: list[bytes], problem: str):
    with pytest.raises(RosterError, match=problem):
        establish(*(signed(payload) for payload in payloads))


# Root keys: enough of the old, and enough of the new


OF_THREE = first(root=root_role(2, ROOT, ROOT_B, ROOT_C))
NEXT = after(OF_THREE)
TO_D = after(OF_THREE, root=root_role(2, ROOT_B, ROOT_C, ROOT_D))
HANDED_OVER = after(R1, root=root_role(1, ROOT_B))


@pytest.mark.parametrize(
    "by", [(ROOT, ROOT_B), (ROOT_C, ROOT), (ROOT, ROOT_B, ROOT_C), (ROOT, MALLORY, ROOT_C)]
)
def test_first_roster_with_enough_signatures_is_believed(by: tuple[SigningKey, ...]):
    assert follow(OF_THREE, by=by).current.version == 1


@pytest.mark.parametrize(
    "by",
    [(ROOT,), (ROOT, MALLORY), (ROOT, COORDINATOR), (ROOT, ROOT)],
    ids=["one", "stranger", "coordinator", "twice"],
)
def test_first_roster_one_signature_short_is_refused(by: tuple[SigningKey, ...]):
    with pytest.raises(
        RosterError, match="roster 1 is signed by 1 of the 2 root keys that roster 1 asks for"
    ):
        follow(OF_THREE, by=by)


def test_one_signature_under_two_key_ids_counts_once():
    envelope = json.loads(signed(OF_THREE, ROOT, ROOT))
    envelope["signatures"][1]["keyid"] = ROOT_B.public.keyid
    with pytest.raises(RosterError, match="signed by 1 of the 2 root keys"):
        establish_chain(pin_of(OF_THREE), [canonical_json(envelope)])


def test_root_key_listed_twice_is_refused():
    twice = first(root=root_role(2, ROOT, ROOT))
    with pytest.raises(MalformedError, match="a root key is listed twice"):
        follow(twice, by=(ROOT, ROOT))


def test_threshold_that_cannot_be_met_is_refused():
    with pytest.raises(MalformedError, match="3 of 2 root keys can never sign"):
        follow(first(root=root_role(3, ROOT, ROOT_B)), by=(ROOT, ROOT_B))


def test_threshold_of_nothing_is_refused():
    with pytest.raises(MalformedError, match="greater than or equal to 1"):
        follow(first(root=root_role(0, ROOT)))


@pytest.mark.parametrize(
    ("following", "by"),
    [
        (NEXT, (ROOT, ROOT_B)),
        (NEXT, (ROOT_B, ROOT_C)),
        (TO_D, (ROOT_B, ROOT_C)),
        (TO_D, (ROOT, ROOT_B, ROOT_D)),
    ],
)
def test_roster_with_enough_old_and_new_signatures_is_believed(
    following: bytes, by: tuple[SigningKey, ...]
):
    chain = follow(OF_THREE, signed(following, *by), by=(ROOT, ROOT_B))
    assert chain.current.version == 2


SHORT = {
    "one-of-two": (OF_THREE, NEXT, (ROOT,), "1 of the 2 root keys that roster 1"),
    "the-same-twice": (OF_THREE, NEXT, (ROOT, ROOT), "1 of the 2 root keys that roster 1"),
    "old-short": (OF_THREE, TO_D, (ROOT_B, ROOT_D), "1 of the 2 root keys that roster 1"),
    "new-short": (OF_THREE, TO_D, (ROOT, ROOT_B), "1 of the 2 root keys that roster 2"),
    "threshold-lowered-by-one": (
        OF_THREE,
        after(OF_THREE, root=root_role(1, ROOT, ROOT_B, ROOT_C)),
        (ROOT,),
        "1 of the 2 root keys that roster 1",
    ),
    "threshold-raised-by-one": (
        R1,
        after(R1, root=root_role(2, ROOT, ROOT_B)),
        (ROOT,),
        "1 of the 2 root keys that roster 2",
    ),
    "handed-over-by-old-alone": (R1, HANDED_OVER, (ROOT,), "0 of the 1 root keys that roster 2"),
    "taken-over-by-new-alone": (R1, HANDED_OVER, (ROOT_B,), "0 of the 1 root keys that roster 1"),
}


@pytest.mark.parametrize(("start", "following", "by", "problem"), SHORT.values(), ids=SHORT)
def test_roster_without_enough_old_and_new_signatures_is_refused(
    start: bytes, following: bytes, by: tuple[SigningKey, ...], problem: str
):
    with pytest.raises(RosterError, match=f"roster 2 is signed by {problem} asks for"):
        follow(start, signed(following, *by), by=(ROOT, ROOT_B))


def test_root_keys_are_handed_over_by_old_and_new_together():
    third = after(HANDED_OVER)
    chain = follow(R1, signed(HANDED_OVER, ROOT, ROOT_B), signed(third, ROOT_B))
    assert chain.current.root.keys == (ROOT_B.public.hex,)
    assert chain.root == pin_of(R1)


def test_root_key_that_was_handed_over_signs_nothing_more():
    with pytest.raises(UnknownSignerError, match="roster 3 is signed by"):
        follow(R1, signed(HANDED_OVER, ROOT, ROOT_B), signed(after(HANDED_OVER), ROOT))


# What was signed stays decidable


def keys_of(*keys: Json) -> Json:
    return {"sites": [site("hospital-a", *keys)]}


def old_key(**changed: object) -> Json:
    return keys_of(OLD_KEY | changed, SITE_KEY)


GONE = ranged(COORDINATOR, revoked_at_log_size=7, compromised_since_log_size=5)
MOVED = first(coordinator=[GONE, ranged(LATER, 7)])
POLICIES = [policy(0), policy(5, "site", "dpo")]
OFFICER = ranged(OTHER_SITE, role="dpo")
TWO_POLICIES = first(sites=[site("hospital-a", SITE_KEY, OFFICER, policies=POLICIES)])


def policies_of(*policies: Json) -> Json:
    return {"sites": [site("hospital-a", SITE_KEY, OFFICER, policies=policies)]}


def coordinator_of(**changed: object) -> Json:
    return {"coordinator": [GONE | changed, ranged(LATER, 7)]}


RANGE = "changes the range of the key"
REWRITES = "rewrites the past of `hospital-a`"
HISTORY = {
    "site-dropped": (R1, {"sites": []}, "drops the site `hospital-a`"),
    "site-renamed": (
        R1,
        {"sites": [MEMBER | {"name": "hospital-z"}]},
        "drops the site `hospital-a`",
    ),
    "key-dropped": (
        R1,
        keys_of(SITE_KEY),
        f"drops the key {OLD_SITE.public.hex[:16]}… of `hospital-a`",
    ),
    "key-replaced": (
        R1,
        keys_of(OLD_KEY, ranged(MALLORY, 2)),
        f"drops the key {SITE.public.hex[:16]}… of `hospital-a`",
    ),
    "key-moved-to-another-site": (
        R1,
        {"sites": [site("hospital-a", OLD_KEY, ranged(MALLORY)), site("hospital-b", SITE_KEY)]},
        f"drops the key {SITE.public.hex[:16]}… of `hospital-a`",
    ),
    "coordinator-key-dropped": (
        R1,
        {"coordinator": [ranged(LATER)]},
        f"drops the key {COORDINATOR.public.hex[:16]}… of the coordinator",
    ),
    "revoked-coordinator-key-dropped": (
        MOVED,
        {"coordinator": [ranged(LATER, 7)]},
        f"drops the key {COORDINATOR.public.hex[:16]}… of the coordinator",
    ),
    "revocation-taken-back": (
        R1,
        old_key(revoked_at_log_size=None, compromised_since_log_size=None),
        f"{RANGE} {OLD_SITE.public.hex[:16]}… of `hospital-a`",
    ),
    "revocation-put-off": (R1, old_key(revoked_at_log_size=7), RANGE),
    "compromise-taken-back": (R1, old_key(compromised_since_log_size=None), RANGE),
    "compromise-put-off": (R1, old_key(compromised_since_log_size=5), RANGE),
    "begins-earlier": (R1, old_key(from_log_size=0), RANGE),
    "begins-later": (R1, old_key(from_log_size=2), RANGE),
    "role-changed": (R1, old_key(role="dpo"), RANGE),
    "coordinator-revocation-taken-back": (
        MOVED,
        {
            "coordinator": [ranged(COORDINATOR), ranged(LATER, 7, revoked_at_log_size=8)],
        },
        f"{RANGE} {COORDINATOR.public.hex[:16]}… of the coordinator",
    ),
    "coordinator-revocation-put-off": (MOVED, coordinator_of(revoked_at_log_size=8), RANGE),
    "coordinator-compromise-taken-back": (
        MOVED,
        coordinator_of(compromised_since_log_size=None),
        RANGE,
    ),
    "coordinator-begins-later": (MOVED, coordinator_of(from_log_size=1), RANGE),
    "policy-dropped": (TWO_POLICIES, policies_of(policy(0)), REWRITES),
    "first-policy-dropped": (TWO_POLICIES, policies_of(POLICIES[1]), REWRITES),
    "policy-weakened": (TWO_POLICIES, policies_of(policy(0), policy(5)), REWRITES),
    "policy-put-off": (TWO_POLICIES, policies_of(policy(0), policy(6, "site", "dpo")), REWRITES),
    "policy-inserted": (TWO_POLICIES, policies_of(policy(0), policy(3), POLICIES[1]), REWRITES),
    "enrolled-at-another-time": (
        R1,
        {"sites": [MEMBER | {"enrolled_at": "2026-11-22T00:00:00Z"}]},
        REWRITES,
    ),
}


@pytest.mark.parametrize(("start", "changed", "problem"), HISTORY.values(), ids=HISTORY)
def test_roster_that_changes_who_could_sign_is_refused_though_root_signed_it(
    start: bytes, changed: Json, problem: str
):
    with pytest.raises(RosterError, match=f"roster 2 {problem}"):
        follow(start, signed(after(start, **changed)))


ALLOWED = {
    "nothing": (R1, {}),
    "key-added": (R1, keys_of(OLD_KEY, SITE_KEY, ranged(MALLORY, 8))),
    "keys-reordered": (R1, keys_of(SITE_KEY, OLD_KEY)),
    "key-revoked": (R1, keys_of(OLD_KEY, SITE_KEY | {"revoked_at_log_size": 9})),
    "key-found-to-be-stolen": (
        R1,
        keys_of(OLD_KEY, SITE_KEY | {"revoked_at_log_size": 9, "compromised_since_log_size": 3}),
    ),
    "revocation-reaches-further-back": (R1, old_key(revoked_at_log_size=5)),
    "compromise-reaches-further-back": (R1, old_key(compromised_since_log_size=3)),
    "coordinator-key-replaced": (
        R1,
        {"coordinator": [ranged(COORDINATOR, revoked_at_log_size=9), ranged(LATER, 9)]},
    ),
    "certificates-replaced": (
        first(sites=[MEMBER | {"certificates": ["AAAA"]}], server_certificates=["AAAB"]),
        {"sites": [MEMBER | {"certificates": ["AAAC"]}], "server_certificates": ["AAAD"]},
    ),
    "certificates-dropped": (
        first(sites=[MEMBER | {"certificates": ["AAAA"]}], server_certificates=["AAAB"]),
        {"sites": [MEMBER], "server_certificates": []},
    ),
    "policy-added": (TWO_POLICIES, policies_of(*POLICIES, policy(9))),
}


@pytest.mark.parametrize(("start", "changed"), ALLOWED.values(), ids=ALLOWED)
def test_roster_that_only_adds_keys_and_revocations_is_believed(start: bytes, changed: Json):
    assert follow(start, signed(after(start, **changed))).current.version == 2


COORDINATORS = {
    "two-active": [ranged(COORDINATOR), ranged(LATER)],
    "none-active": [ranged(COORDINATOR, revoked_at_log_size=3)],
}


@pytest.mark.parametrize("keys", COORDINATORS.values(), ids=COORDINATORS)
def test_roster_whose_coordinator_has_not_exactly_one_active_key_is_refused(keys: list[Json]):
    with pytest.raises(MalformedError, match=r"roster 2 .*exactly one coordinator key is active"):
        follow(R1, signed(after(R1, coordinator=keys)))


# Ranges of keys


@pytest.mark.parametrize(
    ("position", "may_sign", "was_active"),
    [
        (1, False, False),
        (2, True, True),
        (3, True, True),
        (4, False, True),
        (5, False, True),
        (6, False, False),
        (7, False, False),
        (None, False, None),
    ],
)
def test_key_signs_from_its_beginning_to_before_its_compromise_and_revocation(
    position: int | None, may_sign: bool, was_active: bool | None
):
    key = RangedKey(
        public_key=SITE.public.hex,
        from_log_size=2,
        revoked_at_log_size=6,
        compromised_since_log_size=4,
    )
    assert key.may_sign_at(position) is may_sign
    if position is not None:
        assert key.was_active_at(position) is was_active


@pytest.mark.parametrize(("position", "may_sign"), [(5, True), (6, False), (7, False)])
def test_key_that_was_only_revoked_signed_everything_before(position: int, may_sign: bool):
    key = RangedKey(public_key=SITE.public.hex, from_log_size=0, revoked_at_log_size=6)
    assert key.may_sign_at(position) is may_sign


def test_active_key_signs_now_and_from_its_beginning_on():
    key = RangedKey(public_key=SITE.public.hex, from_log_size=2)
    assert [key.may_sign_at(at) for at in (1, 2, 2**53 - 1, None)] == [False, True, True, True]


@pytest.mark.parametrize(
    ("position", "may_sign", "signed_leaves"),
    [
        (4, [COORDINATOR], [COORDINATOR]),
        (5, [], [COORDINATOR]),
        (6, [], [COORDINATOR]),
        (7, [LATER], [LATER]),
        (8, [LATER], [LATER]),
    ],
)
def test_position_in_the_log_decides_which_coordinator_key_signs(
    position: int, may_sign: list[SigningKey], signed_leaves: list[SigningKey]
):
    chain = follow(MOVED)
    assert chain.coordinator_keys(position) == [key.public for key in may_sign]
    assert chain.log_keys(position) == [key.public for key in signed_leaves]
    assert chain.coordinator_keys(None) == [LATER.public]
    assert chain.all_coordinator_keys() == [COORDINATOR.public, LATER.public]


@pytest.mark.parametrize(
    ("position", "require"),
    [(0, ("site",)), (4, ("site",)), (5, ("site", "dpo")), (None, ("site", "dpo"))],
)
def test_position_in_the_log_decides_whose_signatures_a_site_needs(
    position: int | None, require: tuple[str, ...]
):
    assert follow(TWO_POLICIES).current.site("hospital-a").require_at(position) == require


# The plan


@pytest.mark.parametrize("key", [MALLORY, ROOT, SITE], ids=["stranger", "root", "site"])
def test_plan_signed_by_another_key_than_the_coordinators_is_refused(key: SigningKey):
    with pytest.raises(UnknownSignerError, match="the plan is signed by"):
        establish(signed(R1), plan=signed_plan(key=key))


REPLACED = after(R1, coordinator=[ranged(COORDINATOR, revoked_at_log_size=9), ranged(LATER, 9)])


def test_plan_signed_by_a_coordinator_key_that_was_revoked_is_refused():
    with pytest.raises(UnknownSignerError, match="the plan is signed by"):
        establish(signed(R1), signed(REPLACED))


def test_plan_signed_by_the_coordinator_key_of_the_newest_roster_is_believed():
    trust = establish(signed(R1), signed(REPLACED), plan=signed_plan(key=LATER))
    assert trust.roster.coordinator_key == LATER.public.hex


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
        establish(signed(R1), plan=signed(R1, COORDINATOR, kind=PLAN_PAYLOAD))


def test_plan_with_unknown_field_is_refused_though_signed():
    payload = canonical_json({**json.loads(PLAN.to_json()), "backdoor": 1})
    with pytest.raises(MalformedError, match="the plan is not a valid Plan: `backdoor`: unknown"):
        establish(signed(R1), plan=seal(payload, PLAN_PAYLOAD, [COORDINATOR]))


# In force


END = datetime(2027, 11, 23, tzinfo=UTC)


def test_plan_and_roster_are_in_force_until_they_expire():
    require_in_force(establish(signed(R1)), END - timedelta(seconds=1))


def test_expired_roster_is_refused():
    with pytest.raises(ExpiredError, match="roster 2 expired on 2027-11-23 00:00 UTC"):
        require_in_force(establish(signed(R1), signed(R2)), END)


def test_expired_plan_is_refused():
    late = first(expires_at="2040-01-01T00:00:00Z")
    with pytest.raises(ExpiredError, match="the plan expired on 2036-01-01 00:00 UTC"):
        require_in_force(
            establish(signed(late), root=pin_of(late)), datetime(2036, 1, 1, tzinfo=UTC)
        )


def test_expired_earlier_roster_does_not_matter():
    old = first(expires_at="2026-11-24T00:00:00Z")
    trust = establish(signed(old), signed(after(old, expires_at=EXPIRES)), root=pin_of(old))
    require_in_force(trust, ISSUED + timedelta(days=2))


def test_later_roster_that_expires_earlier_is_the_one_that_counts():
    short = after(R1, expires_at="2026-11-24T00:00:00Z")
    with pytest.raises(ExpiredError, match="roster 2 expired on 2026-11-24 00:00 UTC"):
        require_in_force(establish(signed(R1), signed(short)), ISSUED + timedelta(days=2))


# The published folder, and how it comes to be


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Federation:
    """A federation of nobody, then of one site, then of two: three rosters. Never changed."""
    fed = create_federation(tmp_path_factory.mktemp("small"), sites=("hospital-a",))
    join(fed, "hospital-b")
    return fed


@pytest.fixture
def fed(small: Federation, scratch: Path) -> Federation:
    return small.copy(scratch, "consortium", "hospital-a")


def join(fed: Federation, name: str, **changed: object) -> None:
    settings = {"name": name, "root": fed.root, "max_epsilon": Decimal(10)} | changed
    site = SiteFolder.create(fed.path / f"{name}-new", SiteSettings(**settings))
    changes.add(fed.home, [site.path / "enrolment.dsse.json"])


def test_published_folder_is_read_by_anyone_who_has_the_fingerprint(
    fed: Federation, tmp_path: Path
):
    shutil.copytree(fed.home.published, tmp_path / "elsewhere")
    trust = read_published(tmp_path / "elsewhere", fed.root)
    assert [site.name for site in trust.roster.sites] == ["hospital-a", "hospital-b"]
    assert trust.roster.version == 3


def test_published_folder_without_plan_is_refused_by_name(fed: Federation):
    (fed.home.published / "plan.dsse.json").unlink()
    with pytest.raises(StateError, match=r"there is no plan\.dsse\.json in .*published"):
        read_published(fed.home.published, fed.root)


def test_published_folder_without_first_roster_is_refused(fed: Federation):
    (fed.home.published / "roster-0001.dsse.json").unlink()
    with pytest.raises(RosterError, match="roster 1 has the digest"):
        read_published(fed.home.published, fed.root)


def test_published_folder_with_a_gap_is_refused(fed: Federation):
    (fed.home.published / "roster-0002.dsse.json").unlink()
    with pytest.raises(RosterError, match="roster 2 says it is version 3"):
        read_published(fed.home.published, fed.root)


def test_published_folder_without_rosters_is_refused(fed: Federation):
    for path in fed.home.published.glob("roster-*"):
        path.unlink()
    with pytest.raises(RosterError, match=f"there is no roster in {fed.home.published}"):
        read_published(fed.home.published, fed.root)


@pytest.mark.parametrize(
    ("pair", "problem"),
    [((1, 2), "roster 1 has the digest"), ((2, 3), "roster 2 says it is version 3")],
)
def test_published_rosters_that_swapped_names_are_refused(
    fed: Federation, pair: tuple[int, int], problem: str
):
    one, two = (fed.home.published / f"roster-000{index}.dsse.json" for index in pair)
    before, behind = one.read_bytes(), two.read_bytes()
    one.write_bytes(behind)
    two.write_bytes(before)
    with pytest.raises(RosterError, match=problem):
        read_published(fed.home.published, fed.root)


def test_publishing_a_plan_keeps_the_roster(fed: Federation):
    before = fed.home.chain()
    plan = a_plan(steps="steps = 4")
    digest = proposals.publish_plan(fed.home, plan)
    assert fed.home.chain() == before
    numbered = plan.model_copy(update={"version": 2})
    assert (fed.trust.plan, fed.trust.plan_sha256) == (numbered, digest)


def test_expired_roster_has_to_be_renewed_before_a_plan_is_published(fed: Federation):
    past = now() - timedelta(days=1)

    def expire(fields: Json) -> None:
        fields["issued_at"] = f"{past - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
        fields["expires_at"] = f"{past:%Y-%m-%dT%H:%M:%SZ}"

    last = fed.home.published / "roster-0003.dsse.json"
    forge(last, expire, fed.root_key(), kind=ROSTER_PAYLOAD)
    with pytest.raises(StateError, match="roster 3 expired on"):
        proposals.publish_plan(fed.home, PLAN)
    assert changes.renew(fed.home).published
    proposals.publish_plan(fed.home, PLAN)
    require_in_force(fed.trust, now())
    assert fed.trust.roster.version == 4


def test_publish_refuses_a_plan_of_another_federation(fed: Federation):
    with pytest.raises(PlanMismatchError, match="the plan is of federation `other`"):
        proposals.publish_plan(fed.home, a_plan(federation='federation = "other"'))


# Enrolment


def request_of(fed: Federation) -> Path:
    return fed.path / "hospital-a" / "enrolment.dsse.json"


def add(fed: Federation, *expected_keyids: str) -> proposals.Proposal | None:
    return changes.add(fed.home, [request_of(fed)], expected_keyids=expected_keyids)


def test_enrolment_twice_is_idempotent(fed: Federation):
    before = fed.home.chain()
    requests = {path.name: path.read_bytes() for path in fed.home.enrolled.iterdir()}
    assert add(fed) is None
    assert fed.home.chain() == before
    assert {path.name: path.read_bytes() for path in fed.home.enrolled.iterdir()} == requests


def test_enrolment_with_another_key_than_read_out_is_refused(fed: Federation):
    with pytest.raises(PlanMismatchError, match="the request of `hospital-a` brings the key"):
        add(fed, MALLORY.public.keyid)


def test_enrolment_with_the_key_that_was_read_out_is_accepted(fed: Federation):
    assert add(fed, fed.key("hospital-a").public.keyid, MALLORY.public.keyid) is None


def test_enrolment_for_another_coordinator_is_refused(fed: Federation):
    with pytest.raises(PlanMismatchError, match="`hospital-c` wants to join the federation of"):
        join(fed, "hospital-c", root=pin_of(R1))


def test_enrolment_under_a_taken_name_is_refused(fed: Federation):
    with pytest.raises(StateError, match="the name `hospital-a` is taken, with other keys"):
        join(fed, "hospital-a")


def forge_request(fed: Federation, edit: Callable[[Json], None], *keys: SigningKey) -> None:
    forge(request_of(fed), edit, *keys, kind=ENROLMENT_PAYLOAD)


def bring(*keys: tuple[str, str]) -> Callable[[Json], None]:
    brought = [{"role": role, "public_key": public} for role, public in keys]
    return lambda fields: fields.update(keys=brought)


def test_enrolment_of_a_taken_key_under_a_new_name_is_refused(fed: Federation):
    forge_request(fed, lambda fields: fields.update(site="hospital-z"), fed.key("hospital-a"))
    with pytest.raises(StateError, match="the site key of `hospital-z` is taken, by `hospital-a`"):
        add(fed)


@pytest.mark.parametrize("owner", ["the coordinator", "a root key"])
def test_enrolment_of_a_key_that_signs_for_the_federation_is_refused(fed: Federation, owner: str):
    key = fed.root_key() if owner == "a root key" else fed.coordinator_key()

    def edit(fields: Json) -> None:
        bring(("site", key.public.hex))(fields)
        fields["site"] = "hospital-z"

    forge_request(fed, edit, key)
    with pytest.raises(StateError, match=f"the site key of `hospital-z` is taken, by {owner}"):
        add(fed)


def test_enrolment_of_a_key_its_sender_does_not_hold_is_refused(fed: Federation):
    stolen = fed.coordinator_key().public.hex
    forge_request(fed, bring(("site", stolen)), fed.key("hospital-a"))
    with pytest.raises(UnknownSignerError, match=r"the enrolment request enrolment\.dsse\.json"):
        add(fed)


def test_enrolment_of_an_officers_key_that_did_not_sign_is_refused(fed: Federation):
    own = fed.key("hospital-a")
    forge_request(fed, bring(("site", own.public.hex), ("dpo", MALLORY.public.hex)), own)
    with pytest.raises(CountersignatureError, match=r"brings the dpo key .*, which did not"):
        add(fed)


def test_enrolment_of_a_weak_key_is_refused(fed: Federation):
    forge_request(fed, bring(("site", "01" + "00" * 31)), MALLORY)
    with pytest.raises(WeakKeyError, match="0100000000000000"):
        add(fed)
