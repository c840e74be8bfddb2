"""DICOM files: pixels are those of pydicom's own pipeline, and no tag leaves them."""

import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom import SECRET, write_dicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ddm_fed.errors import DataError
from ddm_fed.records import DataSpec
from sites.data import load_images

NOISE = np.random.default_rng(0)
SIDE = 16
GREY = DataSpec(channels=1, height=SIDE, width=SIDE)
COLOUR = DataSpec(channels=3, height=SIDE, width=SIDE)
SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def values(bits=12, signed=False, shape=(SIDE, SIDE)):
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    kind = np.int16 if signed else np.uint8 if bits <= 8 else np.uint16
    return NOISE.integers(low, high, shape).astype(kind)


def load(source, spec=GREY, **options):
    images, report = load_images(str(source), spec, **options)
    return images.reveal(), report


def shades(unit):
    """Returns what values from 0 to 1 are stored as, and read back: 256 shades in [-1, 1]."""
    return np.round(np.clip(unit, 0, 1) * 255) / 255 * 2 - 1


def by_pydicom(path, low, high, spec):
    """Returns a file as pydicom shows it, from black `low` to white `high`, in [-1, 1]."""
    ds = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds)
    return shades((shown.astype(np.float64) - low) / (high - low))


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, False), (16, True)])
def test_stored_values_run_from_black_to_white_over_all_bits_in_every_syntax(
    tmp_path, syntax, bits, signed
):
    stored = values(bits, signed, (64, 64))  # JPEG 2000 halves the size several times
    write_dicom(tmp_path / "a.dcm", stored, bits=bits, signed=signed, syntax=syntax)
    images, _ = load(tmp_path, DataSpec(channels=1, height=64, width=64))
    low = -(1 << (bits - 1)) if signed else 0
    wanted = shades((stored.astype(np.float64) - low) / ((1 << bits) - 1))
    assert np.allclose(images.images[0, 0].numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_is_applied_after_the_rescale_as_pydicom_does(tmp_path, function):
    path = write_dicom(
        tmp_path / "a.dcm",
        values(12),
        bits=12,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=[40, 400],
        WindowWidth=[400, 2000],
        VOILUTFunction=function,
    )
    images, report = load(path)
    wanted = by_pydicom(path, -1024, 4095 - 1024, GREY)
    assert np.allclose(images.images[0, 0].numpy(), wanted, atol=1e-6)
    assert "shown by the file's first window (1 of them)" in report.notes
    assert len(np.unique(wanted)) > 10


def lut(entries, first, bits):
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = np.asarray(entries, np.uint16).tobytes()
    return Sequence([item])


def test_tables_of_modality_and_of_values_of_interest_are_applied_as_pydicom_does(tmp_path):
    path = write_dicom(
        tmp_path / "a.dcm",
        values(8),
        ModalityLUTSequence=lut(np.arange(256) * 16, 0, 16),
        VOILUTSequence=lut((np.arange(4096) ** 2) >> 14, 0, 10),
        WindowCenter=5,  # a table goes before a window
        WindowWidth=2,
    )
    images, _ = load(path)
    assert np.allclose(images.images[0, 0].numpy(), by_pydicom(path, 0, 1023, GREY), atol=1e-6)


def test_monochrome1_is_inverted(tmp_path):
    stored = values(8)
    write_dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    images, _ = load(tmp_path)
    assert np.allclose(images.images[0, 0].numpy(), shades(1 - stored / 255), atol=1e-6)


def test_value_range_replaces_windows_and_cuts_what_lies_beyond(tmp_path):
    stored = values(12)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 0, "WindowWidth": 9}
    write_dicom(tmp_path / "a.dcm", stored, bits=12, **tags)
    images, _ = load(tmp_path, value_range=(-1000.0, 400.0))
    wanted = shades((stored.astype(np.float64) - 1024 + 1000) / 1400)
    assert np.allclose(images.images[0, 0].numpy(), wanted, atol=1e-6)


def test_every_frame_of_a_file_of_several_is_an_image_of_its_own_window(tmp_path):
    stored = values(12, shape=(3, SIDE, SIDE))
    groups = []
    for centre in (500, 1500, 2500):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = centre, 800
        group.FrameVOILUTSequence = Sequence([window])
        groups.append(group)
    path = write_dicom(
        tmp_path / "a.dcm", stored, bits=12, PerFrameFunctionalGroupsSequence=Sequence(groups)
    )
    images, _ = load(path)
    for frame, centre in enumerate((500, 1500, 2500)):
        ds = pydicom.dcmread(path)
        ds.WindowCenter, ds.WindowWidth = centre, 800
        wanted = shades(apply_voi_lut(stored[frame], ds) / 4095)
        assert np.allclose(images.images[frame, 0].numpy(), wanted, atol=1e-6)


def test_colour_becomes_rgb_as_pydicom_converts_it():
    for name in ("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_jpeg_dcmtk.dcm"):
        path = SAMPLES / name
        ds = pydicom.dcmread(path)
        wanted = pixel_array(ds)  # which converts YBR
        images, _ = load(path, DataSpec(channels=3, height=ds.Rows, width=ds.Columns))
        found = np.round((images.images[0].permute(1, 2, 0).numpy() + 1) / 2 * 255)
        assert np.array_equal(found, wanted)


def test_palette_becomes_rgb_as_pydicom_looks_it_up():
    path = SAMPLES / "examples_palette.dcm"
    ds = pydicom.dcmread(path)
    wanted = shades(apply_color_lut(ds.pixel_array, ds) / 65535)
    images, _ = load(path, DataSpec(channels=3, height=ds.Rows, width=ds.Columns))
    assert np.allclose(images.images[0].permute(1, 2, 0).numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "693_J2KI.dcm"]
)
def test_sample_file_of_pydicom_has_the_pixels_of_its_own_pipeline(name):
    path = get_testdata_file(name)
    ds = pydicom.dcmread(path)
    spec = DataSpec(channels=1, height=ds.Rows, width=ds.Columns)
    bits, slope = ds.BitsStored, float(ds.get("RescaleSlope", 1))
    offset = float(ds.get("RescaleIntercept", 0))
    low = -(1 << (bits - 1)) if ds.PixelRepresentation else 0
    high = low + (1 << bits) - 1
    wanted = by_pydicom(path, low * slope + offset, high * slope + offset, spec)
    images, _ = load(path, spec)
    assert np.allclose(images.images[0, 0].numpy(), wanted, atol=1e-6)


def test_every_sample_file_of_pydicom_is_taken_or_left_out_with_a_reason():
    images, report = load(f"dicom:{SAMPLES}", max_bad_fraction=1)
    taken = set(report.items.tolist())
    left = sum(map(len, report.left_out.values()))
    assert len(images) == report.count > 100
    assert report.seen == len(taken) + left + len(report.skipped)
    assert len(report.skipped) < 20


# --- what is not to be taken ---


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned-in annotations"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localisers"),
        ({"Modality": "SEG"}, "hold no image"),
    ],
)
def test_kind_that_is_no_picture_of_a_patient_is_left_out_and_counted(tmp_path, tags, reason):
    write_dicom(tmp_path / "good.dcm", values(8))
    write_dicom(tmp_path / "other.dcm", values(8), **tags)
    images, report = load(tmp_path)
    assert len(images) == 1
    assert [names for why, names in report.left_out.items() if reason in why] == [["other.dcm"]]


def test_broken_files_are_counted_and_never_quote_a_tag(tmp_path, caplog, recwarn):
    whole = write_dicom(tmp_path / "whole.dcm", values(8)).read_bytes()
    (tmp_path / "short.dcm").write_bytes(whole[:-40])
    (tmp_path / "junk.dcm").write_bytes(b"junk")
    (tmp_path / "empty.dcm").write_bytes(b"")
    broken = write_dicom(tmp_path / "rle.dcm", values(16), syntax=RLELossless).read_bytes()
    (tmp_path / "rle.dcm").write_bytes(broken[:-300] + bytes(300))
    write_dicom(tmp_path / "odd.dcm", values(8), BitsStored=99, PatientComments=SECRET)
    with pydicom.config.disable_value_validation():  # then pydicom warns, logs and raises with it
        quoted = {"WindowCenter": 1, "WindowWidth": 3, "VOILUTFunction": "doe 4711"}
        write_dicom(tmp_path / "window.dcm", values(8), **quoted)
    with caplog.at_level(logging.DEBUG):
        images, report = load(tmp_path, max_bad_fraction=1)
    assert sorted(line.partition(":")[0] for line in report.skipped) == sorted(
        ["short.dcm", "junk.dcm", "empty.dcm", "odd.dcm", "window.dcm", "rle.dcm"]
    )
    said = repr(report) + caplog.text + "".join(str(each.message) for each in recwarn.list)
    assert not [record for record in caplog.records if record.name.startswith("pydicom")]
    assert len(images) == 1
    assert "doe" not in said.lower()
    assert "4711" not in said
    assert "P-0001" not in said


def test_header_that_claims_many_pixels_is_one_broken_file(tmp_path):
    write_dicom(tmp_path / "good.dcm", values(8))
    write_dicom(tmp_path / "bomb.dcm", values(8), Rows=65535, Columns=65535)
    _, report = load(tmp_path, max_bad_fraction=0.5)
    assert report.skipped == ["bomb.dcm: 65535 x 65535 pixels are more than 64000000"]


# --- the patient is the unit ---


def test_patient_is_the_unit_and_is_written_nowhere(tmp_path):
    folder = tmp_path / "scans"
    for index, patient in enumerate(["Ann-77", "Bob-88", "Ann-77", " Bob-88 ", "Cid-99"]):
        write_dicom(folder / f"{index}.dcm", values(8), patient=patient)
    store = tmp_path / "store"
    images, report = load(folder, unit="patient", store=store)
    assert images.units.tolist() == [0, 1, 0, 1, 2]
    kept = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    for name in ("Ann", "Bob", "Cid", SECRET):
        assert name.encode() not in kept
        assert name not in repr(report)


def test_image_of_an_unnamed_patient_is_refused_where_patients_are_protected(tmp_path):
    write_dicom(tmp_path / "a.dcm", values(8), patient="P1")
    write_dicom(tmp_path / "b.dcm", values(8), patient="Anonymous")
    with pytest.raises(DataError, match=r"1 of the unit ids of .* are missing"):
        load(tmp_path, unit="patient")
    assert len(load(tmp_path)[0]) == 2


def test_folders_are_classes_only_where_the_plan_has_classes(tmp_path):
    for name in ("normal", "pneumonia"):
        write_dicom(tmp_path / name / "series" / "a.dcm", values(8))
    spec = DataSpec(
        channels=1,
        height=SIDE,
        width=SIDE,
        conditioning="class",
        classes=("pneumonia", "normal"),
    )
    assert load(tmp_path, spec)[0].labels.tolist() == [1, 0]
    assert load(tmp_path)[0].labels is None


def test_folder_of_pictures_with_dicom_beside_them_says_how_to_read_the_latter(tmp_path):
    from PIL import Image

    Image.new("L", (SIDE, SIDE)).save(tmp_path / "a.png")
    write_dicom(tmp_path / "b.dcm", values(8))
    _, report = load(tmp_path)
    assert report.count == 1
    assert any("dicom:FOLDER" in line for line in report.doubts)
    assert load(f"dicom:{tmp_path}")[1].count == 1
