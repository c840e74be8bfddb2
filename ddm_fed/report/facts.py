"""What is known of a model, ensemble or student, and where from; and what is not known.

Everything about sites, privacy and origin follows from signed documents that were verified.
"""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ddm_fed.bundle.submission import read_submission
from ddm_fed.distillation.opening import Sampled, kind_of
from ddm_fed.ensemble.staleness import Staleness, find_staleness, require_not_stale
from ddm_fed.privacy import submission_in_words
from ddm_fed.records import LogHead, PrivacyStatement, Role, Submission
from ddm_fed.report.evaluation_facts import EvaluationFacts
from ddm_fed.report.sample_facts import SampleFacts
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
    """One site that took part, as it signed and as the log admitted it.

    Attributes:
        submission: What it signed.
        submission_sha256: Of the signed payload.
        files: Digests of the files that it sent, by name.
        signed_by: Whose signatures it needs and has.
        log_index: Its place in the log.
        admitted_at: When it was admitted, by the coordinator's receipt.
        sentences: What its manifest promises, in words.
    """

    submission: Submission
    submission_sha256: str
    files: Mapping[str, str]
    signed_by: tuple[str, ...]
    log_index: int
    admitted_at: datetime
    sentences: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the site."""
        return self.submission.site

    @property
    def privacy(self) -> PrivacyStatement:
        """What its manifest says that it cost."""
        return self.submission.privacy

    @property
    def unbounded(self) -> tuple[str, ...]:
        """What of it no epsilon bounds."""
        parts = {"expert": self.privacy.expert_is_private, "head": self.privacy.head_is_private}
        return tuple(name for name, private in parts.items() if private is False)


@dataclass(frozen=True)
class Sources:
    """What is at hand beside the model.

    Attributes:
        samples: Folder of samples.
        evaluation: Folder or file of their evaluation.
        router_samples: Images to draw from each expert to judge the router by; 0 does not. A
            student has neither.
        seen: The newest rosters and log.
    """

    samples: Path | None = None
    evaluation: Path | None = None
    router_samples: int = 0
    seen: tuple[RosterChain, Log] | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a report says of an ensemble and of a student alike.

    Attributes:
        verified: The ensemble, or the student.
        members: The sites, in its order.
        staleness: What newer documents speak against it; None where there are none at hand.
        held_against: The head of the newer log.
        samples: Samples of it, or None.
        evaluation: How good they are, or None.
        unknown: What is not known.
        verify_command: What verifies it, anywhere.
        sample_command: What samples it.
    """

    verified: Sampled
    members: tuple[MemberFacts, ...]
    staleness: Staleness | None
    held_against: LogHead | None
    samples: SampleFacts | None
    evaluation: EvaluationFacts | None
    unknown: tuple[Unknown, ...]
    verify_command: str
    sample_command: str

    @property
    def kind(self) -> str:
        """What it is called: ensemble, or student."""
        return kind_of(self.verified)

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


def members_of(verified: Sampled) -> tuple[MemberFacts, ...]:
    """Returns the sites of a verified ensemble or student, in its order."""
    trust, found = verified.trust, []
    for envelope, member in zip(verified.envelopes, verified.record.members, strict=True):
        what = f"the submission of `{member.site}`"
        manifest = read_submission(envelope, trust.chain, member.log_index, what=what)
        listed = trust.chain.site(member.site)
        receipt = verified.log.entries[member.log_index].receipt
        if listed is None or receipt is None:  # verification required both
            raise ValueError(f"a member without a place in roster or log: {member.site}")
        submission = manifest.statement.predicate
        found.append(
            MemberFacts(
                submission=submission,
                submission_sha256=manifest.payload_sha256,
                files={each.name: each.digest.sha256 for each in manifest.statement.subject},
                signed_by=tuple(ROLES[role] for role in listed.require_at(member.log_index)),
                log_index=member.log_index,
                admitted_at=receipt.admitted_at,
                sentences=tuple(submission_in_words(submission)),
            )
        )
    return tuple(found)


def hold_against(
    verified: Sampled, seen: tuple[RosterChain, Log] | None
) -> tuple[Staleness | None, LogHead | None]:
    """Returns what the newest rosters and log say of a model, and the head of that log.

    Raises:
        RefusedError: they do not continue its own.
        StateError: by them it is stale.
    """
    if seen is None:
        return None, None
    found = find_staleness(verified, *seen)
    require_not_stale(
        verified.folder, found, f"ask the coordinator for another {kind_of(verified)}"
    )
    return found, seen[1].head


def unknown_of_images(found: ModelFacts, of_samples: str) -> Iterator[Unknown]:
    """Yields what is not known of a model's standing, its images and their quality.

    Args:
        found: All that is known.
        of_samples: What samples would show.
    """
    verified = found.verified
    if found.staleness is None:
        yield Unknown(
            "whether a member was removed or a key revoked since it was made",
            typed(verified, "verify", "--published", "PUBLISHED"),
        )
    if found.samples is None:
        yield Unknown(of_samples, typed(verified, "sample", "--out", "samples"))
    elif found.samples.images is None:
        yield Unknown(
            "what its images look like: the samples are latents",
            typed(verified, "sample", "--autoencoder", "AUTOENCODER", "--out", "samples"),
        )
    if found.evaluation is None:
        yield Unknown(
            "how good its images are, and whether any is a copy",
            "ddm-coord evaluate samples --real REAL.npz --train PUBLIC.npz",
        )
    elif found.evaluation.copies is None:
        yield Unknown(
            "whether samples are copies of training images: a coordinator has none, a site can "
            "look for its own",
            "ddm-site report --plan PUBLISHED --data IMAGES --samples samples --out site.html",
        )


def unknown_of_attacks(found: ModelFacts) -> Iterator[Unknown]:
    """Yields what nobody knows of attacks on what the members sent."""
    if not any(member.privacy.audit for member in found.members):
        yield Unknown(
            "what attacks on the sites' training find: no site shared the figures of an audit",
            "ddm-site audit --plan PUBLISHED --data IMAGES --controls HELD_BACK",
        )


def typed(verified: Sampled, command: str, *words: str) -> str:
    """Returns a command of the coordinator's program about a model, as a person types it."""
    root = verified.trust.root
    return shlex.join(["ddm-coord", *command.split(), verified.folder.name, "--root", root, *words])
