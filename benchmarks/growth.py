"""Does a coordinator's work grow in proportion to its members, and is its memory bounded?

    python benchmarks/growth.py                      # 10, 100 and 1,000 members
    python benchmarks/growth.py --members 10 100

Builds a federation of so many sites, each with its own key, its own release and an expert of the
smallest network a plan allows: one set of weights, which differs from site to site in one number.
Every bundle is signed, reviewed, released and submitted by the code that sites run. Then every step
runs in a process of its own: time is that of the step after all imports, by the clock and of the
processor, and memory is the peak over what the process has after them. Last answer: see
results/growth_cpu_20261128.md.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple

import torch

from coordinator.cli.main import app
from coordinator.ensembles import assemble as assembling
from coordinator.inbox.admission import take_arrivals
from coordinator.inbox.ledger_prices import Prices, price_arrivals
from coordinator.log import append, read_own_log
from coordinator.roster import changes, proposals
from coordinator.workspace import CoordinatorFolder
from ddm_fed._version import __version__
from ddm_fed.bundle.verify import EXPERT_FILE
from ddm_fed.ensemble import sample_folder
from ddm_fed.models import build_network
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import NonPrivateEvent, Receipt, TrainingFacts, now, read_plan_toml, sha256_hex
from ddm_fed.storage.tensors import write_tensors
from ddm_fed.training import TrainedExpert
from ddm_fed.trust.receipts import sign_receipt
from sites.outbox import stages
from sites.privacy.ledger import open_ledger
from sites.published import look
from sites.train.expert import TrainingOptions, record_training
from sites.train.pipeline import run_plan
from sites.transport.base import FolderTransport
from sites.transport.submit import submit
from sites.workspace import ENROLMENT_FILE, SiteFolder, SiteSettings, write_request

SIZES = (10, 100, 1000)
SAMPLES, SOLVER_STEPS = 100, 4
PLAN = """
federation = "growth"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = "UNet-Nano"
[training]
steps = 1
batch_size = 1
[router]
kind = "mixture"
epsilon = 2
frequencies = 4
radius = 3
[privacy]
max_epsilon = 3
"""
USED = (assembling, sample_folder)  # imported here, so that no step's time holds an import


class Measured(NamedTuple):
    """What a step takes: seconds by the clock, seconds of the processor, peak MiB."""

    seconds: float
    busy_s: float = 0.0
    mib: float = 0.0

    def shown(self, members: int) -> str:
        """Returns it as text, also for one of the members."""
        text = f"{self.seconds:.2f} s, {1000 * self.seconds / members:.1f} ms each"
        if self.busy_s:
            text += f" ({1000 * self.busy_s / members:.1f} ms of processor), {self.mib:.0f} MiB"
        return text


def build(folder: Path, members: int) -> tuple[Path, dict[str, float]]:
    """Returns a coordinator with the bundles of `members` sites in its inbox, and the times."""
    started = perf_counter()
    home = CoordinatorFolder.create(folder / "hub", "growth")
    proposals.complete_genesis(home)
    names = [f"site-{number:04d}" for number in range(members)]
    for name in names:
        settings = SiteSettings(name=name, root=home.settings.root, max_epsilon=Decimal(10))
        site = SiteFolder.create(folder / name, settings)
        # without a certificate: with one each, a roster of 1 MiB holds some 800 sites
        write_request(site, site.path / ENROLMENT_FILE, site.newest_key(), [site.newest_key()])
    founded = perf_counter()
    changes.add(home, [folder / name / ENROLMENT_FILE for name in names])
    enrolled = perf_counter()
    plan = read_plan_toml(PLAN)
    proposals.publish_plan(home, plan)
    model = build_network(plan.data, plan.expert.default)
    model.reset_parameters(torch.Generator().manual_seed(0))
    published = perf_counter()
    for number, name in enumerate(names):
        send(SiteFolder.open(folder / name), home, model, number)
        shutil.rmtree(folder / name)
    submitted = perf_counter()
    return home.path, {
        "make sites": founded - started,
        "enrol": enrolled - founded,
        "sites' own work": submitted - published,
    }


def send(site: SiteFolder, home: CoordinatorFolder, model: torch.nn.Module, number: int) -> None:
    """Signs and submits the bundle of one site; in place of training, weights of the right form."""
    published = look(site, home.published)
    trust = published.trust
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    next(iter(weights.values())).view(-1)[0] = number / 1024
    work = site.work(trust.plan_sha256)
    write_tensors(work / EXPERT_FILE, weights)
    facts = TrainingFacts(
        program=f"ddm-fed {__version__}",
        torch=torch.__version__,
        precision="float32",
        steps=1,
        ema_half_life=trust.plan.training.ema_half_lives[0],
    )
    open_ledger(site).append(trust.plan_sha256, "expert", "no-noise", NonPrivateEvent())
    images = ImageSet(torch.zeros(10, 1, 8, 8), None)
    design = trust.plan.expert.default
    record_training(work, TrainedExpert(weights, facts), design, images.digest())
    run_plan(site, trust, published.log, Private(images), TrainingOptions())
    stages.review(site, trust)
    stages.release(site, trust)
    submit(site, trust, FolderTransport(home.path / "inbox"))


def append_receipts(hub: Path, members: int) -> None:
    """Appends one receipt of each member to the log, and nothing else."""
    home = CoordinatorFolder.open(hub)
    trust = home.trust()
    key, log = home.key(trust.chain), read_own_log(home, trust.chain)
    for number, site in enumerate(trust.roster.sites[:members]):
        receipt = Receipt(
            federation=trust.plan.federation,
            site=site.name,
            sequence=1,
            log_index=log.size,
            plan_sha256=trust.plan_sha256,
            roster=trust.chain.reference,
            admitted_at=now(),
        )
        envelope = sign_receipt(receipt, sha256_hex(str(number).encode()), key)
        log = append(home, trust.chain, log, envelope)


def admit(hub: Path) -> None:
    """Admits everything in the inbox, as the command does."""
    home = CoordinatorFolder.open(hub)
    later = price_arrivals(home, home.trust(), Prices())
    with home.changing():
        verdicts = take_arrivals(home, home.trust(), later=later).verdicts
    refused = [item.error for item in verdicts if item.error is not None]
    if refused or later:
        raise RuntimeError(f"{len(refused)} refused, {len(later)} wait: {refused[:1]}")


def command(*words: object) -> None:
    """Runs a command of `ddm-coord` in this process."""
    app([str(word) for word in words], standalone_mode=False)


def step(name: str, folder: Path, members: int) -> None:
    """Does one step on what the earlier ones left in `folder`."""
    hub, ensemble = folder / "hub", folder / "ensemble"
    root = CoordinatorFolder.open(hub).settings.root
    match name:
        case "append":
            append_receipts(folder / "log-only", members)
        case "admit":
            admit(hub)
        case "status" | "status of arrivals":
            command("status", "--coordinator", hub, "--json")
        case "assemble":
            command("assemble", ensemble, "--coordinator", hub)
        case "verify":
            command("verify", ensemble, "--root", root)
        case "sample" | "sample, 8 experts in memory":
            resident = ("--resident", 8) if name != "sample" else ()
            options = ("--count", SAMPLES, "--steps", SOLVER_STEPS, "--no-png", "--device", "cpu")
            out = folder / ("samples-" + str(len(resident)))
            command("sample", ensemble, "--root", root, "--out", out, *options, *resident)


STEPS = (
    "append",
    "status of arrivals",
    "admit",
    "status",
    "assemble",
    "verify",
    "sample",
    "sample, 8 experts in memory",
)


def memory_mib(key: str) -> float:
    """Returns what the kernel says of this process's memory."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(key + r":\s+(\d+) kB", text)[1]) / 1024


def run_here(name: str, folder: Path, members: int) -> None:
    """Does one step in this process, and prints its time and memory."""
    before = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    started, busy = perf_counter(), process_time()
    step(name, folder, members)
    found = (perf_counter() - started, process_time() - busy, memory_mib("VmHWM") - before)
    sys.stderr.write(json.dumps(found) + "\n")


def measured(name: str, folder: Path, members: int) -> Measured:
    """Returns what one step takes in a process of its own."""
    words = [sys.executable, __file__, "--step", name, "--folder", str(folder)]
    words += ["--members", str(members)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{name}` failed: {done.stderr[-2000:]}")
    return Measured(*json.loads(done.stderr.splitlines()[-1]))


def measure(members: int) -> dict[str, Measured]:
    """Returns what every step takes with so many members."""
    rows: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        hub, setup = build(folder, members)
        for name, seconds in setup.items():
            show(members, name, Measured(seconds))
        kept = shutil.ignore_patterns("incoming", "blobs")
        shutil.copytree(hub, folder / "log-only", ignore=kept)
        for name in STEPS:
            rows[name] = measured(name, folder, members)
            show(members, name, rows[name])
    return rows


def show(members: int, name: str, found: Measured) -> None:
    """Prints one line as soon as it is known."""
    sys.stdout.write(f"{members:5d}  {name:28s} {found.shown(members)}\n")
    sys.stdout.flush()


def main() -> None:
    """Measures every size, and prints a table: milliseconds per member, and peak memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is not None:
        run_here(options.step, options.folder, options.members[0])
        return
    found = {members: measure(members) for members in options.members}
    lines = ["| step | " + " | ".join(f"{n:,} members" for n in found) + " |"]
    lines.append("| --- " * (len(found) + 1) + "|")
    for name in STEPS:
        cells = [rows[name].shown(members) for members, rows in found.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
