"""Prices of ledgers, against the closed form of the Gaussian mechanism; and the ledger's chain."""

import math
import time
from decimal import Decimal
from functools import cache

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as plds
from scipy import optimize, stats

from ddm_fed.errors import BudgetError, PolicyError
from ddm_fed.privacy import (
    accountant_name,
    check_chain,
    deltas,
    epsilon,
    epsilon_text,
    gaussian_events,
    private_events,
    sampled_event,
)
from ddm_fed.privacy.losses import gaussian_losses
from ddm_fed.records import (
    GaussianEvent,
    LedgerEntry,
    NonPrivateEvent,
    SampledGaussianEvent,
    sha256_hex,
    today,
)

MULTIPLIERS = ["0.5", "0.8", "1", "2", "3.7307", "10", "50"]


def gaussian(multiplier):
    return GaussianEvent(noise_multiplier=Decimal(str(multiplier)))


def delta_of(eps, mu):
    """Balle and Wang 2018, theorem 8: the delta of a Gaussian of sensitivity-to-noise mu."""
    return stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps + stats.norm.logcdf(-mu / 2 - eps / mu))


def closed_form_epsilon(mu, delta):
    return optimize.brentq(lambda eps: delta_of(eps, mu) - delta, 0, 100 + mu**2, xtol=1e-12)


# --- epsilon ---


@pytest.mark.parametrize("delta", [1e-5, 1e-7])
@pytest.mark.parametrize("multiplier", MULTIPLIERS)
def test_epsilon_of_one_gaussian_is_close_to_the_closed_form(multiplier, delta):
    exact = closed_form_epsilon(1 / float(multiplier), delta)
    assert epsilon([gaussian(multiplier)], delta) == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("delta", [1e-5, 1e-7])
@pytest.mark.parametrize("multiplier", MULTIPLIERS)
def test_epsilon_of_one_gaussian_is_never_below_the_closed_form(multiplier, delta):
    exact = closed_form_epsilon(1 / float(multiplier), delta)
    assert epsilon([gaussian(multiplier)], delta) >= exact * (1 - 1e-4)


@pytest.mark.parametrize(
    "multipliers", [(3, 4), (2, 2, 2, 2), (5,) * 10, (1, 20), (6.8112, 4.459)], ids=str
)
def test_epsilon_of_several_gaussians_is_that_of_one_of_their_combined_mu(multipliers):
    mu = math.sqrt(sum(1 / z**2 for z in multipliers))
    found = epsilon([gaussian(z) for z in multipliers], 1e-5)
    assert found == pytest.approx(closed_form_epsilon(mu, 1e-5), rel=1e-3)


@pytest.mark.parametrize("multipliers", [(3, 4), (5,) * 10, (1, 20)], ids=str)
def test_epsilon_of_several_gaussians_is_never_below_the_closed_form(multipliers):
    mu = math.sqrt(sum(1 / z**2 for z in multipliers))
    found = epsilon([gaussian(z) for z in multipliers], 1e-5)
    assert found >= closed_form_epsilon(mu, 1e-5) * (1 - 1e-4)


def test_epsilon_does_not_depend_on_the_order_of_events():
    events = [gaussian(3), gaussian(7), gaussian("1.5")]
    assert epsilon(events, 1e-5) == pytest.approx(epsilon(events[::-1], 1e-5), rel=1e-9)


def test_epsilon_of_nothing_is_zero():
    assert epsilon([], 1e-5) == 0


@pytest.mark.parametrize("position", [0, 1, 2])
def test_epsilon_with_a_non_private_event_is_infinite(position):
    events = [gaussian(5), gaussian(6)]
    events.insert(position, NonPrivateEvent())
    assert epsilon(events, 1e-5) == math.inf


@pytest.mark.parametrize("multipliers", [(1,), (2.3,), (3, 4), (11.7, 5.9, 8.1)], ids=str)
def test_epsilon_text_is_epsilon_rounded_up_to_four_places(multipliers):
    events = [gaussian(z) for z in multipliers]
    exact = Decimal(epsilon(events, 1e-5))
    text = Decimal(epsilon_text(events, 1e-5))
    assert text.as_tuple().exponent == -4
    assert exact <= text < exact + Decimal("0.0001")


def test_epsilon_text_of_nothing_is_zero_to_four_places():
    assert epsilon_text([], 1e-5) == "0.0000"


def test_accountant_name_states_the_adjacency_and_a_version():
    name, _, version = accountant_name().rpartition(" ")
    assert "add_or_remove_one" in name
    assert version[0].isdigit()


# --- gaussian_events ---

TARGETS = [0.01, 0.1, 0.5, 1.0, 2.0, 3.0, 8.0]
SHARES = [(1.0,), (0.3, 0.7), (0.05, 0.05, 0.2)]


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_gaussian_events_cost_at_most_their_target_by_the_closed_form(target, shares):
    events = gaussian_events(target, 1e-5, shares)
    mu = math.sqrt(sum(1 / float(event.noise_multiplier) ** 2 for event in events))
    assert delta_of(target, mu) <= 1e-5


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_gaussian_events_cost_between_99_percent_and_all_of_their_target(target, shares):
    cost = epsilon(gaussian_events(target, 1e-5, shares), 1e-5)
    assert 0.99 * target <= cost <= target


def test_gaussian_events_divide_the_square_of_mu_as_the_shares_say():
    events = gaussian_events(1.0, 1e-5, (1, 3, 16))
    squares = [1 / float(event.noise_multiplier) ** 2 for event in events]
    assert [s / sum(squares) for s in squares] == pytest.approx([0.05, 0.15, 0.8], rel=1e-3)


def test_gaussian_events_of_scaled_shares_are_the_same():
    assert gaussian_events(1.0, 1e-5, (0.1, 0.3)) == gaussian_events(1.0, 1e-5, (1, 3))


def test_private_events_leave_out_what_was_released_without_noise():
    entries = chain([gaussian(3), NonPrivateEvent(), gaussian(4)])
    assert private_events(entries) == [gaussian(3), gaussian(4)]


# --- chain ---


MECHANISMS = {
    "gaussian": "discrete-gaussian",
    "poisson_gaussian": "dp-sgd",
    "non_private": "no-noise",
}


def chain(events):
    entries = []
    for index, event in enumerate(events):
        previous = sha256_hex(entries[-1].to_json()) if entries else None
        entries.append(
            LedgerEntry(
                index=index,
                previous_sha256=previous,
                recorded_at=today(),
                plan_sha256="ab" * 32,
                purpose="router-location",
                mechanism=MECHANISMS[event.kind],
                event=event,
            )
        )
    return entries


def four():
    return chain([gaussian(3), gaussian(4), gaussian(5), gaussian(6)])


@pytest.mark.parametrize("length", [0, 1, 2, 4])
def test_chain_that_is_whole_is_accepted(length):
    check_chain(four()[:length])


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_chain_with_a_missing_entry_is_refused_there(missing):
    entries = four()
    del entries[missing]
    with pytest.raises(PolicyError, match=f"ledger entry {missing} does not follow"):
        check_chain(entries)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_chain_with_a_missing_entry_and_closed_numbering_is_refused(missing):
    entries = four()
    del entries[missing]
    renumbered = [e.model_copy(update={"index": i}) for i, e in enumerate(entries)]
    with pytest.raises(PolicyError, match=f"ledger entry {missing} does not follow"):
        check_chain(renumbered)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_chain_with_swapped_entries_is_refused(first):
    entries = four()
    entries[first], entries[first + 1] = entries[first + 1], entries[first]
    with pytest.raises(PolicyError, match=f"ledger entry {first} does not follow"):
        check_chain(entries)


@pytest.mark.parametrize(
    "change",
    [
        {"event": gaussian(400)},
        {"event": NonPrivateEvent()},
        {"purpose": "router-shape"},
        {"mechanism": "no-noise"},
        {"plan_sha256": "cd" * 32},
    ],
    ids=["noise", "kind", "purpose", "mechanism", "plan"],
)
def test_chain_with_an_altered_entry_is_refused_at_the_next(change):
    entries = four()
    entries[1] = entries[1].model_copy(update=change)
    with pytest.raises(PolicyError, match="ledger entry 2 does not follow"):
        check_chain(entries)


def test_chain_with_a_repeated_entry_is_refused():
    entries = four()
    entries.insert(2, entries[1])
    with pytest.raises(PolicyError, match="ledger entry 2 does not follow"):
        check_chain(entries)


def test_chain_with_a_forged_first_predecessor_is_refused():
    entries = four()
    entries[0] = entries[0].model_copy(update={"previous_sha256": "ef" * 32})
    with pytest.raises(PolicyError, match="ledger entry 0 does not follow"):
        check_chain(entries)


# --- Poisson-sampled events ---

# sigma, q, T, epsilon by PLD and by Opacus' PRV accountant at delta 1e-5
PUBLISHED = [
    (1.1, 0.0512, 2000, 14.166, 14.177),
    (0.6, 0.01, 5000, 15.625, 15.636),
    (2.0, 0.2, 300, 9.311, 9.321),
    (19.3, 0.0683, 4395, 0.865, 0.875),
]


def sampled(sigma, q, steps):
    return SampledGaussianEvent(
        noise_multiplier=Decimal(str(sigma)), sampling_rate=Decimal(str(q)), steps=steps
    )


@pytest.mark.parametrize(("sigma", "q", "steps", "pld", "_prv"), PUBLISHED)
def test_epsilon_of_dpsgd_is_the_one_in_the_table(sigma, q, steps, pld, _prv):
    assert epsilon([sampled(sigma, q, steps)], 1e-5) == pytest.approx(pld, abs=2e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha")
@pytest.mark.parametrize(
    ("sigma", "q", "steps"),
    [row[:3] for row in PUBLISHED]
    + [
        (1.0, 0.01, 1000),
        (0.8, 0.004, 10_000),
        (4.0, 0.5, 200),
        (1.5, 0.1, 500),
        (3.0, 0.25, 1000),
        (0.7, 0.002, 20_000),
    ],
)
def test_epsilon_of_dpsgd_agrees_with_opacus_prv(sigma, q, steps):
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(sigma, q, steps)]
    prv = accountant.get_epsilon(delta=1e-5)
    # Opacus adds its own error bound of 0.01
    assert epsilon([sampled(sigma, q, steps)], 1e-5) == pytest.approx(
        prv - 0.01, rel=3e-3, abs=5e-3
    )


def test_epsilon_of_a_whole_site_is_below_the_sum_of_its_parts():
    events = [sampled(1.1, 0.0512, 2000), gaussian(8), gaussian(20)]
    assert epsilon(events, 1e-5) == pytest.approx(14.188, abs=2e-3)
    assert sum(epsilon([event], 1e-5) for event in events) > 14.7


def test_epsilon_with_every_unit_in_every_step_is_that_of_gaussians():
    found = epsilon([sampled(20, 1, 100)], 1e-5)
    assert found == pytest.approx(closed_form_epsilon(math.sqrt(100) / 20, 1e-5), rel=2e-3)


def test_epsilon_of_equal_events_is_that_of_their_steps_together():
    assert epsilon([sampled(2, 0.1, 100)] * 3, 1e-5) == epsilon([sampled(2, 0.1, 300)], 1e-5)


@pytest.mark.parametrize(
    ("sigma", "q", "interval"),
    [
        (0.3, 0.5, 1e-3),
        (0.8, 1 / 3, 1e-3),
        (1.0, 0.01, 1e-4),
        (5.0, 0.9, 1e-4),
        (0.7, 0.999, 1e-3),
        (0.9, 1e-4, 1e-3),
        (100.0, 0.1, 1e-4),  # so few points that the library keeps them another way
        (0.8, 1.0, 1e-3),
        (4.0, 1.0, 1e-4),
    ],
)
def test_losses_made_by_arrays_are_those_of_the_library(sigma, q, interval):
    theirs = plds.from_gaussian_mechanism(
        sigma, sampling_prob=q, value_discretization_interval=interval
    )
    ours = gaussian_losses(sigma, interval, q)
    for name in ("_pmf_remove", "_pmf_add"):  # the epsilon of both is that of the worse one
        expected, found = (getattr(it, name).to_dense_pmf() for it in (theirs, ours))
        assert found._lower_loss == expected._lower_loss
        # a mass is a difference of deltas, which are rounded at 1e-16, over the step squared
        assert abs(found._infinity_mass - expected._infinity_mass) < 1e-15
        assert abs(found._probs - expected._probs).max() < 1e-16 / interval**1.5
        assert abs((found._probs - expected._probs).cumsum()).max() < 1e-12 / interval
    for delta in (1e-3, 1e-5, 1e-9):
        expected = theirs.get_epsilon_for_delta(delta)
        assert ours.get_epsilon_for_delta(delta) == pytest.approx(expected, rel=1e-9)


@cache
def quadrature():
    return np.polynomial.legendre.leggauss(1500)


def fourier_epsilon(sigma, q, steps, delta):
    """The loss of all steps by its characteristic function, without any rounding of losses.

    One step's comes from a quadrature over its outcomes; the power of it is turned back into a
    density, over which delta is a sum. Neither an upper nor a lower bound.
    """
    node, weight = quadrature()
    x = (12 * sigma + 0.5) * node + 0.5
    without, within = stats.norm.pdf(x, 0, sigma), stats.norm.pdf(x, 1, sigma)
    loss = np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))
    found = 0.0
    for law, of_one in (((1 - q) * without + q * within, loss), (without, -loss)):
        law = weight * law / (weight * law).sum()
        mean = (law * of_one).sum()
        centre, width = steps * mean, math.sqrt(steps * (law * (of_one - mean) ** 2).sum())
        grid = np.linspace(-14 * width, 14 * width, 8001)
        frequency = np.pi / (14 * width) * np.arange(1, 120)
        phi = (np.exp(1j * np.outer(frequency, of_one - mean)) * law).sum(1) ** steps
        assert abs(phi[-1]) < 1e-12
        density = 1 + 2 * (phi[:, None] * np.exp(-1j * np.outer(frequency, grid))).sum(0).real
        mass = density / density.sum()
        total = centre + grid

        def excess(eps, mass=mass, total=total):
            return (mass * -np.expm1(np.minimum(0, eps - total))).sum() - delta

        found = max(found, optimize.brentq(excess, 0, centre + 13 * width))
    return found


# what the accountant said before of the same is beside it
LOOSE = [
    ("1", "0.1", 10_000),  # 180.5
    ("1", "0.3", 1000),  # 153.9
    ("2", "0.01", 10**6),  # 36.33
    ("1.5", "0.01", 10**6),  # 59.10
    ("1", "0.001", 10**6),  # 6.383
    ("4", "0.001", 10**6),  # 0.956
    ("20", "0.1", 10**6),  # 33.29
]


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "q", "steps"), LOOSE)
def test_epsilon_above_100_or_of_a_million_steps_is_tight_and_never_below_the_truth(
    sigma, q, steps
):
    started = time.monotonic()
    found = epsilon([sampled(sigma, q, steps)], 1e-5)
    assert time.monotonic() - started < 20  # some 2 s on one core
    exact = fourier_epsilon(float(sigma), float(q), steps, 1e-5)
    assert exact * (1 - 1e-5) <= found <= exact * 1.002


def test_fourier_epsilon_is_the_closed_form_where_every_unit_is_in_every_step():
    assert fourier_epsilon(20, 1, 100, 1e-5) == pytest.approx(
        closed_form_epsilon(math.sqrt(100) / 20, 1e-5), rel=1e-6
    )


@pytest.mark.parametrize(
    "event", [("0.3", "0.3", 10**6), ("1000", "0.01", 10**6), ("0.3", "0.0001", 10**6)], ids=str
)
def test_ledger_of_extremes_is_priced_within_seconds(event):
    started = time.monotonic()
    assert 0 < epsilon([sampled(*event)], 1e-5) < math.inf
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("multiplier", ["0.3", "0.5", "1"])
def test_hopeless_ledger_is_priced_at_once(multiplier):
    started = time.monotonic()
    assert epsilon([sampled(multiplier, 1, 10**6)], 1e-5) > 100
    assert time.monotonic() - started < 5


def test_ledger_of_many_kinds_of_events_is_refused():
    events = [sampled(1 + index / 100, 0.01, 10) for index in range(51)]
    with pytest.raises(PolicyError, match="51 different kinds"):
        epsilon(events, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.5, 1, 8])
def test_sampled_event_meets_the_target_with_what_is_beside_it(target):
    beside = [gaussian(30)]
    event = sampled_event(target, 1e-5, sampling_rate=Decimal("0.1"), steps=500, beside=beside)
    found = epsilon([*beside, event], 1e-5)
    assert found <= target
    less = event.model_copy(update={"noise_multiplier": event.noise_multiplier * Decimal("0.999")})
    assert epsilon([*beside, less], 1e-5) > target


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "steps"), [("1", 1000), ("0.5", 20_000)])
def test_sampled_event_is_found_where_the_least_noise_has_no_finite_price(rate, steps):
    event = sampled_event(1, 1e-5, sampling_rate=Decimal(rate), steps=steps)
    assert 0.99 < epsilon([event], 1e-5) <= 1


def test_sampled_event_of_an_ample_target_has_the_least_noise_there_is():
    event = sampled_event(100, 1e-5, sampling_rate=Decimal("0.001"), steps=1)
    assert event.noise_multiplier == Decimal("0.3")


@pytest.mark.slow
def test_sampled_event_beside_what_took_all_is_refused():
    with pytest.raises(BudgetError, match="nothing is left"):
        sampled_event(1, 1e-5, sampling_rate=Decimal("0.1"), steps=10, beside=[gaussian("1")])


def test_deltas_are_the_profile_of_the_event():
    events = [sampled(2.0, 0.2, 300)]
    assert deltas(events, [epsilon(events, 1e-5)])[0] == pytest.approx(1e-5, rel=0.02)
    assert deltas(events, [0.0, 1.0, 5.0]) == sorted(deltas(events, [0.0, 1.0, 5.0]), reverse=True)
