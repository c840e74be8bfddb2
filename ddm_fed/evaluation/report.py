"""Measures samples by real images, and writes down every figure with what it was measured on.

What a figure needs and was not given is left out, with the reason. Real test images are measured
on and nothing else: no network, epoch or option is chosen by them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.errors import DataError, StateError
from ddm_fed.evaluation import (
    Extractor,
    Matched,
    TrainedClassifier,
    Usefulness,
    accuracy_of,
    classifier_features,
    embedder_features,
    epochs_for,
    inception_features,
    matched_by_class,
    measure_fidelity,
    measure_memorization,
    nearest,
    site_share_interval,
    train_classifier_on,
    two_sample_test,
    usefulness,
)
from ddm_fed.evaluation.features import CLASSIFIER, INCEPTION, require_features
from ddm_fed.evaluation.figures import write_counts, write_neighbours
from ddm_fed.evaluation.inputs import Pictures, read_real, read_samples
from ddm_fed.records import canonical_json, sha256_hex
from ddm_fed.storage.digests import sha256_of
from ddm_fed.storage.files import write_atomically
from ddm_fed.storage.output_folder import require_ours

REPORT = "evaluation.json"
FORMAT = 2  # 2: real images and samples are compared with classes in the same proportion
LEAST = 20  # images of each kind
SHOWN = 12  # samples in the picture of nearest neighbours
Labelled = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class EvaluateOptions:
    """How to measure; see `ddm-site evaluate --help`."""

    features: str = CLASSIFIER
    weights: Path | None = None
    seed: int = 0
    steps: int = 2000


def evaluate(
    samples: Path,
    real: Path,
    out: Path,
    options: EvaluateOptions,
    *,
    train: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures the samples in a folder and writes evaluation.json and pictures to `out`.

    Args:
        samples: Folder that `sample` wrote.
        real: `.npz` of real images that no site trained on.
        out: Folder; made where it is missing.
        options: How.
        train: `.npz` of real images of the kind the sites trained on, or those very images.
        say: Told what is being done.

    Returns:
        What evaluation.json holds: inputs, protocol, results, and what was left out and why.

    Raises:
        DataError: an input cannot be used.
        OptionError: options contradict each other.
        StateError: there are no samples, or `out` holds an evaluation of other inputs or options.
    """
    require_features(options.features, options.weights)
    require_ours(out, (REPORT, "counts.png"), hint="give --out a new or an empty folder")
    drawn, summary = read_samples(samples)
    held = read_real(real, "test", drawn.shape)
    own = None if train is None else read_real(train, "train", drawn.shape)
    if min(len(each.images) for each in (drawn, held, own) if each is not None) < LEAST:
        raise DataError(
            f"there are {len(drawn.images)} samples, {len(held.images)} real images"
            + ("" if own is None else f" and {len(own.images)} training images"),
            hint=f"at least {LEAST} of each are needed; thousands make figures worth comparing",
        )
    inputs = _inputs(samples, drawn, summary, (real, held), None if own is None else (train, own))
    protocol: dict[str, Any] = {
        "seed": options.seed,
        "features": options.features,
        "steps": options.steps,
        "weights_file_sha256": None if options.weights is None else _digest(options.weights),
    }
    asked = {"format": FORMAT, "inputs": inputs, "protocol": protocol}
    digest = sha256_hex(canonical_json(json.loads(json.dumps(asked), parse_float=str)))
    if (out / REPORT).exists():
        finished: dict[str, Any] = json.loads((out / REPORT).read_bytes())
        if finished.get("asked_sha256") != digest:
            raise StateError(
                f"{out / REPORT} is of other samples, images or options",
                hint="give another --out, or delete it; nothing was overwritten",
            )
        return finished
    work = _Work(drawn, held, own, summary, options, say)
    work.measure()
    report = asked | {
        "asked_sha256": digest,
        "protocol": protocol | work.protocol,
        "results": work.results,
        "left_out": work.left_out,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_counts(out / "counts.png", work.results)
    if work.closest is not None and own is not None:
        write_neighbours(out / "nearest.png", work.closest, drawn, own, held)
    write_atomically(out / REPORT, json.dumps(report, indent=2).encode())
    return report


class _Work:
    """One evaluation: fills `results`, and `left_out` with reasons."""

    def __init__(
        self,
        drawn: Pictures,
        held: Pictures,
        own: Pictures | None,
        summary: dict[str, Any],
        options: EvaluateOptions,
        say: Callable[[str], None],
    ) -> None:
        self._drawn, self._held, self._own, self._summary = drawn, held, own, summary
        self._options, self._say = options, say
        self._extractor: Extractor | None = None
        self.protocol: dict[str, Any] = {}
        self.results: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        self._mix: Matched | None = None
        self.closest: NDArray[np.int64] | None = None
        sets = [each.labels for each in (drawn, held, own) if each is not None]
        self._classes = max((int(each.max()) + 1 for each in sets if each is not None), default=0)

    def measure(self) -> None:
        """Measures all that the inputs allow."""
        self._shares()
        self._counts()
        self._match()
        self._features()
        self._fidelity()
        self._useful()
        self._memorized()

    def _torch(self, stream: int) -> torch.Generator:
        seeds = np.random.SeedSequence([self._options.seed, stream]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seeds[0] >> np.uint64(1)))

    def _numpy(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._options.seed, stream])

    def _shares(self) -> None:
        counts, intended = self._summary.get("site_counts"), self._summary.get("intended_shares")
        if self._drawn.labels is not None:
            # which site is due a sample depends on its class: these are other shares
            intended = self._summary.get("intended_shares_of_labels")
        elif self._summary.get("prompts"):  # and on its caption; earlier samples do not say it
            intended = self._summary.get("intended_shares_of_prompts", intended)
        if not counts:
            self.left_out["shares"] = "the strategy draws no site for a sample"
            if "student_sha256" in self._summary:
                self.left_out["shares"] = "a student's samples are of no site"
        elif not intended:
            self.left_out["shares"] = (
                "the sites were drawn given classes, and samples.json does not hold the shares "
                "intended for those"
            )
        elif counts.keys() != intended.keys():
            raise DataError(
                "samples.json names other sites in its shares than in its counts",
                hint="draw the samples again",
            )
        else:
            found = site_share_interval(
                list(intended.values()),
                [counts[site] for site in intended],
                generator=self._numpy(0),
            )
            rows = {
                site: {"intended": share, "samples": counts[site]}
                for site, share in intended.items()
            }
            self.results["shares"] = found._asdict() | {"sites": rows}
            self._guided()

    def _guided(self) -> None:
        """Takes back what is said of an exact sampler, where guidance leaves none exact."""
        guidance = self._summary.get("guidance", 1.0)
        self.results["shares"]["guidance"] = guidance
        if guidance != 1.0:
            self.results["shares"]["p_value"] = None
            self.left_out["p_value of shares"] = (
                f"under guidance {guidance:g} shares are not exact: no sampler is to be judged by "
                "chance alone"
            )

    def _counts(self) -> None:
        sets = {"samples": self._drawn, "real": self._held, "train": self._own}
        found = {
            name: np.bincount(each.labels, minlength=self._classes).tolist()
            for name, each in sets.items()
            if each is not None and each.labels is not None
        }
        if found:
            self.results["classes"] = found
        else:
            self.left_out["classes"] = "no set of images has labels"

    def _match(self) -> None:
        """Chooses images to compare that hold classes in the same proportion."""
        if self._drawn.labels is None or self._held.labels is None:
            self.left_out["class_mix"] = (
                "without labels on both sides samples and real images are compared as they are: "
                "another mix of classes counts as a difference"
            )
            return
        self._mix = matched_by_class(
            self._held.labels, self._drawn.labels, generator=self._numpy(8)
        )
        self.results["class_mix"] = {
            "apart": self._mix.apart,
            "real": len(self._mix.real),
            "samples": len(self._mix.drawn),
        }
        if self._mix.unmatched:
            classes = ", ".join(map(str, self._mix.unmatched))
            self.left_out["classes without real images"] = (
                f"there are samples and no real images of the classes {classes}: those samples are "
                "compared with nothing"
            )

    def _own_rows(self, stream: int, drawn: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Returns rows of training images in the place of samples: as many, of the same classes.

        Args:
            stream: Of the random numbers.
            drawn: Classes of the samples, or None.
        """
        if self._own is None:
            raise ValueError("there are no training images")
        if self._own.labels is None or drawn is None:
            count = len(self._drawn.images)
            return np.sort(self._numpy(stream).permutation(len(self._own.images))[:count])
        return matched_by_class(self._own.labels, drawn, generator=self._numpy(stream), most=1).real

    def _features(self) -> None:
        if self._options.weights is not None:
            self._extractor = _public_features(self._options.features, self._options.weights)
            self.left_out["agreement"] = "a classifier is trained with --features classifier only"
        elif self._own is None or self._own.labels is None or self._own.classes < 2:
            reason = "a classifier's features take --train with labels of two or more classes"
            self.left_out["agreement"] = reason
            for name in ("fidelity", "two_sample"):
                self.left_out[name] = (
                    f"{reason}; or give --features inception, clip or timm:NETWORK, and --weights"
                )
        else:
            self._say(f"training a classifier on {len(self._own.images)} real training images")
            trained = self._classifier(self._own, stream=1)
            self._extractor = classifier_features(trained)
            self.protocol["classifier"] = {
                "trained_on": len(self._own.images),
                "held_out_of_training": 0.1,
                "held_out_accuracy": trained.held_out_accuracy,
            }
            self._agreement(trained)
        if self._extractor is not None:
            self.protocol["extractor"] = {
                "name": self._extractor.name,
                "sha256": self._extractor.sha256,
                "width": self._extractor.width,
            }

    def _classifier(self, source: Pictures, stream: int) -> TrainedClassifier:
        epochs = epochs_for(len(source.images), steps=self._options.steps)
        return train_classifier_on(
            *source.tensors(), self._classes, epochs=epochs, generator=self._torch(stream)
        )

    def _agreement(self, trained: TrainedClassifier) -> None:
        """How often a classifier of real images sees in a sample the class that was asked for."""
        if self._drawn.labels is None:
            self.left_out["agreement"] = "the samples have no labels"
            return
        self.results["agreement"] = {
            "samples": plain(accuracy_of(trained, *self._drawn.tensors())),
        }
        rows = None if self._mix is None else self._mix.real
        if self._held.labels is not None and (rows is None or len(rows)):
            self.results["agreement"]["real"] = plain(
                accuracy_of(trained, *self._held.tensors(rows))
            )

    def _fidelity(self) -> None:
        if self._extractor is None:
            return
        self._say(f"comparing in features of {self._extractor.name}")
        held, kept = (None, None) if self._mix is None else (self._mix.real, self._mix.drawn)
        sizes = [len(self._held.images if held is None else held)]
        sizes.append(len(self._drawn.images if kept is None else kept))
        if min(sizes) < LEAST:
            for name in ("fidelity", "two_sample"):
                self.left_out[name] = (
                    f"of classes that both have there are {sizes[0]} real images and {sizes[1]} "
                    f"samples; at least {LEAST} of each are needed"
                )
            return
        real, drawn = (
            self._extractor(self._held.unit(held)),
            self._extractor(self._drawn.unit(kept)),
        )
        self.results["fidelity"] = plain(measure_fidelity(real, drawn, generator=self._numpy(2)))
        test = two_sample_test(real, drawn, generator=self._numpy(3))
        self.results["two_sample"] = plain(test)
        if len(real) <= self._extractor.width or len(drawn) <= self._extractor.width:
            self.protocol["warning"] = (
                "no more images than features: covariances are singular, and the Frechet distance "
                "says little"
            )
        if self._own is None:
            self.left_out["baseline"] = "real training images in the place of samples take --train"
            return
        rows = self._own_rows(4, None if kept is None else self._drawn.of(kept))
        if len(rows) < LEAST:
            self.left_out["baseline"] = "there are too few training images of the samples' classes"
            return
        baseline = measure_fidelity(
            real, self._extractor(self._own.unit(rows)), generator=self._numpy(2)
        )
        self.results["baseline"] = plain(baseline)

    def _useful(self) -> None:
        if self._drawn.labels is None or self._held.labels is None:
            missing = "samples" if self._drawn.labels is None else "real images"
            self.left_out["tstr"] = f"the {missing} have no labels"
            return
        self._say(f"training a classifier on {len(self._drawn.images)} samples")
        test = self._held.tensors()
        found = self._usefulness(self._drawn.tensors(), test)
        self.results["tstr"] = {"samples": plain(found)}
        if self._own is None or self._own.labels is None:
            self.left_out["tstr_of_real"] = (
                "real images in the place of samples take labelled --train"
            )
            return
        rows = self._own_rows(6, self._drawn.labels)
        if len(rows) < LEAST:
            self.left_out["tstr_of_real"] = "there are too few training images of their classes"
            return
        self._say(f"training a classifier on {len(rows)} real training images")
        real = self._usefulness(self._own.tensors(rows), test)
        self.results["tstr"]["real"] = plain(real)

    def _usefulness(self, own: Labelled, test: Labelled) -> Usefulness:
        return usefulness(
            *own,
            *test,
            classes=self._classes,
            generator=self._torch(5),
            steps=self._options.steps,
        )

    def _memorized(self) -> None:
        if self._own is None:
            self.left_out["memorization"] = "copies can be looked for in --train only"
            return
        self._say("looking for copies of training images")
        rows = [each.rows() for each in (self._drawn, self._own, self._held)]
        self.results["memorization"] = {
            "pixels": plain(measure_memorization(*rows, generator=self._numpy(7)))
        }
        self.closest = np.argsort(nearest(rows[0], rows[1]).distance, kind="stable")[:SHOWN]
        # features of a classifier that knows the training images would find them near anyway
        if self._extractor is not None and self._extractor.name != CLASSIFIER:
            seen = [self._extractor(each.unit()) for each in (self._drawn, self._own, self._held)]
            self.results["memorization"][self._extractor.name] = plain(
                measure_memorization(*seen, generator=self._numpy(7))
            )


def plain(value: Any) -> Any:
    """Returns named tuples as dictionaries, all the way down."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(inner) for name, inner in value._asdict().items()}
    return value


def _public_features(name: str, weights: Path) -> Extractor:
    if name == INCEPTION:
        return inception_features(weights)
    # a missing file has no digest, and is reported where it is opened
    return embedder_features(name, weights, _digest(weights) or "")


def _digest(path: Path) -> str | None:
    """Returns the digest of a file; a missing one is reported where it is read."""
    return sha256_of(path) if path.is_file() else None


def _inputs(
    samples: Path,
    drawn: Pictures,
    summary: dict[str, Any],
    real: tuple[Path, Pictures],
    train: tuple[Path | None, Pictures] | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "shape": list(drawn.shape),
        "samples": {
            "file_sha256": sha256_of(samples / "samples.npz"),
            "count": len(drawn.images),
            "ensemble_sha256": summary.get("ensemble_sha256"),
            "options_sha256": summary.get("options_sha256"),
        },
        "real": {"file_sha256": sha256_of(real[0]), "count": len(real[1].images)},
    }
    if "student_sha256" in summary:  # whose samples name the ensemble that it was made from, too
        found["samples"]["student_sha256"] = summary["student_sha256"]
    if train is not None and train[0] is not None:
        found["train"] = {"file_sha256": sha256_of(train[0]), "count": len(train[1].images)}
    return found
