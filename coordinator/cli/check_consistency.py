"""`ddm-coord check-consistency`: whether everybody was shown one history."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.options import CoordinatorOption, RootOption, pinned_root
from ddm_fed import console
from ddm_fed.commands.options import JsonOption


def check_consistency(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders with rosters and log: published folders, folders of sites, ensembles.",
            exists=True,
            file_okay=False,
        ),
    ],
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what the coordinator showed to several places; prove a fork by both signed heads.

    Example: ddm-coord check-consistency hospital-a hospital-b published --root sha256:3b6a…
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
