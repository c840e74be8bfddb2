"""Whose part an image is, and whether that depends on the other images.

A part of a division that was made by its own images is no data set of which epsilon speaks: with
one unit more or less, others would be in other parts. Where every unit goes to the centre nearest
to it, and the centres are public, a unit decides about itself only; then what is released of one
part says nothing of a unit of another, and all parts together cost a unit what its own part costs
(parallel composition: McSherry 2009, SIGMOD, theorem 4).
"""

import json
from pathlib import Path

from ddm_fed.errors import DataError
from ddm_fed.storage.files import write_atomically

OWN_CLUSTERS = "clusters of these very images"
CHANCE = "chance"
GIVEN_CENTRES = "centres that were given"
WAYS = (OWN_CLUSTERS, CHANCE, GIVEN_CENTRES)
DIVISION_FILE = "division.json"
MOST_BYTES = 4096


def write_division(folder: Path, by: str, islands: int) -> None:
    """Writes beside the shards of `folder` by what they were divided, one of `WAYS`."""
    if by not in WAYS:
        raise ValueError(f"{by} is none of {', '.join(WAYS)}")
    text = json.dumps({"divided_by": by, "islands": islands}, indent=1)
    write_atomically(folder / DIVISION_FILE, text.encode(), mode=0o600)


def depends_on_others(shard: Path) -> str | None:
    """Returns by what `shard` was divided if that depends on other images, and None if it is none.

    Raises:
        DataError: what lies beside it is not what `partition` writes there.
    """
    file = shard.with_name(DIVISION_FILE)
    if not (shard.name.startswith("island-") and file.is_file()):
        return None
    try:
        with file.open("rb") as stream:
            by = json.loads(stream.read(MOST_BYTES))["divided_by"]
    except (ValueError, TypeError, KeyError):
        by = None
    if by not in WAYS:
        raise DataError(
            f"{file} does not say by what the images were divided",
            hint="divide them again with `partition`, or move the .npy files elsewhere",
        )
    return None if by == GIVEN_CENTRES else str(by)
