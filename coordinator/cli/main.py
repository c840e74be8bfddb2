"""`ddm-coord`: what a consortium runs. Heavy libraries are imported inside commands only."""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before anything can import flwr
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from coordinator.cli import autoencoder, export, plan, roster, router
from coordinator.cli.admit import admit
from coordinator.cli.assemble import assemble
from coordinator.cli.check_consistency import check_consistency
from coordinator.cli.distill import distill
from coordinator.cli.doctor import doctor
from coordinator.cli.import_ import import_
from coordinator.cli.init import init
from coordinator.cli.publish import publish
from coordinator.cli.reference import reference
from coordinator.cli.remove import remove
from coordinator.cli.report import report
from coordinator.cli.sample import sample
from coordinator.cli.serve import serve
from coordinator.cli.sign_model import sign_model
from coordinator.cli.status import status
from coordinator.cli.verify import verify
from coordinator.cli.web import web
from ddm_fed.commands.evaluate import evaluate
from ddm_fed.commands.keygen import keygen
from ddm_fed.commands.partition import partition
from ddm_fed.commands.program import make_program, run_program

app = make_program(
    "ddm-coord",
    {  # help shows them in this order, which is that of the work
        "Set up": (init, keygen, roster.app, autoencoder.app, partition, plan.app, publish),
        "Receive": (serve, import_, admit, status, doctor, web),
        "Assemble": (reference, assemble, router.app, distill, remove, sign_model),
        "Verify and use": (verify, check_consistency, sample, evaluate, report, export.app),
    },
    description="""Bring the experts of several sites together, and prove what came from whom.

Everything that arrives is refused unless every signature, digest and policy holds.
verify, check-consistency, sample, evaluate and report work for outsiders too. They need the
ensemble's folder and the federation's fingerprint, nothing else.""",
    epilog="""Example: ddm-coord init consortium --federation digits, then roster add, publish,
admit, assemble, sample""",
)


def main() -> None:
    """Runs `ddm-coord`; errors end with exit status 1, wrong usage with 2."""
    run_program(app, "coordinator")
