"""From one pinned digest to every key: the chain of rosters, and the plan. TUF's root rules.

Rules, in order.

1. The payload of roster 1 has the pinned digest, and enough of its own root keys have signed it.
2. Every later roster counts one higher, names the digest of the one before, is of the same
   federation, and is signed by enough root keys of the roster before *and* enough of its own.
3. It drops no site and no key, and takes back no revocation: what was signed stays decidable.
4. The plan is signed by the active coordinator key of the last roster, and belongs to its
   federation.

Nothing here touches disk or network. Source: the TUF specification, section 5.3.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from ddm_fed.errors import ExpiredError, PlanMismatchError, RosterError
from ddm_fed.records import (
    Plan,
    RangedKey,
    RootRole,
    Roster,
    RosterReference,
    RosterSite,
    sha256_hex,
)
from ddm_fed.signing import (
    PLAN_PAYLOAD,
    ROSTER_PAYLOAD,
    SignedPayload,
    VerifyKey,
    open_envelope,
    peek_payload,
)


def pin_of(payload: bytes) -> str:
    """Returns what people pin, from the payload of roster 1."""
    return f"sha256:{sha256_hex(payload)}"


def claimed_pin(envelope: bytes, *, what: str) -> str:
    """Returns what would have to be pinned for the envelope of a roster 1; proves nothing.

    Args:
        envelope: Of roster 1.
        what: It is called, for messages.

    Raises:
        MalformedError: it is no envelope.
    """
    return pin_of(peek_payload(envelope, ROSTER_PAYLOAD, what=what))


@dataclass(frozen=True)
class RosterChain:
    """The verified rosters of a federation, newest last. Only `establish_chain` makes one.

    Example:
        With the envelopes of two rosters and the fingerprint that was read out:

        >>> chain = establish_chain(root, rosters)
        >>> chain.current.version, [site.name for site in chain.current.sites]
        (2, ['hospital-a', 'hospital-b', 'hospital-c'])
        >>> establish_chain("sha256:" + "0" * 64, rosters)
        Traceback (most recent call last):
        ddm_fed.errors.RosterError: ...
    """

    root: str
    rosters: tuple[Roster, ...]
    sha256: tuple[str, ...]

    @property
    def current(self) -> Roster:
        """The newest roster."""
        return self.rosters[-1]

    @cached_property
    def _members(self) -> dict[str, RosterSite]:
        return {site.name: site for site in self.current.sites}

    def site(self, name: str) -> RosterSite | None:
        """Returns the member of the newest roster called `name`, or None.

        However many there are, it takes the same time: every entry of a log asks.
        """
        return self._members.get(name)

    @property
    def reference(self) -> RosterReference:
        """Version and digest of the newest roster, as manifests cite it."""
        return RosterReference(version=self.current.version, sha256=self.sha256[-1])

    @property
    def log_origin(self) -> str:
        """The name of the federation's transparency log."""
        return f"ddm-fed/{self.current.federation}/{self.root.removeprefix('sha256:')}"

    def knows(self, reference: RosterReference) -> bool:
        """Returns whether `reference` is a roster of the chain."""
        return (
            1 <= reference.version <= len(self.rosters)
            and self.sha256[reference.version - 1] == reference.sha256
        )

    def all_certificates(self) -> frozenset[str]:
        """Returns every certificate that any roster of the chain lists."""
        return frozenset(text for roster in self.rosters for text in roster.certificates())

    def coordinator_keys(self, position: int | None) -> list[VerifyKey]:
        """Returns the keys that sign for the coordinator at `position` of the log."""
        return usable_keys(self.current.coordinator, position)

    def all_coordinator_keys(self) -> list[VerifyKey]:
        """Returns every key the coordinator ever had."""
        return [VerifyKey.from_hex(key.public_key) for key in self.current.coordinator]

    def log_keys(self, position: int) -> list[VerifyKey]:
        """Returns the keys that could sign the leaf `position`, compromised or not.

        The checkpoint, signed by the active key, vouches for the leaves of a key that was stolen.
        """
        return [
            VerifyKey.from_hex(key.public_key)
            for key in self.current.coordinator
            if key.was_active_at(position)
        ]


def usable_keys(keys: Iterable[RangedKey], position: int | None) -> list[VerifyKey]:
    """Returns those of `keys` that may sign at `position` of the log; None is the present."""
    return [VerifyKey.from_hex(key.public_key) for key in keys if key.may_sign_at(position)]


@dataclass(frozen=True)
class Trust:
    """A verified plan and the verified rosters it is carried out under.

    Example:
        >>> trust = establish_trust(root, rosters, plan_envelope)
        >>> trust.plan.federation, trust.root == root
        ('test', True)
    """

    chain: RosterChain
    plan: Plan
    plan_sha256: str

    @property
    def root(self) -> str:
        """The pinned digest, `sha256:` and 64 hex digits."""
        return self.chain.root

    @property
    def roster(self) -> Roster:
        """The current roster."""
        return self.chain.current


def establish_chain(root: str, envelopes: Sequence[bytes]) -> RosterChain:
    """Returns the rosters that follow from the pinned digest `root`.

    Args:
        root: `sha256:` and the digest of roster 1, learnt from a person, not from these files.
        envelopes: The whole chain, version 1 first.

    Raises:
        RosterError: the chain does not start at the pin, has a gap, or breaks a rule.
        RefusedError: a signature or a document does not hold.
    """
    if not envelopes:
        raise RosterError("there is no roster", hint="fetch the coordinator's published folder")
    rosters: list[Roster] = []
    digests: list[str] = []
    for version, data in enumerate(envelopes, start=1):
        what = f"roster {version}"
        previous = rosters[-1] if rosters else None
        payload = peek_payload(data, ROSTER_PAYLOAD, what=what)
        if previous is None and pin_of(payload) != root:
            raise RosterError(
                f"{what} has the digest {pin_of(payload)}, pinned is {root}",
                hint="this is another federation, an impostor, or an altered file; ask the "
                "coordinator for the fingerprint by telephone",
            )
        # The new root keys are learnt from the document, and believed only beside the old ones.
        roster = Roster.from_json(payload, what=what)
        require_next(previous, digests[-1] if digests else None, roster, version)
        require_signed(data, previous, roster)
        rosters.append(roster)
        digests.append(sha256_hex(payload))
    return RosterChain(root, tuple(rosters), tuple(digests))


def require_signed(data: bytes, previous: Roster | None, roster: Roster) -> None:
    """Refuses the envelope `data` of `roster` unless enough root keys of both rosters signed it.

    Raises:
        RosterError: too few did.
        RefusedError: a signature does not hold, or none is by a root key.
    """
    for missing, role, version in missing_signatures(data, previous, roster):
        if missing:
            raise RosterError(
                f"roster {roster.version} is signed by {role.threshold - missing} of the "
                f"{role.threshold} root keys that roster {version} asks for",
                hint="ask the holders of the root keys to sign it with `ddm-coord roster sign`",
            )


def missing_signatures(
    data: bytes, previous: Roster | None, roster: Roster
) -> list[tuple[int, RootRole, int]]:
    """Returns how many signatures are missing, for which root keys, of which roster version."""
    roles = [(roster.root, roster.version)]
    if previous is not None:
        roles.insert(0, (previous.root, previous.version))
    keys = {VerifyKey.from_hex(key) for role, _ in roles for key in role.keys}
    signed = open_envelope(data, ROSTER_PAYLOAD, keys, what=f"roster {roster.version}")
    return [(_missing(signed, role), role, version) for role, version in roles]


def _missing(signed: SignedPayload, role: RootRole) -> int:
    found = {key.hex for key in signed.signers} & set(role.keys)
    return max(0, role.threshold - len(found))


def require_next(
    previous: Roster | None, previous_sha256: str | None, roster: Roster, version: int
) -> None:
    """Refuses `roster` as the successor of `previous`, whatever its signatures (rules 2 and 3).

    Raises:
        RosterError: another version, another predecessor, another federation, a key or a site was
            dropped, or a revocation was taken back.
    """
    if roster.version != version or roster.previous_sha256 != previous_sha256:
        raise RosterError(
            f"roster {version} says it is version {roster.version} after "
            f"{(roster.previous_sha256 or 'none')[:16]}, expected version {version} after "
            f"{(previous_sha256 or 'none')[:16]}",
            hint="a roster is missing or was replaced; fetch the whole published folder again",
        )
    if previous is None:
        return
    if roster.federation != previous.federation:
        raise RosterError(
            f"roster {version} is of federation `{roster.federation}`, the one before of "
            f"`{previous.federation}`",
            hint="fetch the published folder of the right federation",
        )
    _require_kept(f"roster {version}", "the coordinator", previous.coordinator, roster.coordinator)
    members = {site.name: site for site in roster.sites}
    for site in previous.sites:
        _require_site_kept(f"roster {version}", site, members.get(site.name))


def _require_site_kept(what: str, old: RosterSite, new: RosterSite | None) -> None:
    if new is None:
        raise _history(what, f"drops the site `{old.name}`")
    _require_kept(what, f"`{old.name}`", old.keys, new.keys)
    if new.enrolled_at != old.enrolled_at or new.policies[: len(old.policies)] != old.policies:
        raise _history(what, f"rewrites the past of `{old.name}`")


def _require_kept(
    what: str, owner: str, old: Sequence[RangedKey], new: Sequence[RangedKey]
) -> None:
    present = {key.public_key: key for key in new}
    for key in old:
        kept = present.get(key.public_key)
        if kept is None:
            raise _history(what, f"drops the key {key.public_key[:16]}… of {owner}")
        same = kept.model_copy(
            update={
                "revoked_at_log_size": key.revoked_at_log_size,
                "compromised_since_log_size": key.compromised_since_log_size,
            }
        )
        ends = (
            (key.revoked_at_log_size, kept.revoked_at_log_size),
            (key.compromised_since_log_size, kept.compromised_since_log_size),
        )
        # a revocation may come, or reach further back; it is never taken back
        if same != key or any(
            before is not None and (after is None or after > before) for before, after in ends
        ):
            raise _history(what, f"changes the range of the key {key.public_key[:16]}… of {owner}")


def _history(what: str, reason: str) -> RosterError:
    return RosterError(
        f"{what} {reason}, which would change who could sign in the past",
        hint="rosters only add keys and revocations; the holders of the root keys should not sign "
        "this one",
    )


def establish_trust(root: str, roster_envelopes: Sequence[bytes], plan_envelope: bytes) -> Trust:
    """Returns the trust that follows from the pinned digest `root`.

    Args:
        root: `sha256:` and the digest of roster 1, learnt from a person, not from these files.
        roster_envelopes: The whole chain, version 1 first.
        plan_envelope: The signed plan.

    Raises:
        RosterError: see `establish_chain`.
        RefusedError: a signature or a document does not hold.
    """
    chain = establish_chain(root, roster_envelopes)
    signed = open_envelope(
        plan_envelope, PLAN_PAYLOAD, chain.coordinator_keys(None), what="the plan"
    )
    plan = Plan.from_json(signed.payload, what="the plan")
    if plan.federation != chain.current.federation:
        raise PlanMismatchError(
            f"the plan is of federation `{plan.federation}`, the roster of "
            f"`{chain.current.federation}`",
            hint="fetch both from the same published folder",
        )
    return Trust(chain, plan, sha256_hex(signed.payload))


def require_in_force(trust: Trust, moment: datetime) -> None:
    """Refuses a plan or roster that has expired at `moment`: no new work is done under it.

    Raises:
        ExpiredError: naming which, and since when.
    """
    for what, expires_at in (
        ("the plan", trust.plan.expires_at),
        (f"roster {trust.roster.version}", trust.roster.expires_at),
    ):
        if moment >= expires_at:
            raise ExpiredError(
                f"{what} expired on {expires_at:%Y-%m-%d %H:%M} UTC",
                hint="ask the coordinator to publish a new one: `ddm-coord roster renew` for the "
                "roster, `ddm-coord publish` for the plan",
            )
