"""Small federations in every space a plan can train in, made by the real commands in this process.

Under the first plan `one` trains a network with noise, after central images, and `two` is what it
releases; both train a head. Under the second, without noise, `one` adds a network to its mixture,
`two` trains an MMDiT, and `three`, who comes later, another network. Images are so small that a
command takes a second.
"""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from commands import Ended, here
from commands import done_here as done
from documents import ROOT
from latents import block_of
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.autoencoders import open_autoencoder
from ddm_fed.ensemble.folder import VerifiedEnsemble, verify_ensemble
from ddm_fed.records import Plan, read_plan_toml

SITES = ("one", "two")
CLASSES = ("dark", "bright")
CAPTIONS = ("a dark picture", "a bright picture")
PUBLIC_PROMPTS = (*CAPTIONS, "a boat on a river")
COUNT = 48
FEW = ("--samples-per-site", 24, "--steps", 3)
SMALL_NETWORK = ("--training-steps", 60, "--width", 16, "--depth", 1)
PLAN = """
federation = "combined"
expires_at = 2036-01-01T00:00:00Z
[data]
channels = 1
height = {side}
width = {side}
{data}
[expert]
architecture = {architecture}
[training]
steps = 2
batch_size = 12
learning_rate = 0.003
warmup_steps = 0
ema_half_lives = [1]
{training}
[privacy]
max_epsilon = 200
{privacy}
[router]
{router}
"""
HEADS = """kind = "heads"
epsilon = 24
frequencies = 6
radius = {radius}
[router.head]
width = 16
depth = 1
steps = 10
batch_size = 16
"""
NOISE = """must_be_private = ["router", "expert", "head"]
[privacy.sgd]
epsilon = 60
units = 48
clip_norm = 0.5
draws = 1
[privacy.sgd.head]
epsilon = 10
draws = 1
[privacy.sgd.central]
epsilon = 12
batch_size = 48
radius = {radius}
steps = 80
"""
MIXTURE = """kind = "mixture"
epsilon = 24
frequencies = 16
radius = {radius}
"""


class Space(NamedTuple):
    """What is diffused, and what an image is asked to be."""

    name: str
    latent: bool
    conditioning: str = "none"

    @property
    def side(self) -> int:
        """Pixels of a row."""
        return 16 if self.latent else 8

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is diffused."""
        return (2, 8, 8) if self.latent else (1, 8, 8)


SPACES = (
    Space("pixels, classes", False, "class"),
    Space("latents", True),
    Space("latents, classes", True, "class"),
    Space("pixels, captions", False, "text"),
    Space("latents, captions", True, "text"),
)


def refused(program: str, *words: object) -> str:
    """What a command says that must be refused, in words for people."""
    ended = here(program, *words)
    assert ended.code in (1, 2), ended
    assert "Traceback" not in ended.err
    return ended.err


def pictures(site: int, side: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Dark pictures and bright ones, which rise to the right at one site, to the left at another.

    Returns:
        `(COUNT, side, side)`, and which kind each is, `(COUNT,)`.
    """
    rng = np.random.default_rng(seed)
    kinds = np.arange(COUNT) % 2
    slope = np.linspace(-70, 70, side) * (1 if site == 0 else -1)
    levels = np.where(kinds, 215, 100)[:, None, None]
    found = levels + slope + rng.normal(0, 12, (COUNT, side, side))
    return found.clip(0, 255).astype(np.uint8), kinds


class Samples(NamedTuple):
    """What `sample` wrote: its arrays, what is diffused of them, and its summary."""

    arrays: dict[str, NDArray[Any]]
    diffused: Tensor
    summary: dict[str, Any]

    def of(self, site: int) -> Tensor:
        """The samples that one site's expert drew."""
        return self.diffused[torch.from_numpy(self.arrays["sites"] == site)]


class Federation:
    """A coordinator and its sites under one folder, in one space.

    Args:
        base: An empty folder.
        space: Which.
        clip: File of a CLIP network, for captions and for centroids.
        coder: Folder of an autoencoder, for latents.
    """

    def __init__(self, base: Path, space: Space, clip: Path, coder: Path | None) -> None:
        self.base, self.space, self.clip, self.hub = base, space, clip, base / "hub"
        self.coder = coder if space.latent else None
        for seed, name in enumerate((*SITES, "three", "held")):
            images, kinds = pictures(seed % 2, space.side, seed)
            told: dict[str, Any] = {}
            if space.conditioning == "class":
                told = {"labels": kinds}
            if space.conditioning == "text":
                told = {"captions": np.array(CAPTIONS)[kinds]}
            np.savez(base / f"{name}.npz", images=images, **told)
        self.root = done("ddm-coord", "init", self.hub, "--federation", "combined").out.strip()
        for name in SITES:
            self.enrol(name)

    @property
    def coding(self) -> tuple[object, ...]:
        """The option that names the autoencoder, where there is one."""
        return () if self.coder is None else ("--autoencoder", self.coder)

    @property
    def texts(self) -> tuple[object, ...]:
        """The option that names the text encoder, where there are captions."""
        return ("--text-encoder", self.clip) if self.space.conditioning == "text" else ()

    @property
    def embedder(self) -> tuple[object, ...]:
        """The option that names the embedder, where there are centroids."""
        return () if self.space.latent else ("--embedder-weights", self.clip)

    @property
    def prompts(self) -> tuple[object, ...]:
        """What samples are asked to be, where that is by captions."""
        return tuple(word for text in CAPTIONS for word in ("--prompt", text)) if self.texts else ()

    def enrol(self, name: str) -> None:
        """Makes a site and takes it into the roster."""
        site = self.base / name
        done("ddm-site", "init", site, "--name", name, "--root", self.root, "--max-epsilon", 200)
        self.coord("roster", "add", site / "enrolment.dsse.json")

    def coord(self, *words: object) -> Ended:
        """A command of the coordinator that must end well."""
        return done("ddm-coord", *words, "--coordinator", self.hub)

    def site(self, name: str, *words: object) -> Ended:
        """A command of a site that must end well."""
        return done("ddm-site", *words, "--site", self.base / name, "--plan", self.published)

    @property
    def published(self) -> Path:
        """What the coordinator has published."""
        return self.hub / "published"

    def train(self, name: str, architecture: str, *options: object) -> Ended:
        """Trains; of a site without a choice the plan's embedder is asked for as well."""
        data = ("--data", self.base / f"{name}.npz", "--precision", "float32", "--yes")
        chosen = ("--architecture", architecture, *self.coding, *self.texts, *options)
        return self.site(name, "train", *data, *chosen)

    def deliver(self, *names: str) -> None:
        """Reviews, releases, submits; then admits all of it."""
        for name in names:
            self.site(name, "review")
            self.site(name, "release")
            self.site(name, "submit", "--to", self.hub / "inbox")
        arrivals = json.loads(self.coord("admit", "--json").out)
        assert sorted(arrival["site"] for arrival in arrivals) == sorted(names)

    def plan_text(
        self, architecture: list[str], router: str, privacy: str = "", training: str = ""
    ) -> str:
        """A plan as people write it."""
        radius = 12 if self.space.latent else 8
        return PLAN.format(
            side=self.space.side,
            data=self._data,
            architecture=json.dumps(architecture),
            router=router.format(radius=radius),
            privacy=privacy.format(radius=radius),
            training=training,
        )

    @cached_property
    def _data(self) -> str:
        return self.data_lines(latent=self.space.latent)

    def data_lines(self, *, latent: bool) -> str:
        """The lines of a plan that say what images are asked to be, and where they are diffused."""
        lines = []
        if self.space.conditioning == "class":
            lines += ['conditioning = "class"', f"classes = {json.dumps(CLASSES)}"]
        if self.space.conditioning == "text":
            told = done("ddm-coord", "plan", "text", self.clip, "--tokens", 8).out
            lines += ['conditioning = "text"', told]
        if latent and self.coder is not None:
            lines.append(block_of(self.coder))
        return "\n".join(lines)

    def publish(self, text: str) -> None:
        """Publishes a plan."""
        (self.base / "plan.toml").write_text(text)
        self.coord("publish", self.base / "plan.toml")

    def centroids(self, text: str) -> str:
        """The table of centroids for the plan `text`, made of public images by the command."""
        (self.base / "first.toml").write_text(text)
        public = np.concatenate([pictures(site, self.space.side, 9)[0] for site in (0, 1)])
        np.savez(self.base / "public.npz", images=public)
        made = done(
            "ddm-coord",
            *("plan", "anchors", self.base / "public.npz", "--plan", self.base / "first.toml"),
            *("--embedder", "clip", "--weights", self.clip, "--components", 4, "--dimensions", 2),
        )
        prompts = f"prompts = {json.dumps(PUBLIC_PROMPTS)}"
        return made.out.replace("[router.centroids]", f"[router.centroids]\n{prompts}")

    def first_plan(self) -> None:
        """From the first plan to an ensemble with heads."""
        text = self.plan_text(["DiT-Nano/4", "mixture"], HEADS, NOISE)
        self.publish(text if self.space.latent else text + self.centroids(text))
        for name, architecture in zip(SITES, ("DiT-Nano/4", "mixture"), strict=True):
            self.train(name, architecture, *self.embedder)
        self.deliver(*SITES)
        self.coord("reference")
        for name in SITES:
            data = ("--data", self.base / f"{name}.npz", "--yes")
            self.site(name, "head", *data, *self.coding)
        self.deliver(*SITES)
        self.coord("assemble", self.base / "ensemble")

    def second_plan(self, third: str) -> None:
        """From the second plan, which also `three` follows, to an ensemble."""
        self.enrol("three")
        moved = "" if self.space.latent else 'augmentation = ["translate"]'
        names = {"one": "mixture+DiT-Nano/4", "two": "MMDiT-Nano/4", "three": third}
        self.publish(self.plan_text([*dict.fromkeys(names.values())], MIXTURE, training=moved))
        for name, architecture in names.items():
            self.train(name, architecture)
        self.deliver(*names)
        self.coord("assemble", self.base / "second")

    @property
    def plan(self) -> Plan:
        """The plan that was published last."""
        return read_plan_toml((self.base / "plan.toml").read_text())

    def verified(self, name: str) -> VerifiedEnsemble:
        """An ensemble, verified."""
        return verify_ensemble(self.base / name, self.root)

    def ledger(self, name: str) -> dict[str, dict[str, Any]]:
        """Entries of a site's ledger by purpose; the last of each."""
        told = json.loads(done("ddm-site", "ledger", "--site", self.base / name, "--json").out)
        return {entry["purpose"]: entry for entry in told["entries"]}

    def at(self, name: str) -> tuple[object, ...]:
        """An ensemble as commands take it."""
        return (self.base / name, "--root", self.root)

    def options(self, out: str) -> tuple[object, ...]:
        """What every sampling has."""
        latents = ("--latents",) if self.coder is not None else ()
        few = ("--count", 48, "--steps", 4, "--no-png", *self.coding, *latents)
        return (*few, "--out", self.base / out)

    def sample(self, ensemble: str, out: str, *options: object) -> Samples:
        """Samples of an ensemble; by both captions, where there are any and no `--prompt`.

        They are drawn once: `out` belongs to these options.
        """
        asked = (*self.prompts, *self.texts)
        if not self.prompts or "--prompt" in options:
            asked = self.texts
        words = (*self.at(ensemble), *self.options(out), *asked, *options)
        if not (self.base / out / "samples.npz").exists():
            done("ddm-coord", "sample", *words)
        with np.load(self.base / out / "samples.npz") as archive:
            arrays = dict(archive)
        pixels = torch.from_numpy(arrays["images"]).float() / 127.5 - 1
        diffused = torch.from_numpy(arrays["latents"]) if self.space.latent else pixels
        summary = json.loads((self.base / out / "samples.json").read_text())
        return Samples(arrays, diffused, summary)

    def refused_sample(self, ensemble: str, *options: object) -> str:
        """What `sample` says of options that it must refuse."""
        words = (*self.at(ensemble), *self.options("refused"), *options)
        said = refused("ddm-coord", "sample", *words)
        assert not (self.base / "refused" / "samples.npz").exists()
        return said

    @cached_property
    def trained_on(self) -> dict[str, Tensor]:
        """What each site's images are in the plan's space, `(COUNT, C, H, W)`."""
        coder, found = open_autoencoder(self.coder, self.plan.data), {}
        for name in SITES:
            with np.load(self.base / f"{name}.npz") as archive:
                pixels = torch.from_numpy(archive["images"]).float()[:, None] / 127.5 - 1
            found[name] = pixels if coder is None else coder.encode(pixels)[0]
        return found


def likeness(one: Tensor, other: Tensor) -> float:
    """Cosine of the mean images of two sets, `(N, C, H, W)` and `(M, C, H, W)`."""
    means = (one.mean(0).flatten(), other.mean(0).flatten())
    return float(torch.nn.functional.cosine_similarity(*means, dim=0))


def mean_likeness(fed: Federation, drawn: Samples, site: int) -> float:
    """How like a site's samples are to its images; class by class where there are any."""
    images, samples = fed.trained_on[SITES[site]], drawn.of(site)
    if fed.space.conditioning != "class":
        return likeness(samples, images)
    kinds = torch.arange(len(images)) % 2
    labels = torch.from_numpy(drawn.arrays["labels"])[drawn.arrays["sites"] == site]
    return sum(likeness(samples[labels == kind], images[kinds == kind]) for kind in (0, 1)) / 2


def table() -> tuple[list[str], dict[str, dict[str, str]]]:
    """The spaces of the document, and of every row what it says of each: `run` or `refused`."""
    text = (ROOT / "docs" / "combinations.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    (_, *spaces), _, *rest = rows
    said = {name: [re.sub(r" \(\d+\)$", "", cell) for cell in cells] for name, *cells in rest}
    return spaces, {
        name.replace("`", ""): dict(zip(spaces, of, strict=True)) for name, of in said.items()
    }
