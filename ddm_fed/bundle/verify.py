"""A bundle: what one site sends. Written at a site, verified anywhere, read only after that.

    expert.safetensors      the expert's weights, unless they stay at the site (`held_expert`)
    router.safetensors      the noisy statistics for the router
    head.safetensors        the site's head of the router: in a second bundle, if the plan has heads
    submission.dsse.json    the manifest: an in-toto statement about the others, in a DSSE envelope

Verification, in this order, failing closed. Nothing of a file is parsed before its turn, but for
the manifest's claim of a site: it is looked at to pick the key of step 4, and believed after it.

 1. exactly these regular files, no links; the head only where the manifest has one; in an arrival
    listed junk of file managers is passed over (`ddm_fed.storage.junk`)
 2. the envelope is at most 1 MiB of unambiguous JSON
 3. of the in-toto payload type
 4. every signature that names a key of the claimed site holds, and at least one is there
 5. the very bytes that were verified are a submission, without unknown fields
 6. everybody has signed whom the site's policy in the roster asks for, with a key that may sign at
    this place of the log
 7. federation, plan and roster are ours
 8. it is valid at this moment
 9. its place in the site's sequence (needs the log: `coordinator.inbox.manifest`, which asks it
    before 7, so that two stories are found under whatever plan they were told)
10. sizes, then SHA-256 of the files, while they are copied if they are to be kept
11. tensor headers against the plan
12. finite, plausible values
13. the privacy policy: the ledger's chain and arithmetic, then its epsilon against the plan's
14. the router's integers are such as the plan's clipping and noise can have made
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from ddm_fed.bundle.policy import (
    check_privacy,
    release_events,
    require_ours,
    require_valid_at,
    trained_event,
)
from ddm_fed.bundle.submission import Manifest, read_submission
from ddm_fed.errors import (
    DigestError,
    FileSetError,
    PolicyError,
    SizeError,
)
from ddm_fed.mixture import Ints, SiteRelease, location_of, release_tensors, require_plausible
from ddm_fed.models import expert_tensors
from ddm_fed.privacy import expected_units
from ddm_fed.progress import Advance
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    MAX_DOCUMENT_BYTES,
    SUBMISSION_PREDICATE,
    ExpertDesign,
    FileSize,
    Plan,
    Require,
    Statement,
    Submission,
    network_of,
    subjects,
)
from ddm_fed.router import head_tensors
from ddm_fed.signing import SigningKey, seal
from ddm_fed.storage.blob_store import BlobStore
from ddm_fed.storage.digests import check_file
from ddm_fed.storage.files import (
    list_regular_files,
    open_regular,
    read_bounded,
    require_file_set,
    write_atomically,
)
from ddm_fed.storage.junk import is_junk
from ddm_fed.storage.tensors import ITEM_BYTES, Bounds, check_tensor_file
from ddm_fed.trust import Trust
from ddm_fed.trust.log import SUBMISSION_FILE

EXPERT_FILE = "expert.safetensors"
ROUTER_FILE = "router.safetensors"
ENVELOPE_FILE = SUBMISSION_FILE
HEAD_FILE = "head.safetensors"
# of most bundles: a mixture, or an expert that stays at its site, has the second alone
TENSOR_FILES = (EXPERT_FILE, ROUTER_FILE)
ANY_TENSOR_FILES = (*TENSOR_FILES, HEAD_FILE)


@dataclass(frozen=True)
class VerifiedBundle:
    """A bundle for which every rule above holds. Only `verify_bundle` makes one."""

    submission: Submission
    payload_sha256: str
    envelope: bytes
    files: Mapping[str, Path]
    sha256: Mapping[str, str]

    @property
    def site(self) -> str:
        """The site that signed it."""
        return self.submission.site

    @property
    def noise_multipliers(self) -> dict[str, float]:
        """The noise in each tensor of `router.safetensors`, by its name."""
        events = release_events(self.submission)
        return {name: float(event.noise_multiplier) for name, event in events.items()}


def tensor_files(submission: Submission) -> tuple[str, ...]:
    """Returns the names of the tensor files that belong to `submission`."""
    return bundle_files(
        submission.expert,
        with_head=submission.head is not None,
        held=submission.held_expert is not None,
    )


def bundle_files(design: ExpertDesign, *, with_head: bool, held: bool = False) -> tuple[str, ...]:
    """Returns the names of a bundle's tensor files.

    A mixture has no weights beside its release, and those of a held expert stay at its site.
    """
    expert = () if held or network_of(design.architecture) is None else (EXPERT_FILE,)
    return (*expert, ROUTER_FILE, *((HEAD_FILE,) if with_head else ()))


def arrived_files(folder: Path, *, what: str, travelled: bool = False) -> tuple[str, ...]:
    """Returns the names of the tensor files in a bundle's folder. Nothing is read.

    Args:
        folder: The bundle.
        what: Its name, for messages.
        travelled: Whether it has just arrived: then what a file manager left in it on the way
            (`ddm_fed.storage.junk`) is passed over. Only the named files are ever taken out of it.

    Raises:
        FileSetError: it does not hold exactly the files of a bundle.
    """
    found = list_regular_files(folder, what=what)
    junk = {name for name in found if travelled and is_junk(name)}
    needed = {ROUTER_FILE}
    if found - {*ANY_TENSOR_FILES, ENVELOPE_FILE, *junk}:  # one of them may be the expert, renamed
        needed.add(EXPERT_FILE)
    names = tuple(name for name in ANY_TENSOR_FILES if name in found or name in needed)
    require_file_set(folder, {*names, ENVELOPE_FILE, *junk}, what=what)
    return names


def file_digests(
    folder: Path, names: Sequence[str] = TENSOR_FILES
) -> tuple[dict[str, str], tuple[FileSize, ...]]:
    """Returns digest and size of the tensor files `names` that a site wrote into `folder`."""
    digests, sizes = {}, []
    for name in names:
        with open_regular(folder / name) as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
            sizes.append(FileSize(name=name, size_bytes=file.tell()))
    return digests, tuple(sizes)


def sign_bundle(
    folder: Path, submission: Submission, digests: dict[str, str], keys: Sequence[SigningKey]
) -> None:
    """Writes the signed manifest of `folder`, whose tensor files must be complete.

    Example:
        >>> digests, _ = file_digests(folder)
        >>> sign_bundle(folder, submission, digests, [key])
        >>> verify_bundle(folder, trust, now()).site
        'hospital-a'
    """
    statement = Statement[Submission](
        subject=subjects(digests), predicateType=SUBMISSION_PREDICATE, predicate=submission
    )
    write_atomically(folder / ENVELOPE_FILE, seal(statement.to_json(), IN_TOTO_PAYLOAD, keys))


def verify_bundle(
    folder: Path,
    trust: Trust,
    moment: datetime,
    *,
    position: int | None = None,
    require: Require | None = None,
    store: BlobStore | None = None,
    advance: Advance = lambda _: None,
) -> VerifiedBundle:
    """Returns the bundle in `folder` if every rule of this module holds.

    Memory does not grow with the size of the weights.

    Args:
        folder: Where the bundle lies. It may be hostile, and may change while it is read.
        trust: The verified plan and rosters.
        moment: The time at which it must be valid.
        position: Its place in the log, which decides about keys; None is the next one.
        require: Whose signatures it needs, in place of the site's policy: for drafts.
        store: Files are copied there while they are hashed, all later checks look at the copy,
            and the result refers to it.
        advance: Told the bytes that were hashed.

    Raises:
        RefusedError: the first rule that fails; the message names the item.

    Example:
        >>> bundle = verify_bundle(folder, trust, now())
        >>> bundle.site, sorted(bundle.files)
        ('hospital-a', ['expert.safetensors', 'router.safetensors'])
        >>> weights = folder / "expert.safetensors"
        >>> _ = weights.write_bytes(weights.read_bytes()[:-1] + b"!")
        >>> verify_bundle(folder, trust, now())
        Traceback (most recent call last):
        ddm_fed.errors.DigestError: ...
    """
    what = f"the bundle {folder.name[:16]}"
    sources = {name: folder / name for name in arrived_files(folder, what=what)}
    envelope = read_bounded(folder / ENVELOPE_FILE, MAX_DOCUMENT_BYTES)
    manifest = read_submission(envelope, trust.chain, position, what=what, require=require)
    digests = require_agreed(manifest.statement, trust, moment, what=what)
    return verify_files(
        manifest, envelope, digests, sources, trust, what=what, store=store, advance=advance
    )


def require_agreed(
    statement: Statement[Submission], trust: Trust, moment: datetime, *, what: str
) -> dict[str, str]:
    """Returns the digests of the files of a manifest that is ours and valid (rules 7 and 8).

    Args:
        statement: The manifest, whose signatures hold.
        trust: The verified plan and rosters.
        moment: The time at which it must be valid.
        what: Its name, for messages.

    Raises:
        PlanMismatchError: it is of another federation, plan or roster.
        ExpiredError: it is not valid at `moment`.
        FileSetError: it is about other files than those of a bundle.
        SizeError: they are larger than the plan allows.
    """
    require_ours(statement.predicate, trust, what)
    require_valid_at(statement.predicate, trust, moment, what)
    return signed_digests(statement, trust.plan, what)


def verify_files(
    manifest: Manifest,
    envelope: bytes,
    digests: Mapping[str, str],
    sources: Mapping[str, Path],
    trust: Trust,
    *,
    what: str,
    store: BlobStore | None = None,
    advance: Advance = lambda _: None,
) -> VerifiedBundle:
    """Returns the bundle of a manifest that was judged already, if its files hold (10 to 14).

    Args:
        manifest: As `read_submission` returned it.
        envelope: What it was read from.
        digests: As `require_agreed` returned them.
        sources: Where each file lies; they need not be in one folder.
        trust: The verified plan and rosters.
        what: Its name, for messages.
        store: See `verify_bundle`.
        advance: Told the bytes that were hashed.

    Raises:
        RefusedError: the first rule that fails.
    """
    submission = manifest.statement.predicate
    if sources.keys() != digests.keys():
        missing = sorted(digests.keys() - sources.keys())
        which = f": `{missing[0]}` is missing" if missing else ""
        raise FileSetError(
            f"{what} holds {sorted(sources)}, it is signed over {sorted(digests)}{which}",
            hint="a file was added or removed after signing; copy the original folder again",
        )
    files = dict(sources)
    for name, digest in digests.items():
        size_bytes = submission.size_of(name) or 0
        called = f"{what}: `{name}`"
        if store is None:
            check_file(
                sources[name], sha256=digest, size_bytes=size_bytes, what=called, advance=advance
            )
        else:
            files[name] = store.add(
                sources[name], sha256=digest, size_bytes=size_bytes, what=called, advance=advance
            )
    tables = {ROUTER_FILE: release_tensors(trust.plan)}
    if EXPERT_FILE in files:
        tables[EXPERT_FILE] = expert_tensors(trust.plan.data, submission.expert)
    if submission.head is not None:
        tables[HEAD_FILE] = head_tensors(trust.plan)
    limits = trust.plan.submission
    bounds = Bounds(float(limits.max_absolute), float(limits.max_norm))
    for name, table in tables.items():
        with open_regular(files[name]) as file:
            check_tensor_file(file, table, what=f"{what}: `{name}`", bounds=bounds)
    check_privacy(submission, trust, what=what)
    bundle = VerifiedBundle(submission, manifest.payload_sha256, envelope, files, digests)
    released = {name: value.numpy() for name, value in read_weights(bundle, ROUTER_FILE).items()}
    require_plausible(trust.plan, released, what=f"{what}: `{ROUTER_FILE}`")
    _require_released_units(bundle, released, trust.plan, what)
    return bundle


def _require_released_units(
    bundle: VerifiedBundle, released: Mapping[str, Ints], plan: Plan, what: str
) -> None:
    """Refuses an expert whose sums were divided by another number than the release makes it.

    The true number of units is private, and a manifest that states it would give it away.

    Raises:
        PolicyError: it does.
    """
    sgd = bundle.submission.privacy.sgd
    if sgd is None:
        return
    count = location_of(plan, SiteRelease(released, bundle.noise_multipliers)).count
    rate = trained_event(bundle.submission).sampling_rate
    expected = expected_units(count, float(rate))
    # two machines may round the last digit differently
    if abs(float(sgd.expected_units) - expected) > 1e-5 * max(1.0, expected):
        raise PolicyError(
            f"{what} is refused: it states {sgd.expected_units} expected units, its own release "
            f"makes it {expected}",
            hint="its sums may have been divided by a number that was never released: the site "
            "must not send it again before it knows why",
        )


def signed_digests(statement: Statement[Submission], plan: Plan, what: str) -> dict[str, str]:
    """Returns the digests of the files a manifest is about, which are those of a bundle.

    Raises:
        FileSetError: they are other files, or larger than the plan allows.
    """
    digests = {subject.name: subject.digest.sha256 for subject in statement.subject}
    sizes = {file.name: file.size_bytes for file in statement.predicate.files}
    for named in (statement.subject, statement.predicate.files):
        names = sorted(item.name for item in named)
        expected = sorted(tensor_files(statement.predicate))
        if names != expected:  # also if one is named twice
            raise FileSetError(
                f"{what} is signed over {names}, expected {expected}",
                hint="the site uses another version of this program; compare versions",
            )
    if sum(sizes.values()) > plan.submission.max_bytes:
        raise SizeError(
            f"{what} has {sum(sizes.values())} bytes, the plan allows {plan.submission.max_bytes}",
            hint="raise `submission.max_bytes` in the plan, or agree on a smaller architecture",
        )
    return digests


def read_weights(bundle: VerifiedBundle, name: str) -> dict[str, torch.Tensor]:
    """Returns the tensors of the file `name` of a verified bundle.

    The digest is taken of the very bytes that are parsed, so a file swapped since verification
    is refused and never loaded.

    Raises:
        DigestError: the bytes are not the ones that were verified.
    """
    return read_verified(
        bundle.files[name],
        bundle.sha256[name],
        most_bytes=bundle.submission.size_of(name) or 0,
        what=f"`{name}` of `{bundle.site}`",
    )


def read_verified(
    path: Path, sha256: str, *, most_bytes: int, what: str
) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file whose header was checked and whose digest is `sha256`.

    No more than `most_bytes` are read, however long the file has become since.

    Raises:
        DigestError: the bytes are not the ones that were verified.
    """
    with open_regular(path) as file:
        data = bytearray(min(most_bytes + 1, os.fstat(file.fileno()).st_size))
        file.readinto(data)
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise DigestError(
            f"{what} changed after it was verified: found {digest}, verified {sha256}",
            hint="something writes to this folder; find out what, then verify again",
        )
    return view_tensors(data)


def view_tensors(data: bytearray) -> dict[str, torch.Tensor]:
    """Returns the tensors of a verified file as views of its bytes: weights are in memory once.

    The library would copy them. Only for bytes whose digest is that of a file `check_tensor_file`
    passed: nothing is checked here.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    dtypes = {"F32": torch.float32, "I64": torch.int64}
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        begin, end = entry["data_offsets"]
        raw = torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=start + begin)
        if raw.data_ptr() % ITEM_BYTES[entry["dtype"]]:  # the sender's header has an odd length
            raw = raw.clone()
        tensors[name] = raw.view(dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors
