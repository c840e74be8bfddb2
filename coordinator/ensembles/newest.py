"""The newest ensemble that was assembled here, as members may fetch it."""

from dataclasses import dataclass
from pathlib import Path

from coordinator import journal
from coordinator.workspace import CoordinatorFolder
from ddm_fed.errors import StateError
from ddm_fed.storage.files import list_regular_files
from ddm_fed.storage.junk import is_junk


@dataclass(frozen=True)
class Offered:
    """An ensemble's folder.

    Attributes:
        sha256: Of its signed record.
        folder: Where it lies.
        files: Size in bytes of each file, by its path in the folder.
    """

    sha256: str
    folder: Path
    files: dict[str, int]


def newest_ensemble(home: CoordinatorFolder) -> Offered:
    """Returns the ensemble that was assembled last and is still there.

    Raises:
        StateError: there is none.
    """
    for event in reversed(journal.events(home)):
        folder = Path(str(event.get("folder", "")))
        if event["event"] == "assembled" and folder.is_dir():
            names = list_regular_files(folder, what="the ensemble")
            offered = sorted(name for name in names if not is_junk(name))
            sizes = {name: (folder / name).stat().st_size for name in offered}
            return Offered(str(event["ensemble_sha256"]), folder, sizes)
    raise StateError(
        "no ensemble is assembled yet", hint="wait until the coordinator ran `ddm-coord assemble`"
    )
