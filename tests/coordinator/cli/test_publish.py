"""`ddm-coord publish`: a plan that no site could follow does not replace the one in force."""

import pytest
from federation import PLAN_TOML, SITES, create_federation

from ddm_fed.trust.published import PLAN_FILE

BASE = f"""[expert.base]
sha256 = "{"0" * 64}"

[training]
trainable = "PART"
"""


@pytest.mark.parametrize("part", ["last-9", "lora-64"])
def test_plan_with_a_part_that_its_network_has_not_is_not_published(run, tmp_path, part):
    fed = create_federation(tmp_path / "fed", sites=SITES[:1])
    before = (fed.published / PLAN_FILE).read_bytes()
    plan = tmp_path / "part.toml"
    plan.write_text(PLAN_TOML.replace("[training]\n", BASE.replace("PART", part)))
    ended = run("ddm-coord", "publish", plan, "--coordinator", fed.home.path)
    assert ended.code == 1, ended.err
    assert "hint: choose `trainable` =" in ended.err
    assert (fed.published / PLAN_FILE).read_bytes() == before
