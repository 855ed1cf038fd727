"""Composed pairs, the edition `boost_plus`: a few stored images, of which a static table composes many, with the
teacher's features of these in a low-dimensional basis. Not in a paper of the field; see `ssdd_jax.compose`.

It takes two ideas of Boost-SSDD further, predefined augmentation and low-dimensional targets, and leaves out its outer
steps: a student lacks the variety of images rather than their fit to the outer loss. Outer steps from such a start made
it worse (docs/guides/methods.md).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from ssdd_jax import compose, decoder, distilled, teacher
from ssdd_jax.compose import Params
from ssdd_jax.config import CODES
from ssdd_jax.errors import UserError
from ssdd_jax.methods import budget
from ssdd_jax.methods.base import Definition, Method, Problem, Source, StandIns, Trial
from ssdd_jax.storage import mosaic, packing

Array = jax.Array

# Sizes that are not given, measured on CIFAR-10 and digits (docs/guides/methods.md). The share of the storage for the
# stored images; the least number of them for which they keep their full resolution, and the least side if they do not.
IMAGE_SHARE, LEAST_IMAGES, LEAST_SIDE = 0.3, 8, 12
# Feature bases, doubled as often as leaves so many pairs for each; and the largest share of the storage for them.
FEATURE_BASES, PAIRS_PER_BASE, BASES_SHARE = 12, 100, 0.15
# Bytes of a coded image for each of its numbers, before the data say how many.
BYTES_PER_NUMBER = 0.1
TITLE = "Boost-SSDD+"


class State(NamedTuple):
    """State of a method that takes no steps: the step stays 0, the key is unused, and the set is complete."""

    step: Array
    key: Array
    params: Params


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a set of composed images.

    Attributes:
        U: Stored images.
        M: Composed images.
        V: Feature bases.
        low: `(h,w,C)` of the stored images.
        dim: Length D of a target.
        N: Budget in numbers: the storage of N images of `image_numbers` and their features.
        image_numbers: Values of an image of the data.
        bytes: Budget of the file in bytes; 0 for that of N in numbers.
        precisions: Of images and of targets.
        coded: Bytes of a stored image that is coded with others; 0 for images in their precision.
    """

    U: int
    M: int
    V: int
    low: tuple[int, int, int]
    dim: int
    N: int
    image_numbers: int
    bytes: int = 0
    precisions: tuple[str, str] = ("float32", "float32")
    coded: float = 0.0

    @property
    def budget(self) -> int:
        """Size of N images and their features in numbers; or the bytes of the file."""
        return self.bytes or self.N * (self.image_numbers + self.dim)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the stored arrays, by their name in the set."""
        return {
            "images": (self.U, *self.low),
            "feature_bases": (self.V, self.dim),
            "feature_coefficients": (self.M, self.V),
            "feature_mean": (self.dim,),
        }

    @property
    def parts(self) -> dict[str, int]:
        """Stored numbers by part."""
        return {name.replace("_", " "): math.prod(shape) for name, shape in self.shapes.items()}

    @property
    def used(self) -> int:
        """The part of the budget that is used: numbers, or the bytes, an estimate where a quality makes them fit."""
        if not self.bytes:
            return sum(self.parts.values())
        images, targets = self.precisions
        constants = {"channels": self.low[-1], "dim": self.dim}
        expected = images in mosaic.LOSSY
        return packing.size(
            self.shapes, images=images, targets=targets, coded=self.coded, expected=expected, **constants
        )


def plan_of(config: ConfigDict, problem: Problem, coded: Callable[[tuple[int, int]], float] | None = None) -> Sizes:
    """Choose those of the resolution, U, V and M that the config leaves at 0.

    The stored images keep their full resolution if `LEAST_IMAGES` of them, or the U that is given, fit `IMAGE_SHARE` of
    the budget, and otherwise have half of it; U is the largest number in that share, or beside M if that is given. M
    uses up what is left by U and V. V is `FEATURE_BASES`, doubled as often as leaves `PAIRS_PER_BASE` V pairs if M is
    not given; it is less if so many would take more than `BASES_SHARE` of the budget.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.
        coded: Returns the bytes of a stored image of `(h,w)` pixels that is coded with others; None until the data say
            it, which leaves the plan a guess.

    Raises:
        UserError: If the sizes exceed the budget or the data.
    """
    storage, channels = config.storage, problem.image_shape[-1]
    images, targets = budget.precisions(config, coded=True)
    for name, most, what in (("V", problem.dim, "numbers of a feature"), ("U", problem.images, "images")):
        if storage[name] > most:
            raise UserError(f"storage.{name}={storage[name]} is more than the {most} {what}: choose at most that")

    def without(side: int) -> Sizes:
        low = budget.low_size(problem.image_shape, side)
        nominal = BYTES_PER_NUMBER * math.prod(low) * channels if images in CODES else 0.0
        return Sizes(
            U=0,
            M=0,
            V=0,
            low=(*low, channels),
            dim=problem.dim,
            N=storage.N,
            image_numbers=problem.image_numbers,
            bytes=storage.bytes,
            precisions=(images, budget.CODED_TARGETS if storage.bytes and storage.targets == "auto" else targets),
            coded=nominal if coded is None else coded(low),
        )

    def most_images(empty: Sizes) -> int:
        # The images' share does not depend on the bases, unless the number of pairs is given.
        if not storage.M:
            return _largest(empty, "U", IMAGE_SHARE, problem.images)
        return _largest(empty, "U", 1.0, problem.images, V=storage.V or _bases(empty, FEATURE_BASES), M=storage.M)

    full = min(problem.image_shape[:2])
    empty = without(storage.base_size or full)
    most, least = most_images(empty), storage.U or min(LEAST_IMAGES, problem.images)
    if not storage.base_size and full // 2 >= LEAST_SIDE and most < least:
        empty = without(full // 2)
        most = most_images(empty)
    given = dataclasses.replace(empty, U=storage.U or most)

    def with_bases(V: int) -> Sizes:
        M = storage.M or _largest(given, "M", 1.0, given.budget, V=V)
        return dataclasses.replace(given, V=V, M=M)

    fixed = with_bases(storage.V or _bases(empty, FEATURE_BASES))
    while not (storage.V or storage.M):
        more = with_bases(_bases(empty, 2 * fixed.V))
        if more.V < 2 * fixed.V or more.M < PAIRS_PER_BASE * more.V:
            break
        fixed = more
    unit, key = ("bytes", "storage.bytes") if fixed.bytes else ("numbers", "storage.N")
    if storage.bytes and images in CODES and channels in mosaic.CHANNELS:
        # The least that a set takes, whatever the data.
        small = mosaic.least_bytes((*fixed.low[:2], channels), images)
        least = dataclasses.replace(fixed, U=1, V=1, M=2, coded=small).used
        if least > fixed.budget:
            raise UserError(
                f"storage.bytes={storage.bytes:,} holds no set: one image, one feature basis and two pairs take about "
                f"{least:,} bytes; raise it"
            )
    # Coded images take the quality at which they fit.
    if fixed.used > fixed.budget and not (storage.bytes and images in CODES):
        terms = " + ".join(f"{count:,} ({part})" for part, count in fixed.parts.items())
        raise UserError(
            f"storage exceeds the budget: {terms} take {fixed.used:,} of {fixed.budget:,} {unit}; lower storage.M, "
            f"U, V or base_size, or raise {key}"
        )
    # Only what was chosen by hand can be lowered.
    by_hand = [f"storage.{name}" for name in ("U", "V") if storage[name]]
    given_sizes = f"lower {' or '.join(by_hand)}, or " if by_hand else ""
    if fixed.V >= fixed.M and not (storage.bytes and images in CODES and coded is None):
        raise UserError(
            f"storage.V={fixed.V} feature bases need more than {fixed.V} composed images, and there are {fixed.M}: "
            f"{given_sizes}raise {key}"
        )
    return fixed


def _largest(sizes: Sizes, name: str, share: float, most: int, **others: Any) -> int:
    """Return the largest size, from 1 to `most`, that leaves the set in a share of the budget.

    What every set takes does not count. Other sizes are those of `sizes`, or given by name.
    """
    none = dataclasses.replace(sizes, U=0, V=0, M=0).used
    limit = none + share * (sizes.budget - none)

    def too_large(value: int) -> bool:
        return dataclasses.replace(sizes, **{**others, name: value}).used > limit

    return max(1, bisect.bisect_left(range(1, most + 1), True, key=too_large))


def _bases(empty: Sizes, V: int) -> int:
    """Return V, or fewer bases if so many would take more than `BASES_SHARE` of the budget."""
    return _largest(empty, "V", BASES_SHARE, min(V, empty.dim))


def make(config: ConfigDict, problem: Problem) -> Method:
    """Build the method from a config.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.

    Returns:
        The method.

    Raises:
        UserError: If the sizes do not fit the budget or the data.
    """
    plan, size = plan_of(config, problem), problem.image_shape[:2]

    def stored(source: Source, low: tuple[int, int]) -> Array:
        return decoder.downsample(source.preprocessing.images(source.images[source.samples]), low)

    def init(key: Array, source: Source) -> State:
        images = stored(source, plan.low[:2])
        rows = compose.table(config.seed, plan.M, plan.U, square=size[0] == size[1])

        def look(row: compose.Table) -> Array:
            # The teacher sees what a student will see when the set is decoded; only a batch of it is held at a time.
            return teacher.features_of_inputs(source.teacher, compose.compose_one(row, images, size)[None])[0]

        batch = min(teacher.batch_of(source.teacher, problem.image_shape), plan.M)
        features = lax.map(look, jax.tree.map(jnp.asarray, rows), batch_size=batch)
        targets = source.preprocessing.targets(features)
        equal = jnp.full(plan.M, 1 / plan.M, targets.dtype)
        mean, bases, coefficients = decoder.STARTS["pca"](key, targets, equal, targets, plan.V)
        params = Params(images, bases, coefficients, mean, image_size=size, seed=config.seed)
        return State(jnp.zeros((), jnp.int32), key, params)

    def export(key: Array, state: State, source: Source) -> distilled.DistilledSet:
        return distilled.from_composed(state.params, source.preprocessing)

    def settle(source: Source) -> dict[str, Any]:
        changes: dict[str, Any] = {"storage.targets": plan.precisions[1]}
        code = plan.precisions[0]
        if code not in CODES:
            return changes
        # As many images as fit by the mean code of the source's samples.

        def coded(low: tuple[int, int]) -> float:
            values = source.preprocessing.pixels(stored(source, low))
            pixels = np.asarray(jnp.round(255 * values)).astype(np.uint8)
            quality = config.storage.quality
            return mosaic.room_each(pixels, code, quality, held=lambda size: plan_of(config, problem, lambda _: size).U)

        chosen = plan_of(config, problem, coded)
        sizes = {"storage.U": chosen.U, "storage.V": chosen.V, "storage.M": chosen.M}
        return changes | sizes | {"storage.base_size": min(chosen.low[:2])}

    return Method(
        init,
        None,
        export,
        steps=0,
        samples=plan.U,
        title=TITLE,
        settle=settle if plan.bytes else None,
        pairs=(plan.M, plan.dim),
        parts=plan.parts,
        trials={"approximate": functools.partial(_trials, plan)},
        shapes=(
            ("stored images U", f"{plan.U:,} of {'x'.join(map(str, plan.low))}"),
            ("composed images M", f"{plan.M:,} of up to {compose.LAYERS} layers"),
            ("feature bases V", f"{plan.V:,} of {plan.dim:,}, coefficients {plan.M:,}x{plan.V:,}"),
        ),
    )


def _trials(plan: Sizes, stand: StandIns) -> list[Trial]:
    """Trial of the teacher's features of composed images, almost all of the method's work."""
    count = min(teacher.batch_of(stand.backbone, stand.run.problem.image_shape), plan.M)

    @jax.jit
    def extract(network: Any, images: Array) -> Array:
        return lax.map(lambda image: teacher.features_of_inputs(network, image[None])[0], images, batch_size=count)

    arguments = stand.backbone, stand.normal(count, *stand.run.problem.image_shape)
    return [Trial("composed images", plan.M, extract, arguments, units=count)]


DEFINITION = Definition(
    make,
    titles={"boost_plus": TITLE},
    editions={"boost_plus": {"method": "composed"}},
    network=True,
    forward=True,
    coded=True,
    bases=True,
    lower="config.teacher.input_size or config.data.image_size",
)
