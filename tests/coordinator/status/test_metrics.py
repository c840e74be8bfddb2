"""The metrics, as Prometheus' own parser reads them."""

import os
import threading
from pathlib import Path

import pytest
from commands import Ended, run
from federation import SITES, Federation, flip
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from coordinator.inbox.admission import admit_arrivals
from coordinator.status.metrics import ServerMetrics, exposition, write_textfile
from coordinator.status.report import STATES, site_states
from ddm_fed.storage.files import exclusive

A, B, C = SITES


@pytest.fixture
def fed(copy_of) -> Federation:
    return copy_of("submitted")


def samples_of(text: bytes) -> dict[tuple, float]:
    """Returns every sample by its name and the values of its labels, sorted by their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def measured(fed: Federation, server: ServerMetrics | None = None) -> dict[tuple, float]:
    return samples_of(exposition(fed.home, site_states(fed.home), server))


def test_every_site_is_in_exactly_one_state(fed: Federation):
    flip(fed.arrival(B) / "expert.safetensors", -1)
    admit_arrivals(fed.home, fed.trust)
    found = measured(fed)
    for site in SITES:
        states = [found["ddm_fed_site_state", site, name.replace(" ", "_")] for name in STATES]
        assert sorted(states) == [0] * (len(STATES) - 1) + [1]
    assert found["ddm_fed_site_state", A, "admitted"] == 1
    assert found["ddm_fed_site_state", B, "refused"] == 1


def test_counts_of_the_folder_are_those_of_log_and_audit(fed: Federation):
    before = measured(fed)
    assert (before["ddm_fed_admissions_total",], before["ddm_fed_log_size",]) == (0, 0)
    flip(fed.arrival(B) / "expert.safetensors", -1)
    (fed.home.incoming / "junk").mkdir()
    admit_arrivals(fed.home, fed.trust)
    found = measured(fed)
    assert (found["ddm_fed_admissions_total",], found["ddm_fed_log_size",]) == (2, 2)
    assert found["ddm_fed_refusals_total", "DDM205"] == 1
    assert found["ddm_fed_refusals_total", "DDM206"] == 1
    roster = fed.home.chain().current
    assert found["ddm_fed_roster_version",] == roster.version
    expiry = found["ddm_fed_roster_expires_timestamp_seconds",]
    assert expiry == roster.expires_at.timestamp()
    free = os.statvfs(fed.home.path)
    assert found["ddm_fed_disk_free_bytes",] == pytest.approx(
        free.f_bavail * free.f_frsize, rel=0.05
    )


def test_upload_is_measured_only_while_it_is_unfinished(fed: Federation):
    assert not any(name == "ddm_fed_upload_size_bytes" for name, *_ in measured(fed))
    folder = fed.inbox / "partial" / "x"
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(
        '{"site": "hospital-a", "carrier": "grpc", "size_bytes": 10, "committed_bytes": 4, '
        '"updated_at": "2026-11-28T09:00:00Z"}'
    )
    found = measured(fed)
    assert found["ddm_fed_upload_size_bytes", A] == 10
    assert found["ddm_fed_upload_committed_bytes", A] == 4


def test_metrics_of_a_federation_without_a_plan_are_there(tmp_path: Path):
    from coordinator.roster import proposals
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.create(tmp_path / "home", "test")
    found = samples_of(exposition(home, site_states(home)))
    assert found["ddm_fed_roster_version",] == 0
    proposals.complete_genesis(home)
    assert samples_of(exposition(home, site_states(home)))["ddm_fed_roster_version",] == 1


def test_server_counts_exactly_from_many_threads(fed: Federation):
    server = ServerMetrics()
    inside, leave = threading.Barrier(9), threading.Event()

    def serve() -> None:
        with server.writing():
            inside.wait(30)
            leave.wait(30)
            for _ in range(1000):
                server.rpc_ended("Write", "OK")
                server.received(A, 256)

    threads = [threading.Thread(target=serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    inside.wait(30)
    assert measured(fed, server)["ddm_fed_open_writes",] == 8
    leave.set()
    for thread in threads:
        thread.join()
    server.rpc_ended("Begin", "PERMISSION_DENIED")
    found = measured(fed, server)
    assert found["ddm_fed_rpcs_total", "OK", "Write"] == 8000
    assert found["ddm_fed_rpcs_total", "PERMISSION_DENIED", "Begin"] == 1
    assert found["ddm_fed_received_bytes_total", A] == 8 * 256_000
    assert found["ddm_fed_open_writes",] == 0


def test_stream_that_fails_is_no_longer_open(fed: Federation):
    server = ServerMetrics()
    with pytest.raises(ConnectionError), server.writing():
        raise ConnectionError
    assert measured(fed, server)["ddm_fed_open_writes",] == 0


def test_nothing_of_ours_is_registered_globally(fed: Federation):
    measured(fed, ServerMetrics())
    assert not any(family.name.startswith("ddm_fed") for family in REGISTRY.collect())


def test_label_with_quotes_and_line_feeds_stays_one_sample(fed: Federation):
    server, odd = ServerMetrics(), 'a"} 1\nddm_fed_log_size 99\\'
    server.rpc_ended(odd, "OK")
    found = measured(fed, server)
    assert found["ddm_fed_rpcs_total", "OK", odd] == 1
    assert found["ddm_fed_log_size",] == 0


# As a file for node_exporter


def status(fed: Federation, *arguments: object) -> Ended:
    return run("ddm-coord", "status", "--coordinator", fed.home.path, *arguments)


def test_status_writes_the_text_format_while_another_command_works(fed: Federation, tmp_path):
    file = tmp_path / "ddm_fed.prom"
    with exclusive(fed.home.path / ".lock"):
        done = status(fed, "--prometheus", file)
    assert done == (0, "", "")
    assert samples_of(file.read_bytes())["ddm_fed_site_state", A, "arrived"] == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [file.name]
    assert file.stat().st_mode & 0o444 == 0o444  # node_exporter is another user


def test_status_with_two_forms_of_one_answer_is_wrong_usage(fed: Federation, tmp_path):
    assert status(fed, "--json", "--prometheus", tmp_path / "x.prom").code == 2


@pytest.mark.slow
def test_textfile_is_old_or_new_and_no_part_is_ever_read(tmp_path: Path):
    """As node_exporter does: every name that ends in .prom is read, hidden or not."""
    file, done, seen = tmp_path / "ddm_fed.prom", threading.Event(), set()
    texts = [b"a" * 100_000 + b"\n", b"b" * 100_000 + b"\n"]
    write_textfile(file, texts[0])

    def read() -> None:
        while not done.is_set():
            seen.update(path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".prom")

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        write_textfile(file, texts[number % 2])
    done.set()
    reader.join()
    assert seen <= set(texts)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_textfile_does_not_write_through_a_link(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / ".part-x.prom.new").symlink_to(victim)
    write_textfile(tmp_path / "x.prom", b"text\n")
    assert (tmp_path / "x.prom").read_bytes() == b"text\n"
    assert victim.read_bytes() == b"mine"
