"""Whether a submission comes next in its site's history and in the log; what it says it has."""

from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.policy import release_events
from ddm_fed.bundle.submission import MOST_UNSENT
from ddm_fed.bundle.verify import ROUTER_FILE, read_verified
from ddm_fed.errors import EquivocationError, LogError, ReplayError
from ddm_fed.mixture import LOCATION, SiteRelease, location_of, message_named
from ddm_fed.records import Submission
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log


def released_units(
    home: CoordinatorFolder, trust: Trust, submission: Submission, sha256: str
) -> tuple[float, float]:
    """Returns the released number of images or patients, and the deviation of its noise.

    Args:
        home: The coordinator, whose store has what was released.
        trust: The plan it was released for.
        submission: Whose release.
        sha256: Of its router file.

    Raises:
        StateError: the store has it no longer.
    """
    what = f"`{ROUTER_FILE}` of `{submission.site}`"
    size_bytes = submission.size_of(ROUTER_FILE) or 0
    file = home.blobs.open(sha256)
    tensors = read_verified(file, sha256, most_bytes=size_bytes, what=what)
    events = release_events(submission)
    noise = {name: float(event.noise_multiplier) for name, event in events.items()}
    site = SiteRelease({name: value.numpy() for name, value in tensors.items()}, noise)
    deviation = message_named(trust.plan, LOCATION).noise_std("count", noise[LOCATION])
    return location_of(trust.plan, site).count, deviation


def require_progress(submission: Submission, payload_sha256: str, log: Log) -> None:
    """Refuses a submission that does not come next in its site's history and ours.

    Raises:
        LogError: the site saw another log than this one.
        EquivocationError: it signed something else with the same number.
        ReplayError: it is older than what was admitted, does not know of it, or skips numbers.
    """
    what, site = f"the submission of `{submission.site}`", submission.site
    seen = submission.seen_checkpoint
    if seen.size > log.size or log.head_at(seen.size) != seen:
        raise LogError(
            f"{what} says that the log had the root {seen.root} at {seen.size} leaves, which this "
            f"log of {log.size} leaves never had",
            hint="the site was shown another history, or does not tell the truth: compare its "
            "`seen` folder with `ddm-coord check-consistency`",
        )
    for entry, receipt in log.counted(site):
        if receipt.sequence == submission.sequence and entry.submission_sha256 != payload_sha256:
            raise EquivocationError(
                f"`{site}` signed two submissions with the number {submission.sequence}: "
                f"{entry.submission_sha256} was admitted, {payload_sha256} is offered",
                hint="both are kept in evidence/; ask its people whether it was restored from a "
                "backup, or its key is used in two places",
            )
    last = log.last_sequence(site)
    if submission.sequence <= last:
        raise ReplayError(
            f"{what} has the sequence number {submission.sequence}, {last} was admitted already",
            hint="an older bundle was sent again, or the site was restored from a backup; the "
            "site has to sign a new one",
        )
    if submission.sequence > last + MOST_UNSENT:
        raise ReplayError(
            f"{what} has the sequence number {submission.sequence}, the last that counts is {last}:"
            f" a site leaves out at most {MOST_UNSENT - 1} numbers, for bundles it never sent",
            hint="ask its people whether they signed it: who stole a key could use up all numbers "
            "with one such jump; `ddm-site train` signs a new one with the right number",
        )
    known = log.newest(site, size=seen.size)
    if submission.supersedes != (known.submission_sha256 if known else None):
        raise ReplayError(
            f"{what} says it supersedes {(submission.supersedes or 'nothing')[:16]}, in the log it "
            f"saw its newest was {(known.submission_sha256 if known else 'nothing')[:16]}",
            hint="the site lost its history or its key is used elsewhere; ask its people",
        )
