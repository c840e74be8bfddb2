"""The files of chunks of samples as one archive and one picture."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.errors import StateError, names_its_path
from ddm_fed.pictures import write_grid
from ddm_fed.storage.files import UNREADABLE_ARCHIVE, new_file_at, open_folder_at
from ddm_fed.storage.numpy_files import require_honest_archive

GRID_SAMPLES = 100
REDRAW = "delete that file and run the same command again: its samples are drawn again"


def read_chunks(files: Sequence[Path]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields the arrays of every file, one file in memory at a time."""
    for file in files:
        yield read_chunk(file)


def read_chunk(file: Path) -> dict[str, NDArray[Any]]:
    """Returns the arrays of one file, which may have come from another machine.

    Raises:
        StateError: it is damaged, or holds what is no array.
    """
    try:
        require_honest_archive(file)
        with np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except UNREADABLE_ARCHIVE as error:
        raise StateError(f"{file} cannot be read: {error}", hint=REDRAW) from None


def require_arrays(
    file: Path,
    arrays: Mapping[str, NDArray[Any]],
    expected: Mapping[str, tuple[str, tuple[int, ...]]],
    *,
    sites: int,
) -> None:
    """Refuses a file whose arrays are not those of its samples.

    Args:
        file: For the message.
        arrays: What it holds.
        expected: Kind (as `dtype.kind`) and shape of every array by name.
        sites: How many there are; `sites` counts from 0 to one below.

    Raises:
        StateError: naming what differs.
    """
    for name, (kind, shape) in expected.items():
        found = arrays.get(name)
        if found is None or found.dtype.kind != kind or found.shape != shape:
            held = "is missing" if found is None else f"is {found.dtype} of shape {found.shape}"
            raise StateError(f"{file}: `{name}` {held}, expected {shape}", hint=REDRAW)
    if "sites" in expected and not np.isin(arrays["sites"], np.arange(sites)).all():
        raise StateError(f"{file}: `sites` names a site that there is not", hint=REDRAW)


@names_its_path
def write_archive(path: Path, files: Sequence[Path], count: int) -> None:
    """Writes what `np.savez_compressed` would, one chunk in memory at a time."""
    first = next(read_chunks(files))
    with (
        open_folder_at(path.parent) as folder,
        new_file_at(folder, path.name) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in ("images", "latents", "sites", "labels", "prompts", "attribution"):
            if name not in first:
                continue
            # an entry of no date: the same samples are the same bytes
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            header = np.lib.format.header_data_from_array_1_0(first[name])
            header["shape"] = (count, *first[name].shape[1:])
            with archive.open(entry, "w", force_zip64=True) as target:
                np.lib.format.write_array_header_1_0(target, header)
                for chunk in read_chunks(files):
                    target.write(np.ascontiguousarray(chunk[name]).tobytes())


def write_first(path: Path, files: Sequence[Path]) -> None:
    """Writes the first samples as one picture."""
    found: list[NDArray[np.uint8]] = []
    for chunk in read_chunks(files):
        found.append(chunk["images"][: GRID_SAMPLES - sum(map(len, found))])
        if sum(map(len, found)) >= GRID_SAMPLES:
            break
    write_grid(path, torch.from_numpy(np.concatenate(found)).float() / 127.5 - 1)
