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
from reports import Page, draw_samples, evaluate_samples, write_real

from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit_arrivals
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml
from ddm_fed.report.ensemble_page import ensemble_page
from ddm_fed.report.facts import Sources, gather
from ddm_fed.report.model_card import model_card
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
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section"),
    *("nav", "aside", "h1", "h2", "h3", "p", "ul", "ol", "li", "dl", "dt", "dd", "a", "code"),
    *("pre", "strong", "em", "table", "caption", "thead", "tbody", "tr", "th", "td", "div"),
    *("span", "figure", "figcaption", "img"),
}


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
    samples = draw_samples(verified, base / "samples")
    evaluate_samples(samples, write_real(base / "real.npz"), base / "evaluation")
    edit(samples / "samples.json", notes=[MARKUP, MARKDOWN, f"`{MARKUP}`"])
    evaluation = base / "evaluation" / "evaluation.json"
    found = json.loads(evaluation.read_text())
    edit(
        evaluation,
        left_out=found["left_out"] | {MARKUP: MARKDOWN, "`a`": f"`{MARKUP}"},
        protocol=found["protocol"] | {MARKUP: MARKUP, "more": {MARKDOWN: MARKUP}},
    )
    return fed, verified, Sources(samples=samples, evaluation=base / "evaluation")


def edit(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def require_harmless(data: bytes) -> Page:
    """Returns the page, if it has no element or attribute that we did not write."""
    page = Page(data)
    assert {tag for tag, _ in page.elements} <= ALLOWED
    assert len(page.all("style")) == len(page.all("title")) == 1
    for tag, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on") or name == "style"], tag
        source = attrs.get("src") or "data:image/"
        assert source.startswith("data:image/")
        assert (attrs.get("href") or "#").startswith("#")
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    return page


def test_markup_in_plan_samples_and_figures_is_text_on_the_page_of_an_ensemble(hostile):
    _, verified, sources = hostile
    page = require_harmless(ensemble_page(gather(verified, sources)))
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
    text = model_card(gather(verified, sources), "apache-2.0").decode()
    card = ModelCard(text)
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
    outside = re.sub(r"```.*?```|`[^`\n]*`", "", card.text, flags=re.DOTALL)
    assert "<" not in outside
    assert not re.search(r"(?<!\\)[\[\]]", outside)  # no link
    columns = {}
    for row in (line for line in outside.splitlines() if line.startswith("|")):
        columns.setdefault(row.split("|")[1].strip(), len(re.findall(r"(?<!\\)\|", row)))
    assert columns["FID"] == columns["figure"]


def test_pictures_of_private_images_are_in_no_page_of_the_ensemble(hostile):
    fed, verified, sources = hostile
    own = ((labelled(0).reveal().images[:, 0] + 1) * 127.5).round().byte().numpy()
    data = ensemble_page(gather(verified, sources))
    seen = np.concatenate([sheet.ravel() for sheet in Page(data).pictures()]).tobytes()
    assert not [image for image in own if image[0].tobytes() in seen]
    site = Page(site_page(gather_site(fed.site(SITE), fed.look(SITE), labelled(0), None)))
    rows = np.concatenate([sheet.ravel() for sheet in site.pictures()]).tobytes()
    assert [image for image in own if image[0].tobytes() in rows]  # the search can find them
