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


def test_parts_of_a_student_whose_samples_have_no_site_are_put_together(tmp_path):
    facts = {"one_network": True}
    write(tmp_path / "whole", OPTIONS, facts=facts)
    for part in (1, 2):
        write(tmp_path / "parts", changed(part=(part, 2)), facts=facts)
    write(tmp_path / "parts", OPTIONS, facts=facts)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


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


def test_part_of_samples_that_are_finished_says_so(stages, scratch):
    def sample(*words):
        common = ("sample", stages.ensemble, "--out", scratch / "out", "--count", 8, "--steps", 1)
        home = ("--coordinator", stages.admitted.home.path, "--in-flight", 4, "--no-png")
        return CliRunner().invoke(app, [str(word) for word in (*common, *home, *words)])

    assert sample().exit_code == 0
    late = sample("--part", "1/2")
    assert late.exit_code == 0, late.output
    assert "all 8 samples are in" in late.output


class _Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def _without_rows(arrays, _):
    return arrays | {"images": arrays["images"][:-1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_rows, "`images` is uint8 of shape"),
        (lambda arrays, _: arrays | {"images": arrays["images"] * 1.0}, "`images` is float64"),
        (lambda arrays, _: {n: a for n, a in arrays.items() if n != "sites"}, "`sites` is missing"),
        (lambda arrays, _: arrays | {"sites": arrays["sites"] + 9}, "a site that there is not"),
        (lambda arrays, _: arrays | {"labels": arrays["labels"] + 9}, "not those that were asked"),
        (lambda arrays, _: arrays | {"calls": np.arange(7)}, "`calls` is int64 of shape"),
        (
            lambda arrays, trap: arrays | {"sites": np.array([_Touches(trap)] * 4, dtype=object)},
            "cannot be read",
        ),
    ],
)
def test_chunk_that_does_not_hold_its_samples_is_refused(tmp_path, change, message):
    write(tmp_path / "out", changed(part=(1, 3)), CLASSES)
    (file,) = (tmp_path / "out" / PARTS).glob("*.npz")
    with np.load(file) as archive:
        arrays = dict(archive)
    np.savez(file, **change(arrays, tmp_path / "unpickled"))
    with pytest.raises(StateError, match=message) as refused:
        write(tmp_path / "out", OPTIONS, CLASSES)
    assert "delete that file" in refused.value.hint
    assert not (tmp_path / "unpickled").exists()
    assert not (tmp_path / "out" / "samples.json").exists()


def test_chunk_that_was_cut_off_is_refused_by_name(tmp_path):
    write(tmp_path / "out", changed(part=(1, 3)))
    (file,) = (tmp_path / "out" / PARTS).glob("*.npz")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(StateError, match=f"{file.name} cannot be read"):
        write(tmp_path / "out", OPTIONS)
    file.unlink()
    write(tmp_path / "out", OPTIONS)  # as the hint says
