"""What both Flower apps agree on: its version, its switches, and the words of their messages.

Flower itself is imported by one module a side: `sites.transport.flower_app` and
`coordinator.inbox.flower_app`. What it carries is bytes. Who signed them, and whether they count,
is found out after they arrived.

    stat      -> the manifests of what is released and has no receipt yet
    part      -> bytes of the body of one of them, from an offset the coordinator chose
    receipt   -> the coordinator's signed receipt, to be kept by the site
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from ddm_fed.errors import StateError
from ddm_fed.records import MAX_DOCUMENT_BYTES

FLWR_VERSION = "1.41.0"  # its transport and its commands change between minors
PROTOCOL = 1
MIB = 1 << 20
MAX_PART_BYTES = 256 * MIB
MIN_PART_BYTES = MIB // 4  # below, starting the app costs more than the bytes
MAX_OFFERED = 16  # bundles a site offers at a time; the rest comes with the next run
MAX_MANIFEST_BYTES = MAX_DOCUMENT_BYTES

STAT: Final = "stat"
PART: Final = "part"
RECEIPT: Final = "receipt"
"""Actions of a query message, and the names of the records in it."""
ANSWER, DATA = "answer", "data"
"""Records of an answer: facts, and bytes."""


def require_flower() -> None:
    """Checks that the tested version of Flower is installed.

    Raises:
        StateError: it is another one, or none.
    """
    try:
        found = version("flwr")
    except PackageNotFoundError:
        raise missing_flower() from None
    if found != FLWR_VERSION:
        raise StateError(
            f"flwr {found} is installed, the exchange over Flower is tested with {FLWR_VERSION}",
            hint=f"pip install 'flwr=={FLWR_VERSION}': its transport changes between minors",
        )


def missing_flower() -> StateError:
    """Returns the error to raise where Flower is not installed."""
    return StateError(
        "Flower is not installed",
        hint="pip install 'ddm-fed[flower]', or send bundles by folder or gRPC: neither needs it",
    )
