"""From the words of a person to a folder elsewhere."""

from pathlib import Path

from ddm_fed.remote.base import RemoteFolder
from ddm_fed.remote.failures import without_secrets
from ddm_fed.remote.local import LocalFolder

FILE = "file://"


def open_folder(text: str, *, timeout_s: float = 300.0) -> RemoteFolder:
    """Returns the folder at `text`: a path, or a URL that fsspec knows.

    Args:
        text: Where it is.
        timeout_s: How long a network may be silent.

    Raises:
        StateError: it is not there, it has no driver here, or refused us.
        ExchangeError: it cannot be reached just now.
    """
    folder: RemoteFolder
    if text.startswith(FILE):
        folder = LocalFolder(Path(text.removeprefix(FILE)))
    elif "://" in text:
        from ddm_fed.remote.url import UrlFolder

        folder = UrlFolder(text, timeout_s=timeout_s)
    else:
        folder = LocalFolder(Path(text))
    folder.require()
    return folder


def shown(text: str) -> str:
    """Returns `text` as it may be shown: without user name and password."""
    return without_secrets(text)
