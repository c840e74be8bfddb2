"""DP-SGD: clipped sums against a loop over units, and what each planted bug does to the tests."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ddm_fed.errors import MechanismError
from ddm_fed.flows import ClassCondition, denoising_loss
from ddm_fed.models import network_named
from ddm_fed.privacy import (
    FunctionalGradients,
    HookGradients,
    PrivateStep,
    Randomness,
    agreement,
    examine,
    require_passed,
)

SHAPES = {
    "DiT-Nano/2": (1, 8, 8),
    "DiT-Nano/4-single-qknorm-rope": (1, 16, 16),
    "MMDiT-Nano/2": (3, 8, 8),
    "UNet-Nano": (1, 16, 16),
}
HOOKED = [name for name in SHAPES if name.startswith("DiT")]
CLIP_NORM = 0.5


def row_loss(network, x_0, eps, t, labels):
    return denoising_loss(network, x_0, eps, t, ClassCondition(labels))


def a_model(name):
    model = network_named(name, SHAPES[name], 10)
    generator = torch.Generator().manual_seed(0)
    model.reset_parameters(generator)
    with torch.no_grad():  # gates start closed: then most gradients would be zero
        for value in model.parameters():
            value += 0.02 * torch.randn(value.shape, generator=generator)
    return model


def some_units(shape, units=6, draws=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(units, draws, *shape, generator=generator) for _ in range(2)]
    t = torch.rand(units, draws, generator=generator)
    return (*images, t, torch.randint(0, 10, (units, draws), generator=generator))


def loop(model, rows, clip_norm):
    """The oracle: one backward pass per unit, clipped as the definition says."""
    weights = dict(model.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    for unit in range(len(rows[0])):
        loss = row_loss(model, *(value[unit] for value in rows)).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        for name, gradient in zip(weights, gradients, strict=True):
            total[name] += gradient * min(1.0, clip_norm / norm)
    return total


def worst(found, expected):
    largest = max(float(value.abs().max()) for value in expected.values())
    return max(float((found[n] - expected[n]).abs().max()) for n in expected) / largest


def engine(kind, model):
    if kind == "functional":
        return FunctionalGradients(model, row_loss)
    return HookGradients(model, row_loss, dict(model.named_parameters()))


def a_step(gradients=None, *, randomness=None, rate=0.1, noise=1.0, expected=10.0):
    gradients = gradients or FunctionalGradients(torch.nn.Linear(2, 1), linear_loss)
    randomness = randomness or Randomness.for_tests(0)
    return PrivateStep(
        gradients, randomness, sampling_rate=rate, noise_multiplier=noise, expected_units=expected
    )


def linear_loss(network, x, y):
    return (network(x)[:, 0] - y).square()


def linear_problem(units=8, draws=2):
    generator = torch.Generator().manual_seed(5)
    model = torch.nn.Linear(2, 1)
    rows = (
        torch.randn(units, draws, 2, generator=generator),
        3 + torch.randn(units, draws, generator=generator),
    )
    return model, rows


# --- clipped sums ---


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("functional", name) for name in SHAPES] + [("opacus", name) for name in HOOKED],
)
def test_clipped_sum_is_that_of_a_loop_over_units(kind, name, draws):
    model, rows = a_model(name), some_units(SHAPES[name], draws=draws)
    found = engine(kind, model).clipped_sum(dict(model.named_parameters()), rows, CLIP_NORM)
    assert worst(found.total, loop(model, rows, CLIP_NORM)) < 1e-5


@pytest.mark.parametrize("kind", ["functional", "opacus"])
def test_clipped_sum_without_clipping_is_the_gradient_of_the_batch(kind):
    model, rows = a_model("DiT-Nano/2"), some_units((1, 8, 8), draws=2)
    weights = dict(model.named_parameters())
    loss = row_loss(model, *(value.flatten(0, 1) for value in rows)).sum() / 2
    expected = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    found = engine(kind, model).clipped_sum(weights, rows, 1e6)
    assert worst(found.total, expected) < 1e-5
    assert found.clipped == 0
    assert found.loss == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("rows_at_once", [1, 5, 64])
def test_clipped_sum_does_not_depend_on_the_chunks(rows_at_once):
    model, rows = a_model("DiT-Nano/2"), some_units((1, 8, 8), units=7, draws=2)
    weights = dict(model.named_parameters())
    whole = FunctionalGradients(model, row_loss).clipped_sum(weights, rows, CLIP_NORM)
    parts = FunctionalGradients(model, row_loss, rows_at_once=rows_at_once)
    assert worst(parts.clipped_sum(weights, rows, CLIP_NORM).total, whole.total) < 1e-5


@pytest.mark.parametrize("kind", ["functional", "opacus"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unit_that_is_not_finite_adds_nothing(kind, bad):
    model, rows = a_model("DiT-Nano/2"), some_units((1, 8, 8))
    weights = dict(model.named_parameters())
    kept = [value[1:] for value in rows]
    rows[0][0] = bad
    found = engine(kind, model).clipped_sum(weights, rows, CLIP_NORM)
    expected = engine(kind, model).clipped_sum(weights, kept, CLIP_NORM)
    assert worst(found.total, expected.total) < 1e-5
    assert math.isfinite(found.loss)


def test_rows_of_a_unit_are_clipped_as_one():
    model, rows = linear_problem(units=1, draws=8)
    weights = dict(model.named_parameters())
    total = FunctionalGradients(model, linear_loss).clipped_sum(weights, rows, 1.0).total
    norm = math.sqrt(sum(float(value.square().sum()) for value in total.values()))
    assert norm == pytest.approx(1.0, rel=1e-5)


def test_hooks_leave_the_model_as_it_was():
    model, rows = a_model("DiT-Nano/2"), some_units((1, 8, 8))
    names = set(model.state_dict())
    engine("opacus", model).clipped_sum(dict(model.named_parameters()), rows, CLIP_NORM)
    assert set(model.state_dict()) == names
    assert all(value.grad is None for value in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_agreement_is_small_for_an_engine_that_is_right():
    model, rows = a_model("DiT-Nano/2"), some_units((1, 8, 8), units=4)
    weights = dict(model.named_parameters())
    alone = engine("functional", model)
    assert agreement(engine("opacus", model), weights, rows, alone) < 1e-5


def test_agreement_shows_a_weight_that_hooks_do_not_see():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x):  # the second use goes past the layer's forward, and its hook
            return torch.nn.functional.linear(self.layer(x), self.layer.weight)

    model, (x, y) = Tied(), linear_problem()[1]
    weights = dict(model.named_parameters())
    hooked = HookGradients(model, linear_loss, weights)
    assert agreement(hooked, weights, (x, y), FunctionalGradients(model, linear_loss)) > 0.01


# --- randomness ---


def test_stream_of_a_step_is_always_the_same_and_no_other_is():
    randomness = Randomness.for_tests(0)
    first = randomness.stream("noise", 3).normal(100)
    assert np.array_equal(first, randomness.stream("noise", 3).normal(100))
    for other in (
        randomness.stream("noise", 4),
        randomness.stream("inclusion", 3),
        Randomness.for_tests(1).stream("noise", 3),
    ):
        assert not np.array_equal(first, other.normal(100))


def test_stream_goes_on_where_it_stopped():
    whole = Randomness.for_tests(0).stream("noise", 0).uniform(10)
    stream = Randomness.for_tests(0).stream("noise", 0)
    assert np.array_equal(whole, np.concatenate([stream.uniform(4), stream.uniform(6)]))


def test_normal_numbers_are_normal():
    values = Randomness.for_tests(0).stream("noise", 0).normal(1_000_001)
    assert len(values) == 1_000_001
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert stats.kurtosis(values) == pytest.approx(0, abs=0.03)


def test_uniform_numbers_are_uniform_and_below_one():
    values = Randomness.for_tests(0).stream("x", 0).uniform(1_000_000)
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_system_randomness_differs_every_time_and_hides_its_secret():
    first, second = Randomness.from_system(), Randomness.from_system()
    assert first.hex != second.hex
    assert first.hex not in repr(first)
    assert (first.origin, Randomness.for_tests(0).origin) == ("csprng", "test")


def test_randomness_that_was_written_down_is_the_same():
    first = Randomness.from_system()
    again = Randomness.from_hex(first.hex, "csprng")
    assert np.array_equal(first.stream("noise", 1).normal(5), again.stream("noise", 1).normal(5))


# --- the step ---


def test_step_without_a_unit_is_noise_alone():
    step = a_step(noise=2.0, expected=4.0)
    weights = {"w": torch.zeros(100_000)}
    clipped = step.clipped_sum(weights, [], 0.5)
    gradient = step.release(clipped, 0, 0.5)["w"]
    assert float(gradient.std()) == pytest.approx(2.0 * 0.5 / 4.0, rel=0.02)


def test_step_divides_by_the_expected_number_whatever_is_included():
    model, rows = linear_problem()
    weights = dict(model.named_parameters())
    step = a_step(FunctionalGradients(model, linear_loss), noise=0.0)
    for count in (2, 8):
        part = [value[:count] for value in rows]
        total = step.clipped_sum(weights, [part], 1.0)
        found = step.release(total, 0, 1.0)
        assert all(torch.equal(found[n], total.total[n] / 10.0) for n in found)


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_included_units_are_as_many_as_the_rate_says(rate):
    step = a_step(rate=rate)
    sizes = [len(step.included(moment, 1000)) for moment in range(200)]
    error = math.sqrt(1000 * rate * (1 - rate) / 200)
    assert np.mean(sizes) == pytest.approx(1000 * rate, abs=5 * error + 1e-9)


def test_step_refuses_an_expected_number_that_is_not_positive():
    with pytest.raises(ValueError, match="expected_units"):
        a_step(expected=0.0)


# --- the tests before the budget is spent, and bugs planted for them ---


def findings_of(step, model=None, rows=None, clip_norm=1.0):
    if model is None:
        model, rows = linear_problem()
        step.gradients = step.gradients or FunctionalGradients(model, linear_loss)
    return {f.name: f for f in examine(step, dict(model.named_parameters()), rows, clip_norm)}


def failed(findings):
    return {name for name, finding in findings.items() if not finding.passed}


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 0.25, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_honest_step_passes(rate, seed):
    model, rows = linear_problem()
    gradients = FunctionalGradients(model, linear_loss)
    step = a_step(gradients, randomness=Randomness.for_tests(seed), rate=rate)
    assert failed(findings_of(step, model, rows)) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_honest_step_passes_on_every_kind_of_network(name):
    model, rows = a_model(name), some_units(SHAPES[name], units=4, draws=2)
    step = a_step(FunctionalGradients(model, row_loss), randomness=Randomness.from_system())
    assert failed(findings_of(step, model, rows, CLIP_NORM)) == set()


class Bug(PrivateStep):
    """A step with something wrong."""

    @classmethod
    def plant(cls, rate=0.1):
        model, rows = linear_problem()
        step = cls(
            FunctionalGradients(model, linear_loss),
            Randomness.for_tests(0),
            sampling_rate=rate,
            noise_multiplier=1.0,
            expected_units=10.0,
        )
        return failed(findings_of(step, model, rows))


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5, 0.98])
def test_too_little_noise_is_caught(factor):
    class TooLittle(Bug):
        def release(self, clipped, step, clip_norm):
            kept, self.noise_multiplier = self.noise_multiplier, self.noise_multiplier * factor
            try:
                return super().release(clipped, step, clip_norm)
            finally:
                self.noise_multiplier = kept

    assert "size of the noise" in TooLittle.plant()


def test_uniform_noise_of_the_right_variance_is_caught():
    class Uniform(Bug):
        def release(self, clipped, step, clip_norm):
            stream = self.randomness.stream("noise", step)
            width = self.noise_multiplier * clip_norm * math.sqrt(12)
            found = {}
            for name, value in clipped.total.items():
                noise = width * torch.from_numpy(stream.uniform(value.numel()) - 0.5)
                found[name] = (value + noise.view(value.shape)).float() / self.expected_units
            return found

    assert Uniform.plant() == {"shape of the noise"}


def test_noise_that_repeats_is_caught():
    class Repeating(Bug):
        def release(self, clipped, step, clip_norm):
            return super().release(clipped, 0, clip_norm)

    assert "noise of two steps" in Repeating.plant()


def test_layer_that_is_not_clipped_is_caught():
    class Unclipped(FunctionalGradients):
        def clipped_sum(self, weights, rows, clip_norm):
            found = super().clipped_sum(weights, rows, clip_norm)
            far = super().clipped_sum(weights, rows, 1e9)
            found.total["bias"] = far.total["bias"]
            return found

    model, rows = linear_problem()
    step = a_step(Unclipped(model, linear_loss))
    assert {"sensitivity", "sensitivity, all clipped"} <= failed(findings_of(step, model, rows))


def test_layer_that_is_not_clipped_is_caught_though_gradients_are_short():
    class Unclipped(FunctionalGradients):
        def clipped_sum(self, weights, rows, clip_norm):
            found = super().clipped_sum(weights, rows, clip_norm)
            found.total["bias"] = super().clipped_sum(weights, rows, 1e9).total["bias"]
            return found

    model, rows = linear_problem()
    step = a_step(Unclipped(model, linear_loss))
    found = failed(findings_of(step, model, rows, clip_norm=100.0))
    assert found == {"sensitivity, all clipped"}


def test_unit_that_counts_twice_in_the_sum_is_caught():
    class Twice(Bug):
        def clipped_sum(self, weights, blocks, clip_norm):
            doubled = [[torch.cat([v, v[:1]]) for v in rows] for rows in blocks]
            return super().clipped_sum(weights, doubled, clip_norm)

    assert "sensitivity" in Twice.plant()


def test_unit_that_is_included_twice_is_caught():
    class Twice(Bug):
        def included(self, step, units):
            chosen = super().included(step, units)
            return torch.cat([chosen, chosen[:1]])

    assert "a unit in one step" in Twice.plant()


def test_shuffled_batches_instead_of_poisson_sampling_are_caught():
    class Shuffled(Bug):
        def included(self, step, units):
            per_epoch = round(1 / self.sampling_rate)
            generator = torch.Generator().manual_seed(step // per_epoch)
            order = torch.randperm(units, generator=generator)
            return order.chunk(per_epoch)[step % per_epoch]

    assert {"size of the steps", "inclusions of each unit"} <= Shuffled.plant()


def test_batches_of_fixed_size_are_caught():
    class Fixed(Bug):
        def included(self, step, units):
            generator = torch.Generator().manual_seed(step)
            return torch.randperm(units, generator=generator)[: int(units * self.sampling_rate)]

    assert Fixed.plant() == {"size of the steps"}


def test_higher_rate_of_inclusion_is_caught():
    class More(Bug):
        def included(self, step, units):
            chosen = self.randomness.stream("inclusion", step).uniform(units) < 0.103
            return torch.from_numpy(chosen).nonzero()[:, 0]

    assert "rate of inclusion" in More.plant()


def test_division_by_the_real_number_of_units_is_caught():
    class Realised(Bug):
        def clipped_sum(self, weights, blocks, clip_norm):
            blocks = [list(rows) for rows in blocks]
            self.seen = sum(len(rows[0]) for rows in blocks)
            return super().clipped_sum(weights, blocks, clip_norm)

        def release(self, clipped, step, clip_norm):
            kept, self.expected_units = self.expected_units, getattr(self, "seen", 1)
            try:
                return super().release(clipped, step, clip_norm)
            finally:
                self.expected_units = kept

    assert "a unit that adds nothing" in Realised.plant()


def test_nan_that_reaches_the_weights_is_caught():
    class Poisoned(Bug):
        def clipped_sum(self, weights, blocks, clip_norm):
            blocks = [list(rows) for rows in blocks]
            found = super().clipped_sum(weights, blocks, clip_norm)
            if any(torch.isnan(rows[0]).any() for rows in blocks):
                found.total["bias"] += math.nan
            return found

    assert "a unit that adds nothing" in Poisoned.plant()


def test_failed_test_is_an_error_that_names_it():
    class Silent(Bug):
        def release(self, clipped, step, clip_norm):
            return {name: value / self.expected_units for name, value in clipped.total.items()}

    model, rows = linear_problem()
    step = Silent(
        FunctionalGradients(model, linear_loss),
        Randomness.for_tests(0),
        sampling_rate=0.1,
        noise_multiplier=1.0,
        expected_units=10.0,
    )
    findings = examine(step, dict(model.named_parameters()), rows, 1.0)
    with pytest.raises(MechanismError, match="size of the noise"):
        require_passed(findings)
