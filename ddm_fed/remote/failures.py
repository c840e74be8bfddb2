"""What drivers of file systems raise, in the words of this program, and without their secrets."""

import re
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal

from ddm_fed.errors import DdmFedError, ExchangeError, StateError
from ddm_fed.remote.proxies import proxies_named

# packages whose exceptions are failures of a file system, and not mistakes of ours
DRIVERS = (
    *("fsspec", "paramiko", "s3fs", "botocore", "aiobotocore", "aiohttp", "gcsfs", "google"),
    *("adlfs", "azure", "smbprotocol", "webdav4", "httpx"),
)
REFUSED = {
    *("AuthenticationException", "BadAuthenticationType", "PasswordRequiredException"),
    *("PartialAuthentication", "NoCredentialsError", "PartialCredentialsError"),
    *("PermissionError", "ClientAuthenticationError", "UnknownHostKeyError"),
}
EXTRAS = {"s3": "s3", "s3a": "s3", "sftp": "sftp", "ssh": "sftp"}
MAX_REASON = 300
_USER = re.compile(r"(?<=://)\S*@")  # rather too much: a password may hold anything


def without_secrets(text: str) -> str:
    """Returns `text` without the user names and passwords of the URLs in it."""
    return _USER.sub("", text)


class Calling(AbstractContextManager["Calling"]):
    """Turns failures of a driver inside the block into errors of this program.

    Args:
        name: Of the folder, as it may be shown.
        protocol: Of its URL.
        secrets: What may not be shown, wherever a driver repeats it.
    """

    def __init__(self, name: str, protocol: str, secrets: tuple[str, ...] = ()) -> None:
        self._name, self._protocol, self._secrets = name, protocol, secrets

    def __enter__(self) -> "Calling":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        if error is None or isinstance(error, DdmFedError):
            return False
        if isinstance(error, ImportError):
            raise self._no_driver(error) from None
        package = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError | EOFError) and package not in DRIVERS:
            return False
        raise self._failure(error) from None

    def _no_driver(self, error: ImportError) -> StateError:
        extra = EXTRAS.get(self._protocol)
        install = f"pip install 'ddm-fed[{extra}]'" if extra else self._reason(error)
        return StateError(
            f"there is no driver for {self._protocol}:// on this machine", hint=install
        )

    def _failure(self, error: BaseException) -> DdmFedError:
        reason = self._reason(error)
        if REFUSED.intersection(base.__name__ for base in type(error).__mro__):
            return StateError(
                f"{self._name} refused us: {reason}",
                hint="check the user name, the key or the token, and what they may do there; "
                "drivers read them from their own usual places",
            )
        if isinstance(error, FileNotFoundError):
            return StateError(
                f"there is no such place in {self._name}: {reason}",
                hint="check the URL; the bucket or the folder has to be there already",
            )
        named = proxies_named()
        proxy = f" (here {named} may send it through a proxy)" if named else ""
        return ExchangeError(
            f"{self._name} cannot be reached, or broke off: {reason}",
            hint=f"check the address and the network{proxy}, then run the same command again: it "
            "continues from there",
        )

    def _reason(self, error: BaseException) -> str:
        text = without_secrets(str(error)) or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text[:MAX_REASON].rstrip(". ")
