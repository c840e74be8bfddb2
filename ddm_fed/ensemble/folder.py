"""An ensemble as a folder: everything an outsider needs to check it with one digest.

    ensemble.dsse.json            the coordinator's statement about every other file
    plan.dsse.json                what was agreed
    roster-0001.dsse.json ...     by whom
    leaves.jsonl, checkpoint      the transparency log at the time
    sites/SITE/                   the bundle exactly as SITE signed it
    receipts/SITE.dsse.json       the coordinator's receipt for it
    receipts/SITE.tlog-proof      the proof that the receipt is in the log
    router.safetensors            where the router was trained or calibrated on samples
    model.sig                     optional, for other tools (`model_signing`); proves nothing

Verification: rosters and plan lead from the pinned digest to the coordinator's key; the statement
is signed by it; the folder holds exactly the files it names; the log holds; every bundle verifies
on its own, at its place in the log, with a ledger that forgets nothing of earlier ones; nothing
that the log admitted under the plan is missing without being named; and all digests agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ddm_fed.bundle.submission import read_submission
from ddm_fed.bundle.verify import (
    ANY_TENSOR_FILES,
    ENVELOPE_FILE,
    ROUTER_FILE,
    VerifiedBundle,
    verify_bundle,
)
from ddm_fed.ensemble.agreement import (
    open_statement,
    require_complete,
    require_digest,
    require_same,
)
from ddm_fed.ensemble.model_signing import SIGNATURE_FILE
from ddm_fed.errors import (
    FileSetError,
    LogError,
    PlanMismatchError,
    PolicyError,
)
from ddm_fed.limits import MAX_ENSEMBLE_FILES
from ddm_fed.progress import Advance
from ddm_fed.records import (
    ENSEMBLE_PREDICATE,
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    BuiltRouter,
    EnsembleMember,
    EnsembleRecord,
    RouterName,
    Statement,
    Submission,
    extends,
    sha256_hex,
    subjects,
)
from ddm_fed.router import built_tensors, needs_heads
from ddm_fed.signing import SigningKey, VerifyKey, seal
from ddm_fed.storage.digests import check_file, sha256_of
from ddm_fed.storage.files import (
    list_regular_files,
    new_folder,
    open_regular,
    read_bounded,
    require_file_set,
    write_atomically,
)
from ddm_fed.storage.tensors import check_tensor_file
from ddm_fed.trust import (
    Trust,
    leaf_hash,
    open_checkpoint,
    read_proof,
    verify_inclusion,
    write_proof,
)
from ddm_fed.trust.log import Log, LogEntry, read_log
from ddm_fed.trust.published import published_files

STATEMENT_FILE = "ensemble.dsse.json"


class Member(NamedTuple):
    """An admitted submission: its manifest, its place in the log, and where its files lie."""

    envelope: bytes
    entry: LogEntry
    files: Mapping[str, Path]


class BuiltRouterFile(NamedTuple):
    """A router made from samples of the experts: its record, and the file of its tensors."""

    record: BuiltRouter
    file: Path


class WrittenEnsemble(NamedTuple):
    """The digest of an ensemble's statement, and what it says."""

    sha256: str
    record: EnsembleRecord


@dataclass(frozen=True)
class VerifiedEnsemble:
    """An ensemble folder for which every rule above holds. Only `verify_ensemble` makes one."""

    folder: Path
    sha256: str
    signers: frozenset[VerifyKey]
    trust: Trust
    log: Log
    record: EnsembleRecord
    bundles: tuple[VerifiedBundle, ...]
    router_sha256: str | None  # of ROUTER_FILE, where the router is made from samples

    @property
    def envelopes(self) -> tuple[bytes, ...]:
        """The signed manifest of every member."""
        return tuple(bundle.envelope for bundle in self.bundles)


def write_ensemble(
    target: Path,
    published: Path,
    trust: Trust,
    log: Log,
    members: Mapping[str, Member],
    router: RouterName,
    key: SigningKey,
    *,
    built: BuiltRouterFile | None = None,
    advance: Advance = lambda _: None,
) -> WrittenEnsemble:
    """Writes the ensemble folder `target`, signs it, verifies it, and only then names it.

    Memory does not grow with the size of the experts. A kill leaves no `target`.

    Args:
        target: Must not exist.
        published: Folder of plan, rosters and log.
        trust: What `published` establishes.
        log: The log in `published`.
        members: By site.
        router: Which router the ensemble is to use.
        key: The coordinator's key.
        built: Its parts, where it was made from samples of exactly these members' experts.
        advance: Told the bytes copied and verified.
    """
    with new_folder(target) as folder:
        digests: dict[str, str] = {}

        def put(name: str, data: bytes) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, data)
            digests[name] = sha256_hex(data)

        for name in published_files(published):
            with open_regular(published / name) as file:
                put(name, file.read())
        entries = []
        for site in sorted(members):
            envelope, entry, files = members[site]
            index = entry.index
            statement, payload_sha256 = read_submission(
                envelope, trust.chain, index, what=f"`{site}`"
            )
            put(f"receipts/{site}.dsse.json", entry.envelope)
            put(f"receipts/{site}.tlog-proof", write_proof(log.proof(index)))
            put(f"sites/{site}/{ENVELOPE_FILE}", envelope)
            for subject in statement.subject:
                name = f"sites/{site}/{subject.name}"
                check_file(
                    files[subject.name],
                    sha256=subject.digest.sha256,
                    size_bytes=statement.predicate.size_of(subject.name) or 0,
                    what=f"`{name}`",
                    copy_to=folder / name,
                    advance=advance,
                )
                digests[name] = subject.digest.sha256
            entries.append(
                EnsembleMember(site=site, submission_sha256=payload_sha256, log_index=index)
            )
        if built is not None:
            put(ROUTER_FILE, built.file.read_bytes())
        record = EnsembleRecord(
            federation=trust.plan.federation,
            root=trust.root,
            plan_sha256=trust.plan_sha256,
            roster=trust.chain.reference,
            log=log.head,
            router=router,
            members=tuple(entries),
            left_out=tuple(sorted(log.current(trust.plan_sha256).keys() - members.keys())),
            built=None if built is None else built.record,
        )
        statement_of_all = Statement[EnsembleRecord](
            subject=subjects(digests), predicateType=ENSEMBLE_PREDICATE, predicate=record
        )
        envelope = seal(statement_of_all.to_json(), IN_TOTO_PAYLOAD, [key])
        write_atomically(folder / STATEMENT_FILE, envelope)
        verify_ensemble(folder, trust.root, advance=advance)
    return WrittenEnsemble(sha256_hex(statement_of_all.to_json()), record)


def verify_ensemble(
    folder: Path, root: str, *, advance: Advance = lambda _: None
) -> VerifiedEnsemble:
    """Returns the ensemble in `folder` if every rule of this module holds.

    Works anywhere, offline, forever: it needs nothing but the folder and the pinned digest, and
    judges every member at its place in the log.

    Args:
        folder: The ensemble.
        root: The pinned digest of roster 1, learnt from a person.
        advance: Told the bytes that were hashed.

    Raises:
        RefusedError: the first rule that fails; the message names the item.
        StateError: it is something else than an ensemble.

    Example:
        >>> verified = verify_ensemble(ensemble, root)
        >>> [bundle.site for bundle in verified.bundles], verified.record.router
        (['hospital-a', 'hospital-b', 'hospital-c'], 'mixture')
        >>> verified.log.size
        3
    """
    what = "the ensemble"
    signed = open_statement(
        folder,
        root,
        STATEMENT_FILE,
        Statement[EnsembleRecord],
        ENSEMBLE_PREDICATE,
        what=what,
        made_by="`ddm-coord assemble` or `ddm-site ensemble`",
    )
    trust, statement = signed.trust, signed.statement
    record = statement.predicate
    digests = {subject.name: subject.digest.sha256 for subject in statement.subject}
    expected = {*digests, STATEMENT_FILE} | (
        list_regular_files(folder, what=what, most=MAX_ENSEMBLE_FILES) & {SIGNATURE_FILE}
    )
    require_file_set(folder, expected, what=what, most=MAX_ENSEMBLE_FILES)
    # their turn comes with their bundle
    tensors = {
        f"sites/{member.site}/{name}" for member in record.members for name in ANY_TENSOR_FILES
    }
    for name in sorted(digests.keys() - tensors):  # what is signed, whatever comes and goes there
        require_digest(name, sha256_of(folder / name), digests[name], of=what)
    log = read_log(folder, trust.chain)
    require_same(
        what,
        {
            "log": (record.log.root, log.head.root),
            "log size": (str(record.log.size), str(log.size)),
        },
    )
    require_complete(record, log, what=what)
    bundles = []
    for member in record.members:
        bundles.append(_verify_member(folder, member, trust, log, advance))
        for name, digest in bundles[-1].sha256.items():
            path = f"sites/{member.site}/{name}"
            require_digest(path, digest, digests.get(path, "nothing"), of=what)
    if record.built is not None:
        if ROUTER_FILE not in digests:
            raise FileSetError(
                f"{what} has a {record.built.kind} router and was signed without `{ROUTER_FILE}`",
                hint="it was not written by this program; ask the coordinator",
            )
        _verify_router(folder, record.built, trust)
    low = None if record.built is None else record.built.low
    if "centroid" in (record.router, low) and trust.plan.centroids is None:
        raise PlanMismatchError(
            f"{what} has a router of centroids, and its plan releases none",
            hint="it was not written by this program; ask the coordinator",
        )
    if record.router == "heads" or (record.built is not None and needs_heads(record.built)):
        require_common_reference({bundle.site: bundle.submission for bundle in bundles})
    return VerifiedEnsemble(
        folder,
        signed.sha256,
        signed.signers,
        trust,
        log,
        record,
        tuple(bundles),
        digests.get(ROUTER_FILE),
    )


def _verify_router(folder: Path, built: BuiltRouter, trust: Trust) -> None:
    """Refuses a router file that does not hold what its record says, before a byte is parsed."""
    with open_regular(folder / ROUTER_FILE) as file:
        check_tensor_file(file, built_tensors(trust.plan.data, built), what="the router")


def require_common_reference(submissions: Mapping[str, Submission]) -> None:
    """Refuses heads that do not compose: one is missing, or they know different references.

    Raises:
        PlanMismatchError: naming the sites.
    """
    by_reference: dict[str | None, list[str]] = {}
    for site, submission in sorted(submissions.items()):
        by_reference.setdefault(submission.reference_sha256, []).append(site)
    if None in by_reference:
        raise PlanMismatchError(
            f"a router of heads needs one of every member; {', '.join(by_reference[None])} sent "
            "none",
            hint="these sites run `ddm-site head` and send the bundle it makes; until then "
            "assemble with --router mixture, or without them",
        )
    if len(by_reference) > 1:
        groups = (f"{', '.join(sites)}: {sha[:16]}…" for sha, sites in by_reference.items() if sha)
        raise PlanMismatchError(
            f"the heads were trained against different references ({'; '.join(groups)})",
            hint="those with an old one run `ddm-site head` again, under the newest published "
            "folder",
        )


def _verify_member(
    folder: Path, member: EnsembleMember, trust: Trust, log: Log, advance: Advance
) -> VerifiedBundle:
    what = f"the receipt of `{member.site}`"
    data = read_bounded(folder / "receipts" / f"{member.site}.dsse.json", MAX_DOCUMENT_BYTES)
    entry = log.entries[member.log_index]
    if data != entry.envelope or entry.receipt is None:
        raise LogError(
            f"{what} is not entry {member.log_index} of the log",
            hint="it was replaced; fetch the whole folder again",
        )
    _verify_proof(folder, member, entry, trust, log)
    bundle = verify_bundle(
        folder / "sites" / member.site,
        trust,
        entry.receipt.admitted_at,
        position=member.log_index,
        advance=advance,
    )
    require_same(
        f"the member `{member.site}`",
        {
            "site": (bundle.site, member.site),
            "submission": (bundle.payload_sha256, member.submission_sha256),
        },
    )
    _require_whole_ledger(bundle, member, log)
    return bundle


def _require_whole_ledger(bundle: VerifiedBundle, member: EnsembleMember, log: Log) -> None:
    """Refuses a ledger that does not extend those of the site's earlier receipts."""
    for entry, receipt in log.counted(member.site):
        known = receipt.ledger
        if entry.index > member.log_index or known is None:
            continue
        if not extends(bundle.submission.privacy.ledger, known):
            raise PolicyError(
                f"the ledger of the member `{member.site}` forgets: at entry {entry.index} of the "
                f"log it had {known.entries} entries, which are not those it begins with",
                hint="what the site spent is more than it says; ask the coordinator and the site",
            )


def _verify_proof(
    folder: Path, member: EnsembleMember, entry: LogEntry, trust: Trust, log: Log
) -> None:
    what = f"the log proof of `{member.site}`"
    data = read_bounded(folder / "receipts" / f"{member.site}.tlog-proof", MAX_DOCUMENT_BYTES)
    proof = read_proof(data, what=what)
    head, _ = open_checkpoint(
        proof.checkpoint, log.origin, trust.chain.coordinator_keys(None), what=what
    )
    verify_inclusion(
        leaf_hash(entry.payload),
        proof.index,
        head.size,
        proof.path,
        bytes.fromhex(head.root),
        what=what,
    )
    require_same(
        what,
        {
            "log": (head.root, log.head.root),
            "entry": (str(proof.index), str(member.log_index)),
        },
    )
