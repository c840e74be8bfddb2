"""Killed between any two effects of admission: the same command again makes everything agree."""

import io
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federation import SITES, Federation, flip, forge_manifest, payload_of

from coordinator import journal
from coordinator.inbox.admission import admit_arrivals
from coordinator.status.report import site_states
from ddm_fed.bundle.verify import EXPERT_FILE
from ddm_fed.records import sha256_hex
from ddm_fed.storage.files import PART_PREFIX
from ddm_fed.trust.log import read_log

A, B, C = SITES
MOST_EFFECTS = 500
TORN_BYTES = 10  # less than a line of any file that is appended to
EFFECTS = (
    *("fsync", "link", "rename", "replace", "unlink", "rmdir", "mkdir", "chmod"),
    *("truncate", "ftruncate"),
)
REAL_CHMOD, REAL_FSYNC, REAL_TRUNCATE = os.chmod, os.fsync, os.truncate


class Killed(BaseException):
    """The process ends here. Not an Exception: no handler of the program takes it for an error."""


class Killer:
    """Ends the process at its n-th effect on files, and lets a dead process have no more."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int):
        self.left = at
        for name in EFFECTS:
            patch.setattr(os, name, self._before(getattr(os, name)))
        patch.setattr(os, "open", self._before(os.open, lambda _, flags, *rest: flags & os.O_CREAT))
        writes = lambda _, mode="r", *rest: set(mode) & set("wax+")  # noqa: E731
        patch.setattr(io, "open", self._before(io.open, writes))

    def _before(
        self, effect: Callable[..., Any], counts: Callable[..., Any] = lambda *_: True
    ) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            if counts(*args):
                self.left -= 1
                if self.left == 0 and effect is REAL_FSYNC:
                    _tear(args[0])
                if self.left <= 0:
                    raise Killed
            return effect(*args, **options)

        return run


def _tear(descriptor: int) -> None:
    """Makes of what was not on disk yet what a kill within the write had left."""
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        mode = stat.S_IMODE(status.st_mode)
        REAL_CHMOD(path, 0o600)
        REAL_TRUNCATE(path, max(0, status.st_size - TORN_BYTES))
        REAL_CHMOD(path, mode)


def killed_everywhere(
    start: Federation, scratch: Path, check: Callable[[Federation], None]
) -> None:
    """Kills admission at its first effect, its second and so on; recovers and checks each time."""
    trust = start.trust
    for at in range(1, MOST_EFFECTS):
        fed = start.copy(scratch / "killed", "consortium")
        survived = False
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, at)
            try:
                admit_arrivals(fed.home, trust)
                survived = True
            except Killed:
                pass
        try:
            if not survived:
                admit_arrivals(fed.home, trust)
            check(fed)
        except BaseException as error:
            error.add_note(f"killed at effect {at}")
            raise
        shutil.rmtree(fed.path)
        if survived:
            assert at > 10, "the effects of admission were not counted"
            return
    pytest.fail(f"admission has more than {MOST_EFFECTS} effects")


def events(fed: Federation, kind: str) -> list[dict[str, Any]]:
    return [event for event in journal.events(fed.home) if event["event"] == kind]


def assert_everything_agrees(fed: Federation, *sites: str) -> None:
    """Asserts that store, log, receipts, audit log and status say `sites` are admitted, once."""
    home, log = fed.home, read_log(fed.published, fed.trust.chain)
    assert sorted(entry.receipt.site for entry in log.entries) == sorted(sites)
    assert log == fed.log
    digests = [entry.submission_sha256 for entry in log.entries]
    noted = [(e["log_index"], e["submission_sha256"]) for e in events(fed, "admitted")]
    assert noted == list(enumerate(digests))
    assert {path.name: path.read_bytes() for path in home.receipts.iterdir()} == {
        f"{entry.submission_sha256}.dsse.json": entry.envelope for entry in log.entries
    }
    assert {path.name for path in home.manifest("").parent.iterdir()} == {
        f"{digest}.dsse.json" for digest in digests
    }
    signed = {
        subject["digest"]["sha256"]
        for digest in digests
        for subject in payload_of(home.manifest(digest))["subject"]
    }
    stored = {path.name: sha256_hex(path.read_bytes()) for path in home.blobs.folder.iterdir()}
    assert stored == {digest: digest for digest in signed}
    assert not list(home.path.rglob(f"{PART_PREFIX}*"))
    report = site_states(home).as_json()
    assert {row["site"] for row in report["sites"] if row["state"] == "admitted"} == set(sites)
    assert (report["arrivals"], report["log"]["size"]) == ([], len(sites))


@pytest.fixture
def fed(copy_of) -> Federation:
    """A coordinator in whose inbox only the bundle of hospital-a lies."""
    federation: Federation = copy_of("submitted")
    for name in (B, C):
        shutil.rmtree(federation.arrival(name))
    return federation


def test_admission_killed_anywhere_admits_exactly_once(fed: Federation, scratch: Path):
    def check(fed: Federation) -> None:
        assert_everything_agrees(fed, A)
        assert events(fed, "refused") == []

    killed_everywhere(fed, scratch, check)


@pytest.mark.parametrize("name", ["bundle", "\x1b[2J"], ids=["plain-name", "odd-name"])
def test_refusal_killed_anywhere_is_noted_exactly_once(fed: Federation, scratch: Path, name: str):
    flip(fed.arrival(A) / EXPERT_FILE, -1)
    fed.arrival(A).rename(fed.home.incoming / name)

    def check(fed: Federation) -> None:
        assert_everything_agrees(fed)
        (refusal,) = events(fed, "refused")
        assert refusal["code"] == "DDM206"
        assert [path.name for path in fed.home.refused.iterdir()] == [refusal["kept_as"]]

    killed_everywhere(fed, scratch, check)


def test_equivocation_killed_anywhere_keeps_both_manifests_and_is_noted_once(
    fed: Federation, site_keys, scratch: Path
):
    other = Path(shutil.copytree(fed.arrival(A), scratch / "other"))
    renamed = {"program": "ddm-fed 9.9"}
    offered = forge_manifest(other, lambda fields: fields["training"].update(renamed), site_keys[A])
    admit_arrivals(fed.home, fed.trust)
    other.rename(fed.home.incoming / "other")

    def check(fed: Federation) -> None:
        assert_everything_agrees(fed, A)
        (refusal,) = events(fed, "refused")
        assert refusal["code"] == "DDM213"
        kept = {path.name for path in (fed.home.evidence / f"{A}-1").iterdir()}
        admitted = fed.log.entries[0].submission_sha256
        assert kept == {f"{digest}.dsse.json" for digest in (admitted, offered)}

    killed_everywhere(fed, scratch, check)
