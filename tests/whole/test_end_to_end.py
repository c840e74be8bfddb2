"""The README by real commands: two sites, one ensemble, and every tampering refused."""

import base64
import json
import shutil
from pathlib import Path

import commands
import numpy as np
import pytest
from commands import Ended
from PIL import Image

pytestmark = pytest.mark.processes
PLAN = """
federation = "shapes"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
conditioning = "class"
classes = ["bar", "dot"]
[expert]
architecture = "DiT-Nano/2"
[training]
steps = 5
batch_size = 16
[router]
kind = "mixture"
epsilon = 4
frequencies = 6
radius = 5
[privacy]
max_epsilon = 5
"""


def run(program: str, *words: object, expect: int = 0) -> Ended:
    ended = commands.here(program, *words)
    assert ended.code == expect, f"{words}: {ended.out}\n{ended.err}"
    return ended


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy bars (class 0) and dots (class 1), `(N, 8, 8)` uint8."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (count, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, 2, count)
    for image, label in zip(images, labels, strict=True):
        at = rng.integers(2, 6)
        image[
            at : at + (1 if label == 0 else 2), slice(None) if label == 0 else slice(at, at + 2)
        ] = 250
    return images, labels


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """A coordinator, a site with an .npz, a site with an image folder; both bundles released."""
    base = tmp_path_factory.mktemp("federation")
    hub, root = base / "hub", ""
    root = run("ddm-coord", "init", hub, "--federation", "shapes").out.strip()
    images, labels = pictures(60, seed=1)
    np.savez_compressed(base / "one.npz", images=images, labels=labels)
    images, labels = pictures(40, seed=2)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = base / "two-images" / ("bar", "dot")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    (base / "two-images" / "dot" / "broken.png").write_bytes(b"not a picture")
    for name in ("one", "two"):
        run("ddm-site", "init", base / name, "--name", name, "--root", root)
        run("ddm-coord", "roster", "add", base / name / "enrolment.dsse.json", "--coordinator", hub)
    (base / "plan.toml").write_text(PLAN)
    run("ddm-coord", "publish", base / "plan.toml", "--coordinator", hub)
    for name, data in (("one", base / "one.npz"), ("two", base / "two-images")):
        common = ("--site", base / name, "--plan", hub / "published")
        trained = run("ddm-site", "train", *common, "--data", data)
        if name == "two":
            assert "1 files could not be read" in trained.err
            assert "dot/broken.png" in trained.err
        assert f"next: ddm-site review --site {base / name}" in trained.err
        assert "expert.safetensors" in run("ddm-site", "review", *common).out
        run("ddm-site", "release", *common)
    return base, root


@pytest.fixture
def copy(federation, tmp_path):
    base, root = federation
    shutil.copytree(base, tmp_path / "fed")
    return tmp_path / "fed", root


def test_two_sites_become_an_ensemble_anyone_can_verify_and_sample(copy):
    base, root = copy
    hub = base / "hub"
    for name in ("one", "two"):
        common = ("--site", base / name, "--plan", hub / "published")
        assert "sent" in run("ddm-site", "submit", *common, "--to", hub / "inbox").err
    arrivals = json.loads(run("ddm-coord", "admit", "--coordinator", hub, "--json").out)
    assert sorted(arrival["site"] for arrival in arrivals) == ["one", "two"]
    run("ddm-coord", "assemble", base / "ensemble", "--coordinator", hub)
    common = ("--site", base / "one", "--plan", hub / "published")
    assert "admitted" in run("ddm-site", "submit", *common, "--to", hub / "inbox").err

    outsider = base.parent / "elsewhere"
    shutil.move(base / "ensemble", outsider)
    shutil.rmtree(base)
    verified = json.loads(run("ddm-coord", "verify", outsider, "--root", root, "--json").out)
    assert [member["site"] for member in verified["members"]] == ["one", "two"]
    assert all(float(member["router_epsilon"]) <= 4 for member in verified["members"])

    out = base.parent / "samples"
    options = ("--root", root, "--count", 12, "--steps", 3, "--out", out)
    run("ddm-coord", "sample", outsider, *options, "--strategy", "full", "--class", "dot")
    with np.load(out / "samples.npz") as archive:
        assert archive["images"].shape == (12, 1, 8, 8)
        assert archive["labels"].tolist() == [1] * 12
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 8


def files_below(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_removed_site_leaves_the_ensemble_assembled_without_it_and_stale_older_ones(copy):
    base, root = copy
    hub = base / "hub"
    for name in ("one", "two"):
        common = ("--site", base / name, "--plan", hub / "published")
        run("ddm-site", "submit", *common, "--to", hub / "inbox")
    run("ddm-coord", "admit", "--coordinator", hub)
    older, newer, without = base / "older", base / "newer", base / "without"
    run("ddm-coord", "assemble", older, "--coordinator", hub)
    pinned = ("--root", root, "--published", hub / "published")
    assert "STALE" not in run("ddm-coord", "verify", older, *pinned).err

    told = ("--coordinator", hub, "--reason", "consent withdrawn", "--out", newer)
    removed = run("ddm-coord", "remove", "two", *told)
    assert "STALE: ensemble" in removed.err
    assert str(older) in removed.err
    run("ddm-coord", "assemble", without, "--coordinator", hub, "--without", "two")
    assert files_below(newer) == files_below(without)

    stale = run("ddm-coord", "verify", older, *pinned, expect=1)
    assert "STALE: `two` was removed on" in stale.err
    assert "consent withdrawn" in stale.err
    said = json.loads(run("ddm-coord", "verify", older, *pinned, "--json", expect=1).out)
    assert len(said["stale"]) == 1
    run("ddm-coord", "verify", older, "--root", root)  # its own past still holds
    current = json.loads(run("ddm-coord", "verify", newer, *pinned, "--json").out)
    assert current["stale"] == []
    assert [member["site"] for member in current["members"]] == ["one"]


def rewrite(envelope: Path, field: str) -> None:
    """Flips one bit of the payload or of the signature inside an envelope."""
    document = json.loads(envelope.read_text())
    holder, key = (
        (document, "payload") if field == "payload" else (document["signatures"][0], "sig")
    )
    raw = bytearray(base64.b64decode(holder[key]))
    raw[len(raw) // 2] ^= 1
    holder[key] = base64.b64encode(raw).decode()
    envelope.write_text(json.dumps(document))


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


TAMPERING = {
    "flipped-weights": (
        lambda b: flip_byte(b / "expert.safetensors"),
        "DDM206",
        "expert.safetensors",
    ),
    "flipped-statistics": (lambda b: flip_byte(b / "router.safetensors"), "DDM206", "router"),
    "flipped-manifest": (lambda b: rewrite(b / "submission.dsse.json", "payload"), None, "bundle"),
    "flipped-signature": (
        lambda b: rewrite(b / "submission.dsse.json", "sig"),
        "DDM202",
        "signature",
    ),
    "renamed": (
        lambda b: (b / "expert.safetensors").rename(b / "weights.safetensors"),
        "DDM205",
        "weights.safetensors",
    ),
    "extra-file": (lambda b: (b / "notes.txt").write_text("hello"), "DDM205", "notes.txt"),
    "symlink": (
        lambda b: (
            (b / "expert.safetensors").rename(b.parent.parent / "elsewhere"),
            (b / "expert.safetensors").symlink_to(b.parent.parent / "elsewhere"),
        ),
        "DDM205",
        "symbolic link",
    ),
}


def test_every_tampered_bundle_is_refused_by_name_with_exit_status_1(copy):
    base, _ = copy
    hub = base / "hub"
    (bundle,) = (base / "one" / "outbox" / "released").iterdir()
    for name, (tamper, _, _) in TAMPERING.items():
        target = hub / "inbox" / "incoming" / name
        shutil.copytree(bundle, target)
        tamper(target)

    done = run("ddm-coord", "admit", "--coordinator", hub, "--json", expect=1)

    verdicts = {verdict["arrival"]: verdict for verdict in json.loads(done.out)}
    for name, (_, code, mentioned) in TAMPERING.items():
        assert not verdicts[name]["admitted"], name
        assert code is None or verdicts[name]["code"] == code, verdicts[name]
        assert mentioned in verdicts[name]["reason"], verdicts[name]
    assert done.err.count("error[DDM2") == len(TAMPERING)
    assert done.err.count("hint:") == len(TAMPERING)
    assert [*(hub / "store/blobs").iterdir(), *(hub / "store/manifests").iterdir()] == []


@pytest.mark.parametrize("document", ["plan", "roster-0001"])
@pytest.mark.parametrize("field", ["payload", "sig"])
def test_a_tampered_plan_or_roster_is_refused_with_exit_status_1(copy, document, field):
    base, root = copy
    (bundle,) = (base / "one" / "outbox" / "released").iterdir()
    published = base / "hub" / "published"
    rewrite(published / f"{document}.dsse.json", field)

    done = run("ddm-coord", "verify", bundle, "--root", root, "--published", published, expect=1)

    assert "error[DDM2" in done.err
    assert document.removesuffix("-0001") in done.err
    assert done.out == ""


def test_an_unknown_sites_bundle_and_another_plans_bundle_are_refused(copy):
    base, root = copy
    hub, stranger = base / "hub", base / "stranger"
    run("ddm-site", "init", stranger, "--name", "stranger", "--root", root)
    # the stranger signs with a key nobody enrolled: it takes the folder of a member as its own
    (bundle,) = (base / "two" / "outbox" / "released").iterdir()
    shutil.copy(stranger / "keys" / "site.pem", base / "two" / "keys" / "site.pem")
    common = ("--site", base / "two", "--plan", hub / "published", "--data", base / "two-images")
    refused = run("ddm-site", "train", *common, expect=1)
    assert "enrolled with another key" in refused.err

    (base / "plan.toml").write_text(PLAN.replace("steps = 5", "steps = 6"))
    run("ddm-coord", "publish", base / "plan.toml", "--coordinator", hub)
    shutil.copytree(bundle, hub / "inbox" / "incoming" / "other-plan")
    done = run("ddm-coord", "admit", "--coordinator", hub, expect=1)
    assert "error[DDM204]" in done.err
    assert "was made for the plan" in done.err
