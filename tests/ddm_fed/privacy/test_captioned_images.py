"""Captions belong to their images: in parts of a set, in its digest, and in what a unit shows."""

from decimal import Decimal

import numpy as np
import pytest
import torch

from ddm_fed.flows import ClassCondition, EncodedTexts, TextCondition
from ddm_fed.privacy import ImageSet, Randomness
from ddm_fed.records import TrainingSpec
from ddm_fed.training.batches import Batches
from ddm_fed.training.unit_rows import UnitDraws

TEXTS = ("a boot", "a coat", "", "a bag")


def encoded():
    count = np.arange(1, 4)
    tokens = np.broadcast_to(count[:, None, None], (3, 5, 4)).astype(np.float16)
    return EncodedTexts(["a boot", "a coat", "a bag"], tokens, count[:, None] / 2, count)


def captioned(texts=TEXTS, units=None):
    pixels = torch.arange(len(texts)).float()[:, None, None, None].expand(-1, 1, 4, 4) / 10
    table = encoded() if set(texts) <= set(TEXTS) else None
    return ImageSet(pixels.contiguous(), None, units=units, captions=texts, texts=table)


def test_units_keep_their_captions():
    images = captioned(units=torch.tensor([0, 1, 0, 2]))
    own = images.of_units(torch.tensor([0, 2]))
    assert own.captions == ("a boot", "", "a bag")
    assert own.condition(slice(None)).mask.sum(1).tolist() == [1, 0, 3]
    assert images.of_unit(1).captions == ("a coat",)


def test_digest_tells_captions_apart_and_repr_shows_none():
    plain = ImageSet(captioned().pixels, None)
    digests = {
        plain.digest(),
        captioned().digest(),
        captioned(("a boot", "a coat", "a bag", "")).digest(),
        captioned(("a boota coat", "", "", "a bag")).digest(),
        captioned(("a boot", "a", " coat", "a bag")).digest(),
    }
    assert len(digests) == 5
    assert "boot" not in repr(captioned())


def test_captions_and_images_are_equally_many():
    with pytest.raises(ValueError, match="2 captions are given for 3 images"):
        ImageSet(torch.zeros(3, 1, 4, 4), None, captions=("zqone", "zqtwo"))


def test_captions_that_were_not_encoded_are_refused_without_a_word_of_them():
    with pytest.raises(ValueError, match="have not been encoded"):
        captioned(("zqother", "a", "b", "c")).condition(slice(0, 1))


def test_condition_is_of_the_captions_or_else_of_the_classes():
    rows = torch.tensor([3, 0])
    told = captioned().condition(rows)
    assert isinstance(told, TextCondition)
    assert told.tokens[:, 0, 0].tolist() == [3, 1]
    assert told.labels.tolist() == [-1, -1]
    labelled = ImageSet(torch.zeros(4, 1, 4, 4), torch.arange(4))
    assert isinstance(labelled.condition(rows), ClassCondition)
    assert labelled.condition(rows).labels.tolist() == [3, 0]
    assert ImageSet(torch.zeros(4, 1, 4, 4), None).condition(rows) is None


def test_batch_has_the_captions_of_its_images_and_drops_some():
    spec = TrainingSpec(steps=1, batch_size=400, label_dropout=Decimal("0.5"))
    batch = Batches(captioned(), spec, conditional=True, seed=0).draw(0, slice(0, 400))
    which = (batch.x_0[:, 0, 0, 0] * 10).round().long()
    lengths = batch.condition.mask.sum(1)
    expected = torch.tensor([1, 2, 0, 3])[which]
    kept = lengths > 0
    assert torch.equal(lengths[kept], expected[kept])
    assert 0.4 < (~kept[expected > 0]).float().mean() < 0.6
    assert not batch.condition.pooled[~kept].any()


def test_unit_shows_its_own_captions_whoever_else_is_there():
    units = torch.tensor([0, 1, 0, 2])
    spec = TrainingSpec(steps=1, batch_size=4, label_dropout=Decimal("0.25"))
    secret = Randomness.for_tests(0)

    def shown(images, first, unit):
        draws = UnitDraws(
            images, spec, conditional=True, randomness=secret, draws=6, first_place=first
        )
        (block,) = draws.blocks(3, torch.tensor([unit]))
        return block

    images = captioned(units=units)
    assert len(shown(images, 0, 0)) == 6  # images, noise, times, and the three of a caption
    for unit in range(3):
        alone = shown(images.of_unit(unit), unit, 0)
        assert all(map(torch.equal, shown(images, 0, unit), alone))
