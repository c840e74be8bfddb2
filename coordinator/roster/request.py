"""What sites ask for: their requests read, verified and judged. Nothing is changed here."""

from collections.abc import Iterable, Sequence

from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import (
    CountersignatureError,
    PlanMismatchError,
    StateError,
    UnknownSignerError,
    guess,
)
from ddm_fed.records import EnrolmentRequest, RosterSite, now
from ddm_fed.signing import (
    ENROLMENT_PAYLOAD,
    VerifyKey,
    check_site_certificate,
    open_envelope,
    peek_payload,
)
from ddm_fed.trust import RosterChain


def claimed_request(data: bytes, *, what: str) -> EnrolmentRequest:
    """Returns the request in `data`, believed without a signature, to learn who has to have signed.

    Raises:
        MalformedError: it is not one.
    """
    return EnrolmentRequest.from_json(peek_payload(data, ENROLMENT_PAYLOAD, what=what), what=what)


def read_request(
    data: bytes, *, what: str, present: Sequence[VerifyKey] = ()
) -> tuple[EnrolmentRequest, frozenset[VerifyKey]]:
    """Returns the request in `data` and who signed it; every key it brings has.

    Args:
        data: The envelope.
        what: Its name, for messages.
        present: Keys the site has in the roster, which may sign too.

    Raises:
        WeakKeyError: a key with which a signature would prove nothing.
        CountersignatureError: a key it brings did not sign: nobody showed to hold it.
        RefusedError: form or signature do not hold.
    """
    claimed = claimed_request(data, what=what)
    brought = {VerifyKey.from_hex(key.public_key): key.role for key in claimed.keys}
    signed = open_envelope(data, ENROLMENT_PAYLOAD, [*brought, *present], what=what)
    for key, role in brought.items():
        if key not in signed.signers:
            raise CountersignatureError(
                f"{what} brings the {role} key {key.keyid[:24]}…, which did not sign it, so nobody "
                "has shown to hold it",
                hint="its holder signs the request with `ddm-site approve`",
            )
    return claimed, signed.signers


def read_enrolment(
    home: CoordinatorFolder, data: bytes, *, what: str, expected_keyids: Sequence[str] = ()
) -> EnrolmentRequest:
    """Returns the wish of a site to join. Whether there is room for it, `require_free` says.

    Args:
        home: The coordinator.
        data: The envelope.
        what: Its name, for messages.
        expected_keyids: Key ids as people read them out; if given, its keys must be among them.

    Raises:
        RefusedError: it does not hold, or is meant for another coordinator.
        StateError: it is about keys of a member.
    """
    claimed = claimed_request(data, what=what)
    if claimed.replaces or not claimed.keys:
        raise StateError(
            f"the request of `{claimed.site}` replaces keys or adds a certificate, it does not "
            "enrol",
            hint="use `ddm-coord roster rotate REQUEST`",
        )
    request, _ = read_request(data, what=what)
    _require_meant_for_us(home, request)
    _require_read_out(request, expected_keyids, [key.public_key for key in request.keys])
    return request


def require_free(
    chain: RosterChain, sites: Iterable[RosterSite], request: EnrolmentRequest
) -> None:
    """Refuses to enrol under a name or with a key that somebody has, or a certificate not its own.

    Args:
        chain: The published rosters.
        sites: The members the next roster has so far.
        request: The verified wish to join.

    Raises:
        StateError: name, key or certificate are taken.
        RefusedError: the certificate does not hold.
    """
    if request.site in {site.name for site in sites}:
        raise StateError(
            f"the name `{request.site}` is taken, with other keys",
            hint="every site needs a name of its own; new keys come with `roster rotate`",
        )
    _require_free_keys(chain, sites, request)
    _require_certificate(chain, request)


def read_rotation(
    home: CoordinatorFolder,
    chain: RosterChain,
    data: bytes,
    *,
    what: str,
    lost: bool = False,
    expected_keyids: Sequence[str] = (),
) -> tuple[EnrolmentRequest, RosterSite]:
    """Returns the wish of a member to change its keys, or to add a certificate, and the member.

    Args:
        home: The coordinator.
        chain: The published rosters.
        data: The envelope.
        what: Its name, for messages.
        lost: People have said that no present key is left to sign it.
        expected_keyids: Key ids as people read them out.

    Raises:
        RefusedError: it does not hold, or no present key signed it.
        StateError: it is of no member, or replaces keys the site does not have.
    """
    claimed = claimed_request(data, what=what)
    site = member_of(chain, claimed.site)
    active = {key.public_key for key in site.keys if key.is_active}
    # an officer agrees to what leaves; whom the site connects as, the site says
    roles = ("site", "dpo") if claimed.keys else ("site",)
    present = [
        VerifyKey.from_hex(key.public_key)
        for key in site.keys
        if key.is_active and key.role in roles
    ]
    request, signers = read_request(data, what=what, present=present)
    _require_meant_for_us(home, request)
    shown = [key.public_key for key in request.keys] or [key.hex for key in signers]
    _require_read_out(request, expected_keyids, shown)
    if not lost and not signers & set(present):
        raise UnknownSignerError(
            f"{what} is signed by no present key of `{site.name}`: anybody could have made it",
            hint="if the site's people tell you in person that its keys are lost, add --lost",
        )
    unknown = set(request.replaces) - active
    if unknown:
        raise StateError(
            f"`{site.name}` has no active key {min(unknown)[:16]}… to replace",
            hint="it was replaced already: see `ddm-coord roster show`",
        )
    if not request.keys and request.require != site.require_at(None):
        raise StateError(
            f"{what} only adds a certificate, but asks for the signatures of "
            f"{' and '.join(request.require)} from now on",
            hint="whose signatures a site asks for changes with its keys: `ddm-site rotate --dpo`",
        )
    _require_free_keys(chain, chain.current.sites, request)
    _require_certificate(chain, request)
    return request, site


def is_member(site: RosterSite | None, request: EnrolmentRequest) -> bool:
    """Returns whether `site`, as the roster has it, has exactly the keys `request` brings."""
    listed = {key.public_key for key in site.keys if key.is_active} if site else set()
    return listed == {key.public_key for key in request.keys}


def is_fulfilled(site: RosterSite | None, request: EnrolmentRequest) -> bool:
    """Returns whether the roster says already what `request` asks for."""
    if site is None or is_member(site, request):
        return site is not None
    active = {key.public_key for key in site.keys if key.is_active}
    return (
        active.issuperset(key.public_key for key in request.keys)
        and active.isdisjoint(request.replaces)
        and request.certificate in (None, *site.certificates)
    )


def member_of(chain: RosterChain, name: str) -> RosterSite:
    """Returns the member called `name`.

    Raises:
        StateError: there is none.
    """
    site = chain.site(name)
    if site is None:
        names = [member.name for member in chain.current.sites]
        raise StateError(
            f"`{name}` is not in roster {chain.current.version}{guess(name, names)}",
            hint="it lists " + ", ".join(names),
        )
    return site


def _require_meant_for_us(home: CoordinatorFolder, request: EnrolmentRequest) -> None:
    if request.root != home.settings.root:
        raise PlanMismatchError(
            f"`{request.site}` wants to join the federation of {request.root}, this is "
            f"{home.settings.root}",
            hint="the site pinned another fingerprint; read yours to its people again",
        )


def _require_read_out(
    request: EnrolmentRequest, expected_keyids: Sequence[str], shown: Sequence[str]
) -> None:
    found = [VerifyKey.from_hex(key).keyid for key in shown]
    if expected_keyids and not set(found) <= set(expected_keyids):
        raise PlanMismatchError(
            f"the request of `{request.site}` brings the keys {', '.join(found)}; people read out "
            f"{', '.join(expected_keyids)}",
            hint="somebody changed the request on its way, or read another key; ask again",
        )


def _require_free_keys(
    chain: RosterChain, sites: Iterable[RosterSite], request: EnrolmentRequest
) -> None:
    taken = {key.public_key: "the coordinator" for key in chain.current.coordinator}
    taken |= dict.fromkeys(chain.current.root.keys, "a root key")
    for site in sites:
        taken |= {key.public_key: f"`{site.name}`" for key in site.keys}
    for key in request.keys:
        if key.public_key in taken:
            raise StateError(
                f"the {key.role} key of `{request.site}` is taken, by {taken[key.public_key]}",
                hint="every site needs keys of its own, and its officer another one",
            )


def _require_certificate(chain: RosterChain, request: EnrolmentRequest) -> None:
    if request.certificate is None:
        return
    checked = check_site_certificate(
        request.certificate,
        request.site,
        what=f"the certificate of `{request.site}`",
        moment=now(),
    )
    # Requests can be sent again by whoever saw them: what was dropped must not come back so.
    if request.certificate in chain.all_certificates():
        raise StateError(
            f"the certificate {checked.fingerprint[:23]}… of `{request.site}` was in a roster "
            "before",
            hint="the site makes a new one with `ddm-site rotate --certificate`",
        )
