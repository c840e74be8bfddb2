"""Options that several commands of `ddm-coord` share."""

import re
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import typer

from ddm_fed.errors import StateError

# the records' own would load pydantic
RouterName = Literal["prior", "mixture", "heads", "replay", "hybrid"]
CoordinatorOption = Annotated[
    Path,
    typer.Option(
        "--coordinator", help="The coordinator's folder.", envvar="DDM_COORDINATOR", file_okay=False
    ),
]
RootOption = Annotated[
    str | None,
    typer.Option("--root", help="Fingerprint of the federation, sha256:…, learnt from a person."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]


def pinned_root(root: str | None, coordinator: Path) -> str:
    """Returns the fingerprint to trust: the one given, or that of our own coordinator folder."""
    if root is not None:
        if re.fullmatch(r"sha256:[0-9a-f]{64}", root) is None:
            raise typer.BadParameter("--root is sha256: and 64 lower-case hex digits")
        return root
    if not (coordinator / "coordinator.toml").exists():
        raise StateError(
            "no fingerprint is pinned, so nothing can be verified",
            hint="add --root sha256:… as the coordinator's people told you, or --coordinator if "
            "you are the coordinator",
        )
    from coordinator.workspace import CoordinatorFolder

    return CoordinatorFolder.open(coordinator).settings.root


def place_to_listen(text: str | None) -> str | None:
    """Returns HOST:PORT as it was given, if it is that; none stays none."""
    if text is None:
        return None
    host, colon, port = text.rpartition(":")
    number = int(port) if re.fullmatch(r"[0-9]{1,5}", port) else 1 << 16
    if not colon and number < 1 << 16:
        raise typer.BadParameter(
            f"`{text}` names no host: {port} of which network? 127.0.0.1:{port} is reached from "
            f"this machine alone, 0.0.0.0:{port} from every network it is in"
        )
    if not host or number >= 1 << 16 or (":" in host and host[0] + host[-1] != "[]"):
        raise typer.BadParameter(
            f"`{text}` is no place to listen at: it is HOST:PORT, for example 0.0.0.0:8443 or "
            "[::1]:8443, with a port up to 65535"
        )
    return text


def router_name(name: str | None) -> RouterName | None:
    """Returns the router of that name; none stays none."""
    if name is None or name in get_args(RouterName):
        return cast(RouterName | None, name)
    raise typer.BadParameter(f"--router is one of {', '.join(get_args(RouterName))}")
