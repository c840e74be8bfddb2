"""Parquet files as Hugging Face writes them: a column of images, and columns about them."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddm_fed.errors import DataError, StateError, printable
from sites.data.folder import stamp_of
from sites.data.image_file import decode_picture
from sites.data.picture import Item, Picture, PictureError, Source, Wanted
from sites.data.table import COLUMNS, to_row

ROWS = 64  # read at once: they hold whole images


@dataclass(frozen=True, kw_only=True)
class ParquetItem(Item):
    """One row, with the bytes of its image."""

    data: bytes | None

    def pictures(self, wanted: Wanted) -> Iterator[Picture]:
        """Yields its images; see `Item`."""
        if self.data is None:
            raise PictureError("its row holds no image")
        yield decode_picture(io.BytesIO(self.data), wanted)


@dataclass(frozen=True)
class ParquetSource(Source):
    """The rows of parquet files, file after file in the order given."""

    files: list[Path]
    unused: set[str] = field(default_factory=set)

    def count(self) -> int:
        """Returns how many items there are."""
        return sum(_opened(path).metadata.num_rows for path in self.files)

    def stamps(self) -> Iterator[str]:
        """Yields what changes when the files do."""
        for path in self.files:
            yield f"{path}:{stamp_of(path)}"

    def items(self) -> Iterator[Item]:
        """Yields the items, always in the same order."""
        for path in self.files:
            file = _opened(path)
            image, names = _image_column(file, path), _class_names(file)
            wanted = [image, *(name for name in file.schema_arrow.names if _is_read(name, image))]
            self.unused.update(set(map(printable, file.schema_arrow.names)) - set(wanted))
            number = 0
            try:
                for batch in file.iter_batches(batch_size=ROWS, columns=wanted):
                    for values in batch.to_pylist():
                        number += 1
                        yield self._item(path, number, values, image, names)
            except (OSError, ValueError) as error:
                raise _broken(path, error) from None

    def _item(
        self, path: Path, number: int, values: dict[str, Any], image: str, names: dict[str, Any]
    ) -> Item:
        held = values.pop(image)
        said = to_row(values, path, number, self.unused)
        label = said.label
        known = next((names[name] for name in values if name in names), None)
        if isinstance(label, int) and known is not None:
            label = str(known[label]) if 0 <= label < len(known) else None
        return ParquetItem(
            name=f"{printable(path.name)}: row {number}",
            stamp="",
            data=held.get("bytes") if isinstance(held, dict) else held,
            label=label,
            caption=said.caption,
            unit_id=said.unit,
        )


def _is_read(name: str, image: str) -> bool:
    known = {each for meant, names in COLUMNS.items() if meant != "file" for each in names}
    return name != image and name.strip().lower() in known


def _image_column(file: Any, path: Path) -> str:
    """Returns the column that holds the bytes of images: as such, or beside their paths."""
    import pyarrow as pa

    found = [
        column.name
        for column in file.schema_arrow
        if pa.types.is_binary(column.type)
        or pa.types.is_large_binary(column.type)
        or (pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0)
    ]
    if len(found) != 1:
        held = ", ".join(map(printable, file.schema_arrow.names)) or "no columns"
        raise DataError(
            f"{path} has {len(found)} columns of images, one is needed; it holds {held}",
            hint="write images as bytes, or as Hugging Face does: {bytes, path}",
        )
    return str(found[0])


def _class_names(file: Any) -> dict[str, list[str]]:
    """Returns the names of classes by column, where Hugging Face wrote them into the file."""
    kept = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(kept)["info"]["features"] if kept else {}
        return {
            name: list(map(str, kind["names"]))
            for name, kind in features.items()
            if isinstance(kind, dict) and isinstance(kind.get("names"), list)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _opened(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise StateError(
            f"`pyarrow` cannot be imported ({error}), and parquet files need it",
            hint="pip install 'ddm-fed[parquet]'",
        ) from None
    try:
        return ParquetFile(path)
    except (OSError, ValueError) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is no whole parquet file ({type(error).__name__})", hint="copy it again"
    )
