"""Where a bundle stands: one word for each place, wherever it is said.

A site says it of what it released, a courier of what lies on a medium, the coordinator of what
arrives; a wire message says the four in the middle (`protos/ddm_fed/exchange/v1/exchange.proto`).
"""

from enum import StrEnum


class BundleState(StrEnum):
    """Where one bundle stands.

    Example:
        >>> BundleState("admitted") is BundleState.ADMITTED
        True
        >>> BundleState.ADMITTED.is_settled, BundleState.SENT.is_settled
        (True, False)
    """

    # on its way
    PARTIAL = "partial"  # not whole where it lies: a medium, a share
    SENT = "sent"  # put just now where the coordinator will look
    WAITING = "waiting"  # for the coordinator, to take it or to judge it

    # at the coordinator
    UPLOADING = "uploading"  # bytes are missing
    ARRIVED = "arrived"  # whole, and not judged yet
    ADMITTED = "admitted"  # it has a leaf in the log, and a receipt
    REFUSED = "refused"  # with a reason; a new bundle is needed

    # not sent, since it would be refused
    SUPERSEDED = "superseded"  # a newer one of the site takes its place
    EARLIER_PLAN = "earlier plan"
    EARLIER_REFERENCE = "earlier reference"
    EARLIER_KEY = "earlier key"
    REVOKED_KEY = "revoked key"
    EXPIRED = "expired"
    FROM_THE_FUTURE = "from the future"  # its date has not come yet
    DAMAGED = "damaged"  # no longer what the site signed
    HELD_BACK = "held back"  # for any other rule

    # what came of asking for it
    BAD_RECEIPT = "bad receipt"  # one came, and does not hold
    FAILED = "failed"  # the exchange broke off; nothing is said of the bundle
    UNREACHABLE = "unreachable"  # nobody answered

    @property
    def is_settled(self) -> bool:
        """Whether nobody has to do anything about it any more: admitted, or rightly passed over."""
        return self in (BundleState.ADMITTED, BundleState.SUPERSEDED, BundleState.EARLIER_PLAN)
