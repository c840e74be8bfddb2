"""What a transport sees of a site: bundles in `outbox/released`, and a folder for receipts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ddm_fed.exchange.body import Body, BodyReader, open_body
from ddm_fed.records import IN_TOTO_PAYLOAD, MAX_DOCUMENT_BYTES, Statement, Submission, sha256_hex
from ddm_fed.signing import peek_payload
from ddm_fed.storage.files import read_bounded
from ddm_fed.trust.log import (
    SUBMISSION_FILE,  # not from `bundle`: transports need no tensor library
)


@dataclass(frozen=True)
class Released:
    """A bundle that may leave.

    Attributes:
        folder: Where it lies.
        digest: SHA-256 of its manifest's payload.
        envelope: The signed manifest.
        body: Its tensor files.
    """

    folder: Path
    digest: str
    envelope: bytes
    body: Body

    @contextmanager
    def reading(self) -> Iterator[BodyReader]:
        """Yields a reader of the body.

        Raises:
            FileSetError: a file is missing.
        """
        with open_body(self.folder, self.body) as reader:
            yield reader


def read_released(folder: Path) -> Released:
    """Returns the released bundle in `folder`. Nothing is verified: its receiver does that.

    Raises:
        RefusedError: it has no manifest of a bundle.
    """
    envelope = read_bounded(folder / SUBMISSION_FILE, MAX_DOCUMENT_BYTES)
    payload = peek_payload(envelope, IN_TOTO_PAYLOAD, what=folder.name)
    submission = Statement[Submission].from_json(payload, what=folder.name).predicate
    return Released(folder, sha256_hex(payload), envelope, Body(submission.files))
