"""Predefined augmentation: each view of an image is a fixed permutation of its pixels.

A fixed list of views in place of random augmentation keeps the inner objective deterministic and the outer gradient
unbiased (Boost-SSDD, section 3.2). The table of permutations is built once with NumPy and closed over, so that it is a
constant of the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def _symmetry(turns: int, flipped: bool) -> Callable[[np.ndarray], np.ndarray]:
    return lambda grid: np.rot90(np.fliplr(grid) if flipped else grid, turns)


def _shift(rows: int, columns: int) -> Callable[[np.ndarray], np.ndarray]:
    def shifted(grid: np.ndarray) -> np.ndarray:
        steps = [direction * max(1, side // SHIFT) for direction, side in zip((rows, columns), grid.shape, strict=True)]
        return np.roll(grid, steps, (0, 1))

    return shifted


# Shifts are by one in so many parts of a side.
SHIFT = 8
# The eight symmetries of a square: "flip" mirrors left and right; "flip90" mirrors, then rotates by 90 degrees. Then
# shifts of the content, which wrap around.
VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{f"rot{90 * turns}": _symmetry(turns, False) for turns in range(4)},
    "flip": _symmetry(0, True),
    **{f"flip{90 * turns}": _symmetry(turns, True) for turns in range(1, 4)},
    "up": _shift(-1, 0),
    "down": _shift(1, 0),
    "left": _shift(0, -1),
    "right": _shift(0, 1),
}


def table(names: Sequence[str], height: int, width: int) -> np.ndarray:
    """Build the pixel permutations of the named views.

    Args:
        names: Views, out of `VIEWS`; `rotK` is `np.rot90` applied K/90 times, `left` a shift by an eighth of the width.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        int32 `(views, height*width)`: pixel `p` of view `v` is pixel `table[v, p]` of the image, both in row-major
        order.

    Raises:
        ValueError: If a name is unknown, the list is empty, or a quarter turn is applied to an image that is not
            square.
    """
    if not names:
        raise ValueError("no views: name at least one, such as 'rot0'")
    # A view of the grid of pixel indices is the permutation itself.
    grid = np.arange(height * width, dtype=np.int32).reshape(height, width)
    permutations = []
    for name in names:
        if name not in VIEWS:
            raise ValueError(f"unknown view {name!r}: known are {', '.join(VIEWS)}")
        view = VIEWS[name](grid)
        if view.shape != grid.shape:
            raise ValueError(f"view {name!r} turns a {height}x{width} image on its side: it needs square images")
        permutations.append(view.ravel())
    return np.stack(permutations)


def apply(table: np.ndarray, images: Array) -> Array:
    """Compute every view of every image.

    Args:
        table: int32 `(views, H*W)` from `table`.
        images: `(M,H,W,C)`.

    Returns:
        `(views,M,H,W,C)`.
    """
    chex.assert_rank([table, images], [2, 4])
    images = jnp.asarray(images)
    count, height, width, channels = images.shape
    chex.assert_shape(table, (None, height * width))
    flat = images.reshape(count, height * width, channels)
    # Each row of the table is a permutation: its indices are unique and in bounds, so XLA need not check them.
    views = jnp.stack([flat.at[:, row].get(unique_indices=True, mode="promise_in_bounds") for row in table])
    return views.reshape(len(table), count, height, width, channels)
