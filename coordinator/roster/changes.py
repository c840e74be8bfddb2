"""What changes a roster: sites that join, keys that are replaced or revoked."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from coordinator.log import read_own_log
from coordinator.roster.proposals import Proposal, next_roster, propose, require_nothing_pending
from coordinator.roster.request import (
    is_member,
    member_of,
    read_enrolment,
    read_rotation,
    require_free,
)
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import OptionError, StateError
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
from ddm_fed.signing import TlsKey, VerifyKey, new_key, newest_tls_key
from ddm_fed.storage.files import read_bounded, write_atomically
from ddm_fed.trust import RosterChain
from ddm_fed.trust.log import LogEntry

KeyT = TypeVar("KeyT", bound=RangedKey)
_ROLES = ("site", "dpo")


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
        StateError: a name, a key or a certificate is taken.
    """
    chain = home.chain()
    size = read_own_log(home, chain).size
    sites = {site.name: site for site in chain.current.sites}
    accepted = []
    for file in files:
        data = read_bounded(file, MAX_DOCUMENT_BYTES)
        request = read_enrolment(
            home,
            data,
            what=f"the enrolment request {file.name}",
            expected_keyids=expected_keyids,
        )
        if is_member(sites.get(request.site), request):
            continue
        require_free(chain, sites.values(), request)
        sites[request.site] = RosterSite(
            name=request.site,
            enrolled_at=request.requested_at,
            policies=(SitePolicy(require=request.require, from_log_size=size),),
            keys=_ranged(request, size),
            certificates=_brought(request),
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


def _brought(request: EnrolmentRequest) -> tuple[str, ...]:
    return () if request.certificate is None else (request.certificate,)


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

    A certificate it brings is added; of the earlier ones the newest stays beside it, so that the
    site can connect with either until it has seen this roster. If keys were compromised none does:
    they lie in one folder.

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
    size = read_own_log(home, chain).size
    data = read_bounded(file, MAX_DOCUMENT_BYTES)
    request, site = read_rotation(
        home,
        chain,
        data,
        what=f"the request {file.name}",
        lost=lost,
        expected_keyids=expected_keyids,
    )
    kept = tuple(
        _ended(key, size, compromised_since) if key.public_key in request.replaces else key
        for key in site.keys
    )
    policies = site.policies
    if request.require != site.require_at(None):
        policies = (*policies, SitePolicy(require=request.require, from_log_size=size))
    brought = _brought(request)
    held = site.certificates if compromised_since is None else ()
    changed = site.model_copy(
        update={
            "keys": (*kept, *_ranged(request, size)),
            "policies": policies,
            "certificates": (*held[-1:], *brought) if brought else held,
        }
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


def revoke(
    home: CoordinatorFolder,
    name: str,
    *,
    keyid: str | None = None,
    compromised_since: int | None = None,
) -> Proposal:
    """Proposes a roster in which keys of a site sign nothing more.

    With all its keys its certificates go too, and so do its connections.

    Args:
        home: The coordinator.
        name: The site.
        keyid: Which key; all of them by default.
        compromised_since: Size of the log from which on they may have been a thief's: what they
            signed from there on counts no longer.

    Raises:
        StateError: no such site, or nothing would change.
        OptionError: the site has no such key.
    """
    chain = home.chain()
    size = read_own_log(home, chain).size
    site = member_of(chain, name)
    chosen = [key for key in site.keys if keyid in (None, VerifyKey.from_hex(key.public_key).keyid)]
    if not chosen:
        raise OptionError(
            f"--key {keyid}: `{name}` has no such key",
            hint="`ddm-coord roster show` lists its keys",
        )
    keys = tuple(
        _ended(key, size, compromised_since) if key in chosen else key for key in site.keys
    )
    certificates = () if keyid is None else site.certificates
    if (keys, certificates) == (site.keys, site.certificates):
        raise StateError(
            f"the keys of `{name}` are revoked already",
            hint="to drop what they signed earlier, add --compromised-since LOG_SIZE",
        )
    changed = site.model_copy(update={"keys": keys, "certificates": certificates})
    return propose(home, next_roster(home, chain, sites=_with(chain, changed)))


def revoke_certificates(home: CoordinatorFolder, name: str) -> Proposal:
    """Proposes a roster in which no certificate of a site counts; its keys stay as they are.

    Raises:
        StateError: no such site, or it has none.
    """
    chain = home.chain()
    site = member_of(chain, name)
    if not site.certificates:
        raise StateError(
            f"roster {chain.current.version} lists no certificate of `{name}`",
            hint="there is nothing to end: it cannot connect",
        )
    changed = site.model_copy(update={"certificates": ()})
    return propose(home, next_roster(home, chain, sites=_with(chain, changed)))


def meaning_of_revoking(home: CoordinatorFolder, name: str, proposal: Proposal) -> list[str]:
    """Returns what a revocation means for the site `name` from here on, and what it does not."""
    site = proposal.roster.site(name)
    if site is None:
        return []
    lines = [] if proposal.published else ["nothing has changed before it is published; then:"]
    active = {role: [k for k in site.keys if k.role == role and k.is_active] for role in _ROLES}
    if site.is_active:
        lines.append(
            f"`{name}` still signs, with {len(active['site'])} key(s), and "
            f"{'connects' if site.certificates else 'cannot connect: it has no certificate'}"
        )
    else:
        lines.append(
            f"`{name}` signs nothing more"
            + ("" if site.certificates else " and cannot connect")
            + ": what arrives of it from now on is refused"
        )
    log = read_own_log(home, home.chain())
    admitted = [entry.index for entry in log.receipts(site=name)]
    stolen = {index for index in admitted if any(k.is_compromised_at(index) for k in site.keys)}
    if stolen:
        lines.append(f"{len(stolen)} of its {len(admitted)} admitted submissions no longer count")
    removals = [entry.index for entry in log.entries if _removes(entry, name)]
    ended = max((index for index in removals if index not in log.void), default=-1)
    standing = [index for index in admitted if index > ended and index not in stolen]
    if standing:
        lines.append(
            f"{len(standing)} of its admitted submissions stand, and its expert goes "
            f"on to be used: `ddm-coord remove {name}` ends that; if a key may have been stolen, "
            "revoke again with --compromised-since LOG_SIZE"
        )
    if not site.is_active:
        lines.append(
            f"to take `{name}` in again: `ddm-site rotate --lost` there, its people read the new "
            "key to you in person, and `ddm-coord roster rotate REQUEST --lost`"
        )
    return lines


def _removes(entry: LogEntry, name: str) -> bool:
    return entry.removal is not None and entry.removal.site == name


def rotate_coordinator(
    home: CoordinatorFolder, *, compromised_since: int | None = None
) -> Proposal:
    """Makes a new coordinator key and proposes a roster in which it takes the old one's place."""
    chain = home.chain()
    size = read_own_log(home, chain).size
    require_nothing_pending(home)
    old = tuple(
        _ended(key, size, compromised_since) if key.is_active else key
        for key in chain.current.coordinator
    )
    key = new_key(home.keys, "coordinator")
    new = RangedKey(public_key=key.public.hex, from_log_size=size)
    return propose(home, next_roster(home, chain, coordinator=(*old, new)))


def rotate_server_certificate(home: CoordinatorFolder) -> Proposal:
    """Makes a new certificate for the server and proposes a roster that lists it.

    The newest earlier one stays beside it and goes on to serve, so that sites get to know the new
    one before they meet it. The next rotation ends the earlier one.
    """
    chain = home.chain()
    require_nothing_pending(home)
    key = newest_tls_key(home.keys)
    if key is None or key.certificate in chain.all_certificates():
        key = TlsKey.for_coordinator()
        key.write(home.keys)
    held = chain.current.server_certificates
    certificates = (*held[-1:], key.certificate)
    return propose(home, next_roster(home, chain, server_certificates=certificates))


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
