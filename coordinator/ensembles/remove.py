"""The end of a site's expert: a signed removal in the log, and which ensembles it makes stale."""

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator import journal
from coordinator.ensembles.distill import students_with
from coordinator.inbox.admission import Known, admitted_bundles, begin
from coordinator.log import append, publish_log
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import OptionError, StateError, guess
from ddm_fed.records import MAX_REASON, Removal, is_plain, now
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log
from ddm_fed.trust.receipts import sign_removal


@dataclass(frozen=True)
class Removed:
    """What was removed, and the ensembles and students it makes stale: digest to folder.

    `known` has the log after the removal.
    """

    site: str
    removal: Removal
    stale: Mapping[str, str]
    students: Mapping[str, str]
    known: Known


def removed_sites(log: Log) -> set[str]:
    """Returns the sites that were removed and have sent nothing since."""
    removed: set[str] = set()
    for entry in log.entries:
        if entry.index in log.void:
            continue
        if entry.removal is not None:
            removed.add(entry.removal.site)
        elif entry.receipt is not None:
            removed.discard(entry.receipt.site)
    return removed


def remove(home: CoordinatorFolder, site: str, *, reason: str, delete_weights: bool) -> Removed:
    """Ends the use of everything `site` has sent: a signed removal, as a leaf of the log.

    Run again after a kill, it changes nothing that was done.

    Args:
        home: The coordinator.
        site: The site.
        reason: Why, for everybody who reads the log.
        delete_weights: Delete its files from the store too, unless another site sent the same.

    Raises:
        StateError: nothing of it is admitted, or the roster does not list it.
        OptionError: the reason cannot be signed.
    """
    if len(reason) > MAX_REASON or not is_plain(reason):
        raise OptionError(
            f"--reason has {len(reason)} characters, or some that cannot be seen",
            hint=f"it is signed and public: one line of at most {MAX_REASON} plain characters",
        )
    trust, log = begin(home)
    void = [entry for entry in log.receipts(site=site) if entry.index in log.void]
    counted = [entry for entry, _ in log.counted(site)]
    entries = void + counted  # of two with one number the one that counts is named
    if not entries:
        others = {each.name for each in trust.roster.sites} - {site}
        raise StateError(
            f"nothing of `{site}` was ever admitted{guess(site, others)}",
            hint="`ddm-coord status` shows who is admitted; to take a site out of the roster use "
            "`ddm-coord roster revoke`",
        )
    stale = _ensembles_with(home, site)
    if site not in removed_sites(log):
        removal = Removal(
            federation=trust.plan.federation,
            site=site,
            through_sequence=max(
                e.receipt.sequence for e in counted or entries if e.receipt is not None
            ),
            log_index=log.size,
            reason=reason,
            stale_ensembles=tuple(stale),
            removed_at=now(),
        )
        submissions = {
            entry.receipt.sequence: entry.submission_sha256
            for entry in entries
            if entry.receipt is not None
        }
        envelope = sign_removal(removal, submissions, home.key(trust.chain))
        log = append(home, trust.chain, log, envelope)
        publish_log(home, log, since=removal.log_index)
        journal.record(home, "removed", site=site, log_index=removal.log_index)
    if delete_weights:
        _delete_weights(home, trust, log, site)
    found = [entry.removal for entry in log.entries if entry.removal is not None]
    removal = next(item for item in reversed(found) if item.site == site)
    return Removed(site, removal, stale, students_with(home, site), Known(trust, log))


def _ensembles_with(home: CoordinatorFolder, site: str) -> dict[str, str]:
    """Returns the ensembles assembled here that have `site` as a member: digest to folder."""
    return {
        str(event["ensemble_sha256"]): str(event["folder"])
        for event in journal.events(home)
        if event["event"] == "assembled" and site in event["members"]
    }


def _delete_weights(home: CoordinatorFolder, trust: Trust, log: Log, site: str) -> None:
    everything = admitted_bundles(home, trust, log)
    others = {
        digest
        for item in everything
        if item.submission.site != site
        for digest in item.sha256.values()
    }
    for item in everything:
        if item.submission.site == site:
            for digest in set(item.sha256.values()) - others:
                home.blobs.delete(digest)
    journal.record(home, "weights-deleted", site=site)
