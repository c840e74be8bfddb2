"""NumPy's files, looked at before NumPy believes their headers.

A header of a hundred bytes may claim 25 GB, which NumPy allocates before it reads; or sizes below
zero, which mean "whatever fits"; or sizes beyond what its integers hold.
"""

import math
import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def require_honest_array(path: Path) -> None:
    """Refuses an `.npy` whose header claims something else than the file holds.

    Raises:
        ValueError: saying what it claims.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        _require_honest(file, os.fstat(file.fileno()).st_size, path.name)


def require_honest_archive(path: Path) -> None:
    """Refuses an `.npz` with an array that claims something else than its entry holds.

    Raises:
        ValueError: naming the entry and what it claims.
        OSError, zipfile.BadZipFile: it cannot be read.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            with archive.open(entry) as file:
                _require_honest(file, entry.file_size, entry.filename)
            if entry.file_size > memory:  # unpacked; NumPy reads it as a whole
                raise ValueError(
                    f"`{entry.filename}` unpacks to {entry.file_size} bytes, this machine has "
                    f"{memory} bytes of memory: store it as .npy, which is mapped"
                )


def _require_honest(file: IO[bytes], size_bytes: int, name: str) -> None:
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"`{name}` is of version {version} of the format, which holds records")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        return  # NumPy refuses it where it is asked for
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"`{name}` claims the shape {shape}")
    claimed, held = math.prod(shape) * dtype.itemsize, size_bytes - file.tell()
    if claimed != held:
        raise ValueError(
            f"`{name}` claims the shape {shape} of {dtype}, {claimed} bytes, and holds {held}"
        )
