"""Merkle trees and their proofs: published vectors, the RFC's definitions, every forgery."""

import base64
import hashlib
import json
import time
from pathlib import Path

import pytest

from ddm_fed.errors import LogError
from ddm_fed.trust import (
    MerkleTree,
    leaf_hash,
    node_hash,
    verify_inclusion,
)

VECTORS = Path(__file__).parents[4] / "shared" / "vectors"
needs_vectors = pytest.mark.skipif(
    not VECTORS.is_dir(), reason=f"the published test vectors are not at {VECTORS}"
)
SIZES = range(41)
WHAT = "the proof"

# The test data of certificate transparency: eight entries and the root of their tree.
PUBLISHED_ENTRIES = (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
)  # fmt: skip
PUBLISHED_ROOT = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"

ENTRIES = [b"entry %d" % number for number in range(max(SIZES) + 1)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]


def merkle_root(leaves: list[bytes]) -> bytes:
    return MerkleTree(leaves).root()


def inclusion_path(leaves: list[bytes], index: int) -> tuple[bytes, ...]:
    return MerkleTree(leaves).inclusion_path(index)


# Section 2.1 of RFC 6962, word for word and slowly: D is a list of entries, not of hashes


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def split(n: int) -> int:
    """Returns k, the largest power of two smaller than n."""
    return max(2**power for power in range(n) if 2**power < n)


def mth(D: list[bytes]) -> bytes:
    if not D:
        return sha256(b"")
    if len(D) == 1:
        return sha256(b"\x00" + D[0])
    k = split(len(D))
    return sha256(b"\x01" + mth(D[:k]) + mth(D[k:]))


def rfc_path(m: int, D: list[bytes]) -> list[bytes]:
    if len(D) == 1:
        return []
    k = split(len(D))
    if m < k:
        return [*rfc_path(m, D[:k]), mth(D[k:])]
    return [*rfc_path(m - k, D[k:]), mth(D[:k])]


def path_form(m: int, n: int) -> str:
    """Returns on which side the siblings of leaf m stand in a tree of n leaves, lowest first."""
    if n == 1:
        return ""
    k = split(n)
    return path_form(m, k) + "R" if m < k else path_form(m - k, n - k) + "L"


def includes(leaf: bytes, index: int, size: int, path, root: bytes) -> bool:
    try:
        verify_inclusion(leaf, index, size, path, root, what=WHAT)
    except LogError:
        return False
    return True


def flips(data: bytes):
    """Yields `data` with each of its bits changed, one at a time."""
    number = int.from_bytes(data, "big")
    for bit in range(8 * len(data)):
        yield (number ^ (1 << bit)).to_bytes(len(data), "big")


def path_flips(path):
    for position, item in enumerate(path):
        for other in flips(item):
            yield (*path[:position], other, *path[position + 1 :])


# Published vectors


def published(kind: str) -> list[tuple[str, dict]]:
    return list(json.loads((VECTORS / "rfc6962_merkle.json").read_bytes())[kind].items())


def unpacked(case: dict, *names: str) -> list[bytes]:
    return [base64.b64decode(case[name]) for name in names]


def path_of(case: dict) -> list[bytes]:
    return [base64.b64decode(item) for item in case["proof"] or []]


def inclusion_verdict(case: dict) -> bool:
    leaf, root = unpacked(case, "leafHash", "root")
    return includes(leaf, case["leafIdx"], case["treeSize"], path_of(case), root)


@needs_vectors
def test_inclusion_verdicts_of_the_published_vectors_are_ours():
    cases = published("inclusion")
    wrong = [name for name, case in cases if inclusion_verdict(case) == case["wantErr"]]
    assert (len(cases), wrong) == (98, [])


@needs_vectors
def test_published_vectors_of_empty_trees_and_empty_hashes_are_refused():
    empty = [
        inclusion_verdict(case)
        for _, case in published("inclusion")
        if case["treeSize"] == 0 or "" in (case["leafHash"], case["root"])
    ]
    assert len(empty) >= 2
    assert not any(empty)


def test_root_of_the_published_entries_is_the_published_root():
    leaves = [leaf_hash(bytes.fromhex(entry)) for entry in PUBLISHED_ENTRIES]
    assert merkle_root(leaves).hex() == PUBLISHED_ROOT


def test_root_of_an_empty_tree_is_the_digest_of_nothing():
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert merkle_root([]).hex() == empty


# The definitions


@pytest.mark.parametrize("size", SIZES)
def test_root_is_that_of_the_definition(size: int):
    assert merkle_root(LEAVES[:size]) == mth(ENTRIES[:size])


@pytest.mark.parametrize("size", SIZES)
def test_inclusion_paths_are_those_of_the_definition_and_verify(size: int):
    root = merkle_root(LEAVES[:size])
    for index in range(size):
        path = inclusion_path(LEAVES[:size], index)
        assert list(path) == rfc_path(index, ENTRIES[:size])
        verify_inclusion(LEAVES[index], index, size, path, root, what=WHAT)


def test_leaf_and_node_of_the_same_bytes_have_different_hashes():
    assert node_hash(LEAVES[0], LEAVES[1]) != leaf_hash(LEAVES[0] + LEAVES[1])


def test_large_tree_is_built_and_proven_in_a_moment():
    leaves = [leaf_hash(b"%d" % number) for number in range(100_001)]
    start = time.perf_counter()
    root = merkle_root(leaves)
    verify_inclusion(
        leaves[77_777], 77_777, len(leaves), inclusion_path(leaves, 77_777), root, what=WHAT
    )
    assert time.perf_counter() - start < 5


# Forged inclusion


@pytest.mark.parametrize("size", range(1, 9))
def test_inclusion_with_any_flipped_bit_of_a_hash_is_refused(size: int):
    root = merkle_root(LEAVES[:size])
    accepted = []
    for index in range(size):
        path = inclusion_path(LEAVES[:size], index)
        leaf = LEAVES[index]
        accepted += [other for other in flips(leaf) if includes(other, index, size, path, root)]
        accepted += [other for other in flips(root) if includes(leaf, index, size, path, other)]
        accepted += [
            other for other in path_flips(path) if includes(leaf, index, size, other, root)
        ]
    assert accepted == []


@pytest.mark.parametrize("size", range(1, 18))
def test_inclusion_at_another_index_of_the_same_log_is_refused(size: int):
    root = merkle_root(LEAVES[:size])
    for index in range(size):
        path = inclusion_path(LEAVES[:size], index)
        found = [
            other for other in range(-2, 70) if includes(LEAVES[index], other, size, path, root)
        ]
        assert found == [index]


@pytest.mark.parametrize("size", range(1, 13))
def test_inclusion_with_another_size_is_refused_unless_the_path_has_the_same_form(size: int):
    # RFC 6962 hashes no size into the root: what the form leaves open, the signed size decides
    root = merkle_root(LEAVES[:size])
    for index in range(size):
        path = inclusion_path(LEAVES[:size], index)
        form = path_form(index, size)
        numbers = [(other, total) for total in range(-1, 20) for other in range(-1, 20)]
        found = [pair for pair in numbers if includes(LEAVES[index], *pair, path, root)]
        assert found == [
            (other, total)
            for other, total in numbers
            if 0 <= other < total and path_form(other, total) == form
        ]


@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_inclusion_with_reordered_shortened_or_longer_path_is_refused(size: int):
    root = merkle_root(LEAVES[:size])
    for index in range(size):
        path = inclusion_path(LEAVES[:size], index)
        others = [path[:-1], path[1:], (*path, root), (root, *path), (*path, path[-1]), ()]
        if len(path) > 1:
            others.append(path[::-1])
        for other in others:
            assert not includes(LEAVES[index], index, size, other, root)


def test_inclusion_of_an_inner_node_as_if_it_were_a_leaf_is_refused():
    inside = node_hash(LEAVES[0], LEAVES[1])
    root = merkle_root(LEAVES[:4])
    path = inclusion_path(LEAVES[:4], 0)[1:]
    assert not includes(leaf_hash(LEAVES[0] + LEAVES[1]), 0, 2, path, root)
    with pytest.raises(LogError, match="its path has 1 hashes, expected 2"):
        verify_inclusion(inside, 0, 4, path, root, what=WHAT)


def test_inclusion_of_an_entry_that_was_never_logged_is_refused_and_both_roots_are_named():
    path = inclusion_path(LEAVES[:5], 2)
    root = merkle_root(LEAVES[:5])
    with pytest.raises(LogError, match=f"the log of 5 entries has {root.hex()[:16]}") as caught:
        verify_inclusion(leaf_hash(b"never"), 2, 5, path, root, what="the proof of bundle 2")
    assert caught.value.message.startswith("the proof of bundle 2 leads to the root ")
    assert "not in the log" in caught.value.hint


@pytest.mark.parametrize("index", [0, 1, -1])
@pytest.mark.parametrize("size", [0, -1])
def test_inclusion_in_an_empty_log_is_refused(index: int, size: int):
    with pytest.raises(LogError, match=f"it is about a log of {size} entries, expected at least 1"):
        verify_inclusion(LEAVES[0], index, size, [], merkle_root([]), what=WHAT)


@pytest.mark.parametrize("index", [-1, 3, 4, 2**64 - 1])
def test_inclusion_beyond_the_end_is_refused(index: int):
    path = inclusion_path(LEAVES[:3], 2)
    with pytest.raises(LogError, match=f"it is about entry {index}, expected 0 to 2"):
        verify_inclusion(LEAVES[2], index, 3, path, merkle_root(LEAVES[:3]), what=WHAT)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
@pytest.mark.parametrize("place", ["leaf", "path", "root"])
def test_inclusion_with_a_hash_of_wrong_length_is_refused(place: str, length: int):
    parts = {"leaf": LEAVES[0], "path": LEAVES[1], "root": merkle_root(LEAVES[:2])}
    parts[place] = bytes(length)
    with pytest.raises(LogError, match=f"it holds a hash of {length} bytes, expected 32"):
        verify_inclusion(parts["leaf"], 0, 2, [parts["path"]], parts["root"], what=WHAT)


def test_inclusion_where_bytes_move_from_one_hash_to_the_next_is_refused():
    # the hash above both would be the same, since only their concatenation enters it
    whole = LEAVES[0] + LEAVES[1]
    with pytest.raises(LogError, match="it holds a hash of 31 bytes"):
        verify_inclusion(whole[:31], 0, 2, [whole[31:]], merkle_root(LEAVES[:2]), what=WHAT)


@pytest.mark.parametrize("index", [-1, 3, 10])
def test_inclusion_path_of_an_entry_that_is_not_there_is_refused(index: int):
    with pytest.raises(LogError, match=f"the log has 3 entries, and entry {index} was asked for"):
        inclusion_path(LEAVES[:3], index)


# Two histories
