"""Rows that take long: by one process or in parts, the bytes are the same, or it is refused."""

import json
import shutil

import pytest

from ddm_fed.errors import BusyError, OptionError, StateError
from ddm_fed.storage.files import exclusive
from ddm_fed.storage.row_files import RowFiles

TOTAL, AT_ONCE = 23, 4  # six groups, the last of three rows
FILES = ("a.bin", "b.bin")


def rows_in(folder, **more):
    given = {"made_of": {"key": "k"}, "at_once": AT_ONCE} | more
    return RowFiles(folder, FILES, 3, TOTAL, **given)


def compute(rows):
    """Rows that depend on which are computed together, as rounding may."""
    group = bytes([len(rows), rows.start])
    return [b"".join(group + bytes([row]) for row in rows), b"".join(b"b" * 3 for _ in rows)]


def compute_part(folder, index, count, **more):
    return rows_in(folder, **more).compute_part((index, count), compute, b"alike")


def compute_all(folder, asked=None, probe=b"alike", **more):
    def noting(rows):
        if asked is not None:
            asked.extend(rows)
        return compute(rows)

    rows_in(folder, **more).compute_all(noting, lambda: probe)
    return contents(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def whole(tmp_path):
    return compute_all(tmp_path / "whole")


class KilledError(Exception):
    pass


def killed_after(count):
    """Computes so many groups, and is killed."""
    groups = iter(range(count))

    def computing(rows):
        if next(groups, None) is None:
            raise KilledError
        return compute(rows)

    return computing


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_parts_in_one_folder_end_as_one_process_does(tmp_path, whole, count):
    folder, asked = tmp_path / "parts", []
    done = [compute_part(folder, index, count) for index in range(count, 0, -1)]
    assert sum(done) == TOTAL
    for piece in folder.iterdir():  # as private as the whole
        assert all(file.stat().st_mode & 0o077 == 0 for file in (piece, *piece.glob("*.bin")))
    assert compute_all(folder, asked) == whole  # and nothing else is left there
    assert asked == []


def test_parts_of_folders_that_were_copied_together_end_as_one_process_does(tmp_path, whole):
    for index in (1, 2, 3):
        compute_part(tmp_path / f"machine-{index}", index, 3)
        shutil.copytree(tmp_path / f"machine-{index}", tmp_path / "all", dirs_exist_ok=True)
    assert compute_all(tmp_path / "all") == whole


def test_parts_that_are_missing_or_half_done_are_made_up_for(tmp_path, whole, monkeypatch):
    monkeypatch.setattr("ddm_fed.storage.row_files.SAVE_S", -1.0)
    folder, asked = tmp_path / "parts", []
    compute_part(folder, 3, 3)
    with pytest.raises(KilledError):
        rows_in(folder).compute_part((2, 3), killed_after(1), b"alike")
    assert compute_all(folder, asked) == whole
    assert asked == [*range(8), *range(12, 16)]


def test_part_that_was_killed_goes_on_where_it_was(tmp_path, whole, monkeypatch):
    monkeypatch.setattr("ddm_fed.storage.row_files.SAVE_S", -1.0)
    folder, told = tmp_path / "parts", []
    with pytest.raises(KilledError):
        rows_in(folder).compute_part((1, 2), killed_after(2), b"alike")
    rows_in(folder).compute_part((1, 2), compute, b"alike", told.append)
    assert told == [8, 4]
    compute_part(folder, 2, 2)
    assert compute_all(folder) == whole


def test_putting_together_that_was_killed_goes_on(tmp_path, whole):
    folder = tmp_path / "parts"
    for index in (1, 3):
        compute_part(folder, index, 3)
    with pytest.raises(KilledError):
        rows_in(folder).compute_all(killed_after(0), lambda: b"alike")
    assert not (folder / ".part-1-of-3").exists()  # taken up; the second was missing
    compute_part(folder, 2, 3)
    assert compute_all(folder) == whole


def test_one_process_that_was_killed_is_helped_by_parts(tmp_path, whole, monkeypatch):
    monkeypatch.setattr("ddm_fed.storage.row_files.SAVE_S", -1.0)
    folder = tmp_path / "parts"
    with pytest.raises(KilledError):
        rows_in(folder).compute_all(killed_after(3), lambda: b"alike")
    asked = []
    for index in (1, 2):
        rows_in(folder).compute_part(
            (index, 2), lambda rows: asked.extend(rows) or compute(rows), b"alike"
        )
    assert asked == list(range(12, TOTAL))  # what the first part would do was done
    (folder / ".part-1-of-2").mkdir(exist_ok=True)  # begun by nobody
    assert compute_all(folder) == whole


def test_part_that_is_damaged_is_refused_by_name_and_nothing_of_it_is_taken(tmp_path, whole):
    for change in (b"x", b"", None):
        folder = tmp_path / f"parts-{change}"
        compute_part(folder, 1, 2)
        file = folder / ".part-1-of-2" / "b.bin"
        held = file.read_bytes()
        if change is None:
            file.unlink()
        else:
            file.write_bytes(held[:-1] + change)
        with pytest.raises(StateError, match=r"\.part-1-of-2/b\.bin is not what an earlier run"):
            compute_all(folder)
        shutil.rmtree(folder / ".part-1-of-2")  # as the hint says
        assert compute_all(folder) == whole


def test_part_that_is_damaged_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("ddm_fed.storage.row_files.SAVE_S", -1.0)
    with pytest.raises(KilledError):
        rows_in(tmp_path).compute_part((1, 2), killed_after(1), b"alike")
    file = tmp_path / ".part-1-of-2" / "a.bin"
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(StateError, match=r"a\.bin is not what an earlier run left"):
        compute_part(tmp_path, 1, 2)


def test_part_of_other_images_is_refused(tmp_path):
    compute_part(tmp_path, 1, 2, made_of={"key": "other"})
    with pytest.raises(StateError, match=r"\.part-1-of-2 was begun with another `key`: other"):
        compute_all(tmp_path)
    with pytest.raises(StateError, match="another `key`"):
        compute_part(tmp_path, 1, 2)


def test_part_that_took_the_place_of_another_is_refused(tmp_path):
    compute_part(tmp_path, 1, 3)
    (tmp_path / ".part-1-of-3").rename(tmp_path / ".part-2-of-3")
    with pytest.raises(StateError, match=r"\.part-2-of-3 was begun with another `first`: 0"):
        compute_all(tmp_path)


@pytest.mark.parametrize("name", [".part-3-of-2", ".part-1-of-7"])
def test_part_that_cannot_be_one_is_refused(tmp_path, name):
    compute_part(tmp_path, 1, 2)
    (tmp_path / ".part-1-of-2").rename(tmp_path / name)
    with pytest.raises(StateError, match="is no part of these 23 images"):
        compute_all(tmp_path)


def test_rows_that_two_parts_say_are_refused_by_name(tmp_path, whole):
    folder = tmp_path / "parts"
    compute_part(folder, 1, 2)
    compute_part(folder, 2, 3)
    with pytest.raises(StateError, match=r"\.part-1-of-2 and \.part-2-of-3 say the same rows"):
        compute_all(folder)
    shutil.rmtree(folder / ".part-2-of-3")
    compute_part(folder, 3, 3)  # of another number, but of other rows
    assert compute_all(folder) == whole


def test_parts_of_machines_that_round_unlike_are_not_put_together(tmp_path, whole):
    compute_part(tmp_path / "both", 1, 2)
    rows_in(tmp_path / "both").compute_part((2, 2), compute, b"unlike")
    with pytest.raises(StateError, match="round unlike each other"):
        compute_all(tmp_path / "both")
    compute_part(tmp_path / "one", 1, 2)
    with pytest.raises(StateError, match=r"this machine and .* round unlike each other"):
        compute_all(tmp_path / "one", probe=b"unlike")
    with pytest.raises(StateError, match="round unlike"):
        rows_in(tmp_path / "one").compute_part((1, 2), compute, b"unlike")
    compute_part(tmp_path / "one", 2, 2)  # nothing is left for this machine to compute
    assert compute_all(tmp_path / "one", probe=b"unlike") == whole


def test_part_that_is_being_computed_is_waited_for_by_nobody(tmp_path):
    compute_part(tmp_path, 1, 2)
    with exclusive(tmp_path / ".part-1-of-2" / ".lock"):
        compute_part(tmp_path, 2, 2)  # two at the same time
        for refused in (lambda: compute_part(tmp_path, 1, 2), lambda: compute_all(tmp_path)):
            with pytest.raises(BusyError):
                refused()


def test_more_parts_than_groups_are_refused(tmp_path):
    with pytest.raises(OptionError, match=r"--part 2/7: 23 images are computed in 6 groups of 4"):
        compute_part(tmp_path, 2, 7)


def test_part_of_what_is_finished_computes_nothing_and_leaves_nothing(tmp_path, whole):
    before = compute_all(tmp_path / "out")
    assert compute_part(tmp_path / "out", 1, 2) == 12
    assert contents(tmp_path / "out") == before == whole


def test_rows_that_an_earlier_version_finished_are_taken(tmp_path, whole):
    folder, asked = tmp_path / "old", []
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(whole[name])
    (folder / "progress.json").write_text(json.dumps({"done": TOTAL, "of": TOTAL}))
    compute_all(folder, asked)
    assert asked == []
