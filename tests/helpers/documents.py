"""What documents tell people to type. Loaded by the tests that hold documents to their word."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a document.

    Attributes:
        section: The heading of the second level that it stands under.
        kind: What follows the fence: `sh`, `toml`, or nothing.
        text: Its lines.
    """

    section: str
    kind: str
    text: str


def blocks_of(document: Path) -> list[Block]:
    """Returns every fenced block of a document, in its order."""
    found, text = [], document.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        headings = re.findall(r"^## (.+)$", text[: match.start()], re.MULTILINE)
        found.append(Block(headings[-1] if headings else "", match["kind"], match["text"]))
    return found
