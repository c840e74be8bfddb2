"""`keygen` of both programs: a key of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_fed import console


def keygen(
    file: Annotated[Path, typer.Argument(help="Key file to make, for example dpo.pem.")],
) -> None:
    """Make a key of your own: as a data-protection officer, or to sign rosters with a root key.

    The file is encrypted if DDM_FED_PASSPHRASE is set.

    Examples: ddm-site keygen dpo.pem · ddm-coord keygen root-a.pem
    """
    from ddm_fed.signing import PASSPHRASE_VARIABLE, is_encrypted, write_key

    key = write_key(file)
    typer.echo(key.public.keyid)
    console.say(f"{file} is your private key: keep it; send only {file.with_suffix('.pub')}")
    if not is_encrypted(file):
        console.say(f"it is not encrypted: set {PASSPHRASE_VARIABLE} before you make a key")
