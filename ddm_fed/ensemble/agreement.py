"""What every folder of the coordinator that stands on members' submissions must agree with.

An ensemble holds the members' bundles, a student only what was distilled from them. Both name their
members, so both are held against the log in the same way.
"""

from collections.abc import Mapping

from ddm_fed.errors import DigestError, LogError, PlanMismatchError
from ddm_fed.records import EnsembleRecord, StudentRecord
from ddm_fed.trust.log import Log


def require_complete(record: EnsembleRecord | StudentRecord, log: Log, *, what: str) -> None:
    """Refuses a record that drops what the log admitted, or names what it did not.

    Args:
        record: Names members and who was left out.
        log: The log at the time.
        what: What the record is of, for messages.

    Raises:
        LogError: it does.
    """
    current = log.current(record.plan_sha256)
    named = {member.site for member in record.members} | set(record.left_out)
    # earlier versions named sites of which only a thief's submission was left
    fine = set(record.left_out) & log.current(record.plan_sha256, with_void=True).keys()
    for site in sorted(current.keys() ^ (named - (fine - current.keys()))):
        stated = "names it" if site in named else "neither has it nor says that it was left out"
        place = f"at entry {current[site].index}" if site in current else "nothing"
        raise LogError(
            f"the log admitted {place} of `{site}` for this plan; {what} {stated}",
            hint="a member was dropped or added after admission; ask the coordinator",
        )
    for member in record.members:
        entry = current[member.site]
        if (entry.index, entry.submission_sha256) != (member.log_index, member.submission_sha256):
            raise LogError(
                f"{what} has submission {member.submission_sha256[:16]}… of `{member.site}` "
                f"from entry {member.log_index}, the newest in the log is "
                f"{entry.submission_sha256[:16]}… at entry {entry.index}",
                hint="an older or another expert was put in; ask the coordinator",
            )


def require_same(what: str, fields: Mapping[str, tuple[str, str]]) -> None:
    """Refuses documents that do not belong together.

    Args:
        what: Whose fields they are, for messages.
        fields: What was found and what was expected, by name.

    Raises:
        PlanMismatchError: naming the first that differs.
    """
    for field, (found, expected) in fields.items():
        if found != expected:
            raise PlanMismatchError(
                f"{what} names the {field} `{found}`, expected `{expected}`",
                hint="documents of different ensembles were mixed; fetch the whole folder again",
            )


def require_digest(name: str, found: str, signed: str, *, of: str) -> None:
    """Refuses a file that is not what was signed.

    Raises:
        DigestError: it is another.
    """
    if found != signed:
        raise DigestError(
            f"`{name}` is not what {of} was signed with: found {found}, signed {signed}",
            hint="it was altered or damaged after signing; fetch the whole folder again",
        )
