"""Samples and an evaluation of a small ensemble, for tests of reports; and what a page holds."""

import base64
import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from ddm_fed.distillation.folder import VerifiedStudent
from ddm_fed.distillation.opening import Sampled
from ddm_fed.distillation.sampling import sample_student
from ddm_fed.ensemble.sample_folder import SampleOptions, draw
from ddm_fed.ensemble.sampling import SamplingOptions
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.evaluation.report import EvaluateOptions, evaluate

COUNT = 60
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section"),
    *("nav", "aside", "h1", "h2", "h3", "p", "ul", "ol", "li", "dl", "dt", "dd", "a", "code"),
    *("pre", "strong", "em", "table", "caption", "thead", "tbody", "tr", "th", "td", "div"),
    *("span", "figure", "figcaption", "img", "br"),
}
NO_END = ("br", "hr", "img", "input", "link", "meta")


def draw_samples(verified: Sampled, out: Path, strategy: str = "sticky", **how) -> Path:
    """Returns the folder `out` with a few samples of an ensemble or a student."""
    sampling = SamplingOptions(
        strategy=Strategy.parse(strategy), steps=2, solver="heun", seed=3, **how
    )
    options = SampleOptions(count=COUNT, sampling=sampling, png=False)
    if isinstance(verified, VerifiedStudent):
        sample_student(verified, out, options)
    else:
        draw(verified, out, options)
    return out


def write_real(path: Path, shape: tuple[int, ...] = (8, 8)) -> Path:
    """Returns an archive of real images of two classes, for training and for testing."""
    random, arrays = np.random.default_rng(5), {}
    for part in ("train", "test"):
        labels = np.arange(COUNT) % 2
        noise = random.integers(0, 128, (COUNT, *shape))
        arrays[f"{part}_images"] = (noise + 120 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{part}_labels"] = labels
    np.savez(path, **arrays)
    return path


def evaluate_samples(samples: Path, real: Path, out: Path) -> Path:
    """Returns the folder `out` with figures of the samples, pictures of real images among them."""
    evaluate(samples, real, out, EvaluateOptions(steps=10), train=real)
    return out


def edit(file: Path, **fields) -> None:
    """Replaces fields of a summary, as a stranger may."""
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


class Page(HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(data.decode())
        self.close()
        assert self._open == [], "an element is not closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in NO_END:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"{tag} is closed where it is not open"

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of this kind."""
        return [attrs for name, attrs in self.elements if name == tag]

    def pictures(self) -> list[np.ndarray]:
        """The pixels of every PNG in the page."""
        start = "data:image/png;base64,"
        sources = [attrs["src"] for attrs in self.all("img")]
        return [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix(start)))))
            for source in sources
            if source.startswith(start)
        ]


def tiles(sheet: np.ndarray, side: int = 8) -> set[bytes]:
    """Returns the images on a sheet that a report shows, as bytes."""
    step = side + 1
    return {
        np.ascontiguousarray(sheet[top : top + side, left : left + side]).tobytes()
        for top in range(1, sheet.shape[0] - side + 1, step)
        for left in range(1, sheet.shape[1] - side + 1, step)
    }


def require_harmless(data: bytes) -> Page:
    """Returns the page, if it has no element or attribute that we did not write."""
    page = Page(data)
    assert {tag for tag, _ in page.elements} <= ALLOWED
    assert len(page.all("style")) == len(page.all("title")) == 1
    for tag, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on") or name == "style"], tag
        source = attrs.get("src") or "data:image/"
        assert source.startswith("data:image/")
        assert (attrs.get("href") or "#").startswith("#")
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    return page


def require_readable(page: Page) -> None:
    """Asserts that a page can be read by whoever does not see it."""
    assert page.all("html") == [{"lang": "en"}]
    assert all(len(attrs["alt"] or "") > 20 for attrs in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"] for attrs in page.all("a")} <= {f"#{name}" for name in ids}
    heads = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert heads[0] == 1
    assert all(later <= before + 1 for before, later in itertools.pairwise(heads))
