"""A router made from samples, as a folder: router.json says how, router.safetensors holds it."""

import json
from pathlib import Path
from typing import Any

from ddm_fed.ensemble.folder import BuiltRouterFile
from ddm_fed.ensemble.replay import RouterBuilt
from ddm_fed.errors import StateError
from ddm_fed.records import MAX_DOCUMENT_BYTES, BuiltRouter
from ddm_fed.router import TimeQuality
from ddm_fed.storage.files import new_folder, read_bounded, write_atomically
from ddm_fed.storage.tensors import write_tensors

RECORD_FILE, TENSOR_FILE, QUALITY_FILE = "router.json", "router.safetensors", "quality.json"


def write_built(folder: Path, built: RouterBuilt) -> None:
    """Writes a router into the new folder `folder`; a kill leaves none.

    Raises:
        StateError: `folder` exists.
    """
    if folder.exists():
        raise StateError(
            f"{folder} exists already", hint="a router is never changed; choose another --out"
        )
    with new_folder(folder) as new:
        write_tensors(new / TENSOR_FILE, built.tensors)
        write_atomically(new / RECORD_FILE, built.record.to_json())
        quality = {"before": described(built.before), "after": described(built.after)}
        write_atomically(new / QUALITY_FILE, json.dumps(quality, indent=2).encode())


def read_built(folder: Path) -> BuiltRouterFile:
    """Returns the router in `folder`, as `assemble` takes it.

    Raises:
        StateError: it is no folder of a router.
        MalformedError: router.json is damaged.
    """
    for name in (RECORD_FILE, TENSOR_FILE):
        if not (folder / name).is_file():
            raise StateError(
                f"{folder} holds no router: {name} is missing",
                hint="give the folder that `ddm-coord router build` made",
            )
    what = f"{folder / RECORD_FILE}"
    record = BuiltRouter.from_json(
        read_bounded(folder / RECORD_FILE, MAX_DOCUMENT_BYTES), what=what
    )
    return BuiltRouterFile(record, folder / TENSOR_FILE)


def described(quality: list[TimeQuality]) -> list[dict[str, Any]]:
    """Returns a quality as JSON takes it."""
    return [item._asdict() for item in quality]
