"""The Merkle tree of RFC 6962 (RFC 9162, section 2.1) over leaf hashes: roots, and proofs made and verified. Pure.

The tree is stored in tiles as C2SP's tlog-tiles cuts it: tile (level, index) has up to 256 hashes, of which each is the
root over 256**level leaves; so a proof in a tree of ten million leaves reads a handful of tiles. Making a proof has
therefore two steps: `inclusion` and `consistency` say of which subtrees it is made, `tiles_of` which tiles to read,
and `hashes` gives the proof. A node (height, index) is the complete subtree over the 2**height leaves from
index * 2**height on.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

HASH_BYTES = 32
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
MAX_SIZE = 1 << 62

Node = tuple[int, int]
Tile = tuple[int, int]
Path = list[list[Node]]  # for each hash of a proof the nodes that it is made of, left to right
Subtree = tuple[int, int, bytes]  # level, index, hash


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes; of none, the hash of nothing."""
    if not leaves:
        return hashlib.sha256().digest()
    sha256, row = hashlib.sha256, leaves
    while len(row) > 1:
        above = [
            sha256(b"\x01" + left + right).digest() for left, right in zip(row[::2], row[1::2], strict=False)
        ]
        if len(row) % 2:
            above.append(row[-1])  # what has no neighbour goes up as it is
        row = above
    return row[0]


class Edge:
    """The right edge of a growing tree: all that is needed to append and to know the root."""

    def __init__(self, rows: Iterable[Sequence[bytes]] = (), size: int = 0) -> None:
        """`rows[level]` are the hashes of that level's last tile, as long as it is not full."""
        self._rows = [list(row) for row in rows]
        self.size = size

    def append(self, leaves: Sequence[bytes]) -> list[Subtree]:
        """Append leaf hashes; return the subtrees of 256**level leaves (level 1 upwards) that are now complete."""
        complete: list[Subtree] = []
        self.size += len(leaves)
        level, new = 0, leaves
        while new:
            if level == len(self._rows):
                self._rows.append([])
            row = self._rows[level] + list(new)
            whole = len(row) - len(row) % TILE_WIDTH
            self._rows[level] = row[whole:]
            new = [root(row[start : start + TILE_WIDTH]) for start in range(0, whole, TILE_WIDTH)]
            level += 1
            first = (self.size >> (TILE_HEIGHT * level)) - len(new)
            complete += [(level, first + place, subtree) for place, subtree in enumerate(new)]
        return complete

    def root(self) -> bytes:
        rest: list[bytes] = []
        for row in self._rows:
            if row or rest:
                rest = [root(row + rest)]
        return rest[0] if rest else root([])


def edge_tiles(size: int) -> list[tuple[Tile, int]]:
    """Return each level's last tile that is not full, and how many hashes of it belong to a tree of this size."""
    levels: list[tuple[Tile, int]] = []
    while size:
        levels.append(((len(levels), size // TILE_WIDTH), size % TILE_WIDTH))
        size //= TILE_WIDTH
    return levels


def inclusion(index: int, size: int) -> Path:
    """Return what proves that leaf `index` is in the tree of this size, from the leaf upwards."""
    if not 0 <= index < size <= MAX_SIZE:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    path, start, end = [], 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_complete(middle, end))
            end = middle
        else:
            path.append(_complete(start, middle))
            start = middle
    return path[::-1]


def consistency(first: int, second: int) -> Path:
    """Return what proves that the tree of size `first` is the beginning of the tree of size `second`."""
    if not 0 < first <= second <= MAX_SIZE:
        raise ValueError(f"a tree of {first} is not the beginning of a tree of {second}")
    path, start, end = [], 0, second
    while first < end:
        middle = start + _split(end - start)
        if first <= middle:
            path.append(_complete(middle, end))
            end = middle
        else:
            path.append(_complete(start, middle))
            start = middle
    if start:  # else the verifier has this hash: it is the first tree's root
        path.append(_complete(start, end))
    return path[::-1]


def whole(size: int) -> Path:
    """Return of what the root over the first `size` leaves is made."""
    return [_complete(0, size)]


def tiles_of(path: Path) -> set[Tile]:
    """Return the tiles in which the nodes of a path are found."""
    return {_tile_of(node)[0] for nodes in path for node in nodes}


def hashes(path: Path, tile: Callable[[int, int], Sequence[bytes]]) -> list[bytes]:
    """Return the proof that a path describes. `tile(level, index)` gives a tile's hashes."""
    return [_fold([_node(node, tile) for node in nodes]) for nodes in path]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root_hash: bytes) -> bool:
    """Say whether a proof shows that a leaf's hash stands at `index` below a root (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    place, last, value = index, size - 1, leaf
    for sibling in proof:
        if last == 0 or len(sibling) != HASH_BYTES:
            return False
        if place & 1 or place == last:
            value = node_hash(sibling, value)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and value == root_hash


def verify_consistency(
    first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes
) -> bool:
    """Say whether a proof shows that the first tree is the second's beginning (RFC 9162, section 2.1.4.2)."""
    if first == second:
        return not proof and first_root == second_root
    if not 0 < first < second or any(len(value) != HASH_BYTES for value in proof):
        return False
    known = [*([first_root] if first & (first - 1) == 0 else []), *proof]
    if not known:
        return False
    place, last = first - 1, second - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    old = new = known[0]
    for sibling in known[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and old == first_root and new == second_root


def _split(count: int) -> int:
    """Return the greatest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def _complete(start: int, end: int) -> list[Node]:
    """Return the complete subtrees, largest first, that the subtree over [start, end) is made of."""
    nodes = []
    while start < end:
        height = (end - start).bit_length() - 1
        nodes.append((height, start >> height))
        start += 1 << height
    return nodes


def _tile_of(node: Node) -> tuple[Tile, int, int]:
    """Return a node's tile, and where in it the hashes lie below it."""
    height, index = node
    level, rest = divmod(height, TILE_HEIGHT)
    tile, place = divmod(index << rest, TILE_WIDTH)
    return (level, tile), place, place + (1 << rest)


def _node(node: Node, tile: Callable[[int, int], Sequence[bytes]]) -> bytes:
    place, start, end = _tile_of(node)
    row = tile(*place)[start:end]
    if len(row) != end - start:
        raise LookupError(f"tile {place} has no hashes from {start} to {end}")
    return root(row)


def _fold(parts: list[bytes]) -> bytes:
    value = parts[-1]
    for left in parts[-2::-1]:
        value = node_hash(left, value)
    return value
