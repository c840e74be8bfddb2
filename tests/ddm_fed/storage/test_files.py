"""Files: whole or absent after a failure, and nothing but plain files is ever opened."""

import fcntl
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from federation import make_odd_file

from ddm_fed.errors import BusyError, DigestError, FileSetError, StateError
from ddm_fed.records import sha256_hex
from ddm_fed.storage.digests import check_file
from ddm_fed.storage.files import (
    BLOCK_BYTES,
    PART_PREFIX,
    append_durably,
    drop_torn_line,
    exclusive,
    is_locked,
    list_regular_files,
    new_folder,
    open_regular,
    read_bounded,
    require_file_set,
    size_below,
    sweep_parts,
    write_atomically,
)

DATA = b"weights" * 1000
DIGEST = sha256_hex(DATA)


# Written whole


def test_write_atomically_replaces_the_content(tmp_path: Path):
    (tmp_path / "f").write_bytes(b"old")
    write_atomically(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"


def test_write_atomically_leaves_no_other_file(tmp_path: Path):
    write_atomically(tmp_path / "f", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_write_atomically_gives_the_mode_that_was_asked_for(tmp_path: Path):
    write_atomically(tmp_path / "f", b"new", mode=0o600)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


def test_write_atomically_gives_readers_of_the_old_file_the_old_content(tmp_path: Path):
    (tmp_path / "f").write_bytes(b"old")
    with (tmp_path / "f").open("rb") as reader:
        write_atomically(tmp_path / "f", b"a longer new content")
        assert reader.read() == b"old"


def test_write_atomically_that_fails_keeps_the_old_content(tmp_path: Path):
    (tmp_path / "f").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # as a full disk would
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomically(tmp_path / "f", b"new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("part", ["f", "f.new"])
def test_write_atomically_with_a_planted_link_leaves_what_it_leads_to(tmp_path: Path, part: str):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / f"{PART_PREFIX}{part}").symlink_to(victim)
    write_atomically(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert victim.read_bytes() == b"mine"


def test_write_atomically_over_a_link_replaces_the_link(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "f").symlink_to(victim)
    write_atomically(tmp_path / "f", b"new")
    assert not (tmp_path / "f").is_symlink()
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("write", [append_durably, lambda path, _: drop_torn_line(path)])
def test_appending_through_a_link_is_refused(tmp_path: Path, write):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "f").symlink_to(victim)
    with pytest.raises(FileSetError, match="symbolic link"):
        write(tmp_path / "f", b"line")
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("take", [is_locked, lambda path: exclusive(path).__enter__()])
def test_lock_file_that_is_a_link_is_refused_and_nothing_is_emptied(tmp_path: Path, take):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(FileSetError, match="symbolic link"):
        take(tmp_path / "lock")
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("take", [is_locked, lambda path: exclusive(path).__enter__()])
def test_lock_file_that_is_a_pipe_is_refused(tmp_path: Path, take):
    os.mkfifo(tmp_path / "lock")
    reader = os.open(tmp_path / "lock", os.O_RDONLY | os.O_NONBLOCK)  # so that writers can open it
    try:
        with pytest.raises(FileSetError, match="not a regular file"):
            take(tmp_path / "lock")
    finally:
        os.close(reader)


def test_sweep_deletes_what_a_killed_process_left_and_nothing_else(tmp_path: Path):
    for name in (f"{PART_PREFIX}a.0123456789abcdef", "a", ".a"):
        (tmp_path / name).write_bytes(b"1")
    sweep_parts(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3  # another process may be at it just now
    sweep_parts(tmp_path, older_than_s=0)
    assert {path.name for path in tmp_path.iterdir()} == {"a", ".a"}


def test_append_durably_adds_one_line(tmp_path: Path):
    append_durably(tmp_path / "f", b"1")
    append_durably(tmp_path / "f", b"2")
    assert (tmp_path / "f").read_bytes() == b"1\n2\n"


def test_new_folder_takes_its_name_when_the_block_succeeds(tmp_path: Path):
    with new_folder(tmp_path / "done") as folder:
        (folder / "f").write_bytes(b"1")
        assert not (tmp_path / "done").exists()
    assert (tmp_path / "done" / "f").read_bytes() == b"1"


def test_new_folder_leaves_nothing_when_the_block_fails(tmp_path: Path):
    def fail() -> None:
        with new_folder(tmp_path / "done") as folder:
            (folder / "f").write_bytes(b"1")
            raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_new_folder_leaves_nothing_when_interrupted(tmp_path: Path):
    def interrupt() -> None:
        with new_folder(tmp_path / "done"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert list(tmp_path.iterdir()) == []


def test_new_folder_removes_the_leftover_of_a_killed_attempt(tmp_path: Path):
    leftover = tmp_path / f"{PART_PREFIX}done"
    (leftover / "inner").mkdir(parents=True)
    (leftover / "inner" / "old").write_bytes(b"1")
    with new_folder(tmp_path / "done") as folder:
        assert list(folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_new_folder_never_replaces_a_folder_that_has_files(tmp_path: Path):
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "f").write_bytes(b"old")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "done"):
        pass
    assert (tmp_path / "done" / "f").read_bytes() == b"old"


# One process at a time

HOLD = """
import pathlib, sys
from ddm_fed.storage.files import exclusive
with exclusive(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_lock_held_by_another_process_is_refused(tmp_path: Path, holder):
    with (
        pytest.raises(StateError, match=f"another process is working in {tmp_path}"),
        exclusive(tmp_path / ".lock"),
    ):
        pass


def test_lock_of_a_process_that_finished_is_free(tmp_path: Path, holder):
    holder.communicate(b"\n")
    with exclusive(tmp_path / ".lock"):
        assert holder.returncode == 0


def test_lock_of_a_killed_process_is_free(tmp_path: Path, holder):
    holder.kill()
    holder.wait()
    with exclusive(tmp_path / ".lock"):
        assert holder.returncode == -9


def test_lock_of_a_file_that_was_deleted_meanwhile_is_no_lock(tmp_path: Path, monkeypatch):
    real = fcntl.flock

    def slow(file, operation):
        (tmp_path / ".lock").unlink()  # another process tidies up between opening and locking
        real(file, operation)

    monkeypatch.setattr("fcntl.flock", slow)
    with pytest.raises(BusyError), exclusive(tmp_path / ".lock"):
        pass


# Only plain files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "f").write_bytes(b"1")
    (tmp_path / "folder" / "inner" / "g").write_bytes(b"2")
    return tmp_path / "folder"


def test_list_regular_files_names_files_of_inner_folders(folder: Path):
    assert list_regular_files(folder, what="the folder") == {"f", "inner/g"}


@pytest.mark.parametrize("where", ["odd", "inner/odd"])
@pytest.mark.parametrize("kind", ["link", "folder-link", "dangling"])
def test_list_regular_files_refuses_symbolic_link(folder: Path, kind: str, where: str):
    make_odd_file(folder / where, kind)
    with pytest.raises(FileSetError, match=f"the folder is refused: `{where}` is a symbolic link"):
        list_regular_files(folder, what="the folder")


def test_list_regular_files_refuses_link_to_a_file_beside_it(folder: Path):
    (folder / "odd").symlink_to("f")
    with pytest.raises(FileSetError, match="`odd` is a symbolic link"):
        list_regular_files(folder, what="the folder")


def test_list_regular_files_refuses_fifo(folder: Path):
    make_odd_file(folder / "odd", "fifo")
    with pytest.raises(FileSetError, match="the folder is refused: `odd` is not a regular file"):
        list_regular_files(folder, what="the folder")


def test_list_regular_files_refuses_socket(folder: Path, monkeypatch):
    monkeypatch.chdir(folder)  # the path of a socket has little room
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind("odd")
        with pytest.raises(FileSetError, match="`odd` is not a regular file"):
            list_regular_files(folder, what="the folder")


def test_list_regular_files_refuses_a_linked_folder(folder: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(FileSetError, match=r"the folder is refused: `\.` is a symbolic link"):
        list_regular_files(tmp_path / "link", what="the folder")


@pytest.mark.parametrize("name", ["missing", "f"])
def test_list_regular_files_refuses_what_is_no_folder(folder: Path, name: str):
    with pytest.raises(FileSetError, match=f"the folder is not a folder: {folder / name}"):
        list_regular_files(folder / name, what="the folder")


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Path]:
    """1100 folders in one another, more than Python calls itself."""
    top, level = tmp_path / "top", tmp_path / "deep"
    level.mkdir()
    for _ in range(1100):  # grows at the root, since a path may have only 4096 characters
        top.mkdir()
        level.rename(top / "d")
        top.rename(level)
    yield level
    subprocess.run(["rm", "-rf", level], check=True)


def test_list_regular_files_refuses_endless_nesting(endless: Path):
    with pytest.raises(FileSetError, match="the folder"):
        list_regular_files(endless, what="the folder")


def test_size_below_endless_nesting_is_found_without_a_crash(endless: Path):
    (endless / "f").write_bytes(b"12345")
    assert size_below(endless) >= 5


def test_size_below_a_folder_whose_files_come_and_go_is_found_without_a_crash(tmp_path: Path):
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            (tmp_path / "b" / "c").mkdir(parents=True)
            shutil.rmtree(tmp_path / "b")

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        assert {size_below(tmp_path) >= 0 for _ in range(2000)} == {True}
    finally:
        stop.set()
        attacker.join()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\nb", r"a\nb"),
        ("\u202egpj", r"\u202egpj"),
        (os.fsdecode(b"\xff\xfe"), r"\udcff\udcfe"),
        ("é b", "é b"),
    ],
)
def test_odd_name_is_shown_escaped(folder: Path, name: str, shown: str):
    (folder / name).symlink_to("/nonexistent")
    with pytest.raises(FileSetError) as caught:
        list_regular_files(folder, what="the folder")
    assert caught.value.message == f"the folder is refused: `{shown}` is a symbolic link"


def test_name_that_is_not_utf8_is_shown_escaped(folder: Path):
    (folder / os.fsdecode(b"\xff\xfe")).symlink_to("/nonexistent")
    with pytest.raises(FileSetError, match="is a symbolic link") as caught:
        list_regular_files(folder, what="the folder")
    assert caught.value.message.isprintable()


def test_odd_name_of_what_is_no_folder_is_shown_escaped(tmp_path: Path):
    plain = tmp_path / os.fsdecode(b"\xff\x1b[2J")
    plain.write_bytes(b"")
    with pytest.raises(FileSetError) as caught:
        list_regular_files(plain, what="the folder")
    assert caught.value.message.isprintable()


def test_file_set_names_what_is_missing_and_what_is_too_many(folder: Path):
    with pytest.raises(
        FileSetError, match="the folder is refused: `h` is missing, `inner/g` does not belong there"
    ):
        require_file_set(folder, {"f", "h"}, what="the folder")


def test_file_set_shows_extra_name_escaped(folder: Path):
    (folder / "\x1b[2J").write_bytes(b"")
    with pytest.raises(FileSetError, match=r"`\\x1b\[2J` does not belong there"):
        require_file_set(folder, {"f", "inner/g"}, what="the folder")


@pytest.mark.parametrize("kind", ["link", "folder-link", "dangling", "fifo"])
def test_open_regular_refuses_odd_file_without_blocking(folder: Path, kind: str):
    make_odd_file(folder / "odd", kind)
    with pytest.raises(FileSetError, match="odd"), open_regular(folder / "odd"):
        pass


def test_open_regular_refuses_a_folder(folder: Path):
    with pytest.raises(FileSetError, match="inner"), open_regular(folder / "inner"):
        pass


def test_open_regular_refuses_a_device():
    with (
        pytest.raises(FileSetError, match="`null` is not a regular file"),
        open_regular(Path("/dev/null")),
    ):
        pass


def test_open_regular_refuses_a_missing_file_by_its_name(folder: Path):
    with (
        pytest.raises(FileSetError, match="nothing cannot be opened: No such file"),
        open_regular(folder / "nothing"),
    ):
        pass


def test_read_bounded_reads_one_byte_more_than_allowed_and_stops(tmp_path: Path):
    (tmp_path / "f").write_bytes(DATA)
    assert read_bounded(tmp_path / "f", 10) == DATA[:11]


# Checked while copied


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(DATA)
    return tmp_path / "source"


def check(source: Path, copy_to: Path | None = None, **changed) -> None:
    signed = {"sha256": DIGEST, "size_bytes": len(DATA), "what": "`source`"}
    check_file(source, copy_to=copy_to, **(signed | changed))


def test_check_file_copies_what_was_signed(source: Path, tmp_path: Path):
    check(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA


def test_check_file_tells_every_byte_it_hashed(source: Path):
    counted: list[int] = []
    check(source, advance=counted.append)
    assert sum(counted) == len(DATA)


@pytest.mark.parametrize(
    "found", [DATA[:-1], DATA + b"x", b""], ids=["truncated", "grown", "emptied"]
)
@pytest.mark.parametrize("copied", [False, True])
def test_check_file_refuses_another_size(source: Path, tmp_path: Path, found: bytes, copied: bool):
    source.write_bytes(found)
    copy = tmp_path / "copy" if copied else None
    with pytest.raises(
        DigestError, match=f"`source` is not what was signed: found {len(found)} bytes, signed 7000"
    ):
        check(source, copy)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("copied", [False, True])
def test_check_file_refuses_other_bytes_and_keeps_no_copy(
    source: Path, tmp_path: Path, copied: bool
):
    source.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(DigestError, match=f"`source` is not what was signed: .* signed {DIGEST}"):
        check(source, tmp_path / "copy" if copied else None)
    assert not (tmp_path / "copy").exists()


BIG = bytes(BLOCK_BYTES) + DATA


def _cut(source: Path) -> None:
    os.truncate(source, BLOCK_BYTES + 10)


def _rewrite(source: Path) -> None:
    with source.open("r+b") as file:
        file.seek(BLOCK_BYTES)
        file.write(b"evil")


def _grow(source: Path) -> None:
    with source.open("ab") as file:
        file.write(b"more")


def _swap(source: Path) -> None:
    source.with_name("other").write_bytes(b"evil" * 1000)
    source.with_name("other").replace(source)


def _link(source: Path) -> None:
    source.unlink()
    source.symlink_to("/etc/hostname")


@pytest.mark.parametrize("attack", [_cut, _rewrite])
def test_file_damaged_while_it_is_copied_is_refused_and_keeps_no_copy(
    source: Path, tmp_path: Path, attack
):
    source.write_bytes(BIG)
    with pytest.raises(DigestError, match="`source` is not what was signed"):
        check(
            source,
            tmp_path / "copy",
            sha256=sha256_hex(BIG),
            size_bytes=len(BIG),
            advance=lambda _: attack(source),
        )
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("attack", [_grow, _swap, _link, Path.unlink])
def test_file_grown_or_replaced_while_it_is_copied_gives_the_signed_copy(
    source: Path, tmp_path: Path, attack
):
    source.write_bytes(BIG)
    once = [attack]
    check(
        source,
        tmp_path / "copy",
        sha256=sha256_hex(BIG),
        size_bytes=len(BIG),
        advance=lambda _: once.pop()(source) if once else None,
    )
    assert (tmp_path / "copy").read_bytes() == BIG


def test_check_file_never_overwrites_a_copy(source: Path, tmp_path: Path):
    (tmp_path / "copy").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        check(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"mine"


def test_check_file_never_writes_through_a_link(source: Path, tmp_path: Path):
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "copy").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        check(source, tmp_path / "copy")
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_copies_of_a_file_that_is_rewritten_all_the_time_are_what_was_signed(
    source: Path, tmp_path: Path
):
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            source.write_bytes(DATA[:-1] + b"!")
            source.write_bytes(DATA)

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        for index in range(100):
            copy = tmp_path / f"copy-{index}"
            try:
                check(source, copy)
            except DigestError:
                assert not copy.exists()
            else:
                assert copy.read_bytes() == DATA
    finally:
        stop.set()
        attacker.join()
        shutil.rmtree(tmp_path, ignore_errors=True)
