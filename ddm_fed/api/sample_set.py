"""Samples in memory, as notebooks look at them."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ddm_fed.ensemble.sample_job import SampleJob
from ddm_fed.pictures import Picture, grid_picture


@dataclass(frozen=True, repr=False)
class SampleSet:
    """Samples and how they came about. Shown as a grid where it is the last line of a cell.

    Attributes:
        images: `(N, H, W, C)` uint8, as Pillow, matplotlib and imageio take them; None where the
            samples are latents and no autoencoder is at hand.
        labels: The class each was asked to be, by its place in the plan's classes, `(N,)` int64;
            None without classes.
        prompts: The prompt each was asked to show, `(N,)` text; None without prompts.
        sites: The site whose expert finished each, `(N,)` text; None where several shared the work,
            and of a student.
        attribution: The part of every site in each, `(N, K)` float32, if it was asked for.
        latents: `(N, C, H, W)` float32, if they were asked for.
        notes: What has to be known before anybody counts or compares them.
    """

    images: NDArray[np.uint8] | None
    labels: NDArray[np.int64] | None
    prompts: NDArray[np.str_] | None
    sites: NDArray[np.str_] | None
    attribution: NDArray[np.float32] | None
    latents: NDArray[np.float32] | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, job: SampleJob, arrays: Mapping[str, NDArray[Any]], notes: tuple[str, ...]) -> Self:
        """Returns the samples of a job, from its arrays of all of them."""
        images, prompts, sites = (arrays.get(name) for name in ("images", "prompts", "sites"))
        return cls(
            None if images is None else np.ascontiguousarray(images.transpose(0, 2, 3, 1)),
            arrays.get("labels"),
            None if prompts is None else np.array(job.options.prompts)[prompts],
            None if sites is None else np.array(job.sites)[sites],
            arrays.get("attribution"),
            arrays.get("latents"),
            notes,
        )

    def __len__(self) -> int:
        found = self.latents if self.images is None else self.images
        return 0 if found is None else len(found)

    def __repr__(self) -> str:
        found = self.latents if self.images is None else self.images
        shape = "" if found is None else " x ".join(map(str, found.shape[1:]))
        lines = [f"{len(self)} samples, each {shape}"]
        if self.sites is not None:
            names, counts = np.unique(self.sites, return_counts=True)
            drawn = ", ".join(f"{name} {n}" for name, n in zip(names, counts, strict=True))
            lines.append(f"of the sites {drawn}")
        return "\n".join([*lines, *(f"NOTE: {note}" for note in self.notes)])

    def grid(self, *, columns: int | None = None, zoom: int = 0, most: int = 100) -> Picture:
        """Returns the first samples as one picture of Pillow, row by row.

        Args:
            columns: Images per row; by default as many as there are rows.
            zoom: Pixels per pixel; by default such that an image is about 48 pixels high.
            most: How many samples at most.

        Raises:
            ValueError: these are latents, or there are none.
        """
        if self.images is None or not len(self):
            raise ValueError("there are no images to show: latents need an autoencoder")
        return grid_picture(self.images[:most], columns=columns, zoom=zoom)

    def _repr_png_(self) -> bytes | None:
        """Returns what a notebook shows."""
        if self.images is None or not len(self):
            return None
        shown = BytesIO()
        self.grid().save(shown, format="PNG")
        return shown.getvalue()
