"""Which images belong to one patient: every way to say it, and everything that is refused."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddm_fed.errors import DataError
from ddm_fed.privacy import ImageSet
from ddm_fed.records import DataSpec
from sites.data import load_images
from sites.data.units import MISSING

GREY = DataSpec(channels=1, height=8, width=8)
PETS = DataSpec(channels=1, height=8, width=8, conditioning="class", classes=("cat", "dog"))
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
SECRET = "Erika Mustermann"


def load(source, spec=GREY, *, unit="patient", **options):
    return load_images(str(source), spec, unit=unit, **options)


def units_of(source, spec=GREY, **options):
    return load(source, spec, **options)[0].reveal().units.tolist()


def refusal_of(source, **options):
    with pytest.raises(DataError) as caught:
        load(source, **options)
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"
    return caught.value


@pytest.fixture
def npz(tmp_path):
    def write(name="images.npz", **arrays):
        np.savez(tmp_path / name, **({"images": PIXELS} | arrays))
        return tmp_path / name

    return write


@pytest.fixture
def folder(tmp_path):
    """Writes files and `units.csv`: its text, or pairs of file and unit."""

    def write(files, table):
        for name, content in files.items():
            path = tmp_path / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.write_bytes(b"junk")
            else:
                Image.new("L", (8, 8), content).save(path)
        if not isinstance(table, str | bytes):
            table = "file,unit\n" + "".join(f"{file},{unit}\n" for file, unit in table)
        content = table if isinstance(table, bytes) else table.encode()
        (tmp_path / "pictures" / "units.csv").write_bytes(content)
        return tmp_path / "pictures"

    return write


TWO = {"a.png": 1, "b.png": 2}

# --- image sets ---


def test_set_without_units_has_as_many_units_as_images():
    assert ImageSet(torch.zeros(5, 1, 8, 8), None).unit_count == 5


def test_set_with_units_counts_them():
    units = torch.tensor([1, 0, 1, 2, 1])
    assert ImageSet(torch.zeros(5, 1, 8, 8), None, units=units).unit_count == 3


def test_set_without_images_has_no_units():
    units = torch.zeros(0, dtype=torch.int64)
    assert ImageSet(torch.zeros(0, 1, 8, 8), None, units=units).unit_count == 0


@pytest.mark.parametrize(
    "units",
    [
        pytest.param(torch.tensor([0, 1]), id="too few"),
        pytest.param(torch.tensor([0, 1, 2, 0]), id="too many"),
        pytest.param(torch.tensor([[0], [1], [2]]), id="two axes"),
        pytest.param(torch.tensor([0, 1, 3]), id="past the images"),
        pytest.param(torch.tensor([0, 2, 2]), id="gap"),
        pytest.param(torch.tensor([-1, 0, 1]), id="negative"),
        pytest.param(torch.tensor([0.0, 1.0, 1.0]), id="floats"),
        pytest.param(torch.tensor([0, 1, 1], dtype=torch.int32), id="short integers"),
    ],
)
def test_set_whose_units_are_not_indices_of_all_images_is_refused(units):
    with pytest.raises(ValueError, match="units"):
        ImageSet(torch.zeros(3, 1, 8, 8), None, units=units)


def test_digest_without_units_is_of_pixels_and_labels_alone():
    # it names what a site released before: a change would spend privacy a second time
    pixels, labels = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 1])
    expected = hashlib.sha256(pixels.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    assert ImageSet(pixels, labels).digest() == expected


def test_digest_depends_on_who_belongs_together_and_is_no_digest_of_labels():
    pixels, zeros = torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64)
    sets = [
        ImageSet(pixels, None),
        ImageSet(pixels, zeros),
        ImageSet(pixels, None, units=zeros),
        ImageSet(pixels, zeros, units=zeros),
        ImageSet(pixels, None, units=torch.tensor([0, 0, 1])),
        ImageSet(pixels, None, units=torch.tensor([0, 1, 1])),
    ]
    assert len({each.digest() for each in sets}) == len(sets)


# --- every way to give ids ---


@pytest.mark.parametrize("key", ["units", "patient_ids"])
@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([7, 3, 7, 9], id="numbers"),
        pytest.param(np.array([7, 3, 7, 9], np.uint64) + 2**63, id="large numbers"),
        pytest.param([-7, -3, -7, 9], id="negative numbers"),
        pytest.param([[7], [3], [7], [9]], id="a column"),
        pytest.param(["p7", "p3", "p7", "p9"], id="text"),
        pytest.param(["p7", " p3", "p7 ", "p9"], id="text with blanks"),
        pytest.param(["Ölgü", "O", "Ölgü", "P"], id="unicode"),
    ],
)
def test_npz_says_which_images_belong_together(npz, key, ids):
    assert units_of(npz(**{key: np.array(ids)})) == [0, 1, 0, 2]


@pytest.mark.parametrize(
    "ids", [["1", "01", "1", "1.5"], ["a", "A", "a", "ä"], ["1.0", "10", "1", "1.0.0"]]
)
def test_ids_that_differ_are_different_patients(npz, ids):
    assert units_of(npz(units=np.array(ids))) == [0, 1, 0, 2]


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(["M\u00fcller", "x", "Mu\u0308ller", "y"], id="composed and decomposed"),
        pytest.param(["1", "2", "1.0", "3"], id="whole numbers as fractions"),
        pytest.param(["-1.00", "2", "-1", "3"], id="negative"),
        pytest.param(["p1", "p2", "p\u200b1", "p3"], id="zero-width blank"),
        pytest.param(["p1", "p2", "\ufeffp1", "p3"], id="byte order mark"),
        pytest.param(["p1", "p2", "p1\u200d\u2060", "p3"], id="joiners"),
        pytest.param(["p1", "p2", "p\u00ad1", "p3"], id="soft hyphen"),
        pytest.param(["p1", "p2", "p\ufe0f1", "p3"], id="selector"),
        pytest.param(["\u202ap1\u202c", "p2", "p1", "p3"], id="marks of direction"),
        pytest.param(["p 1", "p2", "p\u00a01", "p3"], id="blank that does not break"),
        pytest.param(["p 1", "p2", "\tp  1\r", "p3"], id="tabs and double blanks"),
    ],
)
def test_one_patient_written_in_two_ways_is_one_unit_and_that_is_noted(npz, folder, ids):
    loaded, report = load(npz(units=np.array(ids)))
    assert loaded.reveal().units.tolist() == [0, 1, 0, 2]
    assert "1 ids differ from another only in" in report.notes[0]
    files = {f"{i}.png": i for i in range(4)}
    table = "file,unit\n" + "".join(f'{i}.png,"{unit}"\n' for i, unit in enumerate(ids))
    assert units_of(folder(files, table)) == [0, 1, 0, 2]


def test_npz_with_medmnist_keys_has_unit_ids(tmp_path):
    np.savez(tmp_path / "m.npz", train_images=PIXELS, val_images=PIXELS[:1], units=[1, 1, 2, 3])
    assert units_of(tmp_path / "m.npz") == [0, 0, 1, 2]


def test_npy_file_has_its_unit_ids_beside_it(tmp_path):
    np.save(tmp_path / "scans.npy", PIXELS)
    np.save(tmp_path / "scans.units.npy", np.array(["x", "y", "y", "x"]))
    data = load(tmp_path / "scans.npy")[0].reveal()
    assert data.units.tolist() == [0, 1, 1, 0]
    assert isinstance(data.pixels, np.memmap)


def test_folder_has_its_unit_ids_in_a_table_in_any_order(folder):
    files = {"cat/a.png": 1, "cat/b.png": 2, "dog/a.png": 3, "dog/deep/c.png": 4}
    rows = [("dog/deep/c.png", "p1"), ("dog/a.png", "p2"), ("cat/b.png", "p1"), ("cat/a.png", "p2")]
    assert units_of(folder(files, rows), PETS) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "table",
    [
        pytest.param("file,unit\r\na.png,1\r\nb.png,1\r\n", id="Windows"),
        pytest.param("\ufefffile,unit\na.png,1\nb.png,1\n", id="byte order mark"),
        pytest.param('"file","unit"\n"a.png","1"\n"b.png","1"\n', id="quoted"),
        pytest.param("file, unit\na.png, 1\nb.png,1 \n\n", id="blanks"),
        pytest.param("file,unit\na.png,1\nb.png,1", id="no last line feed"),
        pytest.param('file,unit\na.png,"1, 2"\nb.png,"1, 2"\n', id="comma in an id"),
    ],
)
def test_table_of_units_is_read_in_every_dialect_of_csv(folder, table):
    assert units_of(folder(TWO, table)) == [0, 0]


@pytest.mark.parametrize("names", [("\u00fc.png", "u\u0308.png"), ("u\u0308.png", "\u00fc.png")])
def test_table_names_a_file_however_its_accents_are_composed(folder, names):
    stored, written = names
    path = folder({"a.png": 1, stored: 2}, [("a.png", 1), (written, 1)])
    assert units_of(path) == [0, 0]


def test_unit_ids_that_claim_more_than_there_is_memory_are_refused(tmp_path):
    np.save(tmp_path / "scans.npy", PIXELS)
    head = b"{'descr': '<i8', 'fortran_order': False, 'shape': (25000000000000,), }"
    claim = b"\x93NUMPY\x01\0\x76\0" + head.ljust(0x75) + b"\n"
    (tmp_path / "scans.units.npy").write_bytes(claim + b"\0" * 64)
    assert "cannot be read" in refusal_of(tmp_path / "scans.npy").message


def test_unreadable_files_do_not_shift_the_units(folder):
    files = {"a.png": None, "b.png": 2, "c.png": None, "d.png": 4, "e.png": 5}
    rows = [("a.png", "p"), ("b.png", "q"), ("c.png", "r"), ("d.png", "s"), ("e.png", "q")]
    path = folder(files, rows)
    assert units_of(path, max_bad_fraction=0.5) == [0, 1, 0]


def test_ids_do_not_survive_and_new_names_for_everybody_change_nothing(npz):
    first = load(npz("a.npz", units=np.array([SECRET, "x", SECRET, "y"])))
    second = load(npz("b.npz", units=np.array([3, 9, 3, 1])))
    assert first[0].reveal().digest() == second[0].reveal().digest()
    assert SECRET not in repr(first)
    assert first[1].notes == ["they are of 3 patients; the plan protects patients"]


# --- ids that are missing or of no use ---


@pytest.mark.parametrize("source", ["digits", "digits:3"])
def test_digits_are_refused_where_patients_are_protected(source):
    assert "patient" in refusal_of(source).message


def test_images_without_unit_ids_are_refused_with_the_ways_to_give_them(npz, tmp_path, folder):
    np.save(tmp_path / "scans.npy", PIXELS)
    pictures = folder(TWO, "")
    (pictures / "units.csv").unlink()
    for source in (npz(), tmp_path / "scans.npy", pictures):
        found = refusal_of(source)
        assert str(source) in found.message
        for way in ("`units`", ".units.npy", "units.csv"):
            assert way in found.hint


def test_npz_with_unit_ids_twice_is_refused(npz):
    found = refusal_of(npz(units=np.arange(4), patient_ids=np.arange(4)))
    assert "units and patient_ids" in found.message


def test_unit_ids_are_ignored_and_noted_where_images_are_protected(npz, tmp_path, folder):
    # not even looked at: what protects nobody may be broken
    np.save(tmp_path / "scans.npy", PIXELS)
    (tmp_path / "scans.units.npy").write_bytes(b"junk")
    evil = np.array([{}] * 4, dtype=object)
    for source in (npz(units=evil), tmp_path / "scans.npy", folder(TWO, "junk")):
        images, report = load(source, unit="image")
        assert images.reveal().units is None
        assert "ignored" in report.notes[0]


def test_images_without_unit_ids_carry_no_note_where_images_are_protected(npz):
    assert load(npz(), unit="image")[1].notes == []


@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_unit_ids_in_another_number_than_images_are_refused(npz, count):
    message = refusal_of(npz(units=np.arange(count))).message
    assert f"are {count}, the images 4" in message


@pytest.mark.parametrize("ids", [np.int64(3), np.zeros((4, 2), int), np.zeros((2, 2), int)])
def test_unit_ids_of_another_shape_are_refused(npz, ids):
    assert "shape" in refusal_of(npz(units=ids)).message


GAPS = ["", "  ", "nan", "NaN", "None", "null", "NaT", "<NA>", "N/A", "NA", "#N/A", "#NA", "n.a."]
GAPS += [
    "-",
    "--",
    "?",
    "???",
    ".",
    "unknown",
    "Unknown ",
    "UNK",
    "-nan",
    "1.#QNAN",
    "#REF!",
    "nil",
]
GAPS += ["\u200b", "\u00a0", "\u2013", "n/a\u200b", "not  available", "anonymized", "***", "_"]


@pytest.mark.parametrize("gap", GAPS)
def test_unit_ids_that_are_missing_are_refused_as_text(npz, gap):
    # taken for an id, it would join strangers to one patient
    assert "1 of the unit ids" in refusal_of(npz(units=np.array([SECRET, gap, "c", "d"]))).message


def test_list_of_ids_that_count_as_missing_is_the_one_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "plan.md").read_text()
    stated = re.search(r"These count as missing.*?:(.*?)\n\n", text, re.DOTALL)[1]
    assert set(re.findall("`([^`]+)`", stated)) == MISSING


def test_unit_ids_that_are_missing_are_refused_as_numbers(npz):
    message = refusal_of(npz(units=np.array([1, np.nan, np.nan, 2]))).message
    assert "2 of the unit ids" in message


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.bool_, np.complex128, "S4", "M8[s]"])
def test_unit_ids_that_are_neither_whole_numbers_nor_text_are_refused(npz, dtype):
    assert "whole numbers" in refusal_of(npz(units=np.array([0, 1, 1, 0]).astype(dtype))).message


def test_unit_ids_that_are_pickled_are_refused_unopened(npz, tmp_path):
    evil = np.array([SECRET, "b", "c", "d"], dtype=object)
    assert "cannot be read" in refusal_of(npz(units=evil)).message
    np.save(tmp_path / "scans.npy", PIXELS)
    np.save(tmp_path / "scans.units.npy", evil, allow_pickle=True)
    assert "cannot be read" in refusal_of(tmp_path / "scans.npy").message


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"hello"])
def test_unit_ids_in_a_damaged_file_are_refused_by_its_name(tmp_path, content):
    np.save(tmp_path / "scans.npy", PIXELS)
    (tmp_path / "scans.units.npy").write_bytes(content)
    assert "scans.units.npy cannot be read" in refusal_of(tmp_path / "scans.npy").message


@pytest.mark.parametrize(
    ("table", "said"),
    [
        pytest.param("", "begin with", id="empty"),
        pytest.param(f"a.png,{SECRET}\nb.png,1\n", "begin with", id="no header"),
        pytest.param(f"unit,file\n{SECRET},a.png\n1,b.png\n", "begin with", id="swapped"),
        pytest.param(f"file;unit\na.png;{SECRET}\n", "begin with", id="semicolons"),
        pytest.param(f"file,unit,age\na.png,{SECRET},9\n", "begin with", id="more columns"),
        pytest.param(f"file,unit\na.png,{SECRET},9\n", "3 columns in line 2", id="long row"),
        pytest.param("file,unit\na.png\n", "1 columns in line 2", id="short row"),
        pytest.param("file,unit\na.png,1\nb.png,\n", "1 of the unit ids", id="no id"),
        pytest.param("file,unit\na.png,1\nb.png,NaN\n", "1 of the unit ids", id="NaN"),
        pytest.param(f'file,unit\na.png,"{SECRET}', "cannot be read", id="open quote"),
        pytest.param(f"file,unit\na.png,{SECRET}\0\n", "cannot be read", id="NUL"),
        pytest.param(b"file,unit\na.png,\xff\xfe\n", "cannot be read", id="not UTF-8"),
        pytest.param(b"\xff\xfef\0i\0l\0e\0", "cannot be read", id="UTF-16"),
    ],
)
def test_table_of_units_that_is_malformed_is_refused(folder, table, said):
    found = refusal_of(folder(TWO, table))
    assert said in found.message


@pytest.mark.parametrize(
    "extra", ["c.png", "./a.png", "/a.png", ".hidden.png", "units.csv", "deep\\a.png"]
)
def test_table_of_units_with_a_row_for_no_image_is_refused_by_the_first(folder, extra):
    rows = [("a.png", SECRET), (extra, SECRET), ("b.png", 1), ("z.png", 1)]
    assert f"names {extra}, " in refusal_of(folder(TWO, rows)).message


@pytest.mark.parametrize("content", [2, None], ids=["readable", "unreadable"])
def test_table_of_units_that_lacks_an_image_is_refused_by_its_name(folder, content):
    path = folder(TWO | {"deep.png": content}, [("a.png", SECRET), ("b.png", 1)])
    message = refusal_of(path, max_bad_fraction=0.5).message
    assert "lacks 1 of 3 image files, for example deep.png" in message


def test_table_of_units_with_an_image_twice_is_refused_by_its_name(folder):
    path = folder(TWO, [("a.png", 1), ("b.png", 2), ("a.png", 1)])
    assert "names a.png twice" in refusal_of(path).message
