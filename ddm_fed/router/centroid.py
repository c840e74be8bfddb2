"""The router that compares embeddings: for clean things, which is what an embedding can describe.

Each site is a mixture of von Mises-Fisher distributions about its released centroids, and a small
part of it is uniform on the sphere, because no list of centroids is complete. An embedding of a
noised image means nothing. So there are three uses:

* images: which site a clean image is of, `log_posterior_of_images`;
* prompts: which sites have what a text describes, `log_prior_of_texts`; where images are sampled by
  captions, `PromptedRouter` asks it;
* late in sampling, from the time `until` down, the image estimate x̂_0 of the step before stands
  for the image. It is at hand, so a step costs one embedding and no call of an expert. Above that
  time, and without an estimate, another router answers, or the shares do.

Shapes: B batch, K sites, J centroids per site, D of a direction.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddm_fed.flows import Condition, rows_of
from ddm_fed.mixture import Centroids
from ddm_fed.router.base import Router, log_posterior_of, sees_until
from ddm_fed.router.sphere import concentration_of, log_normaliser

UNTIL = 0.4
UNIFORM_PART = 0.01  # of every site, so that none is impossible anywhere

ImageDirections = Callable[[Tensor], Tensor]
"""`images (B, C, H, W) in [-1, 1] -> directions (B, D)`, of norm 1; zero where there is none."""

TextDirections = Callable[[Tensor], Tensor]
"""`embeddings of texts (B, E) -> directions (B, D)`, among those of images."""


class CentroidRouter:
    """p(k | u) of a direction u by Bayes' rule on the sites' mixtures on the sphere.

    Args:
        centroids: Unit vectors, `(K, J, D)`; anything where the weight is zero.
        weights: Mass of each centroid, `(K, J)`; not normalised, zero drops it.
        concentration: kappa of every centroid, a number or `(K, J)`.
        embed: Images to directions.
        rest: Mass of each site that no centroid describes, `(K,)`, or None for none.
        text_directions: Of texts that were embedded, or None where the embedder knows no text.
        prompt_concentration: kappa of texts about the same centroids; None takes that of images.
        above: Answers at times above `until` and without an estimate, and gives the shares. None:
            the shares are those of the masses, whatever the class, and they answer there.
        until: The time from which down estimates are looked at.

    Raises:
        ValueError: a site has no mass, or shapes or times are impossible.
    """

    def __init__(
        self,
        centroids: Tensor,
        weights: Tensor,
        concentration: float | Tensor,
        embed: ImageDirections,
        *,
        rest: Tensor | None = None,
        text_directions: TextDirections | None = None,
        prompt_concentration: float | None = None,
        above: Router | None = None,
        until: float = UNTIL,
    ) -> None:
        sites, count, dimensions = centroids.shape
        if weights.shape != (sites, count) or not 0 < until < 1:
            raise ValueError("centroids (K, J, D) take weights (K, J), and a time between 0 and 1")
        uniform = torch.zeros(sites, dtype=torch.float64) if rest is None else rest.double()
        masses = torch.cat([weights.double(), uniform[:, None]], dim=1)  # (K, J + 1)
        if bool((masses < 0).any()) or not bool((masses.sum(1) > 0).all()):
            raise ValueError("every site needs a mass, and none is negative")
        # the rest is a component like any other: at kappa = 0 its direction does not matter
        nowhere = torch.zeros((sites, 1, dimensions), dtype=torch.float64)
        self._centroids = torch.cat([centroids.double(), nowhere], dim=1)  # (K, J + 1, D)
        self._log_weights = torch.log(masses / masses.sum(1, keepdim=True))
        self._log_shares = torch.log(masses.sum(1) / masses.sum())  # (K,)
        spread = torch.as_tensor(concentration, dtype=torch.float64).expand(sites, count)
        self._kappa = _with_uniform(spread)
        self._log_c = _log_normalisers(self._kappa, dimensions)
        asked = (
            spread if prompt_concentration is None else spread.new_full((), prompt_concentration)
        )
        self._text_kappa = _with_uniform(asked.expand(sites, count))
        self._text_log_c = _log_normalisers(self._text_kappa, dimensions)
        self._embed, self._text_directions = embed, text_directions
        self._above, self._until = above, until

    @property
    def reads_state(self) -> bool:
        """That of the router above: without an estimate this one sees nothing; see `Router`."""
        return self._above is not None and self._above.reads_state

    @property
    def reads_estimate(self) -> bool:
        """True; see `EstimateRouter`."""
        return True

    @property
    def sees_until(self) -> float:
        """`until`, or more where the router above goes on seeing; see `EstimateRouter`."""
        return self._until if self._above is None else max(self._until, sees_until(self._above))

    def log_prior(self, condition: Condition | None) -> Tensor:
        """Returns log pi_k(c), `(K,)` or `(B, K)`; see `Router`."""
        if self._above is not None:
            return self._above.log_prior(condition)
        return (
            self._log_shares if condition is None else self._log_shares.expand(len(condition), -1)
        )

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`, of the router above; see `Router`."""
        return self._from_above(x_t, t, condition, None)

    def log_posterior_given(
        self, x_t: Tensor, t: Tensor, condition: Condition | None, estimate: Tensor
    ) -> Tensor:
        """Returns log p(k | x_t, t, c), `(B, K)`; see `EstimateRouter`."""
        low = t <= self._until
        if bool(low.all()):
            return self.log_posterior_of_images(estimate, condition)
        out = self._from_above(x_t, t, condition, estimate)
        if bool(low.any()):
            rows = low.nonzero()[:, 0]
            out = out.clone()  # a prior is one row, seen many times
            out[rows] = self.log_posterior_of_images(estimate[rows], rows_of(condition, rows))
        return out

    def log_posterior_of_images(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        """Returns log p(k | x_0, c) of clean images, `(B, K)`.

        A class speaks through the shares alone: centroids are not told apart by class, so images
        of a class are taken to be spread among a site's centroids as all its images are.
        """
        scores = self._log_density(self._embed(images), self._kappa, self._log_c)
        return (self.log_prior(condition) + scores).log_softmax(1)

    @property
    def knows_texts(self) -> bool:
        """Whether texts can be compared with images."""
        return self._text_directions is not None

    def log_likelihood_of_texts(self, embeddings: Tensor) -> Tensor:
        """Returns the log density of texts among the images of every site, `(B, K)`.

        Args:
            embeddings: Of the texts, by the embedder, `(B, E)`. One without a direction says
                nothing: it is as likely at every site.

        Raises:
            ValueError: the router was made without an embedder of text.
        """
        if self._text_directions is None:
            raise ValueError("this router has no embedder of text, which a prompt needs")
        directions = self._text_directions(embeddings)
        return self._log_density(directions, self._text_kappa, self._text_log_c)

    def log_prior_of_texts(self, embeddings: Tensor) -> Tensor:
        """Returns log pi_k(c) of texts, `(B, K)`: how likely each site has what they describe.

        It is the sites' shares times `log_likelihood_of_texts`, whose arguments and errors it has.
        """
        return (self.log_prior(None) + self.log_likelihood_of_texts(embeddings)).log_softmax(1)

    def _from_above(
        self, x_t: Tensor, t: Tensor, condition: Condition | None, estimate: Tensor | None
    ) -> Tensor:
        if self._above is None:
            return self.log_prior(condition).expand(len(x_t), -1)
        return log_posterior_of(self._above, x_t, t, condition, estimate)

    def _log_density(self, directions: Tensor, kappa: Tensor, log_c: Tensor) -> Tensor:
        """Returns log p(u | k), `(B, K)`; a direction of zero, which says nothing, is like any."""
        u = directions.double()
        cosines = torch.einsum("bd,kjd->bkj", u, self._centroids)
        scores = (self._log_weights + log_c + kappa * cosines).logsumexp(2)
        return torch.where((u == 0).all(1, keepdim=True), 0.0, scores)


def centroid_router(
    sites: Sequence[Centroids],
    embed: ImageDirections,
    *,
    concentration: float | None = None,
    text_directions: TextDirections | None = None,
    prompt_concentration: float | None = None,
    above: Router | None = None,
    until: float = UNTIL,
) -> CentroidRouter:
    """Returns the router over the sites whose decoded releases are `sites`, in their order.

    Without a `concentration` there is one kappa for all, from the mean length of the centroids that
    are known. One of its own would let a noisier site win or lose by its kappa alone.

    Args:
        sites: What every site released.
        embed: As for `CentroidRouter`, and so are the others.
        concentration: kappa of every centroid.
        text_directions: As for `CentroidRouter`.
        prompt_concentration: kappa of texts.
        above: Answers where this one cannot.
        until: The time from which down estimates are looked at.
    """
    weights = torch.stack([site.weights for site in sites])
    directions = torch.stack([site.directions for site in sites])
    if concentration is None:
        resultants = torch.stack([site.resultants for site in sites])
        images = torch.where(resultants > 0, weights, 0.0)
        mean = (images * resultants).sum() / images.sum().clamp(min=1.0)
        concentration = float(concentration_of(mean.numpy(), directions.shape[2]))
    counts = torch.tensor([site.count for site in sites], dtype=torch.float64)
    rest = UNIFORM_PART * counts
    return CentroidRouter(
        directions,
        weights,
        concentration,
        embed,
        rest=rest,
        text_directions=text_directions,
        prompt_concentration=prompt_concentration,
        above=above,
        until=until,
    )


def _with_uniform(kappa: Tensor) -> Tensor:
    """Returns `kappa (K, J)` with a column of zeros, that of the rest, `(K, J + 1)`."""
    return torch.cat([kappa, kappa.new_zeros((len(kappa), 1))], dim=1)


def _log_normalisers(kappa: Tensor, dimensions: int) -> Tensor:
    return torch.from_numpy(log_normaliser(dimensions, kappa.numpy()))
