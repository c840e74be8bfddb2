"""A training as other programs show it, on this machine only: what their writers have in common.

All of it is private. A loss says what images of the site the network knows, whatever noise the
weights have, and samples of an unfinished expert are nobody's release.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ddm_fed.errors import OptionError
from ddm_fed.progress import StepReport, Watch

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of two letters and more: not a drive


class Writer(Protocol):
    """Writes one training for one program, into a folder of this machine."""

    def write(self, report: StepReport) -> None:
        """Writes what `scalars_of` returns for a step."""

    def close(self) -> None:
        """Writes what is left; no step follows."""


def scalars_of(report: StepReport) -> dict[str, float]:
    """Returns what is shown of a step, by the names that it has in every program."""
    return {"loss": report.loss, "images per second": report.images_per_s}


@contextmanager
def shown_by(writer: Writer, watch: Watch) -> Iterator[Watch]:
    """Yields a watch that hands every step to `writer`, and then all it is told to `watch`."""

    def on_step(report: StepReport) -> None:
        writer.write(report)
        watch.on_step(report)

    try:
        yield replace(watch, on_step=on_step)
    except BaseException:
        with suppress(Exception):  # why the training ended is said, not what follows from it
            writer.close()
        raise
    writer.close()


def require_private(option: str, folder: Path, site: Path) -> None:
    """Refuses a folder that is no private one of this machine.

    Args:
        option: As it was typed, for the error.
        folder: Where a training is to be shown.
        site: The site's folder.

    Raises:
        OptionError: it is an address, which the program would write to, lies in the outbox, or is
            a file.
    """
    if ADDRESS.match(str(folder)):  # a Path keeps one slash
        raise OptionError(
            f"{option} {folder}: what is shown of a training is private and stays on this machine",
            hint="give a folder of this machine, such as private-board",
        )
    if folder.resolve().is_relative_to((site / "outbox").resolve()):
        raise OptionError(
            f"{option} {folder}: what lies in the outbox is there to leave",
            hint="give another folder; nothing of it may leave",
        )
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{option} {folder}: this is a file", hint="give a folder")
