"""Which kind of source a path is: one interface for all that are read file by file.

| source | what it is |
| --- | --- |
| a folder of images, with a subfolder per class or without | `folder.py` |
| a folder of DICOM files, or one | `folder.py`, `dicom.py` |
| a folder of images with `metadata.csv` or `.jsonl` (Hugging Face) | `manifest.py` |
| a table of files: `.csv` or `.jsonl` | `manifest.py` |
| shards `.tar` (WebDataset) | `webdataset.py` |
| `.parquet` (Hugging Face) | `parquet.py` |

What a path is shows by itself; `dicom:PATH` and the like say it where a folder holds several kinds.
"""

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from braceexpand import braceexpand

from ddm_fed.errors import DataError, guess, printable
from ddm_fed.records import DataSpec, PrivacyUnit
from sites.data.dicom import SUFFIXES as DICOM_SUFFIXES
from sites.data.find_files import Folder, note_splits
from sites.data.folder import FolderSource, SingleFile
from sites.data.image_file import SUFFIXES as PICTURES
from sites.data.manifest import METADATA, ManifestSource
from sites.data.parquet import ParquetSource
from sites.data.picture import Source
from sites.data.report import DataReport
from sites.data.webdataset import WebDatasetSource

MOST_SHARDS = 1_000_000
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
MANIFESTS = (".csv", ".jsonl")
KINDS = ("folder", "dicom", "manifest", "webdataset", "parquet")


def find_source(
    source: str, spec: DataSpec, report: DataReport, unit: PrivacyUnit = "image"
) -> Source:
    """Returns the source that `source` names.

    Args:
        source: A path, perhaps with a kind in front (`dicom:scans`), of shards also a pattern such
            as `shards-{000..099}.tar`.
        spec: Of the plan.
        report: Gets a note of everything that is left out, and of what looks like a mistake.
        unit: What the plan protects: a table of units beside the images is read for patients only.

    Raises:
        DataError: it names nothing that is read.
    """
    kind, path = _split(source)
    if not Path(path).is_dir():
        return _of_files(kind or _kind_of_name(path), path, source)
    folder = Folder.survey(Path(path))
    return _of_folder(kind or _kind_of_folder(folder), folder, spec, report, unit)


def _split(source: str) -> tuple[str | None, str]:
    kind, colon, path = source.partition(":")
    return (kind, path) if colon and kind in KINDS else (None, source)


def _kind_of_name(path: str) -> str | None:
    suffix = Path(path).suffix.lower()
    if suffix == ".tar" or path.lower().endswith((".tar.gz", ".tgz", ".tar.zst")):
        return "webdataset"
    if suffix == ".parquet":
        return "parquet"
    if suffix in MANIFESTS:
        return "manifest"
    return "dicom" if suffix in DICOM_SUFFIXES else None


def _kind_of_folder(folder: Folder) -> str:
    path = folder.path
    if (found := [name for name in METADATA if (path / name).is_file()]) and folder.pictures:
        if len(found) > 1:
            raise DataError(f"{path} holds {' and '.join(found)}", hint="keep one of them")
        return "manifest"
    if folder.pictures:
        return "folder"
    kinds = {"dicom": folder.dicom, "webdataset": folder.shards, "parquet": folder.parquet}
    held = [kind for kind, files in kinds.items() if files]
    if len(held) > 1:
        raise DataError(
            f"{path} holds files of several kinds: {', '.join(held)}",
            hint=f"say which is meant, for example --data {held[0]}:{path}",
        )
    return (held or ["folder"])[0]


def _of_folder(
    kind: str, folder: Folder, spec: DataSpec, report: DataReport, unit: PrivacyUnit
) -> Source:
    if kind in ("folder", "dicom"):
        return FolderSource.open(folder, spec, report, unit, dicom=kind == "dicom")
    if kind == "manifest":
        names = [name for name in METADATA if (folder.path / name).is_file()]
        if not names:
            raise DataError(
                f"{folder.path} holds none of {', '.join(METADATA)}",
                hint="give the table itself: --data manifest:FILE.csv",
            )
        return ManifestSource.of_folder(folder, names[0], report)
    files = folder.shards if kind == "webdataset" else folder.parquet
    if not files:
        raise DataError(
            f"{folder.path} holds no {'.tar' if kind == 'webdataset' else '.parquet'} files",
            hint="check the path",
        )
    note_splits([path.name for path in files], report)
    return _opener(kind)(files)


def _of_files(kind: str | None, path: str, source: str) -> Source:
    if kind in ("webdataset", "parquet"):
        return _opener(kind)(_expanded(path))
    if not Path(path).is_file():
        raise DataError(
            f"{source} is neither `digits`, an .npz or .npy file, a table, a shard, nor a folder"
            f"{guess(path, ('digits',))}",
            hint="give a path that exists, or `digits` to try things out",
        )
    if kind == "manifest":
        return ManifestSource.of_table(Path(path))
    if kind == "dicom":
        return SingleFile(Path(path))
    if Path(path).suffix.lower() not in PICTURES:
        raise DataError(
            f"{source} is a file of a kind that is not read here",
            hint="give an .npz or .npy file, a table .csv or .jsonl, shards .tar, a .parquet file, "
            "or a folder of images; docs/data.md describes each",
        )
    raise DataError(f"{source} is one file", hint="give the folder that it lies in")


def _matching(name: str) -> list[str]:
    path = Path(name)
    return sorted(map(str, path.parent.glob(path.name))) or [name] if "*" in path.name else [name]


def _opener(kind: str) -> Callable[[list[Path]], Source]:
    return WebDatasetSource if kind == "webdataset" else ParquetSource


def _expanded(pattern: str) -> list[Path]:
    """Returns the files that a pattern with braces or asterisks names, in order."""
    try:
        # looked at first: expanding takes each range into memory as a whole
        ranges = [abs(int(last) - int(first)) for first, last in RANGE.findall(pattern)]
        most = max(ranges, default=0)
        names = [] if most >= MOST_SHARDS else list(islice(braceexpand(pattern), MOST_SHARDS + 1))
    except ValueError:
        raise DataError(
            f"{printable(pattern)} has a brace without its other", hint="{000..099}, or {a,b}"
        ) from None
    if not names or len(names) > MOST_SHARDS:
        raise DataError(
            f"{printable(pattern)} names more than {MOST_SHARDS} files", hint="check the pattern"
        )
    found = [each for name in names for each in _matching(name)]
    missing = [name for name in found if not Path(name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(found)} files of {printable(pattern)} are missing, for "
            f"example {printable(missing[0])}",
            hint="check the pattern: {000..099} counts from 000 to 099",
        )
    return [Path(name) for name in found]
