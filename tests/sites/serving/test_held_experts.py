"""An expert that stays: what the plan, the site's policy and the rules of a bundle ask for."""

import json
from pathlib import Path

import pytest
from federation import (
    PLAN_TOML,
    Federation,
    Json,
    a_plan,
    create_federation,
    forge_manifest,
    random_images,
    train,
)
from held import A, keep_weights

from ddm_fed.bundle.verify import EXPERT_FILE, ROUTER_FILE, verify_bundle
from ddm_fed.errors import BudgetError, FileSetError, PlanError, PlanMismatchError, StateError
from ddm_fed.privacy import describe_held
from ddm_fed.records import now, read_plan_toml
from sites.outbox import stages
from sites.outbox.review_page import PAGE_FILE
from sites.serving.allowance import Allowance
from sites.serving.expert import open_held_expert

TEXT = f"""conditioning = "text"
[data.text]
sha256 = "{"0" * 64}"
context = 77
tokens = 16
width = 64
pooled = 24
"""
REMOTE = "[expert.remote]\nevaluations = 100\n"


def with_remote(text: str = PLAN_TOML, remote: str = REMOTE) -> str:
    return text.replace("[training]", f"{remote}\n[training]", 1)


@pytest.fixture
def held(tmp_path: Path) -> Federation:
    """One site that keeps its weights, under a plan that lets it."""
    fed = create_federation(tmp_path, read_plan_toml(with_remote()), sites=(A,))
    keep_weights(fed.site(A))
    return fed


def test_plan_without_the_table_says_nothing_of_it_so_its_digest_stays():
    assert b"remote" not in a_plan().to_json()
    plan = read_plan_toml(with_remote())
    assert json.loads(plan.to_json())["expert"]["remote"] == {
        "batch_size": 256,
        "evaluations": 100,
    }
    assert type(plan).from_json(plan.to_json(), what="the plan") == plan


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (with_remote(remote="[expert.remote]\n"), "evaluations"),
        (with_remote(remote="[expert.remote]\nevaluations = 0\n"), "evaluations"),
        (with_remote().replace("DiT-Nano/2", "mixture"), "none can stay"),
        (
            with_remote(remote=f"{REMOTE}batch_size = 4097\n").replace("8\n", "64\n"),
            "at most 67108864",
        ),
        (
            with_remote().replace("width = 8\n", f"width = 8\n{TEXT}"),
            "captions do not go together",
        ),
    ],
    ids=["no-allowance", "nothing-allowed", "mixtures-only", "too-much-at-once", "captions"],
)
def test_plan_that_means_nothing_is_refused(text: str, reason: str):
    with pytest.raises(PlanError, match=reason):
        read_plan_toml(text)


def test_site_that_keeps_its_weights_refuses_plans_that_ask_for_them(tmp_path: Path):
    fed = create_federation(tmp_path, sites=(A,))
    site = keep_weights(fed.site(A))
    with pytest.raises(BudgetError, match="keep_weights"):
        train(site, fed.trust, random_images(0))
    assert not list((site.path / "private").glob("*/expert.safetensors"))


@pytest.mark.parametrize("images", [1, 256])
def test_question_takes_as_much_of_the_disk_as_the_documentation_says(tmp_path: Path, images: int):
    allowance = Allowance(tmp_path / "served.jsonl", 10**7)
    allowance.spent = 10**6 if images > 1 else 0
    for name in range(3):
        question = f"{name:064x}"
        allowance.charge(question, images)
        allowance.answered(question, question)
    assert 290 <= (tmp_path / "served.jsonl").stat().st_size / 3 <= 300


def test_review_and_bundle_hold_no_weights_and_say_what_answers_tell(held: Federation):
    site = held.site(A)
    draft = train(site, held.trust, random_images(0))
    assert {path.name for path in draft.iterdir()} == {ROUTER_FILE, "submission.dsse.json"}
    seen = stages.review(site, held.trust)
    weights = open_after_release(held)
    assert seen.egress.held_expert == weights
    assert describe_held(expert_is_private=False).startswith("NOT bounded")
    page = (site.reviews / seen.bundle.payload_sha256 / PAGE_FILE).read_text()
    assert "each answer shows the influence of training images" in page


def open_after_release(held: Federation) -> str:
    site = held.site(A)
    with pytest.raises(StateError, match="no bundle that was released"):
        open_held_expert(site, held.trust)
    stages.release(site, held.trust)
    return open_held_expert(site, held.trust).sha256


def test_expert_that_stays_is_refused_where_the_plan_does_not_let_it(tmp_path: Path):
    fed = create_federation(tmp_path, sites=(A,))
    draft = train(fed.site(A), fed.trust, random_images(0))
    (draft / EXPERT_FILE).unlink()

    def edit(predicate: Json) -> None:
        (kept,) = (item for item in predicate["files"] if item["name"] == ROUTER_FILE)
        predicate.update(files=[kept], held_expert="ab" * 32)

    forge_manifest(draft, edit, fed.key(A))
    with pytest.raises(PlanMismatchError, match="the plan does not allow"):
        verify_bundle(draft, fed.trust, now(), require=("site",))


def test_bundle_that_says_its_expert_stays_and_brings_one_is_refused(held: Federation):
    site = held.site(A)
    draft = train(site, held.trust, random_images(0))
    (work,) = (site.path / "private").glob("*/expert.safetensors")
    (draft / EXPERT_FILE).write_bytes(work.read_bytes())
    with pytest.raises(FileSetError):
        verify_bundle(draft, held.trust, now(), require=("site",))
