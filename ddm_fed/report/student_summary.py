"""What a person has to know first of a student, and where its use ends."""

from dataclasses import replace

from ddm_fed.report.student_facts import StudentFacts
from ddm_fed.report.summary import (
    FEW,
    Line,
    attacks,
    copies,
    limits_with,
    listed,
    origin,
    privacy,
    quality,
    still_current,
)


def in_short(facts: StudentFacts) -> list[Line]:
    """Returns the summary of a report."""
    return [
        origin(facts),
        _made_from(facts),
        still_current(facts),
        _privacy(facts),
        attacks(facts),
        quality(facts),
        copies(facts),
    ]


def promises(facts: StudentFacts) -> list[str]:
    """Returns what its statement promises, in sentences."""
    record, made = facts.verified.record, facts.verified.record.distillation
    promised = record.privacy
    sentences = [
        "Nothing but the ensemble was read to make it: it is post-processing, and what the members "
        "promise, the student keeps."
    ]
    if not promised.post_processing:
        sentences = [
            f"NOT bounded: it learnt from {made.images:,} given images, of the digest "
            f"{made.images_sha256[:16]}…, so it is no post-processing. What the members promise "
            "does not cover those images, and nothing is promised of them.",
            "Of the images of the members it tells no more than the ensemble does, unless given "
            "images are among them.",
        ]
    if facts.start is not None and not facts.start.privacy.expert_is_private:
        sentences.append(
            f"NOT bounded: it began with the weights of the expert of {facts.start.name}, which "
            "was trained without noise. What that expert remembers of its images, the student may "
            "remember too."
        )
    bound = f"epsilon {promised.epsilon} at delta {promised.delta:f}, for one {promised.unit}"
    if facts.unbounded:
        names = listed([member.name for member in facts.unbounded])
        sentences.append(
            f"What members released with noise has at most {bound}. The student has no epsilon of "
            f"its own, because something of {names} was made without noise."
        )
    elif not promised.post_processing:
        sentences.append(
            f"Everything that members sent was made with noise, and has at most {bound}. The "
            "student has no epsilon of its own: given images may be those of a member."
        )
    else:
        sentences.append(
            "Everything that members sent was made with noise, so towards each of them the "
            f"student has at most {bound}."
        )
    return sentences


def teaching(facts: StudentFacts) -> list[tuple[str, str]]:
    """Returns how it was taught, as its statement says: name and words."""
    record, made = facts.verified.record, facts.verified.record.distillation
    if made.solver_steps is not None:
        source = (
            f"{made.images:,} samples of the ensemble, each drawn in {_steps(made.solver_steps)}"
        )
        by = "the expert that drew the sample"
    else:
        source = f"{made.images:,} images that were given"
        by = "the expert that the router takes the image to be of"
    if made.teacher == "ensemble":
        by = "all experts, weighted by the router"
    spec, work = made.training, made.gigaflops
    return [
        ("Ensemble", f"{record.ensemble_sha256}, with the router {made.router}"),
        ("Learnt from", f"{source}, of the digest {made.images_sha256}"),
        ("Taught by", by),
        (
            "Began with",
            "weights that were drawn"
            if made.start is None
            else f"the weights of the expert of {made.start}",
        ),
        (
            "Training",
            f"{_steps(spec.steps)} of {spec.batch_size:,} images, learning rate "
            f"{spec.learning_rate}, seed {made.seed}, {made.precision}",
        ),
        (
            "Computed",
            f"{work.total:,} GFLOP: {work.drawing:,} to draw images, {work.teacher:,} by teachers, "
            f"{work.student:,} by the student",
        ),
        ("Program", f"{made.program}, torch {made.torch}"),
    ]


def limits(facts: StudentFacts) -> list[str]:
    """Returns what the facts do not say, and where their use ends."""
    samples, made = facts.samples, facts.verified.record.distillation
    own = list[str]()
    if not facts.verified.record.privacy.post_processing:
        own.append(
            f"What it learnt of the {made.images:,} given images has no bound: give the student "
            "only to those who may see these images, and treat samples as if they could show one."
        )
    own += [
        "A student says nearly what its ensemble says. How much it lost, an evaluation of the "
        "samples of both shows, by the same real images.",
        "No sample of it belongs to a site, so nobody can count whether small sites are heard.",
        "It cannot forget a site: if a member leaves, this student is stale, and another has to be "
        "made of an ensemble without that member.",
    ]
    if (made.source, made.teacher) == ("data", "own"):
        own.append(
            "One expert taught each given image, the one the router took it to be of: where sites "
            "are alike, small ones may hardly be heard."
        )
    if samples is not None and samples.count < FEW:
        own.append(f"{samples.count} samples are few: figures of them are uncertain.")
    return limits_with(facts, own)


def _made_from(facts: StudentFacts) -> Line:
    ensemble = facts.verified.record.ensemble_sha256
    return Line(
        "Made of the ensemble",
        "not known",
        f"The coordinator signed that it was distilled from the ensemble {ensemble[:16]}…, which "
        "the folder cannot prove; making it again can.",
    )


def _privacy(facts: StudentFacts) -> Line:
    line, made = privacy(facts), facts.verified.record.distillation
    if facts.verified.record.privacy.post_processing:
        return replace(
            line,
            text=f"{line.text} The student was computed from experts and releases alone, and "
            "tells no more than they do.",
        )
    return replace(
        line,
        state="look",
        text=f"NOT bounded: {made.images:,} given images that it learnt from, which the members' "
        f"promises do not cover. Of the members: {line.text}",
    )


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"
