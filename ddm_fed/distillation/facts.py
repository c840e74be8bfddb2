"""What a verification found, as plain values: for `verify --json` and for Python, the same."""

from typing import Any

from ddm_fed.bundle.verify import VerifiedBundle
from ddm_fed.distillation.folder import VerifiedStudent
from ddm_fed.distillation.opening import Sampled
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.staleness import Staleness
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log

Facts = dict[str, Any]


def facts_of(verified: Sampled, newer: Staleness | None) -> Facts:
    """Returns what a verified ensemble or student is, whose, and what it promises.

    Args:
        verified: What was verified.
        newer: What newer documents say of it, if they were at hand; None says nothing of it.
    """
    if isinstance(verified, VerifiedStudent):
        found = _of_student(verified)
    else:
        found = _of_ensemble(verified)
    return found | {
        "stale": list(newer.stale) if newer else None,
        "newer": list(newer.newer) if newer else None,
    }


def facts_of_bundle(bundle: VerifiedBundle) -> Facts:
    """Returns what one site's verified bundle is, and what it promises."""
    privacy = bundle.submission.privacy
    return {
        "site": bundle.site,
        "submission_sha256": bundle.payload_sha256,
        "router_epsilon": privacy.releases_epsilon,
        "expert_is_private": privacy.expert_is_private,
        "privacy": privacy.model_dump(mode="json", exclude={"ledger"}),
        "files": dict(bundle.sha256),
        "held_expert": bundle.submission.held_expert,
    }


def facts_of_published(trust: Trust, log: Log) -> Facts:
    """Returns what a verified published folder establishes."""
    return {
        "verified": "published folder",
        "federation": trust.plan.federation,
        "root": trust.root,
        "plan_sha256": trust.plan_sha256,
        "roster": trust.roster.version,
        "log": log.head.model_dump(),
    }


def _of_ensemble(verified: VerifiedEnsemble) -> Facts:
    record = verified.record
    return {
        "verified": "ensemble",
        "federation": record.federation,
        "root": record.root,
        "ensemble_sha256": verified.sha256,
        "plan_sha256": record.plan_sha256,
        "roster": record.roster.version,
        "log": record.log.model_dump(),
        "router": record.router,
        "left_out": list(record.left_out),
        "members": [facts_of_bundle(bundle) for bundle in verified.bundles],
    }


def _of_student(verified: VerifiedStudent) -> Facts:
    record = verified.record
    return {
        "verified": "student",
        "federation": record.federation,
        "root": record.root,
        "student_sha256": verified.sha256,
        "ensemble_sha256": record.ensemble_sha256,
        "plan_sha256": record.plan_sha256,
        "roster": record.roster.version,
        "log": record.log.model_dump(),
        "design": record.design.model_dump(mode="json"),
        "weights_sha256": verified.weights_sha256,
        "distillation": record.distillation.model_dump(mode="json"),
        "privacy": record.privacy.model_dump(mode="json"),
        "left_out": list(record.left_out),
        "members": {item.site: item.submission_sha256 for item in record.members},
    }
