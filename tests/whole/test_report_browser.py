"""Both reports in a real browser: headless Chromium, on the screen and on paper."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from browser import chromium, needs_chromium, run_chromium, screenshot, share_of
from federation import SITES, random_images
from reports import draw_samples, evaluate_samples, write_real

from ddm_fed.distillation.folder import verify_student
from ddm_fed.ensemble.folder import verify_ensemble
from ddm_fed.errors import MachineError
from ddm_fed.report import printing
from ddm_fed.report.ensemble_facts import gather as gather_ensemble
from ddm_fed.report.ensemble_page import ensemble_page
from ddm_fed.report.facts import Sources
from ddm_fed.report.printing import find_browser, printed
from ddm_fed.report.student_facts import gather_student
from ddm_fed.report.student_page import student_page
from sites.report.facts import gather as gather_site
from sites.report.page import site_page

pytestmark = [needs_chromium, pytest.mark.slow]
TITLES = {
    "ensemble": "Report on the ensemble of test",
    "student": "Report on the student of test",
    "site": f"Private report of {SITES[0]}: what left",
}
HEADINGS = {
    "ensemble": "In short, Samples, Shares of the sites, Router, Quality, Privacy by site, "
    "Provenance, Limits",
    "student": "In short, Network, Teaching, Samples, Quality, Privacy, Provenance, Limits",
    "site": "In short, What left, What it tells, Samples beside the nearest own images, "
    "Attacks on what left, Ledger, What was agreed, Decision",
}
WIDTH = 1000
WHITE, GROUND, INK, RED = (255, 255, 255), (238, 240, 241), (29, 35, 39), (163, 53, 43)


@pytest.fixture(scope="module")
def pages(stages, distilled, tmp_path_factory) -> dict[str, Path]:
    """Pages of an ensemble and of a student with all there can be on them, and that of a site."""
    base = tmp_path_factory.mktemp("browser")
    verified = verify_ensemble(stages.ensemble, stages.admitted.root)
    samples = draw_samples(verified, base / "samples")
    real = write_real(base / "real.npz")
    evaluate_samples(samples, real, base / "evaluation")
    facts = gather_ensemble(verified, Sources(samples, base / "evaluation", router_samples=20))
    fed = stages.admitted.copy(base / "fed", "consortium", SITES[0])
    own = gather_site(fed.site(SITES[0]), fed.look(SITES[0]), random_images(0), None)
    student = verify_student(distilled[1], stages.admitted.root)
    of_student = Sources(draw_samples(student, base / "of-student"), base / "evaluated")
    evaluate_samples(base / "of-student", real, base / "evaluated")
    found = {kind: base / f"{kind}.html" for kind in TITLES}
    found["ensemble"].write_bytes(ensemble_page(facts))
    found["student"].write_bytes(student_page(gather_student(student, of_student)))
    found["site"].write_bytes(site_page(own))
    return found


def with_script(page: Path, script: str, target: Path) -> str:
    """Returns the address of a copy whose policy lets one script of this test look at it."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    target.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    return target.as_uri()


@pytest.mark.parametrize("kind", TITLES)
def test_page_opens_with_its_headings_no_complaint_and_no_request(pages, kind, tmp_path):
    log = tmp_path / "net.json"
    shown = run_chromium(
        tmp_path,
        *printing.OPTIONS,  # neither the page nor the browser that prints it asks anybody
        *("--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom"),
        pages[kind].as_uri(),
    )
    assert f"<title>{TITLES[kind]}</title>" in shown.stdout
    assert re.findall(r"<h2 id=\"\w+\">([^<]+)</h2>", shown.stdout) == HEADINGS[kind].split(", ")
    assert "CONSOLE" not in shown.stderr
    asked, connected = requests_in(log)
    assert asked == set()
    assert connected == 0


def requests_in(log: Path) -> tuple[set[str], int]:
    """Returns what a page asked a network for, and how often anything was connected to."""
    found = json.loads(log.read_text())
    kinds = {number: name for name, number in found["constants"]["logEventTypes"].items()}
    asked, connected = set(), 0
    for event in found["events"]:
        params = event.get("params", {})
        # without an origin it is the browser's own, which finds no host
        own = params.get("initiator", "not an origin") == "not an origin"
        if str(params.get("url", "")).startswith(("http:", "https:", "ws:")) and not own:
            asked.add(params["url"])
        connected += kinds[event["type"]] == "TCP_CONNECT_ATTEMPT"
    return asked, connected


@pytest.mark.parametrize("kind", TITLES)
@pytest.mark.parametrize("width", [WIDTH, 500])
def test_page_is_no_wider_than_the_window(pages, kind, width, tmp_path):
    measure = (
        "document.title = document.documentElement.scrollWidth + ' of ' + window.innerWidth + ' '"
        " + [...document.images].every(image => image.naturalWidth > 0)"
    )
    url = with_script(pages[kind], measure, tmp_path / "copy.html")
    text = chromium(tmp_path, f"--window-size={width},900", "--dump-dom", url)
    found = re.search(r"<title>(\d+) of (\d+) (\w+)</title>", text)
    assert int(found[1]) <= int(found[2])
    assert found[3] == "true"  # every image can be shown


@pytest.mark.parametrize("kind", TITLES)
def test_picture_of_the_page_is_styled(pages, kind, tmp_path):
    pixels = screenshot(tmp_path, pages[kind].as_uri(), f"{WIDTH},1400")
    assert share_of(pixels, GROUND) > 0.01  # the style sheet passed the policy
    assert share_of(pixels, WHITE) > 0.5
    assert share_of(pixels, INK) > 0.002
    assert (share_of(pixels[:200], RED) > 0.002) == (kind == "site")  # the banner


@pytest.mark.parametrize("kind", TITLES)
def test_page_prints_to_a_pdf(pages, kind):
    pdf = printed(pages[kind].read_bytes(), find_browser())
    assert pdf.startswith(b"%PDF-")
    sheets = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 2 <= sheets <= 12


def test_policy_of_the_page_stops_what_got_into_it(pages, tmp_path):
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        planted = (
            f"<img src='{at}/image'><link rel=stylesheet href='{at}/sheet'>"
            f"<iframe src='{at}/frame'></iframe><script src='{at}/script'></script>"
            "<style>h1 { display: none }</style><p style='color: red'>hidden</p>"
            "<script>document.title = 'owned'</script></body>"
        )
        page, control = pages["ensemble"].read_text(), tmp_path / "control.html"
        (tmp_path / "planted.html").write_text(page.replace("</body>", planted))
        text = chromium(tmp_path, "--dump-dom", (tmp_path / "planted.html").as_uri())
        assert f"<title>{TITLES['ensemble']}</title>" in text
        assert asked == []
        control.write_text(
            re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace(
                "</body>", planted
            )
        )
        log = f"--log-net-log={tmp_path / 'net.json'}"
        assert "<title>owned</title>" in chromium(tmp_path, log, "--dump-dom", control.as_uri())
        assert "/image" in asked  # without the policy it is asked for, and the log shows it
        seen, connected = requests_in(tmp_path / "net.json")
        assert f"{at}/image" in seen
        assert connected
        server.shutdown()


def test_command_writes_a_private_pdf(stages, copy_of, run, tmp_path):
    fed = copy_of("drafted", SITES[0])
    pdf = tmp_path / "site.pdf"
    ended = run(
        *("ddm-site", "report", "--site", fed.path / SITES[0], "--plan", fed.published),
        *("--pdf", pdf),
    )
    assert ended.code == 0, ended.err
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert pdf.stat().st_mode & 0o777 == 0o600


def test_without_a_browser_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(printing, "BROWSERS", ("no-such-browser",))
    with pytest.raises(MachineError, match="printed by Chromium or Chrome") as caught:
        find_browser()
    assert "apt-get install chromium" in caught.value.hint


def test_browser_that_does_not_print_is_named(tmp_path):
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho out of paper >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(MachineError, match="did not print the page: out of paper"):
        printed(b"<!doctype html>", str(broken))
