"""Labels, as indices into the plan's classes."""

import unicodedata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.errors import DataError, guess
from ddm_fed.records import DataSpec
from sites.data.report import DataReport


def class_indices(
    labels: NDArray[Any] | None,
    names: list[str] | None,
    spec: DataSpec,
    source: str,
    count: int,
    *,
    folders: bool = False,
) -> torch.Tensor | None:
    """Returns labels as indices into the plan's classes `(N,)`; None for an unconditional plan.

    Args:
        labels: One for each image: an index into `names` if these are given, else into the plan's
            classes, or the name of a class.
        names: What the labels of this source stand for.
        spec: The plan's classes.
        source: Where they are from, for messages.
        count: N, the number of images.
        folders: Whether `names` are those of subfolders.

    Raises:
        DataError: saying what the labels are instead.
    """
    if not spec.classes:
        return None
    if labels is None:
        raise DataError(
            f"{source} has no labels, the plan asks for the classes {', '.join(spec.classes)}",
            hint="add `labels` to the .npz, or a column `label` to the table and give that, not "
            "its folder, or put the images into class subfolders",
        )
    flat = _flat(np.asarray(labels), source)
    if len(flat) != count:
        raise DataError(
            f"{source} has {count} images and {len(flat)} labels",
            hint="every image needs one label",
        )
    if names is not None:
        flat = np.array(names)[flat]
    if flat.dtype.kind == "U":
        flat = _by_name(flat, spec, source, folders=folders)
    if flat.dtype.kind not in "iu" or (
        flat.size and (flat.min() < 0 or flat.max() >= len(spec.classes))
    ):
        raise DataError(
            f"{source} has labels that are neither whole numbers from 0 to "
            f"{len(spec.classes) - 1} nor names of classes",
            hint="number them in the order of `data.classes` in the plan, or write its names",
        )
    return torch.from_numpy(flat.astype(np.int64))


def _flat(labels: NDArray[Any], source: str) -> NDArray[Any]:
    """Returns labels `(N,)`; refuses several numbers for one image."""
    if labels.size == max(labels.shape, default=1):
        return labels.reshape(-1)
    wide = labels.reshape(len(labels), -1) if len(labels) else labels
    what = "several numbers for each image"
    if labels.dtype.kind in "biuf" and ((wide == 0) | (wide == 1)).all():
        one_hot = (wide.sum(axis=1) == 1).all()
        what = "one-hot" if one_hot else "several classes for one image"
    raise DataError(
        f"{source} has labels of shape {labels.shape}, which are {what}; one class for each image "
        "is needed",
        hint="if they are one-hot, store labels.argmax(axis=1)"
        if what == "one-hot"
        else "decide on one class for each image, and store its number or name",
    )


def _by_name(
    labels: NDArray[Any], spec: DataSpec, source: str, *, folders: bool
) -> NDArray[np.int64]:
    """Returns the indices of the classes whose names `labels` are."""
    index = {unicodedata.normalize("NFC", name): i for i, name in enumerate(spec.classes)}
    found, places = np.unique(labels, return_inverse=True)
    written = [unicodedata.normalize("NFC", str(name).strip()) for name in found]
    unknown = sorted(set(written) - set(index))
    if unknown:
        raise DataError(
            f"{source} has the classes {unknown[:3]}, the plan has {list(spec.classes)[:10]}"
            f"{guess(unknown[0], spec.classes)}",
            hint="rename the subfolders to the plan's class names"
            if folders
            else "write the plan's class names, or numbers in their order",
        )
    return np.array([index[name] for name in written], dtype=np.int64)[places.reshape(-1)]


def note_classes(
    indices: torch.Tensor, spec: DataSpec, report: DataReport, *, chosen: bool
) -> None:
    """Notes how many images each class has; a class without any is doubtful, unless `chosen`."""
    counts = torch.bincount(indices, minlength=len(spec.classes)).tolist()
    report.classes = dict(zip(spec.classes, counts, strict=True))
    absent = [name for name, count in report.classes.items() if not count]
    if absent and not chosen:
        report.doubts.append(
            f"{len(absent)} of the plan's {len(spec.classes)} classes have no image here: "
            f"{', '.join(absent[:10])}{' …' if len(absent) > 10 else ''}"
        )
