"""Two sites train a network that a package brings, as all parts of the federation at once.

python examples/custom-expert/run.py FOLDER
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SITES = {"hospital-a": "digits:0-4", "hospital-b": "digits:5-9"}


def run(program: str, *words: object) -> str:
    """Runs a command, shows it, and returns what it says on stdout."""
    print("$", program, *words, flush=True)
    command = [str(Path(sys.executable).parent / program), *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def main(folder: Path) -> None:
    """Goes from keys to samples in `folder`."""
    hub, ensemble = folder / "consortium", folder / "ensemble"
    here = ("--coordinator", hub)
    root = run("ddm-coord", "init", hub, "--federation", "waves")
    for site in SITES:
        run("ddm-site", "init", folder / site, "--name", site, "--root", root)
    run("ddm-coord", "roster", "add", *(folder / s / "enrolment.dsse.json" for s in SITES), *here)
    run("ddm-coord", "publish", HERE / "plan.toml", *here)
    for site, data in SITES.items():
        own = ("--site", folder / site)
        plan = ("--plan", hub / "published")
        run("ddm-site", "train", *plan, "--data", data, *own)
        run("ddm-site", "review", *own, *plan)
        run("ddm-site", "release", *own, *plan)
        run("ddm-site", "submit", "--to", hub / "inbox", *own, *plan)
    run("ddm-coord", "admit", *here)
    run("ddm-coord", "assemble", ensemble, *here)
    drawn = ("--count", 16, "--out", folder / "samples")
    run("ddm-coord", "sample", ensemble, "--root", root, *drawn)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
