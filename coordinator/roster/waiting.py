"""Requests that came over a network and wait for people. Taking one changes no roster.

Anybody may send one, so only what could be accepted is kept, and only so many. A request is its
payload: the same one in another envelope is not kept twice.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

from coordinator import journal
from coordinator.roster.request import (
    claimed_request,
    is_fulfilled,
    read_enrolment,
    read_request,
    read_rotation,
    require_free,
)
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import MalformedError, RefusedError, StateError, guess
from ddm_fed.limits import MAX_REQUEST_BYTES as MAX_REQUEST_BYTES
from ddm_fed.records import EnrolmentRequest, sha256_hex
from ddm_fed.signing import VerifyKey, certificate_fingerprint
from ddm_fed.storage.files import read_bounded, write_atomically
from ddm_fed.trust import RosterChain

RequestState = Literal["waiting", "member"]
MAX_WAITING = 100
_SUFFIX = ".dsse.json"
_FILE_NAME = re.compile(rf"([a-z0-9][a-z0-9-]*)-[0-9a-f]{{16}}{re.escape(_SUFFIX)}")
# One process serves, with many threads: they count, and write, one after the other.
_TAKING = Lock()


@dataclass(frozen=True)
class WaitingRequest:
    """A request that people have to decide about.

    Attributes:
        file: Where it is kept.
        site: Who says to ask.
        keyids: The keys it brings; none if it only adds a certificate.
        certificate: The fingerprint of the certificate it brings.
        is_member: Whether the site is in the roster, so that this would change its entry.
    """

    file: Path
    site: str
    keyids: tuple[str, ...]
    certificate: str | None
    is_member: bool

    @property
    def name(self) -> str:
        """What `ddm-coord roster` calls it where the site's name alone fits several."""
        return self.file.name.removesuffix(_SUFFIX)


def take_request(home: CoordinatorFolder, data: bytes) -> RequestState:
    """Keeps the request in `data` until people decide about it. The same one again is kept once.

    Args:
        home: The coordinator; its lock need not be held.
        data: The envelope, as anybody may have sent it.

    Returns:
        "member" if the roster says already what it asks for, else "waiting".

    Raises:
        RefusedError: it does not hold, is meant for another coordinator, or is of a member and no
            present key of it has signed.
        StateError: it could not be accepted: a name or key is taken; or too many wait already.
    """
    what = "the request"
    if len(data) > MAX_REQUEST_BYTES:
        raise MalformedError(
            f"{what} has {len(data)} bytes, at most {MAX_REQUEST_BYTES} are read",
            hint="send the file that `ddm-site init` or `ddm-site rotate` wrote",
        )
    chain = home.chain()
    request, state = _judge(home, chain, data, what=what)
    if state == "member":
        return state
    file = home.requests / f"{request.site}-{sha256_hex(request.to_json())[:16]}{_SUFFIX}"
    with _TAKING:
        home.requests.mkdir(exist_ok=True)  # an older folder has none
        if file.exists():
            return state
        if len(_files(home)) >= MAX_WAITING:
            drop_settled(home)
        if len(_files(home)) >= MAX_WAITING:
            raise StateError(
                f"{MAX_WAITING} requests wait already, no more are kept",
                hint="the coordinator's people accept or drop them, with `ddm-coord roster add` "
                "and `ddm-coord roster refuse`; then send it again, or bring it as a file",
            )
        write_atomically(file, data)
    return state


def waiting_requests(home: CoordinatorFolder) -> list[WaitingRequest]:
    """Returns the requests that people have to decide about, by name.

    Those the roster has fulfilled meanwhile, and those it rules out, are left out.
    """
    chain = home.chain()
    return [
        WaitingRequest(
            file=file,
            site=request.site,
            keyids=tuple(VerifyKey.from_hex(key.public_key).keyid for key in request.keys),
            certificate=request.certificate and certificate_fingerprint(request.certificate),
            is_member=chain.site(request.site) is not None,
        )
        for file, request in _judged(home, chain)
        if request is not None
    ]


def find_request(home: CoordinatorFolder, name: str) -> Path:
    """Returns the file of the waiting request of the site called `name`.

    Args:
        home: The coordinator.
        name: A site, or, where it has sent several, the name of one request.

    Raises:
        StateError: there is none, or there are several.
    """
    found = [
        file
        for file, site in _files(home).items()
        if name in (site, file.name.removesuffix(_SUFFIX))
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        near = guess(name, _files(home).values())
        raise StateError(
            f"no request of a site called `{name}` waits{near}, and there is no such file",
            hint="`ddm-coord status` lists those that wait; give one of their names, or a file",
        )
    raise StateError(
        f"{len(found)} requests of `{name}` wait: "
        + ", ".join(file.name.removesuffix(_SUFFIX) for file in found),
        hint="ask its people which key is theirs, `ddm-coord status` shows them; give that name, "
        "and drop the others with `ddm-coord roster refuse`",
    )


def refuse(home: CoordinatorFolder, name: str) -> str:
    """Drops the waiting request called `name`, see `find_request`; returns the site's name.

    Raises:
        StateError: there is none, or there are several.
    """
    file = find_request(home, name)
    site = _files(home)[file]
    file.unlink(missing_ok=True)
    journal.record(home, "request-refused", site=site, request=file.name.removesuffix(_SUFFIX))
    return site


def drop_settled(home: CoordinatorFolder) -> None:
    """Deletes the requests that the published roster has fulfilled, or rules out."""
    for file, request in _judged(home, home.chain()):
        if request is None:
            file.unlink(missing_ok=True)


def _judged(
    home: CoordinatorFolder, chain: RosterChain
) -> Iterator[tuple[Path, EnrolmentRequest | None]]:
    """Yields every kept file, with its request if people still have to decide about it."""
    for file in _files(home):
        try:
            data = read_bounded(file, MAX_REQUEST_BYTES)
            request, state = _judge(home, chain, data, what=file.name)
        except (RefusedError, StateError):
            yield file, None
        else:
            yield file, request if state == "waiting" else None


def _judge(
    home: CoordinatorFolder, chain: RosterChain, data: bytes, *, what: str
) -> tuple[EnrolmentRequest, RequestState]:
    claimed = claimed_request(data, what=what)
    site = chain.site(claimed.site)
    if site is None:
        request = read_enrolment(home, data, what=what)
        require_free(chain, chain.current.sites, request)
        return request, "waiting"
    if is_fulfilled(site, claimed):
        present = [VerifyKey.from_hex(key.public_key) for key in site.keys if key.is_active]
        request, _ = read_request(data, what=what, present=present)
        return request, "member"
    return read_rotation(home, chain, data, what=what)[0], "waiting"


def _files(home: CoordinatorFolder) -> dict[Path, str]:
    """Returns the kept files, in order, each with the site that its name says."""
    found = [(_FILE_NAME.fullmatch(file.name), file) for file in sorted(home.requests.glob("*"))]
    return {file: match[1] for match, file in found if match is not None}
