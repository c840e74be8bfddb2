"""Nothing about private images is changed or left out without a word."""

import io
import itertools
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddm_fed.errors import DataError
from ddm_fed.partition import GIVEN_CENTRES, OWN_CLUSTERS, open_images, write_shards
from ddm_fed.records import DataSpec
from sites.data import load_images

GREY = DataSpec(channels=1, height=8, width=8)
COLOUR = DataSpec(channels=3, height=8, width=8)
PETS = DataSpec(channels=1, height=8, width=8, conditioning="class", classes=("cat", "dog", "owl"))
NOISE = np.random.default_rng(0)
BYTES = NOISE.integers(0, 256, (6, 8, 8), dtype=np.uint8)


def picture(seed=0, mode="L", size=(8, 8)):
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], channels), dtype=np.uint8)
    if mode == "RGBA":
        pixels[..., 3] = 255
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def encoded(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.fixture
def folder(tmp_path):
    def write(files, name="pictures"):
        for each, content in files.items():
            path = tmp_path / name / each
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else encoded(content))
        return tmp_path / name

    return write


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "images.npz", **arrays)
        return tmp_path / "images.npz"

    return write


def report_of(source, spec=GREY, **options):
    return load_images(str(source), spec, **options)[1]


def loaded(source, spec=GREY, **options):
    return load_images(str(source), spec, **options)[0].reveal()


def refusal_of(source, spec=GREY, **options):
    with pytest.raises(DataError) as caught:
        load_images(str(source), spec, **options)
    return caught.value


CATS = {f"cat/{i}.png": picture(i) for i in range(3)}
ALL = CATS | {"dog/d.png": picture(7), "owl/o.png": picture(8)}


# --- every file seen is counted ---


def test_every_file_of_a_folder_is_taken_or_left_out_with_its_reason(folder, tmp_path):
    path = folder(
        ALL
        | {
            "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.png": picture(9),
            "__MACOSX/cat/._0.png": b"junk",
            "cat/Thumbs.db": b"junk",
            "dog/.DS_Store": b"junk",
            "dog/scan.dcm": b"junk",
            "dog/scan.nii.gz": b"junk",
            "owl/1.2.840.113619": b"\0" * 128 + b"DICM",
            "readme.txt": b"hello",
            "LICENSE": b"hello",
            "cat/broken.png": b"junk",
        }
    )
    os.mkfifo(path / "cat" / "pipe.png")
    (path / "cat" / "link.png").symlink_to(path / "dog" / "d.png")
    report = report_of(path, PETS, max_bad_fraction=0.5)
    assert {reason: sorted(names) for reason, names in report.left_out.items()} == {
        "hidden or left by a file manager": [
            "__MACOSX/",
            "cat/@eaDir/",
            "cat/Thumbs.db",
            "dog/.DS_Store",
        ],
        "links were not followed": ["cat/link.png"],
        "neither files nor folders": ["cat/pipe.png"],
        ".dcm files are of a kind that is not read": ["dog/scan.dcm"],
        ".nii files are of a kind that is not read": ["dog/scan.nii.gz"],
        "DICOM files are of a kind that is not read": ["owl/1.2.840.113619"],
        ".txt files are not images": ["readme.txt"],
        "other files are not images": ["LICENSE"],
    }
    assert [line.partition(":")[0] for line in report.skipped] == ["cat/broken.png"]
    counted = sum(map(len, report.left_out.values())) + len(report.skipped) + report.count
    assert report.seen == counted == 17
    assert report.classes == {"cat": 3, "dog": 1, "owl": 1}


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_link_is_never_followed_and_is_a_doubt_with_its_name(folder, tmp_path, where, kind):
    path = folder(ALL)
    beyond = folder({"secret/a.png": picture(11)}, "other project")
    target = path / "dog" if where == "inside" else beyond / "secret"
    name = "owl/more" if kind == "folder" else "owl/more.png"
    (path / name).symlink_to(target if kind == "folder" else next(target.iterdir()))
    report = report_of(path, PETS)
    assert report.count == len(ALL)
    assert report.left_out == {"links were not followed": [name]}
    assert f"1 links were not followed: {name}." in report.doubts[0]


def test_class_folder_that_is_a_link_leaves_its_class_without_images_and_says_so(folder, tmp_path):
    beyond = folder({"a.png": picture(11)}, "elsewhere")
    path = folder({name: image for name, image in ALL.items() if not name.startswith("owl")})
    (path / "owl").symlink_to(beyond)
    report = report_of(path, PETS)
    assert any("links were not followed: owl" in doubt for doubt in report.doubts)
    assert "1 of the plan's 3 classes have no image here: owl" in report.doubts
    assert report.classes["owl"] == 0


def test_image_swapped_for_a_link_after_the_folder_was_listed_is_not_opened(folder, monkeypatch):
    from sites.data.find_files import Folder

    path = folder({f"{i:02}.png": picture(i) for i in range(30)})
    outside = folder({"x.png": picture(99)}, "outside") / "x.png"
    listed = Folder.survey

    def race(*arguments):
        found = listed(*arguments)
        found.pictures[0].unlink()
        found.pictures[0].symlink_to(outside)
        return found

    monkeypatch.setattr(Folder, "survey", race)
    report = report_of(path)
    assert report.count == 29
    assert report.skipped[0].startswith("00.png: ")


def test_folder_given_as_a_link_is_read(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder(ALL))
    assert report_of(tmp_path / "link", PETS).count == len(ALL)


def test_folder_of_a_kind_that_is_not_read_says_what_it_holds(folder):
    found = refusal_of(folder({"a.nii": b"junk", "b.nii": b"junk"}))
    assert "holds no images that are read: 2 .nii files are of a kind that is not read" in str(
        found
    )
    assert "Convert" in found.hint or "convert" in found.hint


def test_folder_of_links_only_says_what_it_holds(folder, tmp_path):
    path = folder({"readme.txt": b""})
    (path / "a.png").symlink_to(folder({"a.png": picture()}, "x") / "a.png")
    assert "1 links were not followed: a.png" in refusal_of(path).message


@pytest.mark.parametrize("suffix", ["jfif", "JFIF", "jpe", "jpg"])
def test_jpeg_by_any_of_its_names_is_taken(folder, suffix):
    report = report_of(folder({f"a.{suffix}": encoded(picture(), "JPEG")}))
    assert (report.count, report.left_out) == (1, {})


def test_folder_that_cannot_be_opened_is_a_doubt(folder, monkeypatch):
    from sites.data import find_files

    path = folder(ALL)
    scan = os.scandir

    def refuse(place):  # tests may run as root, whom no right stops
        if str(place).endswith("owl"):
            raise PermissionError(13, "Permission denied")
        return scan(place)

    monkeypatch.setattr(find_files.os, "scandir", refuse)
    report = report_of(path, PETS)
    assert report.left_out == {"folders cannot be opened (Permission denied)": ["owl/"]}
    assert len(report.doubts) == 2  # and its class has none
    assert report.seen == report.count + 1


def test_name_that_steers_a_terminal_is_escaped(folder):
    report = report_of(
        folder(ALL | {"cat/\x1b[2Jx.txt": b"", "cat/a\x1b]0;x.png": b""}), PETS, max_bad_fraction=1
    )
    shown = " ".join(report.left_out_lines() + report.skipped)
    assert "\x1b" not in shown
    assert "\\x1b" in shown


def test_masks_beside_images_are_a_doubt(folder):
    path = folder(ALL | {"cat/0_mask.png": picture(), "dog/masks/d.png": picture()})
    report = report_of(path, PETS)
    assert report.count == len(ALL) + 2
    assert "2 files look like masks beside images" in report.doubts[0]
    assert "cat/0_mask.png" in report.doubts[0]


def test_image_called_mask_without_an_image_beside_it_is_none(folder):
    assert report_of(folder({"cat/gas_mask.png": picture()} | ALL), PETS).doubts == []


def test_class_called_mask_is_no_mask(folder):
    spec = PETS.model_copy(update={"classes": ("mask", "train")})
    path = folder({"mask/a.png": picture(1), "train/b.png": picture(2)})
    assert report_of(path, spec).doubts == []


def test_parts_for_training_above_classes_are_named(folder):
    path = folder({"train/cat/a.png": picture(), "test/cat/b.png": picture(1)})
    found = refusal_of(path, PETS)
    assert "divided into test, train" in found.message
    assert "--data" in found.hint
    assert "look like parts for training" in report_of(path, GREY).doubts[0]


def test_parts_for_training_below_classes_are_a_doubt(folder):
    files = {
        f"{kind}/{part}/a.png": picture(1) for kind in PETS.classes for part in ("train", "val")
    }
    assert "train, val look like parts" in report_of(folder(files), PETS).doubts[0]


@pytest.mark.parametrize("name", ["M\u00f6we", "Mo\u0308we"])
def test_class_folder_is_known_however_its_name_is_composed(folder, name):
    spec = PETS.model_copy(update={"classes": ("M\u00f6we",)})
    assert report_of(folder({f"{name}/a.png": picture()}), spec).classes == {"M\u00f6we": 1}


# --- classes and labels ---


def test_class_of_the_plan_without_an_image_is_a_doubt_in_every_form(npz, folder, tmp_path):
    labels = np.array([0, 0, 2, 2, 2, 0])
    np.save(tmp_path / "a.npy", BYTES)
    np.save(tmp_path / "a.labels.npy", labels)
    for source in (npz(images=BYTES, labels=labels), tmp_path / "a.npy"):
        report = report_of(source, PETS)
        assert report.classes == {"cat": 3, "dog": 0, "owl": 3}
        assert report.doubts == ["1 of the plan's 3 classes have no image here: dog"]
    assert "dog, owl" in report_of(folder(CATS), PETS).doubts[0]


def test_digits_chosen_by_name_are_no_doubt():
    spec = PETS.model_copy(update={"classes": tuple("0123456789")})
    report = report_of("digits:0-4", spec)
    assert (report.doubts, report.classes["7"]) == ([], 0)


@pytest.mark.parametrize("dtype", ["U3", ">U5"])
def test_labels_that_are_names_of_classes_are_read_as_such(npz, dtype):
    labels = np.array(["owl", "cat", "dog", "cat", "owl", "owl"]).astype(dtype)
    assert loaded(npz(images=BYTES, labels=labels), PETS).labels.tolist() == [2, 0, 1, 0, 2, 2]


def test_labels_that_are_digits_as_names_go_by_name_and_not_by_number(npz):
    spec = PETS.model_copy(update={"classes": ("2", "1", "0")})
    labels = np.array(list("012012"))
    assert loaded(npz(images=BYTES, labels=labels), spec).labels.tolist() == [2, 1, 0] * 2


def test_label_that_is_no_class_of_the_plan_is_refused_by_its_name(npz):
    found = refusal_of(npz(images=BYTES, labels=np.array(["cat"] * 5 + ["fox"])), PETS)
    assert "['fox']" in found.message


@pytest.mark.parametrize("dtype", ["i8", "f4", "?"])
def test_one_hot_labels_are_refused_as_what_they_are(npz, dtype):
    labels = np.eye(3, dtype=dtype)[[0, 1, 2, 0, 1, 2]]
    found = refusal_of(npz(images=BYTES, labels=labels), PETS)
    assert "shape (6, 3), which are one-hot" in found.message
    assert "argmax" in found.hint


def test_labels_of_several_classes_are_refused_as_what_they_are(npz):
    labels = np.array([[1, 1, 0]] * 6)
    message = refusal_of(npz(images=BYTES, labels=labels), PETS).message
    assert "several classes for one image" in message
    assert "several numbers" in refusal_of(npz(images=BYTES, labels=labels * 7), PETS).message


def test_arrays_and_labels_that_are_not_used_are_named(npz):
    report = report_of(npz(images=BYTES, labels=np.zeros(6, int), val_images=BYTES))
    assert report.left_out == {"arrays of the file are not used": ["val_images"]}
    assert report.notes == ["labels are not used: the plan has no classes"]


# --- arrays ---


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey plan", "colour plan"])
@pytest.mark.parametrize("shape", [(28, 28, 3), (28, 28, 1)])
def test_one_image_without_an_axis_for_images_is_refused(npz, spec, shape):
    found = refusal_of(npz(images=np.zeros(shape, np.uint8)), spec)
    assert str(shape) in found.message
    assert "images[None]" in found.hint


def test_one_image_with_channels_first_is_refused_by_a_colour_plan(npz):
    assert "one image" in refusal_of(npz(images=np.zeros((3, 28, 28), np.uint8)), COLOUR).message
    assert report_of(npz(images=BYTES[:3])).count == 3  # in a grey plan they are three


@pytest.mark.parametrize("shape", [(5, 3, 28, 3), (5, 1, 28, 1), (5, 3, 28, 1)])
def test_channels_that_may_be_first_or_last_are_refused(npz, shape):
    assert "first or last" in refusal_of(npz(images=np.zeros(shape, np.uint8)), COLOUR).message


@pytest.mark.parametrize("kind", ["npz", "npy"])
@pytest.mark.parametrize("dtype", ["u2", "f2", "f4", "f8"])
def test_array_with_its_big_end_first_holds_what_the_other_would(npz, tmp_path, kind, dtype):
    values = NOISE.random((5, 8, 8)) * (65535 if dtype == "u2" else 1)
    found = []
    for order in "<>":
        if kind == "npz":
            source = npz(
                images=values.astype(order + dtype), labels=np.arange(5).astype(f"{order}i4") % 3
            )
        else:
            source = tmp_path / f"{order == '<'}.npy"
            np.save(source, values.astype(order + dtype))
        data = loaded(source, PETS if kind == "npz" else GREY)
        found.append((data.digest(), data.batch(slice(1, 3)).tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_twelve_bits_in_sixteen_are_a_doubt_with_their_darkest_and_brightest_value(
    npz, folder, kind
):
    values = NOISE.integers(5, 4096, (4, 8, 8)).astype(np.uint16)
    values[0, 0, :2] = 5, 4095
    if kind == "npz":
        source = npz(images=values)
    else:
        source = folder({f"{i}.png": Image.fromarray(each) for i, each in enumerate(values)})
    report = report_of(source)
    assert "run from 5 to 4095; 0 is black, 65535 white" in report.values[0]
    assert "less than a tenth" in report.doubts[0]
    assert "--value-range" in report.doubts[0]
    stated = report_of(source, value_range=(0, 4095))
    assert stated.doubts == []
    assert "0 is black, 4095 white" in stated.values[0]


@pytest.mark.parametrize(("highest", "doubtful"), [(25, True), (26, False), (255, False)])
def test_values_that_use_less_than_a_tenth_of_their_range_are_a_doubt(npz, highest, doubtful):
    images = np.zeros((3, 8, 8), np.uint8)
    images[1, 1, 1] = highest
    report = report_of(npz(images=images))
    assert f"from 0 to {highest}; 0 is black, 255 white" in report.values[0]
    assert bool(report.doubts) is doubtful


def test_depths_of_a_folder_are_judged_apart(folder):
    twelve = Image.fromarray(NOISE.integers(0, 4096, (8, 8)).astype(np.uint16))
    report = report_of(folder({"a.png": picture(), "b.png": twelve}))
    assert len(report.values) == 2
    assert len(report.doubts) == 1


# --- changes to pictures ---


def sixteen_bit_colour():
    rows = b"".join(b"\0" + NOISE.bytes(8 * 6) for _ in range(8))
    data = b"\x89PNG\r\n\x1a\n"
    size = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    for kind, body in ((b"IHDR", size), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    return data


def test_changes_of_pictures_are_counted(folder):
    frames = [picture(i) for i in range(3)]
    files = {
        "colour.png": picture(1, "RGB"),
        "grey as colour.png": picture(1).convert("RGB"),
        "grey.png": picture(2),
        "large.png": picture(3, size=(16, 16)),
        "wide.png": picture(3, size=(24, 16)),
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "pages.tif": encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "moving.webp": encoded(
            frames[0].convert("RGB"), "WEBP", save_all=True, append_images=frames[1:], lossless=True
        ),
        "moving.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "press.jpg": encoded(picture(4, "RGB").convert("CMYK"), "JPEG"),
        "deep.png": Image.fromarray(NOISE.integers(0, 65536, (8, 8)).astype(np.uint16)),
        "deep colour.png": sixteen_bit_colour(),
    }
    path = folder(files)
    grey, colour = report_of(path), report_of(path, COLOUR)
    assert (grey.count, colour.count) == (len(files), len(files))
    assert set(grey.notes) == {
        "the first of several frames or pages was taken (4 of them)",
        "colour was turned to grey (ITU-R 601 luma) (3 of them)",
        "CMYK colours were turned to RGB (1 of them)",
        "more than 8 bits were rounded to 256 shades (1 of them)",
        "of 16 bits per colour the upper 8 were read (1 of them)",
        "resized to 8 x 8 (1 of them)",
        "cropped about their centre and resized to 8 x 8 (1 of them)",
    }
    assert "grey was repeated to three channels" in " ".join(colour.notes)
    assert "turned to grey" not in " ".join(colour.notes)


def test_pictures_that_fit_carry_no_note(folder):
    assert report_of(folder(ALL), PETS).notes == []


def test_value_range_for_sixteen_bits_per_colour_is_refused_for_that_file(folder):
    path = folder({"a.png": sixteen_bit_colour()})
    assert "a.png: it has 16 bits per colour" in refusal_of(path, value_range=(0, 4095)).message


def _hole(image):
    image.putpixel((3, 3), (1, 2, 3, 0))
    return image


def _palette_hole():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    return image


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", encoded(_hole(picture(1, "RGBA")))),
        ("a.webp", encoded(_hole(picture(1, "RGBA")), "WEBP", lossless=True)),
        ("a.tif", encoded(_hole(picture(1, "RGBA")), "TIFF")),
        ("a.png", encoded(_hole(picture(1, "RGBA")).convert("LA"))),
        ("a.png", encoded(_palette_hole(), transparency=1)),
        ("a.png", encoded(_palette_hole(), transparency=b"\0\x80")),
        ("a.gif", encoded(_palette_hole(), "GIF", transparency=1)),
        ("a.png", encoded(Image.new("L", (8, 8), 9), transparency=9)),
        ("a.png", encoded(Image.new("RGB", (8, 8), (9, 8, 7)), transparency=(9, 8, 7))),
        ("a.png", encoded(Image.fromarray(np.full((8, 8), 9, np.uint16)), transparency=9)),
    ],
    ids=[
        "png",
        "webp",
        "tiff",
        "LA",
        "palette",
        "half",
        "gif",
        "grey key",
        "colour key",
        "16 bits",
    ],
)
@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
def test_colours_under_transparent_pixels_are_never_read(folder, name, content, spec):
    found = refusal_of(folder({name: content}), spec)
    assert f"{name}: it has transparent pixels" in found.message


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_that_hides_nothing_is_fine(folder, kind):
    content = encoded(picture(1, "RGBA"), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert report_of(folder({f"a.{kind.lower()}": content}), COLOUR).count == 1


# --- EXIF ---

TAGS = (0x010F, 0x011A, 0x0128, 0x0132, 0x8769, 0x8825, 0x829A, 0x927C, 0x0112, 0xA005, 0x0201)
VALUES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x40\x42\x0f\0", b"\x08\0\0\0")


def exif(orientation, odd=(), order="<", *, odd_first=False):
    """Returns EXIF with an orientation and one more entry: tag, type, count, value."""
    turn = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    entries = [turn]
    if odd:
        tag, kind, count, value = odd
        entries.insert(not odd_first, struct.pack(f"{order}HHI", tag, kind, count) + value)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    size = struct.pack(f"{order}H", len(entries))
    return b"Exif\0\0" + start + size + b"".join(entries) + struct.pack(f"{order}I", 0)


def lit_half():
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, :4] = 255  # orientation 6 shows the left side at the top
    return Image.fromarray(pixels)


@pytest.mark.slow
@pytest.mark.parametrize("order", "<>")
def test_odd_entries_of_exif_hinder_nobody_and_the_photo_is_upright(tmp_path, order):
    # of 2,800 photos each, Pillow's exif_transpose raised on 268 (little end first) and on 213
    (tmp_path / "photos").mkdir()
    plain = encoded(lit_half(), "JPEG")
    cases = itertools.product(TAGS[:8] + TAGS[9:], range(14), (0, 1, 2, 5, 2**31), VALUES)
    count = 0
    for count, odd in enumerate(cases, start=1):
        block = exif(6, odd, order)
        segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
        (tmp_path / "photos" / f"{count:04}.jpg").write_bytes(plain[:2] + segment + plain[2:])
    data, report = load_images(str(tmp_path / "photos"), GREY, max_bad_fraction=0)
    images = data.reveal().images
    assert len(images) == count == 2800
    assert images[:, 0, :4].amin() > 0.9
    assert images[:, 0, 4:].amax() < -0.9
    assert report.notes == [f"turned upright, as EXIF says ({count} of them)"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_photo_is_upright_in_every_orientation(folder, kind, orientation):
    from PIL import ImageOps

    options = {"exif": exif(orientation)} | ({"lossless": True} if kind == "WEBP" else {})
    content = encoded(picture(5), kind, **options)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("L"))
    found = loaded(folder({f"a.{kind.lower()}": content})).pixels[0, 0]
    assert np.array_equal(found, expected)


@pytest.mark.slow
def test_any_exception_of_a_decoder_is_the_error_of_its_file(folder):
    # bytes of the heads of these files, in turn, set to something else: Pillow raises OSError,
    # ValueError, SyntaxError, TypeError and DecompressionBombError
    good = {f"good-{i:03}.png": picture(i) for i in range(3)}
    bad = {}
    sources = {
        "tif": encoded(picture(1), "TIFF"),
        "jpg": encoded(picture(1), "JPEG", exif=exif(6, (0x8769, 4, 1, b"\x08\0\0\0"))),
        "png": encoded(picture(1), "PNG"),
        "gif": encoded(picture(1), "GIF"),
        "webp": encoded(picture(1), "WEBP"),
        "bmp": encoded(picture(1), "BMP"),
        "pgm": encoded(picture(1), "PPM"),
    }
    for suffix, content in sources.items():
        for at, value in itertools.product(range(min(len(content), 120)), (2, 0xFF)):
            changed = bytearray(content)
            changed[at] = value
            bad[f"{suffix}-{at:03}-{value}.{suffix}"] = bytes(changed)
    # the orientation itself, of every type and number
    for kind, number, value in itertools.product(range(14), (0, 1, 5, 2**31), VALUES):
        block = exif(3, (0x0112, kind, number, value), odd_first=True)
        name = f"turn-{kind}-{number}-{VALUES.index(value)}.png"
        bad[name] = encoded(picture(1), "PNG", exif=block)
    report = report_of(folder(good | bad), max_bad_fraction=1)
    assert report.count + len(report.skipped) == len(good) + len(bad)
    assert len(report.skipped) > 50
    assert all(line.partition(": ")[0] in bad for line in report.skipped)


@pytest.mark.parametrize(("by", "doubted"), [(OWN_CLUSTERS, True), (GIVEN_CENTRES, False)])
def test_part_that_depends_on_the_other_images_is_doubted(tmp_path, by, doubted):
    """With one patient more, others would be in other parts, of which no epsilon speaks."""
    np.save(tmp_path / "all.npy", np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8))
    found = open_images(tmp_path / "all.npy")
    shards = write_shards(found, np.arange(4) % 2, 2, tmp_path / "shards", by=by)
    _, report = load_images(str(shards[0].file), GREY)
    said = [line for line in report.doubts if "no epsilon of the plan speaks of that" in line]
    assert len(said) == doubted
    if doubted:
        assert "divided by clusters of these very images" in said[0]
        assert "partition --centres" in said[0]
