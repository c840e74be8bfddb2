"""Who takes part, and under which plan: enrolment requests, rosters, the published plan."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from coordinator.folder import CoordinatorFolder
from ddm_fed.errors import PlanMismatchError, StateError
from ddm_fed.files import read_bounded, write_atomically
from ddm_fed.published import PLAN_FILE, published_files, read_published, roster_file
from ddm_fed.records import (
    MAX_DOCUMENT_BYTES,
    EnrolmentRequest,
    Plan,
    Roster,
    RosterSite,
    now,
    sha256_hex,
)
from ddm_fed.signing import (
    ENROLMENT_PAYLOAD,
    PLAN_PAYLOAD,
    ROSTER_PAYLOAD,
    VerifyKey,
    open_envelope,
    peek_payload,
    seal,
)

ROSTER_DAYS = 365


@dataclass(frozen=True)
class Published:
    """What `publish` did."""

    roster: Roster
    roster_is_new: bool
    plan_sha256: str


def read_request(data: bytes, *, what: str) -> EnrolmentRequest:
    """Returns the request in `data`, signed by the very key it brings.

    Raises:
        RefusedError: the form, the signature or the key does not hold.
    """
    claimed = EnrolmentRequest.from_json(
        peek_payload(data, ENROLMENT_PAYLOAD, what=what), what=what
    )
    key = VerifyKey.from_hex(claimed.public_key)
    signed = open_envelope(data, ENROLMENT_PAYLOAD, [key], what=what)
    return EnrolmentRequest.from_json(signed.payload, what=what)


def enroll(home: CoordinatorFolder, file: Path, *, expected_keyid: str | None) -> EnrolmentRequest:
    """Accepts the enrolment request in `file`; it takes effect with the next `publish`.

    Args:
        home: The coordinator.
        file: What the site sent.
        expected_keyid: The key as the site's people read it out; compared if given.

    Raises:
        RefusedError: the request does not hold, or is meant for another coordinator.
        StateError: the name or the key is taken.
    """
    data = read_bounded(file, MAX_DOCUMENT_BYTES)
    request = read_request(data, what=f"the enrolment request {file.name}")
    keyid = VerifyKey.from_hex(request.public_key).keyid
    if request.root_keyid != home.root_key().public.keyid:
        raise PlanMismatchError(
            f"`{request.site}` wants to join the coordinator {request.root_keyid}, this is "
            f"{home.root_key().public.keyid}",
            hint="the site pinned another fingerprint; read yours to its people again",
        )
    if expected_keyid is not None and expected_keyid != keyid:
        raise PlanMismatchError(
            f"the request of `{request.site}` brings the key {keyid}, its people read out "
            f"{expected_keyid}",
            hint="somebody changed the request on its way, or read another key; ask again",
        )
    for member in enrolled_sites(home):
        same_name, same_key = member.name == request.site, member.public_key == request.public_key
        if same_name and same_key:
            return request
        if same_name or same_key:
            raise StateError(
                f"{'the name' if same_name else 'the key'} of `{request.site}` is enrolled already"
                + ("" if same_name else f", as `{member.name}`"),
                hint="every site needs a name and a key of its own",
            )
    write_atomically(home.enrolled / f"{request.site}.dsse.json", data)
    return request


def enrolled_sites(home: CoordinatorFolder) -> list[RosterSite]:
    """Returns the accepted sites in the order of their names."""
    sites = []
    for file in sorted(home.enrolled.glob("*.dsse.json")):
        request = read_request(read_bounded(file, MAX_DOCUMENT_BYTES), what=file.name)
        sites.append(
            RosterSite(
                name=request.site,
                public_key=request.public_key,
                enrolled_at=request.requested_at,
            )
        )
    return sites


def publish(home: CoordinatorFolder, plan: Plan) -> Published:
    """Signs the plan, and a new roster if members changed or the last one expired; publishes both.

    Raises:
        StateError: nobody is enrolled.
        PlanMismatchError: the plan is of another federation.
    """
    if plan.federation != home.settings.federation:
        raise PlanMismatchError(
            f"the plan is of federation `{plan.federation}`, this coordinator is of "
            f"`{home.settings.federation}`",
            hint="correct `federation` in the plan",
        )
    sites = tuple(enrolled_sites(home))
    if not sites:
        raise StateError("nobody is enrolled yet", hint="run `ddm-coord enroll REQUEST` first")
    last, last_sha256 = _last_roster(home)
    is_new = last is None or last.sites != sites or now() >= last.expires_at
    if is_new:
        issued_at = now()
        roster = Roster(
            federation=home.settings.federation,
            version=1 if last is None else last.version + 1,
            previous_sha256=last_sha256,
            issued_at=issued_at,
            expires_at=issued_at + timedelta(days=ROSTER_DAYS),
            root_key=home.root_key().public.hex,
            coordinator_key=home.key().public.hex,
            sites=sites,
        )
        write_atomically(
            home.published / roster_file(roster.version),
            seal(roster.to_json(), ROSTER_PAYLOAD, [home.root_key()]),
        )
    write_atomically(home.published / PLAN_FILE, seal(plan.to_json(), PLAN_PAYLOAD, [home.key()]))
    trust = read_published(home.published, home.root_key().public.keyid)
    return Published(trust.roster, is_new, trust.plan_sha256)


def _last_roster(home: CoordinatorFolder) -> tuple[Roster | None, str | None]:
    *rosters, _ = published_files(home.published)
    if not rosters:
        return None, None
    data = read_bounded(home.published / rosters[-1], MAX_DOCUMENT_BYTES)
    signed = open_envelope(data, ROSTER_PAYLOAD, [home.root_key().public], what=rosters[-1])
    return Roster.from_json(signed.payload, what=rosters[-1]), sha256_hex(signed.payload)
