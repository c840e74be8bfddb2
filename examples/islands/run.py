"""One owner, several machines: islands that train apart and become one verified ensemble.

    python examples/islands/run.py setup images.npz --plan examples/islands/plan.toml --islands 4
    python examples/islands/run.py train 1     # on any machine that sees the folder; 2, 3, 4 too
    python examples/islands/run.py finish

`all` in place of `setup` does everything on this machine, one core an island. The islands are sites
like any other, so everything is signed and verified; only nobody has to be asked. What is done
already is not done again, so each line can be repeated after a kill. See README.md here for Slurm
and containers.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FEDERATION_LINE = "federation"


def run(program: str, *words: object, cores: int | None = None) -> str:
    """Runs one of our commands, shows what it says, and returns its stdout."""
    command = [str(Path(sys.executable).with_name(program)), *map(str, words)]
    limits = {} if cores is None else {"OMP_NUM_THREADS": str(cores)}
    print("$", program, *words, flush=True)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, env=os.environ | limits, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"`{program} {words[0]}` failed; run this again once that is mended")
    return done.stdout


def setup(options: argparse.Namespace) -> None:
    """Divides the images, makes keys for everybody, and publishes the plan."""
    out, hub = options.out, options.out / "coordinator"
    if not (out / "shards").exists():
        chosen = ["--features", options.features]
        if options.weights is not None:
            chosen += ["--weights", options.weights]
        run(
            *("ddm-coord", "partition", options.images, "--islands", options.islands),
            *("--out", out, "--plan", options.plan, *chosen),
        )
    if not (hub / "coordinator.toml").exists():
        name = next(
            line.partition("=")[2].strip().strip('"')
            for line in options.plan.read_text().splitlines()
            if line.startswith(FEDERATION_LINE)
        )
        root = run("ddm-coord", "init", hub, "--federation", name).strip()
        (out / "fingerprint.txt").write_text(root)
    root = (out / "fingerprint.txt").read_text().strip()
    sites = [out / f"island-{number}" for number in range(1, options.islands + 1)]
    for site in sites:
        if not (site / "site.toml").exists():
            run("ddm-site", "init", site, "--name", site.name, "--root", root)
    requests = [site / "enrolment.dsse.json" for site in sites]
    if not (hub / "published" / "plan.dsse.json").exists():
        run("ddm-coord", "roster", "add", *requests, "--coordinator", hub)
        run("ddm-coord", "publish", out / "plan.toml", "--coordinator", hub)


def train(options: argparse.Namespace, number: int, cores: int | None = None) -> None:
    """Trains one island's expert, and hands it in. A killed run goes on."""
    out = options.out
    site, hub = out / f"island-{number}", out / "coordinator"
    common = ("--site", site, "--plan", hub / "published")
    shard = out / "shards" / f"island-{number}.npy"
    if not any((site / "outbox" / "released").iterdir()):
        run("ddm-site", "train", *common, "--data", shard, "--yes", *options.more, cores=cores)
        run("ddm-site", "review", *common)
        run("ddm-site", "release", *common)
    if not (out / "ensemble").exists():
        run("ddm-site", "submit", *common, "--to", hub / "inbox")


def finish(options: argparse.Namespace) -> None:
    """Verifies what the islands handed in, and makes one ensemble and some samples of it."""
    out, hub = options.out, options.out / "coordinator"
    root = (out / "fingerprint.txt").read_text().strip()
    if not (out / "ensemble").exists():
        run("ddm-coord", "admit", "--coordinator", hub)
        run("ddm-coord", "assemble", out / "ensemble", "--coordinator", hub)
    if not (out / "samples").exists():
        run("ddm-coord", "sample", out / "ensemble", "--root", root, "--out", out / "samples")
    print(f"{out / 'ensemble'}, fingerprint {root}; samples in {out / 'samples'}")


def main() -> None:
    """Runs the stages that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    for name in ("setup", "all"):
        stage = stages.add_parser(name)
        stage.add_argument("images", type=Path, help=".npy or .npz")
        stage.add_argument("--plan", type=Path, required=True, help="of one network for all images")
        stage.add_argument("--islands", type=int, default=4)
        stage.add_argument("--features", default="cosines", help="clip, timm:NETWORK, random")
        stage.add_argument("--weights", type=Path, help="of that network")
        stage.add_argument("--out", type=Path, default=Path("islands-run"))
    stages.choices["all"].add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    one = stages.add_parser("train")
    one.add_argument("number", type=int)
    for stage in (one, stages.add_parser("finish")):
        stage.add_argument("--out", type=Path, default=Path("islands-run"))
    options, options.more = parser.parse_known_args()  # the rest goes to `ddm-site train`
    if options.more and options.stage in ("setup", "finish"):
        parser.error(f"{options.stage} does not know {options.more[0]}")
    if options.stage in ("setup", "all"):
        setup(options)
    if options.stage == "train":
        train(options, options.number)
    if options.stage == "all":
        with ThreadPoolExecutor(options.jobs) as pool:
            numbers = range(1, options.islands + 1)
            list(pool.map(lambda number: train(options, number, cores=1), numbers))
    if options.stage in ("finish", "all"):
        finish(options)


if __name__ == "__main__":
    main()
