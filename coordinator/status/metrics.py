"""Metrics for Prometheus: what the folder says when asked, and what a server counted since it ran.

Nothing is registered globally. Counters are kept here, not in the library's own objects: those add
a series with their time of creation to every counter.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from coordinator.status.report import STATES, SiteRow, StatusReport
from coordinator.status.tables import moment_of
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import names_its_path
from ddm_fed.storage.files import new_file_at, open_folder_at

CONTENT_TYPE = CONTENT_TYPE_LATEST


class ServerMetrics:
    """What a server counts while it runs; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._rpcs: Counter[tuple[str, str]] = Counter()
        self._received: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._open_writes = 0

    def rpc_ended(self, rpc: str, code: str) -> None:
        """Counts a call of `rpc` that ended with the status `code`, such as `OK`."""
        with self._lock:
            self._rpcs[rpc, code] += 1

    def ended(self, reason: str, count: int) -> None:
        """Counts connections that a gate ended, such as those that waited too long."""
        with self._lock:
            self._ended[reason] += count

    def received(self, site: str, count: int) -> None:
        """Counts bytes of weights that a site of the roster sent, again if sent again."""
        with self._lock:
            self._received[site] += count

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Counts an upload stream as open while the block runs."""
        with self._lock:
            self._open_writes += 1
        try:
            yield
        finally:
            with self._lock:
                self._open_writes -= 1

    def families(self) -> Iterator[Metric]:
        """Yields the counters as they stand."""
        with self._lock:
            rpcs, received, ended = dict(self._rpcs), dict(self._received), dict(self._ended)
            open_writes = self._open_writes
        family = CounterMetricFamily(
            "ddm_fed_rpcs", "Calls that ended, by their status.", labels=["rpc", "code"]
        )
        for labels, count in sorted(rpcs.items()):
            family.add_metric(labels, count)
        yield family
        family = CounterMetricFamily(
            "ddm_fed_received_bytes", "Bytes of weights received, also twice.", labels=["site"]
        )
        for site, count in sorted(received.items()):
            family.add_metric([site], count)
        yield family
        family = CounterMetricFamily(
            "ddm_fed_connections_ended", "Connections that were ended.", labels=["reason"]
        )
        for reason, count in sorted(ended.items()):
            family.add_metric([reason.replace(" ", "_")], count)
        yield family
        yield GaugeMetricFamily(
            "ddm_fed_open_writes", "Upload streams open now.", value=open_writes
        )


class _StatusCollector(Collector):
    """Reads one report of `site_states` into metrics."""

    def __init__(self, report: StatusReport, free_bytes: int) -> None:
        self._report, self._free_bytes = report, free_bytes

    def collect(self) -> Iterator[Metric]:
        report = self._report
        yield from _of_sites(report.sites)
        yield CounterMetricFamily(
            "ddm_fed_admissions", "Submissions admitted to the log.", value=report.admissions
        )
        family = CounterMetricFamily("ddm_fed_refusals", "Bundles refused.", labels=["code"])
        for code, count in sorted(Counter(item["code"] for item in report.refused).items()):
            family.add_metric([code], count)
        yield family
        size = report.log.size if report.log else 0
        yield GaugeMetricFamily("ddm_fed_log_size", "Leaves of the transparency log.", value=size)
        yield GaugeMetricFamily(
            "ddm_fed_roster_version",
            "Version of the published roster.",
            value=report.roster or 0,
        )
        if report.roster_expires_at:
            yield GaugeMetricFamily(
                "ddm_fed_roster_expires_timestamp_seconds",
                "When the published roster expires, in Unix time.",
                value=moment_of(report.roster_expires_at).timestamp(),
            )
        yield GaugeMetricFamily(
            "ddm_fed_disk_free_bytes",
            "Bytes free where the coordinator's folder lies.",
            value=self._free_bytes,
        )


def _of_sites(rows: list[SiteRow]) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "ddm_fed_site_state", "1 for the state a site is in.", labels=["site", "state"]
    )
    progress = GaugeMetricFamily(
        "ddm_fed_site_last_progress_timestamp_seconds",
        "When a site last got further, in Unix time.",
        labels=["site"],
    )
    committed = GaugeMetricFamily(
        "ddm_fed_upload_committed_bytes", "Bytes of an unfinished upload here.", labels=["site"]
    )
    size = GaugeMetricFamily(
        "ddm_fed_upload_size_bytes", "Bytes of an unfinished upload in all.", labels=["site"]
    )
    for row in rows:
        for state in STATES:
            labels = [row.site, state.replace(" ", "_")]
            states.add_metric(labels, float(row.state == state))
        progress.add_metric([row.site], moment_of(row.last_progress).timestamp())
        if row.upload is not None:
            committed.add_metric([row.site], row.upload.committed_bytes)
            size.add_metric([row.site], row.upload.size_bytes)
    yield from (states, progress, committed, size)


class _ServerCollector(Collector):
    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics.families()


def exposition(
    home: CoordinatorFolder, report: StatusReport, server: ServerMetrics | None = None
) -> bytes:
    """Returns the metrics in Prometheus' text format.

    Args:
        home: The coordinator.
        report: What `site_states` said just now.
        server: What a server counted, where one runs.
    """
    registry = CollectorRegistry()
    registry.register(_StatusCollector(report, shutil.disk_usage(home.path).free))
    if server is not None:
        registry.register(_ServerCollector(server))
    return generate_latest(registry)


@names_its_path
def write_textfile(file: Path, text: bytes) -> None:
    """Writes `text` to `file` in one step, for node_exporter.

    It reads every name that ends in .prom, hidden or not, so a part must not.
    """
    with (
        open_folder_at(file.parent) as folder,
        new_file_at(folder, file.name, hidden=".new") as target,
    ):
        target.write(text)
