"""Networks for images of another size than their positions were made for."""

import pytest
import torch
from torch.nn.functional import interpolate

from ddm_fed.models import network_cost
from ddm_fed.models.layers import LearnedPosition, PositionEmbedding, RotaryPosition
from ddm_fed.models.registry import network_named
from ddm_fed.records import DitArchitecture, Grid, MmditArchitecture, parse_architecture

NAMES = ["DiT-Nano/2", "DiT-Nano/2-rope", "DiT-Nano/2-learned", "MMDiT-Nano/2"]


def normal(seed: int, *shape: int):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn_network(name: str, side: int):
    network = network_named(name, (1, side, side), 3)
    for index, weight in enumerate(network.parameters()):
        weight.data = 0.1 * normal(index, *weight.shape)
    return network.eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_grid_of_the_image_itself_changes_no_bit(name):
    x, t = normal(30, 2, 1, 8, 8), torch.tensor([0.2, 0.9])
    plain, named = (drawn_network(name + suffix, 8) for suffix in ("", "-grid4x4"))
    assert torch.equal(plain(x, t), named(x, t))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_weights_of_small_images_fit_large_ones_and_the_grid_matters(name):
    small = drawn_network(name, 8).state_dict()
    x, t = normal(31, 1, 1, 16, 16), torch.tensor([0.5])
    large = drawn_network(f"{name}-grid4x4", 16)
    assert {k: v.shape for k, v in large.state_dict().items()} == {
        k: v.shape for k, v in small.items()
    }
    large.load_state_dict(small)
    if "learned" in name:
        return  # without a grid it has another table
    unstretched = drawn_network(name, 16)
    unstretched.load_state_dict(small)
    assert not torch.allclose(large(x, t), unstretched(x, t), atol=1e-3)


@pytest.mark.parametrize("size", [(6, 10), (3, 4), (2, 3)])
def test_learned_codes_are_stretched_as_torch_stretches_an_image(size):
    position = LearnedPosition(*size, 5, Grid(3, 4))
    position.table.data = normal(32, 12, 5)
    image = position.table.T.reshape(1, 5, 3, 4)
    expected = interpolate(image, size, mode="bilinear", align_corners=False)[0]
    found = position(torch.zeros(1, size[0] * size[1], 5))[0]
    assert torch.allclose(found, expected.flatten(1).T, atol=1e-6)


def test_stretched_codes_are_added_in_full_precision_under_autocast():
    x = normal(36, 1, 16, 8).bfloat16()
    plain, stretched = LearnedPosition(4, 4, 8), LearnedPosition(4, 4, 8, Grid(2, 2))
    stretched.table.data = normal(37, 4, 8)
    expected = stretched(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(x).dtype == torch.float32
        assert torch.equal(stretched(x), expected)
    assert expected.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_cost_of_a_stretched_network_is_counted(name):
    stretched, small = network_cost(f"{name}-grid4x4", (1, 16, 16)), network_cost(name, (1, 8, 8))
    assert stretched.parameters == small.parameters
    assert stretched.flops_per_image > small.flops_per_image


def test_every_third_token_is_where_a_token_of_the_grid_is():
    of_grid, stretched = PositionEmbedding(2, 3, 16).table, PositionEmbedding(6, 9, 16, Grid(2, 3))
    middle = stretched.table.reshape(6, 9, 16)[1::3, 1::3].flatten(0, 1)
    assert torch.allclose(middle, of_grid, atol=1e-6)
    x = normal(33, 1, 1, 6, 8)
    spread = torch.zeros(1, 1, 6, 9, 8)
    spread[:, :, 1::3, 1::3] = x.unflatten(2, (2, 3))
    turned = RotaryPosition(6, 9, 8, grid=Grid(2, 3))(spread.flatten(2, 3)).unflatten(2, (6, 9))
    expected = RotaryPosition(2, 3, 8)(x).unflatten(2, (2, 3))
    assert torch.allclose(turned[:, :, 1::3, 1::3], expected, atol=1e-6)


def test_tokens_twice_as_close_turn_half_as_far():
    q, k = normal(34, 1, 1, 1, 16), normal(35, 1, 1, 1, 16)

    def products(rows, grid):
        rotary = RotaryPosition(rows, 1, 16, grid=grid)
        return (rotary(q.expand(-1, -1, rows, -1)) @ rotary(k.expand(-1, -1, rows, -1)).mT)[0, 0]

    of_grid, stretched = products(4, None), products(8, Grid(4, 1))
    for apart in (0, 1, 2, 3):
        assert stretched[2 * apart, 0].item() == pytest.approx(of_grid[apart, 0].item(), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_name_says_the_grid(name):
    found = parse_architecture(f"{name}-grid12x7")
    assert isinstance(found, DitArchitecture | MmditArchitecture)
    assert found.grid == (12, 7)


@pytest.mark.parametrize(
    "name",
    [
        "DiT-S/2-grid0x4",
        "DiT-S/2-grid4",
        "DiT-S/2-grid1000x2",
        "DiT-S/2-grid4x4-rope",
        "UNet-S-grid4x4",
        "MMDiT-3B/2-grid4x",
    ],
)
def test_grid_that_is_none_is_no_name(name):
    with pytest.raises(ValueError, match="unknown architecture"):
        parse_architecture(name)
