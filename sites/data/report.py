"""What was done to images on the way in, and what was left out; for the site's own eyes."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

EXAMPLES = 3  # names shown of a kind that was left out
NARROW = 0.1  # values within less than this part of their range are nearly one shade


@dataclass
class DataReport:
    """What was found, taken, changed and left out. Nothing of it leaves the site.

    Attributes:
        source: What was asked for.
        count: Images that were taken.
        seen: Files and folders of a folder that were looked at, taken or not; 0 of other sources.
        skipped: Image files that cannot be read, each with its reason.
        left_out: Other files that were not taken: reason, and their names.
        classes: Images of each class of the plan.
        values: The darkest and the brightest value.
        sizes: How many images were of which size and colours.
        notes: What was changed.
        items: For each image its number in the source; None where images are rows of an array.
        doubts: What looks like a mistake: to be answered before anything is spent.
    """

    source: str
    count: int = 0
    seen: int = 0
    skipped: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    values: list[str] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    items: NDArray[np.int64] | None = None

    def leave_out(self, reason: str, name: str) -> None:
        """Notes that the file `name` was not taken."""
        self.left_out.setdefault(reason, []).append(name)

    def left_out_lines(self) -> list[str]:
        """Returns a line for each reason: how many files, and some of their names."""
        return [
            f"{len(names)} {reason}: {examples(names)}" for reason, names in self.left_out.items()
        ]

    def note_changes(self, changes: Counter[str]) -> None:
        """Notes what was done to how many of the images."""
        self.notes += [f"{done} ({count} of them)" for done, count in sorted(changes.items())]

    def note_values(self, what: str, found: tuple[float, float], span: tuple[float, float]) -> None:
        """Notes the darkest and brightest value `found`, where `span` is black to white."""
        said = f"{what} run from {found[0]:g} to {found[1]:g}; "
        said += f"{span[0]:g} is black, {span[1]:g} white"
        self.values.append(said)
        if found[1] - found[0] < NARROW * (span[1] - span[0]):
            self.doubts.append(
                f"{said}: they use less than a tenth of that range and are nearly one shade. If "
                "black and white are other values, state them with --value-range LOW HIGH (12-bit "
                "values: 0 4095; Hounsfield units of CT: -1000 1000)"
            )


def examples(names: list[str]) -> str:
    """Returns the first of `names`, and how many there are besides."""
    more = len(names) - EXAMPLES
    return ", ".join(names[:EXAMPLES]) + (f" and {more} more" if more > 0 else "")
