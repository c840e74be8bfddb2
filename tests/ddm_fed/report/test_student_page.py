"""The report of a student: what it is, who taught it and how, and what is promised of it."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from federation import SITES, flip
from reports import (
    Page,
    draw_samples,
    edit,
    evaluate_samples,
    require_harmless,
    require_readable,
    tiles,
    write_real,
)
from students import make_student

from coordinator.ensembles.remove import remove
from ddm_fed.distillation.folder import WEIGHTS_FILE, verify_student
from ddm_fed.distillation.lessons import GivenImages
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.ensemble.staleness import Staleness
from ddm_fed.errors import DataError, StateError
from ddm_fed.privacy import submission_in_words
from ddm_fed.records import ExpertDesign
from ddm_fed.report import student_facts
from ddm_fed.report.ensemble_facts import gather
from ddm_fed.report.facts import Sources
from ddm_fed.report.model_card import model_card
from ddm_fed.report.student_facts import gather_student
from ddm_fed.report.student_page import student_page
from ddm_fed.report.student_summary import in_short
from ddm_fed.trust.published import read_seen

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(distilled, tmp_path_factory):
    """The verified student, samples of it, and their evaluation. Never change them."""
    base = tmp_path_factory.mktemp("student-report")
    verified = verify_student(distilled[1], distilled[0].root)
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


def line(facts, about: str):
    return next(each for each in in_short(facts) if each.about == about)


def test_page_of_the_same_facts_is_the_same_bytes(made, distilled):
    verified, base = made
    again = verify_student(distilled[1], distilled[0].root)
    facts = [gather_student(each, sources(base)) for each in (verified, again)]
    assert len({student_page(each) for each in facts}) == 1
    assert len({model_card(each, "other") for each in facts}) == 1


def test_page_says_what_it_is_who_taught_it_and_how(made):
    verified, base = made
    record, work = verified.record, verified.record.distillation
    text = require_harmless(student_page(gather_student(verified, sources(base)))).text
    weights = safetensors.numpy.load_file(verified.folder / WEIGHTS_FILE)
    assert f"{sum(value.size for value in weights.values()):,} parameters" in text
    assert str(record.design) in text
    for digest in (verified.sha256, verified.weights_sha256, record.ensemble_sha256, record.root):
        assert digest in text
    assert (
        f"24 samples of the ensemble, each drawn in 1 step, of the digest {work.images_sha256}"
        in text
    )
    assert "the expert that drew the sample" in text
    assert f"the weights of the expert of {work.start}" in text
    assert f"{work.gigaflops.total} GFLOP" in text
    for member, submission in zip(record.members, verified.submissions, strict=True):
        assert member.submission_sha256 in text
        assert submission.privacy.releases_epsilon in text
        assert f"Ledger of {member.site}" in text
        assert all(said in text for said in submission_in_words(submission))
    assert f"ddm-coord verify {verified.folder.name} --root {record.root}" in text
    for word in ("Shares", "By site", "router compare", "strategy None"):
        assert word not in text


def test_call_of_a_student_takes_as_much_as_its_training_was_counted_with(made):
    verified, _ = made
    facts, work = gather_student(verified, Sources()), verified.record.distillation
    seen = work.training.steps * work.training.batch_size
    assert 3 * seen * facts.cost.flops_per_image / 1e9 == pytest.approx(
        float(work.gigaflops.student), abs=0.001
    )
    assert facts.experts == (facts.cost,) * len(SITES)  # one network for all in this plan
    text = Page(student_page(facts)).text
    assert f"{3 * facts.cost.parameters:,}" in text
    assert f"{3 * facts.cost.flops_per_image / 1e9:.3g}" in text


def test_what_experts_of_a_package_that_is_missing_take_is_said_to_be_unknown(made, monkeypatch):
    verified, _ = made
    waves = ExpertDesign(architecture="waves==1.0:Waves")
    members = [
        replace(each, submission=each.submission.model_copy(update={"expert": waves}))
        for each in student_facts.members_of(verified)
    ]
    monkeypatch.setattr(student_facts, "members_of", lambda _: tuple(members))
    facts = gather_student(verified, Sources())
    assert facts.experts is None
    text = Page(student_page(facts)).text
    assert "is of a package that is not installed" in text
    assert "all 3 experts" not in text


def test_page_can_be_read_without_seeing_it(made):
    verified, base = made
    require_readable(Page(student_page(gather_student(verified, sources(base)))))


def test_page_holds_no_image_but_samples(made):
    verified, base = made
    page = Page(student_page(gather_student(verified, sources(base))))
    drawn = {image.tobytes() for image in np.load(base / "samples" / "samples.npz")["images"]}
    (shown,) = [tiles(sheet) for sheet in page.pictures()]
    assert len(shown) == 40
    assert shown <= drawn


def test_what_is_not_known_is_named_with_a_command(made):
    verified, base = made
    nothing, everything = (
        gather_student(verified, Sources()),
        gather_student(verified, sources(base)),
    )
    told = [[item.command.split()[:2] for item in each.unknown] for each in (nothing, everything)]
    verify, distill = ["ddm-coord", "verify"], ["ddm-coord", "distill"]
    assert told[1] == [verify, distill, ["ddm-site", "audit"]]
    assert told[0] == [
        *(verify, ["ddm-coord", "sample"], ["ddm-coord", "evaluate"], distill),
        ["ddm-site", "audit"],
    ]
    text = Page(student_page(nothing)).text
    assert all(item.command in text for item in nothing.unknown)


def test_command_of_the_page_makes_the_same_weights_again(made, distilled, run, stages, tmp_path):
    words = gather_student(made[0], Sources()).distill_command
    words = words.replace("ENSEMBLE", str(stages.ensemble)).replace("again", f"{tmp_path}/again")
    fed = distilled[0].copy(tmp_path / "fed", "consortium")  # its journal will name the student
    ended = run(*shlex.split(words), "--coordinator", fed.home.path, "--device", "cpu")
    assert ended.code == 0, ended.err
    again, first = (folder / WEIGHTS_FILE for folder in (tmp_path / "again", made[0].folder))
    assert again.read_bytes() == first.read_bytes()


# what samples and figures are of


def test_samples_of_another_student_are_refused(made, base):
    edit(base / "samples" / "samples.json", student_sha256="0" * 64)
    with pytest.raises(StateError, match="are of the student 0000000000000000…, and this student"):
        gather_student(made[0], sources(base))


def test_samples_of_the_ensemble_are_no_samples_of_its_student_nor_the_other_way(
    made, stages, tmp_path
):
    student, base = made
    ensemble = verify_ensemble(stages.ensemble, stages.admitted.root)
    drawn = draw_samples(ensemble, tmp_path / "drawn")
    with pytest.raises(StateError, match=f"are of the ensemble {ensemble.sha256[:16]}…, and this"):
        gather_student(student, Sources(samples=drawn))
    with pytest.raises(StateError, match=f"are of the student {student.sha256[:16]}…, and this"):
        gather(ensemble, Sources(samples=base / "samples"))


def test_evaluation_of_a_student_is_none_of_its_ensemble(made, stages):
    student, base = made
    ensemble = verify_ensemble(stages.ensemble, stages.admitted.root)
    with pytest.raises(StateError, match=f"measured the student {student.sha256[:16]}…, expected"):
        gather(ensemble, Sources(evaluation=base / "evaluation"))


@pytest.mark.parametrize("more", [{}, {"samples": None}])
def test_evaluation_of_another_student_is_refused(made, base, more):
    edit_measured(base, student_sha256="0" * 64)
    with pytest.raises(StateError, match="measured the student 0000000000000000…, expected the st"):
        gather_student(made[0], replace(sources(base), **more))


def test_evaluation_of_other_samples_is_refused(made, base):
    edit_measured(base, file_sha256="0" * 64)
    with pytest.raises(StateError, match="measured the samples of the digest 0000000000000000"):
        gather_student(made[0], sources(base))


def test_evaluation_that_names_the_ensemble_alone_counts_with_its_samples_only(made, base):
    edit_measured(base, student_sha256=None)  # as before evaluations named students
    assert gather_student(made[0], sources(base)).evaluation is not None
    with pytest.raises(StateError, match="does not say that it measured this student") as caught:
        gather_student(made[0], replace(sources(base), samples=None))
    assert "--samples" in caught.value.hint
    edit_measured(base, file_sha256="0" * 64)
    with pytest.raises(StateError, match="measured the samples of the digest"):
        gather_student(made[0], sources(base))
    edit_measured(base, ensemble_sha256="0" * 64)
    with pytest.raises(StateError, match="measured the ensemble 0000000000000000…, expected"):
        gather_student(made[0], sources(base))


def edit_measured(base: Path, **fields) -> None:
    file = base / "evaluation" / "evaluation.json"
    inputs = json.loads(file.read_text())["inputs"]
    edit(file, inputs=inputs | {"samples": inputs["samples"] | fields})


@pytest.mark.parametrize(
    "fields",
    [
        *({"count": count} for count in (61, "many", 0, -1, float("inf"), 10**400)),
        *({"notes": "no list"}, {"guidance": None}, {"guidance": 10**400}),
    ],
)
def test_damaged_summary_is_refused_by_name(made, base, fields):
    edit(base / "samples" / "samples.json", **fields)
    with pytest.raises(DataError, match=r"samples\.json is damaged"):
        gather_student(made[0], sources(base))


def test_latents_are_as_many_as_the_summary_says(made, base):
    """There are no images whose shape would say so."""
    archive = base / "samples" / "samples.npz"
    np.savez(archive, latents=np.zeros((3, 1, 2, 2), np.float32))
    edit(base / "samples" / "samples.json", count=50_000)
    with pytest.raises(DataError, match="`count` is 50000, and the samples are"):
        gather_student(made[0], Sources(samples=base / "samples"))
    np.savez(archive, latents=np.zeros((0, 1, 2, 2), np.float32))
    edit(base / "samples" / "samples.json", count=0)
    with pytest.raises(DataError, match="`count` is 0"):
        gather_student(made[0], Sources(samples=base / "samples"))


def test_figure_that_no_float_holds_is_damage_and_no_traceback(made, base):
    file = base / "evaluation" / "evaluation.json"
    results = json.loads(file.read_text())["results"]
    edit(file, results=results | {"class_mix": {"apart": 10**400}})
    with pytest.raises(DataError, match=r"evaluation\.json is damaged"):
        gather_student(made[0], sources(base))


# what holds of it


def test_student_is_held_against_newer_documents(made, distilled, tmp_path):
    verified, _ = made
    later = distilled[0].copy(tmp_path / "later", "consortium")
    facts = gather_student(verified, Sources(seen=read_seen(later.published, later.root)))
    assert line(facts, "Still current").state == "holds"
    newer = replace(facts, staleness=Staleness((), ("`a` has a newer submission, at entry 3",)))
    assert line(newer, "Still current").state == "look"
    remove(later.home, SITES[1], reason="consent withdrawn", delete_weights=False)
    with pytest.raises(StateError, match=f"is stale.*`{SITES[1]}` was removed"):
        gather_student(verified, Sources(seen=read_seen(later.published, later.root)))


def test_student_of_experts_without_noise_says_whose_images_it_may_remember(made):
    facts = gather_student(made[0], Sources())
    page, start = Page(student_page(facts)), made[0].record.distillation.start
    assert line(facts, "Privacy").state == "look"
    assert "Nothing but the ensemble was read to make it" in page.text
    assert f"it began with the weights of the expert of {start}" in page.text
    assert "The student has no epsilon of its own" in page.text
    assert "differential-privacy" not in model_card(facts, "other").decode()


def with_noise(facts):
    """Returns facts of a student all of whose members trained with noise."""
    members = tuple(
        replace(
            member,
            submission=member.submission.model_copy(
                update={"privacy": member.privacy.model_copy(update={"expert_is_private": True})}
            ),
        )
        for member in facts.members
    )
    return replace(facts, members=members)


def test_student_of_experts_with_noise_has_their_epsilon(made):
    facts = gather_student(made[0], Sources())
    private = with_noise(facts)
    text = Page(student_page(private)).text
    assert line(private, "Privacy").state == "holds"
    assert "the student has at most epsilon 2.0000 at delta 0.00001, for one image" in text
    assert "it began with the weights" not in text
    assert "differential-privacy" in model_card(private, "other").decode()


def test_student_of_given_images_says_that_nothing_is_promised_of_them(distilled, stages, tmp_path):
    fed = distilled[0].copy(tmp_path / "fed", "consortium")
    given = GivenImages(torch.zeros((9, 1, 8, 8)), None, "a" * 64)
    folder = make_student(fed, stages.ensemble, tmp_path / "student", given=given)
    facts = gather_student(verify_student(folder, fed.root), Sources())
    page = Page(student_page(facts))
    assert line(facts, "Privacy").text.startswith("NOT bounded: 9 given images")
    assert f"it learnt from 9 given images, of the digest {'a' * 16}…" in page.text
    assert f"9 images that were given, of the digest {'a' * 64}" in page.text
    assert "so it is no post-processing" in page.text
    assert "Nothing but the ensemble was read" not in page.text
    assert "the expert that the router takes the image to be of" in page.text
    assert "small ones may hardly be heard" in page.text
    assert "--data IMAGES.npz" in facts.distill_command
    assert "aaaa" in model_card(facts, "other").decode()
    private = with_noise(facts)
    for each in (facts, private):  # whatever its members promise
        assert line(each, "Privacy").state == "look"
        card, words = model_card(each, "other").decode(), Page(student_page(each)).text
        assert "differential-privacy" not in card
        assert "No images of sites were pooled" not in card
        assert "It learnt from 9 images that the coordinator had, too." in card
        for text in (card, words):
            assert "the student has at most" not in text
            assert "The student has no epsilon of its own" in text
            assert "What it learnt of the 9 given images has no bound" in text


# the command


def test_command_writes_page_and_card_and_nothing_of_an_altered_student(made, base, run, distilled):
    root, student = ("--root", distilled[0].root), base / "student"
    shutil.copytree(distilled[1], student)
    out, card = base / "report.html", base / "README.md"
    given = ("--samples", base / "samples", "--evaluation", base / "evaluation", "--card", card)
    ended = run("ddm-coord", "report", student, *root, "--out", out, *given)
    assert ended.code == 0, ended.err
    assert "Report on the student of test" in out.read_text()
    assert card.read_bytes().startswith(b"---\nlibrary_name: ddm-fed\n")
    assert "not known: whether its weights came of that ensemble" in ended.err
    out.unlink()
    flip(student / WEIGHTS_FILE, -1)
    ended = run("ddm-coord", "report", student, *root, "--out", out)
    assert ended.code == 1
    assert "error[DDM2" in ended.err
    assert not out.exists()


def test_command_has_no_router_of_a_student_to_judge(run, distilled, tmp_path):
    ended = run(
        *("ddm-coord", "report", distilled[1], "--root", distilled[0].root),
        *("--out", tmp_path / "r.html", "--router-samples", 5),
    )
    assert ended.code == 2
    assert "--router-samples 5: " in ended.err
    assert "is a student, which has no router" in ended.err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("where", ["--published", "--coordinator"])
def test_command_refuses_a_student_a_member_of_which_was_removed(where, run, distilled, tmp_path):
    later = distilled[0].copy(tmp_path / "later", "consortium")
    remove(later.home, SITES[1], reason="asked to", delete_weights=False)
    place = later.published if where == "--published" else later.home.path
    ended = run(
        *("ddm-coord", "report", distilled[1], "--root", later.root),
        *("--out", tmp_path / "r.html", where, place),
    )
    assert ended.code == 1
    assert "is stale" in ended.err
    assert not (tmp_path / "r.html").exists()
