"""What changes a roster: sites that join, keys that are replaced or revoked."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from coordinator.book import read_book
from coordinator.folder import CoordinatorFolder
from coordinator.rosters import Proposal, next_roster, propose, require_nothing_pending
from ddm_fed.errors import (
    CountersignatureError,
    PlanMismatchError,
    StateError,
    UnknownSignerError,
)
from ddm_fed.files import read_bounded, write_atomically
from ddm_fed.records import (
    MAX_DOCUMENT_BYTES,
    EnrolmentRequest,
    RangedKey,
    RootRole,
    RosterSite,
    SiteKey,
    SitePolicy,
    sha256_hex,
)
from ddm_fed.signing import (
    ENROLMENT_PAYLOAD,
    RosterChain,
    VerifyKey,
    new_key,
    open_envelope,
    peek_payload,
)

KeyT = TypeVar("KeyT", bound=RangedKey)


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
    payload = peek_payload(data, ENROLMENT_PAYLOAD, what=what)
    claimed = EnrolmentRequest.from_json(payload, what=what)
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


def add(
    home: CoordinatorFolder, files: Sequence[Path], *, expected_keyids: Sequence[str] = ()
) -> Proposal | None:
    """Proposes a roster with the sites of these enrolment requests; None if all are members.

    Args:
        home: The coordinator.
        files: What the sites sent.
        expected_keyids: Key ids as people read them out; if given, every request must have one.

    Raises:
        RefusedError: a request does not hold, or is meant for another coordinator.
        StateError: a name or a key is taken.
    """
    chain = home.chain()
    size = read_book(home, chain).size
    sites = {site.name: site for site in chain.current.sites}
    accepted = []
    for file in files:
        data = read_bounded(file, MAX_DOCUMENT_BYTES)
        request, _ = read_request(data, what=f"the enrolment request {file.name}")
        _require_meant_for_us(home, request)
        _require_read_out(request, expected_keyids)
        if request.replaces:
            raise StateError(
                f"the request of `{request.site}` replaces keys, it does not enrol",
                hint="use `ddm-coord roster rotate REQUEST`",
            )
        if _is_member(sites.get(request.site), request):
            continue
        if request.site in sites:
            raise StateError(
                f"the name `{request.site}` is taken, with other keys",
                hint="every site needs a name of its own; new keys come with `roster rotate`",
            )
        _require_free(chain, sites.values(), request)
        sites[request.site] = RosterSite(
            name=request.site,
            enrolled_at=request.requested_at,
            policies=(SitePolicy(require=request.require, from_log_size=size),),
            keys=_ranged(request, size),
        )
        accepted.append((request, data))
    if not accepted:
        return None
    roster = next_roster(home, chain, sites=tuple(sites[name] for name in sorted(sites)))
    for request, data in accepted:
        _keep_request(home, request, data)
    return propose(home, roster)


def _ranged(request: EnrolmentRequest, size: int) -> tuple[SiteKey, ...]:
    return tuple(
        SiteKey(role=key.role, public_key=key.public_key, from_log_size=size)
        for key in request.keys
    )


def _is_member(site: RosterSite | None, request: EnrolmentRequest) -> bool:
    listed = {key.public_key for key in site.keys if key.is_active} if site else set()
    return listed == {key.public_key for key in request.keys}


def _require_meant_for_us(home: CoordinatorFolder, request: EnrolmentRequest) -> None:
    if request.root != home.settings.root:
        raise PlanMismatchError(
            f"`{request.site}` wants to join the federation of {request.root}, this is "
            f"{home.settings.root}",
            hint="the site pinned another fingerprint; read yours to its people again",
        )


def _require_read_out(request: EnrolmentRequest, expected_keyids: Sequence[str]) -> None:
    found = [VerifyKey.from_hex(key.public_key).keyid for key in request.keys]
    if expected_keyids and not set(found) <= set(expected_keyids):
        raise PlanMismatchError(
            f"the request of `{request.site}` brings the keys {', '.join(found)}; people read out "
            f"{', '.join(expected_keyids)}",
            hint="somebody changed the request on its way, or read another key; ask again",
        )


def _require_free(
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


def _keep_request(home: CoordinatorFolder, request: EnrolmentRequest, data: bytes) -> None:
    digest = sha256_hex(data)[:16]
    write_atomically(home.enrolled / f"{request.site}-{digest}.dsse.json", data)


def rotate_site(
    home: CoordinatorFolder,
    file: Path,
    *,
    lost: bool = False,
    compromised_since: int | None = None,
    expected_keyids: Sequence[str] = (),
) -> Proposal:
    """Proposes a roster in which the keys of a request take the place of those it replaces.

    Args:
        home: The coordinator.
        file: The request of `ddm-site rotate`.
        lost: People have said that no present key is left to sign the request.
        compromised_since: Size of the log from which on the old keys may have been a thief's.
        expected_keyids: Key ids as people read them out.

    Raises:
        RefusedError: the request does not hold, or no present key signed it.
        StateError: it replaces keys the site does not have.
    """
    chain = home.chain()
    size = read_book(home, chain).size
    data = read_bounded(file, MAX_DOCUMENT_BYTES)
    what = f"the request {file.name}"
    claimed = EnrolmentRequest.from_json(
        peek_payload(data, ENROLMENT_PAYLOAD, what=what), what=what
    )
    site = _member(chain, claimed.site)
    active = {key.public_key for key in site.keys if key.is_active}
    present = [VerifyKey.from_hex(key) for key in sorted(active)]
    request, signers = read_request(data, what=what, present=present)
    _require_meant_for_us(home, request)
    _require_read_out(request, expected_keyids)
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
    _require_free(chain, chain.current.sites, request)
    kept = tuple(
        _ended(key, size, compromised_since) if key.public_key in request.replaces else key
        for key in site.keys
    )
    policies = site.policies
    if request.require != site.require_at(None):
        policies = (*policies, SitePolicy(require=request.require, from_log_size=size))
    changed = site.model_copy(
        update={"keys": (*kept, *_ranged(request, size)), "policies": policies}
    )
    roster = next_roster(home, chain, sites=_with(chain, changed))
    _keep_request(home, request, data)
    return propose(home, roster)


def _ended(key: KeyT, size: int, compromised_since: int | None) -> KeyT:
    """Returns `key` revoked at `size`, or earlier if it is already."""
    end = size if key.revoked_at_log_size is None else min(size, key.revoked_at_log_size)
    since = key.compromised_since_log_size
    if compromised_since is not None:
        since = compromised_since if since is None else min(since, compromised_since)
    return key.model_copy(update={"revoked_at_log_size": end, "compromised_since_log_size": since})


def _with(chain: RosterChain, changed: RosterSite) -> tuple[RosterSite, ...]:
    return tuple(changed if site.name == changed.name else site for site in chain.current.sites)


def _member(chain: RosterChain, name: str) -> RosterSite:
    site = chain.current.site(name)
    if site is None:
        raise StateError(
            f"`{name}` is not in roster {chain.current.version}",
            hint="it lists " + ", ".join(member.name for member in chain.current.sites),
        )
    return site


def revoke(
    home: CoordinatorFolder,
    name: str,
    *,
    keyid: str | None = None,
    compromised_since: int | None = None,
) -> Proposal:
    """Proposes a roster in which keys of a site sign nothing more.

    Args:
        home: The coordinator.
        name: The site.
        keyid: Which key; all of them by default.
        compromised_since: Size of the log from which on they may have been a thief's: what they
            signed from there on counts no longer.

    Raises:
        StateError: no such site or key, or nothing would change.
    """
    chain = home.chain()
    size = read_book(home, chain).size
    site = _member(chain, name)
    chosen = [key for key in site.keys if keyid in (None, VerifyKey.from_hex(key.public_key).keyid)]
    if not chosen:
        raise StateError(
            f"`{name}` has no key {keyid}", hint="`ddm-coord roster show` lists its keys"
        )
    keys = tuple(
        _ended(key, size, compromised_since) if key in chosen else key for key in site.keys
    )
    if keys == site.keys:
        raise StateError(
            f"the keys of `{name}` are revoked already",
            hint="to drop what they signed earlier, add --compromised-since LOG_SIZE",
        )
    changed = site.model_copy(update={"keys": keys})
    return propose(home, next_roster(home, chain, sites=_with(chain, changed)))


def rotate_coordinator(
    home: CoordinatorFolder, *, compromised_since: int | None = None
) -> Proposal:
    """Makes a new coordinator key and proposes a roster in which it takes the old one's place."""
    chain = home.chain()
    size = read_book(home, chain).size
    require_nothing_pending(home)
    old = tuple(
        _ended(key, size, compromised_since) if key.is_active else key
        for key in chain.current.coordinator
    )
    key = new_key(home.keys, "coordinator")
    new = RangedKey(public_key=key.public.hex, from_log_size=size)
    return propose(home, next_roster(home, chain, coordinator=(*old, new)))


def rotate_root(home: CoordinatorFolder, keys: Sequence[VerifyKey], threshold: int) -> Proposal:
    """Proposes a roster signed, from now on, by `threshold` of `keys`.

    The old and the new holders have to sign it.
    """
    chain = home.chain()
    root = RootRole(keys=tuple(key.hex for key in keys), threshold=threshold)
    return propose(home, next_roster(home, chain, root=root))


def renew(home: CoordinatorFolder) -> Proposal:
    """Proposes the same roster for another year."""
    return propose(home, next_roster(home, home.chain()))
