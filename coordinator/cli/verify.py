"""`ddm-coord verify`: what anyone can verify offline. It writes nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.options import CoordinatorOption, RootOption, pinned_root
from coordinator.cli.show_student import say_newer, show_student
from ddm_fed import console
from ddm_fed.commands.options import JsonOption
from ddm_fed.errors import OptionError
from ddm_fed.progress import Advance
from ddm_fed.storage.files import size_below

if TYPE_CHECKING:
    from ddm_fed.bundle.verify import VerifiedBundle
    from ddm_fed.distillation.opening import Sampled
    from ddm_fed.ensemble.folder import VerifiedEnsemble
    from ddm_fed.ensemble.staleness import Staleness


def verify(
    target: Annotated[
        Path,
        typer.Argument(
            help="An ensemble, a student, a published folder, or one bundle.",
            exists=True,
            file_okay=False,
        ),
    ],
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    published: Annotated[
        Path | None,
        typer.Option(
            help="Published folder. A bundle needs it. For an ensemble or a student, a newer one "
            "says whether it may still be used."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify an ensemble, student, published folder or bundle, offline. It writes nothing.

    Ends with 1 if it does not verify, or must not be used any more.

    Examples: ddm-coord verify ensemble --root sha256:3b6a… · ddm-coord verify published --root
    sha256:3b6a… · ddm-coord verify bundle --root sha256:3b6a… --published published
    """
    from ddm_fed.distillation.folder import VerifiedStudent
    from ddm_fed.distillation.opening import is_student, verify_either
    from ddm_fed.ensemble.folder import STATEMENT_FILE
    from ddm_fed.trust.published import PLAN_FILE

    pin = pinned_root(root, coordinator)
    if published is None and (coordinator / "coordinator.toml").exists():
        published = coordinator / "published"
    is_made = (target / STATEMENT_FILE).exists() or is_student(target)
    if not is_made and (target / PLAN_FILE).exists():
        _verify_published(target, pin, as_json)
        return
    with console.moving_bytes(f"verifying {target.name}", size_below(target)) as advance:
        if not is_made:
            _show_bundle(_verify_bundle(target, pin, published, advance), pin, as_json)
            return
        verified = verify_either(target, pin, advance=advance)
    newer = _staleness(verified, pin, published)
    if isinstance(verified, VerifiedStudent):
        show_student(verified, newer, as_json=as_json)
    else:
        _show_ensemble(verified, newer, as_json)
    if newer is not None and newer.stale:
        raise typer.Exit(1)


def _verify_published(folder: Path, pin: str, as_json: bool) -> None:
    from ddm_fed.distillation.facts import facts_of_published
    from ddm_fed.trust.log import read_log
    from ddm_fed.trust.published import read_published

    trust = read_published(folder, pin)
    log = read_log(folder, trust.chain)
    if as_json:
        console.show_json(facts_of_published(trust, log))
        return
    console.show_table(
        f"Verified: published folder of {trust.plan.federation}, down from {pin[:24]}…",
        ["plan", "roster", "log size", "log root"],
        [[trust.plan_sha256, str(trust.roster.version), str(log.size), log.head.root]],
    )


def _verify_bundle(
    target: Path, pin: str, published: Path | None, advance: Advance
) -> "VerifiedBundle":
    from ddm_fed.bundle.verify import verify_bundle
    from ddm_fed.records import now
    from ddm_fed.trust.published import read_published

    if published is None:
        raise OptionError(
            f"--published is missing: {target} is no ensemble, and a bundle needs its plan",
            hint="give the folder of an ensemble; for a single bundle add --published FOLDER",
        )
    return verify_bundle(target, read_published(published, pin), now(), advance=advance)


def _staleness(verified: "Sampled", pin: str, published: Path | None) -> "Staleness | None":
    from ddm_fed.ensemble.staleness import find_staleness
    from ddm_fed.trust.published import read_seen

    if published is None:
        return None
    return find_staleness(verified, *read_seen(published, pin))


def _show_bundle(bundle: "VerifiedBundle", pin: str, as_json: bool) -> None:
    from ddm_fed.distillation.facts import facts_of_bundle

    if as_json:
        console.show_json({"verified": "bundle", "root": pin, "members": [facts_of_bundle(bundle)]})
    else:
        _show_table(f"Verified: bundle, down from {pin[:24]}…", [bundle])


def _show_ensemble(verified: "VerifiedEnsemble", newer: "Staleness | None", as_json: bool) -> None:
    from ddm_fed.distillation.facts import facts_of

    record = verified.record
    if as_json:
        console.show_json(facts_of(verified, newer))
        return
    _show_table(
        f"Verified: ensemble of {record.federation}, down from {record.root[:24]}…",
        verified.bundles,
    )
    console.say(
        f"roster {record.roster.version}, log of {record.log.size} leaves with the root "
        f"{record.log.root[:16]}…, router {record.router}"
    )
    if record.left_out:
        console.say(f"admitted but left out: {', '.join(record.left_out)}")
    say_newer(newer, "ensemble")


def _expert_digest(bundle: "VerifiedBundle") -> str:
    held = bundle.submission.held_expert
    if held is not None:
        return f"{held[:16]}…, stays at the site"
    digest = bundle.sha256.get("expert.safetensors")
    return "the release itself" if digest is None else digest[:16] + "…"


def _show_table(title: str, bundles: "list[VerifiedBundle] | tuple[VerifiedBundle, ...]") -> None:
    console.show_table(
        title,
        ["site", "submission", "expert SHA-256", "router epsilon", "expert"],
        [
            [
                bundle.site,
                bundle.payload_sha256[:16] + "…",
                _expert_digest(bundle),
                bundle.submission.privacy.releases_epsilon,
                "private" if bundle.submission.privacy.expert_is_private else "not private",
            ]
            for bundle in bundles
        ],
    )
