"""From the words of a person to the way that leads to a coordinator."""

from pathlib import Path

from ddm_fed.errors import OptionError
from ddm_fed.trust import Trust
from sites.transport.address import SCHEME, Address
from sites.transport.base import FolderTransport, Transport
from sites.workspace import SiteFolder

PULLED = "flower:"


def transport_to(text: str, site: SiteFolder, trust: Trust, *, timeout_s: float) -> Transport:
    """Returns the way to `text`: a folder, a URL that fsspec knows, or `grpcs://HOST:PORT`.

    `flower:FOLDER` is a way as well: there a SuperNode lays down receipts for what was fetched.

    Args:
        text: Where to.
        site: The sender.
        trust: Its federation: it names the coordinator's certificate.
        timeout_s: How long to try on without progress.

    Raises:
        OptionError: the text names no place.
        StateError: there is no such place.
    """
    if not text.removeprefix(PULLED).strip():
        raise OptionError(
            f"--to {text}: this names no place",
            hint="give a folder, a URL, grpcs://HOST:PORT, or flower:FOLDER",
        )
    if text.startswith(SCHEME):
        from sites.transport.grpc import GrpcTransport

        return GrpcTransport(Address.parse(text), site, trust, timeout_s=timeout_s)
    if text.startswith(PULLED):
        from sites.transport.flower import FlowerTransport

        return FlowerTransport(Path(text.removeprefix(PULLED)), trust)
    if "://" in text:
        from sites.transport.remote_folder import RemoteFolderTransport

        return RemoteFolderTransport(text, timeout_s=timeout_s)
    return FolderTransport(Path(text))
