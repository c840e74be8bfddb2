"""Where a coordinator is on a network, as people write it."""

import re
from dataclasses import dataclass
from typing import Self

from ddm_fed.errors import OptionError

SCHEME = "grpcs://"
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
            OptionError: it is none.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or not 0 < int(found["port"]) < 65536:
            raise OptionError(
                f"`{text}` is not the address of a coordinator",
                hint="give grpcs://HOST:PORT, or grpcs://HOST:PORT#sha256:… with the certificate; "
                "`ddm-coord serve` prints it",
            )
        return cls(found["host"], int(found["port"]), found["pin"])

    @property
    def target(self) -> str:
        """`HOST:PORT`."""
        return f"{self.host}:{self.port}"
