"""The web page in a real browser: headless Chromium, in light, in dark, and on a telephone."""

import json
import shutil

import pytest
from browser import chromium, needs_chromium, screenshot, share_of
from federation import SITES, Federation, flip
from PIL import Image

from coordinator.inbox.admission import admit_arrivals
from coordinator.server.web import start_web

pytestmark = needs_chromium
DARK = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
HOSTILE = "<img src=x onerror=document.title='owned'>"


@pytest.fixture
def page(copy_of) -> str:
    """The address of a page with one site admitted, one refused and one uploading."""
    fed: Federation = copy_of("submitted")
    flip(fed.arrival(SITES[1]) / "expert.safetensors", -1)
    shutil.rmtree(fed.arrival(SITES[2]))
    (fed.home.incoming / HOSTILE).mkdir()
    admit_arrivals(fed.home, fed.trust)
    folder = fed.inbox / "partial" / "upload"
    folder.mkdir(parents=True)
    facts = {"site": SITES[2], "carrier": HOSTILE, "size_bytes": 1000, "committed_bytes": 420}
    facts["updated_at"] = "2026-11-28T09:00:00Z"
    (folder / "progress.json").write_text(json.dumps(facts))
    samples = fed.path / "samples"
    samples.mkdir()
    Image.new("RGB", (64, 64), (0, 128, 255)).save(samples / "grid.png")
    with start_web(fed.home, samples=samples) as running:
        yield running.url


def test_document_has_the_rows_and_no_hostile_element(page, tmp_path):
    text = chromium(tmp_path, "--dump-dom", page)
    assert all(f'<th role="rowheader" scope="row">{name}</th>' in text for name in SITES)
    assert "1 of 3 sites admitted</title>" in text
    assert "onerror=document" not in text.replace("&lt;img src=x onerror=document", "")
    assert text.count("<img") == 1


@pytest.mark.parametrize("size", ["1200,1500", "500,2600"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_picture_of_the_page_is_styled_and_shows_the_samples(page, tmp_path, size, scheme):
    pixels = screenshot(tmp_path, page, size, *(DARK if scheme == "dark" else ()))
    ground = {"light": (251, 251, 249), "dark": (20, 24, 27)}[scheme]
    assert share_of(pixels, ground) > 0.2  # the style sheet came through the policy
    assert share_of(pixels, (0, 128, 255)) > 0.02  # and so did the picture
    assert pixels.std() > 10  # nothing blank
