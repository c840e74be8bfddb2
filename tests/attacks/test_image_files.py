"""Image files that are something else: what opens them goes by content, and may start programs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(%pipe%touch owned) (w) file closefile
showpage
%%EOF
"""
READ = """
import sys
from ddm_fed.records import DataSpec
from sites.data import load_images
spec = DataSpec(channels=1, height=8, width=8)
report = load_images(sys.argv[1], spec, max_bad_fraction=1)[1]
print(report.count, *report.skipped, sep="\\n")
"""
PLAIN_PILLOW = """
import sys
from pathlib import Path
from PIL import Image
with Image.open(Path(sys.argv[1]) / "x.png") as image:
    image.load()
"""


@pytest.fixture
def machine(tmp_path):
    """A folder of images, one of them PostScript, on a machine where `gs` notes that it ran."""
    tools, pictures = tmp_path / "tools", tmp_path / "pictures"
    tools.mkdir()
    pictures.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\necho ran >> {tmp_path / 'gs.log'}\nexit 1\n")
    (tools / "gs").chmod(0o755)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(pictures / "a.png")
    (pictures / "x.png").write_bytes(EPS)
    return tmp_path


def run(machine, program):
    path = f"{machine / 'tools'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-c", program, str(machine / "pictures")],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_postscript_named_png_starts_ghostscript_in_plain_pillow(machine):
    """The attack works where nothing is done against it; else the next test says nothing."""
    run(machine, PLAIN_PILLOW)
    assert (machine / "gs.log").exists()


@pytest.mark.slow
def test_postscript_named_png_never_starts_ghostscript_and_is_one_unreadable_file(machine):
    done = run(machine, READ)
    assert done.returncode == 0, done.stderr
    assert not (machine / "gs.log").exists()
    count, skipped = done.stdout.splitlines()
    assert (count, skipped.partition(":")[0]) == ("1", "x.png")


@pytest.mark.parametrize(
    "kind", ["ICO", "TGA", "PCX", "SGI", "DDS", "MSP", "XBM", "PDF", "JPEG2000"]
)
def test_file_of_a_kind_that_is_not_listed_is_not_decoded_whatever_its_name(tmp_path, kind):
    from ddm_fed.records import DataSpec
    from sites.data import load_images

    modes = {"MSP": "1", "XBM": "1"}
    good = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    good.save(tmp_path / "a.png")
    with (tmp_path / "b.png").open("wb") as file:
        good.convert(modes.get(kind, "L")).save(file, kind)
    spec = DataSpec(channels=1, height=8, width=8)
    report = load_images(str(tmp_path), spec, max_bad_fraction=1)[1]
    assert report.count == 1
    assert report.skipped[0].startswith("b.png: it is none of PNG, JPEG,")


def openings(source):
    """Returns the lines of `source` that open an image without naming the kinds it may be."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("Image.open", "ImageFile.Parser"))
        and "formats" not in {keyword.arg for keyword in node.keywords}
    ]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("Image.open(path)", 1),
        ("PIL.Image.open(path, mode='r')", 1),
        ("ImageFile.Parser()", 1),
        ("Image.open(path, formats=KINDS)", 0),
    ],
)
def test_search_for_openings_of_images_finds_those_without_kinds(source, count):
    assert len(openings(source)) == count


@pytest.mark.slow
@pytest.mark.parametrize("package", ["ddm_fed", "sites", "coordinator", "examples", "benchmarks"])
def test_every_opening_of_an_image_names_the_kinds_it_may_be(package):
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / package).rglob("*.py")
        for line in openings(path.read_text(encoding="utf-8"))
    }
    assert found == set()
