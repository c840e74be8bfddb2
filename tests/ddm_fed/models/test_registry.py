"""What every network of the registry promises: shapes, conditions, independence, a fixed start."""

import itertools
import math

import commands
import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddm_fed.flows import NO_CLASS, ClassCondition
from ddm_fed.models import (
    build_network,
    expert_tensors,
    network_named,
    parameter_count,
)
from ddm_fed.models.layers import Attention, QkNorm, RotaryPosition
from ddm_fed.records import DataSpec, ExpertDesign

SUFFIXES = itertools.product(("", "-single"), ("", "-qknorm"), ("", "-rope", "-learned"))
OTHERS = ["MMDiT-Nano/2", "UNet-Nano", "Conv-Nano/2"]
NAMES = [f"DiT-Nano/2{''.join(parts)}" for parts in SUFFIXES] + [
    *OTHERS,
    "DiT-Nano/2-learned-times128",
    "UNet-16-32a/2-ddpm-groups4",
]
FAMILIES = ["DiT-Nano/2", "DiT-Nano/2-single-qknorm-rope", *OTHERS]
CLASSES = 3

every_name = pytest.mark.parametrize("name", NAMES)
every_family = pytest.mark.parametrize("name", FAMILIES)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(shape, generator=generator(seed))


def classes_of(*labels):
    return ClassCondition(torch.tensor(labels))


def untrained(name, shape=(1, 8, 8), classes=CLASSES, seed=0):
    model = network_named(name, shape, classes)
    model.reset_parameters(generator(seed))
    return model


def scrambled(name, shape=(1, 8, 8), classes=CLASSES):
    """A model whose every weight is random, so that no gate hides anything."""
    model = network_named(name, shape, classes)
    draws = generator(1)
    for value in model.parameters():
        value.data.normal_(std=0.2, generator=draws)
    return model


def data_spec(channels=1, height=8, width=8, classes=("cat", "dog", "cow")):
    conditioning = "class" if classes else "none"
    return DataSpec(
        channels=channels, height=height, width=width, conditioning=conditioning, classes=classes
    )


def trained(model, x, t, target, condition, steps, rate):
    """Returns the losses of `steps` steps of Adam, and every weight a gradient has reached."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses, reached = [], set()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x, t, condition) - target).square().mean()
        loss.backward()
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        losses.append(loss.item())
    return losses, reached


# --- what goes in and comes out ---


@pytest.mark.slow
@every_name
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 8)], ids=["square", "tall"])
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_network_output_has_the_shape_of_its_input_in_float32(name, shape, classes):
    condition = classes_of(0, NO_CLASS) if classes else None
    model = scrambled(name, shape, classes)
    out = model(normal(1, 2, *shape), torch.tensor([0.2, 0.9]), condition)
    assert (out.shape, out.dtype, model.classes) == ((2, *shape), torch.float32, classes)
    assert out.isfinite().all()


@every_name
def test_network_under_autocast_returns_float32_near_the_exact_output(name):
    model, x, t = scrambled(name), normal(2, 2, 1, 8, 8), torch.tensor([0.2, 0.9])
    exact = model(x, t, classes_of(0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x, t, classes_of(0, 1))
    assert out.dtype == torch.float32
    assert (out - exact).norm() < 0.1 * exact.norm()


@every_name
def test_network_sees_the_time(name):
    model, x = scrambled(name), normal(3, 1, 1, 8, 8)
    early, late = model(x, torch.tensor([0.50])), model(x, torch.tensor([0.51]))
    assert (early - late).abs().max() > 1e-4


@every_name
def test_network_swapping_halves_of_the_image_does_not_only_swap_the_outputs(name):
    model, x, t = scrambled(name), normal(4, 1, 1, 8, 8), torch.tensor([0.5])
    moved = torch.cat([x[..., 2:4], x[..., :2], x[..., 4:]], dim=3)
    out, out_moved = model(x, t), model(moved, t)
    swapped = torch.cat([out[..., 2:4], out[..., :2], out[..., 4:]], dim=3)
    assert (swapped - out_moved).abs().max() > 1e-4


@every_name
def test_network_rows_do_not_influence_each_other(name):
    model, x, t = scrambled(name), normal(5, 3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    condition = classes_of(2, NO_CLASS, 0)
    together = model(x, t, condition)
    parts = [slice(i, i + 1) for i in range(3)]
    alone = torch.cat([model(x[part], t[part], condition.rows(part)) for part in parts])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4)


# --- conditions ---


@every_name
def test_network_every_class_gives_another_output(name):
    model, x, t = scrambled(name), normal(6, 1, 1, 8, 8), torch.tensor([0.4])
    outs = [model(x, t, classes_of(label)) for label in (0, 1, 2, NO_CLASS)]
    gaps = [(first - second).abs().max() for first, second in itertools.combinations(outs, 2)]
    assert min(gaps) > 1e-4


@every_name
def test_network_without_condition_equals_no_class_in_every_row(name):
    model, x, t = scrambled(name), normal(7, 2, 1, 8, 8), torch.tensor([0.2, 0.8])
    assert torch.equal(model(x, t), model(x, t, classes_of(NO_CLASS, NO_CLASS)))


@every_name
def test_network_without_classes_refuses_a_condition(name):
    with pytest.raises(ValueError, match="unconditional"):
        scrambled(name, classes=0)(normal(8, 1, 1, 8, 8), torch.tensor([0.4]), classes_of(0))


# --- start of training ---


@every_name
def test_network_start_depends_on_the_generator_alone(name):
    first, second, other = (untrained(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_name
def test_network_start_replaces_every_weight(name):
    model = network_named(name, (1, 8, 8), CLASSES)
    for value in model.parameters():
        value.data.fill_(torch.nan)
    model.reset_parameters(generator(0))
    assert all(value.isfinite().all() for value in model.parameters())


@every_name
def test_network_at_the_start_returns_zero(name):
    out = untrained(name)(normal(9, 2, 1, 8, 8), torch.tensor([0.1, 0.9]), classes_of(0, NO_CLASS))
    assert torch.equal(out, torch.zeros(2, 1, 8, 8))


@pytest.mark.slow
@every_name
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_network_gradient_reaches_every_weight_within_a_few_steps(name, classes):
    model, condition = untrained(name, classes=classes), classes_of(0, NO_CLASS)
    x, target = normal(10, 2, 1, 8, 8), normal(11, 2, 1, 8, 8)
    condition = condition if classes else None
    # the head opens first, then the gates, then what lies behind them
    _, reached = trained(model, x, torch.tensor([0.3, 0.7]), target, condition, 4, 0.01)
    assert {name for name, _ in model.named_parameters()} - reached == set()


@pytest.mark.slow
@every_family
def test_network_learns_eight_images_by_heart(name):
    model, t = untrained(name, classes=0), torch.linspace(0.1, 0.9, 8)
    x, target = normal(12, 8, 1, 8, 8), normal(13, 8, 1, 8, 8)
    losses, _ = trained(model, x, t, target, None, 40, 0.006)
    assert min(losses[-10:]) < 0.1 * losses[0]


# --- what training and assembly do with a network ---


@every_family
def test_network_gradients_per_image_equal_those_of_one_image_at_a_time(name):
    model, x, target = scrambled(name), normal(14, 3, 1, 8, 8), normal(15, 3, 1, 8, 8)
    t, labels = torch.tensor([0.2, 0.5, 0.8]), torch.tensor([1, NO_CLASS, 0])
    weights = dict(model.named_parameters())

    def loss(weights, x, t, label, target):
        inputs = (x[None], t[None], ClassCondition(label[None]))
        return (functional_call(model, weights, inputs) - target).square().mean()

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no rule for vmap, and warns
        found = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(weights, x, t, labels, target)
    for row in range(3):
        model.zero_grad()
        part = slice(row, row + 1)
        out = model(x[part], t[part], ClassCondition(labels[part]))
        (out - target[part]).square().mean().backward()
        for key, value in weights.items():
            scale = value.grad.abs().max() + 1e-3
            assert (found[key][row] - value.grad).abs().max() < 1e-3 * scale, key


@every_name
def test_network_tensors_of_the_plan_match_its_state(name):
    data, design = data_spec(3, 12, 8), ExpertDesign(architecture=name)
    state = build_network(data, design).state_dict()
    assert all(value.dtype == torch.float32 for value in state.values())
    assert state.keys() == dict(build_network(data, design).named_parameters()).keys()
    assert expert_tensors(data, design) == {
        key: ("F32", tuple(value.shape)) for key, value in state.items()
    }


@pytest.mark.parametrize(("name", "height"), [("UNet-Nano", 7), ("DiT-Nano/4", 6)])
def test_network_of_images_it_does_not_tile_is_refused(name, height):
    with pytest.raises(ValueError, match="does not tile"):
        build_network(data_spec(height=height), ExpertDesign(architecture=name))


@pytest.mark.slow
def test_networks_are_imported_without_diffusers_and_unet_is_built_without_a_network(tmp_path):
    script = tmp_path / "offline.py"  # in a process that has imported neither diffusers nor a test
    script.write_text(_OFFLINE)
    commands.done(script, timeout=120)


_OFFLINE = """
import socket, sys, warnings
warnings.simplefilter("error")
import ddm_fed.models as models
assert "diffusers" not in sys.modules
models.network_named("DiT-Nano/2", (1, 8, 8), 0)
assert "diffusers" not in sys.modules
def refuse(*arguments, **named):
    raise AssertionError("asked for a network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
models.network_named("UNet-Nano", (1, 8, 8), 0)
assert "diffusers" in sys.modules
"""


# --- parts ---


@pytest.mark.parametrize("size", ["Nano", "S"])
def test_single_modulation_has_fewer_weights_than_one_per_block(size):
    with torch.device("meta"):
        zero, single = (
            network_named(f"DiT-{size}/2{suffix}", (1, 8, 8), 0) for suffix in ("", "-single")
        )
    depth, width = len(zero.blocks), zero.head.in_features
    per_block = 6 * width * width + 6 * width
    saved = depth * per_block - (per_block + depth * 6 * width)
    assert parameter_count(zero) - parameter_count(single) == saved > 0


def test_rotary_products_depend_only_on_how_far_apart_two_tokens_are():
    rows, columns, width = 4, 5, 16
    rotary = RotaryPosition(rows, columns, width).double()
    q, k = normal(16, width).double(), normal(17, width).double()
    places = list(itertools.product(range(rows), range(columns)))
    logits = rotary(q.expand(1, 1, len(places), -1)) @ rotary(k.expand(1, 1, len(places), -1)).mT
    by_shift = {}
    for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
        by_shift.setdefault((a[0] - b[0], a[1] - b[1]), []).append(logits[0, 0, i, j].item())
    assert all(max(found) - min(found) < 1e-4 for found in by_shift.values())
    assert len({round(found[0], 3) for found in by_shift.values()}) > 0.9 * len(by_shift)


def test_rotary_turns_pairs_as_complex_numbers_do():
    rotary, x = RotaryPosition(3, 4, 8), normal(18, 1, 1, 12, 8)
    found = rotary(x)
    for token, (row, column) in enumerate(itertools.product(range(3), range(4))):
        angles = [row, row / 10, column, column / 10]  # base 100: rates 1 and 0.1 for each axis
        for pair, angle in enumerate(angles):
            z = complex(x[0, 0, token, pair], x[0, 0, token, pair + 4])
            z *= complex(math.cos(angle), math.sin(angle))
            assert found[0, 0, token, pair].item() == pytest.approx(z.real, abs=1e-5)
            assert found[0, 0, token, pair + 4].item() == pytest.approx(z.imag, abs=1e-5)


def test_rotary_leaves_leading_tokens_unturned():
    x = normal(19, 1, 1, 4 + 6, 8)
    found = RotaryPosition(2, 3, 8, leading=4)(x)
    assert torch.equal(found[:, :, :4], x[:, :, :4])
    assert torch.equal(found[:, :, 4:], RotaryPosition(2, 3, 8)(x[:, :, 4:]))


def test_qk_norm_bounds_the_logits_whatever_comes_in():
    norm, width = QkNorm(16), 16
    norm.query.weight.data = normal(20, width)
    norm.key.weight.data = normal(21, width)
    q, k = norm(1e6 * normal(22, 1, 2, 50, width), 1e-1 * normal(23, 1, 2, 50, width))
    limit = norm.query.weight.abs().max() * norm.key.weight.abs().max() * math.sqrt(width)
    assert ((q @ k.mT) / math.sqrt(width)).abs().max() <= limit * (1 + 1e-5)


def test_attention_with_qk_norm_does_not_depend_on_the_size_of_queries_and_keys():
    normed, plain = Attention(16, 2, qk_norm=True), Attention(16, 2)
    x = normal(24, 2, 5, 16)
    for layer, changes in ((normed, False), (plain, True)):
        for value in layer.qkv.parameters():
            value.data = normal(25, *value.shape)
        before = layer(x)
        layer.qkv.weight.data[:32] *= 30
        layer.qkv.bias.data[:32] *= 30
        assert torch.allclose(before, layer(x), atol=1e-4) != changes
