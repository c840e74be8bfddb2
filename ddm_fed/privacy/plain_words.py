"""A privacy statement in plain words: what a submission promises, and what it does not.

Source of the facts that belong on the page: NIST SP 800-226 (2025).
"""

import math
from collections.abc import Iterable

from ddm_fed.records import LedgerEntry, NonPrivateEvent, PrivacyStatement, Submission

WEAK_EPSILON = 10.0
FALSELY_ACCUSED = 0.01
LEDGER_COLUMNS = ("#", "when (UTC)", "plan", "purpose", "noise multiplier", "rate x steps")


def describe_privacy(privacy: PrivacyStatement) -> list[str]:
    """Returns what `privacy` says, a list of sentences for people; computed from nothing else."""
    unit, epsilon = privacy.unit, float(privacy.releases_epsilon)
    share = f"{100 * most_found(epsilon, float(privacy.delta)):.4g} %"
    lines = [
        f"Everything this site ever released with noise is bounded by epsilon "
        f"{privacy.releases_epsilon} at delta {privacy.delta:f}, for one {unit} more or less "
        f"({len(privacy.ledger)} ledger entries; {privacy.accountant}).",
        f"In words: whoever sees all of it and tests whether {unit}s were used, and is wrong about "
        f"{FALSELY_ACCUSED:.0%} of those that were not, finds at most {share} of the {unit}s that "
        f"were used; guessing finds {FALSELY_ACCUSED:.0%}.",
    ]
    if epsilon > WEAK_EPSILON:
        lines.append(
            f"An epsilon above {WEAK_EPSILON:g} promises little: whether it means anything has to "
            "be argued from attacks, not from the number."
        )
    lines += _covered(privacy)
    without = [
        entry.purpose for entry in privacy.ledger if isinstance(entry.event, NonPrivateEvent)
    ]
    if without:
        lines.append(
            "NOT bounded by it: " + ", ".join(sorted(set(without))) + ", made without noise. Their "
            f"weights may tell any {unit} they saw: release them only to whom your agreement names."
        )
    if privacy.audit is not None:
        found = privacy.audit
        lines.append(
            f"An attack by {found.canaries:,} canaries on the training step showed at least "
            f"epsilon {found.empirical_eps_lower_bound} by guesses (at most {found.ceiling} could "
            f"show) and {found.score_eps_lower_bound} by their scores, of {found.claimed_eps} "
            f"proved for the same steps: {found.verdict.replace('_', ' ')}."
        )
    lines += [
        f"Not hidden by any epsilon: what kind of images the site has and in which proportions; a "
        f"fact about many {unit}s at once.",
        f"If one {unit} is at several sites, its epsilons add up.",
        "A signature proves who says this, not that it is true: the coordinator has checked the "
        "arithmetic, and nobody but the site has seen the noise.",
    ]
    return lines


def submission_in_words(submission: Submission) -> list[str]:
    """Returns `describe_privacy` of a submission, and what it means if its expert stays."""
    lines = describe_privacy(submission.privacy)
    if submission.held_expert is not None:
        lines.append(describe_held(expert_is_private=submission.privacy.expert_is_private))
    return lines


def describe_held(*, expert_is_private: bool) -> str:
    """Returns what it means that an expert stays at its site and answers questions, in a sentence.

    Args:
        expert_is_private: Whether it was trained with noise, or is a release.
    """
    begin = "The expert's weights stay at the site, which answers for them as often as the plan's"
    if expert_is_private:
        return (
            f"{begin} `expert.remote.evaluations` says. Its answers are post-processing of what "
            "epsilon bounds, and cost no more."
        )
    return (
        f"NOT bounded by any epsilon: the answers of an expert made without noise. {begin} "
        "`expert.remote.evaluations` says. That limits how much is answered and guarantees "
        "nothing: each answer shows the influence of training images."
    )


def ledger_rows(ledger: Iterable[LedgerEntry]) -> list[list[str]]:
    """Returns the cells of every entry, in the order of `LEDGER_COLUMNS`."""
    return [
        [
            str(entry.index),
            f"{entry.recorded_at:%Y-%m-%d}",
            entry.plan_sha256[:8],
            entry.purpose,
            str(getattr(entry.event, "noise_multiplier", "none: no guarantee")),
            rate_of(entry.event),
        ]
        for entry in ledger
    ]


def rate_of(event: object) -> str:
    """Returns how often a mechanism touched the data: once, or at a rate over steps."""
    steps = getattr(event, "steps", None)
    return "1" if steps is None else f"{getattr(event, 'sampling_rate', 1)} x {steps}"


def most_found(epsilon: float, delta: float, falsely: float = FALSELY_ACCUSED) -> float:
    """Returns the largest share of true positives of any test with `falsely` false positives.

    Source: Kairouz, Oh and Viswanath 2015, arXiv:1311.0776, theorem 2.1.
    """
    bounded = min(epsilon, 700.0)
    return min(
        1.0,
        math.exp(bounded) * falsely + delta,
        1 - math.exp(-bounded) * (1 - delta - falsely),
    )


def _covered(privacy: PrivacyStatement) -> list[str]:
    lines = ["Router statistics: " + privacy.statistics + " noise on whole numbers."]
    if privacy.expert_is_private and privacy.sgd is None:
        lines.append("Expert: the mixture that these statistics describe; it has no other weights.")
    if privacy.sgd is not None:
        facts = privacy.sgd
        lines.append(
            f"Expert: DP-SGD ({facts.sampling} sampling, clip norm {facts.clip_norm}, "
            f"{facts.draws} draws per {privacy.unit}, trained: {facts.trainable}; "
            f"{facts.arithmetic}; tested before the first step: {facts.self_test}; steps computed "
            f"again by another way: {facts.steps_computed_again})."
        )
        if facts.central is not None:
            lines.append(
                f"Before that it learnt {facts.central.images} noisy mean image(s) of each class, "
                f"to which one {privacy.unit} adds at most a norm of {facts.central.radius}."
            )
    if privacy.head_is_private:
        lines.append("Router head: DP-SGD as well.")
    return lines
