"""What a site releases of its embeddings: at every public anchor a noisy count and a noisy sum.

Every image becomes a direction u, `(D,)` of norm 1, and belongs to the nearest of J public anchors.
One message leaves: how many images belong to each anchor, and the sum of their directions. One
image touches one row of each, so the joint L2 sensitivity is known without clipping. Public anchors
are what keeps this cheap: clusters found in private data would cost privacy in every round.

Under a plan that protects patients an image counts for 1/m among the m of its patient, as in every
other statistic, so that a patient moves the sums no further than one image.

Shapes: N images, E of an embedding, D of a direction, J anchors.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddm_fed.embedding import Embedder, fixed_images, open_embedder
from ddm_fed.errors import DataError, OptionError, StateError
from ddm_fed.mixture.directions import Anchors, planned_anchors
from ddm_fed.mixture.integer_sums import integer_sum
from ddm_fed.mixture.messages import centroid_message
from ddm_fed.mixture.noisy_vector import Floats, Ints
from ddm_fed.privacy import ImageSet
from ddm_fed.records import CentroidSpec, Plan, canonical_json, sha256_hex
from ddm_fed.storage.row_files import Part, RowFiles

DIRECTIONS_FILE = "directions.f64"
LONGEST = 1 + 1e-12  # of a direction, but for rounding
LEAST_COUNT = 4.0  # standard deviations of the noise that a count must exceed

Advance = Callable[[int], None]
Directions = Callable[[ImageSet], Floats]
"""`N images -> directions (N, D)`, each of its image alone."""


@dataclass(frozen=True)
class Centroids:
    """What a release says of its site, after the noise.

    Attributes:
        count: Number of images, at least 1.
        weights: Images at each anchor, `(J,)`. Those of anchors that drowned in the noise share
            what the others leave of `count`.
        directions: Mean direction at each anchor, `(J, D)` of norm 1, shrunk towards the anchor by
            the known noise; the anchor itself where it drowned.
        resultants: Length of the mean of the directions at each anchor, `(J,)`, in [0, 1]; zero
            where it drowned.
    """

    count: float
    weights: Tensor
    directions: Tensor
    resultants: Tensor


def planned_embedder(spec: CentroidSpec, weights: Path | None) -> Embedder:
    """Returns the embedder that a plan names, from its weights on this machine.

    Raises:
        OptionError: nothing says where the weights are.
        DigestError: they are others than the plan's.
        DataError: the file is missing, or its embeddings have another length than the plan's.
        StateError: the package that knows the network is not installed.
    """
    if weights is None:
        raise OptionError(
            f"--embedder-weights is missing: the plan's centroids are those of {spec.embedder}",
            hint="give the safetensors file with SHA-256 "
            f"{spec.weights_sha256[:16]}…; docs/routers.md says where weights come from",
        )
    embedder = open_embedder(spec.embedder, weights, spec.weights_sha256)
    if embedder.dimension != spec.dimension:
        raise DataError(
            f"embeddings of {spec.embedder} have {embedder.dimension} numbers, the plan's "
            f"`router.centroids.mean` {spec.dimension}",
            hint="the plan's anchors were made with another network: make them again",
        )
    return embedder


def embed_images(images: ImageSet, embedder: Embedder) -> Tensor:
    """Returns the embedding of every image, `(N, E)`, each computed from its image alone.

    One image at a time: in a batch, the rounding of one row may change when another image joins,
    and the bound on what one image can change would not hold to the bit. An image that is not
    finite counts as the grey one: the bound must hold for any image.
    """
    found = torch.zeros((len(images), embedder.dimension))
    for row in range(len(images)):
        image = images.batch(slice(row, row + 1)).clone()  # in memory of its own, for its alignment
        if not bool(torch.isfinite(image).all()):
            image = torch.zeros_like(image)
        found[row] = embedder.images(image)[0]
    return found


class EmbeddedImages:
    """Images to directions under a plan. An image is embedded once, however often it is asked.

    Tests of a release ask for the same images again, and an embedding takes some hundredths of a
    second. What was found is kept by the digest of the image: so it depends on that image alone.
    """

    def __init__(self, embedder: Embedder, anchors: Anchors) -> None:
        self._embedder, self._anchors = embedder, anchors
        self._known: dict[bytes, Floats] = {}

    def __call__(self, images: ImageSet) -> Floats:
        """Returns the directions of `images`, `(N, D)`."""
        found = np.empty((len(images), self._width))
        for row in range(len(images)):
            one = images.batch(slice(row, row + 1)).contiguous()
            key = _key(one)
            if key not in self._known:
                self._known[key] = self._direction(one)
            found[row] = self._known[key]
        return found

    def keep(self, images: ImageSet, folder: Path, advance: Advance = lambda _: None) -> None:
        """Embeds images into files, or takes up what is there of them, and knows their directions.

        Args:
            images: All of a site.
            folder: Where directions of this site are kept. They are as private as the images.
            advance: Told how many more images are embedded.

        Raises:
            StateError: what is there, or a part of it, is damaged, foreign, or of a machine that
                rounds unlike the others.
            BusyError: another process embeds them.
        """
        rows = self._rows(images, folder)
        rows.compute_all(lambda own: self._embedded(images, own), self._probe(images), advance)
        shape, file = (len(images), self._width), rows.folder / DIRECTIONS_FILE
        found = np.memmap(file, "<f8", "r", shape=shape)
        for row in range(len(images)):
            direction = np.array(found[row])
            if not float(np.linalg.norm(direction)) <= LONGEST:
                raise StateError(
                    f"{file} holds what is no direction, in row {row}",
                    hint=f"delete {rows.folder}, and images are embedded again",
                )
            self._known[_key(images.batch(slice(row, row + 1)).contiguous())] = direction

    def keep_part(
        self, images: ImageSet, folder: Path, part: Part, advance: Advance = lambda _: None
    ) -> int:
        """Embeds one part of the images into files that `keep` takes up; says how many.

        Raises:
            OptionError: there are fewer images than parts.
            StateError, BusyError: as for `keep`.
        """
        return self._rows(images, folder).compute_part(
            part, lambda own: self._embedded(images, own), self._probe(images)(), advance
        )

    @property
    def _width(self) -> int:
        return len(self._anchors.axes)

    def _direction(self, one: Tensor) -> Floats:
        embedding = embed_images(ImageSet(one, None), self._embedder)
        found: Floats = self._anchors.directions(embedding).numpy()[0]
        return found

    def _embedded(self, images: ImageSet, rows: range) -> list[bytes]:
        one = images.batch(slice(rows.start, rows.stop)).contiguous()
        return [self._direction(one).astype("<f8").tobytes()]

    def _probe(self, images: ImageSet) -> Callable[[], bytes]:
        return lambda: self._direction(fixed_images(images.shape, 1)).tobytes()

    def _rows(self, images: ImageSet, folder: Path) -> RowFiles:
        public = hashlib.sha256()
        for values in (self._anchors.mean, self._anchors.axes, self._anchors.points):
            public.update(values.double().numpy().tobytes())
        made_of = {
            "images": images.digest(),
            "embedder": [self._embedder.name, self._embedder.digest],
            "anchors": public.hexdigest(),
        }
        key = sha256_hex(canonical_json(made_of))
        files = (DIRECTIONS_FILE,)
        return RowFiles(folder / key[:16], files, 8 * self._width, len(images), {"key": key})


def _key(one: Tensor) -> bytes:
    return hashlib.sha256(one.numpy().tobytes()).digest()


def planned_directions(plan: Plan, weights: Path | None) -> EmbeddedImages | None:
    """Returns the directions of images under `plan`; None if it releases no centroids.

    Raises:
        OptionError: there are weights and no use for them, or none and they are needed.
        RefusedError: as `planned_embedder`.
    """
    if plan.centroids is None:
        if weights is not None:
            raise OptionError(
                "--embedder-weights: the plan has no `router.centroids`, so nothing is embedded",
                hint="leave it out",
            )
        return None
    return EmbeddedImages(
        planned_embedder(plan.centroids, weights), planned_anchors(plan.centroids)
    )


def centroid_statistic(directions: Floats, anchors: Anchors, weights: Floats | None = None) -> Ints:
    """Returns the integers of the message, without noise.

    Args:
        directions: `(N, D)` of norm 1 or zero; row i depends on image i alone.
        anchors: Public.
        weights: What each image counts for, `(N,)`, as `image_weights` says; None means 1.
    """
    points = anchors.points.double().numpy()
    # one image at a time: in a product of matrices, rounding depends on the other rows
    nearest = np.array([int(np.argmax(points @ row)) for row in directions], dtype=np.int64)

    def contribution(rows: slice) -> dict[str, Floats]:
        member = np.eye(len(points))[nearest[rows]]  # (n, J)
        sums = member[:, :, None] * directions[rows][:, None]
        return {"anchor_count": member, "anchor_sum": sums.reshape(len(member), -1)}

    message = centroid_message(len(points), points.shape[1])
    return integer_sum(message, len(directions), contribution, weights)


def decode_centroids(anchors: Anchors, vector: Ints, noise_multiplier: float) -> Centroids:
    """Returns what the message `vector` of a site says. Post-processing: costs no privacy.

    An anchor whose count is within LEAST_COUNT deviations of the noise is dropped: what it says of
    this site is noise, and the public anchor stands for it. Of a sum, the part along the anchor is
    one number and known well; of the part across it, James and Stein's factor keeps what the noise
    cannot explain. So a direction fades into that of the anchor instead of into the noise's.
    """
    message = centroid_message(*anchors.points.shape)
    parts = {name: torch.from_numpy(part) for name, part in message.decode(vector).items()}
    counts, points = parts["anchor_count"], anchors.points.double()  # (J,), (J, D)
    sums = parts["anchor_sum"].reshape(points.shape)
    known = counts > LEAST_COUNT * message.noise_std("anchor_count", noise_multiplier)
    noise_power = message.noise_std("anchor_sum", noise_multiplier) ** 2  # of one coordinate
    along = (sums * points).sum(1, keepdim=True)  # (J, 1)
    across = sums - along * points
    across_power = across.square().sum(1, keepdim=True).clamp(min=1e-12)
    kept = (1 - (points.shape[1] - 1) * noise_power / across_power).clamp(min=0)
    means = along.clamp(min=1e-9) * points + kept * across
    directions = torch.nn.functional.normalize(torch.where(known[:, None], means, points), dim=1)
    # noise lengthens a sum, on average by its own square
    lengths = ((along**2 - noise_power).clamp(min=0) + kept * across_power)[:, 0].sqrt()
    count = max(1.0, float(counts.sum()))
    left = max(0.0, count - float(counts[known].sum()))
    weights = torch.where(known, counts, left / max(1, int((~known).sum())))
    resultants = torch.where(known, (lengths / counts.clamp(min=1)).clamp(max=1), 0.0)
    return Centroids(count, weights, directions, resultants)
