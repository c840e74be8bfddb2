"""The reference of a router's heads: the pool of what the sites released, published and signed.

    reference.dsse.json       the coordinator's statement: of which plan, whose releases, how noisy
    reference.safetensors     the released vectors, one tensor for each message of each site

Every site trains its head to tell its own images from this pool (`ddm_fed.router.heads`). It is
made of releases alone, so it may be seen by anybody.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ddm_fed.bundle.verify import read_verified
from ddm_fed.errors import PlanMismatchError, StateError
from ddm_fed.limits import MAX_REFERENCE_BYTES
from ddm_fed.mixture import SiteRelease, release_tensors
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    REFERENCE_PREDICATE,
    Reference,
    Statement,
    subjects,
)
from ddm_fed.router import heads_spec
from ddm_fed.signing import SigningKey, open_envelope, seal
from ddm_fed.storage.digests import sha256_of
from ddm_fed.storage.files import open_regular, read_bounded, write_atomically
from ddm_fed.storage.tensors import TensorTable, check_tensor_file, write_tensors
from ddm_fed.trust import Trust

REFERENCE_FILE = "reference.dsse.json"
VECTORS_FILE = "reference.safetensors"


@dataclass(frozen=True)
class VerifiedReference:
    """A reference the coordinator signed for the plan. Only `read_reference` makes one."""

    sha256: str
    record: Reference
    releases: tuple[SiteRelease, ...]


def write_reference(
    folder: Path,
    record: Reference,
    vectors: Mapping[str, Mapping[str, Tensor]],
    key: SigningKey,
) -> None:
    """Writes the reference `record` into `folder`, signed by `key`.

    Args:
        folder: The published folder.
        record: What it is.
        vectors: What each site released, by site and message.
        key: The coordinator's.
    """
    tensors = {
        f"{site}.{name}": vector
        for site, messages in vectors.items()
        for name, vector in messages.items()
    }
    write_tensors(folder / VECTORS_FILE, tensors)
    statement = Statement[Reference](
        subject=subjects({VECTORS_FILE: sha256_of(folder / VECTORS_FILE)}),
        predicateType=REFERENCE_PREDICATE,
        predicate=record,
    )
    # last: until it is there, the vectors beside it are no reference
    write_atomically(folder / REFERENCE_FILE, seal(statement.to_json(), IN_TOTO_PAYLOAD, [key]))


def reference_sha256(folder: Path, trust: Trust) -> str | None:
    """Returns the digest that heads name the reference of this plan by; None if there is none.

    Raises:
        RefusedError: it is not signed by the coordinator.
    """
    if not (folder / REFERENCE_FILE).exists():
        return None
    statement, sha256 = _open(folder, trust)
    return sha256 if statement.predicate.plan_sha256 == trust.plan_sha256 else None


def read_reference(folder: Path, trust: Trust) -> VerifiedReference:
    """Returns the reference in `folder`, verified.

    Raises:
        StateError: there is none yet, or the plan has no heads.
        RefusedError: it is not the coordinator's, or not of this plan, or was altered.
    """
    heads_spec(trust.plan)
    if not (folder / REFERENCE_FILE).exists():
        raise StateError(
            f"there is no reference in {folder} yet",
            hint="the coordinator makes it with `ddm-coord reference` once every site's first "
            "bundle is admitted; fetch the published folder again then",
        )
    statement, sha256 = _open(folder, trust)
    record, what = statement.predicate, "the reference"
    if record.plan_sha256 != trust.plan_sha256:
        raise PlanMismatchError(
            f"{what} is of the plan {record.plan_sha256[:16]}…, in force is "
            f"{trust.plan_sha256[:16]}…",
            hint="the coordinator makes a new one with `ddm-coord reference`",
        )
    messages = release_tensors(trust.plan)
    table: TensorTable = {
        f"{member.site}.{name}": entry
        for member in record.members
        for name, entry in messages.items()
    }
    file, digest = folder / VECTORS_FILE, statement.digest_of(VECTORS_FILE) or ""
    with open_regular(file) as opened:
        check_tensor_file(opened, table, what=what)
    tensors = read_verified(file, digest, most_bytes=MAX_REFERENCE_BYTES, what=what)
    releases = []
    for member in record.members:
        if member.noise_multipliers.keys() != messages.keys():
            raise PlanMismatchError(
                f"{what} states the noise of {sorted(member.noise_multipliers)} for "
                f"`{member.site}`, expected {sorted(messages)}",
                hint="the coordinator uses another version of this program; compare versions",
            )
        vectors = {name: tensors[f"{member.site}.{name}"].numpy() for name in messages}
        noise = {name: float(value) for name, value in member.noise_multipliers.items()}
        releases.append(SiteRelease(vectors, noise))
    return VerifiedReference(sha256, record, tuple(releases))


def _open(folder: Path, trust: Trust) -> tuple[Statement[Reference], str]:
    what = "the reference"
    envelope = read_bounded(folder / REFERENCE_FILE, MAX_DOCUMENT_BYTES)
    keys = trust.chain.coordinator_keys(None)
    signed = open_envelope(envelope, IN_TOTO_PAYLOAD, keys, what=what)
    statement = Statement[Reference].from_json(signed.payload, what=what)
    names = [subject.name for subject in statement.subject]
    found = (statement.predicate_type, statement.predicate.federation, names)
    expected = (REFERENCE_PREDICATE, trust.plan.federation, [VECTORS_FILE])
    if found != expected:
        raise PlanMismatchError(
            f"{what} is {found}, expected {expected}",
            hint="one signed document was put in the place of another; ask for the right file",
        )
    return statement, signed.sha256
