"""The files of chunks of samples as one archive and one picture."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_fed.errors import names_its_path
from ddm_fed.pictures import write_grid
from ddm_fed.storage.files import new_file_at, open_folder_at

GRID_SAMPLES = 100


def read_chunks(files: Sequence[Path]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields the arrays of every file, one file in memory at a time."""
    for file in files:
        with np.load(file) as archive:
            yield dict(archive)


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
