"""An ensemble as a folder: everything an outsider needs to check it with one fingerprint.

    ensemble.dsse.json            the coordinator's statement about every other file
    plan.dsse.json                what was agreed
    roster-0001.dsse.json ...     by whom
    sites/SITE/                   the bundle exactly as SITE signed it
    receipts/SITE.dsse.json       when the coordinator admitted it

Verification: rosters and plan lead from the pinned root key to the coordinator's key; the statement
is signed by it; the folder holds exactly the files it names; every bundle verifies on its own, at
the moment its receipt says it was admitted; and all digests agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ddm_fed.bundle import (
    ENVELOPE_FILE,
    EXPERT_FILE,
    ROUTER_FILE,
    TENSOR_FILES,
    VerifiedBundle,
    read_submission,
    read_weights,
    verify_bundle,
)
from ddm_fed.ensemble import Ensemble
from ddm_fed.errors import DigestError, PlanMismatchError
from ddm_fed.files import (
    Advance,
    check_file,
    list_regular_files,
    new_folder,
    read_bounded,
    require_file_set,
    write_atomically,
)
from ddm_fed.models import build_expert
from ddm_fed.published import published_files, read_published
from ddm_fed.receipts import read_receipt
from ddm_fed.records import (
    ENSEMBLE_PREDICATE,
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    EnsembleMember,
    EnsembleRecord,
    Statement,
    sha256_hex,
    subjects,
)
from ddm_fed.router import RouterKind, SiteRelease, build_router
from ddm_fed.signing import SigningKey, Trust, open_envelope, seal

STATEMENT_FILE = "ensemble.dsse.json"


@dataclass(frozen=True)
class VerifiedEnsemble:
    """An ensemble folder for which every rule above holds. Only `verify_ensemble` makes one."""

    folder: Path
    trust: Trust
    record: EnsembleRecord
    bundles: tuple[VerifiedBundle, ...]


def write_ensemble(
    target: Path,
    published: Path,
    trust: Trust,
    members: Mapping[str, tuple[Path, Path]],
    router: RouterKind,
    key: SigningKey,
    *,
    advance: Advance = lambda _: None,
) -> None:
    """Writes the ensemble folder `target`, signs it, verifies it, and only then names it.

    Memory does not grow with the size of the experts. A kill leaves no `target`.

    Args:
        target: Must not exist.
        published: Folder of plan and rosters.
        trust: What `published` establishes.
        members: Site to its admitted bundle's folder and receipt.
        router: Which router the ensemble is to use.
        key: The coordinator's key.
        advance: Told the bytes copied and verified.
    """
    with new_folder(target) as folder:
        digests: dict[str, str] = {}

        def put(name: str, data: bytes) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, data)
            digests[name] = sha256_hex(data)

        for name in published_files(published):
            put(name, read_bounded(published / name, MAX_DOCUMENT_BYTES))
        entries = []
        for site in sorted(members):
            bundle, receipt = members[site]
            envelope = read_bounded(bundle / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
            statement, payload_sha256 = read_submission(envelope, trust, what=f"`{site}`")
            put(f"receipts/{site}.dsse.json", read_bounded(receipt, MAX_DOCUMENT_BYTES))
            put(f"sites/{site}/{ENVELOPE_FILE}", envelope)
            for subject in statement.subject:
                name = f"sites/{site}/{subject.name}"
                check_file(
                    bundle / subject.name,
                    sha256=subject.digest.sha256,
                    size_bytes=statement.predicate.size_of(subject.name) or 0,
                    what=f"`{name}`",
                    copy_to=folder / name,
                    advance=advance,
                )
                digests[name] = subject.digest.sha256
            entries.append(EnsembleMember(site=site, submission_sha256=payload_sha256))
        record = EnsembleRecord(
            federation=trust.plan.federation,
            root_keyid=trust.root_keyid,
            plan_sha256=trust.plan_sha256,
            roster=trust.roster_reference,
            router=router,
            members=tuple(entries),
        )
        statement_of_all = Statement[EnsembleRecord](
            subject=subjects(digests), predicateType=ENSEMBLE_PREDICATE, predicate=record
        )
        envelope = seal(statement_of_all.to_json(), IN_TOTO_PAYLOAD, [key])
        write_atomically(folder / STATEMENT_FILE, envelope)
        verify_ensemble(folder, trust.root_keyid, advance=advance)


def verify_ensemble(
    folder: Path, root_keyid: str, *, advance: Advance = lambda _: None
) -> VerifiedEnsemble:
    """Returns the ensemble in `folder` if every rule of this module holds.

    Works anywhere, offline, forever: it needs nothing but the folder and the fingerprint, and
    judges every member at the moment its receipt says it was admitted.

    Args:
        folder: The ensemble.
        root_keyid: The pinned fingerprint, learnt from a person.
        advance: Told the bytes that were hashed.

    Raises:
        RefusedError: the first rule that fails; the message names the item.
    """
    what = "the ensemble"
    files = list_regular_files(folder, what=what)
    trust = read_published(folder, root_keyid)
    envelope = read_bounded(folder / STATEMENT_FILE, MAX_DOCUMENT_BYTES)
    signed = open_envelope(envelope, IN_TOTO_PAYLOAD, [trust.coordinator_key], what=what)
    statement = Statement[EnsembleRecord].from_json(signed.payload, what=what)
    record = statement.predicate
    _require_same(
        what,
        {
            "predicate type": (statement.predicate_type, ENSEMBLE_PREDICATE),
            "federation": (record.federation, trust.plan.federation),
            "root key": (record.root_keyid, trust.root_keyid),
            "plan": (record.plan_sha256, trust.plan_sha256),
            "roster": (record.roster.sha256, trust.roster_reference.sha256),
        },
    )
    digests = {subject.name: subject.digest.sha256 for subject in statement.subject}
    require_file_set(folder, {*digests, STATEMENT_FILE}, what=what)
    tensor_files = {f"sites/{m.site}/{name}" for m in record.members for name in TENSOR_FILES}
    for name in sorted(files - tensor_files - {STATEMENT_FILE}):
        found = sha256_hex(read_bounded(folder / name, MAX_DOCUMENT_BYTES))
        _require_digest(name, found, digests[name])
    bundles = []
    for member in record.members:
        bundles.append(_verify_member(folder, member, trust, advance))
        for name, digest in bundles[-1].sha256.items():
            path = f"sites/{member.site}/{name}"
            _require_digest(path, digest, digests[path])
    return VerifiedEnsemble(folder, trust, record, tuple(bundles))


def _verify_member(
    folder: Path, member: EnsembleMember, trust: Trust, advance: Advance
) -> VerifiedBundle:
    what = f"the receipt of `{member.site}`"
    data = read_bounded(folder / "receipts" / f"{member.site}.dsse.json", MAX_DOCUMENT_BYTES)
    receipt = read_receipt(data, member.submission_sha256, trust, what=what)
    bundle = verify_bundle(
        folder / "sites" / member.site, trust, receipt.admitted_at, advance=advance
    )
    _require_same(
        f"the member `{member.site}`",
        {
            "site": (bundle.site, member.site),
            "submission": (bundle.payload_sha256, member.submission_sha256),
        },
    )
    return bundle


def _require_same(what: str, fields: Mapping[str, tuple[str, str]]) -> None:
    for field, (found, expected) in fields.items():
        if found != expected:
            raise PlanMismatchError(
                f"{what} names the {field} `{found}`, expected `{expected}`",
                hint="documents of different ensembles were mixed; fetch the whole folder again",
            )


def _require_digest(name: str, found: str, signed: str) -> None:
    if found != signed:
        raise DigestError(
            f"`{name}` is not what the ensemble was signed with: found {found}, signed {signed}",
            hint="it was altered or damaged after signing; fetch the whole folder again",
        )


def load_ensemble(verified: VerifiedEnsemble, *, router: RouterKind | None = None) -> Ensemble:
    """Returns the experts and the router of a verified ensemble, ready to sample from.

    Args:
        verified: Only a verified ensemble is read.
        router: Use another router than the one the ensemble was assembled with.
    """
    plan = verified.trust.plan
    experts = []
    for bundle in verified.bundles:
        expert = build_expert(plan)
        expert.load_state_dict(read_weights(bundle, EXPERT_FILE))
        experts.append(expert.eval())
    releases = [
        SiteRelease(
            {name: value.numpy() for name, value in read_weights(bundle, ROUTER_FILE).items()},
            bundle.noise_multipliers,
        )
        for bundle in verified.bundles
    ]
    return Ensemble(experts, build_router(plan, router or verified.record.router, releases))
