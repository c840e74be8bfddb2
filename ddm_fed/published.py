"""The folder a coordinator publishes: the signed plan and the whole chain of signed rosters.

    plan.dsse.json
    roster-0001.dsse.json, roster-0002.dsse.json, ...

Sites train under it, and every ensemble carries a copy.
"""

from pathlib import Path

from ddm_fed.errors import StateError
from ddm_fed.files import read_bounded
from ddm_fed.records import MAX_DOCUMENT_BYTES
from ddm_fed.signing import Trust, establish_trust

PLAN_FILE = "plan.dsse.json"
_ROSTER_GLOB = "roster-[0-9][0-9][0-9][0-9].dsse.json"


def roster_file(version: int) -> str:
    """Returns the file name of roster `version`."""
    return f"roster-{version:04d}.dsse.json"


def published_files(folder: Path) -> list[str]:
    """Returns the names of the published documents in `folder`: rosters in order, then the plan."""
    return [*sorted(path.name for path in folder.glob(_ROSTER_GLOB)), PLAN_FILE]


def read_published(folder: Path, root_keyid: str) -> Trust:
    """Returns the trust that the documents in `folder` establish from the pinned root key.

    Raises:
        StateError: there is no plan in `folder`.
        RefusedError: a document does not hold; see `establish_trust`.
    """
    if not (folder / PLAN_FILE).exists():
        raise StateError(
            f"there is no {PLAN_FILE} in {folder}",
            hint="point to the coordinator's published folder, or to the plan file inside it",
        )
    *rosters, plan = (
        read_bounded(folder / name, MAX_DOCUMENT_BYTES) for name in published_files(folder)
    )
    return establish_trust(root_keyid, rosters, plan)
