"""Images composed of a few stored ones: crops of them, layered as shapes by a table that costs no storage.

A composed image is a crop of one stored image, on which up to `LAYERS - 1` shapes lie, ellipses and rectangles, each
cut out of a crop of a stored image. All positions are static arrays drawn from a seed, so that a set stores the seed
instead of them. Not in a paper of the field. That a network learns from crops of a single image was shown by Asano and
Saeed ("The Augmented Image Prior", ICLR 2023); images of overlapping shapes are dead leaves (Lee, Mumford and Huang,
IJCV 2001), which Baradad et al. trained on ("Learning to See by Looking at Noise", NeurIPS 2021).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Values = np.ndarray | Array

# The background, and as many shapes at most.
LAYERS = 8
# Area of a crop as a share of its image, and the logarithm of the largest ratio of its sides.
LEAST_AREA, LARGEST_RATIO = 0.2, float(np.log(4 / 3))
# Half of a shape's longer side as a share of the image's, and the shorter one as a share of the longer.
HALF_SIDES, FLATNESS = (0.09, 0.56), (0.3, 1.0)
# Positions are whole multiples of this share of a side, so that no rounding of a logarithm decides one.
GRID = 1 / 1024
# Images composed at a time where all are: they need as much memory for each layer.
CHUNK = 64


class Table(NamedTuple):
    """Layers of M composed images, the background first; every array has the axes `(M, LAYERS)`.

    Positions and sizes are shares of a side.

    Attributes:
        image: Index of the stored image, int32.
        crop: `(M,LAYERS,4)`: top, left, height and width of the crop, float32.
        symmetry: Which of the eight symmetries of a square the crop undergoes, int32: 4 is added to mirror it left and
            right, 2 to mirror it top and bottom, 1 to transpose it afterwards.
        centre: `(M,LAYERS,2)`: row and column of the centre of the shape, float32.
        half: `(M,LAYERS,2)`: half sides of the shape, float32; 0 for a layer that is not there, infinite for the
            background.
        turn: `(M,LAYERS,2)`: cosine and sine of the angle by which the shape is turned, float32.
        round: Whether the shape is an ellipse instead of a rectangle, bool.
    """

    image: Values
    crop: Values
    symmetry: Values
    centre: Values
    half: Values
    turn: Values
    round: Values


@flax.struct.dataclass
class Params:
    """Parameters of a set of M composed images.

    Attributes:
        images: Stored images `(U,h,w,C)`, in the network's input space.
        feature_bases: `(V,D)`.
        feature_coefficients: `(M,V)`.
        feature_mean: `(D,)`.
        image_size: `(H,W)` of the composed images; static.
        seed: Of the table; static.
    """

    images: Array
    feature_bases: Array
    feature_coefficients: Array
    feature_mean: Array
    image_size: tuple[int, int] = flax.struct.field(pytree_node=False)
    seed: int = flax.struct.field(pytree_node=False)

    def pairs(self) -> tuple[Array, Array]:
        """Decode images `(M,H,W,C)` and targets `(M,D)`, in the space that the networks regress."""
        square = self.image_size[0] == self.image_size[1]
        rows = table(self.seed, len(self.feature_coefficients), len(self.images), square=square)
        with jax.default_matmul_precision("highest"):
            targets = self.feature_coefficients @ self.feature_bases + self.feature_mean[None]
        return compose(rows, self.images, self.image_size), targets

    def arrays(self) -> dict[str, Array]:
        """Return the stored arrays by name."""
        return {
            "images": self.images,
            "feature_bases": self.feature_bases,
            "feature_coefficients": self.feature_coefficients,
            "feature_mean": self.feature_mean,
        }


def table(seed: int, count: int, images: int, *, square: bool = True) -> Table:
    """Draw the layers of composed images.

    Args:
        seed: Seed of NumPy's `RandomState`, whose numbers are the same in every version: a stored set keeps its images.
        count: Number M of composed images.
        images: Number U of stored images.
        square: Whether images are square, so that crops may be transposed.

    Returns:
        The table, as NumPy arrays that become constants of the compiled program.

    Raises:
        ValueError: If there is no stored image.
    """
    if images < 1:
        raise ValueError("no stored images: compose needs at least one")
    random = np.random.RandomState(seed)

    def draw(low: float, high: float, *more: int) -> np.ndarray:
        return random.uniform(low, high, (count, LAYERS, *more))

    # Crops as those of the teacher's training: area and ratio first, then where it lies.
    area, ratio = draw(LEAST_AREA, 1), np.exp(draw(-LARGEST_RATIO, LARGEST_RATIO) / 2)
    sides = _on_grid(np.minimum(np.sqrt(area)[..., None] * np.stack([1 / ratio, ratio], -1), 1))
    crop = np.concatenate([_on_grid(draw(0, 1, 2) * (1 - sides)), sides], -1)
    image, symmetry = random.randint(0, images, (count, LAYERS)), random.randint(0, 8, (count, LAYERS))
    # Shapes, of which an image has 1 to LAYERS - 1.
    longer = draw(*HALF_SIDES)
    half = _on_grid(np.stack([longer, longer * draw(*FLATNESS)], -1))
    there = np.arange(LAYERS)[None] <= random.randint(1, LAYERS, (count, 1))
    half = np.where(there[..., None], half, 0)
    half[:, 0] = np.inf
    centre, angle = _on_grid(draw(0, 1, 2)), draw(0, np.pi)
    turn = _on_grid(np.stack([np.cos(angle), np.sin(angle)], -1))
    return Table(
        image.astype(np.int32),
        crop.astype(np.float32),
        (symmetry if square else symmetry & 6).astype(np.int32),
        centre.astype(np.float32),
        half.astype(np.float32),
        turn.astype(np.float32),
        random.randint(0, 2, (count, LAYERS)).astype(bool),
    )


def compose(table: Table, images: Array, size: tuple[int, int]) -> Array:
    """Compose images; differentiable in the stored ones.

    Args:
        table: The layers of k images.
        images: The stored images `(U,h,w,C)`.
        size: `(H,W)` of the composed images, at least `(h,w)`.

    Returns:
        `(k,H,W,C)`.
    """
    chex.assert_rank([table.image, table.crop, images], [2, 3, 4])
    rows = jax.tree.map(jnp.asarray, table)
    chex.assert_shape(rows.crop, (*rows.image.shape, 4))
    return jax.lax.map(lambda row: compose_one(row, images, size), rows, batch_size=min(CHUNK, len(rows.image)))


def compose_one(row: Table, images: Array, size: tuple[int, int]) -> Array:
    """Compose one image.

    Args:
        row: Its layers, a row of the table: every array with the leading axis `LAYERS`.
        images: The stored images `(U,h,w,C)`.
        size: `(H,W)` of the composed image, at least `(h,w)`.

    Returns:
        `(H,W,C)`.
    """
    crops = jax.vmap(functools.partial(_crop, size=size))(images[row.image], row.crop, row.symmetry)
    masks = jax.vmap(functools.partial(_mask, size=size))(row.centre, row.half, row.turn, row.round)

    def lay(below: Array, layer: tuple[Array, Array]) -> tuple[Array, None]:
        crop, mask = layer
        return below + mask[..., None] * (crop - below), None

    return jax.lax.scan(lay, jnp.zeros_like(crops[0]), (crops, masks))[0]


def _crop(image: Array, crop: Values, symmetry: Values, *, size: tuple[int, int]) -> Array:
    """Enlarge a crop of an image `(h,w,C)` to `(H,W,C)` by bicubic interpolation, and apply a symmetry."""
    sides = jnp.asarray(image.shape[:2], crop.dtype)
    scale = jnp.asarray(size, crop.dtype) / (crop[2:] * sides)
    enlarged = jax.image.scale_and_translate(
        image,
        (*size, image.shape[-1]),
        (0, 1),
        scale,
        -crop[:2] * sides * scale,
        method="cubic",
        antialias=False,
        precision=jax.lax.Precision.HIGHEST,
    )
    enlarged = jnp.where(symmetry & 4 > 0, enlarged[:, ::-1], enlarged)
    enlarged = jnp.where(symmetry & 2 > 0, enlarged[::-1], enlarged)
    return jnp.where(symmetry & 1 > 0, enlarged.swapaxes(0, 1), enlarged) if size[0] == size[1] else enlarged


def _mask(centre: Values, half: Values, turn: Values, round: Values, *, size: tuple[int, int]) -> Array:
    """Draw a shape: `(H,W)` between 0 and 1, with an edge of one pixel."""
    # Rows and columns are measured in pixels of the longer side, so that a turned rectangle stays one.
    longest = max(size)
    down, across = (jnp.arange(side, dtype=half.dtype) + 0.5 - centre[axis] * side for axis, side in enumerate(size))
    along = down[:, None] * turn[0] + across[None] * turn[1]
    beside = across[None] * turn[0] - down[:, None] * turn[1]
    sides = half * longest
    inside_box = jnp.minimum(sides[0] - jnp.abs(along), sides[1] - jnp.abs(beside))
    # Points outside of a shape without extent stay outside.
    safe = jnp.maximum(sides, 1e-3)
    radius = jnp.sqrt((along / safe[0]) ** 2 + (beside / safe[1]) ** 2)
    inside = jnp.where(round, (1 - radius) * jnp.min(safe), inside_box)
    return jnp.where(half[0] > 0, jnp.clip(inside + 0.5, 0, 1), 0)


def _on_grid(values: np.ndarray) -> np.ndarray:
    return np.round(values / GRID) * GRID
