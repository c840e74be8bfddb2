"""A federation of which some sites keep their experts, and the programs that answer for them."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from commands import Started
from federation import SITES, Federation, create_federation, train

from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import admit_arrivals
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import read_plan_toml
from sites.outbox import stages
from sites.train.pipeline import write_draft
from sites.transport import submit
from sites.transport.base import FolderTransport
from sites.workspace import SiteFolder, write_site_settings

A, B, C = SITES
KEEPING = (A, C)
EVALUATIONS, AT_ONCE = 400, 8
PLAN = f"""
federation = "test"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = 8
width = 8
conditioning = "class"
classes = ["dark", "light"]
[expert]
architecture = ["DiT-Nano/2", "mixture+Conv-Nano/2"]
[expert.remote]
evaluations = {EVALUATIONS}
batch_size = {AT_ONCE}
[training]
steps = 20
batch_size = 16
learning_rate = 0.01
ema_half_lives = [2]
[router]
kind = "mixture"
epsilon = 2
frequencies = 4
radius = 3
[privacy]
max_epsilon = 3
"""


class Ensembles(NamedTuple):
    """The same experts and releases, assembled twice.

    Attributes:
        fed: The federation, whose sites A and C now keep their experts.
        local: Folder of the ensemble with all weights.
        held: Folder of the one without those of A and C.
    """

    fed: Federation
    local: Path
    held: Path


def images(seed: int) -> Private[ImageSet]:
    """Returns 24 private noise images of two classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(24) % 2
    dark = (labels * 0.5 - 0.25).reshape(-1, 1, 1, 1)
    return Private(ImageSet(dark + torch.rand((24, 1, 8, 8), generator=generator) - 0.5, labels))


def bring(fed: Federation, names: tuple[str, ...]) -> None:
    """Reviews, releases, submits and admits the newest draft of sites."""
    for name in names:
        stages.review(fed.site(name), fed.trust)
        stages.release(fed.site(name), fed.trust)
        submit.submit(fed.site(name), fed.trust, FolderTransport(fed.inbox))
    admit_arrivals(fed.home, fed.trust)


def keep_weights(site: SiteFolder) -> SiteFolder:
    """Returns the site with `keep_weights = true` in its site.toml."""
    settings = site.settings.model_copy(update={"keep_weights": True})
    write_site_settings(SiteFolder(site.path, settings))
    return SiteFolder.open(site.path)


def build_fresh(base: Path) -> Federation:
    """Trains three sites, two of which never let their weights go, and assembles `held`."""
    plan = read_plan_toml(PLAN)
    fed = create_federation(base, plan)
    for name in KEEPING:
        keep_weights(fed.site(name))
    for seed, name in enumerate(SITES):
        design = plan.expert.design(plan.expert.architecture[name == C])
        train(fed.site(name), fed.trust, images(seed), seed=seed, design=design)
    bring(fed, SITES)
    assemble(fed.home, base / "held", router=None, without=())
    return fed


def build_ensembles(base: Path) -> Ensembles:
    """Trains three sites, assembles them, and again once two decided to keep their weights."""
    plan = read_plan_toml(PLAN)
    fed = create_federation(base, plan)
    for seed, name in enumerate(SITES):
        design = plan.expert.design(plan.expert.architecture[name == C])
        train(fed.site(name), fed.trust, images(seed), seed=seed, design=design)
    bring(fed, SITES)
    assemble(fed.home, base / "local", router=None, without=())
    for name in KEEPING:
        published = fed.look(name)
        write_draft(keep_weights(fed.site(name)), published.trust, published.log)
    bring(fed, KEEPING)
    assemble(fed.home, base / "held", router=None, without=())
    return Ensembles(fed, base / "local", base / "held")


class Served(NamedTuple):
    """A running `ddm-site serve-expert`."""

    port: int
    expert_sha256: str
    left: int
    process: Started


@contextmanager
def serving(fed: Federation, name: str, port: int = 0) -> Iterator[Served]:
    """A real `ddm-site serve-expert`, ended as its people would."""
    words = ("--site", fed.site(name).path, "--plan", fed.published, "--json")
    process = Started("ddm-site", "serve-expert", *words, "--listen", f"127.0.0.1:{port}")
    try:
        line = process.stdout.readline()
        assert line, process.said
        facts = json.loads(line)
        listening = int(facts["listen"].rpartition(":")[2])
        yield Served(listening, facts["expert_sha256"], facts["evaluations_left"], process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


def served_lines(fed: Federation, name: str) -> list[dict]:
    """Returns the lines of a site's log that are whole."""
    (folder,) = {file.parent for file in (fed.site(name).path / "private").glob("*/expert.*")}
    file = folder / "served.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def charged(fed: Federation, name: str) -> int:
    """Returns the evaluations that a site has charged."""
    return sum(line.get("evaluations", 0) for line in served_lines(fed, name))


def wait_until(true, *, timeout_s: float = 60.0) -> None:
    """Returns when `true()` is."""
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.01)
