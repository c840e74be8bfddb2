"""The expert that a site committed to and keeps: found, compared with its digest, loaded."""

from dataclasses import dataclass

from ddm_fed.bundle.verify import ENVELOPE_FILE, EXPERT_FILE, read_verified
from ddm_fed.errors import DigestError, StateError
from ddm_fed.flows import Expert
from ddm_fed.models import build_expert
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    RemoteSpec,
    Statement,
    Submission,
    adds_to_mixture,
)
from ddm_fed.signing import peek_payload
from ddm_fed.storage.digests import sha256_of
from ddm_fed.storage.files import read_bounded
from ddm_fed.trust import Trust
from sites.outbox.stages import find_bundles
from sites.train.expert import own_mixture
from sites.workspace import SiteFolder


@dataclass(frozen=True)
class HeldExpert:
    """An expert whose weights stay, ready to be asked.

    Attributes:
        sha256: Of its weights, as the released manifest says.
        expert: Itself.
        remote: What the plan allows.
        is_private: Whether its training was private, so that its answers are post-processing.
    """

    sha256: str
    expert: Expert
    remote: RemoteSpec
    is_private: bool


def open_held_expert(site: SiteFolder, trust: Trust) -> HeldExpert:
    """Returns the expert of the newest bundle that was released under the plan and holds none.

    Raises:
        StateError: there is no such bundle, or the plan allows none.
        DigestError: the weights here are no longer those that the manifest commits to.
    """
    found, remote = _committed(site, trust), trust.plan.expert.remote
    if found is None or found.held_expert is None or remote is None:
        raise StateError(
            "no bundle that was released under this plan says that its expert stays here",
            hint="with `keep_weights = true` in site.toml and a plan with [expert.remote]: "
            "`ddm-site train`, review, release and submit, then serve",
        )
    work, design = site.work(trust.plan_sha256), found.expert
    file = work / EXPERT_FILE
    if not file.exists() or sha256_of(file) != found.held_expert:
        raise DigestError(
            f"{file} is not the expert {found.held_expert[:16]}… that the released bundle "
            f"commits to",
            hint="it was trained again since: review, release and submit the new bundle; or "
            "restore the file from backup",
        )
    weights = read_verified(
        file, found.held_expert, most_bytes=file.stat().st_size, what=f"`{file.name}`"
    )
    mixture = None
    if adds_to_mixture(design.architecture):
        mixture = own_mixture(work, trust.plan, design)
    expert = build_expert(trust.plan.data, design, weights, mixture)
    return HeldExpert(found.held_expert, expert, remote, found.privacy.expert_is_private)


def _committed(site: SiteFolder, trust: Trust) -> Submission | None:
    """Returns the newest released manifest of the plan, as this site wrote it."""
    for folder in reversed(find_bundles(site.released)):
        envelope = read_bounded(folder / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
        payload = peek_payload(envelope, IN_TOTO_PAYLOAD, what=folder.name)
        submission = Statement[Submission].from_json(payload, what=folder.name).predicate
        if submission.plan_sha256 == trust.plan_sha256:
            return submission
    return None
