"""Plans with captions: what they may say, and that other plans are what they were."""

import re

import pytest
from federation import PLAN_TOML

from ddm_fed.errors import PlanError
from ddm_fed.records import canonical_json, read_plan_toml

TEXT = f"""conditioning = "text"
[data.text]
sha256 = "{"0" * 64}"
context = 77
tokens = 16
width = 64
pooled = 24
"""


def plan_with(data: str, **changed: str):
    text = PLAN_TOML.replace("width = 8\n", f"width = 8\n{data}")
    for old, new in changed.values():
        assert old in text
        text = text.replace(old, new)
    return read_plan_toml(text)


def test_plan_of_captions_says_what_networks_are_given():
    plan = plan_with(TEXT)
    assert plan.data.conditional
    assert plan.data.text.model_dump(exclude={"sha256"}) == {
        "encoder": "clip",
        "context": 77,
        "tokens": 16,
        "width": 64,
        "pooled": 24,
    }


def test_plan_without_captions_is_signed_as_it_was():
    assert b'"text"' not in canonical_json(read_plan_toml(PLAN_TOML).model_dump(mode="json"))


@pytest.mark.parametrize(
    ("data", "changed", "wanted"),
    [
        ('conditioning = "text"\n', None, r"`\[data.text\]` is needed"),
        (TEXT.partition("\n")[2], None, r"`\[data.text\]` is needed"),
        (TEXT.replace("tokens = 16", "tokens = 78"), None, "`tokens` 78 exceeds"),
        (TEXT.replace('"text"', '"text"\nclasses = ["a"]'), None, "`classes` is needed"),
        (TEXT.replace("[data.text]", '[data.text]\nencoder = "bert"'), None, "encoder"),
        (TEXT, ("DiT-Nano/2", "Conv-Nano/2"), "cannot read captions: choose DiT or MMDiT"),
        (TEXT, ("DiT-Nano/2", "UNet-Nano"), "cannot read captions: choose DiT or MMDiT"),
        (TEXT, ("DiT-Nano/2", "mixture+Conv-Nano/2"), "cannot read captions"),
        (TEXT, ("steps = 3", "steps = 3\nlabel_dropout = 0"), "never leaves a caption out"),
    ],
)
def test_plan_of_captions_that_cannot_be_is_refused(data, changed, wanted):
    with pytest.raises(PlanError) as error:
        plan_with(data, **({} if changed is None else {"line": changed}))
    assert re.search(wanted, f"{error.value} {error.value.details}")
