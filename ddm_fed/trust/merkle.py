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


class MerkleTree:
    """A tree that grows leaf by leaf and keeps the hash of every complete subtree.

    A leaf costs two hashes on average. A root or a path, at any size the tree has had, costs no
    more of them than the square of the tree's height: a log of many leaves is appended to, and
    proofs are made for all of its members, in time that follows their number.

    Example:
        >>> tree = MerkleTree([leaf_hash(b"a"), leaf_hash(b"b")])
        >>> earlier = tree.root()
        >>> tree.append(leaf_hash(b"c"))
        >>> tree.root(2) == earlier
        True

    Args:
        leaves: Hashes of the first entries, 32 bytes each.
    """

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        # level h holds the hashes of the complete subtrees of 2^h leaves, from the left
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaves:
            self.append(leaf)

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self._levels[0])

    @property
    def leaves(self) -> Sequence[bytes]:
        """The leaf hashes."""
        return self._levels[0]

    def append(self, leaf: bytes) -> None:
        """Adds the 32-byte hash of the next entry."""
        node = leaf
        for height in range(self.size.bit_length() + 1):
            if height == len(self._levels):
                self._levels.append([])
            level = self._levels[height]
            level.append(node)
            if len(level) % 2:  # its sibling has yet to come
                return
            node = node_hash(level[-2], level[-1])

    def root(self, size: int | None = None) -> bytes:
        """Returns the root over the first `size` leaves, by default all; SHA-256 of nothing for 0.

        Raises:
            LogError: there are not so many.
        """
        size = self.size if size is None else size
        self._require_size(size, least=0)
        return self._node(0, size) if size else hashlib.sha256().digest()

    def inclusion_path(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """Returns the hashes beside the way from leaf `index` to the root, its sibling first.

        Args:
            index: The leaf, counted from 0.
            size: Of the tree the path is for: its first leaves; by default all.

        Raises:
            LogError: there is no leaf `index`.
        """
        size = self.size if size is None else size
        self._require_size(size, least=0)
        if not 0 <= index < size:
            raise LogError(
                f"the log has {size} entries, and entry {index} was asked for",
                hint="entries are counted from 0; read the log again, it may have grown meanwhile",
            )
        start, end, path = 0, size, []
        while end - start > 1:
            middle = start + _left_leaves(end - start)
            if index < middle:
                path.append(self._node(middle, end))
                end = middle
            else:
                path.append(self._node(start, middle))
                start = middle
        return tuple(reversed(path))

    def _node(self, start: int, end: int) -> bytes:
        """Returns the hash above the leaves from `start` to before `end`, which is a subtree."""
        size = end - start
        if size & (size - 1) == 0:  # complete, and so it begins at a multiple of its size
            height = size.bit_length() - 1
            return self._levels[height][start >> height]
        middle = start + _left_leaves(size)
        return node_hash(self._node(start, middle), self._node(middle, end))

    def _require_size(self, size: int, *, least: int) -> None:
        if not least <= size <= self.size:
            raise LogError(
                f"the log has {self.size} entries, and its state at {size} was asked for",
                hint=f"ask for a size from {least} to the size of the log; an empty log proves "
                "nothing",
            )


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
