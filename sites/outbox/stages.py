"""The way out: draft, reviewed, released, submitted. Each step needs the one before."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from ddm_fed.bundle.submission import MOST_UNSENT, read_submission
from ddm_fed.bundle.verify import ENVELOPE_FILE, VerifiedBundle, verify_bundle
from ddm_fed.errors import (
    BudgetError,
    CountersignatureError,
    RefusedError,
    StateError,
    UnknownSignerError,
)
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_COUNT,
    MAX_DOCUMENT_BYTES,
    EgressRecord,
    Require,
    Role,
    RosterSite,
    Statement,
    Submission,
    network_of,
    now,
)
from ddm_fed.signing import VerifyKey, merge_signatures, open_envelope, peek_payload
from ddm_fed.storage.files import new_folder, read_bounded, write_atomically
from ddm_fed.storage.junk import is_junk
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log
from sites.outbox.review import (
    ReviewFolder,
    describe,
    open_review,
    read_review,
    write_review,
)
from sites.privacy.ledger import open_ledger
from sites.workspace import SiteFolder, SiteSettings


@dataclass(frozen=True)
class Reviewed:
    """What would leave with a bundle, and the folder an officer can approve it in."""

    bundle: VerifiedBundle
    egress: EgressRecord
    folder: Path


def find_bundles(folder: Path) -> list[Path]:
    """Returns the bundle folders in `folder`, oldest first; unfinished ones are not bundles.

    Their sequence numbers say which is older: clocks may have been wrong.
    """
    found = [
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and not is_junk(path.name)
    ]
    return sorted(found, key=_age)


def _age(bundle: Path) -> tuple[int, int]:
    envelope = bundle / ENVELOPE_FILE
    return _sequence(bundle), (envelope if envelope.exists() else bundle).stat().st_mtime_ns


def _sequence(bundle: Path) -> int:
    """Returns the number a bundle says it has, for its place among others; -1 if it cannot."""
    try:
        return signed_submission(bundle).sequence
    except RefusedError:
        return -1


def signed_submission(bundle: Path) -> Submission:
    """Returns what a bundle of this site says of itself; its signature is not looked at.

    Raises:
        RefusedError: it has no manifest that can be read.
    """
    envelope = read_bounded(bundle / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
    payload = peek_payload(envelope, IN_TOTO_PAYLOAD, what=bundle.name)
    return Statement[Submission].from_json(payload, what=bundle.name).predicate


def newest_draft(site: SiteFolder) -> Path:
    """Returns the draft to review or release.

    Raises:
        StateError: there is none.
    """
    released = find_bundles(site.released)
    newest = max(map(_sequence, released), default=-1)
    # an older one, which was never reviewed, could not be admitted any more
    drafts = [draft for draft in find_bundles(site.drafts) if _sequence(draft) >= newest]
    if not drafts:
        raise StateError(
            "there is no draft to review",
            hint="it is released already; send it with `ddm-site submit`"
            if released
            else "make one with `ddm-site train`",
        )
    return drafts[-1]


def required(site: SiteFolder, trust: Trust) -> Require:
    """Returns whose signatures a submission needs: what the roster asks for, and the site itself.

    Either may ask for more; neither can take back what the other asks for.
    """
    listed = member_of(site, trust).require_at(None)
    return max(site.settings.require, listed, key=len)


def member_of(site: SiteFolder, trust: Trust) -> RosterSite:
    """Returns what the roster says of this site.

    Raises:
        StateError: it does not list it.
    """
    member = trust.roster.site(site.settings.name)
    if member is None:
        raise StateError(
            f"`{site.settings.name}` is not in the roster of `{trust.plan.federation}`",
            hint="send enrolment.dsse.json to the coordinator, and ask for a new published folder",
        )
    return member


def egress_of(site: SiteFolder, trust: Trust, bundle: VerifiedBundle) -> EgressRecord:
    """Returns all that would leave with `bundle`, and whose signatures it needs."""
    return describe(bundle, required(site, trust), _officers(site, trust))


def review(site: SiteFolder, trust: Trust) -> Reviewed:
    """Returns what the newest draft would disclose, written down and signed for an approval.

    The egress record stays at the site. Run again for the same draft, it keeps what was signed.

    Raises:
        StateError: there is no draft.
        BudgetError: it holds weights that the site keeps.
        RefusedError: the draft was altered since it was signed.
    """
    bundle = verify_bundle(newest_draft(site), trust, now(), require=("site",))
    require_kept(site.settings, bundle.submission)
    egress = egress_of(site, trust, bundle)
    folder = site.reviews / bundle.payload_sha256
    if not folder.exists():
        with new_folder(folder) as part:
            write_review(part, egress, bundle.envelope, site.key(member_of(site, trust)))
    read_review(folder, egress)
    return Reviewed(bundle, egress, folder)


def release(site: SiteFolder, trust: Trust) -> Path:
    """Moves the newest draft to where transports may read, if it was reviewed and approved.

    Signatures that an officer added in the review's folder are taken into the manifest, whose
    payload stays as it is. Returns the released folder.

    Raises:
        StateError: nobody reviewed this very draft.
        BudgetError: it holds weights that the site keeps.
        CountersignatureError: the site's policy asks for a signature that is missing.
        RefusedError: it was altered since it was signed.
    """
    draft = newest_draft(site)
    bundle = verify_bundle(draft, trust, now(), require=("site",))
    require_kept(site.settings, bundle.submission)
    digest = bundle.payload_sha256
    spent = open_ledger(site).entries()
    if bundle.submission.privacy.ledger != spent:
        more = len(spent) - len(bundle.submission.privacy.ledger)
        raise StateError(
            f"the draft {digest[:16]}… does not say all that this site has spent: its ledger has "
            f"grown by {more} entries since",
            hint="run `ddm-site train` again, which signs it anew and trains nothing, then review",
        )
    folder = site.reviews / digest
    if not folder.exists():
        raise StateError(
            f"the draft {digest[:16]}… was not reviewed",
            hint="run `ddm-site review` and read what would leave",
        )
    egress = egress_of(site, trust, bundle)
    _require_seen_by(site, trust, read_review(folder, egress), egress.require)
    approved = read_bounded(folder / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
    what = f"the draft {digest[:16]}"
    merged = merge_signatures(bundle.envelope, approved, IN_TOTO_PAYLOAD, what=what)
    # checked before it is written: a bad signature must not spoil the draft
    read_submission(merged, trust.chain, what=what, require=egress.require)
    _require_officer(site, trust, merged, what)
    write_atomically(draft / ENVELOPE_FILE, merged)
    target = site.released / digest
    draft.rename(target)
    return target


def require_kept(settings: SiteSettings, submission: Submission) -> None:
    """Refuses that trained weights leave a site whose policy keeps them, whenever it decided so.

    Raises:
        BudgetError: the submission brings weights of an expert or of a head.
    """
    brings_expert = (
        network_of(submission.expert.architecture) is not None and submission.held_expert is None
    )
    if settings.keep_weights and (brings_expert or submission.head is not None):
        what = "an expert" if brings_expert else "a head"
        raise BudgetError(
            f"this site's own policy (`keep_weights = true` in site.toml) forbids it: the bundle "
            f"holds the weights of {what}",
            hint="run `ddm-site train` again, which trains nothing and writes a draft without "
            "them; move the older bundle out of outbox",
        )


def _require_seen_by(site: SiteFolder, trust: Trust, found: ReviewFolder, require: Require) -> None:
    """Refuses a review that somebody who has to sign the submission has not signed too."""
    for role in require:
        keys = _keys_of(site, trust, role)
        try:
            open_review(found.review, keys)
        except UnknownSignerError:
            if role == "site":
                raise
            raise CountersignatureError(
                "the review is not signed by the site's data-protection officer",
                hint=_approve_hint(site),
            ) from None


def _keys_of(site: SiteFolder, trust: Trust, role: Role) -> list[VerifyKey]:
    listed = [key for key in member_of(site, trust).keys if key.role == role]
    own = [site.settings.dpo_key] if role == "dpo" and site.settings.dpo_key else []
    active = {key.public_key for key in listed if key.is_active}
    return [VerifyKey.from_hex(public) for public in sorted(active.union(own))]


def _officers(site: SiteFolder, trust: Trust) -> tuple[str, ...]:
    """Returns the keys that may approve: the roster's, and the one that site.toml names."""
    if "dpo" not in required(site, trust):
        return ()
    return tuple(key.hex for key in _keys_of(site, trust, "dpo"))


def _require_officer(site: SiteFolder, trust: Trust, envelope: bytes, what: str) -> None:
    """Refuses a manifest without the signature of the officer whom `site.toml` names."""
    if site.settings.dpo_key is None:
        return
    officer = VerifyKey.from_hex(site.settings.dpo_key)
    keys = [officer, *_keys_of(site, trust, "site")]
    if officer not in open_envelope(envelope, IN_TOTO_PAYLOAD, keys, what=what).signers:
        raise CountersignatureError(
            f"{what} lacks the signature of the data-protection officer whom site.toml names",
            hint=_approve_hint(site),
        )


def _approve_hint(site: SiteFolder) -> str:
    words = ("ddm-site", "approve", f"{site.reviews}/DIGEST", "--key", "KEY.pem")
    return f"the officer runs `{shlex.join(words)}`, here or elsewhere"


def sequence_for_next(site: SiteFolder, log: Log) -> int:
    """Returns the number of the next submission: it follows the log, and what was signed since.

    The log decides: a counter that is behind it (a restored backup), or further ahead than a
    coordinator would take, is not believed.

    Raises:
        StateError: the log has the last number there is in this site's name.
    """
    counter = site.path / "private" / "sequence"
    last = require_number_left(site, log)
    signed = int(counter.read_text()) if counter.exists() else 0
    number = max(last, signed) + 1
    if number > min(last + MOST_UNSENT, MAX_COUNT):
        number = last + 1
    write_atomically(counter, str(number).encode())
    return number


def require_number_left(site: SiteFolder, log: Log) -> int:
    """Returns the last number of this site that counts; before anything is spent in vain.

    Raises:
        StateError: it is the last number there is.
    """
    last = log.last_sequence(site.settings.name)
    if last >= MAX_COUNT:
        raise StateError(
            f"the log has the number {last} in the name of `{site.settings.name}`, after which "
            "there is none",
            hint="nobody here signed it: the site's key is used elsewhere. Make a new one with "
            "`ddm-site rotate`; the coordinator runs `ddm-coord roster rotate REQUEST "
            "--compromised-since LOG_SIZE`, and what the thief signed does not count any more",
        )
    return last
