"""What each odd file or layout does: taken, left out or refused, with its reason; no traceback.

docs/data.md shows the same table.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shards import png, write_shard

from ddm_fed.errors import DataError
from ddm_fed.records import DataSpec
from sites.data import load_images

SPEC = DataSpec(channels=1, height=8, width=8)
PETS = DataSpec(channels=1, height=8, width=8, conditioning="class", classes=("cat", "dog"))
DOCS = Path(__file__).parents[3] / "docs" / "data.md"


def saved(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def noise(mode, size=(8, 8)):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = size[::-1] if channels == 1 else (*size[::-1], channels)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8), mode)


def deep():
    values = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    return saved(Image.fromarray(values))


def alpha(value):
    image = noise("RGBA")
    image.putalpha(value)
    return saved(image)


def animated():
    frames = [noise("L"), noise("L").rotate(90)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(noise("L"), "JPEG", exif=exif)


def zipped():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.png", png(0))
    return data.getvalue()


TAKEN, UNREADABLE, LEFT_OUT = "taken", "unreadable", "left out"
REFUSED, DOUBT = "refused", "asked about"
# what it is: files beside a good one (or of a whole folder), what happens, part of what is said
FILES = {
    "palette PNG": ({"a.png": saved(noise("L").convert("P"))}, TAKEN, ""),
    "CMYK JPEG": (
        {"a.jpg": saved(noise("CMYK"), "JPEG")},
        TAKEN,
        "CMYK colours were turned to RGB",
    ),
    "16-bit PNG": ({"a.png": deep()}, TAKEN, "more than 8 bits were rounded to 256 shades"),
    "black and white (1 bit)": ({"a.png": saved(noise("L").convert("1"))}, TAKEN, ""),
    "alpha that hides nothing": ({"a.png": alpha(255)}, TAKEN, "colour was turned to grey"),
    "alpha that hides something": ({"a.png": alpha(7)}, UNREADABLE, "transparent pixels"),
    "turned by EXIF": ({"a.jpg": rotated()}, TAKEN, "turned upright, as EXIF says"),
    "animated GIF": ({"a.gif": animated()}, TAKEN, "the first of several frames"),
    "TIFF of several pages": (
        {"a.tif": saved(noise("L"), "TIFF", save_all=True, append_images=[noise("L")])},
        TAKEN,
        "the first of several frames",
    ),
    "one pixel": ({"a.png": png(0, (1, 1))}, TAKEN, "resized to 8 x 8"),
    "one row of pixels": ({"a.png": png(0, (300, 1))}, TAKEN, "cropped about their centre"),
    "truncated JPEG": ({"a.jpg": saved(noise("L", (64, 64)), "JPEG")[:-900]}, UNREADABLE, "trunc"),
    "PNG cut in its header": ({"a.png": png(0)[:20]}, UNREADABLE, "a.png: "),
    "no bytes": ({"a.png": b""}, UNREADABLE, "none of PNG"),
    "a text file called .png": ({"a.png": b"hello"}, UNREADABLE, "none of PNG"),
    "a zip file called .png": ({"a.png": zipped()}, UNREADABLE, "none of PNG"),
    "a JPEG called .png": ({"a.png": saved(noise("L"), "JPEG")}, TAKEN, ""),
    "a PNG in capitals": ({"A.PNG": png(0)}, TAKEN, ""),
    "a picture without a suffix": ({"a": png(0)}, LEFT_OUT, "other files are not images"),
    "SVG": ({"a.svg": b"<svg/>"}, DOUBT, ".svg files are of a kind that is not read"),
    "a volume (.nii.gz)": ({"a.nii.gz": b"x"}, DOUBT, ".nii files are of a kind that is not read"),
    "names with blanks and umlauts": ({"größe 1 (Kopie).png": png(0)}, TAKEN, ""),
    "a name that steers terminals": ({"a\x1b[31m.png": png(0)}, TAKEN, ""),
    "a hidden file": ({".a.png": png(0)}, LEFT_OUT, "hidden or left by a file manager"),
    "junk of a file manager": ({"Thumbs.db": b"x"}, LEFT_OUT, "hidden or left by a file manager"),
    "a mask beside its image": ({"good_mask.png": png(0)}, DOUBT, "look like masks"),
}


@pytest.mark.parametrize("what", FILES)
def test_odd_file_is_taken_or_left_out_with_its_reason(tmp_path, what):
    files, outcome, said = FILES[what]
    for name, data in ({"good.png": png(9)} | files).items():
        (tmp_path / name).write_bytes(data)
    _, report = load_images(str(tmp_path), SPEC, max_bad_fraction=1)
    places = {
        TAKEN: report.notes,
        UNREADABLE: report.skipped,
        LEFT_OUT: list(report.left_out),
        DOUBT: report.doubts,
    }
    taken = report.count - 1
    assert taken == (outcome == TAKEN or "mask" in what)
    assert not said or any(said in line for line in places[outcome]), report
    assert bool(report.skipped) == (outcome == UNREADABLE)
    assert "\x1b" not in repr(report)
    assert f"| {what} | {outcome} |" in DOCS.read_text(encoding="utf-8")


def classes(folder):
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.png").write_bytes(png(0))
    return folder


def empty_class(folder):
    classes(folder)
    (folder / "dog" / "a.png").unlink()


def nested(folder):
    (folder / "cat" / "deep" / "deeper").mkdir(parents=True)
    (folder / "cat" / "deep" / "deeper" / "a.png").write_bytes(png(0))
    (folder / "dog").mkdir()
    (folder / "dog" / "a.png").write_bytes(png(0))


def mixed(folder):
    classes(folder)
    (folder / "a.png").write_bytes(png(0))


def link_out(folder):
    (folder.parent / "x.png").write_bytes(png(1))
    classes(folder)
    (folder / "cat" / "link.png").symlink_to(folder.parent / "x.png")


def loop(folder):
    classes(folder)
    (folder / "cat" / "loop").symlink_to(folder)


def splits(folder):
    classes(folder / "train")
    classes(folder / "test")


def off_by_one(folder):
    folder.mkdir()
    np.savez(folder / "a.npz", images=np.zeros((3, 8, 8), np.uint8), labels=[1, 2, 2])
    return folder / "a.npz"


def crlf(folder):
    classes(folder)
    (folder / "t.csv").write_bytes(b"\xef\xbb\xbffile,label\r\ncat/a.png,cat\r\ndog/a.png,dog\r\n")
    return folder / "t.csv"


def backslashes(folder):
    classes(folder)
    (folder / "t.csv").write_text("file,label\ncat\\a.png,cat\ndog\\a.png,dog\n")
    return folder / "t.csv"


def semicolons(folder):
    classes(folder)
    (folder / "t.csv").write_text("file;label\ncat/a.png;cat\n")
    return folder / "t.csv"


def in_latin(folder):
    classes(folder)
    (folder / "t.csv").write_bytes("file,label\nkätz.png,cat\n".encode("latin-1"))
    return folder / "t.csv"


def shard_of_text(folder):
    return write_shard(folder / "a.tar", [("1.txt", "hello"), ("2.txt", "hello")])


LAYOUTS = {
    "a class folder without images": (
        empty_class,
        DOUBT,
        "1 of the plan's 2 classes have no image",
    ),
    "folders in class folders": (nested, TAKEN, ""),
    "images beside class folders": (mixed, REFUSED, "mixes images with subfolders"),
    "a link out of the folder": (link_out, DOUBT, "links were not followed"),
    "a link in a circle": (loop, DOUBT, "links were not followed"),
    "parts for training and testing": (splits, REFUSED, "is divided into test, train"),
    "labels off by one": (off_by_one, REFUSED, "from 0 to 1"),
    "a table with CRLF and a byte order mark": (crlf, TAKEN, ""),
    "a table with backslashes": (backslashes, TAKEN, ""),
    "a table with semicolons": (semicolons, REFUSED, "names of its columns"),
    "a table that is not UTF-8": (in_latin, REFUSED, "cannot be read"),
    "shards without images": (shard_of_text, REFUSED, "cannot be read"),
    "a path that does not exist": (lambda folder: folder / "x", REFUSED, "is neither"),
}


@pytest.mark.parametrize("what", LAYOUTS)
def test_odd_layout_is_taken_or_refused_with_its_reason(tmp_path, what):
    make, outcome, said = LAYOUTS[what]
    source = make(tmp_path / "data") or tmp_path / "data"
    assert f"| {what} | {outcome} |" in DOCS.read_text(encoding="utf-8")
    if outcome == REFUSED:
        with pytest.raises(DataError) as caught:
            load_images(str(source), PETS)
        assert said in str(caught.value)
        assert caught.value.hint
        return
    _, report = load_images(str(source), PETS)
    assert report.count == (1 if make is empty_class else 2)
    assert bool(report.doubts) == (outcome == DOUBT)
    assert any(said in line for line in report.doubts) or not said
