"""Flower as a consortium runs it: real processes on loopback, an edge in front, sites that lie.

One run serves all tests: three honest sites, one of them killed with SIGKILL while it is asked for
parts and started again by its supervisor, and a fourth with a registered key that lies.
"""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from federation import SITES, Federation, snapshot
from flower_deployment import PULL, Deployment, deployment, write_node_key
from ports import free_port

from sites.outbox import stages as outbox
from sites.transport.opening import transport_to
from sites.transport.submit import submit

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

PART_MIB = 0.5  # two parts a bundle: each starts a process of the site
KILLED = "hospital-a"
LIAR = "mallory"
LYING_APP = """
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp


def make_app():
    app = ClientApp()

    @app.query("stat")
    def stat(message, context):
        stolen = Path(__file__).with_name("stolen").read_bytes()
        data = {"0" * 64: stolen, "1" * 64: b"\\x00junk", "2" * 64: b'{"payload": 7}'}
        arrays = {
            name: Array(dtype="uint8", shape=(len(b),), stype="ddm.bytes", data=b)
            for name, b in data.items()
        }
        facts = ConfigRecord({"protocol": 1, "site": "hospital-a", "size": 1 << 60})
        content = RecordDict({"answer": facts, "data": ArrayRecord(arrays)})
        return Message(content, reply_to=message)

    return app
"""


@dataclass
class Scene:
    """The deployment with its run under way."""

    fed: Federation
    flower: Deployment
    path: Path
    run: subprocess.Popen

    def receipts(self, name: str) -> Path:
        return self.path / f"receipts-{name}"

    def ends(self) -> dict[str, list[str]]:
        """What became of the bundles of each site, once the run has ended."""
        self.run.wait(150)
        found: dict[str, list[str]] = {}
        for event in self.flower.events("run"):
            if event["state"] is not None:
                found.setdefault(event["from"].removeprefix("flower:"), []).append(event)
        return found


def lying_code(path: Path, fed: Federation) -> Path:
    """Returns a folder of code that a site runs in place of ours."""
    package = path / "lying" / "sites" / "transport"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "flower_app.py").write_text(LYING_APP)
    (bundle,) = fed.site(KILLED).released.iterdir()
    (package / "stolen").write_bytes((bundle / "submission.dsse.json").read_bytes())
    return package.parents[1]


def kill_supernode(flower: Deployment, name: str) -> None:
    """Kills the SuperNode under its supervisor, which stays."""
    started = re.findall(r"as (\d+)\n", flower.log(f"node-{name}"))
    os.kill(int(started[-1]), signal.SIGKILL)


def offsets_of(flower: Deployment, name: str) -> list[int]:
    """How many bytes of a site's bundle were safe, after each part."""
    return [
        event["bytes"]
        for event in flower.events("run")
        if event["from"] == f"flower:{name}" and event.get("event") in ("from", "part")
    ]


@pytest.fixture(scope="module")
def scene(stages, tmp_path_factory):
    path = tmp_path_factory.mktemp("flower")
    fed = stages.drafted.copy(path / "fed", "consortium", *SITES)
    for name in SITES:
        outbox.review(fed.site(name), fed.trust)
        outbox.release(fed.site(name), fed.trust)
    with deployment(path / "deployment", forked=True) as flower:
        flower.register(*SITES, LIAR)
        for name in (*SITES, LIAR):
            (path / f"receipts-{name}").mkdir()
        for name in SITES:
            released = fed.site(name).released.resolve()
            flower.start_node(name, released, path / f"receipts-{name}", supervised=True)
        empty = path / "empty"
        empty.mkdir()
        flower.start_node(LIAR, empty, path / f"receipts-{LIAR}", code=lying_code(path, fed))
        run = flower.start_run(
            "run",
            coordinator=str(fed.home.path.resolve()),
            min_nodes=4,
            part_mib=PART_MIB,
            answer_s=30,
            timeout_s=120,
            parallel=8,
        )
        asked = {"from": f"flower:{KILLED}", "event": "part"}
        flower.wait_for(
            lambda: any(asked.items() <= e.items() for e in flower.events("run")), "run"
        )
        kill_supernode(flower, KILLED)
        yield Scene(fed, flower, path, run)


def post(scene: Scene, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
    trusted = ssl.create_default_context(cafile=str(scene.flower.ca))
    with httpx.Client(verify=trusted, trust_env=False, timeout=10) as client:
        url = f"https://127.0.0.1:{scene.flower.edge_port}{path}"
        return client.post(url, content=body, headers=headers)


# Through the edge, while the run is under way


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/control/list-nodes",
        "/v1/runtime/pull-messages",
        "/v1/runtime/get-nodes",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/x/../../control/start-run",
        "/v1/fleet//v1/control/start-run",
        "//v1/control/start-run",
        "/V1/FLEET/register-node",
        "/v1/fleet/register-node?x=/v1/control/",
        "/v1/fleet/register-node%00",
        "/health",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_edge_forwards_nothing_but_the_fleet_interface(scene, path):
    assert post(scene, path).status_code == 403


@pytest.mark.parametrize("path", ["/health", "/docs", "/v1/fleet/register-node"])
def test_edge_answers_no_other_method(scene, path):
    assert scene.flower.get(scene.flower.edge_port, path).status_code == 403


def test_outsider_with_the_ca_can_start_no_run_and_register_no_key_through_the_edge(scene):
    flower = scene.flower
    app = Path(__file__).parents[2] / "examples" / "flower" / "app"
    write_node_key(flower.path, "outsider")
    for words in (
        ("run", app, "ddm"),
        ("supernode", "register", "outsider.pub", "--name", "hospital-a"),
    ):
        done = flower.cli(*words, port=flower.edge_port)
        assert done.returncode != 0
        assert "403" in done.stdout + done.stderr


def test_registered_key_does_not_open_the_other_interfaces(scene):
    headers = {
        "flwr-public-key": "anything",
        "authorization": f"Bearer {(scene.flower.path / KILLED).read_text().splitlines()[1]}",
    }
    for path in ("/v1/control/start-run", "/v1/runtime/pull-messages"):
        assert post(scene, path, b"x", **headers).status_code == 403


def test_unregistered_key_is_refused(scene):
    write_node_key(scene.flower.path, "stranger")
    nobody = scene.flower.start_node("stranger", scene.path / "empty", scene.path / "empty")

    assert nobody.wait(60) != 0
    assert "code: 305" in scene.flower.log("node-stranger") or "2004" in scene.flower.log(
        "node-stranger"
    )


def test_edge_in_front_of_another_machine_does_not_start(scene):
    words = ("--listen", f"127.0.0.1:{free_port()}", "--certificate", "server.pem")
    words = (*words, "--key", "server.key", "--superlink", "https://example.org:443")
    done = subprocess.run(
        [sys.executable, "-m", "coordinator.server.flower_edge", *words],
        cwd=scene.flower.path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "error[DDM107]: --superlink https://example.org:443" in done.stderr


# What came of the run


def test_honest_sites_are_admitted_though_one_was_killed_in_the_middle(scene):
    ends = scene.ends()

    for name in SITES:
        assert [event["state"] for event in ends[name]] == ["admitted"], scene.flower.log("run")


def test_killed_site_was_started_again_and_no_part_was_sent_twice(scene):
    scene.ends()
    log = scene.flower.log(f"node-{KILLED}")
    assert len(re.findall(r"supervise: started", log)) >= 2
    offsets = offsets_of(scene.flower, KILLED)
    assert offsets == sorted(set(offsets))
    assert offsets[0] == 0
    assert offsets[-1] == 985_240


def test_payload_digests_equal_those_of_the_folder_way(scene, stages):
    scene.ends()
    for name in SITES:
        by_folder, by_flower = stages.admitted.stored(name), scene.fed.stored(name)
        assert by_flower.payload_sha256 == by_folder.payload_sha256
        assert by_flower.sha256 == by_folder.sha256


def test_receipts_reach_the_sites_and_are_verified_there(scene):
    scene.ends()
    for name in SITES:
        site = scene.fed.site(name)
        transport = transport_to(
            f"flower:{scene.receipts(name)}", site, scene.fed.trust, timeout_s=1
        )
        assert [item.state for item in submit(site, scene.fed.trust, transport)] == ["admitted"]


def test_site_that_lies_is_refused_and_leaves_nothing_behind(scene):
    ends = scene.ends()

    codes = [(event["state"], event["code"]) for event in ends[LIAR]]
    assert sorted(codes) == [("refused", "DDM201")] * 2 + [("refused", "DDM204")]
    assert list(scene.fed.home.incoming.iterdir()) == []
    assert list(scene.fed.home.partial.iterdir()) == []
    assert sorted(entry.receipt.site for entry in scene.fed.log.receipts()) == sorted(SITES)


def test_run_with_a_refusal_in_it_ends_as_failed(scene):
    scene.ends()

    assert "DDM501" in scene.flower.log("run")
    assert scene.run.returncode == 1
    listed = scene.flower.cli("list", "--format", "json").stdout
    assert "finished:failed" in listed


def test_watch_names_the_site_that_is_not_online(scene):
    scene.ends()
    flower = scene.flower
    watch = Path(PULL).with_name("watch.py")

    def watched(**sites):
        words = [f"{name}={node_id}" for name, node_id in sites.items()]
        env = flower.configure("watch", flower.superlink_port)
        done = subprocess.run(
            [sys.executable, watch, *words], env=env, capture_output=True, text=True, check=False
        )
        found = [json.loads(line) for line in done.stdout.splitlines()]
        return done.returncode, {row["site"]: row["status"] for row in found}

    assert watched(a=flower.node_ids["hospital-a"]) == (0, {"a": "online"})
    assert watched(a=flower.node_ids["hospital-a"], gone=7) == (
        1,
        {"a": "online", "gone": "not registered"},
    )


def test_supernode_sees_nothing_of_a_site_but_its_released_folder(scene):
    scene.ends()
    key = (scene.fed.site(KILLED).keys / "site.pem").read_bytes()
    for held in snapshot(scene.flower.path / f"home-node-{KILLED}").values():
        assert key not in held
