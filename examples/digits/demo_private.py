"""Three sites share private digits at epsilon 8, and three at epsilon 2: `make demo-private`.

As demo.py, but no network is trained: what a site releases for the router, with noise, is a
mixture of Gaussians, and that mixture is its expert. So epsilon bounds all that leaves. Each site
is in both federations here, to show both levels; in life both would count.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from processes import CORES, run, run_all, together
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from taken_up import say_taken_up

from ddm_fed import console
from ddm_fed.evaluation import frechet_distance
from ddm_fed.pictures import write_grid

HERE = Path(__file__).parent
RUN = Path("demo-private-run")
LEVELS = ("8", "2")
SITES = {"hospital-a": range(5), "hospital-b": range(5, 8), "hospital-c": range(8, 10)}
SAMPLES, PER_CLASS, REAL = 1000, 8, 4


async def main() -> None:
    """Runs both federations from the first key to the picture."""
    started = time.monotonic()
    RUN.mkdir(exist_ok=True)
    say_taken_up(
        RUN,
        {
            f"samples of epsilon {level}": folder(level) / "samples" / "samples.json"
            for level in LEVELS
        },
    )
    await together((federation(level) for level in LEVELS), most=CORES)
    show()
    write_picture()
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.say(f"\nDone in {minutes} min {seconds} s: see {RUN / 'digits.png'}")


def folder(level: str) -> Path:
    """Returns where the federation of that epsilon is."""
    return RUN / f"epsilon-{level}"


async def federation(level: str) -> None:
    """Runs one federation, as far as it is not done: keys, plan, releases, ensemble, samples."""
    here = folder(level)
    here.mkdir(exist_ok=True)
    plan, fingerprint = here / "plan.toml", here / "fingerprint.txt"
    plan.write_text(
        (HERE / "plan-private.toml").read_text().replace("epsilon = 8", f"epsilon = {level}")
    )
    who = f"epsilon {level}"
    at = ("--coordinator", here / "consortium")
    if not (here / "consortium" / "coordinator.toml").exists():
        init = ("ddm-coord", "init", here / "consortium", "--federation", "private-digits")
        fingerprint.write_text(await run(*init, who=who))
    root = fingerprint.read_text().strip()
    policy = ("--max-epsilon", level, "--must-be-private", "expert")
    for site in SITES:
        if not (here / site / "site.toml").exists():
            init = ("ddm-site", "init", here / site, "--name", site, "--root", root)
            await run(*init, *policy, who=who)
    requests = [here / site / "enrolment.dsse.json" for site in SITES]
    await run("ddm-coord", "roster", "add", *requests, *at, who=who)
    if not (here / "consortium" / "published" / "plan.dsse.json").exists():
        await run("ddm-coord", "publish", plan, *at, who=who)
    for site, digits in SITES.items():
        await release(here, site, digits, who)
    if not (here / "ensemble").exists():
        await run("ddm-coord", "admit", *at, who=who)
        await run("ddm-coord", "assemble", here / "ensemble", *at, who=who)
    if not (here / "samples" / "samples.json").exists():
        options = ("--count", SAMPLES, "--steps", 15, "--no-png", "--out", here / "samples")
        await run("ddm-coord", "sample", here / "ensemble", "--root", root, *options, who=who)


async def release(here: Path, site: str, digits: range, who: str) -> None:
    """Lets one site do its whole job and hand in what it released, as far as that is not done."""
    source = f"digits:{digits[0]}-{digits[-1]}"
    at = ("--site", here / site, "--plan", here / "consortium" / "published")
    if not any((here / site / "outbox" / "released").iterdir()):
        # --yes: seven of the ten classes are at other sites, which `train` would ask about
        await run("ddm-site", "train", *at, "--data", source, "--yes", who=who)
        await run("ddm-site", "review", *at, who=who)
        await run("ddm-site", "release", *at, who=who)
    if not (here / "ensemble").exists():
        await run("ddm-site", "submit", *at, "--to", here / "consortium" / "inbox", who=who)


def drawn(level: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the samples of a federation in the values of real digits, and their classes."""
    with np.load(folder(level) / "samples" / "samples.npz") as archive:
        return archive["images"].reshape(SAMPLES, -1) * (16 / 255), archive["labels"]


def show() -> None:
    """Prints how far samples are from real digits, and what a classifier learns from them."""
    digits = load_digits()
    real, target = digits.data, digits.target
    judge = SVC(C=10, gamma=0.001).fit(real[::2], target[::2])
    rows = [
        [
            "half of the real digits",
            f"{frechet_distance(real[1::2], real[::2]):.0f}",
            f"{judge.score(real[1::2], target[1::2]):.3f}",
            f"{judge.score(real[1::2], target[1::2]):.3f}",
        ]
    ]
    facts = {}
    for level in LEVELS:
        images, labels = drawn(level)
        learned = SVC(C=10, gamma=0.001).fit(images, labels)
        figures = (
            frechet_distance(real, images),
            float(judge.score(images, labels)),
            float(learned.score(real, target)),
        )
        facts[level] = dict(zip(("frechet", "told", "useful"), figures, strict=True))
        rows.append([f"samples at epsilon {level}", f"{figures[0]:.0f}", *map(_three, figures[1:])])
    console.show_table(
        "Distance from real digits (Frechet); how many samples are told to be what was asked for; "
        "how many real digits a classifier of samples tells",
        ["images", "distance", "told", "useful"],
        rows,
    )
    (RUN / "figures.json").write_text(json.dumps(facts))


def _three(value: float) -> str:
    return f"{value:.3f}"


def write_picture() -> None:
    """Writes a row for every digit: real ones, then samples of each epsilon."""
    digits = load_digits()
    picture = []
    for digit in range(10):
        picture.append(digits.data[digits.target == digit][:REAL])
        for level in LEVELS:
            images, labels = drawn(level)
            picture.append(images[labels == digit][:PER_CLASS])
    grid = torch.from_numpy(np.concatenate(picture)).float().reshape(-1, 1, 8, 8) / 8 - 1
    write_grid(RUN / "digits.png", grid, columns=REAL + PER_CLASS * len(LEVELS))


if __name__ == "__main__":
    run_all(main)
