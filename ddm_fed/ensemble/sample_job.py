"""A set of samples, as arrays of any of its chunks: what `sample` writes, and what Python is given.

Nothing is written here. The same options give the same arrays, whoever asks for them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.autoencoders import Autoencoder
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.load import asks_centroids, load_ensemble
from ddm_fed.ensemble.pool import Elsewhere
from ddm_fed.ensemble.prompts import encode_prompts
from ddm_fed.ensemble.sample_options import Content, SampleOptions
from ddm_fed.ensemble.sampling import apportioned, sample_chunk
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.errors import OptionError
from ddm_fed.flows import ClassCondition, Condition
from ddm_fed.mixture import planned_embedder
from ddm_fed.progress import Advance
from ddm_fed.router import centroids_spec, compares_captions

SHARES_OF_PROMPTS = "intended_shares_of_prompts"


def load_for_sampling(
    verified: VerifiedEnsemble,
    options: SampleOptions,
    elsewhere: Elsewhere | None = None,
) -> Ensemble:
    """Returns a verified ensemble in memory, as `options` say: devices, router, precision.

    Args:
        verified: The ensemble.
        options: What `with_embedder` returned.
        elsewhere: What answers for experts that stay at their sites, by site.

    Raises:
        RefusedError: a file of the ensemble is no longer what was verified.
        OptionError: it cannot have that router, or its sites do not answer about so many at once.
        DigestError: another embedder is given than the plan's.
        StateError: an expert stays at its site, and nothing answers for it.
    """
    remote, at_once = verified.trust.plan.expert.remote, options.sampling.batch_size
    if elsewhere and remote is not None and at_once > remote.batch_size:
        # cut in two, a batch may come out in other bits than the expert's own machine makes of it
        raise OptionError(
            f"--batch-size {at_once}: by the plan, sites answer about at most {remote.batch_size} "
            "images at once",
            hint=f"give --batch-size {remote.batch_size}",
        )
    embedder = None
    if options.embedder_weights is not None:
        spec = centroids_spec(verified.trust.plan)
        embedder = planned_embedder(spec, options.embedder_weights)
    return load_ensemble(
        verified,
        router=options.router,
        resident=options.resident,
        devices=options.devices,
        offload=options.offload,
        precision=options.precision,
        embedder=embedder,
        elsewhere=elsewhere,
    )


def with_embedder(verified: VerifiedEnsemble, options: SampleOptions) -> SampleOptions:
    """Returns options whose text encoder is also the embedder, where captions decide about sites.

    It is the same file then, so that nobody has to name it twice, and no prompt goes unheard.
    """
    if options.embedder_weights is not None or options.text_encoder is None:
        return options
    asked = asks_centroids(verified, options.router)
    if not (asked and compares_captions(verified.trust.plan)):
        return options
    return replace(options, embedder_weights=options.text_encoder)


class SampleJob:
    """One set of samples.

    Args:
        ensemble: What is sampled.
        content: What its images are.
        options: How.
        sites: What the experts are called, in their order.
        decoder: What makes pictures of samples that are latents. Without it, none are made.

    Attributes:
        chunks: The samples of every chunk.
        chosen: Those of the part that `options` ask for.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        content: Content,
        options: SampleOptions,
        sites: Sequence[str],
        decoder: Autoencoder | None,
    ) -> None:
        self.content, self.options, self.sites = content, options, sites
        self._ensemble, self._data, self._decoder = ensemble, content.data, decoder
        self._has_sites = not content.one_network
        weights = content.weights(options.label)
        self._labels = None if weights is None else apportioned(weights, options.count)
        self._encoded = encode_prompts(content.data, options.prompts, options.text_encoder)
        self.chunks = options.sampling.chunks(options.count)
        self.chosen = self.chunks
        if options.part is not None:
            first, every = options.part
            self.chosen = self.chunks[first - 1 :: every]

    def arrays(self, indices: range, advance: Advance) -> dict[str, Any]:
        """Returns all that there is of some samples, by name, rows in their order.

        `images (N, C, H, W)` uint8 and `latents (N, C, H, W)` float32, or one of them; `sites`,
        `labels` and `prompts (N,)` int64 and `attribution (N, K)` float32, where there are any; and
        `calls (K,)`, how many images each expert was asked about.

        Args:
            indices: Which samples.
            advance: Told how many more samples' worth of work is done.
        """
        steps_done, calls = 0, list(self._ensemble.experts.calls)

        def one_step_of(count: int) -> None:
            nonlocal steps_done
            before, steps_done = steps_done, steps_done + count
            steps = self.options.sampling.steps
            advance(steps_done // steps - before // steps)

        drawn = sample_chunk(
            self._ensemble,
            self._data.shape,
            indices,
            self.options.sampling,
            condition=self._condition(indices),
            bound=float(self._data.bound),
            advance=one_step_of,
        )
        arrays = self._pictures(drawn.images)
        if drawn.sites is not None and self._has_sites:
            arrays["sites"] = drawn.sites.numpy()
        if drawn.attribution is not None:
            arrays["attribution"] = drawn.attribution.numpy()
        arrays |= self.asked(indices)
        after = self._ensemble.experts.calls
        arrays["calls"] = np.array([a - b for a, b in zip(after, calls, strict=True)])
        return arrays

    def asked(self, indices: range) -> dict[str, NDArray[Any]]:
        """Returns what samples are asked to be: `labels`, or which of the prompts each has."""
        asked = dict[str, NDArray[Any]]()
        if self._labels is not None:
            asked["labels"] = self._labels[indices.start : indices.stop].numpy()
        if self._encoded is not None:
            asked["prompts"] = self._prompts_of(indices)
        return asked

    def expected(self, indices: range) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Returns kind and shape of every array that a chunk of these samples has."""
        rows, sites = len(indices), len(self.sites)
        expected: dict[str, tuple[str, tuple[int, ...]]] = {"calls": ("i", (sites,))}
        latent, options = self._data.latent is not None, self.options
        if not latent or self._decoder is not None:
            expected["images"] = ("u", (rows, *self._data.pixel_shape))
        if latent and options.latents:
            expected["latents"] = ("f", (rows, *self._data.shape))
        if options.sampling.strategy.draws_sites and self._has_sites:
            expected["sites"] = ("i", (rows,))
        if options.sampling.attribution:
            expected["attribution"] = ("f", (rows, sites))
        if self._labels is not None:
            expected["labels"] = ("i", (rows,))
        if self._encoded is not None:
            expected["prompts"] = ("i", (rows,))
        return expected

    def shares_of_prompts(self) -> dict[str, dict[str, float]]:
        """Returns which part of the samples every site was due, judging by the prompts they had."""
        if self._encoded is None:
            return {}
        asked = self._encoded.condition(self.options.prompts)
        given = np.bincount(self._prompts_of(range(self.options.count)), minlength=len(asked))
        log_prior = self._ensemble.log_prior(len(asked), asked)  # (P, K)
        shares = log_prior.exp().numpy().T @ (given / given.sum())
        return {SHARES_OF_PROMPTS: dict(zip(self.sites, shares.tolist(), strict=True))}

    def _condition(self, indices: range) -> Condition | None:
        """Returns what these samples are asked to be."""
        if self._encoded is not None:
            prompts = self.options.prompts
            return self._encoded.condition([prompts[at] for at in self._prompts_of(indices)])
        if self._labels is not None:
            return ClassCondition(self._labels[indices.start : indices.stop])
        return None

    def _prompts_of(self, indices: range) -> NDArray[np.int64]:
        """Returns which prompt each of these samples has: they take turns."""
        return np.arange(indices.start, indices.stop) % len(self.options.prompts)

    def _pictures(self, drawn: Tensor) -> dict[str, Any]:
        """Returns what is kept of samples: pictures, latents, or both."""
        arrays, images = dict[str, Any](), drawn
        if self._data.latent is not None:
            if self.options.latents:
                arrays["latents"] = drawn.numpy()
            if self._decoder is None:
                return arrays
            images = self._decoder.decode(drawn)
        return {"images": ((images + 1) * 127.5).round().byte().numpy()} | arrays
