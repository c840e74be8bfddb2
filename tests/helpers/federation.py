"""One tiny real federation, and the forgeries that attack it. Loaded by conftest.py."""

import base64
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch

from coordinator.ensembles.assemble import assemble
from coordinator.inbox.admission import Admitted, admit_arrivals, admitted_bundles
from coordinator.log import read_own_log
from coordinator.roster import changes, proposals
from coordinator.workspace import CoordinatorFolder
from ddm_fed.bundle.verify import ENVELOPE_FILE
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import (
    IN_TOTO_PAYLOAD,
    Plan,
    SampledGaussianEvent,
    canonical_json,
    read_plan_toml,
    sha256_hex,
)
from ddm_fed.signing import SigningKey, seal
from ddm_fed.training import Paid, PrivateTraining, RunOptions
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log, read_log
from sites.outbox import stages
from sites.published import Published, look
from sites.train.expert import TrainingOptions
from sites.train.pipeline import run_plan
from sites.transport import submit
from sites.transport.base import FolderTransport
from sites.workspace import SiteFolder, SiteSettings

SITES = ("hospital-a", "hospital-b", "hospital-c")
PLAN_TOML = """
federation = "test"
expires_at = 2036-01-01T00:00:00Z

[data]
channels = 1
height = 8
width = 8

[expert]
architecture = "DiT-Nano/2"

[training]
steps = 3
batch_size = 16

[router]
kind = "mixture"
epsilon = 2
frequencies = 4
radius = 3

[privacy]
max_epsilon = 3
"""
PRIVATE = """max_epsilon = 10
must_be_private = ["router", "expert"]
[privacy.sgd]
epsilon = 8
units = 32
clip_norm = 0.5
draws = 2
"""
Json = dict[str, Any]


def a_plan(**replaced: str) -> Plan:
    """Returns the plan of the federation with lines replaced, such as `steps="steps = 4"`."""
    lines = PLAN_TOML.splitlines()
    for key, line in replaced.items():
        index = next(i for i, text in enumerate(lines) if text.split(" ")[0] == key)
        lines[index] = line
    return read_plan_toml("\n".join(lines))


def random_images(seed: int, count: int = 24) -> Private[ImageSet]:
    """Returns private noise images of the plan's shape."""
    generator = torch.Generator().manual_seed(seed)
    return Private(ImageSet(torch.rand((count, 1, 8, 8), generator=generator) * 2 - 1, None))


def train(site: SiteFolder, trust: Trust, data: Private[ImageSet], **options: Any) -> Path:
    """Returns the draft that `run_plan` makes, in the fastest way a test can have it.

    The site must have looked at the published folder, unless `log` is given.
    """
    log = options.pop("log", None) or read_log(site.seen, trust.chain)
    own = ("design", "restart", "randomness")
    chosen = {name: options.pop(name) for name in own if name in options}
    if trust.plan.privacy.sgd is None:
        options = {"seed": 0, **options}
    else:
        options.pop("seed", None)  # noise has no seed
    run = RunOptions(precision="float32", **options)
    return run_plan(site, trust, log, data, TrainingOptions(run, **chosen))


def event_of(noise: Any, steps: int) -> SampledGaussianEvent:
    """Returns what a ledger says of a training; also of too little noise, for tests of the rest."""
    return SampledGaussianEvent.model_construct(
        sampling_rate=Decimal(str(noise.sampling_rate)),
        noise_multiplier=Decimal(str(noise.noise_multiplier)),
        steps=steps,
    )


def paid_for(noise: PrivateTraining) -> Paid:
    """Returns what a ledger says that paid for `noise`."""
    central = noise.central
    means = None if central is None else event_of(central, central.images)
    return Paid(event_of(noise, noise.steps), means)


@dataclass(frozen=True)
class Federation:
    """A coordinator and three sites under one folder."""

    path: Path

    @property
    def home(self) -> CoordinatorFolder:
        """The coordinator."""
        return CoordinatorFolder.open(self.path / "consortium")

    @property
    def trust(self) -> Trust:
        """What it has published."""
        return self.home.trust()

    @property
    def root(self) -> str:
        """The fingerprint everybody pins."""
        return self.home.settings.root

    @property
    def log(self) -> Log:
        """The coordinator's transparency log, as anybody knows it."""
        own = read_own_log(self.home, self.home.chain())
        return Log(own.origin, own.entries, own.checkpoint, own.void)

    @property
    def published(self) -> Path:
        """The published folder."""
        return self.home.published

    def look(self, name: str) -> Published:
        """Lets a site look at the published folder, as every command of it does first."""
        return look(self.site(name), self.published)

    def coordinator_key(self) -> SigningKey:
        """The active coordinator key."""
        return self.home.key(self.home.chain())

    def root_key(self) -> SigningKey:
        """The root key, which a federation of one hand keeps at the coordinator."""
        return SigningKey.read(self.home.keys / "root.pem")

    @property
    def inbox(self) -> Path:
        """Where sites deliver."""
        return self.path / "consortium" / "inbox"

    def site(self, name: str) -> SiteFolder:
        """One of the sites."""
        return SiteFolder.open(self.path / name)

    def key(self, name: str) -> SigningKey:
        """The newest signing key of a site."""
        return self.site(name).newest_key()

    def arrival(self, name: str) -> Path:
        """The bundle of a site in the inbox."""
        return next(
            path
            for path in self.home.incoming.iterdir()
            if manifest(path)["predicate"]["site"] == name
        )

    def stored(self, name: str) -> Admitted:
        """The admitted bundle of a site."""
        found = admitted_bundles(self.home, self.trust, self.log)
        return next(item for item in found if item.submission.site == name)

    def copy(self, target: Path, *parts: str) -> "Federation":
        """Returns a federation at `target` that has only these folders of this one."""
        for part in parts:
            shutil.copytree(self.path / part, target / part, symlinks=True)
        return Federation(target)


def create_federation(
    path: Path, plan: Plan | None = None, *, sites: tuple[str, ...] = SITES
) -> Federation:
    """Returns a federation whose plan, `a_plan()` by default, and first roster are published."""
    home = CoordinatorFolder.create(path / "consortium", "test")
    proposals.complete_genesis(home)
    for name in sites:
        settings = SiteSettings(name=name, root=home.settings.root, max_epsilon=Decimal(10))
        SiteFolder.create(path / name, settings)
    changes.add(home, [path / name / "enrolment.dsse.json" for name in sites])
    proposals.publish_plan(home, plan or a_plan())
    fed = Federation(path)
    for name in sites:
        fed.look(name)
    return fed


@dataclass(frozen=True)
class Stages:
    """The federation after each stage; tests copy them and never change them."""

    drafted: Federation
    released: Federation
    submitted: Federation
    admitted: Federation
    ensemble: Path


def build_stages(base: Path) -> Stages:
    """Trains, submits, admits and assembles for real, keeping a copy of every stage."""
    fed = create_federation(base / "admitted")
    for seed, name in enumerate(SITES):
        train(fed.site(name), fed.trust, random_images(seed), seed=seed)
    drafted = fed.copy(base / "drafted", "consortium", *SITES)
    for name in SITES:
        stages.review(fed.site(name), fed.trust)
        stages.release(fed.site(name), fed.trust)
    released = fed.copy(base / "released", "consortium", *SITES)
    for name in SITES:
        submit.submit(fed.site(name), fed.trust, FolderTransport(fed.inbox))
    submitted = fed.copy(base / "submitted", "consortium", *SITES)
    admit_arrivals(fed.home, fed.trust)
    assemble(fed.home, base / "ensemble", router=None, without=())
    return Stages(drafted, released, submitted, fed, base / "ensemble")


# Forgeries


def payload_of(envelope: Path) -> Json:
    """Returns the payload of an envelope, believed without a check."""
    found: Json = json.loads(base64.b64decode(json.loads(envelope.read_bytes())["payload"]))
    return found


def manifest(bundle: Path) -> Json:
    """Returns the statement of a bundle."""
    return payload_of(bundle / ENVELOPE_FILE)


def forge(
    envelope: Path, edit: Callable[[Json], None], *keys: SigningKey, kind: str = IN_TOTO_PAYLOAD
) -> str:
    """Edits the payload of `envelope`, signs it again with `keys`; returns its new digest."""
    payload = payload_of(envelope)
    edit(payload)
    data = canonical_json(payload)
    envelope.write_bytes(seal(data, kind, keys))
    return sha256_hex(data)


def forge_manifest(bundle: Path, edit: Callable[[Json], None], key: SigningKey) -> str:
    """Edits the predicate of a bundle's manifest and signs it again; returns its new digest."""
    return forge(bundle / ENVELOPE_FILE, lambda statement: edit(statement["predicate"]), key)


def sign_files(bundle: Path, key: SigningKey, **contents: bytes) -> str:
    """Replaces tensor files (`expert=b"..."`) and signs their true digests and sizes."""
    for stem, data in contents.items():
        (bundle / f"{stem}.safetensors").write_bytes(data)

    def edit(statement: Json) -> None:
        for subject in statement["subject"]:
            subject["digest"]["sha256"] = sha256_hex((bundle / subject["name"]).read_bytes())
        for file in statement["predicate"]["files"]:
            file["size_bytes"] = (bundle / file["name"]).stat().st_size

    return forge(bundle / ENVELOPE_FILE, edit, key)


def chain(entries: list[Json]) -> list[Json]:
    """Returns ledger entries numbered and chained as an honest site would."""
    previous = None
    for index, entry in enumerate(entries):
        entry["index"], entry["previous_sha256"] = index, previous
        previous = sha256_hex(canonical_json(entry))
    return entries


def move_to_plan(fields: Json, plan_sha256: str) -> None:
    """Makes a manifest and its ledger speak of another plan."""
    fields["plan_sha256"] = plan_sha256
    for entry in fields["privacy"]["ledger"]:
        entry["plan_sha256"] = plan_sha256
    chain(fields["privacy"]["ledger"])


def flip(path: Path, position: int, mask: int = 1) -> None:
    """Flips bits of one byte of the file; a negative position counts from its end."""
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(bytes(data))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Returns every file under `folder` with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tensor_bytes(header: bytes | Json, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Returns a tensor file with this header, and a length field that may lie."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def make_odd_file(path: Path, kind: str) -> None:
    """Puts something that is not a plain file at `path`: link, folder-link, dangling or fifo."""
    match kind:
        case "link":
            path.symlink_to("/etc/hostname")
        case "folder-link":
            path.symlink_to("/etc")
        case "dangling":
            path.symlink_to("/nonexistent")
        case "fifo":
            os.mkfifo(path)
        case _:
            raise ValueError(kind)
