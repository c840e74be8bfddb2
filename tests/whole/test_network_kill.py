"""Real processes on loopback that are killed, cut off, ended: nothing is lost, nothing halved."""

import json
import random
import signal
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from commands import Started
from federation import (
    PLAN_TOML,
    SITES,
    Federation,
    a_plan,
    create_federation,
    random_images,
    snapshot,
    train,
)
from proxy import BadLink

from coordinator.roster import proposals
from sites.outbox import stages
from sites.outbox.stages import find_bundles

A = SITES[0]
CUTS = 50
SEED = 20261128
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Federation:
    """One site with a released bundle of 33 MB, which takes many messages."""
    fed = create_federation(tmp_path_factory.mktemp("large"), sites=(A,))
    proposals.publish_plan(fed.home, a_plan(architecture='architecture = "DiT-Ti/2"'))
    fed.look(A)
    train(fed.site(A), fed.trust, random_images(0))
    stages.review(fed.site(A), fed.trust)
    stages.release(fed.site(A), fed.trust)
    return fed


@pytest.fixture
def fed(large: Federation, scratch: Path) -> Federation:
    return large.copy(scratch / "fed", "consortium", A)


@contextmanager
def serve(fed: Federation, *options: str):
    """A real `ddm-coord serve`; yields the process and the port of its members."""
    words = ("serve", "--json", "--listen", "127.0.0.1:0", "--coordinator", fed.home.path)
    process = Started("ddm-coord", *words, "--reserve", 0, *options)
    try:
        facts = json.loads(process.stdout.readline())
        yield process, int(facts["listen"].partition("#")[0].rpartition(":")[2])
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()


def submitting(fed: Federation, port: int, timeout: int = 60) -> Started:
    words = ("--site", fed.path / A, "--plan", fed.published, "--timeout", timeout, "--json")
    return Started("ddm-site", "submit", *words, "--to", f"grpcs://127.0.0.1:{port}")


def finished(process: Started) -> str:
    """Returns the state that `submit` ended with."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    (found,) = json.loads(out)
    return found["state"]


def wait_for(condition, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def committed(fed: Federation) -> int:
    """Returns what the coordinator says is safe of the bundle on its way."""
    for file in fed.home.partial.glob("*/progress.json"):
        return json.loads(file.read_bytes())["committed_bytes"]
    return 0


def require_admitted(fed: Federation) -> None:
    (folder,) = find_bundles(fed.site(A).released)
    stored = fed.stored(A)
    assert stored.payload_sha256 == folder.name
    for name, digest in stored.sha256.items():
        assert fed.home.blobs.path(digest).read_bytes() == (folder / name).read_bytes()
    assert list(fed.home.incoming.iterdir()) == list(fed.home.partial.iterdir()) == []
    assert fed.log.size == 1


def test_connection_cut_at_fifty_random_bytes_still_arrives(fed):
    (folder,) = find_bundles(fed.site(A).released)
    size = sum(file.stat().st_size for file in folder.iterdir())
    places = random.Random(SEED)
    cuts = [places.randrange(1, size) for _ in range(CUTS)]
    with serve(fed) as (_, port), BadLink(port, cuts=cuts) as link:
        assert finished(submitting(fed, link.port)) == "admitted"
    assert link.cut == CUTS
    require_admitted(fed)


def test_server_killed_in_mid_upload_goes_on_after_its_next_start(fed):
    (folder,) = find_bundles(fed.site(A).released)
    size = sum(file.stat().st_size for file in folder.iterdir())
    with serve(fed) as (first, port), BadLink(port, bytes_per_s=30e6) as link:
        client = submitting(fed, link.port)
        wait_for(lambda: link.carried > size / 2)
        first.send_signal(signal.SIGKILL)
        first.wait(20)
        assert list(fed.home.incoming.iterdir()) == []
        with serve(fed) as (_, again):
            link.target = again
            assert finished(client) == "admitted"
    require_admitted(fed)


def test_client_killed_in_mid_upload_goes_on_with_what_is_missing(fed):
    (folder,) = find_bundles(fed.site(A).released)
    size = sum(file.stat().st_size for file in folder.iterdir())
    with serve(fed) as (_, port):
        with BadLink(port, bytes_per_s=30e6) as link:
            client = submitting(fed, link.port)
            wait_for(lambda: link.carried > size / 2)
            client.send_signal(signal.SIGKILL)
            client.communicate(timeout=20)
        assert not list(fed.site(A).receipts.iterdir())
        with BadLink(port) as link:
            assert finished(submitting(fed, link.port)) == "admitted"
            assert link.carried < 0.7 * size
    require_admitted(fed)


def test_server_asked_to_end_makes_what_arrived_safe(fed):
    (folder,) = find_bundles(fed.site(A).released)
    size = sum(file.stat().st_size for file in folder.iterdir())
    with serve(fed) as (server, port), BadLink(port, bytes_per_s=30e6) as link:
        client = submitting(fed, link.port)
        wait_for(lambda: link.carried > size / 2)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert committed(fed) > size / 4
        with serve(fed) as (_, again):
            link.target = again
            assert finished(client) == "admitted"
    require_admitted(fed)


def test_storm_of_connections_that_say_nothing_leaves_the_server_standing(fed):
    """With certificates that gRPC asks for in every handshake, some hundred of them ended it."""
    with serve(fed) as (server, port):
        until, opened = time.monotonic() + 5, 0
        while time.monotonic() < until and opened < 20_000:
            storm = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(100)]
            for item in storm[::2]:
                item.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            for item in storm:
                item.close()
            opened += len(storm)
        assert server.poll() is None
        assert opened >= 500
        assert finished(submitting(fed, port)) == "admitted"
    require_admitted(fed)


def test_server_killed_while_it_admits_has_the_bundle_admitted_or_waiting(fed):
    with serve(fed) as (first, port):
        client = submitting(fed, port, timeout=60)
        wait_for(
            lambda: (
                any(fed.home.incoming.iterdir()) or fed.home.log.joinpath("leaves.jsonl").exists()
            )
        )
        first.send_signal(signal.SIGKILL)
        first.wait(20)
        with serve(fed, "--listen", f"127.0.0.1:{port}"):
            assert finished(client) == "admitted"
    require_admitted(fed)


def test_whole_federation_over_the_network_with_real_commands(run, tmp_path):
    """Three sites, from `init` to a fetched ensemble, with nothing but a network between them."""
    hub, plan = tmp_path / "hub", tmp_path / "plan.toml"
    plan.write_text(PLAN_TOML)
    images = {}
    for number, name in enumerate(SITES):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 8, 8), dtype=np.uint8)
        images[name] = tmp_path / f"{name}.npz"
        np.savez(images[name], images=pixels)

    def typed(*command):
        ended = run(*command)
        assert ended.code == 0, ended.err
        return ended.out

    coord, site = "ddm-coord", "ddm-site"
    root = typed(coord, "init", hub, "--federation", "test").strip()
    founder = tmp_path / SITES[0]
    typed(site, "init", founder, "--name", SITES[0], "--root", root)
    typed(coord, "roster", "add", founder / "enrolment.dsse.json", "--coordinator", hub)
    typed(coord, "publish", plan, "--coordinator", hub)
    words = ("serve", "--json", "--coordinator", hub, "--listen", "127.0.0.1:0")
    words += ("--enroll", "127.0.0.1:0", "--share-ensemble", "--reserve", 0)
    server = Started(coord, *words)
    try:
        facts = json.loads(server.stdout.readline())
        for name in SITES[1:]:
            typed(site, "init", tmp_path / name, "--name", name, "--root", root)
            typed(site, "enroll", "--site", tmp_path / name, "--to", facts["enroll"])
            typed(coord, "roster", "add", name, "--coordinator", hub)
        for name in SITES:
            home = tmp_path / name
            common = ["--site", home, "--plan", home / "published"]
            typed(site, "fetch", "--site", home, "--from", facts["listen"])
            typed(site, "train", *common, "--data", images[name], "--precision", "float32")
            typed(site, "review", *common)
            typed(site, "release", *common)
            out = typed(site, "submit", *common, "--to", facts["listen"], "--json")
            assert [item["state"] for item in json.loads(out)] == ["admitted"]
        made = tmp_path / "made"
        typed(coord, "assemble", made, "--coordinator", hub)
        home = tmp_path / SITES[2]
        common = ["--site", home, "--plan", home / "published"]
        typed(site, "fetch", "--site", home, "--from", facts["listen"])
        typed(site, "ensemble", *common, "--from", facts["listen"], "--out", tmp_path / "got")
        assert snapshot(tmp_path / "got") == snapshot(made)
        typed(coord, "verify", tmp_path / "got", "--root", root)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        server.stdout.close()
    assert not list((hub / "inbox" / "incoming").iterdir())
