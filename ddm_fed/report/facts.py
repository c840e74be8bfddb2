"""What is known of an ensemble and where it is known from; what is not known is named as such.

Everything about sites, privacy and origin follows from signed documents that were verified.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ddm_fed.bundle.verify import VerifiedBundle
from ddm_fed.ensemble.compare_routers import compare_routers
from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.load import asks_centroids, load_router, release_of
from ddm_fed.ensemble.replay import BuildOptions
from ddm_fed.ensemble.staleness import Staleness, find_staleness
from ddm_fed.mixture import location_of
from ddm_fed.privacy import submission_in_words
from ddm_fed.records import LogHead, PrivacyStatement, Role
from ddm_fed.report.evaluation_facts import EvaluationFacts, read_evaluation_facts
from ddm_fed.report.sample_facts import SampleFacts, read_sample_facts
from ddm_fed.router import TimeQuality
from ddm_fed.trust import RosterChain
from ddm_fed.trust.log import Log

ROLES: Mapping[Role, str] = {"site": "the site", "dpo": "its data-protection officer"}


@dataclass(frozen=True)
class Unknown:
    """Something that is not known, and the command that finds it out."""

    what: str
    command: str


@dataclass(frozen=True)
class MemberFacts:
    """One site of an ensemble, as it signed and as the log admitted it.

    Attributes:
        bundle: What verifies.
        signed_by: Whose signatures it needs and has.
        log_index: Its place in the log.
        admitted_at: When it was admitted, by the coordinator's receipt.
        units: How many images or patients it says it has: noisy, as released.
        share: Which part of the samples it is due, whatever is asked for.
        sentences: What its manifest promises, in words.
    """

    bundle: VerifiedBundle
    signed_by: tuple[str, ...]
    log_index: int
    admitted_at: datetime
    units: float
    share: float
    sentences: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the site."""
        return self.bundle.site

    @property
    def privacy(self) -> PrivacyStatement:
        """What its manifest says that it cost."""
        return self.bundle.submission.privacy

    @property
    def unbounded(self) -> tuple[str, ...]:
        """What of it no epsilon bounds."""
        parts = {"expert": self.privacy.expert_is_private, "head": self.privacy.head_is_private}
        return tuple(name for name, private in parts.items() if private is False)


@dataclass(frozen=True)
class Sources:
    """What is at hand beside the ensemble.

    Attributes:
        samples: Folder of samples.
        evaluation: Folder or file of their evaluation.
        router_samples: Images to draw from each expert to judge the router by; 0 does not.
        seen: The newest rosters and log.
    """

    samples: Path | None = None
    evaluation: Path | None = None
    router_samples: int = 0
    seen: tuple[RosterChain, Log] | None = None


@dataclass(frozen=True)
class EnsembleFacts:
    """All that a report of an ensemble says.

    Attributes:
        verified: The ensemble.
        members: Its sites, in its order.
        staleness: What newer documents speak against it; None where there are none at hand.
        held_against: The head of the newer log.
        samples: Samples of it, or None.
        evaluation: How good they are, or None.
        calibration: How well routers know whose image they see, or None.
        unknown: What is not known.
        verify_command: What verifies it, anywhere.
        sample_command: What samples it.
    """

    verified: VerifiedEnsemble
    members: tuple[MemberFacts, ...]
    staleness: Staleness | None
    held_against: LogHead | None
    samples: SampleFacts | None
    evaluation: EvaluationFacts | None
    calibration: Mapping[str, Sequence[TimeQuality]] | None
    unknown: tuple[Unknown, ...]
    verify_command: str
    sample_command: str

    @property
    def unbounded(self) -> tuple[MemberFacts, ...]:
        """The members of which something is bounded by no epsilon."""
        return tuple(member for member in self.members if member.unbounded)

    @property
    def largest_epsilon(self) -> float:
        """The largest epsilon of what members released with noise."""
        return max(float(member.privacy.releases_epsilon) for member in self.members)

    @property
    def absent(self) -> tuple[str, ...]:
        """The sites of the roster that are no members."""
        names = {member.name for member in self.members}
        return tuple(
            site.name for site in self.verified.trust.roster.sites if site.name not in names
        )


def gather(verified: VerifiedEnsemble, sources: Sources) -> EnsembleFacts:
    """Returns what is known of a verified ensemble.

    Raises:
        StateError: samples or evaluation are another ensemble's.
        DataError: they are damaged.
        RefusedError: the newer documents do not continue the ensemble's own.
    """
    samples = evaluation = staleness = head = None
    if sources.samples is not None:
        samples = read_sample_facts(sources.samples, verified)
    if sources.evaluation is not None:
        known = None if samples is None else samples.sha256
        evaluation = read_evaluation_facts(sources.evaluation, verified.sha256, known)
    if sources.seen is not None:
        staleness, head = find_staleness(verified, *sources.seen), sources.seen[1].head
    calibration = None
    if sources.router_samples and not asks_centroids(verified, None):
        calibration = _calibration(verified, sources.router_samples)
    found = EnsembleFacts(
        verified=verified,
        members=_members(verified),
        staleness=staleness,
        held_against=head,
        samples=samples,
        evaluation=evaluation,
        calibration=calibration,
        unknown=(),
        verify_command=_typed(verified, "verify"),
        sample_command=_typed(verified, "sample", "--out", "samples"),
    )
    return EnsembleFacts(**vars(found) | {"unknown": tuple(_unknown(found))})


def _members(verified: VerifiedEnsemble) -> tuple[MemberFacts, ...]:
    trust, shares = verified.trust, load_router(verified).log_prior(None).exp().tolist()
    found = []
    for bundle, member, share in zip(
        verified.bundles, verified.record.members, shares, strict=True
    ):
        listed = trust.chain.site(bundle.site)
        receipt = verified.log.entries[member.log_index].receipt
        if listed is None or receipt is None:  # verification required both
            raise ValueError(f"a member without a place in roster or log: {bundle.site}")
        found.append(
            MemberFacts(
                bundle=bundle,
                signed_by=tuple(ROLES[role] for role in listed.require_at(member.log_index)),
                log_index=member.log_index,
                admitted_at=receipt.admitted_at,
                units=location_of(trust.plan, release_of(bundle)).count,
                share=share,
                sentences=tuple(submission_in_words(bundle.submission)),
            )
        )
    return tuple(found)


def _calibration(verified: VerifiedEnsemble, samples_per_site: int) -> dict[str, list[TimeQuality]]:
    built = verified.record.built
    seed = 2 if built is not None and built.seed == 1 else 1  # not the router's own images
    options = BuildOptions(kind="mixture", samples_per_site=samples_per_site, seed=seed)
    return compare_routers(verified, [], options)


def _unknown(found: EnsembleFacts) -> list[Unknown]:
    verified, missing = found.verified, list[Unknown]()

    def ask(what: str, command: str, *words: str) -> None:
        missing.append(Unknown(what, _typed(verified, command, *words)))

    if found.staleness is None:
        ask(
            "whether a member was removed or a key revoked since it was made",
            "verify",
            *("--published", "PUBLISHED"),
        )
    if found.samples is None:
        ask(
            "what its images look like, and which shares sites obtain", "sample", "--out", "samples"
        )
    elif found.samples.images is None:
        ask(
            "what its images look like: the samples are latents",
            "sample",
            *("--autoencoder", "AUTOENCODER", "--out", "samples"),
        )
    if found.evaluation is None:
        missing.append(
            Unknown(
                "how good its images are, and whether any is a copy",
                "ddm-coord evaluate samples --real REAL.npz --train PUBLIC.npz",
            )
        )
    elif found.evaluation.copies is None:
        missing.append(
            Unknown(
                "whether samples are copies of training images: a coordinator has none, a site can "
                "look for its own",
                "ddm-site report --plan PUBLISHED --data IMAGES --samples samples --out site.html",
            )
        )
    if found.calibration is None:
        more = ["--embedder-weights", "WEIGHTS"] if asks_centroids(verified, None) else []
        ask("how well its router knows whose image it sees", "router compare", *more)
    if not any(member.privacy.audit for member in found.members):
        missing.append(
            Unknown(
                "what attacks on the sites' training find: no site shared the figures of an audit",
                "ddm-site audit --plan PUBLISHED --data IMAGES --controls HELD_BACK",
            )
        )
    return missing


def _typed(verified: VerifiedEnsemble, command: str, *words: str) -> str:
    root = verified.trust.root
    return shlex.join(["ddm-coord", *command.split(), verified.folder.name, "--root", root, *words])
