"""What `ddm-coord verify` says of a student, and of anything that newer documents speak against."""

from typing import TYPE_CHECKING

from ddm_fed import console

if TYPE_CHECKING:
    from ddm_fed.distillation.folder import VerifiedStudent
    from ddm_fed.ensemble.staleness import Staleness


def show_student(verified: "VerifiedStudent", newer: "Staleness | None", *, as_json: bool) -> None:
    """Writes what a verified student is, whose experts taught it, and what it promises."""
    from ddm_fed.distillation.facts import facts_of

    record = verified.record
    made, privacy = record.distillation, record.privacy
    if as_json:
        console.show_json(facts_of(verified, newer))
        return
    console.show_table(
        f"Verified: student of {record.federation}, down from {record.root[:24]}…",
        ["site", "submission", "releases' epsilon", "expert"],
        [
            [
                submission.site,
                member.submission_sha256[:16] + "…",
                submission.privacy.releases_epsilon,
                "private" if submission.privacy.expert_is_private else "not private",
            ]
            for submission, member in zip(verified.submissions, record.members, strict=True)
        ],
    )
    taught = "its own expert" if made.teacher == "own" else "all experts by the router"
    source = "samples of the ensemble" if made.source == "samples" else "images that were given"
    console.say(
        f"one network, {record.design}; {made.training.steps} steps on {made.images} {source}, "
        f"each taught by {taught}; {made.gigaflops.total:,} GFLOP in all"
    )
    console.say(f"made from the ensemble {record.ensemble_sha256[:16]}…")
    if privacy.post_processing:
        console.say(
            "nothing but the ensemble was read: what its members promise, the student keeps"
        )
    else:
        console.say(
            f"NOTE: it was trained on given images too, sha256 {made.images_sha256[:16]}…: what "
            "the members promise does not cover those"
        )
    if record.left_out:
        console.say(f"admitted but left out: {', '.join(record.left_out)}")
    say_newer(newer, "student")


def say_newer(newer: "Staleness | None", kind: str) -> None:
    """Says what newer rosters and a newer log speak against an ensemble or student; None if none.

    Args:
        newer: What they say, if they were at hand.
        kind: What was verified.
    """
    if newer is None:
        console.say(
            "this says nothing about later removals and revocations: add --published with the "
            "newest published folder"
        )
        return
    for reason in newer.newer:
        console.say(f"newer: {reason}")
    for reason in newer.stale:
        console.say(f"STALE: {reason}")
    again = "assemble anew" if kind == "ensemble" else "assemble and distil anew"
    if newer.stale:
        console.say(f"do not use this {kind} any more, nor what was made from it")
    elif newer.newer:
        console.say(f"{again} to use what replaced them; nobody was removed")
    else:
        console.say("nothing in the newer rosters and log speaks against its use")
