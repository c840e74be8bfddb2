"""The second job of a site under a plan with heads: train its head against the published reference.

It leaves in a second bundle: the first, with the head.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ddm_fed.bundle import HEAD_FILE
from ddm_fed.log import Log
from ddm_fed.policy import HEAD_PURPOSE
from ddm_fed.privacy import ImageSet, Private
from ddm_fed.records import HeadFacts, NonPrivateEvent
from ddm_fed.reference import VerifiedReference
from ddm_fed.router import fit_head, heads_spec, pooled_reference
from ddm_fed.signing import Trust
from ddm_fed.weights import write_tensors
from sites.folder import SiteFolder
from sites.jobs import (
    open_ledger,
    record_head,
    recorded_head,
    require_member,
    require_possible_privacy,
    require_trained_on,
    write_draft,
)


@dataclass(frozen=True)
class HeadScreen:
    """Who is told how it goes. All of it stays here."""

    on_step: Callable[[int, float], None] = lambda *_: None
    say: Callable[[str], None] = lambda _: None


def run_head(
    site: SiteFolder,
    trust: Trust,
    log: Log,
    reference: VerifiedReference,
    data: Private[ImageSet],
    *,
    seed: int | None = None,
    screen: HeadScreen | None = None,
) -> Path:
    """Returns the signed draft bundle of `site` with its head.

    A head that is there for this reference is not trained again.

    Args:
        site: The site, which has trained its expert.
        trust: The verified plan and rosters.
        log: The log.
        reference: What the head is trained against.
        data: The images the expert was trained on.
        seed: For reproducible experiments; random and secret otherwise.
        screen: Who is told.

    Raises:
        StateError: the site has not trained yet, or is no member.
        CheckpointError: these are other images than the expert's.
    """
    require_member(site, trust)
    require_possible_privacy(trust.plan)
    screen = screen or HeadScreen()
    spec, work = heads_spec(trust.plan).head, site.work(trust.plan_sha256)
    data_sha256 = data.reveal().digest()
    require_trained_on(work, data_sha256)
    facts = HeadFacts(reference_sha256=reference.sha256, steps=spec.steps)
    if recorded_head(work) == facts:
        screen.say("the head is trained already")
    else:
        generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)
        pool = pooled_reference(trust.plan, reference.releases)
        weights = fit_head(data, trust.plan, pool, generator, screen.on_step)
        open_ledger(site).append(
            trust.plan_sha256,
            HEAD_PURPOSE,
            "training without noise: no formal guarantee for the images it saw",
            NonPrivateEvent(),
        )
        write_tensors(work / HEAD_FILE, weights)
        record_head(work, facts, data_sha256)
    return write_draft(site, trust, log)
