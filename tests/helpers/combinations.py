"""Small federations in every space a plan can train in, made by the real commands in this process.

Two sites: one trains a network with noise, after central images, and the other is its release. Both
train a head. All of it in images so small that each command takes a second.
"""

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import commands
import numpy as np
import pytest
from latents import make_folder
from numpy.typing import NDArray

SITES = ("one", "two")  # a network, and a mixture
CLASSES = ("dark", "bright")
CAPTIONS = ("a dark picture", "a bright picture")
COUNT = 96
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
steps = {steps}
batch_size = 32
learning_rate = 0.01
warmup_steps = 0
ema_half_lives = [1]
[privacy]
max_epsilon = 1000
{privacy}
[router]
{router}
"""
HEADS = """kind = "heads"
epsilon = 100
frequencies = 6
radius = {radius}
[router.head]
width = 16
depth = 1
steps = 40
batch_size = 16
"""
NOISE = """must_be_private = ["router", "expert", "head"]
[privacy.sgd]
epsilon = 700
units = 96
clip_norm = 0.5
draws = 2
[privacy.sgd.head]
epsilon = 100
draws = 1
[privacy.sgd.central]
epsilon = 100
batch_size = 96
radius = {radius}
steps = {central_steps}
"""
MIXTURE = """kind = "mixture"
epsilon = 100
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


def run(program: str, *words: object) -> commands.Ended:
    """A real command in this process, and how it ended."""
    out, err, before = StringIO(), StringIO(), sys.argv
    sys.argv = [program, *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as caught:
            commands.main_of(program)()
    finally:
        sys.argv = before
    return commands.Ended(int(caught.value.code or 0), out.getvalue(), err.getvalue())


def done(program: str, *words: object) -> commands.Ended:
    """The same, of a command that must end well."""
    ended = run(program, *words)
    assert ended.code == 0, f"{program} {' '.join(map(str, words))}: {ended.out}\n{ended.err}"
    return ended


def refused(program: str, *words: object) -> str:
    """What a command says that must be refused, in words for people."""
    ended = run(program, *words)
    assert ended.code in (1, 2), ended
    assert "Traceback" not in ended.err
    return ended.err


def pictures(site: int, side: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Dark pictures and bright ones, which rise to the right at one site, downwards at the other.

    Returns:
        `(COUNT, side, side)`, and which kind each is, `(COUNT,)`.
    """
    rng = np.random.default_rng(seed)
    kinds = np.arange(COUNT) % 2
    slope = np.linspace(-40, 40, side)
    slope = slope[None, :] if site == 0 else slope[:, None]
    levels = np.where(kinds, 190, 65)[:, None, None]
    found = levels + slope + rng.normal(0, 12, (COUNT, side, side))
    return found.clip(0, 255).astype(np.uint8), kinds


class Federation:
    """A coordinator and two sites under one folder, in one space.

    Args:
        base: An empty folder.
        space: Which.
        clip: File of a CLIP network, for captions and for centroids.
    """

    def __init__(self, base: Path, space: Space, clip: Path) -> None:
        self.base, self.space, self.clip, self.hub = base, space, clip, base / "hub"
        self.coder = make_folder(base / "coder", seed=1) if space.latent else None
        for place, name in enumerate((*SITES, "held", "held-two")):
            images, kinds = pictures(place % 2, space.side, place)
            extra: dict[str, Any] = {}
            if space.conditioning == "class":
                extra = {"labels": kinds}
            if space.conditioning == "text":
                extra = {"captions": np.array(CAPTIONS)[kinds]}
            np.savez(base / f"{name}.npz", images=images, **extra)
        self.root = done("ddm-coord", "init", self.hub, "--federation", "combined").out.strip()
        for name in SITES:
            words = ("--name", name, "--root", self.root, "--max-epsilon", 1000)
            done("ddm-site", "init", base / name, *words)
        requests = [base / name / "enrolment.dsse.json" for name in SITES]
        self.coord("roster", "add", *requests)

    def coord(self, *words: object) -> commands.Ended:
        """A command of the coordinator that must end well."""
        return done("ddm-coord", *words, "--coordinator", self.hub)

    def site(self, name: str, *words: object) -> commands.Ended:
        """A command of a site that must end well."""
        return done("ddm-site", *words, *self.at(name))

    def at(self, name: str) -> tuple[object, ...]:
        """The options that say which site and which plan."""
        return ("--site", self.base / name, "--plan", self.hub / "published")
