"""Samples drawn in parts, as jobs of a scheduler do, are those that one machine draws."""

import shutil

import numpy as np
import pytest
from samples import CLASSES, FULL, OPTIONS, changed, files_of, write
from typer.testing import CliRunner

from coordinator.cli.main import app
from ddm_fed.ensemble.sample_folder import PARTS
from ddm_fed.errors import BusyError, OptionError, StateError
from ddm_fed.storage.files import exclusive


@pytest.mark.parametrize("strategy", ["sticky", "full"])
@pytest.mark.parametrize("number", [2, 3])
def test_parts_in_one_folder_end_as_an_unbroken_run_does(tmp_path, strategy, number):
    options = changed(attribution=False) if strategy == "sticky" else changed(strategy=FULL)
    write(tmp_path / "whole", options, CLASSES)
    drawn = []
    for part in range(number, 0, -1):
        found = write(tmp_path / "parts", changed(options, part=(part, number)), CLASSES)
        assert found["of"] == 3  # chunks of four of eleven samples
        drawn.append(found["chunks"])
    assert sum(drawn) == 3
    assert not (tmp_path / "parts" / "samples.json").exists()
    asked = []
    write(tmp_path / "parts", options, CLASSES, advance=asked.append)
    assert asked == [4, 4, 3]  # all were there
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_parts_of_folders_that_were_copied_together_end_as_an_unbroken_run_does(tmp_path):
    write(tmp_path / "whole", OPTIONS)
    for part in (1, 2):
        write(tmp_path / f"machine-{part}", changed(part=(part, 2)))
    target = tmp_path / "together" / PARTS
    target.mkdir(parents=True)
    for part in (1, 2):  # without images/: pictures are made of the chunks
        shutil.copytree(tmp_path / f"machine-{part}" / PARTS, target, dirs_exist_ok=True)
    write(tmp_path / "together", OPTIONS)
    assert files_of(tmp_path / "together") == files_of(tmp_path / "whole")


def test_part_that_was_killed_leaves_the_others_and_is_made_up_for(tmp_path):
    write(tmp_path / "whole", OPTIONS)
    write(tmp_path / "out", changed(part=(1, 3)))
    write(tmp_path / "out", OPTIONS)  # draws what is missing itself
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_chunk_of_another_seed_is_refused_however_it_came_there(tmp_path):
    write(tmp_path / "ours", changed(part=(1, 3)))
    write(tmp_path / "other", changed(seed=8, part=(2, 3)))
    for file in (tmp_path / "other" / PARTS).glob("*.npz"):
        shutil.copy(file, tmp_path / "ours" / PARTS)
    with pytest.raises(StateError, match="holds samples of other options"):
        write(tmp_path / "ours", OPTIONS)


def test_chunk_that_names_no_options_is_refused(tmp_path):
    write(tmp_path / "ours", changed(part=(1, 3)))
    (file,) = (tmp_path / "ours" / PARTS).glob("*.npz")
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "options"}
    np.savez(file, **arrays)
    with pytest.raises(StateError, match="of another ensemble: digest unknown"):
        write(tmp_path / "ours", OPTIONS)


def test_putting_together_waits_for_no_part_that_is_still_drawn(tmp_path):
    write(tmp_path / "out", changed(part=(1, 2)))
    with exclusive(tmp_path / "out" / PARTS / "lock-1-2"), pytest.raises(BusyError):
        write(tmp_path / "out", OPTIONS)


def test_two_parts_are_drawn_at_the_same_time(tmp_path):
    write(tmp_path / "out", changed(part=(1, 2)))
    with exclusive(tmp_path / "out" / PARTS / "lock-1-2"):
        write(tmp_path / "out", changed(part=(2, 2)))
        with pytest.raises(BusyError):
            write(tmp_path / "out", changed(part=(1, 2)))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("0/2", "--part 0/2 is no part"),
        ("3/2", "--part 3/2 is no part"),
        ("two", "--part two is no part"),
        ("1/9", "--part 1/9: 64 samples are 8 chunks of --in-flight 8"),
    ],
)
def test_part_that_cannot_be_is_refused(stages, scratch, part, message):
    done = CliRunner().invoke(
        app,
        [
            *("sample", str(stages.ensemble), "--out", str(scratch / "out"), "--part", part),
            *("--in-flight", "8", "--coordinator", str(stages.admitted.home.path)),
        ],
    )
    assert isinstance(done.exception, OptionError)
    assert message in done.exception.message
    assert not (scratch / "out").exists()


def test_parts_by_the_command_are_put_together_by_it(stages, scratch):
    def sample(*words):
        common = ("sample", stages.ensemble, "--out", scratch / "out", "--count", 12, "--steps", 2)
        home = ("--coordinator", stages.admitted.home.path, "--in-flight", 4, "--no-png")
        done = CliRunner().invoke(app, [str(word) for word in (*common, *home, *words)])
        assert done.exit_code == 0, done.output
        return done.output

    assert "2 of 3 chunks are in" in sample("--part", "1/2")
    assert "1 of 3 chunks are in" in sample("--part", "2/2")
    assert "12 samples in" in sample()
    with np.load(scratch / "out" / "samples.npz") as archive:
        assert len(archive["images"]) == 12
