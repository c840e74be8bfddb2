"""The distribution of privacy losses of one Gaussian mechanism, made by arrays.

dp-accounting asks for the loss at each of up to a million points one by one, in Python, which was
nearly all of the time of a price. Everything else is the library's; tests compare both.
"""

import math

import numpy as np
from dp_accounting.pld.pld_pmf import PLDPmf, create_pmf_pessimistic_connect_dots_fixed_gap
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss
from numpy.typing import NDArray

Values = NDArray[np.float64]


def gaussian_losses(
    noise_multiplier: float, interval: float, sampling_rate: float = 1.0
) -> PrivacyLossDistribution:
    """Returns what `from_gaussian_mechanism` of dp-accounting returns.

    Args:
        noise_multiplier: Standard deviation of the noise in sensitivities.
        interval: Step of the grid of losses.
        sampling_rate: Probability that a unit takes part.
    """

    def pmf(adjacency: AdjacencyType) -> PLDPmf:
        loss = GaussianPrivacyLoss(
            noise_multiplier, sampling_prob=sampling_rate, adjacency_type=adjacency
        )
        bounds = loss.connect_dots_bounds()
        low = math.floor(bounds.epsilon_lower / interval)
        high = math.ceil(bounds.epsilon_upper / interval)
        deltas = _deltas(loss, noise_multiplier, np.arange(low, high + 1) * interval)
        return create_pmf_pessimistic_connect_dots_fixed_gap(interval, low, high, deltas)

    removed = pmf(AdjacencyType.REMOVE)
    return PrivacyLossDistribution(removed, None if sampling_rate == 1 else pmf(AdjacencyType.ADD))


def _deltas(loss: GaussianPrivacyLoss, noise_multiplier: float, epsilons: Values) -> Values:
    """Returns `loss.get_delta_for_epsilon(epsilons)`: the mass that lies above each of them.

    Above `epsilons` is what lies below x, at which the loss is that large.
    """
    removed = loss.adjacency_type == AdjacencyType.REMOVE
    # of a unit that is removed, the loss never falls below log(1 - q); of one that is added, its
    # negative never does
    values = epsilons if removed else -epsilons
    least = math.log1p(-loss.sampling_prob) if loss.sampling_prob < 1 else -math.inf
    found = -np.expm1(epsilons) if removed else np.zeros_like(epsilons)
    above = values > least
    x = -0.5 - _without_sampling(values[above], loss.sampling_prob) * noise_multiplier**2
    x = x if removed else -x
    rest = np.exp(epsilons[above] + loss.mu_lower_log_cdf(x))
    found[above] = loss.mu_upper_cdf(x) - rest
    return np.clip(found, 0, 1)


def _without_sampling(losses: Values, rate: float) -> Values:
    """Returns the losses of a unit that always takes part: log(1 + (exp(loss) - 1) / rate)."""
    if rate == 1:
        return losses
    whole = losses - math.log(rate)
    with np.errstate(divide="ignore"):  # next to the least loss, which nothing without it has
        return whole + np.log1p(-np.exp(np.minimum(0.0, math.log(1 / rate - 1) - whole)))
