"""The diffusion transformer: shapes, patches, adaLN-zero, labels, size, and the plan's table."""

import math

import pytest
import torch
from torch.nn.functional import layer_norm

from ddm_fed.flows import NO_CLASS, ClassCondition
from ddm_fed.models import DiT, build_network, expert_tensors, parameter_count
from ddm_fed.models.dit import Block
from ddm_fed.models.layers import Attention, PositionEmbedding, patchify, unpatchify
from ddm_fed.records import DIT_SIZES, DitSize, read_plan_toml

TINY = DitSize(depth=2, width=32, heads=4)
SHAPES = [
    ((1, 8, 8), 1),
    ((1, 8, 8), 2),
    ((3, 8, 16), 4),
    ((3, 24, 8), 8),
    ((3, 16, 8), 2),
    ((4, 8, 12), 2),
    ((1, 4, 7), 1),
]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(shape, generator=generator(seed))


def classes_of(*labels):
    return ClassCondition(torch.tensor(labels))


def untrained(shape=(3, 8, 8), patch=2, classes=0, seed=0):
    """A model as training starts it."""
    model = DiT(shape, TINY, patch, classes)
    model.reset_parameters(generator(seed))
    return model.eval()


def scrambled(shape=(3, 8, 8), patch=2, classes=0, seed=0):
    """A model whose every weight is random, so that no gate hides anything."""
    model = DiT(shape, TINY, patch, classes)
    draws = generator(seed)
    for value in model.parameters():
        value.data.normal_(std=0.2, generator=draws)
    return model.eval()


def plan(classes="", architecture="DiT-Nano/2", channels=1, height=8, width=8):
    return read_plan_toml(f"""
        federation = "test"
        expires_at = 2036-01-01T00:00:00Z
        data = {{ channels = {channels}, height = {height}, width = {width}{classes} }}
        expert = {{ architecture = "{architecture}" }}
        training = {{ steps = 1, batch_size = 1 }}
        router = {{ kind = "prior", epsilon = 1 }}
        privacy = {{ max_epsilon = 2 }}
    """)


# --- shapes and patches ---


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_dit_output_has_the_shape_of_its_input_in_float32(shape, patch):
    out = scrambled(shape, patch)(normal(1, 2, *shape), torch.tensor([0.2, 0.9]))
    assert (out.shape, out.dtype) == ((2, *shape), torch.float32)


def test_dit_output_under_autocast_is_float32():
    model = scrambled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(normal(1, 2, 3, 8, 8), torch.tensor([0.2, 0.9]))
    assert out.dtype == torch.float32


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_unpatchify_of_patchify_returns_the_image(shape, patch):
    x = normal(2, 3, *shape)
    rows, columns = shape[1] // patch, shape[2] // patch
    assert torch.equal(unpatchify(patchify(x, patch), rows, columns, patch), x)


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_patchify_makes_each_token_of_one_square_in_reading_order(shape, patch):
    _, height, width = shape
    x = torch.arange(math.prod(shape)).reshape(1, *shape)
    tokens = patchify(x, patch)
    squares = [
        x[0, :, top : top + patch, left : left + patch].flatten()
        for top in range(0, height, patch)
        for left in range(0, width, patch)
    ]
    assert torch.equal(tokens[0], torch.stack(squares))


def test_dit_images_of_a_batch_do_not_influence_each_other():
    model, x, t = scrambled(classes=3), normal(3, 4, 3, 8, 8), torch.tensor([0.1, 0.3, 0.6, 0.9])
    condition = classes_of(0, 1, 2, NO_CLASS)
    together = model(x, t, condition)
    parts = [slice(i, i + 1) for i in range(4)]
    alone = torch.cat([model(x[part], t[part], condition.rows(part)) for part in parts])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_dit_sees_the_time():
    model, x = scrambled(), normal(4, 1, 3, 8, 8)
    early, late = model(x, torch.tensor([0.50])), model(x, torch.tensor([0.51]))
    assert (early - late).abs().max() > 1e-3


def test_dit_swapping_two_patches_does_not_only_swap_the_outputs():
    # Without positions the transformer would be equivariant under permutations of tokens.
    model, x, t = scrambled((1, 4, 4), 2), normal(5, 1, 1, 4, 4), torch.tensor([0.5])
    moved = torch.cat([x[..., 2:], x[..., :2]], dim=3)
    out, out_moved = model(x, t), model(moved, t)
    assert (torch.cat([out[..., 2:], out[..., :2]], dim=3) - out_moved).abs().max() > 1e-3


# --- start of training ---


@pytest.mark.parametrize("classes", [0, 5])
def test_dit_at_initialisation_returns_zero(classes):
    model, x = untrained(classes=classes), normal(6, 3, 3, 8, 8)
    condition = classes_of(0, 1, NO_CLASS) if classes else None
    assert torch.equal(model(x, torch.tensor([0.0, 0.5, 1.0]), condition), torch.zeros(3, 3, 8, 8))


def test_dit_blocks_at_initialisation_are_the_identity():
    x, c = normal(7, 2, 16, TINY.width), normal(8, 2, TINY.width)
    for block in untrained().blocks:
        assert torch.equal(block(x, c), x)


def test_dit_head_at_initialisation_receives_a_gradient():
    # A zero head must not be a dead one.
    model = untrained()
    model(normal(9, 2, 3, 8, 8), torch.tensor([0.3, 0.7])).sum().backward()
    assert model.head.weight.grad.abs().max() > 0


def test_dit_linear_layers_at_initialisation_are_not_zero():
    model = untrained(classes=4)
    for name, value in model.named_parameters():
        gate = "modulation" in name or name.startswith("head") or name.endswith("bias")
        assert bool(value.abs().max() > 0) != gate, name


def test_dit_initialisation_of_the_same_seed_is_the_same():
    first, second = untrained(classes=2, seed=3), untrained(classes=2, seed=3)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_dit_initialisation_of_another_seed_differs():
    first, second = untrained(seed=3), untrained(seed=4)
    assert not torch.equal(first.embed.weight, second.embed.weight)


# --- labels ---


def test_dit_without_condition_equals_no_class_in_every_row():
    model, x, t = scrambled(classes=5), normal(10, 2, 3, 8, 8), torch.tensor([0.2, 0.8])
    assert torch.equal(model(x, t, None), model(x, t, classes_of(NO_CLASS, NO_CLASS)))


def test_dit_every_label_gives_another_velocity():
    model, x, t = scrambled(classes=3), normal(11, 1, 3, 8, 8), torch.tensor([0.4])
    outs = [model(x, t, classes_of(label)) for label in (0, 1, 2, NO_CLASS)]
    gaps = [(outs[i] - outs[j]).abs().max() for i in range(4) for j in range(i)]
    assert min(gaps) > 1e-3


def test_dit_labels_on_an_unconditional_model_are_refused():
    with pytest.raises(ValueError, match="unconditional"):
        scrambled()(normal(12, 1, 3, 8, 8), torch.tensor([0.4]), classes_of(0))


# --- parts ---


@torch.no_grad()
def test_attention_equals_a_loop_over_heads_and_tokens():
    layer = Attention(width=12, heads=3).double()
    draws = generator(13)
    for value in layer.parameters():
        value.data.normal_(generator=draws)
    x = normal(14, 2, 5, 12).double()
    found = layer(x)
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).split(12, dim=-1)
    for b in range(2):
        for token in range(5):
            mixed = []
            for head in range(3):
                part = slice(4 * head, 4 * head + 4)
                scores = [float(q[b, token, part] @ k[b, j, part]) / 2.0 for j in range(5)]
                weights = [math.exp(score) for score in scores]
                mixed.append(
                    sum(w * v[b, j, part] for j, w in enumerate(weights)) / math.fsum(weights)
                )
            expected = layer.out.weight @ torch.cat(mixed) + layer.out.bias
            assert torch.allclose(found[b, token], expected, rtol=1e-10, atol=1e-10)


def test_block_with_closed_gates_is_the_identity_whatever_its_weights():
    block = Block(16, 2)
    draws = generator(15)
    for value in block.parameters():
        value.data.normal_(generator=draws)
    for gate in (2, 5):
        block.modulation.weight.data[16 * gate : 16 * (gate + 1)] = 0
        block.modulation.bias.data[16 * gate : 16 * (gate + 1)] = 0
    x = normal(16, 2, 6, 16)
    assert torch.equal(block(x, normal(17, 2, 16)), x)


def test_block_with_open_first_gate_adds_attention_of_the_normed_tokens():
    block = Block(16, 2)
    block.modulation.weight.data.zero_()
    block.modulation.bias.data.zero_()
    block.modulation.bias.data[32:48] = 1
    x = normal(18, 2, 6, 16)
    expected = x + block.attention(layer_norm(x, (16,), eps=1e-6))
    assert torch.allclose(block(x, normal(19, 2, 16)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(4, 4, 64), (16, 16, 64), (32, 32, 384), (3, 20, 128)]
)
def test_position_table_tells_all_tokens_apart(rows, columns, width):
    table = PositionEmbedding(rows, columns, width).table.double()
    distance = torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(torch.inf)
    assert table.shape == (rows * columns, width)
    assert distance.min() > 0.5


def test_position_code_of_a_row_is_the_same_in_every_column():
    table = PositionEmbedding(5, 7, 32).table.reshape(5, 7, 32)
    assert torch.equal(table[:, :, :16], table[:, :1, :16].expand(-1, 7, -1))
    assert torch.equal(table[:, :, 16:], table[:1, :, 16:].expand(5, -1, -1))


# --- size and table ---


@pytest.mark.parametrize(
    ("name", "published"), [("S", 33e6), ("B", 130e6), ("L", 458e6), ("XL", 675e6)]
)
def test_dit_parameter_count_is_the_published_one(name, published):
    # Peebles and Xie 2023, Table 1, at 32 x 32 x 4 latents, patch 2, 1000 classes
    with torch.device("meta"):
        model = DiT((4, 32, 32), DIT_SIZES[name], 2, 1000)
    assert parameter_count(model) == pytest.approx(published, rel=0.01)


def test_parameter_count_leaves_out_frozen_weights():
    model = untrained()
    before = parameter_count(model)
    model.head.weight.requires_grad_(requires_grad=False)
    assert before - parameter_count(model) == model.head.weight.numel()


@pytest.mark.parametrize(
    "agreed",
    [
        plan(),
        plan(', conditioning = "class", classes = ["cat", "dog"]'),
        plan(architecture="DiT-Micro/4", channels=3, height=16, width=8),
    ],
    ids=["unconditional", "classes", "colour"],
)
def test_expert_tensors_match_the_state_of_the_built_expert(agreed):
    state = build_network(agreed.data, agreed.expert.default).state_dict()
    assert all(value.dtype == torch.float32 for value in state.values())
    assert expert_tensors(agreed.data, agreed.expert.default) == {
        name: ("F32", tuple(value.shape)) for name, value in state.items()
    }


def test_built_expert_takes_images_and_classes_of_the_plan():
    agreed = plan(', conditioning = "class", classes = ["cat", "dog"]', channels=3, width=16)
    model = build_network(agreed.data, agreed.expert.default)
    model.reset_parameters(generator(20))
    out = model(normal(21, 3, 3, 8, 16), torch.tensor([0.1, 0.2, 0.3]), classes_of(0, 1, NO_CLASS))
    assert out.shape == (3, 3, 8, 16)
