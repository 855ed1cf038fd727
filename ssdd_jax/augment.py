"""Predefined augmentation: each view of an image is a fixed permutation of its pixels.

A fixed list of views in place of random augmentation keeps the inner objective deterministic and the outer gradient
unbiased (Boost-SSDD, section 3.2). A table is built once with NumPy and closed over, so that it is a constant of the
compiled graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def _turned(turns: int, flipped: bool) -> Callable[[np.ndarray], np.ndarray]:
    return lambda grid: np.rot90(np.fliplr(grid) if flipped else grid, turns)


# The eight symmetries of a square. "flip" mirrors left and right; "flip90" mirrors, then turns by 90 degrees.
VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{f"rot{90 * turns}": _turned(turns, False) for turns in range(4)},
    "flip": _turned(0, True),
    **{f"flip{90 * turns}": _turned(turns, True) for turns in range(1, 4)},
}


def table(names: Sequence[str], height: int, width: int) -> np.ndarray:
    """Pixel permutations of the named views.

    Args:
        names: Views, out of `VIEWS`; `rotK` is `np.rot90` applied K/90 times.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        int32 `(views, height*width)`: pixel `p` of view `v` is pixel `table[v, p]` of the image, both row by row.

    Raises:
        ValueError: If a name is unknown, none is given, or a quarter turn meets an image that is not square.
    """
    if not names:
        raise ValueError("no views: name at least one, such as 'rot0'")
    grid = np.arange(height * width, dtype=np.int32).reshape(height, width)
    rows = []
    for name in names:
        if name not in VIEWS:
            raise ValueError(f"unknown view {name!r}: known are {', '.join(VIEWS)}")
        view = VIEWS[name](grid)
        if view.shape != grid.shape:
            raise ValueError(f"view {name!r} turns a {height}x{width} image on its side: it needs square images")
        rows.append(view.ravel())
    return np.stack(rows)


def apply(table: np.ndarray, images: Array) -> Array:
    """Every view of every image.

    Args:
        table: int32 `(views, H*W)` from `table`.
        images: `(M,H,W,C)`.

    Returns:
        `(views,M,H,W,C)`.
    """
    chex.assert_rank([table, images], [2, 4])
    count, height, width, channels = images.shape
    chex.assert_shape(table, (None, height * width))
    flat = images.reshape(count, height * width, channels)
    views = jnp.stack([flat.at[:, row].get(unique_indices=True, mode="promise_in_bounds") for row in table])
    return views.reshape(len(table), count, height, width, channels)
