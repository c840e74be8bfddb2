"""The report of an ensemble: it follows from what was verified, and is always the same."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation import SITES, flip
from reports import (
    COUNT,
    Page,
    draw_samples,
    edit,
    evaluate_samples,
    require_readable,
    tiles,
    write_real,
)

from coordinator.ensembles.remove import remove
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.errors import DataError, StateError
from ddm_fed.report.ensemble_facts import gather
from ddm_fed.report.ensemble_page import ensemble_page
from ddm_fed.report.facts import Sources
from ddm_fed.report.model_card import model_card
from ddm_fed.report.summary import in_short

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(stages, tmp_path_factory):
    """The verified ensemble, samples of it, real images and an evaluation. Never change them."""
    base = tmp_path_factory.mktemp("report")
    verified = verify_ensemble(stages.ensemble, stages.admitted.root)
    draw_samples(verified, base / "samples")
    write_real(base / "real.npz")
    evaluate_samples(base / "samples", base / "real.npz", base / "evaluation")
    return verified, base


@pytest.fixture
def base(made, tmp_path) -> Path:
    """A copy of samples and evaluation."""
    for name in ("samples", "evaluation"):
        shutil.copytree(made[1] / name, tmp_path / name)
    return tmp_path


def sources(base: Path, **more) -> Sources:
    return Sources(samples=base / "samples", evaluation=base / "evaluation", **more)


def test_page_of_the_same_facts_is_the_same_bytes(made, stages):
    verified, base = made
    again = verify_ensemble(stages.ensemble, stages.admitted.root)
    facts = [gather(each, sources(base, router_samples=20)) for each in (verified, again)]
    assert len({ensemble_page(each) for each in facts}) == 1
    assert len({model_card(each, "other") for each in facts}) == 1


def test_page_says_shares_privacy_and_provenance_of_every_site(made):
    verified, base = made
    facts = gather(verified, sources(base))
    page = Page(ensemble_page(facts))
    sites = np.load(base / "samples" / "samples.npz")["sites"]
    for place, bundle in enumerate(verified.bundles):
        count = int((sites == place).sum())
        assert f"{bundle.site}: the first {min(count, 10)} of the {count} samples" in page.text
        assert bundle.payload_sha256 in page.text
        assert f"{bundle.submission.privacy.releases_epsilon}" in page.text
    assert f"ddm-coord verify {verified.folder.name} --root {verified.trust.root}" in page.text
    assert verified.sha256 in page.text
    assert page.text.count("NOT bounded by it: expert, made without noise.") == 1  # said once
    assert "\\x" not in page.text  # what `printable` makes of an odd space


def test_page_can_be_read_without_seeing_it(made):
    verified, base = made
    page = Page(ensemble_page(gather(verified, sources(base, router_samples=20))))
    require_readable(page)


def test_page_holds_no_image_but_samples(made):
    verified, base = made
    page = Page(ensemble_page(gather(verified, sources(base))))
    drawn = {image.tobytes() for image in np.load(base / "samples" / "samples.npz")["images"]}
    assert (base / "evaluation" / "nearest.png").exists()  # real images, which evaluate shows
    shown = [tiles(sheet) for sheet in page.pictures()]
    assert len(shown) == 1 + len(SITES)
    assert all(sheet and sheet <= drawn for sheet in shown)
    assert sum(map(len, shown)) >= 10 * len(shown)  # a small site may draw fewer by chance


def test_what_is_not_known_is_named_with_a_command(made):
    verified, base = made
    nothing = gather(verified, Sources())
    assert {line.state for line in in_short(nothing)[3:]} == {"not known"}
    commands = " ".join(item.command for item in nothing.unknown)
    for word in ("verify", "sample", "evaluate", "router compare", "ddm-site audit"):
        assert word in commands
    everything = gather(verified, sources(base, router_samples=20))
    assert [item.command.split()[:2] for item in everything.unknown] == [
        ["ddm-coord", "verify"],  # nothing newer is at hand
        ["ddm-site", "audit"],
    ]
    assert all(item.command in Page(ensemble_page(nothing)).text for item in nothing.unknown)


def test_newer_log_is_held_against_the_ensemble(made, stages):
    verified, _ = made
    trust, log = stages.admitted.trust, stages.admitted.log
    facts = gather(verified, Sources(seen=(trust.chain, log)))
    assert next(line for line in in_short(facts) if line.about == "Still current").state == "holds"


def test_samples_of_another_ensemble_are_refused(made, base):
    edit(base / "samples" / "samples.json", ensemble_sha256="0" * 64)
    with pytest.raises(StateError, match="are of the ensemble 0000000000000000"):
        gather(made[0], sources(base))


def test_evaluation_of_other_samples_is_refused(made, base):
    verified, _ = made
    draw_samples(verified, base / "others", strategy="full")
    with pytest.raises(StateError, match="measured the samples of the digest"):
        gather(verified, replace(sources(base), samples=base / "others"))


def test_counts_that_are_not_those_of_the_samples_are_refused(made, base):
    edit(base / "samples" / "samples.json", site_counts=dict.fromkeys(SITES, COUNT // 3))
    with pytest.raises(DataError, match="`site_counts` are not those of the samples"):
        gather(made[0], sources(base))


def test_intended_shares_follow_from_releases_not_from_the_summary(made, base):
    verified, _ = made
    right = gather(verified, sources(base)).samples.intended
    edit(base / "samples" / "samples.json", intended_shares=dict.fromkeys(SITES, 1 / 3))
    assert gather(verified, sources(base)).samples.intended == right
    assert right == pytest.approx([member.share for member in gather(verified, Sources()).members])


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("samples/samples.json", {"count": "many"}),
        ("samples/samples.json", {"count": COUNT + 1}),
        ("samples/samples.json", {"strategy": "best"}),
        ("samples/samples.json", {"router": "<b>"}),
        ("samples/samples.json", {"notes": "no list"}),
        ("samples/samples.json", {"site_counts": [1, 2, 3]}),
        ("evaluation/evaluation.json", {"format": 1}),
        ("evaluation/evaluation.json", {"results": {"fidelity": 3}}),
        ("evaluation/evaluation.json", {"results": {"memorization": {"pixels": {}}}}),
        ("evaluation/evaluation.json", {"inputs": None}),
        ("evaluation/evaluation.json", {"left_out": []}),
    ],
)
def test_damaged_summary_is_refused_by_name(made, base, file, fields):
    edit(base / file, **fields)
    with pytest.raises(DataError, match=re.escape(Path(file).name)):
        gather(made[0], sources(base))


def test_samples_of_no_one_site_have_no_strips(made, base):
    verified, _ = made
    samples = draw_samples(verified, base / "full", strategy="full", attribution=True)
    facts = gather(verified, Sources(samples=samples))
    page = Page(ensemble_page(facts))
    assert len(page.pictures()) == 1
    assert "no sample is of one site" in page.text
    assert "mean part by the router" in page.text


def test_command_draws_the_very_samples_again(made, base, run, stages, monkeypatch):
    verified, _ = made
    words = gather(verified, sources(base)).samples.command.split()
    monkeypatch.chdir(base)
    shutil.copytree(stages.ensemble, base / "ensemble")
    shutil.move(base / "samples", base / "first")
    assert words[2] == "ensemble"
    ended = run(*words, "--device", "cpu")
    assert ended.code == 0, ended.err
    first, again = (base / name / "samples.npz" for name in ("first", "samples"))
    assert first.read_bytes() == again.read_bytes()


# the command


def test_command_writes_page_and_card_and_nothing_of_an_altered_ensemble(
    made, base, ensemble, run, stages
):
    root = ("--root", stages.admitted.root)
    out, card = base / "report.html", base / "README.md"
    ended = run("ddm-coord", "report", ensemble, *root, "--out", out, "--card", card)
    assert ended.code == 0, ended.err
    assert out.read_bytes().startswith(b"<!doctype html>")
    assert card.read_bytes().startswith(b"---\nlibrary_name: ddm-fed\n")
    assert "not known: " in ended.err
    out.unlink()
    flip(ensemble / "sites" / SITES[0] / "expert.safetensors", -1)
    ended = run("ddm-coord", "report", ensemble, *root, "--out", out)
    assert ended.code == 1
    assert "error[DDM2" in ended.err
    assert not out.exists()


def test_command_refuses_another_fingerprint(base, ensemble, run):
    pin = f"sha256:{'0' * 64}"
    ended = run("ddm-coord", "report", ensemble, "--root", pin, "--out", base / "r.html")
    assert ended.code == 1
    assert "error[DDM211]" in ended.err
    assert not (base / "r.html").exists()


def test_command_refuses_an_ensemble_a_member_of_which_was_removed(copy_of, stages, run, tmp_path):
    fed = copy_of("admitted")
    home = ("--coordinator", fed.path / "consortium")
    out = tmp_path / "without"
    assert run(
        *("ddm-coord", "remove", SITES[0], *home, "--reason", "asked to", "--out", out)
    ).code == 0  # fmt: skip
    ended = run("ddm-coord", "report", stages.ensemble, *home, "--out", tmp_path / "r.html")
    assert ended.code == 1
    assert "is stale" in ended.err
    assert not (tmp_path / "r.html").exists()


def test_command_refuses_an_ensemble_that_a_newer_published_folder_speaks_against(
    copy_of, stages, run, tmp_path
):
    fed = copy_of("admitted")
    remove(fed.home, SITES[0], reason="asked to", delete_weights=False)
    ended = run(
        *("ddm-coord", "report", stages.ensemble, "--root", fed.root),
        *("--published", fed.published, "--out", tmp_path / "r.html"),
    )
    assert ended.code == 1
    assert f"`{SITES[0]}` was removed" in ended.err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("words", "code", "found"),
    [
        (["--out", "notes.html"], 1, "--out notes.html: there is a file that this command did not"),
        (["--out", "link.html"], 1, "--out link.html: this is not a plain file"),
        (["--out", "nowhere/r.html"], 1, "--out nowhere/r.html: there is no folder"),
        (["--out", "r.html", "--card", "notes.html"], 1, "--card notes.html: there is a file"),
        (["--out", "r.html", "--pdf", "notes.html"], 1, "--pdf notes.html: there is a file"),
        (["--out", "r.html", "--license", "mit"], 2, "--license belongs to --card"),
        (["--out", "r.html", "--card", "c.md", "--license", "My own"], 2, "--license My own"),
    ],
)
def test_command_refuses_options_before_anything_is_read(
    words, code, found, run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.html").write_text("my own")
    (tmp_path / "link.html").symlink_to("notes.html")
    (tmp_path / "ensemble").mkdir()
    ended = run("ddm-coord", "report", "ensemble", "--root", f"sha256:{'0' * 64}", *words)
    assert ended.code == code
    assert found in ended.err
    assert (tmp_path / "notes.html").read_text() == "my own"
    assert not (tmp_path / "r.html").exists()
