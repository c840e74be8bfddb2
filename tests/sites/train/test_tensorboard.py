"""`ddm-site train --tensorboard`: what is shown, where, and what never is."""

import sys

import pytest
import torch
from federation import create_federation

from ddm_fed.errors import OptionError, StateError
from ddm_fed.progress import QUIET, StepReport
from sites.train.tensorboard import require_tensorboard, shown_in_tensorboard

pytest.importorskip("tensorboard")


def shown_by(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


@pytest.mark.slow
def test_training_shows_loss_and_samples_in_a_folder_of_its_owner_alone(run, scratch):
    fed = create_federation(scratch, sites=("hospital-a",))
    site, board = fed.path / "hospital-a", scratch / "board"
    words = ("train", "--plan", fed.published, "--data", "digits:0-4", "--site", site)
    seen = ("--tensorboard", board, "--sample-every", 2)
    done = run("ddm-site", *words, *seen, "--precision", "float32")
    assert done.code == 0, done.err
    (folder,) = board.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    found = shown_by(folder)
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3]
    assert all(event.value > 0 for event in found.Scalars("loss"))
    assert [event.step for event in found.Images("samples")] == [2]
    sent = [path for path in (site / "outbox").rglob("*") if "tfevents" in path.name]
    assert sent == []


def test_steps_after_a_checkpoint_are_shown_once_as_they_were_taken(tmp_path):
    for steps, loss in ((range(1, 6), 1.0), (range(4, 8), 2.0)):
        with shown_in_tensorboard(tmp_path, "run", QUIET) as watch:
            for step in steps:
                watch.on_step(StepReport(step, 7, loss))
            watch.on_sample(step, torch.zeros(4, 1, 8, 8))
    told = [(event.step, event.value) for event in shown_by(tmp_path / "run").Scalars("loss")]
    assert told == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]


@pytest.mark.parametrize("place", ["s3://bucket/board", "gs://bucket", "hdfs://x/y"])
def test_address_of_another_machine_is_refused_before_anything_is_opened(run, tmp_path, place):
    words = ("--plan", tmp_path, "--data", "digits", "--site", tmp_path)
    done = run("ddm-site", "train", *words, "--tensorboard", place)
    assert done.code == 2
    assert "--tensorboard" in done.err
    assert "private" in done.err


def test_file_is_refused_before_any_image_is_read(tmp_path):
    (tmp_path / "board").write_text("something else")
    with pytest.raises(OptionError, match="this is a file"):
        require_tensorboard(tmp_path / "board", tmp_path / "site")


def test_folder_in_the_outbox_is_refused(tmp_path):
    with pytest.raises(OptionError, match="--tensorboard"):
        require_tensorboard(tmp_path / "outbox" / "released" / "board", tmp_path)


def test_missing_library_is_said_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(StateError, match=r"ddm-fed\[tensorboard\]"):
        require_tensorboard(tmp_path / "board", tmp_path)
