"""`ddm-coord init`: a coordinator's folder, its keys, and the first roster."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.options import require_enough_keys
from ddm_fed import console
from ddm_fed.commands.options import options_error


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    federation: Annotated[str, typer.Option(help="Name of the federation, for example digits.")],
    root_key: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key file of an institution that signs rosters. Give one for "
            "each. Without any, this folder holds the only root key."
        ),
    ] = None,
    threshold: Annotated[int, typer.Option(help="How many root keys have to sign.", min=1)] = 1,
) -> None:
    """Make a coordinator: its folder, its keys, and the first roster. Everybody pins its digest.

    Examples: ddm-coord init consortium --federation digits · ddm-coord init consortium
    --federation digits --root-key a.pub --root-key b.pub --root-key c.pub --threshold 2
    """
    from pydantic import ValidationError

    from coordinator.roster import proposals
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.records import Roster
    from ddm_fed.signing import PASSPHRASE_VARIABLE, is_encrypted, key_files, read_public

    require_enough_keys(threshold, len(root_key or ()) or 1)
    holders = [read_public(file).hex for file in root_key or ()]
    try:
        home = CoordinatorFolder.create(folder, federation, holders, threshold)
    except ValidationError as error:
        raise options_error(error, Roster, "see `ddm-coord init --help`") from None
    with home.changing():
        proposal = proposals.complete_genesis(home)
    console.say("Fingerprint of the federation; tell it to every site by telephone or on paper:")
    typer.echo(home.settings.root)
    if not is_encrypted(key_files(home.keys, "coordinator")[0]):
        console.say(f"the key files are not encrypted: set {PASSPHRASE_VARIABLE} before `init`")
    if proposal.published:
        words = ("ddm-coord", "roster", "add", "--coordinator", folder, "ENROLMENT_FILES")
        console.next_step(console.typed(*words))
        return
    console.say(f"roster 1 waits for {' and '.join(proposal.missing)}")
    merge = console.typed("ddm-coord", "roster", "merge", "--coordinator", folder, "SIGNED_FILE")
    console.next_step(
        f"send {proposal.file} to the holders; each runs ddm-coord roster sign FILE --key KEY.pem",
        f"{merge}, for each",
    )
