"""A student at work: loaded as one expert, sampled as an ensemble is, with no site involved."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddm_fed.bundle.verify import read_verified
from ddm_fed.distillation.folder import WEIGHTS_FILE, VerifiedStudent
from ddm_fed.ensemble.decoding import open_decoder
from ddm_fed.ensemble.pool import ExpertPool, Precision
from ddm_fed.ensemble.sample_folder import write_samples
from ddm_fed.ensemble.sample_options import Content, SampleOptions
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.errors import OptionError
from ddm_fed.flows import Expert
from ddm_fed.models import build_expert
from ddm_fed.progress import Advance
from ddm_fed.router import PriorRouter

NAME = "student"
NO_ROUTER, ONE_NETWORK = "it has no router", "there is one network, always in memory"
OF_EXPERTS = {
    "--strategy": "there are no experts to choose from",
    "--router": NO_ROUTER,
    "--router-temperature": NO_ROUTER,
    "--attribution": "it does not know which site a sample is like",
    "--embedder-weights": NO_ROUTER,
    "--resident": ONE_NETWORK,
    "--offload": ONE_NETWORK,
}


def load_student(
    verified: VerifiedStudent,
    *,
    devices: Sequence[torch.device | str] = ("cpu",),
    precision: Precision = "float32",
) -> Ensemble:
    """Returns a verified student as an ensemble of one, ready to sample from.

    Raises:
        DigestError: the weights changed after they were verified.
    """
    pool = ExpertPool([partial(student_expert, verified)], devices=devices[:1], precision=precision)
    pool.load_all()
    classes = max(1, len(verified.trust.plan.data.classes))
    return Ensemble(pool, PriorRouter(torch.ones((1, classes))))


def student_expert(verified: VerifiedStudent) -> Expert:
    """Returns the one network of a verified student.

    Raises:
        DigestError: the weights changed after they were verified.
    """
    weights = read_verified(
        verified.folder / WEIGHTS_FILE,
        verified.weights_sha256,
        most_bytes=verified.record.size_bytes,
        what=f"`{WEIGHTS_FILE}`",
    )
    return build_expert(verified.trust.plan.data, verified.record.design, weights, None)


def student_content(verified: VerifiedStudent) -> Content:
    """Returns what a verified student says of its images."""
    record, data = verified.record, verified.trust.plan.data
    units = [float(count) for count in record.class_units]
    return Content(
        data,
        torch.tensor(units, dtype=torch.float64) if data.classes else None,
        record.distillation.training.label_dropout > 0,
        one_network=True,
    )


def require_no_experts_asked(given: Mapping[str, bool]) -> None:
    """Refuses what is said of experts and routers where there is one network.

    Args:
        given: Options by name, and whether each was given; those of `OF_EXPERTS`.

    Raises:
        OptionError: naming the option.
    """
    for option in filter(given.get, OF_EXPERTS):
        raise OptionError(
            f"{option}: a student is one network: {OF_EXPERTS[option]} (--count, --steps and "
            "--seed stay)",
            hint="leave it out, or give the ensemble that the student was made from",
        )


def sample_student(
    verified: VerifiedStudent,
    out: Path,
    options: SampleOptions,
    *,
    advance: Advance = lambda _: None,
) -> dict[str, Any]:
    """Samples a verified student, and writes what `write_samples` writes to `out`.

    No sample has a site, so there are no counts of sites in it.

    Raises:
        RefusedError: a file of the student is no longer what was verified.
        OptionError: options do not fit the plan or each other.
        DigestError: another autoencoder is given than the plan's.
        StateError: `out` holds other samples.
    """
    record, data = verified.record, verified.trust.plan.data
    decoder = open_decoder(
        options.autoencoder, data, options.devices[0], keep_latents=options.latents
    )
    ensemble = load_student(verified, devices=options.devices, precision=options.precision)
    source = {
        "federation": record.federation,
        "student_sha256": verified.sha256,
        "ensemble_sha256": record.ensemble_sha256,
        "plan_sha256": record.plan_sha256,
        "members": {member.site: member.submission_sha256 for member in record.members},
        "router": None,
        "strategy": None,
    }
    return write_samples(
        ensemble,
        student_content(verified),
        out,
        options,
        source,
        experts=(NAME,),
        decoder=decoder,
        advance=advance,
    )
