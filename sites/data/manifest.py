"""Tables that say of every file its label, caption and unit: ours, and Hugging Face's metadata."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from ddm_fed.errors import DataError, printable
from sites.data.find_files import Folder
from sites.data.folder import file_item, stamp_of
from sites.data.picture import Item, Source
from sites.data.report import DataReport, examples
from sites.data.table import Row, read_table

METADATA = ("metadata.csv", "metadata.jsonl")


@dataclass(frozen=True)
class ManifestSource(Source):
    """The files that a table names, in its order; read again for every pass, never kept whole.

    Paths are relative to the table's folder, or absolute: its author chose them.
    """

    table: Path
    by_class: bool = False
    unused: set[str] = field(default_factory=set)

    @classmethod
    def of_table(cls, table: Path) -> Self:
        """Returns the source of a table by itself.

        Raises:
            DataError: it is malformed, names a file twice, or one that is missing.
        """
        source = cls(table)
        source._require_files()
        return source

    @classmethod
    def of_folder(cls, folder: Folder, name: str, report: DataReport) -> Self:
        """Returns the source of a folder whose files the table `name` in it describes.

        Where the table has no labels, subfolders are the classes.

        Raises:
            DataError: as `of_table`.
        """
        table = folder.path / name
        labelled = any(row.label is not None for row in read_table(table, set()))
        source = cls(table, by_class=not labelled)
        listed = source._require_files()
        taken = [path for path in (*folder.pictures, *folder.dicom) if _plain(path) in listed]
        folder.note(report, taken=[*taken, *folder.shards, *folder.parquet])
        absent = [path for path in folder.pictures if _plain(path) not in listed]
        if absent:
            names = [printable(path.relative_to(folder.path).as_posix()) for path in absent]
            report.doubts.append(
                f"{len(absent)} images of the folder are not in {name} and are left out: "
                f"{examples(names)}. Give them a row, or move them away"
            )
        return source

    def _require_files(self) -> set[str]:
        """Returns the paths that the table names, each once and each a file."""
        found, missing, count = set[str](), list[str](), 0
        for row, path in self._rows():
            if _plain(path) in found:
                raise DataError(
                    f"{self.table} names {printable(row.file)} twice, the second time in line "
                    f"{row.line}",
                    hint="keep one row for every file",
                )
            found.add(_plain(path))
            count += 1
            if not path.exists():
                missing.append(printable(row.file))
        if missing:
            raise DataError(
                f"{self.table} names {count} files, and {len(missing)} of them are missing: "
                f"{examples(missing)}",
                hint=f"write paths relative to {self.table.parent}, with forward slashes",
            )
        return found

    def _rows(self) -> Iterator[tuple[Row, Path]]:
        for row in read_table(self.table, self.unused):
            path = self.table.parent / row.file.replace("\\", "/")
            if not path.exists():  # a table of one system may compose accents in another way
                for form in ("NFC", "NFD"):
                    other = self.table.parent / unicodedata.normalize(form, row.file)
                    path = other if other.exists() else path
            yield row, path

    @property
    def labels_are_folders(self) -> bool:  # type: ignore[override]
        """Whether labels are the names of subfolders."""
        return self.by_class

    def count(self) -> int:
        """Returns how many items there are."""
        return sum(1 for _ in self._rows())

    def items(self) -> Iterator[Item]:
        """Yields the items, always in the same order."""
        for row, path in self._rows():
            label = row.label
            if self.by_class and path.parent != self.table.parent:
                top = path.relative_to(self.table.parent).parts[0]
                label = unicodedata.normalize("NFC", top)
            yield file_item(path, row.file, label=label, caption=row.caption, unit_id=row.unit)

    def stamps(self) -> Iterator[str]:
        """Yields what changes when the files do."""
        yield f"{self.table}:{stamp_of(self.table)}:{self.by_class}"
        for row, path in self._rows():
            yield f"{row.file}:{stamp_of(path)}"


def _plain(path: Path) -> str:
    return str(path.absolute())
