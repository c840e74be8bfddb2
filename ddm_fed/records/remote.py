"""What may be asked of an expert whose weights stay at their site."""

from typing import Annotated

from pydantic import Field

from ddm_fed.records.base import Count, Record

MAX_QUESTION_BYTES = 64 * 2**20  # images of one request


class RemoteSpec(Record):
    """How much a site answers in place of its weights: a limit on amount, not a guarantee.

    Attributes:
        evaluations: Images that each site answers about in all, over all requests: a sample of 50
            steps of Heun's solver takes 100.
        batch_size: The most images of one request.
    """

    evaluations: Count
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 256
