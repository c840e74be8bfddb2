"""What a site fetches from its coordinator: published documents, ensembles. All are verified."""

import shutil
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from ddm_fed.bundle.reference import REFERENCE_FILE, VECTORS_FILE
from ddm_fed.ensemble.folder import VerifiedEnsemble, verify_ensemble
from ddm_fed.errors import ExchangeError, QuotaError, StateError, naming, printable
from ddm_fed.exchange import DATE, messages, services
from ddm_fed.limits import (
    MAX_DOCUMENT_BYTES,
    MAX_ENSEMBLE_FILES,
    MAX_LEAF_BYTES,
    MAX_LEAVES,
    MAX_LOG_BYTES,
    MAX_REFERENCE_BYTES,
    MAX_ROSTERS,
    MAX_ROSTERS_BYTES,
    MAX_ROUTER_BYTES,
)
from ddm_fed.progress import Advance
from ddm_fed.records import is_file_name, is_sha256, now
from ddm_fed.storage.files import (
    new_folder,
    open_to_append,
    sync_folder,
    write_atomically,
)
from ddm_fed.trust import Trust
from ddm_fed.trust.log import CHECKPOINT_FILE, LEAVES_FILE
from ddm_fed.trust.published import PLAN_FILE, roster_file
from sites.outbox.stages import member_of
from sites.published import Published, look
from sites.transport.address import Address
from sites.transport.grpc import CALL_S, STREAM_S, channel_to, retried, server_pem
from sites.workspace import SiteFolder

PUBLISHED = "published"


def fetch_published(
    site: SiteFolder, address: Address, trust: Trust | None, *, timeout_s: float
) -> Published:
    """Returns what the coordinator has published, which is now in the site's `published/`.

    It is verified from the pinned fingerprint, and against what this site saw before. Needs the
    site's lock.

    Args:
        site: Who asks.
        address: The coordinator.
        trust: What the site knows of its federation; None before the first time.
        timeout_s: How long to try.

    Raises:
        RefusedError: a document does not hold, or it is another history.
        ExchangeError: nothing answers, or not as it must.
    """
    client = _identity(site, trust)
    part, target = site.path / ".fetched", site.path / PUBLISHED
    shutil.rmtree(part, ignore_errors=True)
    pem = server_pem(address, trust, timeout_s=timeout_s)
    with channel_to(address, pem, client) as channel:
        service = services.ExchangeServiceStub(channel)

        def fetch() -> None:
            with new_folder(part) as folder:
                _fetch_all(service, folder)

        retried(fetch, address, timeout_s=timeout_s)
    found = look(site, part, newest=True)
    old = site.path / ".published-before"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    part.rename(target)
    sync_folder(site.path)
    shutil.rmtree(old, ignore_errors=True)
    return found


class Greeting(NamedTuple):
    """What the coordinator says to a member.

    Attributes:
        state: Of the site, there.
        plan_sha256: Of the plan in force there.
        ahead_s: By how many seconds its clock is ahead of this one; None if it does not say.
    """

    state: str
    plan_sha256: str
    ahead_s: float | None


def greet(site: SiteFolder, address: Address, trust: Trust | None, *, timeout_s: float) -> Greeting:
    """Returns what the coordinator answers this site, over mutual TLS; changes nothing.

    Args:
        site: Who asks.
        address: The coordinator.
        trust: What the site knows of its federation; None before the first time.
        timeout_s: How long to try.

    Raises:
        ExchangeError: nothing answers, or it does not know this site's certificate.
    """
    client, pem = _identity(site, trust), server_pem(address, trust, timeout_s=timeout_s)
    with channel_to(address, pem, client) as channel:
        service = services.ExchangeServiceStub(channel)
        answer, call = retried(
            lambda: service.GetStatus.with_call(messages.GetStatusRequest(), timeout=CALL_S),
            address,
            timeout_s=timeout_s,
        )
    said, ahead = dict(call.trailing_metadata() or ()).get(DATE, ""), None
    with suppress(ValueError, TypeError):  # an older version says nothing
        ahead = (parsedate_to_datetime(said) - now()).total_seconds()
    return Greeting(printable(answer.state), answer.plan_sha256, ahead)


def _identity(site: SiteFolder, trust: Trust | None) -> tuple[bytes, bytes]:
    key = site.newest_tls() if trust is None else site.tls(member_of(site, trust))
    if key is None:
        raise StateError(
            f"`{site.settings.name}` has no certificate to connect with",
            hint="make one with `ddm-site rotate --certificate`, and send its request",
        )
    return key.private_pem, key.certificate_pem


def _fetch_all(service: services.ExchangeServiceStub, folder: Path) -> None:
    version, taken, more = 0, 0, True
    while more:
        asked = messages.GetRosterRequest(known_version=version)
        answer = service.GetRoster(asked, timeout=CALL_S)
        for data in answer.roster_envelopes:
            version, taken = version + 1, taken + len(data)
            if version > MAX_ROSTERS or taken > MAX_ROSTERS_BYTES or len(data) > MAX_DOCUMENT_BYTES:
                raise _strange("rosters without end")
            write_atomically(folder / roster_file(version), data)
        more = answer.has_more
        if more and not answer.roster_envelopes:
            raise _strange("rosters without end")
    plan = service.GetPlan(messages.GetPlanRequest(), timeout=CALL_S).plan_envelope
    write_atomically(folder / PLAN_FILE, plan)
    _fetch_log(service, folder)
    _fetch_reference(service, folder)


def _fetch_log(service: services.ExchangeServiceStub, folder: Path) -> None:
    checkpoint, count, taken = b"", 0, 0
    leaves_file = folder / LEAVES_FILE
    with naming(leaves_file), leaves_file.open("xb") as leaves:
        for part in service.GetLog(messages.GetLogRequest(), timeout=STREAM_S):
            for leaf in part.leaf_envelopes:
                count, taken = count + 1, taken + len(leaf) + 1
                if count > MAX_LEAVES or taken > MAX_LOG_BYTES or len(leaf) > MAX_LEAF_BYTES:
                    raise _strange("a log without end")
                leaves.write(leaf + b"\n")
            checkpoint = part.checkpoint or checkpoint
    write_atomically(folder / CHECKPOINT_FILE, checkpoint)


def _fetch_reference(service: services.ExchangeServiceStub, folder: Path) -> None:
    status = service.GetStatus(messages.GetStatusRequest(), timeout=CALL_S)
    if not status.has_reference:
        return
    envelope, taken = b"", 0
    vectors_file = folder / VECTORS_FILE
    with naming(vectors_file), vectors_file.open("xb") as vectors:
        for part in service.GetReference(messages.GetReferenceRequest(), timeout=STREAM_S):
            envelope = part.reference_envelope or envelope
            taken += len(part.data)
            if taken > MAX_REFERENCE_BYTES or len(envelope) > MAX_DOCUMENT_BYTES:
                raise _strange("a reference without end")
            vectors.write(part.data)
    write_atomically(folder / REFERENCE_FILE, envelope)


def fetch_ensemble(
    site: SiteFolder,
    address: Address,
    trust: Trust,
    target: Path,
    *,
    timeout_s: float,
    advance: Advance = lambda _: None,
) -> VerifiedEnsemble:
    """Returns the coordinator's newest ensemble, verified, in the new folder `target`.

    Cut off, the same command goes on with the byte that is missing.

    Raises:
        StateError: `target` exists, or there is no ensemble to be had.
        RefusedError: it does not hold; what was fetched is kept beside `target` for a look.
        ExchangeError: nothing answers, or not as it must.
    """
    if target.exists():
        raise StateError(
            f"{target} exists already", hint="an ensemble is never changed; choose another folder"
        )
    pem = server_pem(address, trust, timeout_s=timeout_s)
    with channel_to(address, pem, _identity(site, trust)) as channel:
        service = services.ExchangeServiceStub(channel)
        listed = retried(
            lambda: service.GetEnsemble(messages.GetEnsembleRequest(), timeout=CALL_S),
            address,
            timeout_s=timeout_s,
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        _require_believable(listed, trust, target.parent)
        part = target.with_name(f".{target.name}-{listed.ensemble_sha256[:16]}")
        part.mkdir(parents=True, exist_ok=True)
        for file in listed.files:
            wanted = messages.ReadEnsembleRequest(
                ensemble_sha256=listed.ensemble_sha256, name=file.name
            )
            path = _path_in(part, file.name)

            def fetch(
                wanted: messages.ReadEnsembleRequest = wanted,
                path: Path = path,
                size: int = file.size_bytes,
            ) -> None:
                _fetch_file(service, wanted, path, size, advance)

            retried(fetch, address, timeout_s=timeout_s)
    verify_ensemble(part, site.settings.root)
    part.rename(target)
    sync_folder(target.parent)
    return verify_ensemble(target, site.settings.root)


def _require_believable(listed: messages.GetEnsembleResponse, trust: Trust, folder: Path) -> None:
    """Refuses a list of files that no ensemble of these members can have, before a byte is taken.

    Raises:
        ExchangeError: too many, too large, or one named twice.
        QuotaError: the disk here has no room for them.
    """
    if not is_sha256(listed.ensemble_sha256):
        raise _strange(f"an ensemble called `{printable(listed.ensemble_sha256[:64])}`")
    names = [file.name for file in listed.files]
    if len(set(names)) != len(names):
        raise _strange("one file of an ensemble twice")
    members = len(trust.roster.sites) + 1  # it may know of one that joined since
    most = MAX_ROSTERS_BYTES + MAX_LOG_BYTES + MAX_ROUTER_BYTES
    most += members * (trust.plan.submission.max_bytes + 4 * MAX_DOCUMENT_BYTES)
    total = sum(file.size_bytes for file in listed.files)
    if len(names) > MAX_ENSEMBLE_FILES or total > most:
        raise _strange(
            f"an ensemble of {len(names)} files and {total} bytes, where {most} are possible"
        )
    free = shutil.disk_usage(folder).free
    if total > free:
        raise QuotaError(
            f"the ensemble has {total} bytes, {free} are free in {folder}",
            hint="make room, or choose a folder on another disk",
        )


def _fetch_file(
    service: services.ExchangeServiceStub,
    wanted: messages.ReadEnsembleRequest,
    path: Path,
    size_bytes: int,
    advance: Advance,
) -> None:
    with naming(path), open_to_append(path) as file:
        wanted.offset = file.tell()
        for part in service.ReadEnsemble(wanted, timeout=STREAM_S):
            if file.tell() + len(part.data) > size_bytes:
                raise _strange(f"`{wanted.name}` without end")
            file.write(part.data)
            advance(len(part.data))


def _path_in(folder: Path, name: str) -> Path:
    """Returns where the file `name` goes, never outside `folder`."""
    if not is_file_name(name):
        raise _strange(f"a file called `{name[:100]}`")
    path = folder.joinpath(*name.split("/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _strange(what: str) -> ExchangeError:
    return ExchangeError(
        f"the coordinator offered {what}",
        hint="nothing of it was used; ask its people which version they run",
    )
