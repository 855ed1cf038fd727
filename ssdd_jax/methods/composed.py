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

# Images per forward pass of the teacher.
BATCH = 256
# Sizes that are not given: the share of the storage for the stored images, the number of feature bases, and the largest
# share of the storage for these. Measured on CIFAR-10 and digits, see docs/guides/methods.md.
IMAGE_SHARE, FEATURE_BASES, BASES_SHARE = 0.3, 12, 0.15
# Precision of the targets for a budget in bytes.
TARGETS = "int5"
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
        """The part of the budget that is used: numbers, or a bound of the bytes from above."""
        if not self.bytes:
            return sum(self.parts.values())
        images, targets = self.precisions
        constants = {"channels": self.low[-1], "dim": self.dim}
        return packing.size(self.shapes, images=images, targets=targets, coded=self.coded, **constants)


def plan_of(config: ConfigDict, problem: Problem, *, coded: float = 0.0) -> Sizes:
    """Choose those of U, V and M that the config leaves at 0.

    V is `FEATURE_BASES`, or fewer if these would take more than `BASES_SHARE` of the budget; U is the largest number of
    images in `IMAGE_SHARE` of it, or beside M if that is given; M uses up what is left.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.
        coded: Bytes of a stored image that is coded with others; until they are known, images count as int8.

    Raises:
        UserError: If the sizes exceed the budget or the data.
    """
    storage, (height, width, channels) = config.storage, problem.image_shape
    images, targets = budget.precisions(config, coded=True)
    empty = Sizes(
        U=0,
        M=0,
        V=0,
        low=(min(storage.base_size, height), min(storage.base_size, width), channels),
        dim=problem.dim,
        N=storage.N,
        image_numbers=problem.image_numbers,
        bytes=storage.bytes,
        precisions=(images, TARGETS if storage.bytes and storage.targets == "auto" else targets),
        coded=coded,
    )
    for name, most, what in (("V", problem.dim, "numbers of a feature"), ("U", problem.images, "images")):
        if storage[name] > most:
            raise UserError(f"storage.{name}={storage[name]} is more than the {most} {what}: choose at most that")

    def largest(sizes: Sizes, name: str, share: float, most: int) -> int:
        """The largest size that leaves the set in a share of the budget, without what every set takes; at least 1."""
        limit = empty.used + share * (empty.budget - empty.used)

        def too_large(value: int) -> bool:
            changes: dict[str, Any] = {name: value}
            return dataclasses.replace(sizes, **changes).used > limit

        return max(1, bisect.bisect_left(range(1, most + 1), True, key=too_large))

    V = storage.V or largest(empty, "V", BASES_SHARE, min(FEATURE_BASES, problem.dim))
    given = dataclasses.replace(empty, V=V, M=storage.M)
    # The images' share does not depend on the bases, unless the number of pairs is given.
    U = storage.U or largest(*((given, "U", 1.0) if storage.M else (empty, "U", IMAGE_SHARE)), problem.images)
    fixed = dataclasses.replace(given, U=U)
    fixed = dataclasses.replace(fixed, M=storage.M or largest(fixed, "M", 1.0, fixed.budget))
    unit, key = ("bytes", "storage.bytes") if fixed.bytes else ("numbers", "storage.N")
    # Coded images take the quality at which they fit.
    if fixed.used > fixed.budget and images not in CODES:
        terms = " + ".join(f"{count:,} ({part})" for part, count in fixed.parts.items())
        raise UserError(
            f"storage exceeds the budget: {terms} take {fixed.used:,} of {fixed.budget:,} {unit}; lower storage.M, "
            f"U, V or base_size, or raise {key}"
        )
    if fixed.V >= fixed.M:
        raise UserError(
            f"storage.V={fixed.V} feature bases need more than {fixed.V} composed images, and there are {fixed.M}: "
            f"lower storage.V or U, or raise {key}"
        )
    return fixed


def make(config: ConfigDict, problem: Problem) -> Method:
    """Build the method from a config.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.

    Returns:
        The method.

    Raises:
        UserError: If the teacher is not a network, or the sizes do not fit the budget or the data.
    """
    if not problem.network:
        raise UserError(
            f"config.method={config.method} runs the teacher on images that it composes, and only precomputed features "
            "are available: leave config.teacher.features empty to train a teacher, or choose another method"
        )
    plan, size = plan_of(config, problem), problem.image_shape[:2]

    def stored(source: Source) -> Array:
        return decoder.downsample(source.preprocessing.images(source.images[source.samples]), plan.low[:2])

    def init(key: Array, source: Source) -> State:
        images = stored(source)
        rows = compose.table(config.seed, plan.M, plan.U, square=size[0] == size[1])

        def look(row: compose.Table) -> Array:
            # The teacher sees what a student will see when the set is decoded; only a batch of it is held at a time.
            return teacher.features_of_inputs(source.teacher, compose.compose_one(row, images, size)[None])[0]

        features = lax.map(look, jax.tree.map(jnp.asarray, rows), batch_size=min(BATCH, plan.M))
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
        pixels = np.asarray(jnp.round(255 * source.preprocessing.pixels(stored(source)))).astype(np.uint8)
        chosen = plan_of(config, problem, coded=mosaic.bytes_each(pixels, code, config.storage.quality))
        return changes | {"storage.U": chosen.U, "storage.V": chosen.V, "storage.M": chosen.M}

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
    count = min(BATCH, plan.M)

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
)
