"""Samples on disk: what is written, resumed after a kill, and never mixed."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import run
from PIL import Image
from samples import (
    CLASSES,
    FULL,
    OPTIONS,
    PLAIN,
    SOURCE,
    changed,
    content,
    ensemble,
    files_of,
    write,
)

from ddm_fed.ensemble import sample_job
from ddm_fed.ensemble.sample_folder import PARTS, write_samples
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.errors import OptionError, StateError


def test_folder_holds_archive_pictures_and_summary_and_no_parts(tmp_path):
    write(tmp_path / "out")
    pictures = {f"images/{index:06d}.png" for index in range(11)}
    assert files_of(tmp_path / "out").keys() == {
        "samples.npz",
        "grid.png",
        "samples.json",
        *pictures,
    }


def test_archive_holds_images_sites_and_labels_in_their_order(tmp_path):
    write(tmp_path / "out", data=CLASSES)
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        images, sites, labels = (archive[name] for name in ("images", "sites", "labels"))
    assert (images.shape, images.dtype) == ((11, 3, 4, 4), np.uint8)
    assert labels.tolist() == [0, 1] * 5 + [0]
    # each site's grey, 64 or 191, says who drew the image
    assert np.array_equal(sites, (images[:, 0, 0, 0] > 127).astype(int))
    assert set(sites.tolist()) == {0, 1}


def test_picture_carries_its_pixels_and_how_it_came_about(tmp_path):
    write(tmp_path / "out", data=CLASSES)
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        for index in (0, 5, 10):
            with Image.open(tmp_path / "out" / "images" / f"{index:06d}.png") as picture:
                pixels, notes = np.asarray(picture).transpose(2, 0, 1), picture.text
            assert np.array_equal(pixels, archive["images"][index])
            assert notes == {
                "seed": "7",
                "index": str(index),
                "class": CLASSES.classes[archive["labels"][index]],
                "site": ("north", "south")[archive["sites"][index]],
            }


def test_no_png_writes_no_pictures(tmp_path):
    write(tmp_path / "out", changed(png=False))
    assert not (tmp_path / "out" / "images").exists()


def test_summary_names_every_option_and_counts_calls_and_sites(tmp_path):
    options = changed(guidance=1.5, label="dog", strategy=Strategy.parse("threshold-0.05"))
    found = write(tmp_path / "out", options, CLASSES)
    assert found == json.loads((tmp_path / "out" / "samples.json").read_text())
    expected = {
        "strategy": "threshold-0.05",
        "solver": "heun",
        "steps": 3,
        "guidance": 1.5,
        "seed": 7,
        "count": 11,
        "class": "dog",
        "precision": "float32",
        "members": SOURCE["members"],
        "site_counts": None,
        "intended_shares": {"north": 0.5, "south": 0.5},
        # two branches, 2 + 2 + 1 calls of heun, both sites above the threshold
        "expert_calls": {"north": 110, "south": 110},
    }
    assert {name: found[name] for name in expected} == expected


def test_summary_of_drawn_sites_counts_the_samples_of_each(tmp_path):
    found = write(tmp_path / "out")
    assert found["strategy"] == "sticky"
    assert sum(found["site_counts"].values()) == 11
    assert found["expert_calls"] == {k: 5 * n for k, n in found["site_counts"].items()}


def test_progress_counts_up_to_every_sample(tmp_path):
    told = []
    write(tmp_path / "out", advance=told.append)
    assert min(told) >= 0
    assert sum(told) == 11


# --- going on ---


@pytest.mark.parametrize("chunks", [0, 1, 2])
@pytest.mark.parametrize("data", [PLAIN, CLASSES], ids=["plain", "classes"])
def test_run_that_failed_goes_on_to_the_very_files_of_an_unbroken_one(
    tmp_path, monkeypatch, data, chunks
):
    write(tmp_path / "whole", data=data)
    real, begun = sample_job.sample_chunk, []

    def failing(*arguments, **options):
        begun.append(1)
        if len(begun) > chunks:
            raise MemoryError
        return real(*arguments, **options)

    monkeypatch.setattr(sample_job, "sample_chunk", failing)
    with pytest.raises(MemoryError):
        write(tmp_path / "broken", data=data)
    monkeypatch.setattr(sample_job, "sample_chunk", real)
    redone = []
    write(tmp_path / "broken", data=data, advance=redone.append)
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")
    if chunks:
        assert redone[0] == 4


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_sample_folder as here

done = 0
def advance(more):
    global done
    done += more
    if done >= 6:
        os.kill(os.getpid(), signal.SIGKILL)

here.write(Path(sys.argv[1]), advance=advance)
"""


@pytest.mark.slow
def test_run_that_was_killed_goes_on_to_the_very_files_of_an_unbroken_one(tmp_path):
    script = tmp_path / "sample.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent)))
    assert run(script, tmp_path / "killed").code == -signal.SIGKILL
    assert (tmp_path / "killed" / PARTS).is_dir()
    write(tmp_path / "killed")
    write(tmp_path / "whole")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_finished_run_given_again_draws_nothing(tmp_path, monkeypatch):
    first = write(tmp_path / "out")
    before = files_of(tmp_path / "out")
    monkeypatch.setattr(sample_job, "sample_chunk", None)
    assert write(tmp_path / "out") == first
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    "others",
    [
        {"seed": 8},
        {"steps": 4},
        {"count": 12},
        {"solver": "euler"},
        {"strategy": Strategy.parse("full")},
        {"png": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_options_in_the_same_folder_are_refused(tmp_path, monkeypatch, others, finished):
    out = tmp_path / "out"
    if finished:
        write(out)
    else:
        with monkeypatch.context() as patched:
            patched.setattr(sample_job, "sample_chunk", None)
            with pytest.raises(TypeError):
                write(out)
    before = files_of(out)
    with pytest.raises(StateError, match="other options or of another ensemble"):
        write(out, changed(**others))
    assert files_of(out) == before


def test_another_ensemble_in_the_same_folder_is_refused(tmp_path):
    write(tmp_path / "out")
    other = SOURCE | {"ensemble_sha256": "f" * 64}
    with pytest.raises(StateError, match="another ensemble"):
        write_samples(ensemble(), content(), tmp_path / "out", OPTIONS, other)


# --- refused ---


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"label": "cat"}, "--class cat is not in the plan"),
        ({"guidance": 2.0}, "needs classes"),
        ({"strategy": Strategy.parse("per-step")}, "does not look"),
        ({"strategy": Strategy.parse("sticky-then-routed")}, "does not look"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused_before_a_file_is_written(tmp_path, others, reason):
    with pytest.raises(OptionError, match=reason):
        write(tmp_path / "out", changed(**others))
    assert not (tmp_path / "out").exists()


def test_class_that_no_site_released_is_refused_before_a_file_is_written(tmp_path):
    with pytest.raises(OptionError, match="--class dog: no site released a count") as caught:
        write(tmp_path / "out", changed(label="dog"), CLASSES, totals=[9, 0])
    assert caught.value.hint == "the classes that sites have are cat"
    assert not (tmp_path / "out").exists()


def test_guidance_of_experts_that_always_knew_the_class_is_refused(tmp_path):
    facts = {"knows_no_class": False}
    with pytest.raises(OptionError, match="label_dropout = 0"):
        write(tmp_path / "out", changed(guidance=2.0), CLASSES, facts=facts)
    assert not (tmp_path / "out").exists()
    assert write(tmp_path / "out", OPTIONS, CLASSES, facts=facts)["guidance"] == 1.0


# --- classes, and what has to be known of samples ---


def test_classes_follow_the_released_totals(tmp_path):
    found = write(tmp_path / "out", data=CLASSES, totals=[30, 10])
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        assert np.bincount(archive["labels"]).tolist() == [8, 3]
    assert found["class_shares"] == {"cat": 0.75, "dog": 0.25}
    assert found["notes"] == []


def test_class_nobody_has_is_not_drawn_and_said(tmp_path):
    found = write(tmp_path / "out", data=CLASSES, totals=[30, 0])
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        assert set(archive["labels"].tolist()) == {0}
    assert found["notes"] == ["no site is known to have dog: none were drawn"]


def test_classes_are_drawn_in_equal_parts_where_every_count_drowned_and_that_is_said(tmp_path):
    found = write(tmp_path / "out", data=CLASSES, totals=[0, 0])
    assert found["class_shares"] == {"cat": 0.5, "dog": 0.5}
    (note,) = found["notes"]
    assert "equal parts" in note
    write(tmp_path / "dogs", changed(label="dog"), CLASSES, totals=[0, 0])


def test_guidance_is_said_to_move_the_shares_and_sticky_advised_where_the_router_is_asked(tmp_path):
    guided = changed(guidance=2.0)
    (note,) = write(tmp_path / "sticky", guided, CLASSES)["notes"]
    assert note == "under guidance 2 the shares of the sites are not exact"
    (note,) = write(tmp_path / "full", changed(guided, strategy=FULL), CLASSES)["notes"]
    assert "use --strategy sticky" in note


@pytest.mark.parametrize(("seen", "said"), [(15, True), (16, False), (None, False)])
def test_strategy_that_asks_a_router_says_which_frequencies_it_sees(tmp_path, seen, said):
    found = write(tmp_path / "out", changed(strategy=FULL), facts={"frequencies": seen})
    assert [note for note in found["notes"] if f"sees {seen} of 16" in note] == found["notes"]
    assert bool(found["notes"]) == said
    assert write(tmp_path / "sticky", facts={"frequencies": seen})["notes"] == []
