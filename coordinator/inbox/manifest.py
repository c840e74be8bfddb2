"""What the coordinator's log and its published documents say about a manifest: taken, or refused.

The same judgement before a byte is uploaded and once more when the bundle has arrived, by the same
rules in the same order: its place in the log, its ledger, its reference, whose files they are; then
plan, roster, dates, and the list of its files. The log comes first, because two stories of one site
are evidence under whatever plan they were told.
"""

from coordinator.inbox.claim import read_admitted, require_own_files
from coordinator.inbox.history import require_progress
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.reference import reference_sha256
from ddm_fed.bundle.submission import Manifest, read_submission
from ddm_fed.bundle.verify import require_agreed
from ddm_fed.errors import PlanMismatchError, PolicyError, RevokedKeyError
from ddm_fed.records import Submission, extends, ledger_head, now
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log


def judge_manifest(
    home: CoordinatorFolder, trust: Trust, log: Log, manifest: Manifest, *, what: str
) -> dict[str, str]:
    """Returns the digests of the files of a manifest that may be admitted next, if they hold.

    Args:
        home: The coordinator.
        trust: The published plan and rosters.
        log: What was admitted so far, and not this.
        manifest: As `read_submission` returned it for the next place of `log`.
        what: Its name, for messages.

    Raises:
        RefusedError: the first rule that fails.
    """
    statement, payload_sha256 = manifest
    submission = statement.predicate
    require_progress(submission, payload_sha256, log)
    _require_extended_ledger(home, trust, log, submission)
    _require_our_reference(home, trust, submission, what)
    require_own_files(home, log, statement, trust.plan, what)
    return require_agreed(statement, trust, now(), what=what)


def _require_our_reference(
    home: CoordinatorFolder, trust: Trust, submission: Submission, what: str
) -> None:
    """Refuses a head that was trained against another reference: it fits no other head.

    Raises:
        PlanMismatchError: it was.
    """
    if submission.head is None or submission.plan_sha256 != trust.plan_sha256:
        return  # without a head, or refused for its plan
    found, expected = submission.head.reference_sha256, reference_sha256(home.published, trust)
    if found != expected:
        raise PlanMismatchError(
            f"{what} has a head for the reference {found[:16]}…, published is "
            f"{'none' if expected is None else expected[:16] + '…'}",
            hint="the site has to train its head again with `ddm-site head`, against the newest "
            "published folder",
        )


def _require_extended_ledger(
    home: CoordinatorFolder, trust: Trust, log: Log, submission: Submission
) -> None:
    """Refuses a ledger that forgets an entry of the one that was admitted last from its site.

    It reaches over plans and keys: what was spent on images stays spent.

    Raises:
        PolicyError: the ledger was cut, or another one stands in its place.
    """
    site, ledger = submission.site, submission.privacy.ledger
    for entry, _ in reversed(list(log.counted(site))):
        sha256 = entry.submission_sha256
        envelope, admitted = read_admitted(home.manifest(sha256), sha256)
        try:
            what = f"the manifest of entry {entry.index}"
            read_submission(envelope, trust.chain, entry.index, what=what)
        except RevokedKeyError:  # a thief's, among keys of which another may sign here
            continue
        known = admitted.predicate.privacy.ledger
        if not extends(ledger, ledger_head(known)):
            kept = sum(1 for old, new in zip(known, ledger, strict=False) if old == new)
            raise PolicyError(
                f"the ledger of `{site}` forgets: that of its submission at entry {entry.index} of "
                f"the log has {len(known)} entries, this one has {len(ledger)} and agrees with "
                f"{kept} of them",
                hint="it was cut, or the site was restored from a backup: what was spent stays "
                "spent; the site runs `ddm-site ledger --recover` and signs anew",
            )
        return
