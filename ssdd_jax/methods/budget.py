"""Storage budget: a parameterized set must fit in `N (HWC + D)` numbers, the size of N images and their features.

Everything that is needed to decode a set is counted: bases, coefficients, means and approximation networks. Constants
of the data set, which every method and baseline shares, are not counted: mean and deviation per channel, mean and scale
of the teacher's features.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssdd_jax import approximate
from ssdd_jax.errors import UserError

# Without data a set is planned to decode into this many images per image of the budget.
IMAGES_PER_N = 4
# With data, into one of these many, whose error may exceed that of as many images as the budget by `TOLERANCE`.
MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16)
TOLERANCE = 0.05


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

    @property
    def budget(self) -> int:
        """Size of N images and their features: `N (HWC + D)` numbers."""
        height, width, channels = self.image_shape
        return self.N * (height * width * channels + self.dim)

    @property
    def parts(self) -> dict[str, int]:
        """Stored numbers by part."""
        low = self.base_size[0] * self.base_size[1] * self.image_shape[-1]
        return {
            "image bases": self.U * low,
            "image coefficients": self.M * self.U,
            "image mean": low,
            "feature bases": self.V * self.dim,
            "feature coefficients": self.M * self.V,
            "feature mean": self.dim,
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

    Returns:
        Sizes that fit the budget.

    Raises:
        UserError: If there are too few images, or the sizes exceed the budget; the message lists the parts.
    """
    check_pairs(N, images)
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
    initial = Sizes(N, M, U, V, hidden, views, image_shape, base_size, dim)
    free = [name for name, value in requested.items() if not value]
    chosen = _fill(initial, free, most)
    if chosen.numbers > chosen.budget:
        least = "" if not free else f" even with {', '.join(free)} as small as possible"
        raise UserError(
            f"storage exceeds the budget{least}: {chosen.sum_text()} > {chosen.budget:,} = "
            f"N (HWC + D) with N={N}; lower M, U, V or hidden, or raise N"
        )
    return chosen


def fit(sizes: Sizes, image_errors: np.ndarray, feature_errors: np.ndarray, *, free: Sequence[str], most: int) -> Sizes:
    """Choose sizes by the error of decoded images and targets at the budget.

    For a given M, U and V are those with the least sum of the two errors. M is the largest of `MULTIPLES` times N at
    which that sum is at most `TOLERANCE` above its value for M = N: more images for almost the same error.

    Args:
        sizes: Sizes that fit the budget, from `plan`; those that are not free stay as they are.
        image_errors: The error of images with 0, 1, ... bases, as a share of their variance, `(most_U+1,)`.
        feature_errors: Likewise that of targets, `(most_V+1,)`.
        free: Which of `M`, `U` and `V` to choose.
        most: Number of training images, which limits M.

    Returns:
        The sizes.
    """
    multiples = [min(multiple * sizes.N, most) for multiple in MULTIPLES] if "M" in free else [sizes.M]
    found = [
        _spend(dataclasses.replace(sizes, M=M), image_errors, feature_errors, free) for M in dict.fromkeys(multiples)
    ]
    fitting = [(one, error) for one, error in found if np.isfinite(error)]
    if not fitting:
        return sizes
    allowed = fitting[0][1] + TOLERANCE
    return next(one for one, error in reversed(fitting) if error <= allowed)


def _spend(
    sizes: Sizes, image_errors: np.ndarray, feature_errors: np.ndarray, free: Sequence[str]
) -> tuple[Sizes, float]:
    """Choose U and V with the least error for a given M; the error is infinite if nothing fits."""

    def fits(U: int, V: int) -> bool:
        candidate = dataclasses.replace(sizes, U=U, V=V)
        return candidate.numbers <= candidate.budget

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
    if shared(high).numbers <= fixed.budget:
        low = high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if shared(middle).numbers <= fixed.budget else (low, middle)
    chosen = shared(low)
    # A tiny budget may not hold the coefficients of 4 N images: fall back to one, and let the rest be spent below.
    if chosen.numbers > chosen.budget and "M" in free:
        chosen = dataclasses.replace(chosen, M=1)
    return _spend_rest(chosen, [name for name in ("V", "U", "M") if name in free], ceiling)


def _spend_rest(chosen: Sizes, names: list[str], ceiling: dict[str, int]) -> Sizes:
    # Rounding down leaves a remainder: enlarge one size after the other while it fits.
    for name in names:
        while getattr(chosen, name) < ceiling[name]:
            larger = dataclasses.replace(chosen, **{name: getattr(chosen, name) + 1})
            if larger.numbers > larger.budget:
                break
            chosen = larger
    return chosen
