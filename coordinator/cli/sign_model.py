"""`ddm-coord sign-model`: a signature that other tools verify."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.options import CoordinatorOption
from ddm_fed import console
from ddm_fed.storage.files import size_below


def sign_model(
    ensemble: Annotated[
        Path, typer.Argument(help="Folder of an ensemble or a student.", file_okay=False)
    ],
    coordinator: CoordinatorOption = Path(),
) -> None:
    """Add model.sig, in OpenSSF Model Signing v1.0 format, for other tools to verify the folder.

    The folder is verified first; a stale one is refused. The key is P-256 and named in the
    roster; its public half is written beside the ensemble. Example: ddm-coord sign-model ensemble
    """
    from coordinator.cli.open_ensemble import open_either
    from coordinator.workspace import EXPORT_KEY, CoordinatorFolder
    from ddm_fed.ensemble.model_signing import SIGNATURE_FILE, sign_folder, verify_folder
    from ddm_fed.signing import ExportKey
    from ddm_fed.storage.files import write_atomically

    home = CoordinatorFolder.open(coordinator)
    with console.moving_bytes(f"signing {ensemble.name}", 3 * size_below(ensemble)) as advance:
        open_either(ensemble, home.settings.root, coordinator, advance=advance)
        key = ExportKey.read(home.keys / EXPORT_KEY)
        sign_folder(ensemble, key, advance=advance)
        verify_folder(ensemble, key.public_pem, advance=advance)
    public = ensemble.with_name(f"{ensemble.name}-export-key.pem")
    write_atomically(public, key.public_pem)
    console.say(f"wrote {ensemble / SIGNATURE_FILE} and the public key {public}")
    words = ("python", "-m", "model_signing", "verify", "key", ensemble)
    keys = ("--signature", ensemble / SIGNATURE_FILE, "--public_key", public)
    console.next_step(console.typed(*words, *keys))
