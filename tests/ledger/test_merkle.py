"""The tree is RFC 6962's, its proofs hold for every entry and every pair of sizes, and for nothing else."""

import hashlib
import random
from collections.abc import Sequence
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darktree_ledger import merkle

# The vectors that every implementation of Certificate Transparency is tested with.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
CONSISTENCY = {
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
LEAVES = [hashlib.sha256(number.to_bytes(8)).digest() for number in range(70_000)]
EVERY_SIZE = 300


class Tiles:
    """The tiles of some leaves, and which of them were read."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.read: set[merkle.Tile] = set()
        self._rows: list[list[bytes]] = [list(leaves)]
        for level, _, value in merkle.Edge().append(leaves):
            while len(self._rows) <= level:
                self._rows.append([])
            self._rows[level].append(value)

    def __call__(self, level: int, index: int) -> Sequence[bytes]:
        self.read.add((level, index))
        return self._rows[level][index * merkle.TILE_WIDTH : (index + 1) * merkle.TILE_WIDTH]


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:half]) + naive_root(leaves[half:])).digest()


def naive_inclusion(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    if index < half:
        return [*naive_inclusion(index, leaves[:half]), naive_root(leaves[half:])]
    return [*naive_inclusion(index - half, leaves[half:]), naive_root(leaves[:half])]


def test_the_roots_and_proofs_are_those_of_certificate_transparency() -> None:
    leaves = [merkle.leaf_hash(bytes.fromhex(text)) for text in INPUTS]
    assert [merkle.root(leaves[:size]).hex() for size in range(9)] == ROOTS
    tiles = Tiles(leaves)
    for (index, size), proof in INCLUSION.items():
        assert [value.hex() for value in merkle.hashes(merkle.inclusion(index, size), tiles)] == proof
    for (first, second), proof in CONSISTENCY.items():
        assert [value.hex() for value in merkle.hashes(merkle.consistency(first, second), tiles)] == proof


def test_every_leaf_of_every_small_tree_is_proven() -> None:
    tiles = Tiles(LEAVES[:EVERY_SIZE])
    for size in range(1, EVERY_SIZE + 1):
        root = merkle.root(LEAVES[:size])
        for index in range(size):
            proof = merkle.hashes(merkle.inclusion(index, size), tiles)
            assert merkle.verify_inclusion(LEAVES[index], index, size, proof, root)


def test_every_pair_of_small_trees_is_proven_consistent() -> None:
    tiles = Tiles(LEAVES[:EVERY_SIZE])
    roots = [merkle.root(LEAVES[:size]) for size in range(EVERY_SIZE + 1)]
    for second in range(1, EVERY_SIZE + 1):
        for first in range(1, second + 1):
            proof = merkle.hashes(merkle.consistency(first, second), tiles)
            assert merkle.verify_consistency(first, second, proof, roots[first], roots[second])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, len(LEAVES)), st.data())
def test_big_trees_are_what_the_naive_reading_of_the_rfc_says(size: int, data: st.DataObject) -> None:
    index, first = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    tiles = Tiles(LEAVES[:size])
    root = merkle.root(LEAVES[:size])
    assert root == naive_root(LEAVES[:size])
    proof = merkle.hashes(merkle.inclusion(index, size), tiles)
    assert proof == naive_inclusion(index, LEAVES[:size])
    assert merkle.verify_inclusion(LEAVES[index], index, size, proof, root)
    proof = merkle.hashes(merkle.consistency(first, size), tiles)
    assert merkle.verify_consistency(first, size, proof, merkle.root(LEAVES[:first]), root)
    assert merkle.hashes(merkle.whole(size), tiles) == [root]


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 2_000), st.data())
def test_no_flipped_bit_passes(size: int, data: st.DataObject) -> None:
    index, first = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size - 1))
    tiles, root, first_root = Tiles(LEAVES[:size]), merkle.root(LEAVES[:size]), merkle.root(LEAVES[:first])
    inclusion = merkle.hashes(merkle.inclusion(index, size), tiles)
    consistency = merkle.hashes(merkle.consistency(first, size), tiles)

    def flipped(values: list[bytes]) -> list[bytes]:
        place, bit = data.draw(st.integers(0, len(values) - 1)), data.draw(st.integers(0, 255))
        changed = bytearray(values[place])
        changed[bit // 8] ^= 1 << bit % 8
        return [*values[:place], bytes(changed), *values[place + 1 :]]

    assert not merkle.verify_inclusion(LEAVES[index], index, size, flipped(inclusion), root)
    assert not merkle.verify_inclusion(flipped([LEAVES[index]])[0], index, size, inclusion, root)
    assert not merkle.verify_inclusion(LEAVES[index], index, size, inclusion, flipped([root])[0])
    assert not merkle.verify_inclusion(LEAVES[index], (index + 1) % size, size, inclusion, root)
    assert not merkle.verify_inclusion(LEAVES[index], index, size, inclusion[:-1], root)
    assert not merkle.verify_inclusion(LEAVES[index], index, size, [*inclusion, root], root)
    assert not merkle.verify_consistency(first, size, flipped(consistency), first_root, root)
    assert not merkle.verify_consistency(first, size, consistency, *flipped([first_root, root]))
    assert not merkle.verify_consistency(first, size, consistency[:-1], first_root, root)
    assert not merkle.verify_consistency(first, size, [*consistency, root], first_root, root)


def test_what_is_out_of_range_is_refused_and_never_verified() -> None:
    for index, size in ((0, 0), (5, 5), (-1, 5)):
        with pytest.raises(ValueError, match="is not in a tree"):
            merkle.inclusion(index, size)
        assert not merkle.verify_inclusion(LEAVES[0], index, size, [], LEAVES[0])
    for first, second in ((0, 5), (6, 5), (-1, 5)):
        with pytest.raises(ValueError, match="is not the beginning"):
            merkle.consistency(first, second)
        assert not merkle.verify_consistency(first, second, [], LEAVES[0], LEAVES[1])
    assert not merkle.verify_consistency(2, 5, [], LEAVES[0], LEAVES[1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3_000), max_size=20))
def test_an_edge_grows_to_the_same_root_in_whatever_portions(portions: list[int]) -> None:
    edge, start, subtrees = merkle.Edge(), 0, []
    for portion in portions:
        subtrees += edge.append(LEAVES[start : start + portion])
        start += portion
        assert edge.root() == merkle.root(LEAVES[:start])
        assert edge.size == start
    assert sorted(subtrees) == sorted(merkle.Edge().append(LEAVES[:start]))
    for level, index, value in subtrees:
        width = merkle.TILE_WIDTH**level
        assert value == merkle.root(LEAVES[index * width : (index + 1) * width])


def test_an_edge_is_taken_up_again_from_its_tiles() -> None:
    tiles = Tiles(LEAVES)
    for size in (0, 1, 255, 256, 257, 65_535, 65_536, 66_000):
        rows = [tiles(*tile)[:count] for tile, count in merkle.edge_tiles(size)]
        edge = merkle.Edge(rows, size)
        assert edge.root() == merkle.root(LEAVES[:size])
        edge.append(LEAVES[size:])
        assert edge.root() == merkle.root(LEAVES)


def test_a_proof_among_ten_million_leaves_reads_a_handful_of_tiles() -> None:
    chosen = random.Random(7)
    for _ in range(1_000):
        index, first = chosen.randrange(10_000_000), chosen.randrange(1, 10_000_000)
        assert len(merkle.tiles_of(merkle.inclusion(index, 10_000_000))) <= 8
        assert len(merkle.tiles_of(merkle.consistency(first, 10_000_000))) <= 8


def test_only_the_tiles_that_were_named_are_read() -> None:
    tiles = Tiles(LEAVES)
    path = merkle.inclusion(12_345, len(LEAVES))
    merkle.hashes(path, tiles)
    assert tiles.read == merkle.tiles_of(path)


def test_a_tile_that_lacks_what_the_proof_needs_is_an_error() -> None:
    with pytest.raises(LookupError):
        merkle.hashes(merkle.inclusion(3, 8), lambda level, index: LEAVES[:5])


def test_a_root_over_any_number_of_leaves_takes_one_hash_less(monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = Mock(wraps=hashlib.sha256)
    monkeypatch.setattr(merkle, "hashlib", Mock(sha256=sha256))
    for size in (1, 2, 3, 255, 256, 257, len(LEAVES)):
        sha256.reset_mock()
        merkle.root(LEAVES[:size])
        assert sha256.call_count == size - 1
