"""A disk that is full while keys are made: the same command works once there is room."""

import os
from pathlib import Path

import commands
import pytest

from ddm_fed.errors import KeyFileError
from ddm_fed.signing import SigningKey, keys, write_key

pytestmark = pytest.mark.slow

SOME_ROOT = "sha256:" + "a" * 64
LIMITS = [0, 64, 110, 200, 400, 900]  # bytes a file may have: another file fails at each of them
COMMANDS = {
    "ddm-site": ("init", "home", "--name", "hospital-a", "--root", SOME_ROOT),
    "ddm-coord": ("init", "home", "--federation", "digits"),
}


def command(folder: Path, program: str, *arguments: str, limit: int | None = None):
    """Runs a command as a process of its own, for which every file is full at `limit` bytes."""
    here, there = os.pipe()  # what it says would not fit into a file either
    with open(here, encoding="utf-8") as said:  # noqa: PTH123
        try:
            ended = commands.run(program, *arguments, cwd=folder, stderr=there, most=limit)
        finally:
            os.close(there)
        return ended._replace(err=said.read())


@pytest.mark.parametrize("program", COMMANDS)
def test_init_on_a_full_disk_leaves_no_broken_key_and_works_once_there_is_room(
    tmp_path: Path, program: str
):
    for limit in LIMITS:
        ended = command(tmp_path, program, *COMMANDS[program], limit=limit)
        assert ended.code == 1, limit
        assert "error[DDM105]" in ended.err
        for file in (tmp_path / "home" / "keys").iterdir():  # whole, or not there at all
            assert (b"PRIVATE KEY" in file.read_bytes()) == (file.suffix == ".pem"), file
    ended = command(tmp_path, program, *COMMANDS[program])
    assert ended.code == 0, ended.err


def test_keygen_on_a_full_disk_leaves_no_key(tmp_path: Path):
    assert command(tmp_path, "ddm-site", "keygen", "dpo.pem", limit=40).code == 1
    assert list(tmp_path.iterdir()) == []
    assert command(tmp_path, "ddm-site", "keygen", "dpo.pem").code == 0


def test_empty_key_of_an_earlier_version_says_what_it_is_and_the_way_on(tmp_path: Path):
    arguments = COMMANDS["ddm-site"]
    (tmp_path / "home" / "keys").mkdir(parents=True)
    empty = tmp_path / "home" / "keys" / "site.pem"
    empty.touch(mode=0o600)
    ended = command(tmp_path, "ddm-site", *arguments)
    assert ended.code == 1
    assert "error[DDM103]" in ended.err
    assert "is empty: no key was ever in it" in ended.err
    assert "passphrase" not in ended.err.lower()
    assert "delete home/keys/site.pem" in ended.err
    empty.unlink()
    assert command(tmp_path, "ddm-site", *arguments).code == 0


def test_damaged_key_without_encryption_does_not_ask_for_a_passphrase(tmp_path: Path):
    file = tmp_path / "key.pem"
    write_key(file)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(KeyFileError, match="cannot be opened") as caught:
        SigningKey.read(file)
    assert "restore it from backup" in caught.value.hint


@pytest.mark.parametrize("link", [True, False])
def test_key_is_never_written_over_another(tmp_path: Path, monkeypatch, link: bool):
    if not link:  # as on a medium whose file system knows no second name
        monkeypatch.setattr(keys.os, "link", _refuse)
    first = write_key(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyFileError, match="exists already"):
        SigningKey.generate().write(tmp_path / "key.pem")
    assert SigningKey.read(tmp_path / "key.pem").public == first.public
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.pem", "key.pub"]


def _refuse(*_: object) -> None:
    raise PermissionError(keys.errno.EPERM, "Operation not permitted")
