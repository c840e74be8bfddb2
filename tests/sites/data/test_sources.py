"""Tables, shards, parquet and Hugging Face folders give the images, labels and units they name."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from shards import png, write_shard

from ddm_fed.errors import DataError
from ddm_fed.records import DataSpec
from sites.data import load_images

SPEC = DataSpec(channels=1, height=8, width=8)
PETS = DataSpec(channels=1, height=8, width=8, conditioning="class", classes=("cat", "dog", "owl"))


def load(source, spec=SPEC, **options):
    images, report = load_images(str(source), spec, **options)
    return images.reveal(), report


def refusal(source, spec=SPEC, **options):
    with pytest.raises(DataError) as caught:
        load_images(str(source), spec, **options)
    return str(caught.value)


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


def same(images, wanted):
    found = np.round((images.images[:, 0].numpy() + 1) / 2 * 255)
    return np.array_equal(found, np.stack([decoded(data) for data in wanted]))


@pytest.fixture
def pictures(tmp_path):
    data = [png(seed) for seed in range(4)]
    for index, each in enumerate(data):
        path = tmp_path / "scans" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(each)
    return data


def table(path, columns, rows):
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


ROWS = [
    ["scans/2.png", "owl", "an owl, asleep", "B"],
    ["scans/0.png", "cat", "", "A"],
    ["scans/1.png", "cat", "ein Kätzchen", "B"],
]


# --- tables ---


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_table_says_order_labels_and_units(tmp_path, pictures, kind):
    path = table(tmp_path / f"all.{kind}", ["file", "label", "caption", "unit"], ROWS)
    images, report = load(path, PETS, unit="patient")
    assert same(images, [pictures[2], pictures[0], pictures[1]])
    assert images.labels.tolist() == [2, 0, 0]
    assert images.units.tolist() == [0, 1, 0]
    assert report.classes == {"cat": 2, "dog": 0, "owl": 1}


TEXT = DataSpec(
    channels=1,
    height=8,
    width=8,
    conditioning="text",
    text={"sha256": "0" * 64, "context": 8, "tokens": 4, "width": 8, "pooled": 8},
)


def test_captions_of_tables_and_shards_are_those_of_their_images(tmp_path, pictures):
    path = table(tmp_path / "all.csv", ["file", "label", "text", "unit"], ROWS)
    assert load(path, TEXT)[0].captions == ("an owl, asleep", "", "ein Kätzchen")
    shard = write_shard(
        tmp_path / "a.tar",
        [("1.png", pictures[0]), ("1.txt", "eins"), ("2.png", pictures[1]), ("3.png", b"junk")],
    )
    images, _ = load(shard, TEXT, max_bad_fraction=0.5)
    assert images.captions == ("eins", "")
    assert "has no captions" in refusal(tmp_path / "scans", TEXT)


def test_labels_of_a_table_may_be_numbers_of_the_plans_classes(tmp_path, pictures):
    path = table(
        tmp_path / "all.csv", ["file_name", "cls"], [["scans/0.png", 2], ["scans/1.png", 0]]
    )
    assert load(path, PETS)[0].labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("columns", "rows", "reason"),
    [
        (["file", "label"], [["scans/0.png", "cow"]], "has the classes ['cow']"),
        (["file", "label"], [["scans/0.png", "3"]], "neither whole numbers from 0 to 2"),
        (["file", "label"], [["scans/0.png", "cat"], ["scans/1.png", ""]], "have no label"),
        (["file", "label"], [["scans/9.png", "cat"]], "1 of them are missing: scans/9.png"),
        (["file", "label"], [["scans/0.png", "cat"]] * 2, "names scans/0.png twice"),
        (["file", "file_name"], [["scans/0.png", "scans/0.png"]], "several columns for the file"),
        (["file", "label"], [["", "cat"]], "names no file in line 2"),
        (["picture", "label"], [["scans/0.png", "cat"]], "names of its columns"),
        (["file"], [["scans/0.png"]], "has no labels"),
    ],
)
def test_table_that_is_wrong_is_refused_with_what_is_expected(
    tmp_path, pictures, columns, rows, reason
):
    assert reason in refusal(table(tmp_path / "all.csv", columns, rows), PETS)


@pytest.mark.parametrize(
    "line", ["[1]", "{", '"a"', '{"file": ["scans/0.png"]}', '{"text": "secret', "{" * 100_000]
)
def test_line_of_a_table_that_is_no_object_is_refused_by_its_number(tmp_path, pictures, line):
    path = tmp_path / "all.jsonl"
    path.write_text('{"file": "scans/1.png"}\n' + line)
    assert "line 2" in refusal(path)
    assert "secret" not in refusal(path)


def test_captions_and_units_of_a_malformed_table_are_not_shown(tmp_path, pictures):
    path = table(
        tmp_path / "a.csv", ["file", "caption", "unit"], [["scans/0.png", "secret", "Doe"]]
    )
    path.write_bytes(path.read_bytes() + b'scans/1.png,"secret and open')
    assert "secret" not in refusal(path)
    assert "Doe" not in refusal(path)


def test_link_in_a_table_is_not_followed(tmp_path, pictures):
    (tmp_path / "link.png").symlink_to(tmp_path / "scans" / "0.png")
    path = table(tmp_path / "all.csv", ["file"], [["link.png"]])
    assert "cannot be read" in refusal(path)


# --- Hugging Face folders ---


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_of_hugging_face_describes_the_files_of_its_folder(tmp_path, pictures, kind):
    rows = [["1.png", "dog", "a dog"], ["0.png", "cat", "a cat"], ["3.png", "owl", "owl"]]
    table(tmp_path / "scans" / f"metadata.{kind}", ["file_name", "label", "text"], rows)
    images, report = load(tmp_path / "scans", PETS)
    assert same(images, [pictures[1], pictures[0], pictures[3]])
    assert images.labels.tolist() == [1, 0, 2]
    assert any("1 images of the folder are not in metadata" in line for line in report.doubts)


def test_metadata_without_labels_leaves_subfolders_as_classes(tmp_path):
    for name in ("owl", "cat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(0))
    table(
        tmp_path / "metadata.csv", ["file_name", "text"], [["owl/a.png", "x"], ["cat/a.png", "y"]]
    )
    assert load(tmp_path, PETS)[0].labels.tolist() == [2, 0]


# --- parquet ---


def parquet(path, names=None, **columns):
    made = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        facts = json.dumps({"info": {"features": features}})
        made = made.replace_schema_metadata({"huggingface": facts})
    pq.write_table(made, path, row_group_size=2)
    return path


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_holds_images_as_hugging_face_writes_them(tmp_path, pictures, as_struct):
    held = [{"bytes": data, "path": "x.png"} for data in pictures] if as_struct else pictures
    path = parquet(
        tmp_path / "train-0.parquet",
        names=["owl", "cat"],
        image=held,
        label=[0, 1, 1, 0],
        patient_id=["a", "b", "a", "c"],
        notes=["n"] * 4,
    )
    images, report = load(path, PETS, unit="patient")
    assert same(images, pictures)
    assert images.labels.tolist() == [2, 0, 0, 2]
    assert images.units.tolist() == [0, 1, 0, 2]
    assert report.left_out == {"columns and entries are not used": ["notes"]}


def test_folder_of_parquet_is_read_in_order_and_parts_for_testing_are_a_doubt(tmp_path, pictures):
    for index, part in enumerate(["train-0", "train-1", "test-0"]):
        (tmp_path / "data").mkdir(exist_ok=True)
        parquet(tmp_path / "data" / f"{part}.parquet", image=[pictures[index]])
    images, report = load(tmp_path / "data")
    assert same(images, [pictures[2], pictures[0], pictures[1]])
    assert any("test, train" in line for line in report.doubts)
    assert load(tmp_path / "data" / "train-*.parquet")[1].doubts == []


def test_parquet_without_an_image_or_cut_short_is_refused(tmp_path, pictures):
    path = parquet(tmp_path / "a.parquet", label=[1])
    assert "0 columns of images" in refusal(path)
    path = parquet(tmp_path / "b.parquet", image=pictures)
    path.write_bytes(path.read_bytes()[:-9])
    assert "no whole parquet file" in refusal(path)


# --- shards ---


def test_shards_are_read_as_the_package_webdataset_reads_them(tmp_path, pictures):
    with webdataset.ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=2, verbose=0) as writer:
        for index, data in enumerate(pictures):
            sample = {"__key__": f"{index:04}", "png": data, "cls": index % 3}
            writer.write(sample | {"json": {"patient_id": f"p{index // 2}", "age": 44}})
    images, report = load(tmp_path / "s-{000..001}.tar", PETS, unit="patient")
    read = (
        "import sys, webdataset;"
        "found = webdataset.WebDataset(sys.argv[1:], shardshuffle=False).decode();"
        "print([sample['cls'] for sample in found])"
    )
    urls = [str(tmp_path / f"s-{index:03}.tar") for index in range(2)]
    theirs = subprocess.check_output([sys.executable, "-W", "ignore", "-c", read, *urls], text=True)
    assert theirs.strip() == str(images.labels.tolist())
    assert same(images, pictures)
    assert images.units.tolist() == [0, 0, 1, 1]
    assert report.left_out == {"columns and entries are not used": ["age"]}
    assert same(load(tmp_path)[0], pictures)


def test_label_of_a_shard_may_be_a_name_and_a_sample_without_image_is_counted(tmp_path, pictures):
    path = write_shard(
        tmp_path / "a.tar",
        [
            ("x/1.png", pictures[0]),
            ("x/1.cls", "owl\n"),
            ("x/2.cls", "cat"),
            ("x/3.seg.png", b"mask"),
            ("x/3.jpg", png(3, kind="JPEG")),
            ("x/3.json", {"label": "dog", "boxes": [1, 2], "path": "a", "filename": "b"}),
        ],
    )
    images, report = load(path, PETS, max_bad_fraction=0.5)
    assert images.labels.tolist() == [2, 1]
    assert report.skipped == ["a.tar: x/2: it has no image"]
    assert report.left_out == {"columns and entries are not used": [".seg.png"]}


def test_two_samples_of_one_name_are_two_images(tmp_path, pictures):
    path = write_shard(tmp_path / "a.tar", [("1.png", pictures[0]), ("1.png", pictures[1])])
    assert same(load(path)[0], pictures[:2])


@pytest.mark.parametrize("cut", [100, 700, 2000])
def test_shard_that_is_cut_short_is_refused(tmp_path, pictures, cut):
    path = write_shard(tmp_path / "a.tar", [(f"{i}.png", data) for i, data in enumerate(pictures)])
    path.write_bytes(path.read_bytes()[:cut])
    assert "no whole tar file" in refusal(path)


def test_shard_that_is_compressed_or_missing_is_refused_with_what_to_do(tmp_path, pictures):
    import gzip

    path = write_shard(tmp_path / "a.tar", [("1.png", pictures[0])])
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert "gunzip" in refusal(tmp_path / "b.tar.gz")
    assert "1 of 2 files" in refusal(tmp_path / "{a,b}.tar")
    assert "brace" in refusal(tmp_path / "{a.tar")


def test_links_and_commands_in_shards_do_nothing(tmp_path, pictures):
    import tarfile

    path = tmp_path / "a.tar"
    secret = tmp_path / "secret.png"
    secret.write_bytes(pictures[1])
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
        info = tarfile.TarInfo("../../2.png")
        info.size = len(pictures[0])
        tar.addfile(info, io.BytesIO(pictures[0]))
    assert same(load(path)[0], pictures[:1])
    assert "is neither" in refusal("pipe:touch owned.tar") or "missing" in refusal("pipe:x.tar")


# --- how images meet the plan's shape ---


@pytest.mark.parametrize("source", ["folder", "array"])
def test_plan_says_how_images_of_another_form_meet_its_shape(tmp_path, source):
    wide = np.zeros((8, 16), np.uint8)
    wide[:, :4], wide[:, 4:12], wide[:, 12:] = 10, 250, 10
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "a.png")
    np.savez(tmp_path / "a.npz", images=wide[None])
    place = tmp_path / ("a" if source == "folder" else "a.npz")
    means = {}
    for fit in ("crop", "pad", "stretch"):
        spec = DataSpec(channels=1, height=8, width=8, fit=fit)
        images, report = load(place, spec)
        shown = (images.images[0, 0].numpy() + 1) / 2 * 255
        means[fit] = shown.mean(), shown[0].mean(), shown[4].mean()
        assert any(fit.rstrip("p")[:4] in note for note in report.notes)
    assert means["crop"][0] == pytest.approx(250, abs=1)
    assert means["pad"][1] == pytest.approx(0, abs=1)
    assert means["pad"][2] == pytest.approx(130, abs=12)
    assert means["stretch"][0] == pytest.approx(130, abs=6)
    assert means["stretch"][1] == pytest.approx(130, abs=6)


def test_pattern_of_very_many_shards_is_refused_before_it_is_expanded(tmp_path):
    with pytest.raises(DataError, match="names more than 1000000 files"):
        load_images(str(tmp_path / "s-{000..999999999999}.tar"), SPEC)
