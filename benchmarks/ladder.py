"""Data sets divided among sites, and an expert for each site, for the benchmarks of routers."""

import hashlib
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddm_fed.flows import Expert
from ddm_fed.mixture import SiteRelease, release_statistics
from ddm_fed.models import build_network
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.progress import Watch
from ddm_fed.records import LedgerEntry, Plan, canonical_json, read_plan_toml, today
from ddm_fed.training import RunOptions, train_expert

SHARES = (0.40, 0.25, 0.18, 0.12, 0.05)
OWN = 0.8  # of a site's images under label skew are of its own classes
LEAST_SHARE = 0.02
SPLITS = ("label-skew", "dirichlet-0.1", "dirichlet-1", "iid", "natural")


@dataclass(frozen=True)
class Images:
    """Real images `(N, C, H, W)` in [-1, 1], their classes `(N,)` and their sites `(N,)`."""

    images: Tensor
    labels: Tensor
    sites: Tensor

    def of_site(self, site: int) -> "Images":
        """Returns those of one site."""
        return self.rows(self.sites == site)

    def rows(self, rows: Tensor) -> "Images":
        """Returns some of them."""
        return Images(self.images[rows], self.labels[rows], self.sites[rows])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Federation:
    """What the sites hold, and real images nobody trained on, divided alike."""

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]

    @property
    def sites(self) -> int:
        """K."""
        return int(self.train.sites.max()) + 1

    @property
    def counts(self) -> Tensor:
        """Training images by site and class, `(K, G)`."""
        flat = self.train.sites * len(self.classes) + self.train.labels
        return flat.bincount(minlength=self.sites * len(self.classes)).reshape(self.sites, -1)

    @property
    def shares(self) -> Tensor:
        """Share of every site, `(K,)`."""
        counts = self.counts.sum(1).double()
        return counts / counts.sum()

    def plan(self, training: str, architecture: str, router: str, *, classes: bool) -> Plan:
        """Returns the plan of this federation, with lines of `training` and `router`."""
        _, channels, height, width = self.train.images.shape
        listed = ", ".join(f'"{name}"' for name in self.classes)
        known = f'conditioning = "class"\nclasses = [{listed}]' if classes else ""
        return read_plan_toml(f"""
federation = "benchmark"
expires_at = 2036-01-01
[data]
channels = {channels}
height = {height}
width = {width}
{known}
[expert]
architecture = "{architecture}"
[training]
{training}
[router]
{router}
[privacy]
max_epsilon = 1000
""")


def load_federation(source: Path | None, split: str, seed: int = 0) -> Federation:
    """Returns the images of an .npz file, or the 8 x 8 digits, divided among sites.

    `natural` takes the sites of the file (`train_site`), or one site per class. A class is a class,
    or, where the sites of the file are, a site.
    """
    if source is None:
        from sklearn.datasets import load_digits

        bundled = load_digits()
        pixels, labels = bundled.images.astype(np.float32) * (255 / 16), bundled.target
        held = np.arange(len(labels)) % 5 == 4
        parts = {"train": (pixels[~held], labels[~held]), "test": (pixels[held], labels[held])}
        own_sites, name = {}, "digits 8x8"
    else:
        file = np.load(source, allow_pickle=False)
        parts = {
            part: (file[f"{part}_images"], file[f"{part}_labels"].reshape(-1))
            for part in ("train", "test")
        }
        own_sites = {part: file[f"{part}_site"] for part in parts if f"{part}_site" in file}
        name = source.stem
    if split == "natural":
        sites = own_sites or {part: labels for part, (_, labels) in parts.items()}
        parts = {part: (images, sites[part]) for part, (images, _) in parts.items()}
    classes = int(parts["train"][1].max()) + 1
    mass = masses(split, classes, np.random.default_rng(seed))
    found = []
    for part, (pixels, labels) in parts.items():
        rng = np.random.default_rng([seed, part == "test"])
        rows, sites = assign(labels.astype(np.int64), mass, rng)
        chosen = pixels[rows]
        chosen = chosen[:, None] if chosen.ndim == 3 else chosen.transpose(0, 3, 1, 2)
        images = torch.from_numpy(np.ascontiguousarray(chosen)).float() / 127.5 - 1
        kinds = torch.from_numpy(labels[rows].astype(np.int64))
        found.append(Images(images, kinds, torch.from_numpy(sites)))
    names = tuple(f"c{index}" for index in range(classes))
    return Federation(f"{name}, {split}", found[0], found[1], names)


def masses(split: str, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the mass of every class at every site, `(K, G)`, sum 1."""
    shares = np.array(SHARES)
    match split:
        case "natural":
            return np.eye(classes) / classes
        case "iid":
            return np.outer(shares, np.full(classes, 1 / classes))
        case "label-skew":
            owner = np.arange(classes) * len(shares) // classes
            own = owner[None] == np.arange(len(shares))[:, None]  # (K, G)
            kept = own / own.sum(1, keepdims=True)
            spread = ~own / (~own).sum(1, keepdims=True)
            return shares[:, None] * (OWN * kept + (1 - OWN) * spread)
        case _ if split.startswith("dirichlet-"):
            alpha = float(split.removeprefix("dirichlet-"))
            while True:
                mass = rng.dirichlet(np.full(len(shares), alpha), size=classes).T / classes
                if mass.sum(1).min() >= LEAST_SHARE:
                    return mass
    raise ValueError(f"unknown split {split}, expected one of {', '.join(SPLITS)}")


def assign(
    labels: np.ndarray, mass: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and the site of each, as many as the classes suffice for; none twice."""
    available = np.bincount(labels, minlength=mass.shape[1])
    total = (available / mass.sum(0)).min()
    if np.array_equal(np.count_nonzero(mass, axis=0), np.ones(mass.shape[1])):
        wanted = np.where(mass > 0, available[None], 0)  # every class has one site: all of it
    else:
        wanted = np.floor(mass * total + 1e-9).astype(int)
    rows, sites = [], []
    for kind in range(mass.shape[1]):
        own = rng.permutation(np.flatnonzero(labels == kind))
        for site, count in enumerate(wanted[:, kind]):
            rows.append(own[:count])
            sites.append(np.full(count, site))
            own = own[count:]
    return np.concatenate(rows), np.concatenate(sites)


def train_experts(
    federation: Federation, plan: Plan, work: Path, *, workers: int = 2
) -> list[Expert]:
    """Returns the expert of every site; what is in `work` already is not trained again."""
    jobs = [(federation.train.of_site(site), plan, work, site) for site in range(federation.sites)]
    jobs.sort(key=lambda job: job[3], reverse=True)
    missing = [job for job in jobs if not expert_file(*job[:3]).exists()]
    if missing:
        work.mkdir(parents=True, exist_ok=True)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            list(pool.map(train_site, *zip(*missing, strict=True)))
    experts = []
    for own, *_ in sorted(jobs, key=lambda job: job[3]):
        network = build_network(plan.data, plan.expert.default)
        network.load_state_dict(load_file(expert_file(own, plan, work)))
        experts.append(Expert(network.eval().requires_grad_(False)))
    return experts


def expert_file(own: Images, plan: Plan, work: Path) -> Path:
    """Returns where the expert of these images is kept: its name follows from images and plan."""
    dumped = plan.model_dump(mode="json", include={"data", "expert", "training"})
    digest = hashlib.sha256(canonical_json(dumped))
    digest.update(ImageSet(own.images, own.labels).digest().encode())
    return work / f"expert-{digest.hexdigest()[:24]}.safetensors"


def train_site(own: Images, plan: Plan, work: Path, site: int) -> None:
    """Trains one expert and keeps it; a checkpoint that a killed run left is continued."""
    torch.set_num_threads(1)
    target = expert_file(own, plan, work)
    checkpoint = target.with_suffix(".checkpoint")
    started, said = time.monotonic(), [0.0]

    def say(report: object) -> None:
        if time.monotonic() - said[0] > 60:
            said[0] = time.monotonic()
            speed = f"{report.images_per_s:.0f} images/s"
            print(f"  site {site}: step {report.step}, loss {report.loss:.3f}, {speed}", flush=True)

    trained = train_expert(
        Private(ImageSet(own.images, own.labels)),
        plan,
        "0" * 64,
        checkpoint,
        options=RunOptions(seed=site, precision="float32"),
        watch=Watch(say),
    )
    part = target.with_suffix(".part")
    save_file(trained.state, part)
    part.replace(target)
    checkpoint.unlink()
    minutes = (time.monotonic() - started) / 60
    print(f"  site {site}: {len(own)} images, trained in {minutes:.1f} min", flush=True)


def releases_of(parts: Sequence[Images], plan: Plan) -> list[SiteRelease]:
    """Returns what every site releases under `plan`; the noise is the operating system's."""
    found = []
    for own in parts:
        multipliers: dict[str, float] = {}

        def spend(purpose, mechanism, event, multipliers=multipliers):
            name = purpose.removeprefix("router-").replace("-", "_")
            multipliers[name] = float(event.noise_multiplier)
            return LedgerEntry(
                index=0,
                previous_sha256=None,
                recorded_at=today(),
                plan_sha256="0" * 64,
                purpose=purpose,
                mechanism=mechanism,
                event=event,
            )

        data = Private(ImageSet(own.images, own.labels))
        released = release_statistics(data, plan, spend)
        vectors = {name: item.value for name, item in released.items()}
        found.append(SiteRelease(vectors, multipliers))
    return found
