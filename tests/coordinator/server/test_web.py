"""The read-only web page: what it shows, what it refuses, and that nobody can hold it up."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from commands import Started
from federation import SITES, Federation, flip, make_odd_file, snapshot
from hatchling.builders.wheel import WheelBuilder

from coordinator.inbox.admission import admit_arrivals
from coordinator.server import web
from coordinator.server.web import start_web
from coordinator.status.metrics import ServerMetrics
from ddm_fed.errors import MachineError
from ddm_fed.pictures import write_grid
from ddm_fed.storage.files import exclusive

A, B, C = SITES
ROOT = Path(__file__).parents[3]
PATHS = ("/", "/status.css", "/status.json", "/metrics", "/samples.png", "/healthz")
TEMPLATES = ("coordinator/server/templates/status.html", "coordinator/server/templates/status.css")
HOSTILE = "<script>alert(1)<img src=x onerror=alert(2)>\"'&"


def one_picture(folder: Path, seed: int = 0) -> bytes:
    """Puts a grid of noise into `folder`; returns its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.rand((16, 1, 8, 8), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    write_grid(folder / "grid.png", images)
    return (folder / "grid.png").read_bytes()


def lived_in(fed: Federation) -> Federation:
    """Has one site admitted, one refused, one uploading, and junk with a hostile name."""
    flip(fed.arrival(B) / "expert.safetensors", -1)
    shutil.rmtree(fed.arrival(C))
    (fed.home.incoming / HOSTILE.replace("/", "")).mkdir()
    admit_arrivals(fed.home, fed.trust)
    (fed.home.incoming / f"later {HOSTILE}").mkdir()
    folder = fed.inbox / "partial" / ("c" * 64)
    folder.mkdir(parents=True)
    facts = {
        "site": C,
        "carrier": f"grpc {HOSTILE}",
        "size_bytes": 1_300_000_000,
        "committed_bytes": 546_000_000,
        "updated_at": "2026-11-28T09:00:00Z",
    }
    (folder / "progress.json").write_text(json.dumps(facts))
    return fed


@pytest.fixture(scope="module")
def fed(stages, tmp_path_factory) -> Federation:
    """A federation in the middle of its work. Never change it."""
    base = tmp_path_factory.mktemp("web")
    yield lived_in(stages.submitted.copy(base, "consortium"))
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def picture(fed) -> bytes:
    samples = fed.path / "samples"
    data = one_picture(samples)
    (samples / "samples.json").write_text(json.dumps({"count": 16, "ensemble_sha256": "ab" * 32}))
    return data


@pytest.fixture(scope="module")
def server(fed, picture):
    """The page of that federation."""
    metrics = ServerMetrics()
    metrics.rpc_ended("Begin", "OK")
    with start_web(fed.home, metrics=metrics, samples=fed.path / "samples") as running:
        yield running


class Answer:
    """A response that is read and closed."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def text(self) -> str:
        return self.body.decode()


def ask(server, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def talk(server, data: bytes, *, timeout_s: float = 30) -> bytes:
    """Sends bytes as they are; returns all that comes back until the other side closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s) as peer:
        peer.sendall(data)
        found = b""
        while block := peer.recv(65536):
            found += block
        return found


class Tables(HTMLParser):
    """Collects the cells of every row, the tags and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.tags, self.attributes, self._cell = [], set(), set(), None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join(" ".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell.append(data)


# What it shows


def test_page_has_the_table_of_status(server):
    rows = {row[0]: row for row in Tables(ask(server).text).rows}
    assert rows[A][1] == "admitted"
    assert rows[A][3:] == ["1", "2.0000", "0", "ddm-coord assemble"]
    assert rows[B][1].startswith("refused DDM206 at ")
    assert rows[C][1].startswith("uploading 42 % of 1.3 GB by grpc")
    assert rows["site"][-1] == "waiting for"


def test_page_shows_refusals_arrivals_and_the_heads(server, fed):
    text = ask(server).text
    assert "DDM205" in text
    assert "Arrived, not verified yet" in text
    assert fed.home.settings.root in text
    assert fed.log.head.root in text
    assert fed.trust.plan_sha256 in text


def test_page_shows_requests_that_wait_for_approval(fed, monkeypatch):
    from coordinator.server import web_pages

    real = web_pages.settled_states
    waiting = [{"site": "hospital-x", "keys": [f"ed25519:<b>{HOSTILE}"]}]
    monkeypatch.setattr(
        web_pages, "settled_states", lambda home: real(home) | {"requests": waiting}
    )
    with start_web(fed.home) as running:
        text = ask(running).text
    assert "Requests to join" in text
    assert "site: hospital-x" in text
    assert "<b>" not in text


def test_hostile_names_are_text_and_never_markup(server):
    found = Tables(ask(server).text)
    assert not found.tags & {"script", "iframe", "object", "form", "input"}
    assert not any(name.startswith("on") for name in found.attributes)
    assert "style" not in found.attributes  # the policy would not allow it
    assert any("<script>alert(1)" in cell for row in found.rows for cell in row)


def test_page_of_a_fresh_coordinator_says_what_is_missing(tmp_path):
    from coordinator.workspace import CoordinatorFolder

    with start_web(CoordinatorFolder.create(tmp_path / "home", "test")) as running:
        text = ask(running).text
        assert ask(running, "/samples.png").status == 404
    assert "Nobody is enrolled yet." in text
    assert "not published yet" in text
    assert "None yet" in text


@pytest.mark.parametrize("stage", ["drafted", "submitted", "admitted"])
def test_page_follows_the_federation_through_its_stages(stages, stage):
    fed = getattr(stages, stage)
    expected = {"drafted": "in the roster", "submitted": "arrived", "admitted": "admitted"}[stage]
    before = snapshot(fed.home.path)
    with start_web(fed.home) as running:
        rows = {row[0]: row for row in Tables(ask(running).text).rows}
        assert all(ask(running, path).status in (200, 404) for path in PATHS)
    assert [rows[name][1] for name in SITES] == [expected] * 3
    assert snapshot(fed.home.path) == before


def test_page_shows_what_happened_since(copy_of):
    fed = copy_of("submitted")
    with start_web(fed.home) as running, exclusive(fed.home.path / ".lock"):
        assert "0 of 3 sites admitted" in ask(running).text
        admit_arrivals(fed.home, fed.trust)
        deadline = time.monotonic() + 30
        while "3 of 3 sites admitted" not in ask(running).text:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_json_is_the_report_without_names_of_this_machine(server, fed):
    answer = ask(server, "/status.json")
    report = json.loads(answer.body)
    assert answer.headers["Content-Type"] == "application/json"
    assert [row["state"] for row in report["sites"]] == ["admitted", "refused", "uploading"]
    assert report["refused_count"] == 2
    assert str(fed.path) not in answer.text
    assert set(report["refused"][0]) == {
        *("at", "arrival", "claimed_site", "claim_signed", "code", "message"),
    }


def test_no_page_names_a_folder_or_a_key_of_this_machine(fed, server):
    texts = [ask(server, path).body for path in PATHS]
    secrets = [path.read_bytes() for path in fed.home.keys.iterdir()]
    assert all(str(fed.path).encode() not in text for text in texts)
    assert all(secret[30:60] not in text for secret in secrets for text in texts)


def test_metrics_are_there_with_those_of_the_server(server):
    answer = ask(server, "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert 'ddm_fed_site_state{site="hospital-a",state="admitted"} 1.0' in answer.text
    assert 'ddm_fed_rpcs_total{code="OK",rpc="Begin"} 1.0' in answer.text.replace(
        'rpc="Begin",code="OK"', 'code="OK",rpc="Begin"'
    )


def test_damaged_folder_is_503_with_a_code_and_health_goes_on(copy_of):
    fed = copy_of("admitted")
    audit = fed.home.audit
    audit.write_bytes(audit.read_bytes().replace(b"admitted", b"admittee", 1))
    with start_web(fed.home) as running:
        answer = ask(running, "/status.json")
        assert answer.status == 503
        assert "error DDM104" in answer.text
        assert str(fed.path) not in answer.text
        assert ask(running, "/healthz").status == 200


# The picture


def test_samples_are_the_bytes_of_the_grid(server, picture):
    answer = ask(server, "/samples.png")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/png")
    assert answer.body == picture
    assert "abababababababab…" in ask(server).text


def test_samples_of_several_runs_are_the_newest(fed, tmp_path):
    one_picture(tmp_path / "old", 1)
    os.utime(tmp_path / "old" / "grid.png", (1, 1))
    newest = one_picture(tmp_path / "new", 2)
    (tmp_path / ".part-new").mkdir()
    (tmp_path / "none").mkdir()
    with start_web(fed.home, samples=tmp_path) as running:
        assert ask(running, "/samples.png").body == newest
        one_picture(tmp_path, 3)
        assert ask(running, "/samples.png").body != newest


@pytest.mark.parametrize("kind", ["link", "folder-link", "dangling", "fifo", "folder"])
def test_samples_that_are_no_plain_file_are_not_shown(fed, tmp_path, kind):
    if kind == "folder":
        (tmp_path / "grid.png").mkdir()
    else:
        make_odd_file(tmp_path / "grid.png", kind)
    with start_web(fed.home, samples=tmp_path) as running:
        assert ask(running, "/samples.png").status == 404
        assert "None yet" in ask(running).text


def test_samples_in_a_folder_behind_a_link_are_not_shown(fed, tmp_path):
    one_picture(tmp_path / "private")
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "one").symlink_to(tmp_path / "private")
    with start_web(fed.home, samples=tmp_path / "shown") as running:
        assert ask(running, "/samples.png").status == 404


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"<script>alert(1)</script>",
        lambda data: data[:-1],
        lambda data: b"\x89PNX" + data[4:],
        lambda data: data[:33] + b"\0" * (17 << 20) + data[-12:],
    ],
    ids=["empty", "markup", "cut", "signature", "huge"],
)
def test_samples_that_are_no_picture_are_not_shown(fed, tmp_path, spoil):
    (tmp_path / "grid.png").write_bytes(spoil(one_picture(tmp_path)))
    with start_web(fed.home, samples=tmp_path) as running:
        assert ask(running, "/samples.png").status == 404


@pytest.mark.parametrize("text", ["", "[]", '{"count": "x"}', f'{{"count": 1, "x": "{HOSTILE}"}}'])
def test_caption_of_an_odd_summary_is_plain(fed, tmp_path, text):
    one_picture(tmp_path)
    (tmp_path / "samples.json").write_text(text)
    with start_web(fed.home, samples=tmp_path) as running:
        assert "Samples of an ensemble" in ask(running).text


def test_caption_of_a_hostile_digest_is_text(fed, tmp_path):
    one_picture(tmp_path)
    summary = {"count": 16, "ensemble_sha256": HOSTILE}
    (tmp_path / "samples.json").write_text(json.dumps(summary))
    with start_web(fed.home, samples=tmp_path) as running:
        assert "script" not in Tables(ask(running).text).tags


# What it refuses


@pytest.mark.parametrize("path", PATHS)
def test_headers_of_every_page_are_strict(server, path):
    headers = ask(server, path).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "script-src" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Connection"] == "close"
    assert "Python" not in str(headers)
    assert headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize("path", PATHS)
def test_head_has_the_headers_of_get_and_no_body(server, path):
    whole, head = ask(server, path), ask(server, path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    if path not in ("/", "/metrics"):  # these say when, and how much is free
        assert head.headers["Content-Length"] == str(len(whole.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/", "/status.json"])
def test_methods_that_could_change_something_are_405(server, method, path):
    answer = ask(server, path, method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    [
        "/../coordinator.toml",
        "/..%2fcoordinator.toml",
        "/%2e%2e/keys/root.pem",
        "/keys/root.pem",
        "/samples.png/../../keys/root.pem",
        "/status.json/",
        "/status.json?x=1",
        "/?x=<script>",
        "/STATUS.JSON",
        "/status.css/../status.html",
        "/status.html",
        "/templates/status.html",
        "/audit.jsonl",
        "/favicon.ico",
        "http://127.0.0.1/",
        "*",
        "/" + "a" * 5000,
    ],
)
def test_any_other_path_is_404_and_is_not_repeated(server, path):
    answer = talk(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1"))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"there is no such page\n")


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "LOCALHOST:8470", "[::1]", "[::1]:80", "127.0.0.1:1"]
)
def test_host_of_this_machine_is_served(server, host):
    assert ask(server, Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "localhost.", "127.0.0.1.nip.io", "127.0.0.2", "",
     "localhost:80:80", "user@localhost", "localhost/", "[::1", "::1", "a" * 300, "localhost "
     "evil.example"],
)  # fmt: skip
def test_host_of_another_name_is_refused_against_dns_rebinding(server, host):
    for path in PATHS:
        answer = ask(server, path, Host=host)
        assert answer.status == 421
        assert b"hospital" not in answer.body


@pytest.mark.parametrize(
    ("version", "lines", "status"),
    [
        ("1.1", "", 400),
        ("1.0", "", 421),
        ("1.1", "Host: localhost\r\nHost: evil.example\r\n", 400),
        ("1.1", "Host: evil.example\r\nHost: localhost\r\n", 400),
        ("1.0", "Host: evil.example\r\nHost: localhost\r\n", 400),
    ],
)
def test_host_that_is_missing_or_given_twice_is_refused(server, version, lines, status):
    answer = talk(server, f"GET / HTTP/{version}\r\n{lines}\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"hospital" not in answer


def test_name_of_a_proxy_is_served_once_it_is_given(fed):
    with start_web(fed.home, names=["Status.Example"]) as running:
        assert ask(running, Host="status.example").status == 200
        assert ask(running, Host="other.example").status == 421


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /\x01 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"\0" * 100 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"a" * 100_000, 431),
    ],
    ids=range(12),
)
def test_request_that_is_none_is_refused_in_a_line(server, data, status):
    try:
        answer = talk(server, data)
    except ConnectionError:  # closed while we were still sending
        answer = f"HTTP/1.1 {status} ".encode()
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert ask(server, "/healthz").status == 200


# What it withstands


def test_fifty_at_once_are_all_answered(server):
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda index: ask(server, PATHS[index % 6]).status, range(200)))
    assert found == [200] * 200


def test_many_who_ask_cost_one_reading(fed, monkeypatch):
    from coordinator.server import web_pages

    readings, real = [], web_pages.settled_states
    monkeypatch.setattr(web_pages, "settled_states", lambda home: readings.append(1) or real(home))
    with start_web(fed.home) as running, ThreadPoolExecutor(20) as pool:
        assert set(pool.map(lambda _: ask(running).status, range(40))) == {200}
    assert len(readings) < 10


def test_slow_request_ends_after_its_time_however_it_drips(server, monkeypatch):
    monkeypatch.setattr(web, "REQUEST_S", 1.0)
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        answered = b""
        while not answered and time.monotonic() < started + 20:
            peer.sendall(b"y")  # never silent for long
            peer.settimeout(0.1)
            try:
                answered = peer.recv(100)
            except TimeoutError:
                continue
    assert answered.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started < 10


def test_slow_clients_on_every_connection_do_not_keep_others_out(server):
    held = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(150)]
    try:
        for peer in held:
            peer.sendall(b"GET / HT")
        started = time.monotonic()
        assert ask(server, "/healthz").status == 200
        assert time.monotonic() - started < 15
        assert threading.active_count() < web.MAX_CONNECTIONS + 20
    finally:
        for peer in held:
            peer.close()


def test_client_that_never_reads_does_not_keep_a_thread(fed, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "ANSWER_S", 1.0)
    data = one_picture(tmp_path)
    (tmp_path / "grid.png").write_bytes(data[:33] + b"\0" * (15 << 20) + data[-12:])
    with start_web(fed.home, samples=tmp_path) as running:
        assert ask(running, "/healthz").status == 200  # a thread of the pool is there from now on
        before = threading.active_count()
        with socket.create_connection(("127.0.0.1", running.port), 30) as peer:
            peer.sendall(b"GET /samples.png HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(2.5)
            assert threading.active_count() <= before
            read = 0
            while block := peer.recv(1 << 20):
                read += len(block)
    assert read < 15 << 20  # it was ended with most of the answer unsent


def test_page_that_fails_is_500_and_said_without_telling_the_visitor(fed, monkeypatch, capfd):
    from coordinator.server import web_pages

    def broken(home):
        raise KeyError("a fault of ours")

    monkeypatch.setattr(web_pages, "settled_states", broken)
    with start_web(fed.home) as running:
        answer = ask(running, "/status.json")
        assert answer.status == 500
        assert "fault" not in answer.text
        assert ask(running, "/healthz").status == 200
    assert capfd.readouterr().err == "the web page failed to answer: KeyError: 'a fault of ours'\n"


def test_answer_does_not_wait_for_the_body_of_a_request(server):
    for length in (10, 10**9):
        data = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        assert talk(server, data.encode()).startswith(b"HTTP/1.1 405 ")


def test_second_request_on_a_connection_is_not_answered(server):
    once = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert talk(server, once * 2).count(b"HTTP/1.1 200 ") == 1


def test_client_that_hangs_up_is_no_news(server, capfd):
    for data in (b"", b"GET", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), 30) as peer:
            peer.sendall(data)
    assert ask(server, "/healthz").status == 200
    assert capfd.readouterr() == ("", "")


def test_second_server_at_one_port_is_an_error_with_a_hint(fed, server):
    with pytest.raises(MachineError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        start_web(fed.home, "127.0.0.1", server.port)


def test_port_is_free_again_after_close(fed):
    with start_web(fed.home) as first:
        port = first.port
    with start_web(fed.home, port=port) as second:
        assert ask(second, "/healthz").body == b"ok\n"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_server_at_an_address_of_ipv6_answers(fed):
    try:
        running = start_web(fed.home, "::1")
    except MachineError:
        pytest.skip("this machine has no ::1")
    with running, socket.create_connection(("::1", running.port), 30) as peer:
        peer.sendall(f"GET /healthz HTTP/1.1\r\nHost: [::1]:{running.port}\r\n\r\n".encode())
        assert peer.recv(100).startswith(b"HTTP/1.1 200 ")


# The command


def test_command_serves_until_it_is_told_to_stop(fed):
    words = ("--coordinator", fed.home.path, "--port", 0, "--samples", fed.path)
    with Started("ddm-coord", "web", *words) as process:
        url = process.stdout.readline().strip()
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", url)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/")
        assert b"hospital-a" in connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_templates_are_files_that_the_wheel_takes():
    """Hatch takes every file of a package that git does not ignore, unless it is told otherwise."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "coordinator" in wheel["packages"]
    assert not {"exclude", "only-include", "include"} & (set(wheel) | set(project["tool"]["hatch"]))
    assert all((ROOT / name).is_file() for name in TEMPLATES)
    ignored = (ROOT / ".gitignore").read_text().split()
    assert not [line for line in ignored if "templates" in line or line in ("*.html", "*.css")]


def test_templates_are_in_the_wheel_that_is_built(tmp_path):
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path)))
    with zipfile.ZipFile(wheel) as archive:
        assert set(TEMPLATES) <= set(archive.namelist())
