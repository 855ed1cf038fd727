"""Storage: a parameterized set must fit in the N images and features that it replaces, `N (HWC + D)` numbers.

Everything a set needs to be decoded is counted: bases, coefficients, means and approximation networks. Not counted are
the constants that every method and baseline shares because they belong to the data set: mean and deviation per channel,
mean and scale of the teacher's features.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ssdd_jax import approximate
from ssdd_jax.errors import UserError

# Left to itself, a plan decodes into this many images per image of the budget.
IMAGES_PER_N = 4


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a parameterized set.

    Attributes:
        N: Images and features in whose storage the set fits.
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
        """Numbers that N images and their features take: `N (HWC + D)`."""
        height, width, channels = self.image_shape
        return self.N * (height * width * channels + self.dim)

    @property
    def parts(self) -> dict[str, int]:
        """Numbers stored, by part."""
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
        """Numbers stored."""
        return sum(self.parts.values())

    def sum_text(self) -> str:
        """The sum, written out."""
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
    """Choose what is left open (0) among M, U and V so that the budget is used.

    M becomes 4 N. U and V become the same share of the most that their spaces and the data allow; what then remains
    goes to V, U and M in turn.

    Args:
        N: Images and features in whose storage the set must fit.
        image_shape: `(H,W,C)`.
        dim: Length D of a target.
        base_size: Low resolution `(h,w)`.
        views: Number of views.
        hidden: Hidden units of an approximation network.
        images: Number n of images there are to start from.
        M: Decoded images, or 0.
        U: Image bases, or 0.
        V: Feature bases, or 0.

    Returns:
        A plan that fits.

    Raises:
        UserError: If there are too few images, or the choice exceeds the budget; the sum is written out.
    """
    check_pairs(N, images)
    low = base_size[0] * base_size[1] * image_shape[-1]
    most = {"M": images, "U": min(low, images - 1), "V": min(dim, images - 1)}
    given = {"M": M, "U": U, "V": V}
    spaces = {"M": "images", "U": f"{low} numbers of a base and {images} images",
              "V": f"{dim} numbers of a feature and {images} images"}  # fmt: skip
    for name, value in given.items():
        if value > most[name]:
            raise UserError(f"storage.{name}={value} is too many for the {spaces[name]}: at most {most[name]}")
    fixed = Sizes(N, M, U, V, hidden, views, image_shape, base_size, dim)
    open_ = [name for name, value in given.items() if not value]
    chosen = _fill(fixed, open_, most)
    if chosen.numbers > chosen.budget:
        least = "" if not open_ else f" even with {', '.join(open_)} at their least"
        raise UserError(
            f"storage exceeds the budget{least}: {chosen.sum_text()} > {chosen.budget:,} = "
            f"N (HWC + D) with N={N}; lower M, U, V or hidden, or raise N"
        )
    return chosen


def check_pairs(N: int, images: int) -> int:
    """N, if there are so many images to start from.

    Raises:
        UserError: If there are not.
    """
    if N > images:
        raise UserError(f"storage.N={N} asks for more images than the {images} there are: choose at most {images}")
    return N


def _fill(fixed: Sizes, open_: list[str], most: dict[str, int]) -> Sizes:
    if "M" in open_:
        fixed = dataclasses.replace(fixed, M=min(IMAGES_PER_N * fixed.N, most["M"]))
    # More bases than images would store each image more dearly than as it is.
    ceiling = {"U": min(most["U"], fixed.M), "V": min(most["V"], fixed.M * fixed.views), "M": most["M"]}
    bases = [name for name in open_ if name != "M"]

    def shared(share: float) -> Sizes:
        sizes: dict[str, Any] = {name: max(1, int(share * ceiling[name])) for name in bases}
        return dataclasses.replace(fixed, **sizes)

    low, high = 0.0, 1.0
    if shared(high).numbers <= fixed.budget:
        low = high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if shared(middle).numbers <= fixed.budget else (low, middle)
    chosen = shared(low)
    if chosen.numbers > chosen.budget and "M" in open_:
        chosen = dataclasses.replace(chosen, M=1)
    return _spend_rest(chosen, [name for name in ("V", "U", "M") if name in open_], ceiling)


def _spend_rest(chosen: Sizes, names: list[str], ceiling: dict[str, int]) -> Sizes:
    for name in names:
        while getattr(chosen, name) < ceiling[name]:
            larger = dataclasses.replace(chosen, **{name: getattr(chosen, name) + 1})
            if larger.numbers > larger.budget:
                break
            chosen = larger
    return chosen
