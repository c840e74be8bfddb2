"""What a person has to know first, and where it ends: sentences that follow from the facts.

The lines of an ensemble; those that hold of a student alike are open to `student_summary`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ddm_fed.privacy import WEAK_EPSILON, most_found
from ddm_fed.report.ensemble_facts import EnsembleFacts
from ddm_fed.report.facts import MemberFacts, ModelFacts
from ddm_fed.report.page import percent

State = Literal["holds", "look", "measured", "not known"]
RARE = 0.05  # of an exact sampler: below it, shares are worth a look
FEW = 1000  # samples


@dataclass(frozen=True)
class Line:
    """One line of the summary: what it is about, how it stands, and a sentence or two."""

    about: str
    state: State
    text: str


def in_short(facts: EnsembleFacts) -> list[Line]:
    """Returns the summary of a report."""
    return [
        origin(facts),
        still_current(facts),
        privacy(facts),
        attacks(facts),
        _shares(facts),
        quality(facts),
        copies(facts),
    ]


def origin(facts: ModelFacts) -> Line:
    """Says down from what everything verifies, and what that proves."""
    record, count = facts.verified.record, len(facts.members)
    submissions = "1 submission" if count == 1 else f"{count} submissions"
    return Line(
        "Origin",
        "holds",
        f"Every signature, digest and log proof holds, down from the fingerprint "
        f"{record.root[:15]}…: {submissions} under one plan, in a log of {record.log.size} "
        "entries. A signature proves who said something, not that it is true.",
    )


def still_current(facts: ModelFacts) -> Line:
    """Says whether newer documents speak against it."""
    about = "Still current"
    if facts.staleness is None or facts.held_against is None:
        return Line(about, "not known", "It was not held against newer rosters or a newer log.")
    if facts.staleness.newer:
        return Line(about, "look", "; ".join(facts.staleness.newer) + ". This one holds the older.")
    return Line(
        about,
        "holds",
        f"No member was removed and no key revoked in the log of {facts.held_against.size} "
        "entries that it was held against.",
    )


def privacy(facts: ModelFacts) -> Line:
    """Says what of what left the sites is bounded, and by what."""
    unit = facts.verified.trust.plan.privacy.unit
    delta = facts.verified.trust.plan.privacy.delta
    epsilon = facts.largest_epsilon
    found = percent(most_found(epsilon, float(delta)))
    bounded = (
        f"at most epsilon {epsilon:g} at delta {delta:f}: of the {unit}s that were used, a test "
        f"that wrongly accuses 1 in 100 finds at most {found}"
    )
    if facts.unbounded:
        parts = listed(
            [f"{member.name} ({listed(member.unbounded)})" for member in facts.unbounded]
        )
        return Line(
            "Privacy",
            "look",
            f"NOT bounded by any epsilon, because made without noise: {parts}. Weights may tell "
            f"any {unit} they saw. What carries noise is bounded by {bounded}.",
        )
    state: State = "look" if epsilon > WEAK_EPSILON else "holds"
    weak = " Above 10, epsilon promises little." if state == "look" else ""
    return Line("Privacy", state, f"Everything that left a site is bounded, by {bounded}.{weak}")


def attacks(facts: ModelFacts) -> Line:
    """Says what attacks of sites on their own training found."""
    audited = [member for member in facts.members if member.privacy.audit is not None]
    if not audited:
        text = "No site shared the figures of an attack on its own training."
        return Line("Attacks", "not known", text)
    broken = [
        member.name
        for member in audited
        if member.privacy.audit is not None and member.privacy.audit.verdict == "violates_claim"
    ]
    if broken:
        text = f"An attack REJECTS what is claimed of {listed(broken)}."
        return Line("Attacks", "look", text)
    names = listed([member.name for member in audited])
    text = f"Attacks by {names} on their own training did not reject what is claimed."
    return Line("Attacks", "measured", text)


def _shares(facts: EnsembleFacts) -> Line:
    about, samples = "Shares of the sites", facts.samples
    if samples is None:
        return Line(about, "not known", "No samples were given.")
    if samples.shares is None:
        text = f"Under {samples.strategy} no sample is of one site: shares cannot be counted."
        return Line(about, "not known", text)
    found = samples.shares
    said = (
        f"Over {samples.count} samples the obtained shares are {found.error:.3f} from the intended "
        f"ones; chance alone stays below {found.chance_high:.3f} in 95 of 100 cases"
    )
    if samples.guidance != 1:
        return Line(about, "look", f"{said}. Under guidance, no strategy keeps shares exactly.")
    if found.p_value < RARE:
        return Line(about, "look", f"{said}, so chance hardly explains them.")
    return Line(about, "holds", f"{said}, so chance explains them.")


def quality(facts: ModelFacts) -> Line:
    """Says how good its samples are, by the first figure there is."""
    if facts.evaluation is None:
        return Line("Quality", "not known", "No evaluation was given.")
    for name in ("FID", "told from real (C2ST)"):
        row = next((row for row in facts.evaluation.rows if row[0] == name), None)
        if row is not None:
            beside = f"; real images in their place have {row[2]}" if row[2] else ""
            text = f"{name} {row[1]} ({row[3]} images){beside}. {row[4].capitalize()}."
            return Line("Quality", "measured", text)
    return Line("Quality", "not known", "No figure of fidelity could be measured; see below.")


def copies(facts: ModelFacts) -> Line:
    """Says how many samples are near copies of training images."""
    about, found = "Copies", None if facts.evaluation is None else facts.evaluation.copies
    if found is None:
        text = "Nobody looked for copies of training images: only who has those images can."
        return Line(about, "not known", text)
    share, low, _, chance = found
    text = (
        f"{percent(share)} of the samples are near copies of the training images that were given; "
        f"chance makes at most {percent(chance)}. Whose images these were, nothing here proves."
    )
    return Line(about, "look" if low > chance else "measured", text)


def limits(facts: EnsembleFacts) -> list[str]:
    """Returns what the facts do not say, and where their use ends."""
    samples, own = facts.samples, list[str]()
    if samples is not None and samples.strategy.kind in ("top-k", "threshold", "nucleus"):
        own.append(f"Under {samples.strategy} small sites may hardly be heard.")
    if samples is not None and samples.count < FEW:
        own.append(f"{samples.count} samples are few: shares and figures of them are uncertain.")
    return limits_with(facts, own)


def limits_with(facts: ModelFacts, own: Sequence[str]) -> list[str]:
    """Returns the limits of every model, with those of this one at their place.

    Args:
        facts: What is known of it.
        own: What holds of this one.
    """
    plan, unit = facts.verified.trust.plan, facts.verified.trust.plan.privacy.unit
    lines = [
        "A signature proves who said something, not that it is true: nobody but a site has seen "
        "its images, its noise, or how many images it has.",
        f"Epsilon says nothing of what kind of images a site has, nor of facts about many {unit}s "
        f"at once; of one {unit} at several sites, the epsilons add up.",
    ]
    if facts.unbounded:
        of_student = ", and so the student's have none" if facts.kind == "student" else ""
        lines.append(
            f"The weights of {_names(facts.unbounded)} have no bound{of_student}: give the "
            f"{facts.kind} only to those whom the agreement names, and treat samples as if they "
            "could show a training image."
        )
    if unit == "image":
        lines.append("A patient with several images is protected less than one image is.")
    return [
        *lines,
        *own,
        "Samples are made up. They resemble what the sites have, mistakes and gaps included, and "
        "no finding about a person follows from one.",
        "Nothing here was tested for diagnosis or treatment.",
        f"The plan is in force until {plan.expires_at:%Y-%m-%d}.",
    ]


def common_sentences(members: Sequence[MemberFacts]) -> list[str]:
    """Returns the sentences on privacy that hold of every site alike, in their order."""
    if len(members) == 1:
        return []
    return [
        line for line in members[0].sentences if all(line in member.sentences for member in members)
    ]


def listed(names: Sequence[str]) -> str:
    """Returns names as people list them."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _names(members: Sequence[MemberFacts]) -> str:
    return listed([member.name for member in members])
