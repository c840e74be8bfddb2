"""Images are decoded once: a kill loses a block, memory stays flat, nothing stale is used."""

import json
import os
import shutil
import subprocess
import sys
import time

import commands
import numpy as np
import pytest
from shards import png, write_shard

from ddm_fed.errors import DataError, StateError
from ddm_fed.records import DataSpec
from sites.data import load_images, store

SPEC = DataSpec(channels=1, height=8, width=8)


def load(source, place, spec=SPEC, **options):
    images, report = load_images(str(source), spec, store=place, **options)
    return images.reveal(), report


@pytest.fixture
def shard(tmp_path):
    entries = []
    for index in range(40):
        entries.append((f"{index:03}.png", b"junk" if index == 7 else png(index)))
        entries.append((f"{index:03}.json", {"patient_id": f"p{index % 3}", "label": "a"}))
    return write_shard(tmp_path / "a.tar", entries)


def facts(images, report):
    return (
        images.digest(),
        images.units.tolist(),
        report.skipped,
        report.notes,
        report.values,
        dict(report.sizes),
        report.left_out,
    )


def test_finished_store_is_used_and_says_the_same(tmp_path, shard, monkeypatch):
    first = facts(*load(shard, tmp_path / "store", unit="patient"))
    monkeypatch.setattr(store._Writer, "run", None)
    again = load(shard, tmp_path / "store", unit="patient")
    assert facts(*again) == first
    assert isinstance(again[0].pixels, np.memmap)
    assert facts(*load_in_memory(shard, monkeypatch)) == first


def load_in_memory(source, monkeypatch):
    monkeypatch.undo()
    images, report = load_images(str(source), SPEC, unit="patient")
    return images.reveal(), report


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_stop_anywhere_goes_on_to_the_same_store(tmp_path, shard, monkeypatch, blocks):
    whole = facts(*load(shard, tmp_path / "whole", unit="patient"))
    monkeypatch.setattr(store, "BLOCK_IMAGES", 10)
    commit, done = store._Files.commit, 0

    def stop(self, line):
        nonlocal done
        if done == blocks:
            raise KeyboardInterrupt
        done += 1
        commit(self, line)

    monkeypatch.setattr(store._Files, "commit", stop)
    with pytest.raises(KeyboardInterrupt):
        load(shard, tmp_path / "store", unit="patient")
    monkeypatch.setattr(store._Files, "commit", commit)
    (place,) = (tmp_path / "store").iterdir()
    with (place / "blocks.jsonl").open("ab") as file:
        file.write(b'{"items": 3')  # what a kill leaves
    decoded = 0
    take = store._Writer._take

    def count(*arguments):
        nonlocal decoded
        decoded += 1
        return take(*arguments)

    monkeypatch.setattr(store._Writer, "_take", count)
    found = facts(*load(shard, tmp_path / "store", unit="patient"))
    assert found == whole
    assert decoded == 40 - (0, 11, 21, 31)[blocks]  # the first block had an unreadable one


@pytest.mark.slow
def test_process_that_is_killed_goes_on(tmp_path, monkeypatch):
    pictures = [png(index, (256, 256)) for index in range(30)]
    entries = [(f"{index:05}.png", pictures[index % 30]) for index in range(600)]
    path = write_shard(tmp_path / "a.tar", entries)
    script = tmp_path / "load.py"
    script.write_text(
        "import sys; from pathlib import Path; from ddm_fed.records import DataSpec\n"
        "from sites.data import load_images, store; store.BLOCK_IMAGES = 20\n"
        "load_images(sys.argv[1], DataSpec(channels=1, height=64, width=64), "
        "store=Path(sys.argv[2]))"
    )
    with commands.Started(script, path, tmp_path / "store") as child:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = list((tmp_path / "store").glob("*/blocks.jsonl"))
            if found and found[0].read_bytes().count(b"\n") >= 3:
                break
            time.sleep(0.01)
        child.kill()
        child.communicate()
    (place,) = (tmp_path / "store").iterdir()
    before = (place / "blocks.jsonl").read_bytes().count(b"\n")
    assert before >= 3
    assert not (place / "complete.json").exists()
    spec = DataSpec(channels=1, height=64, width=64)
    images, report = load(path, tmp_path / "store", spec)
    assert report.count == 600
    assert images.digest() == load_images(str(path), spec)[0].reveal().digest()


def test_changed_source_is_decoded_anew_and_the_old_store_removed(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(0))
    first, _ = load(folder, tmp_path / "store")
    (folder / "a.png").write_bytes(png(1))
    os.utime(folder / "a.png", ns=(1, 1))
    second, _ = load(folder, tmp_path / "store")
    assert first.digest() != second.digest()
    assert len(list((tmp_path / "store").iterdir())) == 1


def test_stores_of_other_shapes_and_value_ranges_lie_beside_one_another(tmp_path, shard):
    load(shard, tmp_path / "store")
    other, _ = load(shard, tmp_path / "store", DataSpec(channels=3, height=8, width=8))
    assert other.shape == (3, 8, 8)
    assert len(list((tmp_path / "store").iterdir())) == 2


@pytest.mark.parametrize("name", ["pixels.bin", "blocks.jsonl", "complete.json"])
def test_damaged_store_is_refused_with_what_to_do(tmp_path, shard, name):
    load(shard, tmp_path / "store")
    (place,) = (tmp_path / "store").iterdir()
    (place / name).write_bytes(b"x")
    with pytest.raises(DataError, match="damaged") as caught:
        load(shard, tmp_path / "store")
    assert "remove that folder" in caught.value.hint


def test_disk_without_room_is_said_before_and_nothing_is_lost(tmp_path, shard, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StateError, match="MiB left"):
        load(shard, tmp_path / "store")
    monkeypatch.undo()
    assert load(shard, tmp_path / "store")[1].count == 39


def test_store_is_for_its_owner_alone_and_holds_no_unit_id(tmp_path, shard):
    load(shard, tmp_path / "store", unit="patient")
    (place,) = (tmp_path / "store").iterdir()
    assert place.stat().st_mode & 0o077 == 0
    for path in place.iterdir():
        assert b"p1" not in path.read_bytes() or path.name == "pixels.bin"
    assert json.loads((place / "complete.json").read_bytes())["unused"] == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    pictures = [png(index, (32, 32)) for index in range(50)]
    for count in (100, 1300):
        entries = ((f"{index:06}.png", pictures[index % 50]) for index in range(count))
        write_shard(tmp_path / f"{count}.tar", entries)
    code = (
        "import resource; from pathlib import Path; from ddm_fed.records import DataSpec\n"
        "from sites.data import load_images\n"
        "for count in (100, 1300):\n"
        "    load_images(f'{count}.tar', DataSpec(channels=1, height=128, width=128), "
        "store=Path(f'store{count}'))\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    # a fresh process: what others freed could take the images in
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, check=True, text=True, cwd=tmp_path)
    few, many = map(int, done.stdout.split())
    assert many - few < 10_000  # KiB; the images alone are 19,200 more
