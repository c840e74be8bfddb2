"""Clipped sums of networks that read captions, against a loop over units."""

import math

import pytest
import torch

from ddm_fed.flows import TextCondition, condition_of, denoising_loss
from ddm_fed.models import network_named
from ddm_fed.privacy import FunctionalGradients, RecordedGradients
from ddm_fed.records import TextSpec

TEXT = TextSpec(sha256="0" * 64, context=8, tokens=5, width=12, pooled=7)
NAMES = ("DiT-Nano/4", "DiT-Nano/4-single-qknorm-rope", "MMDiT-Nano/4")
ENGINES = {"functional": FunctionalGradients, "recorded": RecordedGradients}
SHAPE, CLIP_NORM = (1, 8, 8), 0.5


def generator(seed):
    return torch.Generator().manual_seed(seed)


def row_loss(network, x_0, eps, t, *told):
    return denoising_loss(network, x_0, eps, t, condition_of(told))


def a_model(name, *, stirred=True):
    model = network_named(name, SHAPE, 0, TEXT)
    model.reset_parameters(generator(0))
    if stirred:  # gates start closed: then most gradients would be zero
        drawn = generator(1)
        with torch.no_grad():
            for value in model.parameters():
                value += 0.05 * torch.randn(value.shape, generator=drawn)
    return model


def captions(count, seed=2, lengths=None):
    drawn = generator(seed)
    lengths = torch.arange(count) % (TEXT.tokens + 1) if lengths is None else lengths
    mask = torch.arange(TEXT.tokens) < lengths[:, None]
    tokens = torch.randn((count, TEXT.tokens, TEXT.width), generator=drawn) * mask[:, :, None]
    pooled = torch.randn((count, TEXT.pooled), generator=drawn) * mask[:, :1]
    return TextCondition(tokens, pooled, mask)


def some_units(units=6, draws=2):
    drawn = generator(3)
    images = [torch.randn((units, draws, *SHAPE), generator=drawn) for _ in range(2)]
    told = captions(units * draws)
    parts = (told.tokens, told.pooled, told.mask)
    split = [part.view(units, draws, *part.shape[1:]) for part in parts]
    return (*images, torch.rand((units, draws), generator=drawn), *split)


def loop(model, rows, clip_norm):
    """The oracle: one backward pass per unit, text and image together, clipped as one."""
    weights = dict(model.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    for unit in range(len(rows[0])):
        loss = row_loss(model, *(value[unit] for value in rows)).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        found = [
            torch.zeros_like(w) if g is None else g
            for w, g in zip(weights.values(), gradients, strict=True)
        ]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in found))
        for name, gradient in zip(weights, found, strict=True):
            total[name] += gradient * min(1.0, clip_norm / norm)
    return total


@pytest.mark.parametrize("kind", list(ENGINES))
@pytest.mark.parametrize("name", NAMES)
def test_clipped_sum_with_captions_is_that_of_a_loop_over_units(kind, name):
    model, rows = a_model(name), some_units()
    found = ENGINES[kind](model, row_loss).clipped_sum(
        dict(model.named_parameters()), rows, CLIP_NORM
    )
    expected = loop(model, rows, CLIP_NORM)
    largest = max(float(value.abs().max()) for value in expected.values())
    for name_, value in expected.items():
        assert (found.total[name_] - value).abs().max() < 1e-5 * largest, name_
    assert any(float(v.abs().max()) > 0 for n, v in expected.items() if n.startswith("text."))


@pytest.mark.parametrize("name", NAMES)
def test_captions_change_nothing_of_a_network_before_it_is_trained(name):
    """The start is that of an unconditional network: blocks add nothing of a caption."""
    model, drawn = a_model(name, stirred=False), generator(4)
    torch.nn.init.normal_(model.head.weight, generator=drawn)
    x, t = torch.randn((6, *SHAPE), generator=drawn), torch.rand(6, generator=drawn)
    assert torch.equal(model(x, t, captions(6)), model(x, t, captions(6, seed=9)))
    assert model(x, t, captions(6)).abs().max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_no_caption_is_the_same_however_it_is_said(name):
    model, drawn = a_model(name), generator(5)
    x, t = torch.randn((6, *SHAPE), generator=drawn), torch.rand(6, generator=drawn)
    full = captions(6, lengths=torch.full((6,), 3))
    without = model(x, t, full.dropped(torch.ones(6, dtype=torch.bool)))
    assert torch.allclose(model(x, t, None), without, atol=1e-6)
    assert (model(x, t, full) - without).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_what_lies_beyond_a_caption_is_not_read(name):
    model, drawn = a_model(name), generator(6)
    x, t = torch.randn((6, *SHAPE), generator=drawn), torch.rand(6, generator=drawn)
    told = captions(6, lengths=torch.full((6,), 3))
    other = TextCondition(told.tokens.clone(), told.pooled, told.mask)
    other.tokens[:, 3:] = 100.0
    assert torch.allclose(model(x, t, told), model(x, t, other), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_with_a_caption_does_not_change_others(name):
    model, drawn = a_model(name), generator(7)
    x, t = torch.randn((6, *SHAPE), generator=drawn), torch.rand(6, generator=drawn)
    told = captions(6)
    alone = model(x[2:3], t[2:3], told.rows(slice(2, 3)))
    assert torch.allclose(model(x, t, told)[2:3], alone, atol=1e-5)
