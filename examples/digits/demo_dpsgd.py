"""Three sites train with DP-SGD, epsilon 8 for all they do: `make demo-dpsgd`.

As demo.py, with two differences: first a public checkpoint is made, from printed digits that are
nobody's; and every site trains low-rank additions to it with noise. The table at the end says how
far the samples are from real digits: before, after, and how far real digits are from each other.
"""

import hashlib
import json
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import torch
from processes import run, run_all, together
from public import printed_digits
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from taken_up import say_taken_up

from ddm_fed import console
from ddm_fed.evaluation import frechet_distance
from ddm_fed.pictures import write_grid
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.progress import Watch
from ddm_fed.records import ExpertSpec, Plan, TrainingSpec, read_plan_toml
from ddm_fed.training import RunOptions, train_expert

HERE = Path(__file__).parent
RUN = Path("demo-dpsgd-run")
SITES = {"hospital-a": range(5), "hospital-b": range(5, 8), "hospital-c": range(8, 10)}
SAMPLES, PER_CLASS = 1000, 8
NETWORK = ("DiT-Nano/2",)  # that of plan-dpsgd.toml
PUBLIC_IMAGES = 6000
PUBLIC_TRAINING = {
    "steps": 3000,
    "batch_size": 128,
    "learning_rate": Decimal("0.002"),
    "ema_half_lives": (70,),
}


async def main() -> None:
    """Runs the federation from the public checkpoint to the picture."""
    started = time.monotonic()
    RUN.mkdir(exist_ok=True)
    bundles = {f"the bundle of {site}": RUN / site / "outbox" / "released" for site in SITES}
    public = {"the public checkpoint": RUN / "plan.toml"}
    made = {"the ensemble": RUN / "ensemble", "samples": RUN / "samples" / "samples.json"}
    say_taken_up(RUN, {**public, **bundles, **made})
    plan, base = make_plan()
    await run("ddm-site", "budget", "--plan", plan, "--units", 354)
    root = await set_up(plan)
    await together(train_and_send(site, digits, base) for site, digits in SITES.items())
    if not (RUN / "ensemble").exists():
        await coord("admit")
        await coord("assemble", RUN / "ensemble")
    await draw(root)
    show()
    for site in SITES:
        await run("ddm-site", "ledger", "--site", RUN / site)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.say(f"\nDone in {minutes} min {seconds} s: see {RUN / 'digits.png'}")


def make_plan() -> tuple[Path, Path]:
    """Returns the plan, and the public checkpoint it names; makes both unless they are there."""
    plan, base = RUN / "plan.toml", RUN / "base.safetensors"
    if not plan.exists():
        text = (HERE / "plan-dpsgd.toml").read_text()
        public = public_plan()
        images, _ = printed_digits(PUBLIC_IMAGES)
        write_grid(RUN / "public.png", torch.from_numpy(images[:64, None]).float() / 127.5 - 1)
        pixels = torch.from_numpy(images[:, None]).float() / 127.5 - 1
        with console.counting("a public checkpoint", public.training.steps, "steps") as update:
            expert = train_expert(
                Private(ImageSet(pixels, None)),
                public,
                hashlib.sha256(public.to_json()).hexdigest(),
                RUN / "base.checkpoint",
                options=RunOptions(seed=0),
                watch=Watch(lambda now: update(now.step, f"loss {now.loss:.3f}")),
            )
        save_file(expert.state, base)
        digest = hashlib.sha256(base.read_bytes()).hexdigest()
        plan.write_text(text.replace("BASE", digest))
    return plan, base


def public_plan() -> Plan:
    """Returns how the public checkpoint is trained: without noise, as the sites' network is."""
    plan = read_plan_toml((HERE / "plan.toml").read_text())
    training = TrainingSpec.model_validate(PUBLIC_TRAINING)
    return plan.model_copy(
        update={"expert": ExpertSpec(architecture=NETWORK), "training": training}
    )


async def set_up(plan: Path) -> str:
    """Makes coordinator and sites, enrols them, publishes; returns the fingerprint to pin."""
    fingerprint = RUN / "fingerprint.txt"
    if not (RUN / "consortium" / "coordinator.toml").exists():
        made = await run("ddm-coord", "init", RUN / "consortium", "--federation", "private-digits")
        fingerprint.write_text(made)
    root = fingerprint.read_text().strip()
    for site in SITES:
        if not (RUN / site / "site.toml").exists():
            policy = ("--max-epsilon", 8, "--must-be-private", "expert")
            await run("ddm-site", "init", RUN / site, "--name", site, "--root", root, *policy)
    await coord("roster", "add", *(RUN / site / "enrolment.dsse.json" for site in SITES))
    if not (RUN / "consortium" / "published" / "plan.dsse.json").exists():
        await coord("publish", plan)
    return root


async def train_and_send(site: str, digits: range, base: Path) -> None:
    """Lets one site do its whole job and hand in what it released, as far as that is not done."""
    source = f"digits:{digits[0]}-{digits[-1]}"
    at = ("--site", RUN / site, "--plan", RUN / "consortium" / "published")
    if not any((RUN / site / "outbox" / "released").iterdir()):
        await run("ddm-site", "train", *at, "--data", source, "--base", base, who=site)
        await run("ddm-site", "audit", *at, "--data", source, "--canaries", 50_000, who=site)
        await run("ddm-site", "review", *at, who=site)
        await run("ddm-site", "release", *at, who=site)
    if not (RUN / "ensemble").exists():
        await run("ddm-site", "submit", *at, "--to", RUN / "consortium" / "inbox", who=site)


async def draw(root: str) -> None:
    """Samples the ensemble, unless that is done."""
    if not (RUN / "samples" / "samples.json").exists():
        options = ("--count", SAMPLES, "--steps", 15, "--no-png", "--out", RUN / "samples")
        await run("ddm-coord", "sample", RUN / "ensemble", "--root", root, *options)


def show() -> None:
    """Prints how far samples are from real digits, and writes real ones beside them."""
    digits = load_digits()
    real = digits.images.reshape(len(digits.images), -1)
    with np.load(RUN / "samples" / "samples.npz") as archive:
        drawn = archive["images"].reshape(SAMPLES, -1) * (16 / 255)
    public = printed_digits(SAMPLES, seed=1)[0].reshape(SAMPLES, -1) * (16 / 255)
    judge = SVC(C=10, gamma=0.001).fit(real, digits.target)
    rows = []
    for name, images in (
        ("half of the real digits", real[::2]),
        ("samples of the private ensemble", drawn),
        ("printed digits, where it started", public),
    ):
        other = real[1::2] if name.startswith("half") else real
        margins = np.sort(judge.decision_function(images), axis=1)
        sure = float((margins[:, -1] - margins[:, -2] > 1).mean())
        rows.append([name, f"{frechet_distance(other, images):.0f}", f"{sure:.2f}"])
    console.show_table(
        "How far from real digits (Frechet distance), and how many a classifier is sure of",
        ["images", "distance", "sure"],
        rows,
    )
    told = judge.predict(drawn)
    picture = []
    for digit in range(10):
        picture += [real[digits.target == digit][:PER_CLASS], drawn[told == digit][:PER_CLASS]]
    if all(len(part) == PER_CLASS for part in picture):
        grid = torch.from_numpy(np.concatenate(picture)).float().reshape(-1, 1, 8, 8) / 8 - 1
        write_grid(RUN / "digits.png", grid, columns=2 * PER_CLASS)
    shares = {site: float(np.isin(told, list(own)).mean()) for site, own in SITES.items()}
    (RUN / "shares.json").write_text(json.dumps(shares))


async def coord(*arguments: object) -> None:
    """Runs `ddm-coord` for this coordinator."""
    await run("ddm-coord", *arguments, "--coordinator", RUN / "consortium")


if __name__ == "__main__":
    run_all(main)
