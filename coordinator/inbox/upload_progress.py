"""How far an unfinished bundle came, kept beside its bytes: a killed upload goes on from there."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far an unfinished bundle came."""

    site: str
    carrier: str
    size_bytes: int
    committed_bytes: int
    updated_at: datetime

    def is_of(self, size_bytes: int) -> bool:
        """Returns whether it can be the progress of a bundle of that size."""
        whole = isinstance(self.committed_bytes, int)  # it was read from a file
        return whole and self.size_bytes == size_bytes and 0 <= self.committed_bytes <= size_bytes

    def to_json(self) -> bytes:
        """Returns it as it lies on disk."""
        facts = vars(self) | {"updated_at": f"{self.updated_at:%Y-%m-%dT%H:%M:%SZ}"}
        return json.dumps(facts).encode()


def read_progress(folder: Path) -> Progress | None:
    """Returns how far the upload in `folder` came; None if it never began, or was damaged."""
    try:
        facts = json.loads((folder / PROGRESS_FILE).read_bytes())
        moment = datetime.fromisoformat(facts.pop("updated_at"))
        return Progress(**facts, updated_at=moment)
    except (OSError, ValueError, KeyError, TypeError):
        return None
