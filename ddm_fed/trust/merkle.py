"""The mathematics of an append-only log: Merkle trees, and the proof that a leaf stands in one.

A leaf and an inner node are hashed with different first bytes, so neither can pass for the other.
That a log only grew is not proved by hashes alone: whoever reads it reads all of it (`log.py`).

A root does not say how many leaves are below it: some trees of other sizes have paths of the same
form. Sizes are believed because the log signs them together with the root (`checkpoint.py`).

Source: RFC 6962 section 2.1; the closed form of the path lengths follows from its definitions.
"""

import hashlib
from collections.abc import Iterable, Sequence

from ddm_fed.errors import LogError

HASH_BYTES = 32


def leaf_hash(data: bytes) -> bytes:
    """Returns the 32-byte hash of a log entry: SHA-256 of 0x00 and `data`."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Returns the 32-byte hash above two hashes: SHA-256 of 0x01, `left` and `right`."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Returns the root of the tree over the leaf hashes `leaves`; SHA-256 of nothing for none."""
    if not leaves:
        return hashlib.sha256().digest()
    level = list(leaves)
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        # the last of an odd number has no sibling yet and rises as it is
        level = [node_hash(*pair) for pair in pairs] + level[len(level) & ~1 :]
    return level[0]


def inclusion_path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Returns the hashes beside the way from leaf `index` to the root, the leaf's sibling first.

    Raises:
        LogError: there is no leaf `index`.
    """
    if not 0 <= index < len(leaves):
        raise LogError(
            f"the log has {len(leaves)} entries, and entry {index} was asked for",
            hint="entries are counted from 0; read the log again, it may have grown meanwhile",
        )
    start, end, path = 0, len(leaves), []
    while end - start > 1:
        middle = start + _left_leaves(end - start)
        if index < middle:
            path.append(merkle_root(leaves[middle:end]))
            end = middle
        else:
            path.append(merkle_root(leaves[start:middle]))
            start = middle
    return tuple(reversed(path))


def verify_inclusion(
    leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes, *, what: str
) -> None:
    """Refuses a `path` that does not lead from `leaf` at `index` to the `root` of `size` leaves.

    Args:
        leaf: The hash of the entry, computed here from the entry itself (`leaf_hash`).
        index: Where it stands, counted from 0.
        size: The number of leaves, from the same checkpoint as `root`.
        path: The hashes beside the way, the leaf's sibling first.
        root: The root, from a checkpoint whose signature holds.
        what: The proof's name in messages.

    Raises:
        LogError: a number or a length that cannot be, or another root.
    """
    if size < 1:
        raise _no_proof(what, f"it is about a log of {size} entries, expected at least 1")
    if not 0 <= index < size:
        raise _no_proof(what, f"it is about entry {index}, expected 0 to {size - 1}")
    _require_hashes((leaf, root, *path), what)
    inner, border = _form(index, size)
    _require_length(path, inner + border, what)
    found = _climb_right_edge(_climb(leaf, index, path[:inner]), path[inner:])
    if found != root:
        raise LogError(
            f"{what} leads to the root {found.hex()[:16]}…, the log of {size} entries has "
            f"{root.hex()[:16]}…",
            hint="the entry is not in the log at that place, or was altered after it was logged; "
            "fetch both again, and ask whoever keeps the log",
        )


def _left_leaves(size: int) -> int:
    """Returns the largest power of two below `size`: how many leaves the left subtree has."""
    return 1 << (size - 1).bit_length() - 1


def _form(index: int, size: int) -> tuple[int, int]:
    """Returns how many hashes lie below and along the right edge of the tree.

    Below the edge every node has a sibling; along it only the left ones are there.
    """
    inner = (index ^ (size - 1)).bit_length()
    return inner, (index >> inner).bit_count()


def _climb(start: bytes, index: int, path: Sequence[bytes]) -> bytes:
    """Returns the hash above `start`; the bits of `index` say on which side it stands."""
    found = start
    for height, sibling in enumerate(path):
        left = index >> height & 1
        found = node_hash(sibling, found) if left else node_hash(found, sibling)
    return found


def _climb_right_edge(start: bytes, path: Sequence[bytes]) -> bytes:
    """Returns the hash above `start` where every sibling stands to the left."""
    found = start
    for sibling in path:
        found = node_hash(sibling, found)
    return found


def _require_hashes(hashes: Iterable[bytes], what: str) -> None:
    for item in hashes:
        if len(item) != HASH_BYTES:
            raise _no_proof(what, f"it holds a hash of {len(item)} bytes, expected {HASH_BYTES}")


def _require_length(path: Sequence[bytes], expected: int, what: str) -> None:
    if len(path) != expected:
        raise _no_proof(what, f"its path has {len(path)} hashes, expected {expected}")


def _no_proof(what: str, reason: str) -> LogError:
    return LogError(
        f"{what} proves nothing: {reason}",
        hint="the proof was made for another entry or another log; fetch it again together with "
        "its checkpoint",
    )
