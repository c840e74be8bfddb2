"""Where a coordinator is, as people write it, and the way that leads there."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ddm_fed.errors import StateError
from ddm_fed.signing import Trust
from sites.folder import SiteFolder
from sites.movers import FolderMover, Mover

SCHEME = "grpcs://"
PULLED = "flower:"
_ADDRESS = re.compile(
    r"grpcs://(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})"
    r"(#(?P<pin>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Address:
    """A coordinator on a network: `grpcs://HOST:PORT`, and perhaps `#` and its certificate.

    Attributes:
        host: Name or address.
        port: TCP port.
        pin: Fingerprint of its certificate, `sha256:…`; needed before a roster is known.
    """

    host: str
    port: int
    pin: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the address in `text`.

        Raises:
            StateError: it is none.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or not 0 < int(found["port"]) < 65536:
            raise StateError(
                f"`{text}` is no address of a coordinator",
                hint="it is grpcs://HOST:PORT, or grpcs://HOST:PORT#sha256:… with the certificate; "
                "`ddm-coord serve` prints it",
            )
        return cls(found["host"], int(found["port"]), found["pin"])

    @property
    def target(self) -> str:
        """`HOST:PORT`."""
        return f"{self.host}:{self.port}"


def mover_to(text: str, site: SiteFolder, trust: Trust, *, patience_s: float) -> Mover:
    """Returns the way to `text`: a folder, a URL that fsspec knows, or `grpcs://HOST:PORT`.

    `flower:FOLDER` is a way as well: there a SuperNode lays down receipts for what was fetched.

    Args:
        text: Where to.
        site: The sender.
        trust: Its federation: it names the coordinator's certificate.
        patience_s: How long to try on without progress.

    Raises:
        StateError: there is no such place.
    """
    if not text.removeprefix(PULLED).strip():
        raise StateError(
            "it is not said where to",
            hint="name a folder, a URL, or grpcs://HOST:PORT with --to",
        )
    if text.startswith(SCHEME):
        from sites.network import NetworkMover

        return NetworkMover(Address.parse(text), site, trust, patience_s=patience_s)
    if text.startswith(PULLED):
        from sites.pulled import PulledMover

        return PulledMover(Path(text.removeprefix(PULLED)), trust)
    if "://" in text:
        from sites.remote import RemoteMover

        return RemoteMover(text, patience_s=patience_s)
    return FolderMover(Path(text))
