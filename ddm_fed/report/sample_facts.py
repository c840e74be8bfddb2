"""What a folder of samples holds: counted in the samples themselves, held against their model.

Samples are not signed. What can be computed again, from the arrays or from what sites released, is
not taken from samples.json; the rest are options, with which anybody can draw the same images.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.distillation.folder import VerifiedStudent
from ddm_fed.distillation.opening import Sampled, kind_of
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.load import load_router
from ddm_fed.ensemble.sample_archive import read_chunk
from ddm_fed.ensemble.sample_folder import SUMMARY
from ddm_fed.ensemble.sample_job import SHARES_OF_PROMPTS
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.errors import DataError, StateError, printable
from ddm_fed.evaluation import ShareInterval, site_share_interval
from ddm_fed.flows import ClassCondition
from ddm_fed.records import RouterName
from ddm_fed.storage.digests import sha256_of
from ddm_fed.storage.files import read_bounded

Arrays = dict[str, NDArray[Any]]
ARCHIVE = "samples.npz"
MAX_SUMMARY_BYTES = 16 << 20  # it may hold every prompt
DAMAGED = (
    *(KeyError, TypeError, ValueError, AttributeError, IndexError),
    *(ArithmeticError, RecursionError),  # numbers that no float holds, lists in lists
)
AGAIN = "draw the samples again with `ddm-coord sample`, into a new folder"


@dataclass(frozen=True)
class SampleFacts:
    """Samples of one ensemble or student.

    Attributes:
        sha256: Of samples.npz.
        count: Number of samples.
        images: `(N, C, H, W)` uint8; None where they are latents that were not decoded.
        guidance: 1 is as trained.
        prompts: What the images were asked to show.
        notes: What the sampler said of them.
        command: What draws them again.
    """

    sha256: str
    count: int
    images: NDArray[np.uint8] | None
    guidance: float
    prompts: tuple[str, ...]
    notes: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class EnsembleSamples(SampleFacts):
    """Samples of an ensemble, in which sites have shares.

    Attributes:
        sites: Place of the site whose expert drew each, `(N,)`; None where several did together.
        attribution: Each site's mean part in a sample, or None.
        intended: Share that each site was due.
        shares: How far the sites' numbers are from these; None where no site was drawn.
        strategy: Which experts were asked.
    """

    sites: NDArray[np.int64] | None
    attribution: tuple[float, ...] | None
    intended: tuple[float, ...]
    shares: ShareInterval | None
    strategy: Strategy

    @property
    def counts(self) -> tuple[int, ...] | None:
        """How many samples each site drew."""
        if self.sites is None:
            return None
        return tuple(np.bincount(self.sites, minlength=len(self.intended)).tolist())


@dataclass(frozen=True)
class _Folder:
    """The two files of a folder of samples, as they were read."""

    summary: dict[str, Any]
    arrays: Arrays
    sha256: str


def read_ensemble_samples(folder: Path, verified: VerifiedEnsemble) -> EnsembleSamples:
    """Returns what is in a folder that `sample` wrote, if it is of this very ensemble.

    Raises:
        StateError: there are no finished samples, or they are of something else.
        DataError: the folder is damaged, or its summary says something else than its samples.
    """
    found = _read(folder, verified)
    try:
        return _of_ensemble(verified, found)
    except DAMAGED as error:
        raise _damaged(folder / SUMMARY, error) from None


def read_student_samples(folder: Path, verified: VerifiedStudent) -> SampleFacts:
    """Returns what is in a folder that `sample` wrote, if it is of this very student.

    Raises:
        StateError, DataError: as for `read_ensemble_samples`.
    """
    found = _read(folder, verified)
    try:
        return SampleFacts(**_common(verified, found))
    except DAMAGED as error:
        raise _damaged(folder / SUMMARY, error) from None


def named_in(source: Mapping[str, Any]) -> tuple[str, str]:
    """Returns what samples are of, as who drew them says: `ensemble` or `student`, and its digest.

    Those of a student name the ensemble that it was made from, too.
    """
    student = source.get("student_sha256")
    if student is not None:
        return "student", str(student)
    return "ensemble", str(source.get("ensemble_sha256"))


def _read(folder: Path, verified: Sampled) -> _Folder:
    archive, file = folder / ARCHIVE, folder / SUMMARY
    if not archive.is_file() or not file.is_file():
        raise StateError(
            f"{folder} holds no finished samples",
            hint="give a folder that `ddm-coord sample` or `ddm-site sample` wrote",
        )
    try:
        summary = json.loads(read_bounded(file, MAX_SUMMARY_BYTES))
        kind, sha256 = named_in(summary)
    except DAMAGED as error:
        raise _damaged(file, error) from None
    if (kind, sha256) != (kind_of(verified), verified.sha256):
        raise StateError(
            f"the samples in {folder} are of the {kind} {sha256[:16]}…, and this "
            f"{kind_of(verified)} is {verified.sha256[:16]}…",
            hint=AGAIN,
        )
    return _Folder(summary, read_chunk(archive), sha256_of(archive))


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} is damaged: {type(error).__name__} {error}", hint=AGAIN)


def _common(verified: Sampled, found: _Folder) -> dict[str, Any]:
    """Returns the fields of `SampleFacts`."""
    summary, count = found.summary, int(found.summary["count"])
    held = {len(values) for values in found.arrays.values()}
    if count < 1 or held != {count}:
        raise ValueError(f"`count` is {count}, and the samples are {sorted(held)}")
    shape = (count, *verified.trust.plan.data.pixel_shape)
    return {
        "sha256": found.sha256,
        "count": count,
        "images": _of_shape(found.arrays, "images", "u", shape),
        "guidance": float(summary["guidance"]),
        "prompts": _texts(summary.get("prompts", [])),
        "notes": _texts(summary.get("notes", [])),
        "command": _command(verified, summary),
    }


def _of_ensemble(verified: VerifiedEnsemble, found: _Folder) -> EnsembleSamples:
    summary, arrays, common = found.summary, found.arrays, _common(verified, found)
    names = [bundle.site for bundle in verified.bundles]
    count, strategy = common["count"], Strategy.parse(str(summary["strategy"]))
    sites = _of_shape(arrays, "sites", "i", (count,))
    attribution = _of_shape(arrays, "attribution", "f", (count, len(names)))
    if sites is not None and not np.isin(sites, np.arange(len(names))).all():
        raise ValueError("`sites` names a site that there is not")
    intended = _intended(verified, summary, arrays, count)
    counts = None if sites is None else np.bincount(sites, minlength=len(names)).tolist()
    said = summary["site_counts"]
    if counts is not None and (said is None or [said[name] for name in names] != counts):
        raise ValueError("`site_counts` are not those of the samples")
    shares = None
    if counts is not None:
        shares = site_share_interval(intended, counts, generator=np.random.default_rng(0))
    return EnsembleSamples(
        **common,
        sites=sites,
        attribution=None if attribution is None else tuple(attribution.mean(0).tolist()),
        intended=tuple(intended),
        shares=shares,
        strategy=strategy,
    )


def _of_shape(arrays: Arrays, name: str, kind: str, shape: tuple[int, ...]) -> NDArray[Any] | None:
    found = arrays.get(name)
    if found is not None and (found.dtype.kind != kind or found.shape != shape):
        raise ValueError(f"`{name}` is {found.dtype} of shape {found.shape}, expected {shape}")
    return found


def _intended(
    verified: VerifiedEnsemble, summary: dict[str, Any], arrays: Arrays, count: int
) -> Sequence[float]:
    """Returns the share that each site was due, computed from what the sites released.

    Shares given prompts need the embedder's weights: they are what the sampler wrote.
    """
    if summary.get("prompts"):
        shares = summary.get(SHARES_OF_PROMPTS, summary["intended_shares"])
        return [float(shares[bundle.site]) for bundle in verified.bundles]
    name = summary["router"]
    if name not in get_args(RouterName):
        raise ValueError(f"`router` is {name}")
    router = load_router(verified, name)
    labels = _of_shape(arrays, "labels", "i", (count,))
    if labels is None:
        shares = router.log_prior(None)
    else:
        classes, drawn = np.unique(labels, return_counts=True)
        if not np.isin(classes, np.arange(len(verified.trust.plan.data.classes))).all():
            raise ValueError("`labels` names a class that there is not")
        each = router.log_prior(ClassCondition(torch.from_numpy(classes))).exp()  # (G, K)
        shares = (torch.from_numpy(drawn / drawn.sum()) @ each).log()
    found: list[float] = shares.exp().tolist()
    return found


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError("a list of texts is expected")
    return tuple(printable(str(value)) for value in values)


def _command(verified: Sampled, summary: dict[str, Any]) -> str:
    """Returns the command that draws the same samples, as far as options say it."""
    words = ["ddm-coord", "sample", verified.folder.name, "--root", verified.trust.root]
    for option, name in (
        ("--count", "count"),
        ("--strategy", "strategy"),
        ("--router", "router"),
        ("--router-temperature", "router_temperature"),
        ("--steps", "steps"),
        ("--solver", "solver"),
        ("--guidance", "guidance"),
        ("--seed", "seed"),
        ("--class", "class"),
        ("--precision", "precision"),
        ("--batch-size", "batch_size"),
        ("--in-flight", "in_flight"),
    ):
        value = summary.get(name)
        if value is not None and (name != "guidance" or value != 1):
            words += [option, str(value)]
    for prompt in _texts(summary.get("prompts", [])):
        words += ["--prompt", prompt]
    if summary.get("attribution"):
        words.append("--attribution")
    return printable(shlex.join([*words, "--out", "samples"]))
