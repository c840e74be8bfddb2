"""Sites whose images are known exactly: mixtures of round Gaussians, with their velocity."""

import math

import torch
from torch import Tensor

from ddm_fed.flows import ClassCondition


class RoundMixture:
    """Images of components j: weight w_j, mean m_j, variance s_j of every pixel.

    Given the component, (x_t, eps - x_0) is jointly normal, so E[eps - x_0 | x_t] is
    -m + (t - (1 - t) s) / ((1 - t)^2 s + t^2) (x_t - (1 - t) m), and the mixture averages it.
    """

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor) -> None:
        self.weights, self.means, self.variances = weights.double(), means, variances

    def log_joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log w_j N(x_t; (1 - t) m_j, (1 - t)^2 s_j + t^2), `(B, J)`."""
        flat, time = x_t.double().flatten(1), t.double()[:, None]
        variance = (1 - time) ** 2 * self.variances + time**2  # (B, J)
        away = flat[:, None] - (1 - time)[:, :, None] * self.means  # (B, J, N)
        log_density = -0.5 * away.square().sum(2) / variance
        log_density -= 0.5 * flat.shape[1] * torch.log(2 * math.pi * variance)
        return self.weights.log() + log_density

    def __call__(self, x_t: Tensor, t: Tensor, condition: object = None) -> Tensor:
        """Returns E[eps - x_0 | x_t], in the shape of `x_t`."""
        posterior = self.log_joint(x_t, t).softmax(1)
        flat, time = x_t.double().flatten(1), t.double()[:, None]
        variance = (1 - time) ** 2 * self.variances + time**2
        cross = (time - (1 - time) * self.variances) / variance
        away = flat[:, None] - (1 - time)[:, :, None] * self.means
        each = -self.means + cross[:, :, None] * away
        return (posterior[:, :, None] * each).sum(1).reshape(x_t.shape).to(x_t.dtype)

    def draw(self, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        """Returns `count` images."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn((count, math.prod(shape)), generator=generator, dtype=torch.float64)
        flat = self.means[chosen] + self.variances[chosen].sqrt()[:, None] * noise
        return flat.reshape(count, *shape).float()


class BayesRouter:
    """Bayes' rule on the sites' own densities."""

    reads_state = True

    def __init__(self, prior: Tensor, sites: list[RoundMixture]) -> None:
        self.prior, self.sites = prior.double(), sites

    def log_prior(self, condition: ClassCondition | None) -> Tensor:
        """log pi_k, of any class."""
        found = self.prior.log()
        return found if condition is None else found.expand(len(condition), -1)

    def log_posterior(self, x_t: Tensor, t: Tensor, condition: ClassCondition | None) -> Tensor:
        """log p(k | x_t, t)."""
        scores = [site.log_joint(x_t, t).logsumexp(1) for site in self.sites]
        return (self.prior.log() + torch.stack(scores, 1)).log_softmax(1)


def overlapping(pixels: int) -> tuple[Tensor, list[RoundMixture], RoundMixture]:
    """Returns shares, three sites that hold the same components in other parts, and the pool."""
    generator = torch.Generator().manual_seed(3)
    means = 0.7 * torch.randn((5, pixels), generator=generator, dtype=torch.float64)
    variances = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.05], dtype=torch.float64)
    inside = torch.rand((3, 5), generator=generator, dtype=torch.float64) ** 9
    inside /= inside.sum(1, keepdim=True)
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    sites = [RoundMixture(row, means, variances) for row in inside]
    return prior, sites, RoundMixture(prior @ inside, means, variances)


def apart(pixels: int) -> tuple[Tensor, list[RoundMixture], RoundMixture]:
    """Returns shares, two sites of dark and of bright images, and the pool."""
    levels = torch.tensor([[-0.6], [-0.3], [0.3], [0.6]], dtype=torch.float64)
    means, variances = levels.expand(4, pixels), torch.full((4,), 0.02, dtype=torch.float64)
    inside = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], dtype=torch.float64)
    prior = torch.tensor([0.6, 0.4], dtype=torch.float64)
    sites = [RoundMixture(row, means, variances) for row in inside]
    return prior, sites, RoundMixture(prior @ inside, means, variances)
