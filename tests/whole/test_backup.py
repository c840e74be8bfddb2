"""The drill of docs/operations.md, with real processes: copied at work, restored, gone on with."""

import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from commands import Ended, done, run
from federation import SITES, Federation
from member import served

from coordinator import journal
from coordinator.inbox.admission import admitted_bundles

A, B, C = SITES
SCRIPTS = Path(__file__).parents[2] / "examples" / "deployment"
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed"),
]


@pytest.fixture
def fed(copy_of) -> Federation:
    """Three sites that have released a bundle each, and a coordinator that has none."""
    return copy_of("released", *SITES)


def back_up(fed: Federation, copy: Path) -> None:
    subprocess.run([SCRIPTS / "backup.sh", fed.home.path, copy], check=True, timeout=120)


def restore(fed: Federation, copy: Path) -> None:
    """The machine is lost, and the copy takes the folder's place."""
    shutil.rmtree(fed.home.path)
    shutil.copytree(copy, fed.path / "consortium", symlinks=True)


def ask(fed: Federation, name: str, port: int, command: str = "submit") -> Ended:
    """Runs `submit` or `fetch` of a site; submit names the published folder it fetched."""
    site = fed.path / name
    to = ("--plan", site / "published", "--to") if command == "submit" else ("--from",)
    return run("ddm-site", command, "--site", site, *to, f"grpcs://127.0.0.1:{port}")


def sent(fed: Federation, name: str, port: int) -> None:
    """The site fetches what is published, and its bundle is admitted."""
    for command in ("fetch", "submit"):
        ended = ask(fed, name, port, command)
        assert ended.code == 0, ended
    assert len(list((fed.path / name / "receipts").iterdir())) == 1


def require_whole(folder: Path) -> int:
    """Returns the size of the log of a folder in which everything belongs together."""
    copied = Federation(folder.parent)
    log = copied.log  # its head is the one that was signed last
    assert len(admitted_bundles(copied.home, copied.trust, log)) == log.size
    for bundle in admitted_bundles(copied.home, copied.trust, log):
        assert all(copied.home.blobs.path(sha256).is_file() for sha256 in bundle.sha256.values())
    noted = [event for event in journal.events(copied.home) if event["event"] == "admitted"]
    assert len(noted) in (log.size, log.size - 1)  # a leaf comes before its line
    return log.size


def test_folder_copied_while_bundles_arrive_is_restored_and_goes_on(fed, scratch):
    ended = threading.Event()
    sizes = []

    def keep_copying() -> None:
        while not ended.is_set():
            copy = scratch / f"copy-{len(sizes)}" / "consortium"
            back_up(fed, copy)
            sizes.append(require_whole(copy))

    with served(fed, "--reserve", "0") as port:
        copying = threading.Thread(target=keep_copying)
        copying.start()
        try:
            sent(fed, A, port)
            sent(fed, B, port)
        finally:
            ended.set()
            copying.join()
        back_up(fed, scratch / "last")
    head, version = fed.log.head, fed.trust.roster.version
    assert sizes == sorted(sizes)
    restore(fed, scratch / "last")
    assert (fed.log.head, fed.trust.roster.version) == (head, version)
    done("ddm-coord", "check-consistency", fed.published, fed.path / A, fed.path / B, *own(fed))
    with served(fed, "--reserve", "0") as port:
        sent(fed, C, port)
        assert ask(fed, A, port, "fetch").code == 0
    assert fed.log.size == 3
    assert fed.log.head_at(2) == head
    done("ddm-coord", "assemble", scratch / "ensemble", *own(fed))


def own(fed: Federation) -> tuple[object, ...]:
    return "--coordinator", fed.home.path


def test_copy_waits_for_whoever_changes_the_folder(fed, scratch):
    with fed.home.changing():
        copying = subprocess.Popen([SCRIPTS / "backup.sh", fed.home.path, scratch / "copy"])
        deadline = time.monotonic() + 60
        while not (scratch / "copy" / "coordinator.toml").exists():  # the first pass
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            copying.wait(2)
        (fed.home.path / "evidence" / "last").write_text("written under the lock")
    assert copying.wait(60) == 0
    assert (scratch / "copy" / "evidence" / "last").exists()


def test_old_copy_is_noticed_by_the_site_it_forgot_and_is_mended_from_it(fed, scratch):
    with served(fed, "--reserve", "0") as port:
        sent(fed, A, port)
        back_up(fed, scratch / "copy")
        sent(fed, B, port)
    head = fed.log.head
    restore(fed, scratch / "copy")
    with served(fed, "--reserve", "0") as port:
        refused = ask(fed, B, port, "fetch")
    assert refused.code == 1
    assert "DDM217" in refused.err
    assert "for place 1" in refused.err

    kept = fed.path / B
    (released,) = (kept / "outbox" / "released").iterdir()
    receipt = kept / "receipts" / f"{released.name}.dsse.json"
    for _ in range(2):  # twice does no harm
        words = [SCRIPTS / "put_back.sh", fed.home.path, released, receipt]
        subprocess.run(words, check=True, timeout=60)
    done("ddm-coord", "admit", *own(fed))
    assert fed.log.head == head
    with served(fed, "--reserve", "0") as port:
        assert ask(fed, B, port, "fetch").code == 0
        sent(fed, C, port)
    done("ddm-coord", "assemble", scratch / "ensemble", *own(fed))


def test_old_copy_that_went_on_is_proven_a_second_history_by_a_receipt(fed, scratch):
    with served(fed, "--reserve", "0") as port:
        sent(fed, A, port)
        back_up(fed, scratch / "copy")
        sent(fed, B, port)
    restore(fed, scratch / "copy")
    with served(fed, "--reserve", "0") as port:
        sent(fed, C, port)  # has seen nothing that the copy lacks
        refused = ask(fed, B, port, "fetch")
    assert refused.code == 1
    assert "DDM216" in refused.err
    assert json.loads(run("ddm-coord", "status", "--json", *own(fed)).out)
