"""The proof of steps where a training is long: no false alarm, and still no wrong average."""

import pytest
import torch

from ddm_fed.privacy.proof import _State

HALF_LIFE, WIDTH = 50, 60_000


def states(step_length, *, taken, of="new", seed=0):
    """Weights before and after a step, and an average that took the weights `of` in float32."""
    draws = torch.Generator().manual_seed(seed)
    old = 0.3 * torch.randn(WIDTH, generator=draws)
    new = old + step_length * torch.randn(WIDTH, generator=draws)
    average = old + 0.01 * torch.randn(WIDTH, generator=draws)
    later = average.lerp({"new": new, "old": old}[of], taken)

    def state(weights, kept):
        found = {"weight": weights.double()}
        return _State(found, {}, {}, {}, {HALF_LIFE: {"weight": kept.double()}})

    return state(old, average), state(new, later)


def off(before, after, taken):
    return before._averaged(after, HALF_LIFE, taken)


@pytest.mark.parametrize("step_length", [1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("half_life", [2, 50, 2000])
def test_honest_average_is_never_accused_however_short_the_step(step_length, half_life):
    # the learning rate falls to zero: the last of 600 steps moves weights by less than they round
    taken = 1 - 0.5 ** (1 / half_life)
    for seed in range(5):
        assert off(*states(step_length, taken=taken, seed=seed), taken) < 1


@pytest.mark.parametrize("step_length", [1e-2, 1e-4, 1e-6])
def test_average_of_the_weights_before_the_step_is_accused_where_it_is_another(step_length):
    taken = 1 - 0.5 ** (1 / HALF_LIFE)
    assert off(*states(step_length, taken=taken, of="old"), taken) > 1
