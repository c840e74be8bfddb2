"""Draws images from a verified ensemble and writes them down with how they came about.

Finished chunks lie in `.part-samples` until all are there. A killed run goes on from them when the
same command is given again, and ends with the very files an unbroken run would have written. A
folder belongs to one set of options and one ensemble: another is refused, never mixed in.

Several machines may draw parts of the chunks: into one folder that they share, or each into its
own, whose `.part-samples` are then copied together. Drawing all of them after that finds what is
there, checks that it is of these very options, and ends with the bytes one machine would have made.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.autoencoders import Autoencoder
from ddm_fed.ensemble.decoding import open_decoder
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.pool import Elsewhere
from ddm_fed.ensemble.sample_archive import (
    REDRAW,
    read_chunk,
    read_chunks,
    require_arrays,
    write_archive,
    write_first,
)
from ddm_fed.ensemble.sample_job import SampleJob, load_for_sampling, with_embedder
from ddm_fed.ensemble.sample_options import Content as Content
from ddm_fed.ensemble.sample_options import SampleOptions as SampleOptions
from ddm_fed.ensemble.sample_options import notes_on, require_fit
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.errors import StateError
from ddm_fed.flows import CALLS_PER_STEP, ClassCondition
from ddm_fed.pictures import write_picture
from ddm_fed.progress import Advance
from ddm_fed.records import canonical_json, sha256_hex
from ddm_fed.storage.files import (
    PART_PREFIX,
    exclusive,
    write_atomically,
)
from ddm_fed.storage.output_folder import require_ours

PARTS = f"{PART_PREFIX}samples"
SUMMARY = "samples.json"


def draw(
    verified: VerifiedEnsemble,
    out: Path,
    options: SampleOptions,
    *,
    elsewhere: Elsewhere | None = None,
    advance: Advance = lambda _: None,
) -> dict[str, Any]:
    """Samples a verified ensemble, and writes what `write_samples` writes to `out`.

    `elsewhere` is what answers for experts that stay at their sites, by site.

    Raises:
        RefusedError: a file of the ensemble is no longer what was verified.
        OptionError: options do not fit the plan or each other.
        DigestError: another autoencoder is given than the plan's.
        StateError: `out` holds other samples.
        BusyError: another process draws the same part, or any part where all are wanted.
    """
    _require_ours(out)
    options = with_embedder(verified, options)
    decoder = open_decoder(
        options.autoencoder,
        verified.trust.plan.data,
        options.devices[0],
        keep_latents=options.latents,
    )
    ensemble = load_for_sampling(verified, options, elsewhere)
    source = {
        "federation": verified.trust.plan.federation,
        "ensemble_sha256": verified.sha256,
        "plan_sha256": verified.trust.plan_sha256,
        "members": {bundle.site: bundle.payload_sha256 for bundle in verified.bundles},
        "router": options.router or verified.record.router,
    }
    content = Content.of(verified, options.router, options.sampling.strategy)
    return write_samples(ensemble, content, out, options, source, decoder=decoder, advance=advance)


def write_samples(
    ensemble: Ensemble,
    content: Content,
    out: Path,
    options: SampleOptions,
    source: dict[str, Any],
    *,
    experts: Sequence[str] | None = None,
    decoder: Autoencoder | None = None,
    advance: Advance = lambda _: None,
) -> dict[str, Any]:
    """Samples an ensemble into samples.npz, grid.png, samples.json and images/ in `out`.

    Args:
        ensemble: What to sample.
        content: What its images are.
        out: Folder; made where it is missing.
        options: How.
        source: Says which ensemble it is; `members` names its sites in their order. What it says
            stands, whatever else is said under the same name.
        experts: What the experts are called, in their order; by default as the members.
        decoder: What makes pictures of samples that are latents. Without it, none are made.
        advance: Told how many more samples' worth of work is done.

    Returns:
        With `options.part`, only how many of its chunks there are, unless all samples are there
        already. Otherwise what samples.json
        holds: source, options, intended shares, what has to be known of them
        (`notes`), calls of every expert, and where each sample has one site the number of samples
        of every site.

    Raises:
        OptionError, StateError: as for `draw`.
    """
    _require_ours(out)
    require_fit(ensemble, content, options)
    described = source | _described(ensemble, content, options, decoder) | source
    digest = sha256_hex(canonical_json(json.loads(json.dumps(described), parse_float=str)))
    out.mkdir(parents=True, exist_ok=True)
    if (out / SUMMARY).exists():
        finished: dict[str, Any] = json.loads((out / SUMMARY).read_bytes())
        _require_same_digest(out, finished.get("options_sha256"), digest)
        advance(options.count)
        return finished
    parts = out / PARTS
    parts.mkdir(exist_ok=True)
    with _alone(parts, options.part):
        if (parts / "options").exists():
            _require_same_digest(out, (parts / "options").read_text(), digest)
        write_atomically(parts / "options", digest.encode())
        names = tuple(source["members"] if experts is None else experts)
        samples = SampleJob(ensemble, content, options, names, decoder)
        job = _Job(samples, out, digest)
        files = [job.part(indices, advance) for indices in samples.chosen]
        if options.part is not None:
            return {"chunks": len(files), "of": len(samples.chunks)}
        summary = described | _counted(ensemble, files, names)
        summary |= samples.shares_of_prompts()
        if content.one_network:
            summary |= {"intended_shares": None, "intended_shares_of_labels": None}
        summary["options_sha256"] = digest
        write_archive(out / "samples.npz", files, options.count)
        if content.data.latent is None or decoder is not None:
            write_first(out / "grid.png", files)
        write_atomically(out / SUMMARY, json.dumps(summary, indent=2).encode())
    shutil.rmtree(parts)
    return summary


def _require_ours(out: Path) -> None:
    """Refuses to write samples among other things, which may be private images."""
    hint = "give --out a new or an empty folder"
    require_ours(out, (SUMMARY, PARTS), hint=hint)


@contextmanager
def _alone(parts: Path, part: tuple[int, int] | None) -> Iterator[None]:
    """Holds the lock of one part, or of all: those of parts that were ever begun, too."""
    with ExitStack() as held:
        if part is not None:
            held.enter_context(exclusive(parts / f"lock-{part[0]}-{part[1]}"))
        else:
            held.enter_context(exclusive(parts / "lock"))
            for other in sorted(parts.glob("lock-*")):
                held.enter_context(exclusive(other))
        yield


class _Job:
    """Samples being made, chunk by chunk, each kept as a file."""

    def __init__(self, samples: SampleJob, out: Path, digest: str) -> None:
        self._samples, self._out, self._digest = samples, out, digest

    def part(self, indices: range, advance: Advance) -> Path:
        """Returns the file of a finished chunk, which is drawn where it is missing."""
        file = self._out / PARTS / f"{indices.start:09d}.npz"
        if file.exists():
            self._take(file, indices)
            advance(len(indices))
            return file
        arrays = self._samples.arrays(indices, advance)
        if self._samples.options.png and "images" in arrays:
            self._write_pictures(indices, arrays)
        arrays["options"] = np.array(self._digest)
        content = BytesIO()
        np.savez(content, **arrays)
        write_atomically(file, content.getvalue())
        return file

    def _take(self, file: Path, indices: range) -> None:
        """Checks a chunk that is there already, and writes its pictures where they are missing."""
        arrays, samples = read_chunk(file), self._samples
        found = str(arrays["options"]) if "options" in arrays else None
        _require_same_digest(file, found, self._digest)
        require_arrays(file, arrays, samples.expected(indices), sites=len(samples.sites))
        asked = samples.asked(indices)
        if any(not np.array_equal(arrays[name], values) for name, values in asked.items()):
            raise StateError(f"{file}: its samples are not those that were asked for", hint=REDRAW)
        last = self._out / "images" / f"{indices.stop - 1:06d}.png"
        if samples.options.png and "images" in arrays and not last.exists():
            self._write_pictures(indices, arrays)  # drawn on another machine

    def _write_pictures(self, indices: range, arrays: dict[str, Any]) -> None:
        folder, samples = self._out / "images", self._samples
        folder.mkdir(exist_ok=True)
        for row, index in enumerate(indices):
            notes = {"seed": str(samples.options.sampling.seed), "index": str(index)}
            if "labels" in arrays:
                notes["class"] = samples.content.data.classes[arrays["labels"][row]]
            if "prompts" in arrays:
                notes["prompt"] = samples.options.prompts[arrays["prompts"][row]]
            if "sites" in arrays:
                notes["site"] = samples.sites[arrays["sites"][row]]
            write_picture(folder / f"{index:06d}.png", arrays["images"][row], notes)


def _described(
    ensemble: Ensemble, content: Content, options: SampleOptions, decoder: Autoencoder | None
) -> dict[str, Any]:
    """Returns all that decides about the images, to the last bit, and what to know of them."""
    weights = content.weights(options.label)
    shares = [] if weights is None else (weights / weights.sum()).tolist()
    coded: dict[str, Any] = {}
    if content.data.latent is not None:
        coded = {
            "autoencoder_sha256": content.data.latent.sha256,
            "decoded": decoder is not None,
            "latents": options.latents,
        }
    # only where there are any: folders of other plans are what they were
    prompts = {} if content.data.text is None else {"prompts": list(options.prompts)}
    warmth = options.sampling.temperature
    temperature = {} if warmth == 1 else {"router_temperature": warmth}
    return (
        coded
        | prompts
        | temperature
        | {
            "strategy": str(options.sampling.strategy),
            "solver": options.sampling.solver,
            "steps": options.sampling.steps,
            "calls_per_step": CALLS_PER_STEP[options.sampling.solver],
            "guidance": options.sampling.guidance,
            "seed": options.sampling.seed,
            "count": options.count,
            "class": options.label,
            "class_shares": dict(zip(content.data.classes, shares, strict=True)) or None,
            "notes": notes_on(content, options),
            "precision": options.precision,
            "devices": [str(device) for device in ensemble.experts.devices],
            "batch_size": options.sampling.batch_size,
            "in_flight": options.sampling.in_flight,
            "attribution": options.sampling.attribution,
            "png": options.png,
        }
    )


def _require_same_digest(out: Path, found: str | None, expected: str) -> None:
    if found != expected:
        raise StateError(
            f"{out} holds samples of other options or of another ensemble: digest "
            f"{(found or 'unknown')[:16]}…, asked for {expected[:16]}…",
            hint="give another --out, or delete that folder; samples are never mixed",
        )


def _counted(ensemble: Ensemble, files: Sequence[Path], sites: Sequence[str]) -> dict[str, Any]:
    shares = ensemble.router.log_prior(None).exp().tolist()
    calls, counts = np.zeros(len(sites), int), np.zeros(len(sites), int)
    drawn, mean, most, count = False, np.zeros(len(sites)), np.zeros(len(sites), int), 0
    of_labels = np.zeros(len(sites))
    for part in read_chunks(files):
        calls += part["calls"]
        if "labels" in part:
            condition = ClassCondition(torch.from_numpy(part["labels"]))
            log_prior = ensemble.log_prior(len(part["labels"]), condition)
            of_labels += log_prior.exp().sum(0).numpy()
        if "attribution" in part:
            count += len(part["attribution"])
            mean += part["attribution"].sum(0, dtype=np.float64)
            most += np.bincount(part["attribution"].argmax(1), minlength=len(sites))
        if "sites" in part:
            drawn = True
            counts += np.bincount(part["sites"], minlength=len(sites))
    return {
        "intended_shares": dict(zip(sites, shares, strict=True)),
        "intended_shares_of_labels": (
            dict(zip(sites, (of_labels / of_labels.sum()).tolist(), strict=True))
            if of_labels.any()
            else None
        ),
        "site_counts": dict(zip(sites, counts.tolist(), strict=True)) if drawn else None,
        "expert_calls": dict(zip(sites, calls.tolist(), strict=True)),
        "attribution": _attribution(sites, mean / max(1, count), most) if count else None,
    }


def _attribution(
    sites: Sequence[str], mean: NDArray[np.float64], most: NDArray[np.int64]
) -> dict[str, dict[str, float]]:
    """Returns each site's mean part in a sample, and in how many its part is the largest."""
    rows = zip(sites, mean.tolist(), most.tolist(), strict=True)
    return {site: {"mean_part": part, "largest_in": number} for site, part, number in rows}
