"""Who takes part, with which keys: every change is a new roster, signed by the root keys.

A proposal is signed with whatever root keys lie in this folder. If that is enough it is published
at once; otherwise it waits in `pending/` until the other holders have signed it.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from coordinator import journal
from coordinator.log import publish_log, read_book
from coordinator.workspace import ROSTER_DAYS, CoordinatorFolder
from ddm_fed.errors import PlanError, PlanMismatchError, StateError, UnknownSignerError
from ddm_fed.records import (
    MAX_DOCUMENT_BYTES,
    Plan,
    Roster,
    now,
    sha256_hex,
)
from ddm_fed.signing import (
    PLAN_PAYLOAD,
    ROSTER_PAYLOAD,
    SigningKey,
    key_files,
    merge_signatures,
    open_envelope,
    peek_payload,
    public_of,
    seal,
)
from ddm_fed.storage.files import read_bounded, write_atomically
from ddm_fed.trust import RosterChain, missing_signatures, require_next
from ddm_fed.trust.published import PLAN_FILE, read_chain, roster_file, roster_files


@dataclass(frozen=True)
class Proposal:
    """A roster that was just published, or waits for signatures."""

    roster: Roster
    published: bool
    missing: tuple[str, ...] = ()
    file: Path | None = None


def pending_roster(home: CoordinatorFolder) -> Roster | None:
    """Returns the roster that waits for signatures, if there is one."""
    file = _pending_file(home)
    if file is None:
        return None
    return Roster.from_json(read_bounded(file, MAX_DOCUMENT_BYTES), what=file.name)


def _pending_file(home: CoordinatorFolder) -> Path | None:
    return next(iter(sorted(home.pending.glob("roster-[0-9][0-9][0-9][0-9].json"))), None)


def _published_chain(home: CoordinatorFolder) -> RosterChain | None:
    return read_chain(home.published, home.settings.root) if roster_files(home.published) else None


def complete_genesis(home: CoordinatorFolder) -> Proposal:
    """Signs and publishes the roster that `init` left, as far as the root keys here reach."""
    file = _pending_file(home)
    if file is None:
        raise StateError("no roster is pending", hint="see `ddm-coord roster show`")
    return _settle(home, read_bounded(file, MAX_DOCUMENT_BYTES))


def require_nothing_pending(home: CoordinatorFolder) -> None:
    """Refuses to go on while a roster waits for signatures.

    Raises:
        StateError: one does.
    """
    waiting = pending_roster(home)
    if waiting is not None:
        raise StateError(
            f"roster {waiting.version} still waits for signatures",
            hint="finish it with `ddm-coord roster sign` and `merge`, or drop it with `ddm-coord "
            "roster discard`",
        )


def next_roster(home: CoordinatorFolder, chain: RosterChain, **changes: Any) -> Roster:
    """Returns the roster after the current one, with `changes`; it is valid for a year.

    Raises:
        StateError: another one is still waiting for signatures.
    """
    require_nothing_pending(home)
    for file in key_files(home.keys, "root"):
        SigningKey.read(file)  # a key that cannot be opened is found before anything is written
    issued_at = now()
    draft = chain.current.model_copy(
        update={
            "version": chain.current.version + 1,
            "previous_sha256": chain.sha256[-1],
            "issued_at": issued_at,
            "expires_at": issued_at + timedelta(days=ROSTER_DAYS),
            **changes,
        }
    )
    roster = Roster.from_json(draft.to_json(), what=f"roster {draft.version}")
    require_next(chain.current, chain.sha256[-1], roster, chain.current.version + 1)
    return roster


def propose(home: CoordinatorFolder, roster: Roster) -> Proposal:
    """Signs `roster` with the root keys in this folder; publishes it, or lets it wait."""
    payload = roster.to_json()
    file = home.pending / f"roster-{roster.version:04d}.json"
    write_atomically(file, payload)
    return _settle(home, payload)


def sign(file: Path, key: SigningKey) -> Roster:
    """Adds the signature of a root key to a pending roster, on any machine; returns the roster.

    Args:
        file: `roster-NNNN.json`, or the `.dsse.json` beside it that others signed already.
        key: The root key.

    Raises:
        RefusedError: it is not a roster.
        UnknownSignerError: neither this roster nor one before names this key.
    """
    data = read_bounded(file, MAX_DOCUMENT_BYTES)
    signed_file = file if file.name.endswith(".dsse.json") else _signed_name(file)
    if file == signed_file:
        payload = peek_payload(data, ROSTER_PAYLOAD, what=file.name)
    else:
        payload = data
        data = read_bounded(signed_file, MAX_DOCUMENT_BYTES) if signed_file.exists() else b""
    roster = Roster.from_json(payload, what=file.name)
    if roster.version == 1 and key.public.hex not in roster.root.keys:
        raise UnknownSignerError(
            f"{file.name} does not name the root key {key.public.keyid[:24]}…",
            hint="sign with the root key whose .pub file you gave to the coordinator",
        )
    mine = seal(payload, ROSTER_PAYLOAD, [key])
    if data:
        mine = merge_signatures(data, mine, ROSTER_PAYLOAD, what=file.name)
    write_atomically(signed_file, mine)
    return roster


def _signed_name(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(".json") + ".dsse.json")


def merge(home: CoordinatorFolder, file: Path) -> Proposal:
    """Takes the signatures in `file` for the pending roster; publishes it if they are enough.

    Raises:
        StateError: nothing is pending.
        RefusedError: it is signed over another document, or a signature does not hold.
    """
    pending = _pending_file(home)
    if pending is None:
        raise StateError("no roster is pending", hint="see `ddm-coord roster show`")
    payload = read_bounded(pending, MAX_DOCUMENT_BYTES)
    offered = read_bounded(file, MAX_DOCUMENT_BYTES)
    roster = Roster.from_json(payload, what=pending.name)
    chain = _published_chain(home)
    ours = _signed_name(pending)
    # Verified before it is merged: a bad signature must not spoil the good ones that are here.
    missing_signatures(offered, chain.current if chain else None, roster)
    held = read_bounded(ours, MAX_DOCUMENT_BYTES) if ours.exists() else offered
    write_atomically(ours, merge_signatures(held, offered, ROSTER_PAYLOAD, what=file.name))
    return _settle(home, payload)


def discard(home: CoordinatorFolder) -> Roster:
    """Drops the pending roster; returns it.

    Raises:
        StateError: nothing is pending, or it is the first roster, which is what people pinned.
    """
    roster, file = pending_roster(home), _pending_file(home)
    if roster is None or file is None or roster.version == 1:
        raise StateError(
            "no roster can be discarded",
            hint="the first one is what everybody pins: it can only be signed",
        )
    _signed_name(file).unlink(missing_ok=True)
    file.unlink()
    journal.record(home, "roster-discarded", version=roster.version)
    return roster


def _settle(home: CoordinatorFolder, payload: bytes) -> Proposal:
    """Adds the signatures this folder can give, and publishes if they are enough."""
    roster = Roster.from_json(payload, what="the pending roster")
    chain = _published_chain(home)
    previous = chain.current if chain else None
    wanted = {*roster.root.keys, *(previous.root.keys if previous else ())}
    file = home.pending / f"roster-{roster.version:04d}.json"
    ours = _signed_name(file)
    local = [file for file in key_files(home.keys, "root") if public_of(file).hex in wanted]
    for key_file in local:
        sign(file, SigningKey.read(key_file))
    missing: list[str] = []
    if not ours.exists():
        missing = [f"{roster.root.threshold} of the root keys of roster {roster.version}"]
    else:
        data = read_bounded(ours, MAX_DOCUMENT_BYTES)
        missing = [
            f"{count} more of the root keys of roster {version}"
            for count, _, version in missing_signatures(data, previous, roster)
            if count
        ]
    if missing:
        return Proposal(roster, published=False, missing=tuple(missing), file=file)
    target = home.published / roster_file(roster.version)
    if not target.exists():
        write_atomically(target, read_bounded(ours, MAX_DOCUMENT_BYTES))
        journal.record(home, "roster", version=roster.version, sha256=sha256_hex(payload))
    refresh_published(home)
    ours.unlink()
    file.unlink()
    return Proposal(roster, published=True)


def refresh_published(home: CoordinatorFolder) -> None:
    """Signs plan and log head again with the active key, if another signed what is published."""
    chain = home.chain()
    key = home.key(chain)
    plan = home.published / PLAN_FILE
    if plan.exists():
        data = read_bounded(plan, MAX_DOCUMENT_BYTES)
        signed = open_envelope(data, PLAN_PAYLOAD, chain.all_coordinator_keys(), what="the plan")
        if key.public not in signed.signers:
            write_atomically(plan, seal(signed.payload, PLAN_PAYLOAD, [key]))
    publish_log(home, read_book(home, chain))


def publish_plan(home: CoordinatorFolder, plan: Plan) -> str:
    """Signs and publishes the plan; returns its digest.

    Raises:
        PlanError: it has expired.
        StateError: nobody is enrolled, or the roster has expired.
        PlanMismatchError: the plan is of another federation.
    """
    chain = home.chain()
    if plan.federation != home.settings.federation:
        raise PlanMismatchError(
            f"the plan is of federation `{plan.federation}`, this coordinator is of "
            f"`{home.settings.federation}`",
            hint="correct `federation` in the plan",
        )
    if now() >= plan.expires_at:
        raise PlanError(
            f"the plan expired on {plan.expires_at:%Y-%m-%d %H:%M} UTC: nobody could work under it",
            hint="give `expires_at` a later date; what is published now stays as it is",
        )
    if not any(site.is_active for site in chain.current.sites):
        raise StateError("nobody is enrolled yet", hint="run `ddm-coord roster add REQUEST` first")
    if now() >= chain.current.expires_at:
        raise StateError(
            f"roster {chain.current.version} expired on {chain.current.expires_at:%Y-%m-%d}",
            hint="run `ddm-coord roster renew` first",
        )
    plan = _numbered(home, chain, plan)
    payload = plan.to_json()
    envelope = seal(payload, PLAN_PAYLOAD, [home.key(chain)])
    # first the note: the number is never given twice, whatever becomes of the published folder
    journal.record(home, "plan", sha256=sha256_hex(payload), version=plan.version)
    write_atomically(home.published / PLAN_FILE, envelope)
    refresh_published(home)
    return sha256_hex(payload)


def _numbered(home: CoordinatorFolder, chain: RosterChain, plan: Plan) -> Plan:
    """Returns `plan` with the next number, or with its own if it is what is published."""
    given = [
        int(event.get("version", 0)) for event in journal.events(home) if event["event"] == "plan"
    ]
    file = home.published / PLAN_FILE
    if file.exists():
        data, what = read_bounded(file, MAX_DOCUMENT_BYTES), "the plan"
        signed = open_envelope(data, PLAN_PAYLOAD, chain.all_coordinator_keys(), what=what)
        present = Plan.from_json(signed.payload, what=what)
        if present == plan.model_copy(update={"version": present.version}):
            return present
        given.append(present.version)
    return plan.model_copy(update={"version": max(given, default=0) + 1})
