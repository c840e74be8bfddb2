"""What is known of an ensemble: its sites and their shares, its router, its samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ddm_fed.ensemble.compare_routers import compare_routers
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.load import asks_centroids, load_router, release_of
from ddm_fed.ensemble.replay import BuildOptions
from ddm_fed.mixture import location_of
from ddm_fed.report.evaluation_facts import read_evaluation_facts
from ddm_fed.report.facts import (
    MemberFacts,
    ModelFacts,
    Sources,
    Unknown,
    hold_against,
    members_of,
    typed,
    unknown_of_attacks,
    unknown_of_images,
)
from ddm_fed.report.sample_facts import EnsembleSamples, read_ensemble_samples
from ddm_fed.router import TimeQuality


@dataclass(frozen=True)
class EnsembleMember(MemberFacts):
    """One site of an ensemble, whose release is in it.

    Attributes:
        units: How many images or patients it says it has: noisy, as released.
        share: Which part of the samples it is due, whatever is asked for.
    """

    units: float
    share: float


@dataclass(frozen=True)
class EnsembleFacts(ModelFacts):
    """All that a report of an ensemble says.

    Attributes:
        calibration: How well routers know whose image they see, or None.
    """

    verified: VerifiedEnsemble
    members: tuple[EnsembleMember, ...]
    samples: EnsembleSamples | None
    calibration: Mapping[str, Sequence[TimeQuality]] | None


def gather(verified: VerifiedEnsemble, sources: Sources) -> EnsembleFacts:
    """Returns what is known of a verified ensemble.

    Raises:
        StateError: samples or evaluation are of something else, or it is stale.
        DataError: they are damaged.
        RefusedError: the newer documents do not continue the ensemble's own.
    """
    staleness, head = hold_against(verified, sources.seen)
    samples = evaluation = calibration = None
    if sources.samples is not None:
        samples = read_ensemble_samples(sources.samples, verified)
    if sources.evaluation is not None:
        evaluation = read_evaluation_facts(sources.evaluation, verified, samples)
    if sources.router_samples and not asks_centroids(verified, None):
        calibration = _calibration(verified, sources.router_samples)
    found = EnsembleFacts(
        verified=verified,
        members=tuple(_members(verified)),
        staleness=staleness,
        held_against=head,
        samples=samples,
        evaluation=evaluation,
        calibration=calibration,
        unknown=(),
        verify_command=typed(verified, "verify"),
        sample_command=typed(verified, "sample", "--out", "samples"),
    )
    return replace(found, unknown=tuple(_unknown(found)))


def _members(verified: VerifiedEnsemble) -> Iterator[EnsembleMember]:
    plan, shares = verified.trust.plan, load_router(verified).log_prior(None).exp().tolist()
    for bundle, member, share in zip(verified.bundles, members_of(verified), shares, strict=True):
        units = location_of(plan, release_of(bundle)).count
        yield EnsembleMember(**vars(member), units=units, share=share)


def _calibration(verified: VerifiedEnsemble, samples_per_site: int) -> dict[str, list[TimeQuality]]:
    built = verified.record.built
    seed = 2 if built is not None and built.seed == 1 else 1  # not the router's own images
    options = BuildOptions(kind="mixture", samples_per_site=samples_per_site, seed=seed)
    return compare_routers(verified, [], options)


def _unknown(found: EnsembleFacts) -> Iterator[Unknown]:
    verified = found.verified
    yield from unknown_of_images(found, "what its images look like, and which shares sites obtain")
    if found.calibration is None:
        more = ["--embedder-weights", "WEIGHTS"] if asks_centroids(verified, None) else []
        yield Unknown(
            "how well its router knows whose image it sees",
            typed(verified, "router compare", *more),
        )
    yield from unknown_of_attacks(found)
