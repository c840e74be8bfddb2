"""Captions are encoded once into the private folder, go on after a kill, and are never shown."""

import json

import numpy as np
import pytest
import torch
from captions import write_clip
from federation import PLAN_TOML

import sites.train.captions as store
from ddm_fed.embedding import ClipEmbedder, text_spec
from ddm_fed.errors import DigestError, OptionError
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml
from sites.train.captions import encode_captions, wait_for_captions

CAPTIONS = (*tuple(f"zqpatient number {index % 9}" for index in range(20)), "")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.safetensors")


@pytest.fixture(scope="module")
def plan(encoder):
    spec = text_spec(encoder, 4).model_dump()
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in spec.items())
    section = f'width = 8\nconditioning = "text"\n[data.text]\n{lines}\n'
    return read_plan_toml(PLAN_TOML.replace("width = 8\n", section))


def images(captions=CAPTIONS):
    return Private(ImageSet(torch.zeros(len(captions), 1, 8, 8), None, captions=captions))


def values(found):
    told = found.reveal().condition(slice(None))
    return told.tokens, told.pooled, told.mask


def test_captions_are_encoded_and_kept(tmp_path, plan, encoder):
    said = []
    found = encode_captions(tmp_path, plan, images(), encoder, said.append)
    assert said[0] == "encoding 9 distinct captions"
    assert "9 captions have more than the 4 tokens" in said[1]
    tokens, pooled, mask = values(found)
    assert mask.sum(1).tolist() == [4] * 20 + [0]
    assert torch.equal(tokens[0], tokens[9])
    assert not torch.equal(pooled[0], pooled[1])
    again = encode_captions(tmp_path, plan, images(), None)  # no encoder is needed any more
    assert all(map(torch.equal, values(again), values(found)))
    waited = wait_for_captions(tmp_path, plan, images())
    assert all(map(torch.equal, values(waited), values(found)))
    assert found.reveal().digest() == images().reveal().digest()
    assert not any("zqpatient" in line for line in (*said, repr(found), repr(found.reveal())))


def test_run_that_was_killed_goes_on_with_the_same_values(tmp_path, plan, encoder, monkeypatch):
    monkeypatch.setattr(store, "BLOCK", 2)
    (tmp_path / "whole").mkdir()
    whole = encode_captions(tmp_path / "whole", plan, images(), encoder)
    states, seen = ClipEmbedder.states, []

    def killed(self, texts, tokens):
        seen.append(len(texts))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return states(self, texts, tokens)

    monkeypatch.setattr(ClipEmbedder, "states", killed)
    with pytest.raises(KeyboardInterrupt):
        encode_captions(tmp_path, plan, images(), encoder)
    with pytest.raises(OptionError, match="no --text-encoder"):
        encode_captions(tmp_path, plan, images(), None)
    found = encode_captions(tmp_path, plan, images(), encoder)
    assert sum(seen[3:]) == 9 - 4  # two blocks were done
    assert all(map(torch.equal, values(found), values(whole)))


def test_other_captions_are_encoded_anew(tmp_path, plan, encoder):
    encode_captions(tmp_path, plan, images(), encoder)
    other = images(("a boot", *CAPTIONS[1:]))
    with pytest.raises(OptionError, match="no --text-encoder"):
        encode_captions(tmp_path, plan, other, None)
    found = encode_captions(tmp_path, plan, other, encoder)
    assert values(found)[2].sum() > 0
    assert len(np.load(tmp_path / "captions" / "lengths.npy")) == 10


def test_another_encoder_is_refused_even_where_none_is_needed(tmp_path, plan, encoder):
    encode_captions(tmp_path, plan, images(), encoder)
    other = write_clip(tmp_path / "other.safetensors", seed=2)
    with pytest.raises(DigestError):
        encode_captions(tmp_path, plan, images(), other)


def test_text_encoder_for_a_plan_without_captions_is_refused(tmp_path, encoder):
    plain = Private(ImageSet(torch.zeros(2, 1, 8, 8), None))
    plan = read_plan_toml(PLAN_TOML)
    with pytest.raises(OptionError, match="the plan has no captions"):
        encode_captions(tmp_path, plan, plain, encoder)
    assert encode_captions(tmp_path, plan, plain, None) is plain
