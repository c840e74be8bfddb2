"""A student at work: loaded as one expert, sampled as an ensemble is, with no site involved."""

from collections.abc import Sequence
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
from ddm_fed.flows import Expert
from ddm_fed.models import build_expert
from ddm_fed.progress import Advance
from ddm_fed.router import PriorRouter

NAME = "student"


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
    pool = ExpertPool([partial(_network, verified)], devices=devices[:1], precision=precision)
    pool.load_all()
    classes = max(1, len(verified.trust.plan.data.classes))
    return Ensemble(pool, PriorRouter(torch.ones((1, classes))))


def _network(verified: VerifiedStudent) -> Expert:
    weights = read_verified(
        verified.folder / WEIGHTS_FILE,
        verified.weights_sha256,
        most_bytes=verified.record.size_bytes,
        what=f"`{WEIGHTS_FILE}`",
    )
    return build_expert(verified.trust.plan.data, verified.record.design, weights, None)


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
    units = [float(count) for count in record.class_units]
    content = Content(
        data,
        torch.tensor(units, dtype=torch.float64) if data.classes else None,
        record.distillation.training.label_dropout > 0,
        one_network=True,
    )
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
        content,
        out,
        options,
        source,
        experts=(NAME,),
        decoder=decoder,
        advance=advance,
    )
