"""Folders of image files or of DICOM files, with a subfolder per class or without."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ddm_fed.errors import DataError, FileSetError, printable
from ddm_fed.records import DataSpec, PrivacyUnit
from ddm_fed.storage.files import open_regular
from sites.data.dicom import AT, MAGIC, DicomItem, is_dicom
from sites.data.find_files import Folder, class_folders_look_split, note_suspects
from sites.data.image_file import read_picture
from sites.data.picture import Item, Picture, Source, Wanted
from sites.data.report import DataReport
from sites.data.units import CSV_NAME, IGNORED, read_units_csv


@dataclass(frozen=True, kw_only=True)
class FileItem(Item):
    """One image file."""

    path: Path

    def pictures(self, wanted: Wanted) -> Iterator[Picture]:
        """Yields its images; see `Item`."""
        yield read_picture(self.path, wanted)


def file_item(path: Path, name: str, **said: Any) -> Item:
    """Returns the item that a file is: DICOM if it begins so, whatever its name.

    Args:
        path: The file.
        name: As it is shown.
        said: Label, caption and unit, as the source says.
    """
    try:
        with open_regular(path) as file:
            head = file.read(AT + len(MAGIC))
    except FileSetError:
        head = b""  # which is said where the item is decoded
    kind = DicomItem if is_dicom(head) else FileItem
    return kind(name=printable(name), stamp=stamp_of(path), path=path, **said)


def stamp_of(path: Path) -> str:
    """Returns what changes when a file does, without reading it."""
    try:
        known = path.lstat()
    except OSError:
        return "missing"
    return f"{known.st_size}:{known.st_mtime_ns}"


@dataclass(frozen=True)
class SingleFile(Source):
    """One DICOM file, perhaps of several frames."""

    path: Path

    def count(self) -> int:
        """Returns how many items there are."""
        return 1

    def items(self) -> Iterator[Item]:
        """Yields the items, always in the same order."""
        yield file_item(self.path, self.path.name)


@dataclass(frozen=True)
class FolderSource(Source):
    """The files of a folder, in the order of their paths."""

    folder: Path
    files: list[Path]
    by_class: bool
    dicom: bool
    units: dict[str, str] | None

    labels_are_folders = True

    @classmethod
    def open(
        cls,
        found: Folder,
        spec: DataSpec,
        report: DataReport,
        unit: PrivacyUnit,
        *,
        dicom: bool,
    ) -> Self:
        """Returns the source; notes in `report` what of the folder is not taken.

        Raises:
            DataError: images lie both in subfolders and beside them, or `units.csv` is malformed.
        """
        folder, files = found.path, found.dicom if dicom else found.pictures
        found.note(report, taken=files)
        loose = [path for path in files if path.parent == folder]
        # scanners make a folder per study: those are classes only where the plan has classes
        by_class = bool(files) and not loose and bool(spec.classes or not dicom)
        if loose and len(loose) != len(files) and not (dicom and not spec.classes):
            raise DataError(
                f"{folder} mixes images with subfolders, for example {printable(loose[0].name)}",
                hint="put every image into a class subfolder, or none",
            )
        note_suspects(folder, files, spec.classes, report)
        if by_class:
            _require_no_split(folder, sorted({_top(path, folder) for path in files}), spec)
        units = None
        if (folder / CSV_NAME).is_file() and unit == "image":
            report.notes.append(IGNORED)
        elif (folder / CSV_NAME).is_file():
            names = [path.relative_to(folder).as_posix() for path in files]
            units = read_units_csv(folder / CSV_NAME, names)
        return cls(folder, files, by_class, dicom, units)

    def count(self) -> int:
        """Returns how many items there are."""
        return len(self.files)

    def class_folders(self) -> tuple[str, ...]:
        """Returns the names of the subfolders that images lie in, in order."""
        return tuple(sorted({_top(path, self.folder) for path in self.files}))

    def items(self) -> Iterator[Item]:
        """Yields the items, always in the same order."""
        kind = DicomItem if self.dicom else FileItem
        for path in self.files:
            name = path.relative_to(self.folder).as_posix()
            yield kind(
                name=printable(name),
                stamp=stamp_of(path),
                path=path,
                label=_top(path, self.folder) if self.by_class else None,
                unit_id=None if self.units is None else self.units[name],
            )


def _top(path: Path, folder: Path) -> str:
    """Returns the subfolder that `path` lies in, composed as people write it in a plan."""
    return unicodedata.normalize("NFC", path.relative_to(folder).parts[0])


def _require_no_split(folder: Path, names: list[str], spec: DataSpec) -> None:
    if not names or set(names) & set(spec.classes) or not spec.classes:
        return
    if class_folders_look_split(names):
        raise DataError(
            f"{folder} is divided into {', '.join(names)}, where the plan's classes "
            f"{', '.join(spec.classes[:10])} should be",
            hint=f"give --data the part that is for training, for example {folder / names[0]}",
        )
