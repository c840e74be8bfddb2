"""Makes the golden artefacts of this release: python tests/golden/make.py

What a release signed, every later one has to verify, and sample to the same images. So a folder is
made once, when its version is released, and never again: a later version that cannot read it breaks
its users, and needs a way to read both.

Two sites hold digits of their own. One trains a network, the other releases a mixture. Keys stay in
a temporary folder and are gone afterwards.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ddm_fed import __version__

PLAN = """
federation = "golden"
expires_at = 2100-01-01T00:00:00Z

[data]
channels = 1
height = 8
width = 8
conditioning = "class"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]

[expert]
architecture = ["Conv-Nano/4", "mixture"]

[training]
steps = 300
batch_size = 64
learning_rate = 0.003
ema_half_lives = [40]

[router]
kind = "mixture"
epsilon = 8
frequencies = 16
centre = -0.4
components = 1

[privacy]
max_epsilon = 8
"""
SITES = {"network": ("digits:0-4", "Conv-Nano/4"), "mixture": ("digits:5-9", "mixture")}
SAMPLES = {
    "sticky": ("--strategy", "sticky"),
    "full": ("--strategy", "full", "--solver", "heun", "--guidance", "1.5"),
}
COUNT = 10
ASKED = ("--count", str(COUNT), "--steps", "8", "--seed", "0", "--device", "cpu")


def run(program: str, *words: object) -> str:
    """Returns what a command writes to stdout."""
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *map(str, words)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def make(target: Path, work: Path) -> None:
    """Makes the artefacts in the new folder `target`."""
    hub, published = work / "consortium", work / "consortium" / "published"
    run("ddm-coord", "init", hub, "--federation", "golden")
    root = (hub / "coordinator.toml").read_text().partition('root = "')[2].partition('"')[0]
    for name in SITES:
        run("ddm-site", "init", work / name, "--name", name, "--root", root)
    requests = [work / name / "enrolment.dsse.json" for name in SITES]
    run("ddm-coord", "roster", "add", *requests, "--coordinator", hub)
    (work / "plan.toml").write_text(PLAN)
    run("ddm-coord", "publish", work / "plan.toml", "--coordinator", hub)
    for name, (data, architecture) in SITES.items():
        at = ("--site", work / name, "--plan", published)
        chosen = ("--architecture", architecture, "--precision", "float32")
        run("ddm-site", "train", *at, "--data", data, *chosen, "--yes")
        for command, *more in (("review",), ("release",), ("submit", "--to", hub / "inbox")):
            run("ddm-site", command, *at, *more)
    run("ddm-coord", "admit", "--coordinator", hub)
    run("ddm-coord", "assemble", target / "ensemble", "--coordinator", hub)
    (target / "root").write_text(f"{root}\n")
    for name, strategy in SAMPLES.items():
        out = work / f"samples-{name}"
        words = ("sample", target / "ensemble", "--root", root, "--out", out, *ASKED, *strategy)
        run("ddm-coord", *words)
        shutil.copy(out / "samples.npz", target / f"{name}.npz")


if __name__ == "__main__":
    made = Path(__file__).parent / __version__
    made.mkdir()  # there already: this version has its artefacts
    with tempfile.TemporaryDirectory() as folder:
        make(made, Path(folder))
