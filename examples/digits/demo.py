"""Three hospital-like sites, digits of their own, one verified ensemble: `make demo`.

Runs the real commands as separate processes, each site with its own folder and key, all sites at
the same time, and ends with a picture and two tables in demo-run/. Run it again after a kill and it
continues; remove demo-run/ to start afresh. No image leaves a site; only this script, which plays
all parts, sees all of them.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from processes import CORES, run, run_all, together
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from taken_up import say_taken_up

from ddm_fed import console
from ddm_fed.evaluation import site_share_error
from ddm_fed.pictures import write_grid

HERE = Path(__file__).parent
RUN = Path("demo-run")
SITES = {"hospital-a": range(5), "hospital-b": range(5, 8), "hospital-c": range(8, 10)}
STRATEGIES = ("sticky", "sticky-then-routed", "full", "top-1")
SAMPLES = 2000
SOLVER = ("--solver", "dpm++2m", "--steps", 15)
PER_CLASS = 8


async def main() -> None:
    """Runs the federation from the first key to the picture."""
    started = time.monotonic()
    RUN.mkdir(exist_ok=True)
    say_taken_up(RUN, parts())
    root = await set_up()
    await together(train_and_send(site) for site in SITES)
    if not (RUN / "ensemble").exists():
        await coord("admit")
        await coord("assemble", RUN / "ensemble")
    # From here on, anyone could do it: the folder and the fingerprint are enough.
    verified = json.loads(
        await run("ddm-coord", "verify", RUN / "ensemble", "--root", root, "--json")
    )
    drawing = [draw(strategy, root) for strategy in STRATEGIES]
    receipts = [send(site) for site in SITES]  # the coordinator has signed them by now
    await together([*drawing, *receipts], most=CORES)
    show_bundles(verified)
    show_shares()
    write_picture()
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.say(f"\nDone in {minutes} min {seconds} s. Where to look:")
    console.say(f"  {RUN / 'digits.png'}: real digits on the left, samples on the right")
    console.say(f"  {RUN / 'ensemble'}: the signed ensemble; verify it with --root {root}")
    console.say(f"  {', '.join(str(RUN / f'samples-{name}') for name in STRATEGIES)}")
    console.say(f"  ddm-site ledger --site {RUN / 'hospital-a'}: what that site has spent")


def parts() -> dict[str, Path]:
    """Returns what the demo makes, and where each part is once it is done."""
    bundles = {f"the bundle of {site}": RUN / site / "outbox" / "released" for site in SITES}
    drawn = {f"samples {name}": RUN / f"samples-{name}" / "samples.json" for name in STRATEGIES}
    keys = {"keys and plan": RUN / "consortium" / "published" / "plan.dsse.json"}
    return {**keys, **bundles, "the ensemble": RUN / "ensemble", **drawn}


async def set_up() -> str:
    """Makes coordinator and sites, enrols them, publishes; returns the fingerprint to pin."""
    fingerprint = RUN / "fingerprint.txt"  # in life: read out by telephone
    if not (RUN / "consortium" / "coordinator.toml").exists():
        made = await run("ddm-coord", "init", RUN / "consortium", "--federation", "digits")
        fingerprint.write_text(made)
    root = fingerprint.read_text().strip()
    for site in SITES:
        if not (RUN / site / "site.toml").exists():
            await run("ddm-site", "init", RUN / site, "--name", site, "--root", root)
    await coord("roster", "add", *(RUN / site / "enrolment.dsse.json" for site in SITES))
    if not (RUN / "consortium" / "published" / "plan.dsse.json").exists():
        await coord("publish", HERE / "plan.toml")
    return root


async def train_and_send(site: str) -> None:
    """Lets one site do its whole job and hand in what it released, as far as that is not done."""
    if not any((RUN / site / "outbox" / "released").iterdir()):
        digits = SITES[site]
        await site_command(site, "train", "--data", f"digits:{digits[0]}-{digits[-1]}")
        await site_command(site, "review")
        await site_command(site, "release")
    if not (RUN / "ensemble").exists():
        await send(site)


async def send(site: str) -> None:
    """Hands in what was released, or fetches the receipt for it."""
    await site_command(site, "submit", "--to", RUN / "consortium" / "inbox")


async def draw(strategy: str, root: str) -> None:
    """Samples the ensemble with one strategy, unless that is done."""
    out = RUN / f"samples-{strategy}"
    if not (out / "samples.json").exists():
        options = ("--strategy", strategy, "--count", SAMPLES, *SOLVER, "--no-png", "--out", out)
        await run("ddm-coord", "sample", RUN / "ensemble", "--root", root, *options, who=strategy)


def show_bundles(verified: dict) -> None:
    """Prints what the ensemble holds and what it cost each site."""
    console.show_table(
        "Verified bundles",
        ["site", "submission", "router epsilon", "expert"],
        [
            [
                member["site"],
                member["submission_sha256"][:16] + "…",
                f"{member['router_epsilon']} (delta 1e-5)",
                "private" if member["expert_is_private"] else "no guarantee",
            ]
            for member in verified["members"]
        ],
    )


def show_shares() -> None:
    """Prints the share of every site: of the images, as released, and as obtained."""
    digits = load_digits()
    judge = digit_classifier()
    owner = np.array([i for i, own in enumerate(SITES.values()) for _ in own])
    true = np.bincount(owner[digits.target]) / len(digits.target)
    summary = json.loads((RUN / "samples-sticky" / "samples.json").read_text())
    intended = [summary["intended_shares"][site] for site in SITES]
    # Sticky knows which site it drew; for all, a classifier tells the digit, hence the site.
    counts = {"sticky drawn": np.array([summary["site_counts"][site] for site in SITES])}
    for strategy in STRATEGIES:
        told = owner[judge(samples(strategy))]
        counts[f"{strategy} told"] = np.bincount(told, minlength=len(SITES))
    errors = {name: site_share_error(intended, found.tolist()) for name, found in counts.items()}
    chance = errors["sticky drawn"].expected_by_chance
    rows = [
        [site, f"{true[i]:.3f}", f"{intended[i]:.3f}"]
        + [f"{found[i] / SAMPLES:.3f}" for found in counts.values()]
        for i, site in enumerate(SITES)
    ]
    rows.append(
        ["error", "", f"chance {chance:.3f}"] + [f"{errors[name].error:.3f}" for name in counts]
    )
    console.show_table(
        f"Site shares in {SAMPLES} samples: as drawn, or as a digit classifier tells",
        ["site", "images", "released", *(name.removeprefix("sticky-then-") for name in counts)],
        rows,
    )
    console.say("top-1 lets small sites vanish, even with good experts: it is never the default")
    facts = {
        "true": true.tolist(),
        "intended": intended,
        "obtained": {name: (found / SAMPLES).tolist() for name, found in counts.items()},
        "site_share_error": {name: error.error for name, error in errors.items()},
        "expected_by_chance": chance,
    }
    (RUN / "shares.json").write_text(json.dumps(facts, indent=2))


def write_picture() -> None:
    """Writes ten rows, one per digit: real ones on the left, samples on the right."""
    digits = load_digits()
    drawn = samples("sticky")
    told = digit_classifier()(drawn)
    real = torch.from_numpy(digits.images / 8 - 1)
    made = torch.from_numpy(drawn / 127.5 - 1)
    grey = torch.zeros(8, 8)
    cells = []
    for digit in range(10):
        for images, labels in ((real, digits.target), (made, told)):
            found = list(images[torch.from_numpy(labels == digit)][:PER_CLASS])
            cells += found + [grey] * (PER_CLASS - len(found) + (images is real))
    write_grid(RUN / "digits.png", torch.stack(cells)[:, None].float(), columns=2 * PER_CLASS + 1)


def samples(strategy: str) -> np.ndarray:
    """Returns the samples of a strategy, `(N, 8, 8)`, 0 to 255."""
    with np.load(RUN / f"samples-{strategy}" / "samples.npz") as archive:
        return archive["images"][:, 0]


def digit_classifier() -> Callable[[np.ndarray], np.ndarray]:
    """Returns a judge that was trained on all real digits: `(N, 8, 8) -> digit (N,)`."""
    digits = load_digits()
    machine = SVC(gamma=0.001).fit(digits.data, digits.target)
    return lambda images: machine.predict(images.reshape(len(images), -1) / 255 * 16)


async def coord(command: str, *arguments: object) -> None:
    """Runs a command of the coordinator."""
    await run("ddm-coord", command, *arguments, "--coordinator", RUN / "consortium")


async def site_command(site: str, command: str, *arguments: object) -> None:
    """Runs a command of a site."""
    published = RUN / "consortium" / "published"
    at = ("--site", RUN / site, "--plan", published)
    await run("ddm-site", command, *at, *arguments, who=site)


if __name__ == "__main__":
    run_all(main)
