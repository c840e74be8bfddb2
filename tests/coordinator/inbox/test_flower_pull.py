"""The two Flower apps over a link that the test may break: lost, refused, resumed."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
from federation import SITES, a_plan, create_federation, flip, random_images, snapshot, train
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from coordinator.ensembles.reference import publish_reference
from coordinator.inbox import flower_app as coordinator_side
from coordinator.inbox.admission import current_members
from coordinator.inbox.flower_app import Pulling, pull
from coordinator.inbox.outcome import deliver
from coordinator.inbox.upload import Uploads
from coordinator.inbox.upload_progress import read_progress
from coordinator.roster import proposals
from ddm_fed.bundle.reference import read_reference
from ddm_fed.errors import ExchangeError, StateError
from ddm_fed.exchange import flower
from ddm_fed.records import read_plan_toml
from sites.outbox import stages as outbox
from sites.train.head import run_head
from sites.transport import flower_app as site_side
from sites.transport.opening import transport_to
from sites.transport.submit import submit

pytestmark = pytest.mark.slow

PART = 200_000  # bytes: five parts a bundle
ANSWERED, LOST, CRASHED, SILENT = "answered", "lost", "crashed", "silent"


class Node:
    """A site with the real ClientApp, in this process, and what its link does to each message."""

    def __init__(self, name, released, receipts, app=None):
        self.name, self.node_id = name, hash(name) & 0xFFFFFFFF
        self.context = Context(
            run_id=1,
            node_id=self.node_id,
            node_config=UserConfig({"released": str(released), "receipts": str(receipts)}),
            state=RecordDict(),
            run_config=UserConfig(),
        )
        self.app = app or site_side.make_app()
        self.receipts = receipts
        self.asked = []
        self.fate = lambda ask: ANSWERED

    def take(self, message):
        kind = message.metadata.message_type.removeprefix("query.")
        ask = (kind, dict(message.content.config_records[kind]))
        self.asked.append(ask)
        match self.fate(ask):
            case "silent":
                return None
            case "lost":
                return Message(Error(code=3, reason="lost"), reply_to=message)
            case "crashed":
                return Message(Error(code=2, reason="crashed"), reply_to=message)
        return self.app(message, self.context)

    def parts(self):
        return [facts["offset"] for kind, facts in self.asked if kind == "part"]


class Link(Grid):
    """Carries messages between the ServerApp and the nodes of this process."""

    def __init__(self, *nodes):
        self.nodes = {node.node_id: node for node in nodes}
        self.replies = {}

    run = property(lambda self: None)

    def set_run(self, run):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.nodes)

    def get_nodes(self):
        return list(self.nodes.values())

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            ids.append(message.object_id)
            reply = self.nodes[message.metadata.dst_node_id].take(message)
            if reply is not None:
                self.replies[message.object_id] = reply
        return ids

    def pull_messages(self, message_ids):
        return [self.replies.pop(key) for key in message_ids if key in self.replies]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # a message needs one
    monkeypatch.setattr(coordinator_side, "POLL_S", 0.0)
    monkeypatch.setattr(coordinator_side, "BACKOFF_S", (0.0,))


@pytest.fixture(scope="module")
def released(stages, tmp_path_factory):
    """A federation whose three sites have released and sent nothing. Tests copy it."""
    found = stages.drafted.copy(tmp_path_factory.mktemp("flower") / "fed", "consortium", *SITES)
    for name in SITES:
        outbox.review(found.site(name), found.trust)
        outbox.release(found.site(name), found.trust)
    return found


@pytest.fixture
def fed(released, scratch):
    return released.copy(scratch / "fed", "consortium", *SITES)


@pytest.fixture
def nodes(fed, tmp_path):
    made = []
    for name in SITES:
        drop = tmp_path / f"receipts-{name}"
        drop.mkdir()
        made.append(Node(name, fed.site(name).released.resolve(), drop))
    return made


def run(fed, *nodes, **options):
    """Pulls once; returns what became of every bundle, in order, and the error if it failed."""
    options = {"part_bytes": PART, "timeout_s": 30, "answer_s": 5} | options
    return pull(Link(*nodes), Pulling(fed.home.path, wait_s=0, **options))


def submitted(fed, node):
    """What `ddm-site submit --to flower:RECEIPTS` says of everything the site has released."""
    site = fed.site(node.name)
    transport = transport_to(f"flower:{node.receipts}", site, fed.trust, timeout_s=1)
    return [(item.digest, item.state) for item in submit(site, fed.trust, transport)]


def printed(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def states(events):
    return [(event.carrier, event.state) for event in events]


def digest_of(fed, name):
    (bundle,) = fed.site(name).released.iterdir()
    return bundle.name


def test_bundles_of_three_sites_are_admitted_and_their_receipts_reach_the_sites(fed, nodes):
    events = run(fed, *nodes)

    assert states(events) == [(f"flower:{name}", "admitted") for name in SITES]
    assert {fed.stored(name).payload_sha256 for name in SITES} == {
        digest_of(fed, name) for name in SITES
    }
    for node in nodes:
        assert node.parts() == [0, 200_000, 400_000, 600_000, 800_000]
        digest = digest_of(fed, node.name)
        assert submitted(fed, node) == [(digest, "admitted")]
        assert (fed.site(node.name).receipts / f"{digest}.dsse.json").exists()


def test_bundle_nobody_has_fetched_waits(fed, nodes):
    assert submitted(fed, nodes[0]) == [(digest_of(fed, "hospital-a"), "waiting")]


def test_payload_digests_equal_those_of_the_folder_way(fed, nodes, stages):
    run(fed, *nodes)

    by_folder = {name: stages.admitted.stored(name) for name in SITES}
    for name in SITES:
        assert fed.stored(name).payload_sha256 == by_folder[name].payload_sha256
        assert fed.stored(name).sha256 == by_folder[name].sha256


def test_second_run_asks_for_no_part_and_says_nothing_new(fed, nodes):
    run(fed, *nodes)
    for node in nodes:
        node.asked.clear()

    assert run(fed, *nodes) == []
    assert [node.asked for node in nodes] == [[("stat", {"protocol": 1})]] * 3


def test_receipt_that_was_lost_comes_with_the_next_run_without_the_weights(fed, nodes):
    run(fed, *nodes)
    nodes[0].asked.clear()
    for file in nodes[0].receipts.iterdir():
        file.unlink()

    assert states(run(fed, *nodes)) == [("flower:hospital-a", "admitted")]
    assert [kind for kind, _ in nodes[0].asked] == ["stat", "receipt"]
    assert len(list(nodes[0].receipts.iterdir())) == 1


def test_second_round_supersedes_the_first(fed, nodes):
    run(fed, *nodes)
    name = SITES[1]
    first = digest_of(fed, name)
    fed.look(name)
    assert submitted(fed, nodes[1]) == [(first, "admitted")]
    train(fed.site(name), fed.trust, random_images(7), seed=7, restart=True)
    outbox.review(fed.site(name), fed.trust)
    second = outbox.release(fed.site(name), fed.trust).name

    assert states(run(fed, *nodes)) == [(f"flower:{name}", "admitted")]
    newest = [entry.submission_sha256 for entry in fed.log.receipts(site=name)]
    assert newest == [first, second]


HEADS_PLAN = """
federation = "test"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = "DiT-Nano/2"
[training]
steps = 2
batch_size = 16
[router]
kind = "heads"
epsilon = 2
frequencies = 4
radius = 3
[router.head]
width = 16
depth = 1
steps = 4
batch_size = 8
[privacy]
max_epsilon = 3
"""


def test_heads_come_in_a_second_run_and_their_bundles_supersede_the_first(scratch):
    names = SITES[:2]
    fed = create_federation(scratch / "heads", sites=names)
    proposals.publish_plan(fed.home, read_plan_toml(HEADS_PLAN))
    nodes = []
    for seed, name in enumerate(names):
        fed.look(name)
        train(fed.site(name), fed.trust, random_images(seed), seed=seed)
        outbox.review(fed.site(name), fed.trust)
        outbox.release(fed.site(name), fed.trust)
        drop = scratch / f"receipts-{name}"
        drop.mkdir()
        nodes.append(Node(name, fed.site(name).released.resolve(), drop))
    assert [state for _, state in states(run(fed, *nodes))] == ["admitted"] * 2

    publish_reference(fed.home, without=(), replace=False)
    for seed, name in enumerate(names):
        log, site = fed.look(name).log, fed.site(name)
        reference = read_reference(fed.published, fed.trust)
        run_head(site, fed.trust, log, reference, random_images(seed), seed=seed)
        outbox.review(site, fed.trust)
        outbox.release(site, fed.trust)
    assert [state for _, state in states(run(fed, *nodes))] == ["admitted"] * 2

    for name in names:
        first, second = fed.log.receipts(site=name)
        newest = current_members(fed.home, fed.trust, fed.log)[name]
        assert newest.payload_sha256 == second.submission_sha256
        assert newest.submission.supersedes == first.submission_sha256
        assert newest.submission.head is not None
        assert "head.safetensors" in newest.sha256


def test_bundle_that_was_overtaken_by_a_newer_one_is_no_failure(fed, nodes):
    site = fed.site("hospital-a")
    first = digest_of(fed, "hospital-a")
    train(site, fed.trust, random_images(7), seed=7, restart=True)
    outbox.review(site, fed.trust)
    second = outbox.release(site, fed.trust)
    shutil.copytree(second, fed.home.incoming / second.name)
    assert deliver(fed.home, second.name).receipt is not None

    events = run(fed, nodes[0])

    ends = {event.facts["digest"]: event.state for event in events}
    assert ends == {first: "superseded", second.name: "admitted"}


def test_bundle_of_an_earlier_plan_is_no_failure_and_not_asked_for(fed, nodes):
    proposals.publish_plan(fed.home, a_plan(steps="steps = 4"))

    assert states(run(fed, nodes[0])) == [("flower:hospital-a", "earlier plan")]
    assert nodes[0].parts() == []


def test_every_third_message_lost_still_brings_every_byte(fed, nodes):
    count = iter(range(10_000))
    for node in nodes:
        node.fate = lambda ask: LOST if next(count) % 3 == 0 else ANSWERED

    assert [state for _, state in states(run(fed, *nodes))] == ["admitted"] * 3


def test_parts_get_smaller_while_they_are_lost_and_larger_again(fed, nodes):
    node = nodes[0]
    node.fate = lambda ask: LOST if ask[1].get("length", 0) > 300_000 else ANSWERED

    assert states(run(fed, node, part_bytes=900_000)) == [("flower:hospital-a", "admitted")]
    lengths = [facts["length"] for kind, facts in node.asked if kind == "part"]
    assert lengths[:5] == [900_000, 450_000, 262_144, 524_288, 262_144]


def test_run_that_ends_in_the_middle_is_resumed_from_the_bytes_that_are_safe(fed, nodes):
    node = nodes[0]
    digest = digest_of(fed, node.name)
    node.fate = lambda ask: LOST if ask[1].get("offset") == 600_000 else ANSWERED
    with pytest.raises(ExchangeError, match="flower:hospital-a"):
        run(fed, node, timeout_s=0.5)
    assert read_progress(fed.home.partial / digest).committed_bytes == 600_000
    assert [*fed.home.incoming.iterdir(), *fed.home.blobs.folder.iterdir()] == []

    node.asked.clear()
    node.fate = lambda ask: ANSWERED
    assert states(run(fed, node)) == [("flower:hospital-a", "admitted")]
    assert node.parts() == [600_000, 800_000]


def test_site_that_never_answers_does_not_stop_the_others(fed, nodes, capsys):
    nodes[0].fate = lambda ask: LOST

    with pytest.raises(ExchangeError, match="1 of 3 did not end well: flower:hospital-a"):
        run(fed, *nodes, timeout_s=0.5)

    ends = {event["from"]: event["state"] for event in printed(capsys) if event["state"]}
    assert ends == {
        "flower:hospital-a": "unreachable",
        "flower:hospital-b": "admitted",
        "flower:hospital-c": "admitted",
    }


@pytest.mark.parametrize(("silent_at", "parallel"), [("stat", 1), ("part", 2)])
def test_silent_site_does_not_take_the_places_of_the_others(
    fed, nodes, capsys, silent_at, parallel
):
    nodes[0].fate = lambda ask: SILENT if ask[0] == silent_at else ANSWERED

    with pytest.raises(ExchangeError, match="1 of 3"):
        run(fed, *nodes, parallel=parallel, answer_s=2, timeout_s=5)

    ends = [(event["from"], event["state"]) for event in printed(capsys) if event["state"]]
    assert sorted(ends[:2]) == [(f"flower:{name}", "admitted") for name in SITES[1:]]
    assert ends[2] == ("flower:hospital-a", "unreachable")


def test_site_whose_app_crashes_is_given_up_after_few_tries(fed, nodes, capsys):
    nodes[0].fate = lambda ask: CRASHED

    with pytest.raises(ExchangeError, match="flower:hospital-a"):
        run(fed, *nodes)

    assert len(nodes[0].asked) == coordinator_side.HOPELESS_TRIES
    assert [e["state"] for e in printed(capsys) if e["state"]].count("admitted") == 2


def test_run_without_enough_sites_says_so_and_pulls_nothing(fed, nodes):
    with pytest.raises(ExchangeError, match="2 SuperNodes are online, 3 were waited for"):
        run(fed, *nodes[:2], min_nodes=3)

    assert nodes[0].asked == []


# Attacks


def refused(fed, node, capsys):
    """Pulls from one site that must end in a refusal; returns it. Nothing of it may be admitted."""
    before = snapshot(fed.home.path / "store"), fed.log.size
    with pytest.raises(ExchangeError):
        run(fed, node)
    (event,) = [event for event in printed(capsys) if event["state"] is not None]
    assert (snapshot(fed.home.path / "store"), fed.log.size) == before
    assert not list(fed.home.incoming.iterdir())
    return event


def test_bundle_of_another_site_is_refused_before_a_byte_of_weights(fed, nodes, capsys):
    thief = Node("hospital-b", fed.site("hospital-a").released.resolve(), nodes[1].receipts)

    event = refused(fed, thief, capsys)

    assert (event["state"], event["code"]) == ("refused", "DDM204")
    assert thief.parts() == []


def test_bundle_of_another_site_by_a_courier_is_admitted_where_that_is_agreed(fed, nodes):
    courier = Node("courier", fed.site("hospital-a").released.resolve(), nodes[0].receipts)

    assert states(run(fed, courier, couriers=True)) == [("flower:courier", "admitted")]


def test_node_without_a_registered_name_brings_nothing(fed, nodes, capsys):
    nameless = Node("", fed.site("hospital-a").released.resolve(), nodes[0].receipts)

    assert refused(fed, nameless, capsys)["code"] == "DDM204"


def test_altered_weights_are_refused_and_not_kept(fed, nodes, capsys):
    digest = digest_of(fed, "hospital-a")
    flip(fed.site("hospital-a").released / digest / "expert.safetensors", -3)

    event = refused(fed, nodes[0], capsys)

    assert (event["state"], event["code"]) == ("refused", "DDM206")
    assert not (fed.home.partial / digest).exists()


def test_weights_shorter_than_signed_fail_and_admit_nothing(fed, nodes, capsys):
    path = fed.site("hospital-a").released / digest_of(fed, "hospital-a") / "expert.safetensors"
    os.truncate(path, path.stat().st_size // 2)

    event = refused(fed, nodes[0], capsys)

    assert event["state"] == "failed"
    assert "DDM206" in event["message"]


def lying(stat=None, part=None):
    """Returns a ClientApp that answers as it likes."""
    honest = site_side.make_app()

    def app(message, context):
        kind = message.metadata.message_type.removeprefix("query.")
        lie = {"stat": stat, "part": part}.get(kind)
        if lie is None:
            return honest(message, context)
        return Message(lie(message.content), reply_to=message)

    return app


def arrays(**data):
    return RecordDict(
        {
            "answer": ConfigRecord({"protocol": 1}),
            "data": ArrayRecord(
                {
                    name: Array(dtype="uint8", shape=(len(b),), stype="ddm.bytes", data=b)
                    for name, b in data.items()
                }
            ),
        }
    )


HUGE = {"one": bytes((1 << 20) + 1)}
MANY = {f"m{index}": b"{}" for index in range(17)}


@pytest.mark.parametrize(
    ("answer", "state", "code"),
    [
        (arrays(**HUGE), "refused", "DDM219"),
        (arrays(**MANY), "refused", "DDM219"),
        (arrays(junk=b"\x00junk"), "refused", "DDM201"),
        (arrays(junk=b'{"payloadType": 1}'), "refused", "DDM201"),
        (RecordDict({"answer": ConfigRecord({"refused": "x" * 9999})}), "failed", "DDM501"),
    ],
    ids=["too-large", "too-many", "junk", "no-envelope", "endless-error-code"],
)
def test_stat_that_lies_ends_in_a_refusal(fed, nodes, capsys, answer, state, code):
    node = Node(
        "hospital-a",
        fed.site("hospital-a").released.resolve(),
        nodes[0].receipts,
        lying(stat=lambda _: answer),
    )

    event = refused(fed, node, capsys)

    assert (event["state"], event["code"]) == (state, code)
    assert len(event["message"]) < 500


@pytest.mark.parametrize(
    "answer",
    [
        RecordDict(),
        arrays(other=bytes(PART)),
        RecordDict({"data": ConfigRecord({"bytes": bytes(10)})}),
    ],
    ids=["nothing", "another-name", "another-record"],
)
def test_part_that_is_not_what_was_asked_for_is_refused(fed, nodes, capsys, answer):
    node = Node(
        "hospital-a",
        fed.site("hospital-a").released.resolve(),
        nodes[0].receipts,
        lying(part=lambda _: answer),
    )

    event = refused(fed, node, capsys)

    assert (event["state"], event["code"]) == ("refused", "DDM201")


@pytest.mark.parametrize("longer", [1, PART])
def test_part_longer_than_asked_for_is_refused(fed, nodes, capsys, longer):
    def part(content):
        asked = content.config_records["part"]
        return arrays(**{asked["digest"]: bytes(asked["length"] + longer)})

    released = fed.site("hospital-a").released.resolve()
    node = Node("hospital-a", released, nodes[0].receipts, lying(part=part))

    assert refused(fed, node, capsys)["code"] == "DDM201"


def test_empty_stat_is_no_error(fed, nodes):
    shutil.rmtree(fed.site("hospital-a").released / digest_of(fed, "hospital-a"))

    assert run(fed, nodes[0]) == []


# What a coordinator that lies can get from a site


def ask_site(node, kind, facts, **data):
    content = RecordDict({kind: ConfigRecord(facts)})
    if data:
        content["data"] = arrays(**data)["data"]
    message = Message(content, dst_node_id=node.node_id, message_type=f"query.{kind}")
    return node.app(message, node.context).content


@pytest.mark.parametrize(
    "facts",
    [
        {"digest": "../draft", "offset": 0, "length": 10},
        {"digest": "../../keys/site.pem", "offset": 0, "length": 10},
        {"digest": "/etc/passwd", "offset": 0, "length": 10},
        {"digest": "0" * 64, "offset": 0, "length": 10},
        {"digest": "A" * 64, "offset": 0, "length": 10},
        {"digest": 7, "offset": 0, "length": 10},
        {"offset": -1, "length": 10},
        {"offset": 0, "length": 1 << 40},
        {"offset": 0, "length": 1.5},
        {"offset": True, "length": 1},
        {"offset": 0},
    ],
    ids=str,
)
def test_site_asked_for_anything_but_a_released_bundle_answers_with_a_code(fed, nodes, facts):
    facts = {"digest": digest_of(fed, "hospital-a")} | facts

    answer = ask_site(nodes[0], "part", facts)

    assert set(answer) == {"answer"}
    assert str(answer.config_records["answer"]["refused"]).startswith("DDM2")


def test_link_in_the_outbox_is_not_followed(fed, nodes, tmp_path):
    digest = digest_of(fed, "hospital-a")
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(2_000_000))
    weights = fed.site("hospital-a").released / digest / "expert.safetensors"
    weights.unlink()
    weights.symlink_to(secret)

    answer = ask_site(nodes[0], "part", {"digest": digest, "offset": 0, "length": 10})

    assert answer.config_records["answer"]["refused"] == "DDM205"


def test_receipt_for_something_never_released_is_not_written(fed, nodes):
    answer = ask_site(nodes[0], "receipt", {"digest": "0" * 64}, **{"0" * 64: b"x"})

    assert "refused" in answer.config_records["answer"]
    assert list(nodes[0].receipts.iterdir()) == []


def test_forged_receipt_is_refused_and_removed_so_that_the_true_one_comes(fed, nodes):
    digest = digest_of(fed, "hospital-a")
    ask_site(nodes[0], "receipt", {"digest": digest}, **{digest: b'{"payload": "e30="}'})
    site = fed.site("hospital-a")

    assert submitted(fed, nodes[0]) == [(digest, "bad receipt")]
    assert list(site.receipts.iterdir()) == list(nodes[0].receipts.iterdir()) == []
    assert states(run(fed, nodes[0])) == [("flower:hospital-a", "admitted")]
    assert submitted(fed, nodes[0]) == [(digest, "admitted")]


# The version of Flower


def test_installed_flower_is_the_tested_one():
    assert version("flwr") == flower.FLWR_VERSION


def test_another_version_of_flower_is_refused_by_both_apps(monkeypatch):
    monkeypatch.setattr(flower, "FLWR_VERSION", "1.40.0")

    for make in (coordinator_side.make_app, site_side.make_app):
        with pytest.raises(StateError, match="is installed, the exchange over Flower is tested"):
            make()


@pytest.mark.parametrize("module", ["sites.transport.flower_app", "coordinator.inbox.flower_app"])
def test_no_flower_is_an_error_that_says_what_to_install(module):
    blocked = f"import sys; sys.modules['flwr'] = None; import {module}"
    done = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, check=False
    )
    assert "Flower is not installed" in done.stderr
    assert "ddm-fed[flower]" in done.stderr


@pytest.mark.parametrize("module", ["sites.transport.flower_app", "coordinator.inbox.flower_app"])
def test_calls_to_flowers_makers_are_off_before_it_is_imported(module):
    seen = "{key: os.environ.get(key) for key in ('FLWR_TELEMETRY_ENABLED', "
    seen += "'FLWR_DISABLE_UPDATE_CHECK')}"
    code = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'flwr':\n"
        f"            print({seen})\n"
        "            sys.exit()\n"
        f"sys.meta_path.insert(0, Watch())\nimport {module}"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("FLWR")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.replace("'", '"')) == {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def test_part_of_the_site_loads_no_tensor_library():
    code = (
        "import sys, sites.transport.flower_app\n"
        "print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("wrong", [{"part_bytes": 0}, {"part_bytes": 1 << 40}, {"parallel": 0}])
def test_configuration_that_cannot_work_is_refused(tmp_path, wrong):
    with pytest.raises(StateError, match="part-mib"):
        Pulling(tmp_path, **wrong)


def test_uploads_that_another_process_fills_fails_one_bundle_only(fed, nodes, capsys):
    digest = digest_of(fed, "hospital-a")
    envelope = (fed.site("hospital-a").released / digest / "submission.dsse.json").read_bytes()
    other = Uploads(fed.home)
    other.begin(envelope, carrier="grpc:hospital-a")
    try:
        with pytest.raises(ExchangeError, match="1 of 3"):
            run(fed, *nodes)
    finally:
        other.close()

    ends = [event["state"] for event in printed(capsys) if event["state"]]
    assert sorted(ends) == ["admitted", "admitted", "failed"]
