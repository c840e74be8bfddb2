"""`ddm-coord import`: bundles that a courier brings, and what goes back with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.options import CoordinatorOption
from ddm_fed import console
from ddm_fed.commands.options import JsonOption

if TYPE_CHECKING:
    from coordinator.inbox.removable_medium import Found, Written


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder that `ddm-site export` wrote, or a URL such as s3://… or sftp://…."
        ),
    ],
    coordinator: CoordinatorOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Read bundles from a medium, a share or a bucket; verify and admit them; write receipts back.

    Incomplete copies are named and left alone. Safe to run again at any time: it continues where it
    stopped, and deletes nothing there.

    Examples: ddm-coord import /media/usb/ddm · ddm-coord import sftp://files.example/exchange
    """
    from coordinator.ensembles.reference import waits_for_reference
    from coordinator.inbox.removable_medium import (
        Found,
        Importer,
        candidates,
        require_medium,
        write_back,
    )
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.records import BundleState
    from ddm_fed.remote import open_folder

    home = CoordinatorFolder.open(coordinator)
    medium = open_folder(source)
    require_medium(home, medium)
    entries, left = candidates(medium)
    importer = Importer(home, medium)
    found: list[Found] = []
    size = sum(
        file.size_bytes
        for entry in entries
        if entry.kind == "folder"
        for file in medium.entries(f"incoming/{entry.name}")
    )
    try:
        with console.moving_bytes("taking bundles in", size) as advance:
            found.extend(importer.take(entry, advance) for entry in entries)
    finally:  # the medium may be gone half-way: what was admitted before is said all the same
        _show(found, left, as_json)
    written = write_back(home, medium, found)
    _say_what_goes_back(home.receipts, medium.name, written)
    if any(item.state is not BundleState.ADMITTED for item in found):
        raise typer.Exit(1)
    if waits_for_reference(home, home.trust()):
        console.next_step(console.typed("ddm-coord", "reference", "--coordinator", coordinator))
    elif found:
        words = ("ddm-coord", "assemble", "--coordinator", coordinator, "ENSEMBLE_FOLDER")
        console.next_step(console.typed(*words))


def _show(found: "list[Found]", left: int, as_json: bool) -> None:
    from ddm_fed.records import BundleState

    if as_json:
        console.show_json(
            [
                {
                    "arrival": item.name,
                    "submission_sha256": item.digest,
                    "site": item.site,
                    "state": item.state,
                    "admitted": item.state is BundleState.ADMITTED,
                    "code": item.code,
                    "reason": item.reason,
                }
                for item in found
            ]
        )
    elif found:
        console.show_table(
            "Bundles on the medium",
            ["arrival", "site", "verdict"],
            [
                [
                    item.name[:16] + "…",
                    item.site or "unknown",
                    item.state if item.code is None else f"{item.state}: {item.code}",
                ]
                for item in found
            ],
        )
    else:
        console.say("no bundle found")
    for item in found:
        if item.reason is not None:
            console.say(f"{item.name[:16]}…: {item.state}: {item.reason}\n  hint: {item.hint}")
    if left:
        console.say(f"{left} other entries of incoming/ were left alone: they are not bundles")


def _say_what_goes_back(receipts: Path, medium: str, written: "Written") -> None:
    if written.foreign:
        console.say(f"nothing in {medium} came from a site, so nothing was written there")
        return
    if written.error is None:
        console.say(f"{written.receipts} receipts and the published folder are in {medium}")
        return
    console.say(f"receipts could not be written back: {written.error.message}")
    console.say(f"they are in {receipts}; carry them, and the published folder, another way")
