"""`ddm-coord verify` and `audit`: the commands that outsiders run too."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.options import CoordinatorOption, JsonOption, RootOption, pinned_root
from ddm_fed import console
from ddm_fed.errors import StateError
from ddm_fed.storage.files import Advance, size_below

if TYPE_CHECKING:
    from coordinator.inbox.admission import Known, Verdict
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.bundle.verify import VerifiedBundle
    from ddm_fed.ensemble.folder import VerifiedEnsemble
    from ddm_fed.ensemble.staleness import Staleness


def verify(
    target: Annotated[
        Path | None,
        typer.Argument(
            help="An ensemble, or one bundle. Without it, everything in the inbox is verified and "
            "admitted, or refused and set aside."
        ),
    ] = None,
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    published: Annotated[
        Path | None,
        typer.Option(
            help="Published folder: needed for one bundle; for an ensemble, a newer one says "
            "whether the ensemble may still be used."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify and admit what arrived; or verify an ensemble or a bundle, offline, as anyone can.

    Examples: ddm-coord verify · ddm-coord verify ensemble --root sha256:3b6a… ·
    ddm-coord verify bundle --root sha256:3b6a… --published published
    """
    if target is None:
        _verify_inbox(coordinator, as_json)
        return
    from ddm_fed.ensemble.folder import STATEMENT_FILE, verify_ensemble

    pin = pinned_root(root, coordinator)
    if published is None and (coordinator / "coordinator.toml").exists():
        published = coordinator / "published"
    with console.moving_bytes(f"verifying {target.name}", size_below(target)) as advance:
        if not (target / STATEMENT_FILE).exists():
            _show_bundle(_verify_bundle(target, pin, published, advance), pin, as_json)
            return
        verified = verify_ensemble(target, pin, advance=advance)
    newer = _staleness(verified, pin, published)
    _show_ensemble(verified, newer, as_json)
    if newer is not None and newer.stale:
        raise typer.Exit(1)


def _verify_bundle(
    target: Path, pin: str, published: Path | None, advance: Advance
) -> "VerifiedBundle":
    from ddm_fed.bundle.verify import verify_bundle
    from ddm_fed.records import now
    from ddm_fed.trust.published import read_published

    if published is None:
        raise StateError(
            f"{target} is not an ensemble, and a bundle needs its plan and roster",
            hint="add --published FOLDER to verify a single bundle",
        )
    return verify_bundle(target, read_published(published, pin), now(), advance=advance)


def _staleness(
    verified: "VerifiedEnsemble", pin: str, published: Path | None
) -> "Staleness | None":
    from ddm_fed.ensemble.staleness import find_staleness
    from ddm_fed.trust.published import read_seen

    if published is None:
        return None
    return find_staleness(verified, *read_seen(published, pin))


def _show_bundle(bundle: "VerifiedBundle", pin: str, as_json: bool) -> None:
    if as_json:
        console.show_json({"verified": "bundle", "root": pin, "members": [_facts(bundle)]})
    else:
        _show_table(f"Verified: bundle, down from {pin[:24]}…", [bundle])


def _show_ensemble(verified: "VerifiedEnsemble", newer: "Staleness | None", as_json: bool) -> None:
    record = verified.record
    if as_json:
        console.show_json(
            {
                "verified": "ensemble",
                "federation": record.federation,
                "root": record.root,
                "ensemble_sha256": verified.sha256,
                "plan_sha256": record.plan_sha256,
                "roster": record.roster.version,
                "log": record.log.model_dump(),
                "router": record.router,
                "left_out": list(record.left_out),
                "members": [_facts(bundle) for bundle in verified.bundles],
                "stale": list(newer.stale) if newer else None,
                "newer": list(newer.newer) if newer else None,
            }
        )
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
    if newer is None:
        console.say(
            "this says nothing about later removals and revocations: add --published with the "
            "newest published folder"
        )
        return
    for reason in newer.newer:
        console.say(f"newer: {reason}")
    for reason in newer.stale:
        console.say(f"STALE: {reason}")
    if newer.stale:
        console.say("do not use this ensemble any more, nor what was made from it")
    elif newer.newer:
        console.say("assemble anew to use what replaced them; nobody was removed")
    else:
        console.say("nothing in the newer rosters and log speaks against its use")


def _facts(bundle: "VerifiedBundle") -> dict[str, object]:
    return {
        "site": bundle.site,
        "submission_sha256": bundle.payload_sha256,
        "router_epsilon": bundle.submission.privacy.releases_epsilon,
        "expert_is_private": bundle.submission.privacy.expert_is_private,
        "privacy": bundle.submission.privacy.model_dump(mode="json", exclude={"ledger"}),
        "files": dict(bundle.sha256),
    }


def _show_table(title: str, bundles: "list[VerifiedBundle] | tuple[VerifiedBundle, ...]") -> None:
    console.show_table(
        title,
        ["site", "submission", "expert SHA-256", "router epsilon", "expert"],
        [
            [
                bundle.site,
                bundle.payload_sha256[:16] + "…",
                bundle.sha256["expert.safetensors"][:16] + "…",
                bundle.submission.privacy.releases_epsilon,
                "private" if bundle.submission.privacy.expert_is_private else "not private",
            ]
            for bundle in bundles
        ],
    )


def _verify_inbox(coordinator: Path, as_json: bool) -> None:
    from coordinator.ensembles.reference import waits_for_reference
    from coordinator.inbox.admission import take_arrivals
    from coordinator.inbox.ledger_prices import Prices, price_arrivals
    from coordinator.workspace import CoordinatorFolder

    home = CoordinatorFolder.open(coordinator)
    bar = console.moving_bytes("verifying the inbox", size_below(home.incoming))
    waiting = price_arrivals(home, home.trust(), Prices())
    with home.changing(), bar as advance:
        verdicts, known = take_arrivals(home, home.trust(), later=waiting, advance=advance)
        jumps = _jumps(home, known, verdicts)
    refused = [verdict for verdict in verdicts if verdict.error is not None]
    if as_json:
        console.show_json(
            [
                {
                    "arrival": verdict.name,
                    "site": verdict.admitted.submission.site if verdict.admitted else None,
                    "admitted": verdict.admitted is not None,
                    "log_index": verdict.admitted.entry.index if verdict.admitted else None,
                    "code": verdict.error.code if verdict.error else None,
                    "reason": verdict.error.message if verdict.error else None,
                }
                for verdict in verdicts
            ]
        )
    elif verdicts:
        console.show_table(
            "Arrivals",
            ["arrival", "site", "verdict"],
            [
                [
                    verdict.name[:16] + "…",
                    verdict.admitted.submission.site if verdict.admitted else "unknown",
                    "admitted" if verdict.error is None else f"refused: {verdict.error.code}",
                ]
                for verdict in verdicts
            ],
        )
    else:
        console.say(f"nothing new in {home.incoming}")
    for said in jumps:
        console.say(f"WARNING: {said}: `ddm-coord assemble` will ask about it")
    for error in [*waiting.values(), *(verdict.error for verdict in refused)]:
        if error is not None:
            console.show_error(error)
    if refused:
        console.say(f"refused bundles are kept in {home.refused}")
        raise typer.Exit(1)
    if waits_for_reference(home, known.trust):
        console.next_step(console.typed("ddm-coord", "reference", "--coordinator", coordinator))
        return
    words = ("ddm-coord", "assemble", "--coordinator", coordinator, "ENSEMBLE_FOLDER")
    console.next_step(console.typed(*words))


def _jumps(home: "CoordinatorFolder", known: "Known", verdicts: "list[Verdict]") -> list[str]:
    """Returns what a person has to decide about the counts of what was just admitted."""
    from coordinator.ensembles.image_counts import count_members, sentence
    from coordinator.inbox.admission import current_members

    new = {item.admitted.payload_sha256 for item in verdicts if item.admitted is not None}
    if not new:
        return []
    trust, log = known
    found = count_members(home, trust, log, current_members(home, trust, log))
    return [sentence(item) for item in found if item.jumped and item.submission_sha256 in new]


def audit(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that hold rosters and log: published folders, the folders of sites, "
            "ensembles.",
            exists=True,
            file_okay=False,
        ),
    ],
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what the coordinator showed to several places; name a fork with both signed heads.

    Example: ddm-coord audit hospital-a hospital-b published --root sha256:3b6a…
    """
    from ddm_fed.trust.published import (
        PLAN_FILE,
        read_published,
        read_seen,
        require_newer,
        require_newer_plan,
    )

    pin = pinned_root(root, coordinator)
    seen, plans = [], []
    for folder in folders:
        kept = folder / "seen" if (folder / "seen").is_dir() else folder
        seen.append((folder, read_seen(kept, pin)))
        if (kept / PLAN_FILE).exists():
            plans.append((folder, read_published(kept, pin)))
    # every pair is compared through the longest log: prefixes of one log agree with each other
    seen.sort(key=lambda item: (item[1][1].size, len(item[1][0].rosters)))
    newest_folder, newest = seen[-1]
    longest = max((item[1][0] for item in seen), key=lambda chain: len(chain.rosters))
    for folder, (chain, log) in seen:
        what = f"{folder} and {newest_folder}"
        require_newer((longest, newest[1]), (chain, log), what=what)
    plans.sort(key=lambda item: item[1].plan.version)
    for (place, earlier), (other, later) in pairwise(plans):
        require_newer_plan(later, earlier, what=f"{place} and {other}")
    rows = [
        {
            "folder": str(folder),
            "roster": chain.current.version,
            "log_size": log.size,
            "log_root": log.head.root,
        }
        for folder, (chain, log) in seen
    ]
    if as_json:
        console.show_json({"root": pin, "consistent": True, "places": rows})
        return
    console.show_table(
        "One history: each of these is a part of the next",
        ["folder", "roster", "log size", "log root"],
        [[str(value)[:64] for value in row.values()] for row in rows],
    )
