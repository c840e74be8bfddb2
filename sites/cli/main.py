"""`ddm-site`: what a data owner runs. Heavy libraries are imported inside commands only."""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before anything can import flwr
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from ddm_fed.commands.evaluate import evaluate
from ddm_fed.commands.keygen import keygen
from ddm_fed.commands.partition import partition
from ddm_fed.commands.program import make_program, run_program
from sites.cli.approve import approve
from sites.cli.audit import audit
from sites.cli.budget import budget
from sites.cli.data import app as data
from sites.cli.doctor import doctor
from sites.cli.enroll import enroll
from sites.cli.ensemble import ensemble
from sites.cli.export import export
from sites.cli.fetch import fetch
from sites.cli.head import head
from sites.cli.import_ import import_
from sites.cli.init import init
from sites.cli.ledger import ledger
from sites.cli.plan import app as plan
from sites.cli.release import release
from sites.cli.report import report
from sites.cli.review import review
from sites.cli.rotate import rotate
from sites.cli.sample import sample
from sites.cli.serve_expert import serve_expert
from sites.cli.submit import submit
from sites.cli.train import train

app = make_program(
    "ddm-site",
    {  # help shows them in this order, which is that of the work
        "Set up": (init, keygen, enroll, plan, fetch, rotate, doctor),
        "Train": (data, partition, budget, train, head, audit, ledger),
        "Review and send": (review, report, approve, release, submit, export, import_),
        "Use an ensemble": (serve_expert, ensemble, sample, evaluate),
    },
    description="""Train an expert on your own images and decide what leaves.

Nothing is sent anywhere by itself: training needs no network, and what is to leave passes
review and release first.""",
    epilog="""Example: ddm-site init hospital-a --name hospital-a --root sha256:…, then
ddm-site train --site hospital-a --plan published --data images/""",
)


def main() -> None:
    """Runs `ddm-site`; errors end with exit status 1, wrong usage with 2."""
    run_program(app, "site")
