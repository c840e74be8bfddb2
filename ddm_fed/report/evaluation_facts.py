"""What `evaluate` measured, if it measured samples of this very ensemble or student.

An evaluation is not signed: it says what it was measured on, by digest, and that is shown with it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddm_fed.distillation.folder import VerifiedStudent
from ddm_fed.distillation.opening import Sampled, kind_of
from ddm_fed.errors import DataError, StateError, printable
from ddm_fed.evaluation.report import FORMAT, REPORT
from ddm_fed.evaluation.table import rows_of
from ddm_fed.report.sample_facts import DAMAGED, SampleFacts, named_in
from ddm_fed.storage.files import read_bounded

MAX_BYTES = 4 << 20
AGAIN = "measure them again with `ddm-coord evaluate`, into a new folder"
# the first that a row's name begins with
MEANINGS = {
    "FID": "distance between samples and real images; 0 is none, and it falls with more images",
    "KID": "another such distance; 0 is none",
    "precision": "share of samples that could pass for real images",
    "recall": "share of real images that samples come near to",
    "density": "how densely samples lie among real images; real ones have about 1",
    "coverage": "share of real images with a sample close by",
    "class shares apart": "how differently classes occur among samples and real images",
    "told from real": "how often a test tells a sample from a real image; 0.5 is guessing",
    "class recognised": "how often a classifier sees the class that was asked for",
    "accuracy of training": "of a classifier that learnt from samples alone, on real images",
    "nearer to training": "samples nearer to a training image than to another; 0.5 is chance",
    "near copies": "samples that are nearly a training image",
    "site-share error": "how far sites are from the shares they are due",
}

# what `evaluate` calls what it left out
LEFT_OUT = {
    "agreement": "class recognised",
    "baseline": "fidelity of real images, for comparison",
    "class_mix": "class shares apart",
    "memorization": "near copies",
    "shares": "site-share error",
    "tstr": "accuracy of training (TSTR)",
    "tstr_of_real": "accuracy of training on real images, for comparison",
    "two_sample": "told from real (C2ST)",
}


@dataclass(frozen=True)
class EvaluationFacts:
    """Figures with their protocol.

    Attributes:
        rows: Figure, of samples, for comparison, of how many; and what it means.
        protocol: Name and value of everything that decided about them.
        left_out: What was not measured, and why.
        copies: Share of near copies in pixels, its interval, and the most that chance makes of
            it; None where nobody looked for copies.
    """

    rows: tuple[tuple[str, ...], ...]
    protocol: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]
    copies: tuple[float, float, float, float] | None

    def figure(self, name: str) -> str | None:
        """Returns the figure of that name, of the samples, or None."""
        return next((row[1] for row in self.rows if row[0] == name), None)


def read_evaluation_facts(
    path: Path, verified: Sampled, samples: SampleFacts | None
) -> EvaluationFacts:
    """Returns what an evaluation found.

    Args:
        path: evaluation.json, or the folder that it is in.
        verified: Whose samples must have been measured.
        samples: Which ones, where they are known.

    Raises:
        StateError: it is of other samples, or does not say which, or there is none.
        DataError: it is damaged.
    """
    file = path / REPORT if path.is_dir() else path
    if not file.is_file():
        raise StateError(
            f"{file} is not there", hint="give a folder that `ddm-coord evaluate` wrote"
        )
    try:
        found = json.loads(read_bounded(file, MAX_BYTES))
        if found["format"] != FORMAT:
            raise ValueError(f"it has the format {found['format']}, expected {FORMAT}")
        measured = found["inputs"]["samples"]
        named, drawn = named_in(measured), str(measured["file_sha256"])
        facts = _facts(found)
    except DAMAGED as error:
        raise DataError(f"{file} is damaged: {type(error).__name__} {error}", hint=AGAIN) from None
    pairs = [(named, (kind_of(verified), verified.sha256))]
    of_samples = "samples of the digest"
    if samples is not None:
        pairs.append(((of_samples, drawn), (of_samples, samples.sha256)))
    if isinstance(verified, VerifiedStudent) and named == _ensemble_of(verified):
        # measured before evaluations named students, or of the ensemble: its samples can tell
        if samples is None:
            raise StateError(
                f"{file} does not say that it measured this student, and not its ensemble",
                hint=f"give the samples that it measured with --samples too, or {AGAIN}",
            )
        del pairs[0]
    for (what, said), (wanted, expected) in pairs:
        if (what, said) != (wanted, expected):
            raise StateError(
                f"{file} measured the {what} {said[:16]}…, expected the {wanted} {expected[:16]}…",
                hint=AGAIN,
            )
    return facts


def _ensemble_of(verified: VerifiedStudent) -> tuple[str, str]:
    return "ensemble", verified.record.ensemble_sha256


def _facts(found: dict[str, Any]) -> EvaluationFacts:
    inputs, protocol, results = found["inputs"], found["protocol"], found["results"]
    said = [("format", found["format"]), ("shape", inputs["shape"])]
    for name in ("samples", "real", "train"):
        if name in inputs:
            said += [(f"{name}: {key}", value) for key, value in inputs[name].items()]
    for name, value in protocol.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        said += [(f"{name}: {key}" if key else name, part) for key, part in inner]
    return EvaluationFacts(
        rows=tuple((*map(printable, row), _meaning(row[0])) for row in rows_of(results)),
        protocol=tuple(
            (_name(key), printable(str(value))) for key, value in said if value is not None
        ),
        left_out=tuple(
            (LEFT_OUT.get(key) or _name(key), printable(str(reason)))
            for key, reason in found["left_out"].items()
        ),
        copies=_copies(results),
    )


def _copies(results: dict[str, Any]) -> tuple[float, float, float, float] | None:
    found = results.get("memorization", {}).get("pixels")
    if found is None:
        return None
    near = found["near_copies"]
    return (
        float(near["value"]),
        float(near["low"]),
        float(near["high"]),
        float(found["near_by_chance"]),
    )


def _name(key: str) -> str:
    return printable(key.replace("_", " "))


def _meaning(row: str) -> str:
    return next((text for name, text in MEANINGS.items() if row.startswith(name)), "")
