"""Storage budget: a set must fit in `N (HWC + D)` numbers, the size of N images and their features, or in bytes.

Everything that is needed to decode a set is counted: bases, coefficients, means and approximation networks. Constants
of the data set, which every method and baseline shares, are not counted as numbers: mean and deviation per channel,
mean and scale of the teacher's features. A budget in bytes is one of the file `set.safetensors`, which holds them too.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssdd_jax import approximate
from ssdd_jax.config import CODES
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Problem
from ssdd_jax.storage import mosaic, packing

# Without data a set is planned to decode into this many images per image of the budget.
IMAGES_PER_N = 4
# Precision of the targets beside coded images, for a budget in bytes (docs/guides/bytes.md).
CODED_TARGETS = "int5"
# With data, into one of these many.
MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

# With a score of sizes: weights of the error of images that are tried, what counts as the same score, and how far below
# the best one more images are not tried.
IMAGE_WEIGHTS, LEVEL, FALLING = (1.0, 8.0), 0.01, 0.02


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a parameterized set.

    Attributes:
        N: Budget: the set fits in the storage of N images and features.
        M: Decoded images.
        U: Image bases.
        V: Feature bases.
        hidden: Hidden units of an approximation network.
        views: Number of views.
        image_shape: `(H,W,C)`.
        base_size: Low resolution `(h,w)`.
        dim: Length D of a target.
        bytes: Budget of the file in bytes; 0 for that of N in numbers.
        image_precision: Precision of the image part.
        target_precision: Precision of the feature part.
    """

    N: int
    M: int
    U: int
    V: int
    hidden: int
    views: int
    image_shape: tuple[int, int, int]
    base_size: tuple[int, int]
    dim: int
    bytes: int = 0
    image_precision: str = "float32"
    target_precision: str = "float32"

    @property
    def budget(self) -> int:
        """Size of N images and their features, `N (HWC + D)` numbers; or the bytes of the file."""
        height, width, channels = self.image_shape
        return self.bytes or self.N * (height * width * channels + self.dim)

    @property
    def fits(self) -> bool:
        """Return whether the set fits in the budget."""
        return (self.file_size if self.bytes else self.numbers) <= self.budget

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the stored arrays, by their name in the set."""
        low = (*self.base_size, self.image_shape[-1])
        others = self.views - 1
        return {
            "image_bases": (self.U, *low),
            "image_coefficients": (self.M, self.U),
            "image_mean": low,
            "feature_bases": (self.V, self.dim),
            "feature_coefficients": (self.M, self.V),
            "feature_mean": (self.dim,),
            "networks.hidden_kernel": (others, self.V, self.hidden),
            "networks.hidden_bias": (others, self.hidden),
            "networks.out_kernel": (others, self.hidden, self.V),
            "networks.out_bias": (others, self.V),
        }

    @property
    def file_size(self) -> int:
        """Bound of the bytes of the file from above."""
        return packing.size(
            self.shapes,
            images=self.image_precision,
            targets=self.target_precision,
            channels=self.image_shape[-1],
            dim=self.dim,
        )

    @property
    def parts(self) -> dict[str, int]:
        """Stored numbers by part."""
        own = {name: shape for name, shape in self.shapes.items() if not name.startswith("networks.")}
        return {
            **{name.replace("_", " "): math.prod(shape) for name, shape in own.items()},
            "approximation networks": approximate.numbers(self.views, self.V, self.hidden),
        }

    @property
    def numbers(self) -> int:
        """Total of the stored numbers."""
        return sum(self.parts.values())

    def sum_text(self) -> str:
        """Return the sum over the parts as text."""
        terms = " + ".join(f"{count:,} ({part})" for part, count in self.parts.items())
        return f"{terms} = {self.numbers:,}"

    def excess_text(self) -> str:
        """Return as text by how much the set exceeds the budget."""
        if self.bytes:
            return f"{self.sum_text()} numbers, {self.file_size:,} bytes > {self.bytes:,} = storage.bytes"
        return f"{self.sum_text()} > {self.budget:,} = N (HWC + D) with N={self.N}"


def low_size(image_shape: tuple[int, int, int], side: int) -> tuple[int, int]:
    """Return the resolution `(h,w)` whose shorter side is `side`, in the proportion of images `(H,W,C)`, or theirs."""
    shorter = min(image_shape[:2])
    height, width = (max(1, round(length * min(side, shorter) / shorter)) for length in image_shape[:2])
    return height, width


def precisions(config: ConfigDict, coded: bool = False) -> tuple[str, str]:
    """Return the precisions of images and targets that a config names; `auto` is resolved.

    Args:
        config: See `ssdd_jax.config.default`.
        coded: Whether the set stores images of the data as they are, so that they can be coded as a picture.

    Returns:
        Names of the precisions of images and of targets. `auto` is float32 for a budget in numbers. For one in bytes
        it is int8, and for images that can be coded WebP, with `CODED_TARGETS`.
    """
    storage = config.storage
    images = targets = "int8" if storage.bytes else "float32"
    if coded and storage.bytes:
        images = "webp"
    if storage.images != "auto":
        images = storage.images
    if images in CODES and storage.bytes:
        targets = CODED_TARGETS
    return images, targets if storage.targets == "auto" else storage.targets


def pairs(config: ConfigDict, problem: Problem, dim: int = 0, *, coded: float = 0.0) -> int:
    """Count the pairs that fit the budget, images and targets stored as they are.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.
        dim: Length of a target; 0 for that of the teacher's features.
        coded: Bytes of an image that is coded with others; 0 for images in the config's precision.

    Returns:
        The number of pairs: N, or more if targets are shorter. For a budget in bytes the most whose file fits.
    """
    dim = dim or problem.dim
    if not config.storage.bytes:
        return config.storage.N * (problem.image_numbers + problem.dim) // (problem.image_numbers + dim)
    images, targets = precisions(config, coded=coded > 0)
    constants = {"channels": problem.image_shape[-1], "dim": problem.dim}
    # The quality of a lossy code takes up what an estimate is off.
    expected = coded > 0 and images in mosaic.LOSSY

    def too_many(count: int) -> bool:
        shapes = {"images": (count, *problem.image_shape), "targets": (count, dim)}
        size = packing.size(shapes, images=images, targets=targets, coded=coded, expected=expected, **constants)
        return size > config.storage.bytes

    # Each pair takes a byte at least.
    return bisect.bisect_left(range(1, config.storage.bytes + 2), True, key=too_many)


def random_images(config: ConfigDict, problem: Problem, images: np.ndarray) -> int:
    """Count the random images that the budget holds: the baseline that a set is compared with.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.
        images: Random images of the data, uint8 `(k,H,W,C)`.

    Returns:
        N, or for a budget in bytes the number that a subset of the data stores, whatever the method: images coded as
        WebP with targets in `CODED_TARGETS`, where that holds more than both in int8.
    """
    if not config.storage.bytes:
        return int(config.storage.N)
    usual = config.copy_and_resolve_references()
    usual.storage.update(images="auto", targets="auto")
    held = [pairs(usual, problem)]
    if problem.image_shape[-1] in mosaic.CHANNELS:
        held.append(pairs(usual, problem, coded=mosaic.bytes_each(images, "webp")))
    return max(1, min(max(held), problem.images))


def counted(config: ConfigDict, problem: Problem, *, coded: bool = False, bases: bool = False) -> ConfigDict:
    """Return the config with the N of its budget in bytes: as many images and features as it holds in its precisions.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.
        coded: Whether the method can code images, for which there may be room where there is none for them as they are.
        bases: Whether the method stores bases, for which there may be room where there is none for an image.

    Raises:
        UserError: If it holds none.
    """
    if not config.storage.bytes:
        return config
    count, code = pairs(config, problem), precisions(config, coded=coded)[0]
    # There may be room for coded images, or for bases, where there is none for images as they are; the data, or the
    # plan, say for how many.
    if bases:
        count = max(count, 1)
    elif code in CODES and not count and problem.image_shape[-1] in mosaic.CHANNELS:
        count = min(1, pairs(config, problem, coded=mosaic.least_bytes(problem.image_shape, code)))
    if not count:
        raise UserError(f"storage.bytes={config.storage.bytes:,} holds not even one image with its target: raise it")
    changed = config.copy_and_resolve_references()
    changed.storage.N = min(count, problem.images)
    return changed


def plan(
    *,
    N: int,
    image_shape: tuple[int, int, int],
    dim: int,
    base_size: tuple[int, int],
    views: int,
    hidden: int,
    images: int,
    M: int = 0,
    U: int = 0,
    V: int = 0,
    stored: Mapping[str, Any] = {},  # noqa: B006
) -> Sizes:
    """Choose those of M, U and V that are 0 so that the set uses the budget.

    M becomes 4 N. U and V become the same share of the largest values that their spaces and the data allow. The
    remainder is spent on V, U and M in turn.

    Args:
        N: Budget: the set must fit in the storage of N images and features.
        image_shape: `(H,W,C)`.
        dim: Length D of a target.
        base_size: Low resolution `(h,w)`.
        views: Number of views.
        hidden: Hidden units of an approximation network.
        images: Number n of training images.
        M: Decoded images; 0 to choose it.
        U: Image bases; 0 to choose it.
        V: Feature bases; 0 to choose it.
        stored: Further fields of `Sizes`: a budget in bytes, and precisions.

    Returns:
        Sizes that fit the budget.

    Raises:
        UserError: If there are too few images, or the sizes exceed the budget; the message lists the parts.
    """
    check_pairs(N, images)
    if images < 2:
        raise UserError("Boost-SSDD needs at least two training images, and there is one")
    # n centred vectors span at most n - 1 dimensions, which limits the number of bases.
    low = base_size[0] * base_size[1] * image_shape[-1]
    most = {"M": images, "U": min(low, images - 1), "V": min(dim, images - 1)}
    requested = {"M": M, "U": U, "V": V}
    spaces = {"M": "images", "U": f"{low} numbers of a base and {images} images",
              "V": f"{dim} numbers of a feature and {images} images"}  # fmt: skip
    # Sizes that the user fixed are checked against the data before the budget, for a clearer message.
    for name, value in requested.items():
        if value > most[name]:
            raise UserError(f"storage.{name}={value} is too many for the {spaces[name]}: at most {most[name]}")
    initial = Sizes(N, M, U, V, hidden, views, image_shape, base_size, dim, **stored)
    free = [name for name, value in requested.items() if not value]
    chosen = _fill(initial, free, most)
    if not chosen.fits:
        least = "" if not free else f" even with {', '.join(free)} as small as possible"
        raise UserError(
            f"storage exceeds the budget{least}: {chosen.excess_text()}; lower M, U, V or hidden, or raise "
            f"{'storage.bytes' if chosen.bytes else 'N'}"
        )
    return chosen


def wishes(config: ConfigDict) -> dict[str, Any]:
    """Read the settings of `fit` from a config: its `tolerance` and `image_weight`."""
    return {key: config.storage[key] for key in ("tolerance", "image_weight")}


def fit(
    sizes: Sizes,
    image_errors: np.ndarray,
    feature_errors: np.ndarray,
    *,
    free: Sequence[str],
    most: int,
    tolerance: float = 0.05,
    image_weight: float = 1.0,
    lost: Mapping[tuple[str, str], tuple[float, float]] | None = None,
    score: Callable[[Sizes], float] | None = None,
) -> Sizes:
    """Choose sizes, and precisions for a budget in bytes, by the error of decoded images and targets at the budget.

    For a given M, U and V are those with the least weighted sum of the two errors. M is the largest of `MULTIPLES`
    times N at which that sum is at most `tolerance` above its value for M = N: more images, decoded hardly worse. With
    a `score` M is the smallest of them, and `image_weight` one of `IMAGE_WEIGHTS`, whose score is within `LEVEL` of the
    best.

    Args:
        sizes: Sizes that fit the budget, from `plan`; those that are not free stay as they are.
        image_errors: The error of images with 0, 1, ... bases, as a share of their variance, `(most_U+1,)`.
        feature_errors: Likewise that of targets, `(most_V+1,)`.
        free: Which of `M`, `U` and `V` to choose.
        most: Number of training images, which limits M.
        tolerance: How much larger the sum of the errors may be.
        image_weight: Weight of the error of images relative to that of targets; the two weights have sum 2.
        lost: Precisions of images and targets to choose from, and the shares of the variance of both that they lose;
            None for those of the sizes, without a loss.
        score: What the sizes are worth, the more the better; see `ssdd_jax.methods.starts`. None to choose by the error
            alone.

    Returns:
        The sizes, and precisions.
    """
    by_multiples = functools.partial(_by_multiples, sizes, image_errors, feature_errors, free, most, lost)
    if score is not None:
        return _best([[one for one, _ in by_multiples(weight)] for weight in IMAGE_WEIGHTS], score) or sizes
    fitting = by_multiples(image_weight)
    if not fitting:
        return sizes
    allowed = fitting[0][1] + tolerance
    return next(one for one, error in reversed(fitting) if error <= allowed)


def _best(series: Sequence[Sequence[Sizes]], score: Callable[[Sizes], float]) -> Sizes | None:
    """Return the sizes with the smallest M whose score is within `LEVEL` of the best; None if there are none.

    Args:
        series: Sizes in the order of M, for each weight; one ends where the score falls.
        score: See `fit`.
    """
    scored: list[tuple[Sizes, float]] = []
    for sizes in series:
        best = -np.inf
        for one in sizes:
            scored.append((one, score(one)))
            best = max(best, scored[-1][1])
            if scored[-1][1] < best - FALLING:  # bases that are too few do not come back with more images
                break
    least = max((value for _, value in scored), default=0.0) - LEVEL
    good = [(one, value) for one, value in scored if value >= least]
    return min(good, key=lambda pair: (pair[0].M, -pair[1]))[0] if good else None


def _by_multiples(
    sizes: Sizes,
    image_errors: np.ndarray,
    feature_errors: np.ndarray,
    free: Sequence[str],
    most: int,
    lost: Mapping[tuple[str, str], tuple[float, float]] | None,
    image_weight: float,
) -> list[tuple[Sizes, float]]:
    """Choose U, V and the precisions with the least error for every M at which something fits; see `fit`."""
    weights = 2 * image_weight / (1 + image_weight), 2 / (1 + image_weight)
    lost = lost or {(sizes.image_precision, sizes.target_precision): (0.0, 0.0)}
    candidates = [
        (
            dataclasses.replace(sizes, image_precision=precisions[0], target_precision=precisions[1]),
            weights[0] * (image_errors + loss[0]),
            weights[1] * (feature_errors + loss[1]),
        )
        for precisions, loss in lost.items()
    ]
    multiples = [min(multiple * sizes.N, most) for multiple in MULTIPLES] if "M" in free else [sizes.M]
    found = [
        min(
            (
                _spend(dataclasses.replace(one, M=M), of_images, of_features, free)
                for one, of_images, of_features in candidates
            ),
            key=lambda spent: spent[1],
        )
        for M in dict.fromkeys(multiples)
    ]
    return [(one, error) for one, error in found if np.isfinite(error)]


def _spend(
    sizes: Sizes, image_errors: np.ndarray, feature_errors: np.ndarray, free: Sequence[str]
) -> tuple[Sizes, float]:
    """Choose U and V with the least error for a given M; the error is infinite if nothing fits."""

    def fits(U: int, V: int) -> bool:
        return dataclasses.replace(sizes, U=U, V=V).fits

    best, least = sizes, np.inf
    for U in range(1, len(image_errors)) if "U" in free else (sizes.U,):
        # As many feature bases as fit beside U image bases: the numbers grow with both.
        candidates = range(1, len(feature_errors)) if "V" in free else (sizes.V,)
        number = bisect.bisect_left(candidates, True, key=lambda V, U=U: not fits(U, V))
        if not number:
            break
        V = candidates[number - 1]
        error = float(image_errors[U] + feature_errors[V])
        if error < least:
            best, least = dataclasses.replace(sizes, U=U, V=V), error
    return best, least


def check_pairs(N: int, images: int) -> int:
    """Return N after checking that there are at least N training images.

    Raises:
        UserError: If there are fewer.
    """
    if N > images:
        raise UserError(f"storage.N={N} asks for more images than the {images} there are: choose at most {images}")
    return N


def _fill(fixed: Sizes, free: list[str], most: dict[str, int]) -> Sizes:
    if "M" in free:
        fixed = dataclasses.replace(fixed, M=min(IMAGES_PER_N * fixed.N, most["M"]))
    # More bases than images would cost more than to store the images themselves.
    ceiling = {"U": min(most["U"], fixed.M), "V": min(most["V"], fixed.M * fixed.views), "M": most["M"]}
    bases = [name for name in free if name != "M"]

    def shared(share: float) -> Sizes:
        sizes: dict[str, Any] = {name: max(1, int(share * ceiling[name])) for name in bases}
        return dataclasses.replace(fixed, **sizes)

    # Bisection for the largest share that fits; sizes grow monotonically with it.
    low, high = 0.0, 1.0
    if shared(high).fits:
        low = high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if shared(middle).fits else (low, middle)
    chosen = shared(low)
    # A tiny budget may not hold the coefficients of 4 N images: fall back to one, and let the rest be spent below.
    if not chosen.fits and "M" in free:
        chosen = dataclasses.replace(chosen, M=1)
    return _spend_rest(chosen, [name for name in ("V", "U", "M") if name in free], ceiling)


def _spend_rest(chosen: Sizes, names: list[str], ceiling: dict[str, int]) -> Sizes:
    # Rounding down leaves a remainder: enlarge one size after the other while it fits.
    for name in names:
        while getattr(chosen, name) < ceiling[name]:
            larger = dataclasses.replace(chosen, **{name: getattr(chosen, name) + 1})
            if not larger.fits:
                break
            chosen = larger
    return chosen
