"""From one pinned fingerprint to every key: the chain of rosters, and the plan.

Rules, in order. (1) The first roster is signed by the root key whose fingerprint the verifier
holds. (2) Every later roster counts one higher, names the digest of the one before, has the same
federation and root key, and is signed by it. (3) The plan is signed by the coordinator key of the
last roster, and belongs to its federation. Nothing here touches disk or network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ddm_fed.errors import ExpiredError, PlanMismatchError, RosterError
from ddm_fed.records import Plan, Roster, RosterReference, sha256_hex
from ddm_fed.signing.envelope import PLAN_PAYLOAD, ROSTER_PAYLOAD, open_envelope, peek_payload
from ddm_fed.signing.keys import VerifyKey, fingerprint


@dataclass(frozen=True)
class Trust:
    """A verified plan and the verified rosters it is carried out under, newest last."""

    root_keyid: str
    plan: Plan
    plan_sha256: str
    rosters: tuple[Roster, ...]
    roster_sha256: tuple[str, ...]

    @property
    def roster(self) -> Roster:
        """The current roster."""
        return self.rosters[-1]

    @property
    def roster_reference(self) -> RosterReference:
        """The version and digest of the current roster, as manifests cite it."""
        return RosterReference(version=self.roster.version, sha256=self.roster_sha256[-1])

    @property
    def coordinator_key(self) -> VerifyKey:
        """The key that signs plans, receipts and ensembles."""
        return VerifyKey.from_hex(self.roster.coordinator_key)

    def knows(self, reference: RosterReference) -> bool:
        """Returns whether `reference` is a roster of the verified chain."""
        return (
            1 <= reference.version <= len(self.rosters)
            and self.roster_sha256[reference.version - 1] == reference.sha256
        )


def establish_trust(
    root_keyid: str, roster_envelopes: Sequence[bytes], plan_envelope: bytes
) -> Trust:
    """Returns the trust that follows from the pinned `root_keyid`.

    Args:
        root_keyid: Fingerprint of the root key, learnt from a person, not from these files.
        roster_envelopes: The whole chain, version 1 first.
        plan_envelope: The signed plan.

    Raises:
        RosterError: the chain does not start at the pinned key, has a gap, or was rewritten.
        RefusedError: a signature or a document does not hold.
    """
    if not roster_envelopes:
        raise RosterError("there is no roster", hint="fetch the coordinator's published folder")
    rosters: list[Roster] = []
    digests: list[str] = []
    for version, data in enumerate(roster_envelopes, start=1):
        what = f"roster {version}"
        # The root key is learnt from the document, and believed only if its fingerprint is pinned.
        claimed = Roster.from_json(peek_payload(data, ROSTER_PAYLOAD, what=what), what=what)
        found_keyid = fingerprint(bytes.fromhex(claimed.root_key))
        if found_keyid != root_keyid:
            raise RosterError(
                f"{what} is of the root key {found_keyid}, pinned is {root_keyid}",
                hint="this is another coordinator, an impostor, or an altered file; ask the "
                "coordinator for the fingerprint by telephone",
            )
        root = VerifyKey.from_hex(claimed.root_key)
        signed = open_envelope(data, ROSTER_PAYLOAD, [root], what=what)
        roster = Roster.from_json(signed.payload, what=what)
        previous = digests[-1] if digests else None
        if roster.version != version or roster.previous_sha256 != previous:
            raise RosterError(
                f"{what} says it is version {roster.version} after "
                f"{(roster.previous_sha256 or 'none')[:16]}, expected version {version} after "
                f"{(previous or 'none')[:16]}",
                hint="a roster is missing or was replaced; fetch the whole published folder again",
            )
        if rosters and roster.federation != rosters[0].federation:
            raise RosterError(
                f"{what} is of federation `{roster.federation}`, roster 1 of "
                f"`{rosters[0].federation}`",
                hint="fetch the published folder of the right federation",
            )
        rosters.append(roster)
        digests.append(signed.sha256)
    current = rosters[-1]
    signed_plan = open_envelope(
        plan_envelope, PLAN_PAYLOAD, [VerifyKey.from_hex(current.coordinator_key)], what="the plan"
    )
    plan = Plan.from_json(signed_plan.payload, what="the plan")
    if plan.federation != current.federation:
        raise PlanMismatchError(
            f"the plan is of federation `{plan.federation}`, the roster of `{current.federation}`",
            hint="fetch both from the same published folder",
        )
    return Trust(root_keyid, plan, sha256_hex(signed_plan.payload), tuple(rosters), tuple(digests))


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
                hint="ask the coordinator to publish a new one",
            )
