"""Options that several commands of `ddm-coord` share."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from ddm_fed.errors import OptionError

# the records' own would load pydantic
RouterName = Literal["prior", "mixture", "centroid", "heads", "replay", "hybrid"]
CoordinatorOption = Annotated[
    Path,
    typer.Option(
        "--coordinator", help="The coordinator's folder.", envvar="DDM_COORDINATOR", file_okay=False
    ),
]
RootOption = Annotated[
    str | None,
    typer.Option(
        "--root", help="Fingerprint of the federation, sha256:…, which a person told you."
    ),
]


def pinned_root(root: str | None, coordinator: Path) -> str:
    """Returns the fingerprint to trust: the one given, or that of our own coordinator folder."""
    if root is not None:
        if re.fullmatch(r"sha256:[0-9a-f]{64}", root) is None:
            raise OptionError(
                f"--root {root}: not a fingerprint",
                hint="give sha256: and 64 lower-case hex digits, as the coordinator told you",
            )
        return root
    if not (coordinator / "coordinator.toml").exists():
        raise OptionError(
            "--root is missing: without a fingerprint nothing can be verified",
            hint="add --root sha256:… as the coordinator's people told you, or --coordinator if "
            "you are the coordinator",
        )
    from coordinator.workspace import CoordinatorFolder

    return CoordinatorFolder.open(coordinator).settings.root


def require_enough_keys(threshold: int, keys: int) -> None:
    """Refuses a threshold that `keys` root keys can never meet.

    Raises:
        OptionError: it is larger than their number.
    """
    if threshold > keys:
        raise OptionError(
            f"--threshold {threshold}: the number of root keys is only {keys}",
            hint="give a smaller one, or more --root-key",
        )


def keys_read_out(keys: list[str] | None) -> list[str] | None:
    """Returns keys as people read them out, if they are whole.

    Raises:
        OptionError: one is not.
    """
    for key in keys or ():
        if re.fullmatch(r"ed25519:[0-9a-f]{64}", key) is None:
            raise OptionError(
                f"--key {key}: not a key",
                hint="give ed25519: and 64 hex digits in lower case, as `ddm-site init` printed it",
            )
    return keys
