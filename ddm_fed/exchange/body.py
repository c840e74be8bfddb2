"""The body of a bundle: its tensor files as one run of bytes, so that any way of travel can resume.

The files follow one another in the order of the signed manifest, without gaps. An offset in the
body is all that two sides have to agree on after a break.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ddm_fed.errors import DigestError
from ddm_fed.records import FileSize
from ddm_fed.storage.files import open_regular


class Span(NamedTuple):
    """A stretch of one file.

    Attributes:
        name: The file.
        start: First byte in it.
        length: How many.
    """

    name: str
    start: int
    length: int


class Body:
    """Where the bytes of a body lie.

    Args:
        files: Names and sizes, in the order of the manifest.
    """

    def __init__(self, files: Sequence[FileSize]) -> None:
        self.files = tuple(files)
        self.size_bytes = sum(file.size_bytes for file in self.files)

    def spans(self, offset: int, length: int) -> Iterator[Span]:
        """Yields the stretches of files that hold `length` bytes from `offset` on."""
        begin = 0
        for file in self.files:
            end = begin + file.size_bytes
            start, stop = max(offset, begin), min(offset + length, end)
            if start < stop:
                yield Span(file.name, start - begin, stop - start)
            begin = end


class BodyReader:
    """Reads a body out of open files. `open_body` makes one."""

    def __init__(self, body: Body, files: Mapping[str, BinaryIO]) -> None:
        self.body, self._files = body, files

    def read(self, offset: int, length: int) -> bytes:
        """Returns the bytes from `offset` on, at most `length` and to the end of the body.

        Raises:
            DigestError: a file has become shorter than its manifest says.
        """
        parts = []
        for name, start, count in self.body.spans(offset, length):
            file = self._files[name]
            file.seek(start)
            data = file.read(count)
            if len(data) != count:
                raise DigestError(
                    f"`{name}` ends before byte {start + count}, its manifest says otherwise",
                    hint="it was damaged after it was released; restore it from backup, or train "
                    "and release again",
                )
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def open_body(folder: Path, body: Body) -> Iterator[BodyReader]:
    """Yields a reader of the body whose files lie in `folder`; links are refused.

    Raises:
        FileSetError: a file is missing, or not a plain one.
    """
    with ExitStack() as stack:
        yield BodyReader(
            body,
            {
                file.name: stack.enter_context(open_regular(folder / file.name))
                for file in body.files
            },
        )
