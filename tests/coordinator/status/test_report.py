"""The journey of every bundle as the coordinator tells it, once and while it changes."""

import json
import os
import pty
import shutil
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from commands import Started, environment, run
from federation import (
    SITES,
    Federation,
    flip,
    forge_manifest,
    manifest,
    random_images,
    snapshot,
    train,
)

from coordinator.ensembles.assemble import assemble
from coordinator.ensembles.remove import remove
from coordinator.inbox import admission
from coordinator.inbox.admission import admit_arrivals
from coordinator.journal import refusals
from coordinator.status.bundles import MAX_LOOKED_AT
from coordinator.status.report import STATES, SiteRow, settled_states, site_row, site_states
from coordinator.status.tables import shown_bytes, site_cells, site_detail
from ddm_fed.errors import LogError
from ddm_fed.signing import SigningKey
from ddm_fed.storage.files import exclusive
from ddm_fed.trust.log import read_log
from sites.outbox import stages as outbox
from sites.published import look
from sites.transport.base import FolderTransport
from sites.transport.submit import submit

A, B, C = SITES
MOMENT = datetime(2026, 11, 28, 9, 0, tzinfo=UTC)


@pytest.fixture
def fed(copy_of) -> Federation:
    """Three bundles have arrived and nobody looked at them."""
    return copy_of("submitted")


@pytest.fixture
def empty(copy_of) -> Federation:
    """Three sites are enrolled, and the plan is published."""
    return copy_of("drafted")


def rows(fed: Federation) -> dict[str, dict]:
    return {row["site"]: row for row in site_states(fed.home).as_json()["sites"]}


def states(fed: Federation) -> dict[str, str]:
    return {name: row["state"] for name, row in rows(fed).items()}


def row_of(fed: Federation, site: str = A) -> SiteRow:
    return next(row for row in site_states(fed.home).sites if row.site == site)


def put_progress(fed: Federation, *, name: str = "a" * 64, **changed) -> Path:
    """Writes what a uploads says about an unfinished upload; returns the file."""
    folder = fed.inbox / "partial" / name
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "site": A,
        "carrier": "grpc",
        "size_bytes": 2_000_000_000,
        "committed_bytes": 840_000_000,
        "updated_at": f"{MOMENT:%Y-%m-%dT%H:%M:%SZ}",
    }
    (folder / "progress.json").write_text(json.dumps(facts | changed))
    return folder / "progress.json"


# Each stage of the journey


def test_enrolled_sites_wait_for_their_bundles(empty: Federation):
    assert set(states(empty).values()) == {"in the roster"}
    row = rows(empty)[A]
    assert row["waiting_for"] == "its bundle, then `ddm-coord admit`"
    enrolled = empty.home.chain().current.site(A).enrolled_at
    assert row["last_progress"] == f"{enrolled:%Y-%m-%dT%H:%M:%SZ}"
    assert (row["upload"], row["refusal"]) == (None, None)


def test_unfinished_upload_shows_bytes_percent_and_when_it_last_moved(empty: Federation):
    put_progress(empty)
    row = rows(empty)[A]
    assert row["state"] == "uploading"
    assert row["upload"] == {
        "carrier": "grpc",
        "size_bytes": 2_000_000_000,
        "committed_bytes": 840_000_000,
        "percent": 42,
        "updated_at": "2026-11-28T09:00:00Z",
    }
    assert states(empty)[B] == "in the roster"


def test_last_progress_is_the_newest_of_all_that_happened(empty: Federation):
    put_progress(empty, updated_at="2031-01-01T00:00:00Z")
    assert rows(empty)[A]["last_progress"] == "2031-01-01T00:00:00Z"


def test_upload_of_all_but_one_byte_is_not_shown_as_whole(empty: Federation):
    put_progress(empty, size_bytes=10**12, committed_bytes=10**12 - 1)
    assert rows(empty)[A]["upload"]["percent"] == 99


def test_two_uploads_of_a_site_show_the_one_that_moved_last(empty: Federation):
    put_progress(empty, name="b" * 64, updated_at="2026-11-28T10:00:00Z", committed_bytes=0)
    put_progress(empty, name="a" * 64)
    put_progress(empty, name="c" * 64, updated_at="2026-11-28T08:00:00Z")
    assert rows(empty)[A]["upload"]["percent"] == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"committed_bytes": -1},
        {"committed_bytes": 2_000_000_001},
        {"committed_bytes": True},
        {"committed_bytes": "840"},
        {"size_bytes": 1e9},
        {"size_bytes": None},
        {"site": ["hospital-a"]},
        {"site": "hospital-x"},
        {"carrier": 7},
        {"updated_at": "2026-13-45T00:00:00Z"},
        {"updated_at": 12},
        {"carrier": "x" * 20_000},
    ],
    ids=str,
)
def test_progress_that_makes_no_sense_is_left_out(empty: Federation, changed):
    put_progress(empty, **changed)
    assert set(states(empty).values()) == {"in the roster"}


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"{", b"7", b"[" * 10_000])
def test_progress_that_is_no_object_is_left_out(empty: Federation, text):
    put_progress(empty).write_bytes(text)
    assert set(states(empty).values()) == {"in the roster"}


def test_progress_behind_a_link_is_not_read(empty: Federation, tmp_path: Path):
    file = put_progress(empty)
    file.rename(tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    assert set(states(empty).values()) == {"in the roster"}


def test_carrier_with_control_characters_is_printable(empty: Federation):
    put_progress(empty, carrier="\x1b[2Jgrpc\u202e")
    assert rows(empty)[A]["upload"]["carrier"].isprintable()


def test_bundles_that_arrived_wait_for_verify(fed: Federation):
    assert set(states(fed).values()) == {"arrived"}
    assert {row["waiting_for"] for row in rows(fed).values()} == {"`ddm-coord admit`"}


def test_arrival_that_claims_a_site_without_its_key_is_not_the_sites(fed: Federation):
    forge_manifest(fed.arrival(A), lambda fields: fields.update(site=B), SigningKey.generate())
    shutil.rmtree(fed.arrival(C))
    found = states(fed)
    assert (found[A], found[C]) == ("in the roster", "in the roster")
    assert found[B] == "arrived"  # its own bundle is there as well


def test_inbox_full_of_junk_is_looked_at_in_bounded_time(empty: Federation):
    for number in range(3 * MAX_LOOKED_AT):
        (empty.home.incoming / f"junk-{number}").mkdir()
    started = time.monotonic()
    assert len(site_states(empty.home).as_json()["arrivals"]) == 3 * MAX_LOOKED_AT
    assert time.monotonic() - started < 10


def test_admitted_sites_keep_what_earlier_versions_told(fed: Federation):
    admit_arrivals(fed.home, fed.trust)
    row = rows(fed)[A]
    admitted_at = fed.log.newest(A).receipt.admitted_at
    assert (row["state"], row["sequence"], row["waiting_for"]) == (
        *("admitted", 1, "`ddm-coord assemble`"),
    )
    assert row["last_progress"] == f"{admitted_at:%Y-%m-%dT%H:%M:%SZ}"
    assert site_states(fed.home).as_json()["admissions"] == 3


def test_status_waits_for_no_assembly_after_it_until_something_is_newer(copy_of, scratch):
    fed = copy_of("submitted", A)
    admit_arrivals(fed.home, fed.trust)
    assemble(fed.home, scratch / "our ensemble", router=None, without=[C])
    after = {name: row["waiting_for"] for name, row in rows(fed).items()}
    assert after[A] == after[B] == "nothing; it is in the ensemble our ensemble"
    assert after[C] == "`ddm-coord assemble`"

    site = fed.site(A)
    look(site, fed.published)
    train(site, fed.trust, random_images(7), seed=7, restart=True)
    outbox.review(site, fed.trust)
    outbox.release(site, fed.trust)
    submit(site, fed.trust, FolderTransport(fed.inbox))
    admit_arrivals(fed.home, fed.trust)
    assert rows(fed)[A]["waiting_for"] == "`ddm-coord assemble`"
    assert rows(fed)[B]["waiting_for"] == "nothing; it is in the ensemble our ensemble"


def test_status_counts_no_ensemble_that_a_removal_made_stale(fed: Federation, scratch):
    admit_arrivals(fed.home, fed.trust)
    assemble(fed.home, scratch / "all", router=None, without=[])
    remove(fed.home, C, reason="consent withdrawn", delete_weights=False)
    assert rows(fed)[A]["waiting_for"] == "`ddm-coord assemble`"


def test_member_with_a_newer_upload_stays_admitted_and_shows_it(fed: Federation):
    admit_arrivals(fed.home, fed.trust)
    put_progress(fed)
    row = rows(fed)[A]
    assert (row["state"], row["upload"]["percent"]) == ("admitted", 42)


def test_removed_site_shows_as_removed_until_something_new_moves(fed: Federation):
    admit_arrivals(fed.home, fed.trust)
    with fed.home.changing():
        remove(fed.home, B, reason="consent withdrawn", delete_weights=False)
    assert states(fed)[B] == "removed"
    put_progress(fed, site=B)
    assert states(fed)[B] == "uploading"


def test_every_state_is_one_of_the_listed(fed: Federation):
    flip(fed.arrival(A) / "expert.safetensors", -1)
    shutil.rmtree(fed.arrival(C))
    admit_arrivals(fed.home, fed.trust)
    put_progress(fed, site=C)
    assert [states(fed)[name] for name in SITES] == ["refused", "admitted", "uploading"]
    assert set(states(fed).values()) <= set(STATES)


# Refusals and whose they are


def test_refusal_names_the_site_that_signed_the_manifest_and_the_reason(fed: Federation):
    flip(fed.arrival(A) / "expert.safetensors", -1)
    admit_arrivals(fed.home, fed.trust)
    (event,) = refusals(fed.home)
    assert (event["claimed_site"], event["claim_signed"]) == (A, True)
    row = rows(fed)[A]
    assert row["state"] == "refused"
    assert row["refusal"] == {
        **{name: event[name] for name in ("at", "code", "message")},
        "signed": True,
    }


def test_refusal_of_a_forged_claim_says_that_nobody_signed_it(fed: Federation):
    forge_manifest(fed.arrival(A), lambda fields: None, SigningKey.generate())
    admit_arrivals(fed.home, fed.trust)
    (event,) = refusals(fed.home)
    assert (event["claimed_site"], event["claim_signed"]) == (A, False)
    assert "a claim nobody signed" in site_detail(row_of(fed), MOMENT)


@pytest.mark.parametrize("kind", ["empty", "file", "link"])
def test_refusal_without_a_manifest_claims_nobody(empty: Federation, stages, kind):
    arrival = empty.home.incoming / "odd"
    if kind == "empty":
        arrival.mkdir()
    elif kind == "file":
        arrival.write_bytes(b"")
    else:  # a link to a bundle that is whole
        arrival.symlink_to(stages.submitted.arrival(A))
    admit_arrivals(empty.home, empty.trust)
    (event,) = refusals(empty.home)
    assert (event["claimed_site"], event["claim_signed"]) == (None, False)
    assert set(states(empty).values()) == {"in the roster"}


def test_unsigned_claims_never_hide_what_the_site_itself_was_refused_for(fed: Federation):
    flip(fed.arrival(A) / "expert.safetensors", -1)
    kept = shutil.copytree(fed.arrival(A), fed.path / "kept")
    admit_arrivals(fed.home, fed.trust)
    forge_manifest(kept, lambda fields: None, SigningKey.generate())
    shutil.copytree(kept, fed.home.incoming / "forged")
    admit_arrivals(fed.home, fed.trust)
    assert [event["claim_signed"] for event in refusals(fed.home)] == [True, False]
    assert rows(fed)[A]["refusal"]["code"] == "DDM206"


def test_refusal_is_forgotten_once_the_site_is_admitted(fed: Federation):
    whole = shutil.copytree(fed.arrival(A), fed.path / "whole")
    flip(fed.arrival(A) / "expert.safetensors", -1)
    admit_arrivals(fed.home, fed.trust)
    shutil.copytree(whole, fed.home.incoming / "again")
    assert states(fed)[A] == "arrived"
    admit_arrivals(fed.home, fed.trust)
    row = rows(fed)[A]
    assert (row["state"], row["refusal"]) == ("admitted", None)


@pytest.mark.parametrize("stage", ["drafted", "submitted", "admitted"])
def test_row_of_one_site_is_that_of_the_report(stages, stage: str):
    home = getattr(stages, stage).home
    trust = home.trust()
    log = read_log(home.published, trust.chain)
    for row in site_states(home).sites:
        assert site_row(home, trust, log, row.site) == row


def test_row_of_one_site_reads_no_other_manifest(stages, monkeypatch):
    home, read = stages.admitted.home, []
    trust = home.trust()
    log, real = read_log(home.published, trust.chain), admission.read_admitted
    monkeypatch.setattr(
        admission, "read_admitted", lambda *given: read.append(given[1]) or real(*given)
    )
    assert site_row(home, trust, log, A).state == "admitted"
    assert read == [log.newest(A).submission_sha256]


def test_report_as_json_has_the_names_that_programs_read(fed: Federation):
    put_progress(fed)
    report = json.loads(json.dumps(site_states(fed.home).as_json()))
    assert list(report) == [
        *("federation", "root", "plan_sha256", "roster", "roster_expires_at", "pending_roster"),
        *("log", "admissions", "stale_ensembles", "sites", "requests", "arrivals", "refused"),
    ]
    assert list(report["log"]) == ["size", "root"]
    assert report["sites"][0] == {
        "site": A,
        "state": "arrived",
        "sequence": "",
        "epsilon": "",
        "log_index": "",
        "waiting_for": "`ddm-coord admit`",
        "upload": report["sites"][0]["upload"],
        "refusal": None,
        "last_progress": report["sites"][0]["last_progress"],
    }


# What people read


def test_detail_says_since_when_an_upload_stands_still(empty: Federation):
    put_progress(empty)
    row = row_of(empty)
    assert site_detail(row, MOMENT + timedelta(seconds=60)) == "42 % of 2.0 GB by grpc"
    assert site_detail(row, MOMENT + timedelta(seconds=600)) == (
        "42 % of 2.0 GB by grpc; no progress since 2026-11-28 09:00:00Z"
    )


def test_cells_of_a_row_without_news_are_plain(empty: Federation):
    cells = site_cells(row_of(empty), MOMENT)
    assert cells[:2] == [A, "in the roster"]
    assert cells[3:6] == ["", "", ""]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (2_147_483_648, "2.1 GB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_bytes_are_shown_in_decimal_units(count, shown):
    assert shown_bytes(count) == shown


# While others work


def test_reading_changes_nothing(fed: Federation):
    before = snapshot(fed.path)
    site_states(fed.home)
    assert snapshot(fed.path) == before


def test_states_wait_for_a_log_that_is_just_being_published(fed: Federation):
    checkpoint = fed.published / "checkpoint"
    earlier = checkpoint.read_bytes()
    admit_arrivals(fed.home, fed.trust)
    later = checkpoint.read_bytes()
    checkpoint.write_bytes(earlier)
    with pytest.raises(LogError):
        site_states(fed.home)
    timer = threading.Timer(0.3, checkpoint.write_bytes, [later])
    timer.start()
    assert {row["state"] for row in settled_states(fed.home).as_json()["sites"]} == {"admitted"}
    timer.join()


def watching(fed: Federation, *arguments: str, **options) -> Started:
    """Starts `status --watch` as a process of its own."""
    env = environment(COLUMNS="200", TERM="xterm")
    words = ("--watch", "--every", "0.1", "--coordinator", fed.home.path, *arguments)
    return Started("ddm-coord", "status", *words, env=env, **options)


def next_report(process: Started) -> dict[str, str]:
    report = json.loads(process.stdout.readline())
    return {row["site"]: row["state"] for row in report["sites"]}


def test_watch_as_json_writes_a_line_for_every_change_and_ends_on_ctrl_c_with_0(empty: Federation):
    with exclusive(empty.home.path / ".lock"), watching(empty, "--json") as process:
        assert set(next_report(process).values()) == {"in the roster"}
        put_progress(empty)
        assert next_report(process)[A] == "uploading"
        put_progress(empty, committed_bytes=1_000_000_000)
        assert next_report(process)[A] == "uploading"
        time.sleep(0.5)  # several looks at which nothing has changed
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_watch_into_a_pipe_prints_one_block_for_every_change(empty: Federation):
    with watching(empty) as process:
        first = [process.stdout.readline() for _ in range(9)]
        assert "test: sites" in first[0]
        assert first[-1] == "\n"
        time.sleep(0.5)
        put_progress(empty, updated_at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
        second = [process.stdout.readline() for _ in range(9)]
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert "uploading: 42 % of 2.0 GB by grpc" in "".join(second)
    assert (process.returncode, out) == (0, "")
    assert "\x1b" not in "".join(first + second)


def test_watch_on_a_terminal_draws_in_place(empty: Federation):
    ours, theirs = pty.openpty()
    with watching(empty, "--count", "4", stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                block = os.read(ours, 4096)
            except OSError:  # how Linux says that nobody has it open any more
                break
            if not block:
                break
            shown += block
        assert process.wait(30) == 0
    os.close(ours)
    assert b"\x1b[1A" in shown  # the cursor goes up: the next drawing takes the place of the last
    assert shown.rstrip().endswith(b"\x1b[?25h")  # and is there again at the end


def test_watch_whose_reader_goes_away_ends(empty: Federation):
    with watching(empty, "--json") as process:
        process.stdout.readline()
        process.stdout.close()
        put_progress(empty)
        process.wait(30)
        assert "Traceback" not in process.said()


@pytest.mark.slow
def test_watch_of_no_coordinator_is_an_error(tmp_path: Path):
    ended = run("ddm-coord", "status", "--watch", "--coordinator", tmp_path)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error[DDM104]")


def test_claims_of_the_fixture_are_what_the_manifests_say(fed: Federation):
    assert sorted(manifest(path)["predicate"]["site"] for path in fed.home.incoming.iterdir()) == (
        sorted(SITES)
    )
