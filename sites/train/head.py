"""The second job of a site under a plan with heads: train its head against the published reference.

It leaves in a second bundle: the first, with the head. Under a plan with `privacy.sgd` the head is
trained with noise; its secret lies in the private folder until it is complete, so that a killed run
is repeated bit for bit and spends nothing twice.
"""

import json
import secrets
from pathlib import Path

import torch
from torch import Tensor

from ddm_fed.bundle.policy import HEAD_PURPOSE
from ddm_fed.bundle.reference import VerifiedReference
from ddm_fed.bundle.verify import HEAD_FILE
from ddm_fed.errors import CheckpointError, OptionError
from ddm_fed.privacy import ImageSet, Origin, Private, Randomness, fresh_secret
from ddm_fed.progress import QUIET, Watch
from ddm_fed.records import HeadFacts, NonPrivateEvent, Plan, SampledGaussianEvent, sha256_hex
from ddm_fed.router import (
    HeadNoise,
    PooledReference,
    fit_head,
    fit_private_head,
    heads_spec,
    pooled_reference,
)
from ddm_fed.storage.files import write_atomically
from ddm_fed.storage.tensors import write_tensors
from ddm_fed.training.plan_cost import planned_events
from ddm_fed.trust import Trust
from ddm_fed.trust.log import Log
from sites.outbox.stages import require_number_left
from sites.privacy.ledger import SiteLedger, open_ledger
from sites.privacy.policy import require_policy
from sites.train.expert import paid_event, recorded, released_location
from sites.train.pipeline import (
    record_head,
    recorded_head,
    require_member,
    require_trained_on,
    write_draft,
)
from sites.train.space import require_space
from sites.workspace import SiteFolder

RUN_FILE = "head-run.json"  # the secret of a head in the making


def run_head(
    site: SiteFolder,
    trust: Trust,
    log: Log,
    reference: VerifiedReference,
    data: Private[ImageSet],
    *,
    seed: int | None = None,
    watch: Watch = QUIET,
    randomness: Randomness | None = None,
) -> Path:
    """Returns the signed draft bundle of `site` with its head.

    A head that is there for this reference is not trained again.

    Args:
        site: The site, which has trained its expert.
        trust: The verified plan and rosters.
        log: The log.
        reference: What the head is trained against.
        data: The images the expert was trained on.
        seed: For reproducible experiments without noise; random and secret otherwise.
        watch: Told how it goes.
        randomness: For tests: where noise comes from. What is made with it is refused everywhere.

    Raises:
        StateError: the site has not trained yet, or is no member.
        BudgetError: the head would exceed a limit; found out before its training.
        CheckpointError: these are other images than the expert's.
    """
    require_member(site, trust)
    require_number_left(site, log)
    plan, work = trust.plan, site.work(trust.plan_sha256)
    require_space(data, plan)
    data_sha256 = data.reveal().digest()
    require_trained_on(work, data_sha256)
    require_policy(site.settings, plan, recorded(work).design)
    facts = HeadFacts(reference_sha256=reference.sha256, steps=heads_spec(plan).head.steps)
    made = recorded_head(work)
    if made is not None and made[0] == facts:
        watch.say("the head is trained already")
        return write_draft(site, trust, log)
    pool, ledger = pooled_reference(plan, reference.releases), open_ledger(site, log)
    if plan.privacy.sgd is None:
        generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)
        weights = fit_head(data, plan, pool, generator, watch)
        ledger.append(
            trust.plan_sha256,
            HEAD_PURPOSE,
            "no-noise",
            NonPrivateEvent(),
            plan.privacy.unit,
        )
        origin: Origin = "csprng"
    else:
        if seed is not None:
            raise OptionError(
                "--seed is not allowed in training with noise",
                hint="leave it out: all that is drawn follows from a secret",
            )
        run = _HeadRun(work, trust, ledger, data_sha256, reference.sha256, randomness)
        weights, origin = run.fit(data, pool, watch)
    write_tensors(work / HEAD_FILE, weights)
    record_head(work, facts, data_sha256, origin)
    (work / RUN_FILE).unlink(missing_ok=True)
    return write_draft(site, trust, log)


class _HeadRun:
    """A head in the making, with noise."""

    def __init__(
        self,
        work: Path,
        trust: Trust,
        ledger: SiteLedger,
        data_sha256: str,
        reference_sha256: str,
        randomness: Randomness | None,
    ) -> None:
        self._work, self._trust, self._ledger = work, trust, ledger
        self._of = {"data_sha256": data_sha256, "reference_sha256": reference_sha256}
        self._file = work / RUN_FILE
        known = json.loads(self._file.read_bytes()) if self._file.exists() else None
        if known is not None and {name: known[name] for name in self._of} != self._of:
            raise CheckpointError(
                "a head for another reference, or of other images, is half trained",
                hint=f"remove {self._file} to give it up; what it cost stays spent",
            )
        self._known = known
        if known is not None:
            ledger.require_entry(known["paid_sha256"])
            self._randomness = Randomness.from_hex(known["secret"], known["origin"])
        else:
            self._randomness = randomness or fresh_secret()

    def fit(
        self, data: Private[ImageSet], pool: PooledReference, watch: Watch
    ) -> tuple[dict[str, Tensor], Origin]:
        """Returns the head's weights, and where their noise is from."""
        plan = self._trust.plan
        event, noise = _head_noise(self._work, plan)
        weights = fit_private_head(
            data,
            plan,
            pool,
            noise,
            self._randomness,
            pay=lambda: self._pay(event),
            watch=watch,
        )
        return weights, self._randomness.origin

    def _pay(self, event: SampledGaussianEvent) -> SampledGaussianEvent:
        """Writes the ledger entry, then the secret: a kill between the two costs budget only.

        Returns the event that the ledger has.
        """
        if self._known is not None:
            return paid_event(self._ledger.require_entry(self._known["paid_sha256"])[-1])
        self._ledger.require_budget([event], self._trust.plan)
        entry = self._ledger.append(
            self._trust.plan_sha256, HEAD_PURPOSE, "dp-sgd", event, self._trust.plan.privacy.unit
        )
        run = self._of | {
            "paid_sha256": sha256_hex(entry.to_json()),
            "secret": self._randomness.hex,
            "origin": self._randomness.origin,
        }
        write_atomically(self._file, json.dumps(run).encode(), mode=0o600)
        return paid_event(entry)


def _head_noise(work: Path, plan: Plan) -> tuple[SampledGaussianEvent, HeadNoise]:
    event, sgd = planned_events(plan).head, plan.privacy.sgd
    if event is None or sgd is None or sgd.head is None:
        raise TypeError("the plan trains heads without noise")
    units = max(1.0, released_location(work, plan).count)
    return event, HeadNoise(
        event, float(sgd.head.clip_norm), sgd.head.draws, units * float(event.sampling_rate)
    )
