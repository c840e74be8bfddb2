"""What the folder of a site and the folder of a coordinator have in common.

A home is a folder with a short TOML file of settings, written last when it is made, and a lock
that lets one process at a time change it.
"""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ddm_fed.errors import StateError
from ddm_fed.records import Record, canonical_json, explain
from ddm_fed.storage.files import exclusive, is_locked, sweep_parts, write_atomically

DEEPER = ("inbox/receipts", "store/blobs", "store/manifests")  # where documents are written, too
SettingsT = TypeVar("SettingsT", bound=Record)


class Home:
    """A folder one process at a time may change.

    Args:
        path: The folder.
    """

    path: Path

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Holds the folder's lock; it is freed however the process ends.

        Raises:
            BusyError: another process holds it.
        """
        with exclusive(self.path / ".lock"):
            inner = [path for path in self.path.iterdir() if path.is_dir()]
            for folder in (self.path, *inner, *(self.path / name for name in DEEPER)):
                sweep_parts(folder)
            yield

    def is_busy(self) -> bool:
        """Returns whether another process holds the lock just now."""
        return is_locked(self.path / ".lock")


def require_new(folder: Path, settings_file: str) -> None:
    """Refuses to make a home where there is one, or where it cannot be.

    Raises:
        StateError: `folder` is a home already, or not a folder.
    """
    import tomlkit  # noqa: F401 - what writes the settings: without it nothing is to be made

    if (folder / settings_file).exists():
        raise StateError(
            f"{folder} holds {settings_file} already",
            hint="choose another folder, or use the one there is",
        )
    if folder.exists() and not folder.is_dir():
        raise StateError(f"{folder} is not a folder", hint="choose another path")


def read_settings(file: Path, kind: type[SettingsT], *, hint: str) -> SettingsT:
    """Returns the settings in the TOML `file`.

    Args:
        file: `site.toml` or `coordinator.toml`.
        kind: Which settings.
        hint: What to do if there is no such file.

    Raises:
        StateError: the file is missing or not valid.
    """
    try:
        values = tomllib.loads(file.read_bytes().decode("utf-8-sig"), parse_float=str)
        return kind.model_validate_json(canonical_json(values))
    except (FileNotFoundError, NotADirectoryError):
        raise StateError(f"there is no {file.name} in {file.parent}", hint=hint) from None
    except ValidationError as error:
        reason = explain(error, kind)
    except (ValueError, TypeError) as error:  # not UTF-8, not TOML, or a bare date
        reason = str(error)
    raise StateError(
        f"{file} is not valid: {reason}", hint="correct it by hand, it is a short file"
    )


def write_settings(file: Path, settings: Record, *, heading: str) -> None:
    """Writes settings as TOML.

    Args:
        file: `site.toml` or `coordinator.toml`. Of one that is there already the values change,
            and comments stay.
        settings: What it says from now on. What is None is left out.
        heading: Lines of comment at the top of a new file.
    """
    import tomlkit

    if file.exists():
        document = tomlkit.parse(file.read_bytes().decode("utf-8-sig"))
    else:
        document = tomlkit.document()
        for line in heading.splitlines():
            document.add(tomlkit.comment(line))
    for key, value in settings.model_dump(mode="json").items():
        if value is not None:
            document[key] = value
        elif key in document:
            del document[key]
    write_atomically(file, tomlkit.dumps(document).encode())
