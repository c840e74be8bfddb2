"""The report of a site: what would leave, what it tells, and that the page itself never leaves."""

import itertools
import re
import shutil

import numpy as np
import pytest
import torch
from federation import SITES, Federation, random_images
from reports import Page, draw_samples, tiles

from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.errors import StateError
from ddm_fed.privacy import ImageSet, Private
from sites.outbox import stages as outbox
from sites.report.facts import SiteFacts, gather
from sites.report.neighbours import by_chance, find_neighbours
from sites.report.page import in_short, site_page
from sites.train.audit import AUDIT_FILE, AuditOptions, run_audit

pytestmark = pytest.mark.slow
SITE = SITES[0]


def facts_of(fed: Federation, data=None, samples=None) -> SiteFacts:
    return gather(fed.site(SITE), fed.look(SITE), data, samples)


@pytest.fixture(scope="module")
def shown(stages, tmp_path_factory) -> tuple[Federation, SiteFacts]:
    """A draft, and its facts beside private images, drawn once. Never change them."""
    path = tmp_path_factory.mktemp("report")
    fed = stages.drafted.copy(path / "drafted", "consortium", SITE)
    return fed, facts_of(fed, random_images(0))


def line(facts: SiteFacts, about: str):
    return next(line for line in in_short(facts) if line.about == about)


@pytest.mark.parametrize(
    ("stage", "stands"),
    [
        ("drafted", "It is a draft nobody reviewed, and nothing of it has left."),
        ("released", "It was released and may be on its way; it is not in the log yet."),
        ("admitted", "It was admitted on "),
    ],
)
def test_page_says_how_far_the_submission_is(copy_of, stage, stands):
    fed = copy_of(stage, SITE)
    page = Page(site_page(facts_of(fed)))
    assert stands in page.text
    folder = fed.site(SITE).drafts if stage == "drafted" else fed.site(SITE).released
    (bundle,) = outbox.find_bundles(folder)
    for file in bundle.glob("*.safetensors"):
        assert f"{file.stat().st_size:,}" in page.text


def test_reviewed_draft_is_called_so_and_a_report_reviews_nothing(copy_of):
    fed = copy_of("drafted", SITE)
    site_page(facts_of(fed))
    assert list(fed.site(SITE).reviews.iterdir()) == []
    reviewed = outbox.review(fed.site(SITE), fed.trust)
    page = Page(site_page(facts_of(fed)))
    assert "It is a draft that was reviewed" in page.text
    assert reviewed.egress.submission_sha256 in page.text


def test_page_shows_samples_of_the_expert_above_the_nearest_private_images(shown):
    (_, facts), data = shown, random_images(0)
    page = Page(site_page(facts))
    (sheet,) = page.pictures()
    assert "\\x" not in page.text
    own = {
        image.tobytes()
        for image in ((data.reveal().images[:, 0] + 1) * 127.5).round().byte().numpy()
    }
    above, below = tiles(sheet[:10]), tiles(sheet[9:])
    assert below <= own
    assert not above & own
    assert facts.neighbours.private == 24


def test_page_of_the_same_facts_is_the_same_bytes(shown):
    fed, facts = shown
    assert site_page(facts_of(fed, random_images(0))) == site_page(facts)


def test_other_images_than_those_trained_on_are_refused(copy_of):
    with pytest.raises(StateError, match="trained on other images"):
        facts_of(copy_of("drafted", SITE), random_images(1))


def test_given_samples_are_held_against_private_images(copy_of, stages, tmp_path):
    verified = verify_ensemble(stages.ensemble, stages.admitted.root)
    samples = draw_samples(verified, tmp_path / "samples")
    facts = facts_of(copy_of("admitted", SITE), random_images(0), samples)
    assert verified.sha256[:16] in facts.neighbours.source
    assert len(Page(site_page(facts)).pictures()) == 1


def test_copies_stand_out():
    data, generator = random_images(3, count=80), torch.Generator().manual_seed(9)
    pixels = data.reveal().images.flatten(1).numpy()
    moved = pixels + 0.01 * torch.randn(pixels.shape, generator=generator).numpy()
    fresh = random_images(4, count=80).reveal().images.flatten(1).numpy()
    copied, honest = (find_neighbours(each, data, "samples") for each in (moved, fresh))
    assert copied.stands_out
    assert not honest.stands_out
    assert max(copied.ratios) < 0.1 < min(honest.ratios)


def test_how_often_chance_makes_so_many_is_that_of_all_orders():
    images, samples = 4, 3
    orders = list(itertools.permutations("i" * images + "s" * samples))
    for fewest, hits in itertools.product(range(1, images + 1), range(samples + 1)):
        before = [
            order[: [at for at, kind in enumerate(order) if kind == "i"][fewest - 1]].count("s")
            for order in orders
        ]
        share = sum(count >= hits for count in before) / len(orders)
        assert by_chance(hits, samples, fewest, images) == pytest.approx(share)


def test_images_among_themselves_are_not_near_to_themselves():
    data = random_images(3, count=40)
    found = find_neighbours(data.reveal().images.flatten(1).numpy(), data, "samples")
    assert found.near.value == 1
    assert max(found.ratios) == 0


def test_nearest_image_is_that_of_a_plain_search():
    data = random_images(3, count=3000)  # more than a block
    samples = random_images(4, count=20).reveal().images.flatten(1).numpy()
    found = find_neighbours(samples, data, "samples")
    pixels = data.reveal().images.flatten(1).numpy()
    distance = np.linalg.norm(samples[:, None].astype(float) - pixels[None].astype(float), axis=2)
    first = np.argsort(distance.min(1), kind="stable")[:12]
    expected = ((pixels[distance.argmin(1)[first]] + 1) * 127.5).round().astype(np.uint8)
    np.testing.assert_array_equal(found.images.reshape(12, -1), expected)


def test_few_images_say_nothing_of_what_is_near():
    data = Private(ImageSet(torch.zeros(19, 1, 8, 8), None))
    assert find_neighbours(np.zeros((3, 64), np.float32), data, "samples") is None


def test_audit_of_what_would_leave_is_shown_and_one_of_other_files_is_called_stale(copy_of):
    fed, data = copy_of("drafted", SITE), random_images(0)
    assert line(facts_of(fed), "Attacks").text == "No audit was run under this plan."
    controls = AuditOptions(controls=random_images(7))
    run_audit(fed.site(SITE), fed.trust, data, controls)
    facts = facts_of(fed)
    page = Page(site_page(facts))
    assert facts.audit_is_current
    assert "A threshold on the denoising loss" in page.text
    assert "noise of the release: location" in page.text
    file = fed.site(SITE).work(fed.trust.plan_sha256) / AUDIT_FILE
    other = re.sub('("expert.safetensors": ")[0-9a-f]{8}', r"\g<1>00000000", file.read_text())
    file.write_text(other)
    stale = facts_of(fed)
    assert not stale.audit_is_current
    assert line(stale, "Attacks").state == "look"
    assert "These results are of other files than those here" in Page(site_page(stale)).text


def test_cut_ledger_is_said_on_the_page(copy_of):
    fed = copy_of("admitted", SITE)
    for file in (fed.site(SITE).path / "ledger.jsonl", fed.site(SITE).keys / "ledger.jsonl"):
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:1]))
    facts = facts_of(fed)
    assert line(facts, "Spent so far").state == "look"
    assert "does not go on from" in Page(site_page(facts)).text


def test_page_has_a_banner_a_place_to_sign_and_is_read_without_seeing_it(shown):
    page = Page(site_page(shown[1]))
    assert page.text.strip().startswith(f"Private report of {SITE}")
    assert f"PRIVATE: this page must not leave {SITE}." in page.text
    assert "Signature" in page.text
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attrs["alt"] for attrs in page.all("img"))


# the command


def test_command_writes_a_page_that_only_its_owner_reads(copy_of, run, tmp_path):
    fed = copy_of("drafted", SITE)
    words = ("ddm-site", "report", "--site", fed.path / SITE, "--plan", fed.published)
    assert run(*words).code == 0
    page = fed.site(SITE).work(fed.trust.plan_sha256) / "report.html"
    assert page.stat().st_mode & 0o777 == 0o600
    open_to_all = tmp_path / "page.html"
    open_to_all.write_bytes(page.read_bytes())
    open_to_all.chmod(0o644)
    ended = run(*words, "--out", open_to_all)
    assert ended.code == 0
    assert open_to_all.stat().st_mode & 0o777 == 0o600
    assert "It must not leave this site" in ended.err


@pytest.mark.parametrize(
    "place",
    [
        "hospital-a/outbox/released/page.html",
        "hospital-a/outbox/draft/page.html",
        "hospital-a/outbox/page.html",
        "consortium/published/page.html",
        "consortium/inbox/page.html",
        "link/page.html",
        "ensemble/page.html",
    ],
)
@pytest.mark.parametrize("option", ["--out", "--pdf"])
def test_command_writes_no_private_page_where_others_read(copy_of, run, stages, place, option):
    fed = copy_of("released", SITE)
    (fed.path / "link").symlink_to(fed.path / SITE / "outbox" / "released")
    (fed.path / "ensemble").mkdir()
    shutil.copy(stages.ensemble / "plan.dsse.json", fed.path / "ensemble")
    target = fed.path / place
    ended = run(
        *("ddm-site", "report", "--site", fed.path / SITE, "--plan", fed.published),
        *(option, target),
    )
    assert ended.code == 1
    assert f"{option} {target}: the page holds private images" in ended.err
    assert not list(fed.path.rglob("page.html"))
    assert not (fed.site(SITE).work(fed.trust.plan_sha256) / "report.html").exists()


def test_report_in_the_private_folder_is_not_sent(copy_of, run):
    fed = copy_of("released", SITE)
    words = ("--site", fed.path / SITE, "--plan", fed.published)
    assert run("ddm-site", "report", *words).code == 0
    page = (fed.site(SITE).work(fed.trust.plan_sha256) / "report.html").read_bytes()
    assert run("ddm-site", "submit", *words, "--to", fed.inbox).code == 0
    arrived = [path.read_bytes() for path in fed.inbox.rglob("*") if path.is_file()]
    assert arrived
    assert page not in arrived


def test_command_refuses_images_that_nobody_trained_on(copy_of, run, tmp_path):
    fed = copy_of("drafted", SITE)
    np.savez(tmp_path / "images.npz", images=np.zeros((20, 8, 8), np.uint8))
    ended = run(
        *("ddm-site", "report", "--site", fed.path / SITE, "--plan", fed.published),
        *("--data", tmp_path / "images.npz", "--out", tmp_path / "page.html"),
    )
    assert ended.code == 1
    assert "error[DDM104]" in ended.err
    assert not (tmp_path / "page.html").exists()


def test_samples_without_images_are_a_wrong_option(copy_of, run, tmp_path):
    fed = copy_of("drafted", SITE)
    ended = run(
        *("ddm-site", "report", "--site", fed.path / SITE, "--plan", fed.published),
        *("--samples", tmp_path),
    )
    assert ended.code == 2
    assert "--samples belongs to --data" in ended.err
