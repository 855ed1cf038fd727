"""Features larger than the device's memory: tables whose rows compiled programs read a piece at a time.

A table keeps its features on the device, or leaves them on the host, in memory or mapped from a file, from where a
callback of the program reads them. A program holds `HELD` pieces at most, and matrices whose size does not depend on
the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssdd_jax.training import streaming

Array = jax.Array

# Copies of the features that the probes hold if these are on the device whole.
COPIES = 3
# Pieces that a program holds at a time: the one that is read, and results of its size.
HELD = 5
# Matrices as wide as all features of a probe, `(F+D,F+D)`, that it holds besides.
MATRICES = 8
# Features are put on the device once if they leave it this part of the limit.
SPARE = 8


class Reader:
    """Source of a table on the host. It is part of compiled programs, which serve every array that it is given.

    Attributes:
        array: Float32 `(n,F)`, in memory or mapped from disk; None if the reader is closed.
    """

    def __init__(self, parent: Reader | None = None, indices: np.ndarray | None = None):
        """Create a reader.

        Args:
            parent: Reader whose array is read; None for an array of its own.
            indices: Rows of the array that are read, in this order, int `(k,)`; None for all.
        """
        self.array: np.ndarray | None = None
        self._parent, self._indices = parent, indices

    def read(self, begin: Any, count: int) -> np.ndarray:
        """Read `count` rows from the position `begin` on, float32 `(count,F)`."""
        array = (self._parent or self).array
        assert array is not None, "the reader is closed"
        part = slice(int(begin), int(begin) + count)
        return np.asarray(array[part] if self._indices is None else streaming.gather(array, self._indices[part]))


class Piece(NamedTuple):
    """Some rows of a table.

    Attributes:
        number: Number of the piece, an int32 scalar.
        x: Features `(rows,F)`.
        positions: Their positions in the table, int32 `(rows,)`.
        valid: 1 for a row that no earlier piece contains, else 0, float32 `(rows,)`. The last piece repeats rows of the
            one before, so that all have one shape.
    """

    number: Array
    x: Array
    positions: Array
    valid: Array


@flax.struct.dataclass
class Table:
    """Features `(n,F)` that are read in pieces.

    Attributes:
        array: The features if they are on the device; None if they are read from the host.
        indices: Rows of the array that make up the table, int32 `(n,)`; None for all.
        reader: Source on the host, if the features are not on the device.
        shape: `(n,F)`.
        rows: Number of rows of a piece.
    """

    array: Array | None
    indices: Array | None
    reader: Reader | None = flax.struct.field(pytree_node=False)
    shape: tuple[int, int] = flax.struct.field(pytree_node=False)
    rows: int = flax.struct.field(pytree_node=False)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: np.ndarray) -> Table:
        """Select rows; nothing is copied."""
        count = len(indices)
        changes = {"shape": (count, self.shape[1]), "rows": min(self.rows, count)}
        if self.reader is not None:
            return self.replace(reader=Reader(self.reader, indices), **changes)  # type: ignore[attr-defined]
        return self.replace(indices=jnp.asarray(indices, jnp.int32), **changes)  # type: ignore[attr-defined]

    def gather(self, indices: np.ndarray) -> Array:
        """Copy rows `(k,F)` to the device, outside of compiled programs."""
        if self.array is not None:
            return self.array[jnp.asarray(indices)]
        assert self.reader is not None and self.reader.array is not None
        return jnp.asarray(streaming.gather(self.reader.array, indices))

    def piece(self, number: Array) -> Piece:
        """Read piece `number`, an int32 scalar, inside a compiled function."""
        count, width = self.shape
        begin = jnp.minimum(number * self.rows, count - self.rows)
        positions = begin + jnp.arange(self.rows)
        if self.array is None:
            assert self.reader is not None
            like, read = jax.ShapeDtypeStruct((self.rows, width), jnp.float32), self.reader.read
            x = jax.pure_callback(lambda begin: read(begin, self.rows), like, begin)
        elif self.indices is not None:
            x = self.array[self.indices[positions]]
        else:
            x = lax.dynamic_slice_in_dim(self.array, begin, self.rows)
        return Piece(number, x, positions, (positions >= number * self.rows).astype(x.dtype))

    def fold(self, step: Callable[[Any, Piece], Any], carry: Any) -> Any:
        """Apply `carry = step(carry, piece)` to all pieces in order, inside a compiled function."""
        pieces = -(-len(self) // self.rows)
        return lax.fori_loop(0, pieces, lambda number, carry: step(carry, self.piece(number)), carry)


class Sum(NamedTuple):
    """Sum with the rounding error that it lacks (Kahan, 1965), so that its error does not grow with the terms."""

    total: Any
    missing: Any

    @classmethod
    def zero(cls, like: Any) -> Sum:
        """Start a sum of pytrees shaped like `like`, arrays or abstract values."""
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return cls(zeros, zeros)

    def plus(self, terms: Any) -> Sum:
        """Add a pytree of terms."""
        corrected = jax.tree.map(jnp.subtract, terms, self.missing)
        total = jax.tree.map(jnp.add, self.total, corrected)
        missing = jax.tree.map(lambda new, old, term: (new - old) - term, total, self.total, corrected)
        return Sum(total, missing)


def total(table: Table, terms: Callable[[Piece], Any]) -> Any:
    """Sum `terms(piece)`, a pytree, over all pieces of a table, inside a compiled function."""
    like = jax.eval_shape(lambda: terms(table.piece(jnp.int32(0))))
    return table.fold(lambda carry, piece: carry.plus(terms(piece)), Sum.zero(like)).total


class Moments(NamedTuple):
    """Moments of some rows.

    Attributes:
        size: Number of rows, a float32 scalar.
        mean: Mean of each feature `(F,)`.
        products: Sums over the rows of the squared deviations from the mean `(F,)`, or of all their products `(F,F)`.
    """

    size: Array
    mean: Array
    products: Array

    def merged(self, other: Moments) -> Moments:
        """Moments of the rows of both (Chan, Golub and LeVeque, 1983), where no digits cancel."""
        size, distance = self.size + other.size, other.mean - self.mean
        share = other.size / jnp.maximum(size, 1.0)
        between = distance[:, None] * distance[None] if self.products.ndim == 2 else distance * distance
        return Moments(
            size, self.mean + distance * share, self.products + other.products + between * (self.size * share)
        )


def moments(tables: tuple[Table, ...], weights: Callable[[Piece], Array], *, products: bool) -> Moments:
    """Compute moments of the columns of tables, which have equal rows, in one pass.

    Features are counted from those of the first row, and sums are compensated: the result is exact to about 1e-5 of a
    feature's standard deviation, and of a product of two.

    Args:
        tables: Tables of one length and with pieces of one size; their columns are concatenated.
        weights: Maps a piece of the first table to 1 for each row that counts and 0 for the others, `(rows,)`.
        products: Whether to compute the products of all pairs of columns, or only the squares.

    Returns:
        Moments of all columns.
    """
    width = sum(table.shape[1] for table in tables)
    shape = (width, width) if products else (width,)
    sums = Sum.zero((jax.ShapeDtypeStruct((width,), jnp.float32), jax.ShapeDtypeStruct(shape, jnp.float32)))

    def read(number: Array) -> tuple[Array, Array]:
        pieces = [table.piece(number) for table in tables]
        return jnp.concatenate([piece.x for piece in pieces], 1), weights(pieces[0])

    first = read(jnp.int32(0))[0][0]

    def step(number: Array, carry: tuple[Array, Sum]) -> tuple[Array, Sum]:
        count, sums = carry
        x, weight = read(number)
        x = x - first[None]
        size = jnp.sum(weight)
        centre = weight @ x / jnp.maximum(size, 1.0)
        deviation = (x - centre[None]) * weight[:, None]
        inside = deviation.T @ deviation if products else jnp.sum(deviation * deviation, 0)
        # The increments alone are merged, to be added with their rounding errors.
        mean = sums.total[0]
        merged = Moments(count, mean, jnp.zeros(shape)).merged(Moments(size, centre, inside))
        return merged.size, sums.plus((merged.mean - mean, merged.products))

    with jax.default_matmul_precision("highest"):
        pieces = -(-len(tables[0]) // tables[0].rows)
        size, sums = lax.fori_loop(0, pieces, step, (jnp.zeros(()), sums))
    mean, inside = sums.total
    return Moments(size, mean + first, inside)


def every(piece: Piece) -> Array:
    """Weights of `moments` that count every row."""
    return piece.valid


class Placing:
    """Places features on the device, or makes tables of those that do not fit; its readers serve one use at a time."""

    def __init__(self, gigabytes: float = 0.0):
        """Set the limit.

        Args:
            gigabytes: Device memory for features in 1e9 bytes; 0 for the default limit of `streaming.fits`.
        """
        self.gigabytes = gigabytes
        self._readers: dict[str, Reader] = {}

    def fits(self, size: int) -> bool:
        """Return whether probes on features of `size` bytes may hold these whole, with copies."""
        return streaming.fits(COPIES * size, self.gigabytes)

    def place(self, *, classes: int = 0, **arrays: np.ndarray) -> dict[str, Array | Table]:
        """Place features that a probe uses together.

        Args:
            classes: Number of classes, of which a probe computes logits for each row of a piece.
            **arrays: Float32 `(n,F)` by role, such as `train`; tables of one role share compiled programs.

        Returns:
            By role, all of them arrays on the device, or all tables.
        """
        size = sum(array.nbytes for array in arrays.values())
        if self.fits(size):
            return {name: jnp.asarray(array) for name, array in arrays.items()}
        limit = streaming.limit(self.gigabytes)
        # Features that fit once stay on the device, if they leave a part of it to their pieces.
        on_device = size <= limit - limit // SPARE
        pieces = min(streaming.PIECE, (limit - size * on_device) // HELD)
        # Equal for all: tables that are read together have pieces of as many rows.
        rows = max(1, pieces // (4 * classes + sum(4 * array.shape[1] for array in arrays.values())))
        return {name: self._table(name, array, rows, on_device=on_device) for name, array in arrays.items()}

    def _table(self, name: str, array: np.ndarray, rows: int, *, on_device: bool) -> Table:
        shape, rows = (len(array), array.shape[1]), min(rows, len(array))
        if on_device:
            return Table(jnp.asarray(array), None, None, shape, rows)
        reader = self._readers.setdefault(name, Reader())
        reader.array = array
        return Table(None, None, reader, shape, rows)

    def close(self) -> None:
        """Release the arrays that the readers hold; programs keep the readers."""
        for reader in self._readers.values():
            reader.array = None
