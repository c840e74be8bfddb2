"""`ddm-coord evaluate`: what it measures, what it leaves out, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
import typer
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from ddm_fed.commands.evaluate import evaluate as command
from ddm_fed.errors import DataError, DdmFedError, OptionError, StateError
from ddm_fed.evaluation import Extractor, weights_digest
from ddm_fed.evaluation.report import EvaluateOptions, evaluate
from ddm_fed.evaluation.table import rows_of

pytestmark = pytest.mark.slow

QUICK = EvaluateOptions(steps=15)
SHARES = {"hospital-a": 0.5, "hospital-b": 0.3, "hospital-c": 0.2}


@pytest.fixture(scope="module")
def digits():
    bundled = load_digits()
    return (bundled.images * 255 / 16).round().astype(np.uint8), bundled.target


@pytest.fixture
def inputs(digits, tmp_path):
    """A folder of 300 "samples", real digits with noise, and a MedMNIST file of other digits."""
    images, labels = digits
    noise = np.random.default_rng(0).integers(-30, 31, size=(300, 8, 8))
    drawn = (images[:300] + noise).clip(0, 255).astype(np.uint8)[:, None]
    folder = tmp_path / "samples"
    folder.mkdir()
    np.savez(folder / "samples.npz", images=drawn, labels=labels[:300])
    summary = {
        "ensemble_sha256": "ab" * 32,
        "options_sha256": "cd" * 32,
        "intended_shares": SHARES,
        "intended_shares_of_labels": SHARES,
        "site_counts": {"hospital-a": 150, "hospital-b": 90, "hospital-c": 60},
    }
    (folder / "samples.json").write_text(json.dumps(summary))
    np.savez(
        tmp_path / "digits.npz",
        train_images=images[300:1000],
        train_labels=labels[300:1000, None],
        test_images=images[1000:1400],
        test_labels=labels[1000:1400, None],
    )
    return tmp_path


def run(inputs, options=QUICK, *, out="evaluation", train="digits.npz", real="digits.npz"):
    return evaluate(
        inputs / "samples",
        inputs / real,
        inputs / out,
        options,
        train=None if train is None else inputs / train,
    )


def change_summary(inputs, **changes):
    file = inputs / "samples" / "samples.json"
    summary = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in summary.items() if v is not None}))


def test_evaluation_with_everything_measures_everything(inputs):
    report = run(inputs)
    found = report["results"]
    assert report["left_out"] == {}
    assert set(found) == {
        *("shares", "classes", "class_mix", "agreement", "fidelity", "baseline", "two_sample"),
        *("tstr", "memorization"),
    }
    assert found["shares"]["error"] == pytest.approx(0)
    assert found["shares"]["samples"] == 300
    # real images are those of the samples' classes, in their proportion
    real = found["class_mix"]["real"]
    assert 300 <= real <= 400
    assert found["class_mix"]["samples"] == 300
    assert (found["fidelity"]["drawn"], found["fidelity"]["real"]) == (300, real)
    assert (found["baseline"]["drawn"], found["baseline"]["real"]) == (300, real)
    assert found["tstr"]["samples"]["trained_on"] == found["tstr"]["real"]["trained_on"] == 300
    assert found["tstr"]["real"]["accuracy"]["total"] == 400
    assert found["memorization"]["pixels"]["compared"] == 400
    assert sum(found["classes"]["samples"]) == 300
    extractor = report["protocol"]["extractor"]
    assert (extractor["name"], len(extractor["sha256"]), extractor["width"]) == (
        "classifier",
        64,
        64,
    )
    assert report["inputs"]["samples"]["ensemble_sha256"] == "ab" * 32
    out = inputs / "evaluation"
    assert json.loads((out / "evaluation.json").read_text()) == report
    for name in ("counts.png", "nearest.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_evaluation_again_has_the_same_figures_and_other_seeds_do_not(inputs):
    first = run(inputs)
    assert run(inputs, out="again") == first
    other = run(inputs, EvaluateOptions(steps=15, seed=1), out="other")
    assert other["protocol"]["extractor"]["sha256"] != first["protocol"]["extractor"]["sha256"]


def test_test_images_decide_about_no_classifier(inputs):
    first = run(inputs)
    archive = dict(np.load(inputs / "digits.npz"))
    archive["test_images"] = archive["test_images"][::-1] // 2
    np.savez(inputs / "dark.npz", **archive)
    other = run(inputs, real="dark.npz", out="other")
    assert other["protocol"]["extractor"] == first["protocol"]["extractor"]
    assert other["protocol"]["classifier"] == first["protocol"]["classifier"]
    for name in ("samples", "real"):
        one, two = (each["results"]["tstr"][name] for each in (first, other))
        assert one["held_out_accuracy"] == two["held_out_accuracy"]
        assert one["accuracy"] != two["accuracy"]


def test_copies_of_training_images_are_reported(inputs, digits):
    images, labels = digits
    np.savez(inputs / "samples" / "samples.npz", images=images[300:400, None], labels=labels[:100])
    found = run(inputs)["results"]["memorization"]["pixels"]
    assert found["near_copies"]["hits"] == 100


def test_evaluation_without_training_images_says_what_is_left_out(inputs):
    report = run(inputs, train=None)
    assert set(report["results"]) == {"shares", "classes", "class_mix", "tstr"}
    assert "real" not in report["results"]["tstr"]
    assert set(report["left_out"]) == {
        *("fidelity", "two_sample", "agreement", "memorization", "tstr_of_real"),
    }
    assert "--features inception" in report["left_out"]["fidelity"]


def test_evaluation_of_samples_without_labels_and_sites_says_so(inputs):
    archive = dict(np.load(inputs / "samples" / "samples.npz"))
    np.savez(inputs / "samples" / "samples.npz", images=archive["images"])
    change_summary(inputs, site_counts=None)
    report = run(inputs)
    assert set(report["left_out"]) == {"shares", "class_mix", "agreement", "tstr"}
    assert report["left_out"]["tstr"] == "the samples have no labels"


def test_shares_of_samples_with_labels_are_not_compared_with_shares_without(inputs):
    change_summary(inputs, intended_shares_of_labels=None)
    assert "given classes" in run(inputs, train=None)["left_out"]["shares"]


def test_evaluation_in_features_of_inception_uses_them_for_copies_too(inputs, monkeypatch):
    # the network is tested elsewhere; here it only has to be asked
    def features(weights):
        return Extractor("inception", weights_digest({}), 64, lambda x: x.flatten(1))

    monkeypatch.setattr("ddm_fed.evaluation.report.inception_features", features)
    (inputs / "weights").write_bytes(b"x")
    options = EvaluateOptions("inception", inputs / "weights", steps=30)
    report = run(inputs, options)
    assert set(report["results"]["memorization"]) == {"pixels", "inception"}
    assert set(report["left_out"]) == {"agreement"}
    assert report["results"]["fidelity"]["features"] == 64
    assert "classifier" not in report["protocol"]


def test_evaluation_with_fewer_images_than_features_warns(inputs):
    archive = dict(np.load(inputs / "samples" / "samples.npz"))
    few = {name: values[:50] for name, values in archive.items()}
    np.savez(inputs / "samples" / "samples.npz", **few)
    assert "singular" in run(inputs)["protocol"]["warning"]


def test_evaluation_of_other_inputs_is_never_overwritten(inputs):
    first = run(inputs, train=None)
    written = (inputs / "evaluation" / "evaluation.json").read_bytes()
    assert run(inputs, train=None) == first
    with pytest.raises(StateError, match="other samples, images or options"):
        run(inputs, EvaluateOptions(steps=30, seed=1), train=None)
    assert (inputs / "evaluation" / "evaluation.json").read_bytes() == written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.zeros((30, 9, 9), np.uint8)}, "1 x 9 x 9, the samples 1 x 8 x 8"),
        ({"images": np.zeros((30, 8, 8, 3), np.uint8)}, "3 x 8 x 8, the samples 1 x 8 x 8"),
        ({"images": np.zeros((30, 8, 8))}, "float64"),
        ({"images": np.zeros(30, np.uint8)}, r"shape \(30,\)"),
        ({"train_images": np.zeros((30, 8, 8), np.uint8)}, "expected `test_images` or `images`"),
        (
            {"images": np.zeros((30, 8, 8), np.uint8), "labels": np.zeros((30, 2), int)},
            r"30 images and labels of int64 and shape \(30, 2\)",
        ),
        (
            {"images": np.zeros((30, 8, 8), np.uint8), "labels": np.full(30, -1)},
            "30 images and labels",
        ),
        ({"images": np.zeros((28, 28, 3), np.uint8)}, "one with its channels"),
        ({"images": np.zeros((9, 8, 8), np.uint8)}, "9 real images"),
        ({"images": np.array([None])}, "cannot be read"),
    ],
)
def test_real_images_that_do_not_fit_are_refused_and_nothing_is_written(inputs, content, message):
    np.savez(inputs / "bad.npz", **content)
    with pytest.raises(DataError, match=message) as caught:
        run(inputs, real="bad.npz")
    assert caught.value.hint
    assert not (inputs / "evaluation").exists()


def test_shares_under_guidance_have_no_p_value(inputs):
    assert run(inputs, train=None)["results"]["shares"]["p_value"] > 0.9
    change_summary(inputs, guidance=2.0)
    report = run(inputs, train=None, out="guided")
    assert report["results"]["shares"]["p_value"] is None
    assert report["results"]["shares"]["error"] == pytest.approx(0)
    assert "not exact" in report["left_out"]["p_value of shares"]
    (row,) = [row for row in rows_of(report["results"]) if row[0] == "site-share error"]
    assert row[2] == "not exact: guidance 2"


def perfect(inputs, digits, counts):
    """Samples that are real images, no one of which is in the other sets, `counts` of each class.

    The real images have a prevalence: of class c one in c + 1.
    """
    images, labels = digits
    rows = np.random.default_rng(1).permutation(len(labels))
    thinned = np.concatenate([rows[labels[rows] == c][: 160 // (c + 1)] for c in range(4)])
    split = [thinned[part::4] for part in range(4)]
    held, trained = split[0], np.concatenate(split[1:3])
    own = split[3]
    chosen = np.concatenate([own[labels[own] == c][:n] for c, n in enumerate(counts)])
    noise = np.random.default_rng(0).integers(0, 2, size=(len(chosen), 8, 8))
    drawn = (images[chosen] - noise).clip(0, 255).astype(np.uint8)[:, None]
    np.savez(inputs / "samples" / "samples.npz", images=drawn, labels=labels[chosen])
    np.savez(
        inputs / "digits.npz",
        train_images=images[trained],
        train_labels=labels[trained],
        test_images=images[held],
        test_labels=labels[held],
    )


def test_perfect_samples_of_classes_in_turn_are_as_near_to_real_ones_as_real_ones_are(
    inputs, digits
):
    # real images: 40, 20, 13, 10 of four classes; samples: 10 of each
    perfect(inputs, digits, (10, 10, 10, 10))
    report = run(inputs, EvaluateOptions(steps=100))
    found = report["results"]
    assert found["class_mix"]["apart"] > 0.2
    assert (found["class_mix"]["real"], found["class_mix"]["samples"]) == (40, 40)
    assert found["fidelity"]["frechet"] < 2 * found["baseline"]["frechet"]
    assert found["two_sample"]["p_value"] > 0.05


def test_samples_of_one_class_are_compared_with_real_images_of_that_class(inputs, digits):
    perfect(inputs, digits, (40,))
    found = run(inputs, EvaluateOptions(steps=100))["results"]
    assert (found["class_mix"]["real"], found["class_mix"]["samples"]) == (40, 40)
    assert found["two_sample"]["p_value"] > 0.05


def test_samples_of_a_class_without_real_images_are_compared_with_nothing_and_named(inputs):
    archive = dict(np.load(inputs / "samples" / "samples.npz"))
    archive["labels"][:50] = 11
    np.savez(inputs / "samples" / "samples.npz", **archive)
    report = run(inputs, train=None)
    assert report["results"]["class_mix"]["samples"] <= 250
    assert "no real images of the classes 11" in report["left_out"]["classes without real images"]
    archive["labels"][:] = 11
    np.savez(inputs / "samples" / "samples.npz", **archive)
    report = run(inputs, out="other")
    assert "0 real images and 0 samples" in report["left_out"]["fidelity"]


@pytest.mark.parametrize("missing", ["samples.npz", "samples.json"])
def test_folder_without_finished_samples_is_refused(inputs, missing):
    (inputs / "samples" / missing).unlink()
    with pytest.raises(StateError, match="no finished samples"):
        run(inputs)


def test_damaged_and_missing_files_are_refused(inputs):
    with pytest.raises(DataError, match="is not there"):
        run(inputs, real="nowhere.npz")
    (inputs / "torn.npz").write_bytes((inputs / "digits.npz").read_bytes()[:500])
    with pytest.raises(DataError, match="cannot be read"):
        run(inputs, real="torn.npz")
    change_summary(inputs, intended_shares_of_labels={"other": 1.0})
    with pytest.raises(DataError, match="other sites"):
        run(inputs)
    (inputs / "samples" / "samples.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        run(inputs)


@pytest.mark.parametrize(
    "options",
    [EvaluateOptions("inception"), EvaluateOptions("classifier", weights="w.safetensors")],
)
def test_weights_and_inception_go_together(inputs, options):
    with pytest.raises(OptionError, match="need each other"):
        run(inputs, options)


def test_missing_weights_of_inception_are_an_error_before_anything_is_written(inputs):
    with pytest.raises(DataError, match="missing"):
        run(inputs, EvaluateOptions("inception", inputs / "none.safetensors"))
    assert not (inputs / "evaluation").exists()


def test_command_shows_the_figures_and_what_was_left_out(inputs):
    app = typer.Typer()
    app.command()(command)
    arguments = [
        str(inputs / "samples"),
        "--real",
        str(inputs / "digits.npz"),
        "--training-steps",
        "30",
    ]
    arguments += ["--out", str(inputs / "shown")]
    found = CliRunner().invoke(app, [*arguments, "--train", str(inputs / "digits.npz")])
    assert found.exit_code == 0, found.output
    for name in ("FID", "KID", "coverage", "TSTR", "near copies", "site-share error"):
        assert name in found.stdout
    shutil.rmtree(inputs / "shown")
    found = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(found.stdout)["results"]["shares"]["samples"] == 300
    assert "left out: fidelity" in found.stderr
    slip = CliRunner().invoke(app, [*arguments, "--features", "resnet"])
    assert isinstance(slip.exception, OptionError)
    assert "--features resnet is not known" in str(slip.exception)
    failed = CliRunner().invoke(app, [*arguments, "--seed", "3"])
    assert isinstance(failed.exception, DdmFedError)


def test_evaluation_leaves_torchs_own_generator_alone(inputs):
    before = torch.random.get_rng_state()
    run(inputs)
    assert torch.equal(torch.random.get_rng_state(), before)
