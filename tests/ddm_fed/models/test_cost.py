"""Size and work of networks, against published figures and counts made by hand."""

import resource
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ddm_fed.models import network_cost, network_named
from ddm_fed.models.unet import unet_config
from ddm_fed.records.architecture import UNET_SIZES

LATENT = (4, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("DiT-S/2", 33e6, 6.06e9),
        ("DiT-B/2", 130e6, 23.01e9),
        ("DiT-L/2", 458e6, 80.71e9),
        ("DiT-XL/2", 675e6, 118.64e9),
    ],
)
def test_cost_of_dit_is_the_published_one(name, parameters, multiply_adds):
    # Peebles and Xie 2023, Table 4, counts a multiply-add as one
    cost = network_cost(name, LATENT, classes=1000)
    assert cost.parameters == pytest.approx(parameters, rel=0.01)
    assert cost.flops_per_image == pytest.approx(2 * multiply_adds, rel=0.01)


def test_flops_of_dit_equal_a_count_by_hand():
    # width 64, 3 blocks, 16 tokens of 4 values, 64 frequencies
    token_layers = 4 * 64 + 3 * 12 * 64 * 64 + 64 * 4
    attention = 3 * 2 * 16 * 16 * 64
    per_image = 128 * 64 + 64 * 64 + 3 * 6 * 64 * 64 + 2 * 64 * 64
    expected = 2 * (16 * token_layers + attention + per_image)
    assert network_cost("DiT-Nano/2", (1, 8, 8)).flops_per_image == expected


def test_parameters_of_mmdit_equal_a_count_by_hand():
    width, head = 64, 16
    time = 128 * width + width + width * width + width
    stream = 18 * width**2 + (6 + 3 + 1 + 4 + 1) * width + 2 * head
    single = 15 * width**2 + (3 + 7 + 1) * width + 2 * head
    ends = (4 * width + width) + (2 * width**2 + 2 * width) + (4 * width + 4)
    tokens = 4 * 4 * width  # three classes and none, four tokens each
    expected = time + 2 * stream + 2 * single + ends + tokens
    assert network_cost("MMDiT-Nano/2", (1, 8, 8), classes=3).parameters == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DiT-Nano/2-single-qknorm-rope", "MMDiT-Nano/2", "UNet-Nano"])
def test_flops_without_memory_equal_those_of_a_real_pass(name):
    model = network_named(name, (3, 16, 8), 2)
    # as products of matrices: the counter does not know the fused attention of the processor
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 3, 16, 8), torch.zeros(1))
    counted = network_cost(name, (3, 16, 8), classes=2).flops_per_image
    assert counted == counter.get_total_flops() > 0
    kinds = {str(operation) for operation in counter.get_flop_counts()["Global"]}
    assert any("attention" in kind or "bmm" in kind for kind in kinds)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["Nano", "S", "M", "L"])
def test_parameters_of_unet_are_those_of_its_configuration(size):
    from diffusers import UNet2DModel

    with torch.device("meta"):
        model = UNet2DModel(**unet_config((3, 32, 32), UNET_SIZES[size], 10))
    expected = sum(value.numel() for value in model.parameters())
    assert network_cost(f"UNet-{size}", (3, 32, 32), classes=10).parameters == expected


@pytest.mark.slow
def test_cost_of_the_largest_expert_needs_no_memory():
    network_cost("MMDiT-Nano/2", (1, 8, 8))  # loads what counting needs
    before = _peak_bytes()
    cost = network_cost("MMDiT-3B/2", LATENT, classes=1000)
    assert 2.5e9 < cost.parameters < 3.8e9
    assert _peak_bytes() - before < 200e6


def test_training_bytes_count_weights_gradients_moments_and_averages():
    cost = network_cost("DiT-Nano/2", (1, 8, 8))
    model = network_named("DiT-Nano/2", (1, 8, 8), 0)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(1, 1, 8, 8), torch.zeros(1)).sum().backward()
    optimizer.step()
    held = [(value, value.grad) for value in model.parameters()]
    state = [entry[key] for entry in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    live = sum(value.nbytes for pair in held for value in pair) + sum(v.nbytes for v in state)
    assert cost.weights_bytes == sum(value.nbytes for value in model.parameters())
    assert cost.training_bytes(averages=0) == live
    assert cost.training_bytes(averages=3) == live + 3 * cost.weights_bytes


@pytest.mark.parametrize(
    ("name", "reason"), [("UNet-S", "halves"), ("DiT-S/4", "patches"), ("ResNet-50", "unknown")]
)
def test_cost_of_a_network_that_cannot_be_is_refused(name, reason):
    with pytest.raises(ValueError, match=reason):
        network_cost(name, (3, 6, 6))


def _peak_bytes():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("DiT-Nano/2", (1, 8, 8)),
        ("DiT-Nano/2", (1, 64, 64)),
        ("DiT-Nano/2-single-qknorm-rope", (3, 16, 16)),
        ("MMDiT-Nano/2", (1, 8, 8)),
    ],
)
def test_activation_bytes_are_those_that_a_real_pass_keeps(name, shape):
    model = network_named(name, shape, 0)
    own = {value.data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(value):
        storage = value.untyped_storage()
        if value.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        held = model(torch.zeros(1, *shape), torch.zeros(1))
    assert held.shape == (1, *shape)
    assert network_cost(name, shape).activation_bytes == sum(size for size, _ in kept.values())


def test_activations_grow_with_the_image_although_the_weights_do_not():
    small, large = (network_cost("DiT-Nano/2", (1, size, size)) for size in (28, 256))
    assert large.weights_bytes == small.weights_bytes
    assert large.activation_bytes > 50 * small.activation_bytes
