"""What an audit found, as a record and in words: as much as was shown, and no more."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from ddm_fed.auditing.canaries import CanaryAudit
from ddm_fed.auditing.membership import Membership
from ddm_fed.auditing.nearest_samples import NearestSamples
from ddm_fed.auditing.onerun import gaussian_bound
from ddm_fed.records import AuditFacts, CanaryType, Method, verdict

METHOD: Method = (
    "guesses of one run and means of its scores against a Gaussian trade-off; the claimed profile "
    "by guesses and by rates"
)
CANARY_TYPE: CanaryType = "Dirac gradients through the step's sampler, clipping and noise"
PLACES = Decimal("0.0001")
LEAST_P = Decimal("1e-15")


def audit_facts(audit: CanaryAudit) -> AuditFacts:
    """Returns what canaries found out, as it may be signed.

    Bounds from below are rounded down, and so is the ceiling; the claim is rounded up, and so is
    the p-value. `guesses` and `correct` are those of the number of guesses that gave the bound.
    """
    shared = 1 - (1 - audit.confidence) / len(audit.tried)
    best = max(
        audit.tried,
        key=lambda one: gaussian_bound(audit.canaries, [one], audit.delta, confidence=shared),
    )
    significance, ceiling = _plain(audit.significance), _down(audit.ceiling)
    claimed = Decimal(audit.claimed_epsilon).quantize(PLACES, ROUND_CEILING)
    p_value = max(LEAST_P, Decimal(audit.p_value).quantize(LEAST_P, ROUND_CEILING))
    return AuditFacts(
        empirical_eps_lower_bound=_down(audit.bound),
        score_eps_lower_bound=_down(audit.score_bound),
        confidence=_plain(audit.confidence),
        delta=_plain(audit.delta),
        method=METHOD,
        canaries=audit.canaries,
        guesses=best.made,
        correct=best.correct,
        ceiling=ceiling,
        attacker_access="white-box gradients",
        canary_type=CANARY_TYPE,
        claimed_eps=claimed,
        steps=audit.event.steps,
        training_steps=audit.training_steps,
        p_value=p_value,
        significance=significance,
        # of what is written down: whoever reads it can check it
        verdict=verdict(p_value, significance, ceiling, claimed),
    )


def describe_audit(facts: AuditFacts) -> str:
    """Returns what an audit found out, a few sentences of plain text."""
    scope = ""
    if facts.steps < facts.training_steps:
        scope = (
            f" Only {facts.steps} of {facts.training_steps} steps were run; both figures are of "
            "these."
        )
    return (
        f"{_sentence(facts)}{scope} {_verdict(facts)} The attack was right about {facts.correct} "
        f"of {facts.guesses} guesses and could have shown at most epsilon {facts.ceiling}; it used "
        f"{facts.canaries} canaries ({facts.canary_type}) with access to "
        f"{facts.attacker_access}."
    )


def _sentence(facts: AuditFacts) -> str:
    confidence = format((100 * facts.confidence).normalize(), "f")
    gap = " The gap is unexplained, not safety."
    if facts.verdict == "violates_claim":
        gap = ""
    return (
        f"With {confidence} % confidence the training leaks at least epsilon "
        f"{facts.empirical_eps_lower_bound} against this attack; the proved bound is "
        f"{facts.claimed_eps} at delta {facts.delta.normalize()}.{gap} {_of_scores(facts)}"
    )


def _of_scores(facts: AuditFacts) -> str:
    found = (
        f"If the scores behind the guesses are normal, it leaks at least epsilon "
        f"{facts.score_eps_lower_bound}"
    )
    if facts.score_eps_lower_bound <= facts.claimed_eps:
        return f"{found}."
    rarely = (1 - facts.confidence).normalize()
    return (
        f"{found}, which is more than is proved: of an honest step an audit says so with a "
        f"probability below {rarely}. Repeat the audit."
    )


def _verdict(facts: AuditFacts) -> str:
    alarm = f"an honest step is accused with a probability below {facts.significance.normalize()}"
    match facts.verdict:
        case "violates_claim":
            return (
                f"The claim is REJECTED (p at most {float(facts.p_value):.1g}; {alarm}): nothing "
                "that this step makes may be released as private. The claim is tested at every "
                "epsilon, which can show more than the bound."
            )
        case "consistent_with_claim":
            return f"The claim is not rejected ({alarm}), which does not show that it is true."
        case "inconclusive":
            return (
                "Nothing follows for the claim: even if all guesses were right, this attack could "
                "not have exceeded it. Use more canaries."
            )


def describe_membership(found: Membership, claimed_eps: Decimal | None = None) -> str:
    """Returns how an attack by the loss fared, a few sentences of plain text that stay at the site.

    Args:
        found: What was measured.
        claimed_eps: Of the expert's training, or of the release that it is; None without noise.
    """
    area, rate = found.area, found.true_positives
    calibration = "calibrated by a reference" if found.calibrated else "without a reference"
    bound = "No upper bound exists: the expert was trained without noise."
    if claimed_eps is not None:
        bound = (
            f"The proved bound is epsilon {claimed_eps}; what this attack misses, others may not."
        )
    return (
        f"A threshold on the denoising loss ({found.draws} draws per image, {calibration}) tells "
        f"{found.members} members from {found.controls} controls with an AUC of {area.value:.3f} "
        f"[{area.low:.3f}, {area.high:.3f}], 0.5 being chance. At a false-positive rate of "
        f"{found.false_positive_rate:g} it finds {rate.value:.1%} of the members "
        f"[{rate.low:.1%}, {rate.high:.1%}]. {bound} These figures come from real images: they are "
        "local."
    )


def describe_nearest_samples(found: NearestSamples, claimed_eps: Decimal | None = None) -> str:
    """Returns what nearest samples found out, a few sentences of plain text that stay at the site.

    Args:
        found: What was measured.
        claimed_eps: Proved of the expert with all that it was made of; None without noise.
    """
    tried = ", ".join(f"{one.correct} of {one.made}" for one in found.tried)
    text = (
        f"Of {found.pairs} pairs of a trained and a held-back image, the one nearer to any of "
        f"{found.samples} samples was the trained one in {tried} guesses (the surest first). With "
        f"{100 * found.confidence:g} % confidence the expert leaks at least epsilon "
        f"{_down(found.bound)} at delta {found.delta:g}; all guesses right would have shown "
        f"{_down(found.ceiling)}."
    )
    if found.rejects:
        return (
            f"{text} The claim of epsilon {claimed_eps} is REJECTED (p at most {found.p_value:.1g})"
            ": the samples know trained images better than promised, unless the controls were not "
            "held back by chance and are of another kind."
        )
    if claimed_eps is None:
        return f"{text} Nothing is claimed: the expert was trained without noise."
    return f"{text} The claim of epsilon {claimed_eps} is not rejected."


def _down(value: float) -> Decimal:
    return Decimal(value).quantize(PLACES, ROUND_FLOOR)


def _plain(value: float) -> Decimal:
    return Decimal(repr(value))
