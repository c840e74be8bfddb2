"""What a site fetches from its coordinator: published documents, ensembles. All are verified."""

import shutil
from pathlib import Path

from ddm_fed.assembly import VerifiedEnsemble, verify_ensemble
from ddm_fed.errors import ExchangeError, StateError, naming
from ddm_fed.exchange import messages, services
from ddm_fed.files import Advance, new_folder, sync_folder, write_atomically
from ddm_fed.log import CHECKPOINT_FILE, LEAVES_FILE
from ddm_fed.published import PLAN_FILE, roster_file
from ddm_fed.records import MAX_DOCUMENT_BYTES
from ddm_fed.reference import REFERENCE_FILE, VECTORS_FILE
from ddm_fed.signing import Trust
from sites.address import Address
from sites.folder import SiteFolder
from sites.network import CALL_S, STREAM_S, channel_to, server_pem, with_patience
from sites.outbox import member_of
from sites.seen import Published, look

MAX_ROSTERS, MAX_REFERENCE_BYTES = 10_000, 1 << 30
PUBLISHED = "published"


def fetch_published(
    site: SiteFolder, address: Address, trust: Trust | None, *, patience_s: float
) -> Published:
    """Returns what the coordinator has published, which is now in the site's `published/`.

    It is verified from the pinned fingerprint, and against what this site saw before. Needs the
    site's lock.

    Args:
        site: Who asks.
        address: The coordinator.
        trust: What the site knows of its federation; None before the first time.
        patience_s: How long to try.

    Raises:
        RefusedError: a document does not hold, or it is another history.
        ExchangeError: nothing answers, or not as it must.
    """
    client = _identity(site, trust)
    part, target = site.path / ".fetched", site.path / PUBLISHED
    shutil.rmtree(part, ignore_errors=True)
    with channel_to(address, server_pem(address, trust), client) as channel:
        service = services.ExchangeServiceStub(channel)

        def fetch() -> None:
            with new_folder(part) as folder:
                _fetch_all(service, folder)

        with_patience(fetch, address, patience_s=patience_s)
    found = look(site, part)
    old = site.path / ".published-before"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    part.rename(target)
    sync_folder(site.path)
    shutil.rmtree(old, ignore_errors=True)
    return found


def _identity(site: SiteFolder, trust: Trust | None) -> tuple[bytes, bytes]:
    key = site.newest_tls() if trust is None else site.tls(member_of(site, trust))
    if key is None:
        raise StateError(
            f"`{site.settings.name}` has no certificate to connect with",
            hint="make one with `ddm-site rotate --certificate`, and send its request",
        )
    return key.private_pem, key.certificate_pem


def _fetch_all(service: services.ExchangeServiceStub, folder: Path) -> None:
    version, more = 0, True
    while more:
        asked = messages.GetRosterRequest(known_version=version)
        answer = service.GetRoster(asked, timeout=CALL_S)
        for data in answer.roster_envelopes:
            version += 1
            write_atomically(folder / roster_file(version), data)
        more = answer.has_more
        if more and (not answer.roster_envelopes or version > MAX_ROSTERS):
            raise _strange("rosters without end")
    plan = service.GetPlan(messages.GetPlanRequest(), timeout=CALL_S).plan_envelope
    write_atomically(folder / PLAN_FILE, plan)
    leaves_file = folder / LEAVES_FILE
    with naming(leaves_file), leaves_file.open("wb") as leaves:
        checkpoint = b""
        for part in service.GetLog(messages.GetLogRequest(), timeout=STREAM_S):
            leaves.writelines(leaf + b"\n" for leaf in part.leaf_envelopes)
            checkpoint = part.checkpoint or checkpoint
    write_atomically(folder / CHECKPOINT_FILE, checkpoint)
    _fetch_reference(service, folder)


def _fetch_reference(service: services.ExchangeServiceStub, folder: Path) -> None:
    status = service.GetStatus(messages.GetStatusRequest(), timeout=CALL_S)
    if not status.has_reference:
        return
    envelope, taken = b"", 0
    vectors_file = folder / VECTORS_FILE
    with naming(vectors_file), vectors_file.open("wb") as vectors:
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
    patience_s: float,
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
    with channel_to(address, server_pem(address, trust), _identity(site, trust)) as channel:
        service = services.ExchangeServiceStub(channel)
        listed = with_patience(
            lambda: service.GetEnsemble(messages.GetEnsembleRequest(), timeout=CALL_S),
            address,
            patience_s=patience_s,
        )
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

            with_patience(fetch, address, patience_s=patience_s)
    verify_ensemble(part, site.settings.root)
    part.rename(target)
    sync_folder(target.parent)
    return verify_ensemble(target, site.settings.root)


def _fetch_file(
    service: services.ExchangeServiceStub,
    wanted: messages.ReadEnsembleRequest,
    path: Path,
    size_bytes: int,
    advance: Advance,
) -> None:
    with naming(path), path.open("ab") as file:
        wanted.offset = file.tell()
        for part in service.ReadEnsemble(wanted, timeout=STREAM_S):
            if file.tell() + len(part.data) > size_bytes:
                raise _strange(f"`{wanted.name}` without end")
            file.write(part.data)
            advance(len(part.data))


def _path_in(folder: Path, name: str) -> Path:
    """Returns where the file `name` goes, never outside `folder`."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or part.startswith(".") or "\\" in part for part in parts):
        raise _strange(f"a file called `{name}`")
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _strange(what: str) -> ExchangeError:
    return ExchangeError(
        f"the coordinator offered {what}",
        hint="nothing of it was used; ask its people which version they run",
    )
