"""How private images are opened: every form they come in, and everything that is refused."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ddm_fed.errors import DataError
from ddm_fed.privacy import Private
from ddm_fed.records import DataSpec
from sites.data import load_images

GREY = DataSpec(channels=1, height=8, width=8)
COLOUR = DataSpec(channels=3, height=8, width=8)
SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"
NOISE = np.random.default_rng(0)
BYTES = NOISE.integers(0, 256, (6, 8, 8), dtype=np.uint8)


def with_classes(*names, shape=(1, 8, 8)):
    size = dict(zip(("channels", "height", "width"), shape, strict=True))
    return DataSpec(**size, conditioning="class", classes=names)


PETS = with_classes("cat", "dog", "owl")


@pytest.fixture
def npz(tmp_path):
    def write(name="images.npz", **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return write


@pytest.fixture
def folder(tmp_path):
    def write(files):
        for name, content in files.items():
            path = tmp_path / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content.save(path)
        return tmp_path / "pictures"

    return write


def pixels_of(source, spec=GREY, **options):
    return load_images(str(source), spec, **options)[0].reveal().images


def labels_of(source, spec=PETS):
    return load_images(str(source), spec)[0].reveal().labels.tolist()


def refusal_of(source, spec=GREY, **options):
    with pytest.raises(DataError) as caught:
        load_images(str(source), spec, **options)
    return caught.value


def grey(value):
    return Image.new("L", (8, 8), value)


def header_of(side):
    """Returns a PNG that claims a size and holds one byte."""
    size = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", size), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + body))
        data += struct.pack(">I", len(body)) + kind + body + check
    return data


def test_digits_are_scaled_from_16_greys():
    bundled = load_digits().images
    assert np.array_equal(pixels_of("digits")[:, 0].numpy(), (bundled / 8 - 1).astype(np.float32))


@pytest.mark.parametrize(("source", "wanted"), [("digits:0-4", range(5)), ("digits:3", [3])])
def test_digits_with_a_range_are_only_those(source, wanted):
    count = int(np.isin(load_digits().target, list(wanted)).sum())
    labels = labels_of(source, with_classes(*"0123456789"))
    assert (len(labels), set(labels)) == (count, set(wanted))


def test_digits_labels_follow_the_order_of_the_plan():
    assert set(labels_of("digits:3", with_classes("4", "3"))) == {1}


@pytest.mark.parametrize(
    "source", ["digits:", "digits:x", "digits:12", "digits:3-", "digits:5-2", "no.npz", "no/folder"]
)
def test_source_that_names_no_images_is_refused(source):
    assert source in refusal_of(source).message


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 8, 8, 1), (6, 1, 8, 8)])
def test_npz_of_grey_images_in_any_layout_gives_the_same_pixels(npz, shape):
    expected = BYTES[:, None] / 127.5 - 1
    assert np.allclose(pixels_of(npz(images=BYTES.reshape(shape))), expected, atol=1e-6)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=["channels first", "last"])
def test_npz_of_colour_images_in_any_layout_gives_the_same_pixels(npz, axes):
    first = NOISE.integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    images = pixels_of(npz(images=first.transpose(axes)), COLOUR)
    assert np.allclose(images, first / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(64,), (8, 8), (2, 8, 8, 4), (2, 8, 8, 2), (1, 2, 8, 8, 1)])
def test_npz_of_another_rank_or_channel_count_is_refused(npz, shape):
    assert str(shape) in refusal_of(npz(images=np.zeros(shape, np.uint8))).message


@pytest.mark.parametrize("shape", [(), (3, 0, 8), (3, 8, 0)])
def test_npz_of_images_without_pixels_is_refused(npz, shape):
    assert "shape" in refusal_of(npz(images=np.zeros(shape, np.uint8))).message


@pytest.mark.parametrize(
    ("dtype", "white"),
    [("u1", 255), ("u2", 65535), ("?", 1), ("f2", 1), ("f4", 1), ("f8", 1)],
)
def test_npz_dtype_says_what_black_and_white_are(npz, dtype, white):
    stored = np.zeros((2, 8, 8), dtype)
    stored[1] = white
    images = pixels_of(npz(images=stored))
    assert (images.dtype, images.amin((1, 2, 3)).tolist()) == (torch.float32, [-1.0, 1.0])


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.uint32])
def test_npz_of_other_integers_needs_a_value_range(npz, dtype):
    assert "--value-range" in refusal_of(npz(images=np.zeros((2, 8, 8), dtype))).hint


def test_value_range_says_what_black_and_white_are(npz):
    stored = np.array([-1000, 500, 2000]).repeat(64).reshape(3, 8, 8)
    images = pixels_of(npz(images=stored), value_range=(-1000.0, 2000.0))
    assert images.mean((1, 2, 3)).tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("value_range", [(1, 1), (1, 0), (np.nan, 1), (0, np.inf)])
def test_value_range_that_is_empty_or_endless_is_refused(npz, value_range):
    found = refusal_of(npz(images=BYTES), value_range=value_range)
    assert "--value-range" in found.message


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0])
def test_floats_outside_0_to_1_are_refused_with_a_hint(npz, value):
    assert "--value-range" in refusal_of(npz(images=np.full((2, 8, 8), value))).hint


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_in_float32_are_refused(npz, value):
    stored = np.zeros((2, 8, 8))
    stored[1, 3, 3] = value
    assert "NaN or infinity" in refusal_of(npz(images=stored)).message


@pytest.mark.parametrize("content", ["x", 1j, np.datetime64(0, "s")])
def test_values_that_are_not_numbers_are_refused_even_with_a_value_range(npz, content):
    refusal_of(npz(images=np.full((2, 8, 8), content)), value_range=(0.0, 1.0))


def test_grey_images_for_a_colour_plan_are_repeated_and_noted(npz):
    loaded, report = load_images(str(npz(images=BYTES)), COLOUR)
    images = loaded.reveal().images
    assert images.shape == (6, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])
    assert "three channels" in report.notes[0]


def test_colour_images_for_a_grey_plan_become_luma_and_are_noted(npz):
    stored = NOISE.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    pillow = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in stored])
    loaded, report = load_images(str(npz(images=stored)), GREY)
    assert np.allclose(loaded.reveal().images[:, 0], pillow / 127.5 - 1, atol=1.01 / 127.5)
    assert "grey" in report.notes[0]


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (8, 12), (28, 28)])
def test_images_of_another_size_are_resized_and_noted(npz, size):
    stored = np.stack([np.full(size, 0, np.uint8), np.full(size, 255, np.uint8)])
    loaded, report = load_images(str(npz(images=stored)), GREY)
    images = loaded.reveal().images
    assert images.shape == (2, 1, 8, 8)
    assert torch.allclose(images[0], torch.tensor(-1.0))
    assert torch.allclose(images[1], torch.tensor(1.0))
    done = "resized" if size[0] == size[1] else "cropped about their centre and resized"
    assert report.notes == [f"{done} from {size[0]} x {size[1]} to 8 x 8"]


def test_npz_with_medmnist_keys_is_read(npz):
    labels = np.array([[0], [1], [2], [0], [1], [2]], np.uint8)
    path = npz(train_images=BYTES, train_labels=labels, val_images=BYTES[:1])
    assert labels_of(path) == [0, 1, 2, 0, 1, 2]


def test_npz_without_images_names_what_it_holds(npz):
    assert "`images`" in (found := refusal_of(npz(pictures=BYTES, rows=BYTES))).message
    assert "pictures, rows" in found.message


@pytest.mark.parametrize("key", ["images", "labels"])
def test_npz_with_a_pickled_array_is_refused_unopened(npz, key):
    evil = np.array([{"a": 1}] * 6, dtype=object)
    assert "cannot be read" in refusal_of(npz(**{"images": BYTES, key: evil}), PETS).message


def _archive(save, *, flip=False):
    data = io.BytesIO()
    name = "arr" if save is np.save else "images"
    save(data, **{name: NOISE.integers(0, 256, (99, 8, 8), dtype=np.uint8)})
    content = bytearray(data.getvalue())
    content[len(content) // 2] ^= flip
    return content


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"hello", id="text"),
        pytest.param(b"", id="empty"),
        pytest.param(_archive(np.save), id="npy"),
        pytest.param(_archive(np.savez)[:300], id="cut off"),
        pytest.param(_archive(np.savez, flip=True), id="flipped bit"),
        pytest.param(_archive(np.savez_compressed, flip=True), id="flipped bit, compressed"),
    ],
)
def test_npz_that_is_no_whole_archive_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    assert f"{tmp_path / 'a.npz'} cannot be read" in refusal_of(tmp_path / "a.npz").message


@pytest.mark.parametrize("shape", [(0, 8, 8), (0, 9, 9), (0, 8, 8, 3)])
def test_npz_without_any_image_is_refused(npz, shape):
    assert "no images" in refusal_of(npz(images=np.zeros(shape, np.uint8))).message


@pytest.mark.parametrize(
    "labels",
    [[0, 1, 2, 3, 0, 1], [0, 1, 2, -1, 0, 1], [0.0, 1, 2, 0, 1, 2], [True] * 6, [b"cat"] * 6],
    ids=["too high", "negative", "floats", "booleans", "bytes"],
)
def test_labels_that_are_no_class_index_are_refused(npz, labels):
    assert "0 to 2" in refusal_of(npz(images=BYTES, labels=labels), PETS).message


@pytest.mark.parametrize("count", [0, 5, 7, 18])
def test_labels_in_another_number_than_images_are_refused(npz, count):
    path = npz(images=BYTES, labels=np.zeros(count, np.int64))
    assert f"6 images and {count} labels" in refusal_of(path, PETS).message


def test_labels_missing_for_a_class_plan_are_refused_with_its_classes(npz):
    assert "cat, dog, owl" in refusal_of(npz(images=BYTES), PETS).message


def test_labels_of_any_kind_are_ignored_by_an_unconditional_plan(npz):
    loaded, _ = load_images(str(npz(images=BYTES, labels=np.array([9.5]))), GREY)
    assert loaded.reveal().labels is None


def test_folder_with_class_subfolders_is_labelled_in_the_order_of_the_plan(folder):
    path = folder({"owl/a.png": grey(9), "cat/b.png": grey(1), "cat/deep/c.png": grey(2)})
    assert labels_of(path) == [0, 0, 2]


def test_folder_with_an_unknown_class_is_refused_by_its_name(folder):
    path = folder({"cat/a.png": grey(9), "fox/b.png": grey(1)})
    assert "fox" in refusal_of(path, PETS).message


def test_folder_without_subfolders_is_read_in_the_order_of_names(folder):
    images = pixels_of(folder({"b.png": grey(255), "a.png": grey(0)}))
    assert images.mean((1, 2, 3)).tolist() == [-1.0, 1.0]


def test_folder_without_subfolders_is_refused_by_a_class_plan(folder):
    assert "subfolders" in refusal_of(folder({"a.png": grey(0)}), PETS).hint


def test_folder_that_mixes_images_and_subfolders_is_refused(folder):
    path = folder({"a.png": grey(0), "cat/b.png": grey(0)})
    assert "a.png" in refusal_of(path, PETS).message


def test_folder_without_images_is_refused(folder):
    assert "no images" in refusal_of(folder({"readme.txt": b"none"})).message


@pytest.mark.parametrize("name", [".b.png", "cat/._a.png", "cat/.DS_Store", ".thumbnails/a.png"])
def test_folder_with_something_hidden_ignores_it(folder, name):
    assert labels_of(folder({"cat/a.png": grey(0), name: b"junk"})) == [0]


def test_folder_called_like_a_picture_is_no_broken_picture(folder):
    assert len(pixels_of(folder({"cat.png/a.png": grey(0), "cat.png/b.png": grey(0)}))) == 2


def _sixteen_bits(value):
    return Image.fromarray(np.full((8, 8), value, np.uint16))


def _palette(**options):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    data = io.BytesIO()
    picture.save(data, "PNG", **options)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "picture", "rgb"),
    [
        pytest.param("a.png", Image.new("RGB", (8, 8), (255, 0, 51)), (1, -1, -0.6), id="png"),
        pytest.param("a.JPG", grey(255), (1, 1, 1), id="jpeg, upper case"),
        pytest.param("a.png", _sixteen_bits(65535), (1, 1, 1), id="16 bits, white"),
        pytest.param("a.png", _sixteen_bits(257 * 51), (-0.6, -0.6, -0.6), id="16 bits, grey"),
        pytest.param("a.png", Image.new("RGBA", (8, 8), (255, 0, 51, 255)), (1, -1, -0.6)),
        pytest.param("a.png", Image.new("LA", (8, 8), (51, 255)), (-0.6, -0.6, -0.6), id="LA"),
        pytest.param("a.png", Image.new("1", (8, 8), 1), (1, 1, 1), id="one bit"),
        pytest.param("a.png", _palette(), (1, -1, -1), id="palette"),
        pytest.param("a.png", _palette(transparency=0), (1, -1, -1), id="palette with a hole"),
        pytest.param("a.png", _palette(transparency=b"\0\xff"), (1, -1, -1), id="palette, alpha"),
    ],
)
def test_picture_of_any_mode_becomes_rgb(folder, name, picture, rgb):
    images = pixels_of(folder({name: picture}), COLOUR)
    assert images.mean((0, 2, 3)).tolist() == pytest.approx(rgb, abs=0.02)


def test_float_picture_is_scaled_like_other_floats(folder):
    picture = Image.fromarray(np.full((8, 8), 0.75, np.float32))
    assert pixels_of(folder({"a.tif": picture})).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("dtype", "value"), [(np.int32, 2**30), (np.float32, 200), (np.int32, -9)])
def test_picture_with_values_beyond_its_range_is_refused_by_name(folder, dtype, value):
    path = folder({"a.tif": Image.fromarray(np.full((8, 8), value, dtype))})
    assert "a.tif" in refusal_of(path).message


def test_value_range_holds_for_the_values_stored_in_a_picture(folder):
    path = folder({"a.png": _sixteen_bits(4095), "b.png": _sixteen_bits(0)})  # 12 bits in 16
    images = pixels_of(path, value_range=(0, 4095))
    assert images.mean((1, 2, 3)).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_picture_turned_by_exif_is_read_upright(folder, name):
    stored = np.zeros((8, 8), np.uint8)
    stored[:, :4] = 255  # left half white; orientation 6 shows the left side at the top
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(data, "JPEG" if name == "a.jpg" else "PNG", exif=exif)
    image = pixels_of(folder({name: data.getvalue()}))[0, 0]
    assert (image[:4].mean() > 0.9, image[4:].mean() < -0.9) == (True, True)


def test_picture_of_another_shape_is_cropped_at_its_centre_not_stretched(folder):
    stored = np.zeros((8, 24), np.uint8)
    stored[:, 8:16] = 255
    assert pixels_of(folder({"a.png": Image.fromarray(stored)})).min() == 1.0


def _some_good(count):
    return {f"good-{i:02}.png": grey(i) for i in range(count)}


def test_broken_files_below_the_fraction_are_counted_and_named(folder):
    path = folder(_some_good(19) | {"broken.png": b"junk"})
    loaded, report = load_images(str(path), GREY)
    assert (len(loaded.reveal()), report.count, len(report.skipped)) == (19, 19, 1)
    assert report.skipped[0].startswith("broken.png: ")


def test_broken_files_above_the_fraction_are_fatal(folder):
    found = refusal_of(folder(_some_good(18) | {"broken.png": b"junk"}))
    assert "1 of 19" in found.message
    assert "broken.png" in found.message


def test_broken_files_do_not_shift_the_labels(folder):
    path = folder({"cat/a.png": b"junk", "cat/b.png": grey(1), "dog/c.png": grey(2)})
    loaded, _ = load_images(str(path), PETS, max_bad_fraction=0.5)
    assert loaded.reveal().labels.tolist() == [0, 1]


@pytest.mark.parametrize("side", [8100, 10_000, 20_000])
def test_decompression_bomb_is_one_broken_file(folder, side):
    path = folder(_some_good(30) | {"bomb.png": header_of(side)})
    assert load_images(str(path), GREY)[1].skipped[0].startswith("bomb.png: ")


def test_result_is_private_and_shows_nothing(npz):
    loaded, _ = load_images(str(npz(images=BYTES)), GREY)
    assert (type(loaded), f"{loaded!r} {loaded}") == (Private, "Private(…) Private(…)")


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("size", [8, 14])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_bright_neighbour_in_an_npz_changes_no_other_image(npz, dtype, size, spec):
    white = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    dark = (NOISE.random((9, size, size)) * 0.2 * white).astype(dtype)
    bright = np.full((1, size, size), white, dtype)
    alone = pixels_of(npz("alone.npz", images=dark), spec)
    beside = pixels_of(npz("beside.npz", images=np.concatenate([dark, bright])), spec)
    assert torch.equal(alone, beside[:-1])


def test_bright_neighbour_in_a_folder_changes_no_other_image(folder):
    alone = pixels_of(folder({f"{i}.png": _sixteen_bits(200 * i) for i in range(5)}))
    beside = pixels_of(folder({"z.png": _sixteen_bits(65535)}))
    assert torch.equal(alone, beside[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("fashion_mnist", (60000, 1, 28, 28), 10),
        ("pneumoniamnist", (4708, 1, 28, 28), 2),
        ("bccd_cells_32", (3074, 3, 32, 32), 3),
        ("cifar10_subset", (7500, 3, 32, 32), 10),
    ],
)
def test_real_data_set_is_read_with_its_labels(name, shape, classes):
    path = SHARED_DATA / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    names = [f"class {i}" for i in range(classes)]
    loaded, report = load_images(str(path), with_classes(*names, shape=shape[1:]))
    data = loaded.reveal()
    images = data.images  # made anew whenever it is asked for
    assert (tuple(images.shape), report.count, report.notes) == (shape, shape[0], [])
    raw = np.load(path)["train_images"]
    expected = [raw.min() / 127.5 - 1, raw.max() / 127.5 - 1]
    assert np.allclose([images.min(), images.max()], expected, atol=1e-6)
    assert data.labels.unique().tolist() == list(range(classes))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((6, 8, 8), GREY), ((6, 1, 8, 8), GREY), ((6, 8, 8, 3), COLOUR), ((6, 3, 8, 8), COLOUR)],
)
def test_npy_file_is_mapped_and_holds_what_an_npz_would(tmp_path, npz, shape, spec):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "mapped.npy", pixels)
    mapped = load_images(str(tmp_path / "mapped.npy"), spec)[0].reveal()
    read = load_images(str(npz(images=pixels)), spec)[0].reveal()
    assert isinstance(mapped.pixels, np.memmap)
    assert torch.equal(mapped.images, read.images)
    assert mapped.images.shape == (6, *spec.shape)
    assert mapped.digest() == read.digest()


def test_npy_file_has_its_labels_beside_it(tmp_path):
    np.save(tmp_path / "pets.npy", BYTES)
    with pytest.raises(DataError, match="has no labels"):
        load_images(str(tmp_path / "pets.npy"), PETS)
    np.save(tmp_path / "pets.labels.npy", np.array([0, 1, 2, 2, 1, 0]))
    data = load_images(str(tmp_path / "pets.npy"), PETS)[0].reveal()
    assert data.labels.tolist() == [0, 1, 2, 2, 1, 0]
    np.save(tmp_path / "pets.labels.npy", np.array([0, 1]))
    with pytest.raises(DataError, match="6 images and 2 labels"):
        load_images(str(tmp_path / "pets.npy"), PETS)


def test_npy_file_of_another_size_is_converted_in_memory(tmp_path):
    np.save(tmp_path / "large.npy", np.full((3, 16, 16), 255, dtype=np.uint8))
    data, report = load_images(str(tmp_path / "large.npy"), GREY)
    assert report.notes == ["resized from 16 x 16 to 8 x 8"]
    assert torch.equal(data.reveal().images, torch.ones(3, 1, 8, 8))


def test_npy_file_with_values_outside_its_range_is_refused(tmp_path):
    pixels = np.zeros((3000, 8, 8), dtype=np.float32)
    pixels[2999, 7, 7] = 1.5  # in the last block
    np.save(tmp_path / "wrong.npy", pixels)
    with pytest.raises(DataError, match="outside 0 to 1"):
        load_images(str(tmp_path / "wrong.npy"), GREY)
    data = load_images(str(tmp_path / "wrong.npy"), GREY, value_range=(0, 2))[0].reveal()
    assert data.images[2999, 0, 7, 7] == 0.5


def test_npy_file_with_objects_or_cut_short_is_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    for name in ("objects.npy", "cut.npy"):
        with pytest.raises(DataError, match="cannot be read"):
            load_images(str(tmp_path / name), GREY)
