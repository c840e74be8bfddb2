"""The reference that sites train their heads against: made of everything they released."""

from collections.abc import Collection
from decimal import Decimal

from coordinator import journal
from coordinator.ensembles.assemble import choose_members
from coordinator.inbox.admission import begin
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.policy import release_events
from ddm_fed.bundle.reference import (
    VerifiedReference,
    read_reference,
    reference_sha256,
    write_reference,
)
from ddm_fed.bundle.verify import ROUTER_FILE, read_verified
from ddm_fed.errors import StateError
from ddm_fed.limits import MAX_REFERENCE_BYTES
from ddm_fed.records import Reference, ReferenceMember, now
from ddm_fed.router import heads_spec
from ddm_fed.trust import Trust


def waits_for_reference(home: CoordinatorFolder, trust: Trust) -> bool:
    """Returns whether sites cannot train heads yet, for want of a reference."""
    return trust.plan.router.kind == "heads" and reference_sha256(home.published, trust) is None


def publish_reference(
    home: CoordinatorFolder, *, without: Collection[str], replace: bool
) -> VerifiedReference:
    """Puts the pool of all admitted releases under the plan into the published folder, signed.

    Args:
        home: The coordinator.
        without: Sites to leave out, if they have sent nothing yet: they can still train heads.
        replace: Make another one in place of the present one, for which heads may exist.

    Raises:
        StateError: a site is missing, the plan has no heads, or there is a reference already.
    """
    known = begin(home)
    trust = known.trust
    heads_spec(trust.plan)
    present = reference_sha256(home.published, trust)
    if present is not None and not replace:
        raise StateError(
            f"the reference {present[:16]}… is published for this plan already",
            hint="sites that join later train against it too; with --replace every site has to "
            "train its head again",
        )
    members, vectors = [], {}
    for site, item in sorted(choose_members(home, known, without).items()):
        sha256 = item.sha256[ROUTER_FILE]
        file = home.blobs.open(sha256)
        vectors[site] = read_verified(
            file, sha256, most_bytes=MAX_REFERENCE_BYTES, what=f"the release of `{site}`"
        )
        noise: dict[str, Decimal] = {
            name: event.noise_multiplier for name, event in release_events(item.submission).items()
        }
        members.append(
            ReferenceMember(
                site=site, submission_sha256=item.payload_sha256, noise_multipliers=noise
            )
        )
    record = Reference(
        federation=trust.plan.federation,
        plan_sha256=trust.plan_sha256,
        members=tuple(members),
        published_at=now(),
    )
    write_reference(home.published, record, vectors, home.key(trust.chain))
    verified = read_reference(home.published, trust)
    journal.record(
        home,
        "reference-published",
        reference_sha256=verified.sha256,
        members=[member.site for member in members],
    )
    return verified
