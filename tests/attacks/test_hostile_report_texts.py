"""Texts that are markup: a coordinator's plan, samples and figures of another, a folder's name.

Whoever writes them wants a page that people trust to run, load or hide something.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from federation import PLAN_TOML, create_federation, random_images, train
from huggingface_hub import ModelCard
from reports import (
    Page,
    draw_samples,
    edit,
    evaluate_samples,
    require_harmless,
    write_real,
)
from students import make_student

from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit_arrivals
from ddm_fed.distillation.folder import verify_student
from ddm_fed.distillation.opening import Sampled
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml
from ddm_fed.report.ensemble_facts import gather
from ddm_fed.report.ensemble_page import ensemble_page
from ddm_fed.report.facts import Sources
from ddm_fed.report.model_card import model_card
from ddm_fed.report.student_facts import gather_student
from ddm_fed.report.student_page import student_page
from sites.outbox import stages
from sites.report.facts import gather as gather_site
from sites.report.page import site_page
from sites.train.audit import AUDIT_FILE, AuditOptions, run_audit
from sites.transport import submit
from sites.transport.base import FolderTransport

pytestmark = pytest.mark.slow
SITE = "hospital-a"
MARKUP = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>"
MARKDOWN = "[here](http://evil.example) | --- | <b onclick=x> ![i](http://evil.example/i.png)"


def labelled(seed: int) -> Private[ImageSet]:
    images = random_images(seed, count=40).reveal().images
    return Private(ImageSet(images, torch.arange(40) % 2))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A federation whose plan, samples and figures are full of markup; what reports are made of."""
    base = tmp_path_factory.mktemp("hostile")
    names = ", ".join(json.dumps(text) for text in (MARKUP[:60], MARKDOWN[:60]))
    plan = PLAN_TOML.replace("width = 8", f'width = 8\nconditioning = "class"\nclasses = [{names}]')
    plan = f"description = {json.dumps(f'{MARKUP} {MARKDOWN}')}\n{plan}"
    fed = create_federation(base / "fed", read_plan_toml(plan), sites=(SITE,))
    train(fed.site(SITE), fed.trust, labelled(0))
    stages.review(fed.site(SITE), fed.trust)
    stages.release(fed.site(SITE), fed.trust)
    submit.submit(fed.site(SITE), fed.trust, FolderTransport(fed.inbox))
    admit_arrivals(fed.home, fed.trust)
    fed.look(SITE)
    assemble(fed.home, base / "ensemble", router=None, without=())
    folder = base / MARKUP.replace("/", "")  # what a folder may be called
    shutil.move(base / "ensemble", folder)
    verified = verify_ensemble(folder, fed.root)
    write_real(base / "real.npz")
    return fed, verified, sources_full_of_markup(verified, base / "of-ensemble", base)


@pytest.fixture(scope="module")
def hostile_student(hostile, tmp_path_factory):
    """A student of it in such a folder, and samples and figures of the student, as hostile."""
    fed, verified, _ = hostile
    base = tmp_path_factory.mktemp("hostile-student")
    folder = make_student(fed, verified.folder, base / MARKUP.replace("/", ""))
    student = verify_student(folder, fed.root)
    return student, sources_full_of_markup(student, base / "made", verified.folder.parent)


def sources_full_of_markup(verified: Sampled, made: Path, base: Path) -> Sources:
    samples = draw_samples(verified, made / "samples")
    evaluate_samples(samples, base / "real.npz", made / "evaluation")
    edit(samples / "samples.json", notes=[MARKUP, MARKDOWN, f"`{MARKUP}`"])
    evaluation = made / "evaluation" / "evaluation.json"
    found = json.loads(evaluation.read_text())
    edit(
        evaluation,
        left_out=found["left_out"] | {MARKUP: MARKDOWN, "`a`": f"`{MARKUP}"},
        protocol=found["protocol"] | {MARKUP: MARKUP, "more": {MARKDOWN: MARKUP}},
    )
    return Sources(samples=samples, evaluation=made / "evaluation")


def test_markup_in_plan_samples_and_figures_is_text_on_the_page_of_an_ensemble(hostile):
    _, verified, sources = hostile
    page = require_harmless(ensemble_page(gather(verified, sources)))
    assert page.text.count(MARKUP) >= 4
    assert MARKDOWN in page.text


def test_markup_in_plan_samples_and_figures_is_text_on_the_page_of_a_student(hostile_student):
    page = require_harmless(student_page(gather_student(*hostile_student)))
    assert page.text.count(MARKUP) >= 4
    assert MARKDOWN in page.text


def test_markup_in_plan_and_audit_is_text_on_the_page_of_a_site(hostile):
    fed, _, _ = hostile
    work = fed.site(SITE).work(fed.trust.plan_sha256)
    run_audit(fed.site(SITE), fed.trust, labelled(0), AuditOptions())
    edit(work / AUDIT_FILE, notes=[MARKUP], sentences=[f"`{MARKUP}`"])
    facts = gather_site(fed.site(SITE), fed.look(SITE), labelled(0), None)
    page = require_harmless(site_page(facts))
    assert page.text.count(MARKUP) >= 3


def test_markup_in_the_plan_is_text_in_the_model_card(hostile):
    _, verified, sources = hostile
    card = require_harmless_card(model_card(gather(verified, sources), "apache-2.0"))
    assert card.data.to_dict() == {
        "library_name": "ddm-fed",
        "license": "apache-2.0",
        "pipeline_tag": "unconditional-image-generation",
        "tags": [
            "ddm-fed",
            "diffusion",
            "flow-matching",
            "mixture-of-experts",
            "federated-learning",
        ],
    }


def test_markup_in_the_plan_is_text_in_the_model_card_of_a_student(hostile_student):
    card = require_harmless_card(model_card(gather_student(*hostile_student), "apache-2.0"))
    assert card.data.to_dict() == {
        "library_name": "ddm-fed",
        "license": "apache-2.0",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["ddm-fed", "diffusion", "flow-matching", "distillation", "federated-learning"],
    }


def require_harmless_card(data: bytes) -> ModelCard:
    """Returns the card, if nothing in it is a link, HTML, or a row with a cell too many."""
    card = ModelCard(data.decode())
    outside = re.sub(r"```.*?```|`[^`\n]*`", "", card.text, flags=re.DOTALL)
    assert "<" not in outside
    assert not re.search(r"(?<!\\)[\[\]]", outside)  # no link
    columns = {}
    for row in (line for line in outside.splitlines() if line.startswith("|")):
        columns.setdefault(row.split("|")[1].strip(), len(re.findall(r"(?<!\\)\|", row)))
    assert columns["FID"] == columns["figure"]
    return card


def test_pictures_of_private_images_are_in_no_page_of_the_ensemble(hostile):
    fed, verified, sources = hostile
    own = ((labelled(0).reveal().images[:, 0] + 1) * 127.5).round().byte().numpy()
    data = ensemble_page(gather(verified, sources))
    seen = np.concatenate([sheet.ravel() for sheet in Page(data).pictures()]).tobytes()
    assert not [image for image in own if image[0].tobytes() in seen]
    site = Page(site_page(gather_site(fed.site(SITE), fed.look(SITE), labelled(0), None)))
    rows = np.concatenate([sheet.ravel() for sheet in site.pictures()]).tobytes()
    assert [image for image in own if image[0].tobytes() in rows]  # the search can find them
