"""A study with K virtual sites in Flower's simulation: `python examples/flower/simulation.py`.

Every virtual site has a folder, a key and a share of the digits of its own. Asked to, it trains a
small expert, reviews and releases its signed bundle; the ServerApp of the real exchange pulls all
of them by parts into a real coordinator, which admits them. The same bundles then go to a copy of
that coordinator by folder, and both must have admitted the same bytes.

One process plays all sites here, so it shows nothing about isolation. It needs no network.
"""

import argparse
import functools
import json
import os
import resource
import shutil
import sys
import time
from decimal import Decimal
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["PYTHONPATH"] = str(Path(__file__).parent)
sys.path.insert(0, os.environ["PYTHONPATH"])  # the processes of the simulation need it as well

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from sklearn.datasets import load_digits

from coordinator.inbox.admission import admit_arrivals, admitted_bundles
from coordinator.inbox.flower_app import Pulling, pull
from coordinator.log import read_own_log
from coordinator.roster import changes, proposals
from coordinator.workspace import CoordinatorFolder
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml
from ddm_fed.training import RunOptions
from sites.outbox import stages
from sites.published import look
from sites.train.expert import TrainingOptions
from sites.train.pipeline import run_plan
from sites.transport import flower_app
from sites.transport.base import FolderTransport
from sites.transport.flower_app import Places
from sites.transport.submit import submit
from sites.workspace import SiteFolder, SiteSettings

ON_LOOPBACK = {  # what Ray says; it listens at every address all the same, see docs/flower.md
    "init_args": {"_node_ip_address": "127.0.0.1", "include_dashboard": False},
    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
}
PLAN = """
federation = "study"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = "DiT-Nano/2"
[training]
steps = {steps}
batch_size = 32
learning_rate = 0.002
ema_half_lives = [20]
[router]
kind = "mixture"
epsilon = 4
frequencies = 16
centre = -0.4
radius = 5
[privacy]
max_epsilon = 5
"""


def main() -> None:
    """Runs the study and prints what came of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--part-mib", type=float, default=0.5)
    parser.add_argument("--run", type=Path, default=Path("simulation-run"))
    given = parser.parse_args()
    if given.run.exists():
        parser.error(f"{given.run} exists; remove it, or name another with --run")
    run, started = given.run.resolve(), time.monotonic()
    set_up(run, given.sites, given.steps)
    ready = time.monotonic()
    pulling = Pulling(
        run / "consortium",
        min_nodes=given.sites,
        part_bytes=round(given.part_mib * (1 << 20)),
        timeout_s=600,
        couriers=True,  # virtual nodes have no registered keys; signatures decide as always
    )
    run_simulation(
        server_app=study(pulling, run),
        client_app=virtual_site(run),
        num_supernodes=given.sites,
        backend_config=ON_LOOPBACK,
    )
    pulled = time.monotonic()
    times = json.loads((run / "times.json").read_text())
    by_flower = admitted(run / "consortium")
    by_folder = deliver_by_folder(run, given.sites)
    facts = {
        "sites": given.sites,
        "admitted": len(by_flower),
        "equal_to_the_folder_way": by_flower == by_folder,
        "set_up_s": round(ready - started, 1),
        "simulation_s": round(pulled - ready, 1),
        **{key: round(value, 1) for key, value in times.items()},
        "peak_mib_of_this_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    print(json.dumps(facts, indent=2))
    if len(by_flower) != given.sites or by_flower != by_folder:
        sys.exit("error: the two ways did not admit the same bundles of all sites")


def name_of(site: int) -> str:
    """Returns the name of a virtual site."""
    return f"site-{site:02d}"


def set_up(run: Path, sites: int, steps: int) -> None:
    """Makes the coordinator and all sites, and publishes the plan."""
    home = CoordinatorFolder.create(run / "consortium", "study")
    proposals.complete_genesis(home)
    for site in range(sites):
        folder = run / name_of(site)
        root = home.settings.root
        settings = SiteSettings(name=name_of(site), root=root, max_epsilon=Decimal(10))
        SiteFolder.create(folder, settings)
        (run / f"receipts-{name_of(site)}").mkdir()
    changes.add(home, [run / name_of(site) / "enrolment.dsse.json" for site in range(sites)])
    proposals.publish_plan(home, read_plan_toml(PLAN.format(steps=steps)))
    shutil.copytree(run / "consortium", run / "consortium-by-folder")


def images_of(site: int, sites: int) -> Private[ImageSet]:
    """Returns every `sites`-th digit, from number `site` on."""
    digits = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    return Private(ImageSet(digits[site::sites].clone(), None))


def places_of(run: Path, context: Context) -> Places:
    """Returns the two folders the exchange may touch, of the virtual site that is asked."""
    name = name_of(int(context.node_config["partition-id"]))
    return Places(run / name / "outbox" / "released", run / f"receipts-{name}")


def virtual_site(run: Path) -> ClientApp:
    """Returns the site's app of the real exchange; asked to train, it does a whole site's work."""
    app = flower_app.make_app(functools.partial(places_of, run))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        sites = int(context.node_config["num-partitions"])
        torch.set_num_threads(1)
        site = SiteFolder.open(run / name_of(number))
        published = look(site, run / "consortium" / "published")
        options = TrainingOptions(RunOptions(precision="float32", seed=number))
        with site.changing():
            run_plan(site, published.trust, published.log, images_of(number, sites), options)
            stages.review(site, published.trust)
            released = stages.release(site, published.trust)
        content = RecordDict({"done": ConfigRecord({"digest": released.name})})
        return Message(content, reply_to=message)

    return app


def study(pulling: Pulling, run: Path) -> ServerApp:
    """Returns an app that lets every virtual site work, and then pulls what they released."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < pulling.min_nodes:
            time.sleep(0.5)
        started = time.monotonic()
        work = [Message(RecordDict(), dst_node_id=n, message_type="train") for n in nodes]
        for reply in grid.send_and_receive(work, timeout=3600):
            if reply.has_error():
                raise RuntimeError(f"a virtual site failed: {reply.error.reason}")
        trained = time.monotonic()
        pull(grid, pulling)
        times = {"sites_at_work_s": trained - started, "pull_s": time.monotonic() - trained}
        (run / "times.json").write_text(json.dumps(times))

    return app


def admitted(folder: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Returns the digests of manifest and files that a coordinator admitted, by site."""
    home = CoordinatorFolder.open(folder)
    trust = home.trust()
    found = admitted_bundles(home, trust, read_own_log(home, trust.chain))
    return {item.submission.site: (item.payload_sha256, dict(item.sha256)) for item in found}


def deliver_by_folder(run: Path, sites: int) -> dict[str, tuple[str, dict[str, str]]]:
    """Returns what the copy of the coordinator admitted of the same bundles."""
    home = CoordinatorFolder.open(run / "consortium-by-folder")
    for number in range(sites):
        site = SiteFolder.open(run / name_of(number))
        submit(site, home.trust(), FolderTransport(home.path / "inbox"))
    with home.changing():
        admit_arrivals(home, home.trust())
    return admitted(home.path)


if __name__ == "__main__":
    main()
