"""Does the memory of `verify` and `assemble` grow with the checkpoint?

    python benchmarks/memory.py

Builds a federation of one site around experts of growing size (random weights, real bundles), runs
the real commands as separate processes, and prints each one's peak resident memory. Last answer:
no, see results/memory_cpu_20261123.md.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from coordinator.roster import changes, proposals
from coordinator.workspace import CoordinatorFolder
from ddm_fed._version import __version__
from ddm_fed.bundle.verify import EXPERT_FILE
from ddm_fed.models import build_network
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import NonPrivateEvent, TrainingFacts, read_plan_toml
from ddm_fed.storage.tensors import write_tensors
from ddm_fed.training import TrainedExpert
from sites.outbox import stages
from sites.privacy.ledger import open_ledger
from sites.published import look
from sites.train.expert import TrainingOptions, record_training
from sites.train.pipeline import run_plan
from sites.workspace import SiteFolder, SiteSettings

BIN = Path(sys.executable).parent
PLAN = """
federation = "memory"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
[expert]
architecture = "{architecture}"
[training]
steps = 1
batch_size = 1
[router]
kind = "prior"
epsilon = 1
[privacy]
max_epsilon = 1
"""


def build(folder: Path, architecture: str) -> tuple[Path, Path]:
    """Makes a coordinator and a site with a released bundle; returns coordinator and bundle."""
    home = CoordinatorFolder.create(folder / "hub", "memory")
    proposals.complete_genesis(home)
    settings = f'{{"name":"site","root":"{home.settings.root}","max_epsilon":"10"}}'
    site = SiteFolder.create(folder / "site", SiteSettings.model_validate_json(settings))
    changes.add(home, [folder / "site" / "enrolment.dsse.json"])
    proposals.publish_plan(home, read_plan_toml(PLAN.format(architecture=architecture)))
    published = look(site, home.published)
    trust = published.trust
    # In place of training: weights of the right size, written where training leaves them.
    design = trust.plan.expert.default
    model = build_network(trust.plan.data, design)
    model.reset_parameters(torch.Generator().manual_seed(0))
    work = site.work(trust.plan_sha256)
    write_tensors(work / EXPERT_FILE, model.state_dict())
    facts = TrainingFacts(
        program=f"ddm-fed {__version__}",
        torch=torch.__version__,
        precision="float32",
        steps=1,
        ema_half_life=trust.plan.training.ema_half_lives[0],
    )
    open_ledger(site).append(trust.plan_sha256, "expert", "no-noise", NonPrivateEvent())
    images = ImageSet(torch.zeros(10, 1, 8, 8), None)
    record_training(work, TrainedExpert(model.state_dict(), facts), design, images.digest())
    run_plan(site, trust, published.log, Private(images), TrainingOptions())
    stages.review(site, trust)
    return folder / "hub", stages.release(site, trust)


# Linux hands a process's peak on to what it starts, so the command is started by a process that is
# small, not by this one, which has held the weights.
LAUNCHER = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(child, 0)
print(status, usage.ru_maxrss)
"""


def peak_mib(program: str, *arguments: object) -> float:
    """Runs a command and returns the peak resident memory of its process in MiB."""
    words = [str(BIN / program), *map(str, arguments)]
    launcher = [sys.executable, "-S", "-c", LAUNCHER, *words]
    output = subprocess.run(launcher, capture_output=True, text=True, check=True).stdout
    status, peak_kib = map(int, output.split())
    if status != 0:
        raise RuntimeError(f"{' '.join(words)} ended with status {status}")
    return peak_kib / 1024


def measure(
    folder: Path, architecture: str, peak_mib: Callable[..., float] = peak_mib
) -> dict[str, float]:
    """Returns the expert's size in MB and the peak memory of each command in MiB."""
    hub, bundle = build(folder, architecture)
    root = CoordinatorFolder.open(hub).settings.root
    size_mb = (bundle / EXPERT_FILE).stat().st_size / 1e6
    published = hub / "published"
    peaks = {
        "expert MB": size_mb,
        "submit": peak_mib(
            "ddm-site",
            "submit",
            "--site",
            folder / "site",
            "--plan",
            published,
            "--to",
            hub / "inbox",
        ),
        "verify inbox": peak_mib("ddm-coord", "admit", "--coordinator", hub),
        "assemble": peak_mib("ddm-coord", "assemble", folder / "ensemble", "--coordinator", hub),
        "verify ensemble": peak_mib("ddm-coord", "verify", folder / "ensemble", "--root", root),
    }
    shutil.rmtree(folder)
    return peaks


def main() -> None:
    """Prints one row per size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    for number, architecture in enumerate(("DiT-Micro/8", "DiT-Ti/8", "DiT-B/8", "DiT-L/8")):
        with tempfile.TemporaryDirectory() as scratch:
            row = measure(Path(scratch) / architecture.replace("/", "-"), architecture)
        if number == 0:
            print("| architecture | " + " | ".join(row) + " |")
            print("| --- " * (len(row) + 1) + "|")
        print(f"| {architecture} | " + " | ".join(f"{value:.0f}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
