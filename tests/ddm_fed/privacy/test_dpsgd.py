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
    PrivateStep,
    Randomness,
    RecordedGradients,
    agreement,
    examine,
    require_passed,
)
from ddm_fed.privacy.recorded_gradients import squared_norms
from ddm_fed.privacy.selftest import _distance

SHAPES = {
    "DiT-Nano/2": (1, 8, 8),
    "DiT-Nano/4-single-qknorm-rope": (1, 16, 16),
    "DiT-Nano/4-learned-grid3x3": (1, 16, 16),
    "MMDiT-Nano/2": (3, 8, 8),
    "Conv-Nano/2": (3, 8, 8),
    "UNet-Nano": (1, 16, 16),
}
RECORDED = [name for name in SHAPES if name != "UNet-Nano"]
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


ENGINES = {"functional": FunctionalGradients, "recorded": RecordedGradients}


def engine(kind, model):
    return ENGINES[kind](model, row_loss)


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
    [("functional", name) for name in SHAPES] + [("recorded", name) for name in RECORDED],
)
def test_clipped_sum_is_that_of_a_loop_over_units(kind, name, draws):
    model, rows = a_model(name), some_units(SHAPES[name], draws=draws)
    found = engine(kind, model).clipped_sum(dict(model.named_parameters()), rows, CLIP_NORM)
    assert worst(found.total, loop(model, rows, CLIP_NORM)) < 1e-5


@pytest.mark.parametrize("kind", list(ENGINES))
def test_clipped_sum_without_clipping_is_the_gradient_of_the_batch(kind):
    model, rows = a_model("DiT-Nano/2"), some_units((1, 8, 8), draws=2)
    weights = dict(model.named_parameters())
    loss = row_loss(model, *(value.flatten(0, 1) for value in rows)).sum() / 2
    expected = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    found = engine(kind, model).clipped_sum(weights, rows, 1e6)
    assert worst(found.total, expected) < 1e-5
    assert found.clipped == 0
    assert found.loss == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("rows_at_once", [1, 5, 64])
def test_clipped_sum_does_not_depend_on_the_chunks(kind, rows_at_once):
    model, rows = a_model("DiT-Nano/2"), some_units((1, 8, 8), units=7, draws=2)
    weights = dict(model.named_parameters())
    whole = FunctionalGradients(model, row_loss).clipped_sum(weights, rows, CLIP_NORM)
    parts = ENGINES[kind](model, row_loss, rows_at_once=rows_at_once)
    assert worst(parts.clipped_sum(weights, rows, CLIP_NORM).total, whole.total) < 1e-5


@pytest.mark.parametrize("kind", list(ENGINES))
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


@pytest.mark.parametrize("kind", ENGINES)
def test_rows_of_a_unit_are_clipped_as_one(kind):
    model, rows = linear_problem(units=1, draws=8)
    weights = dict(model.named_parameters())
    total = ENGINES[kind](model, linear_loss).clipped_sum(weights, rows, 1.0).total
    norm = math.sqrt(sum(float(value.square().sum()) for value in total.values()))
    assert norm == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("kind", ENGINES)
def test_clipped_sum_leaves_model_and_rows_as_they_were(kind):
    model, rows = linear_problem()
    rows[0][0] = math.nan
    before = [value.clone() for value in rows]
    ENGINES[kind](model, linear_loss).clipped_sum(dict(model.named_parameters()), rows, CLIP_NORM)
    assert all(value.grad is None for value in model.parameters())
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(rows, before, strict=True)
    )


@pytest.mark.parametrize("kind", ENGINES)
def test_clipped_sum_of_nobody_is_zero(kind):
    model, rows = linear_problem()
    weights = dict(model.named_parameters())
    found = ENGINES[kind](model, linear_loss).clipped_sum(weights, [r[:0] for r in rows], CLIP_NORM)
    assert not any(value.any() for value in found.total.values())


# --- the engine that records ---


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("kept", ["blocks.2.", "blocks.1.attention", "label", "embed.bias"])
def test_recorded_sum_of_a_part_of_the_weights_is_that_of_the_functional(kept, draws):
    model, rows = a_model("DiT-Nano/2"), some_units((1, 8, 8), draws=draws)
    weights = {n: v for n, v in model.named_parameters() if n.startswith((kept, "modulation"))}
    for name, value in model.named_parameters():
        value.requires_grad_(name in weights)
    found, expected = (
        engine(kind, model).clipped_sum(weights, rows, CLIP_NORM)
        for kind in ("recorded", "functional")
    )
    assert worst(found.total, expected.total) < 1e-5


@pytest.mark.parametrize("draws", [1, 4])
def test_recorded_sum_in_float64_is_that_of_the_functional(draws):
    model, rows = a_model("DiT-Nano/2").double(), some_units((1, 8, 8), draws=draws)
    rows = [value.double() if value.is_floating_point() else value for value in rows]
    weights = dict(model.named_parameters())
    found, expected = (
        engine(kind, model).clipped_sum(weights, rows, CLIP_NORM)
        for kind in ("recorded", "functional")
    )
    # the network itself rounds its answer to float32; norms are overstated by 1e-6 at most
    assert worst(found.total, expected.total) < 1e-5


@pytest.mark.slow
def test_recorded_sum_of_a_larger_network_is_that_of_the_functional():
    model = network_named("DiT-Ti/4", (1, 28, 28), 10)
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for value in model.parameters():
            value += 0.02 * torch.randn(value.shape)
    rows, weights = some_units((1, 28, 28)), dict(model.named_parameters())
    found, expected = (
        engine(kind, model).clipped_sum(weights, rows, CLIP_NORM)
        for kind in ("recorded", "functional")
    )
    assert worst(found.total, expected.total) < 1e-5


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("kind", ENGINES)
def test_unit_that_leaves_moves_the_sum_by_at_most_the_clip_norm(kind, draws):
    model, rows = a_model("DiT-Nano/2"), some_units((1, 8, 8), units=5, draws=draws)
    weights, clip_norm = dict(model.named_parameters()), 1e-3
    whole = engine(kind, model).clipped_sum(weights, rows, clip_norm)
    for unit in range(5):
        others = [torch.cat([value[:unit], value[unit + 1 :]]) for value in rows]
        fewer = engine(kind, model).clipped_sum(weights, others, clip_norm)
        moved = math.sqrt(
            sum(float((whole.total[n] - fewer.total[n]).double().square().sum()) for n in weights)
        )
        assert 0.99 * clip_norm < moved < clip_norm * (1 + 1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 49])
def test_norm_out_of_products_is_never_less_than_the_norm(tokens):
    generator = torch.Generator().manual_seed(tokens)
    a, g = (torch.randn(200, tokens, width, generator=generator) for width in (192, 96))
    assert_not_understated(a, g)
    # what is summed cancels but for a thousandth, and for rounding alone
    for rest in (1e-3, 0.0):
        same = torch.randn(200, 1, 192, generator=generator)
        cancelling = g - g.mean(1, keepdim=True) if tokens > 1 else g
        assert_not_understated(same + rest * a, cancelling)


def assert_not_understated(a, g):
    true = (g.double().mT @ a.double()).square().sum((1, 2))
    found = squared_norms(a, g).double()
    assert bool((found >= true * (1 - 1e-6)).all())
    terms = (a.double().norm(dim=2) * g.double().norm(dim=2)).sum(1).square()
    assert bool((found <= true + 2e-6 * terms + 1e-6 * true).all())


class Wrapped(torch.nn.Module):
    """Two linear layers, used as `call` says."""

    def __init__(self, call):
        super().__init__()
        self.layer, self.last, self.call = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1), call

    def forward(self, x):
        return self.last(self.call(self.layer, x))


@pytest.mark.parametrize(
    "call",
    [
        lambda layer, x: layer(layer(x)),
        lambda layer, x: torch.nn.functional.linear(layer(x), layer.weight),
        lambda layer, x: layer(torch.stack([x, x.square()], 1)).mean(1),
        lambda layer, x: layer(torch.stack([x] * 9, 1)).mean(1) + layer(x),
    ],
    ids=["twice", "past its module", "tokens", "twice and otherwise"],
)
def test_layer_that_is_used_in_any_known_way_is_recorded(call):
    model, rows = Wrapped(call), linear_problem()[1]
    weights = dict(model.named_parameters())
    alone = FunctionalGradients(model, linear_loss)
    assert agreement(RecordedGradients(model, linear_loss), weights, rows, alone) < 1e-5


@pytest.mark.parametrize(
    "call",
    [
        lambda layer, x: layer(x) @ layer.weight,
        lambda layer, x: torch.nn.functional.linear(layer(x), layer.weight.t()),
        lambda layer, x: layer(x) * layer.weight.sum(),
        lambda layer, x: layer(x) + layer.bias,
        lambda layer, x: torch.cat([layer(x), layer.weight])[: len(x)],
        lambda layer, x: x + layer(torch.ones(1, 2)),
        lambda layer, x: torch.nn.functional.linear(x, layer.weight, layer.weight[0]),
        lambda layer, x: torch.nn.functional.linear(layer.weight, layer.weight)[:1] + x,
    ],
    ids=[
        "matmul",
        "turned",
        "scaled",
        "bias",
        "in a list",
        "not of a unit",
        "as a bias",
        "as input",
    ],
)
def test_use_that_is_not_known_is_refused(call):
    model, rows = Wrapped(call), linear_problem()[1]
    with pytest.raises(NotImplementedError, match=r"is used by|not of a unit"):
        RecordedGradients(model, linear_loss).clipped_sum(
            dict(model.named_parameters()), rows, CLIP_NORM
        )


def test_network_that_is_mostly_not_linear_is_refused():
    model, rows = a_model("UNet-Nano"), some_units((1, 16, 16))
    with pytest.raises(NotImplementedError, match="not those of linear layers"):
        engine("recorded", model).clipped_sum(dict(model.named_parameters()), rows, CLIP_NORM)


def test_agreement_shows_a_gradient_that_is_wrong():
    class Half(RecordedGradients):
        def clipped_sum(self, weights, rows, clip_norm):
            found = super().clipped_sum(weights, rows, clip_norm)
            found.total["bias"] /= 2
            return found

    model, rows = linear_problem()
    weights, alone = dict(model.named_parameters()), FunctionalGradients(model, linear_loss)
    assert agreement(Half(model, linear_loss), weights, rows, alone) > 0.01


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


def test_numbers_of_many_tensors_are_those_of_one_after_the_other():
    counts = [5, 1, 70_001, 2, 90_000, 3]
    streams = [Randomness.for_tests(0).stream("noise", 3) for _ in range(2)]
    for found, count in zip(streams[0].normals(counts), counts, strict=True):
        assert np.array_equal(found, streams[1].normal(count))


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
    gradients = engine("recorded" if name in RECORDED else "functional", model)
    step = a_step(gradients, randomness=Randomness.from_system())
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


@pytest.mark.parametrize("shift", [0.0, 0.3, -2.0])
def test_distance_from_a_normal_is_that_of_kolmogorov_and_smirnov(shift):
    values = np.random.default_rng(0).standard_normal(1000) + shift
    found = _distance(values)
    assert found == pytest.approx(stats.kstest(values, "norm").statistic, abs=1e-12)


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
