"""What a distillation method is: a NamedTuple of pure functions, in the way that an optax transformation is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ssdd_jax.distilled import DistilledSet
from ssdd_jax.preprocess import Preprocessing

Array = jax.Array


class Problem(NamedTuple):
    """What is known before any work is done.

    Attributes:
        image_shape: `(H,W,C)`.
        dim: Length D of the teacher's features.
        images: Number n of training images.
    """

    image_shape: tuple[int, int, int]
    dim: int
    images: int


class Source(NamedTuple):
    """The data that a method distils, resident on the device.

    Attributes:
        images: uint8 `(n,H,W,C)`.
        targets: The teacher's features of the images, centred and scaled, `(n,D)`.
        samples: The images that the method starts from, int32 `(M,)`.
        view_targets: The same as `targets` for the views of the samples `(views,M,D)`.
        preprocessing: The data set's constants.
    """

    images: Array
    targets: Array
    samples: Array
    view_targets: Array
    preprocessing: Preprocessing


class Method(NamedTuple):
    """A distillation method.

    Attributes:
        init: `(key, source) -> state`. A state is a pytree with the fields `step`, int32, and `key`.
        step: `(state, source) -> (state, info)`: one outer step. `info` is a NamedTuple of scalars, `loss` among them.
        export: `(key, state, source) -> DistilledSet`.
        steps: Number of outer steps.
        samples: Number M of images that it starts from.
        views: Names of the views whose targets it starts from, the first being the image as it is.
    """

    init: Callable[[Array, Source], Any]
    step: Callable[[Any, Source], tuple[Any, Any]]
    export: Callable[[Array, Any, Source], DistilledSet]
    steps: int
    samples: int
    views: tuple[str, ...]
