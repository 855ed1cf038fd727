"""Linear Gradient Matching and CLP-DD: images for a frozen encoder, each of one class.

A set for a frozen encoder stores N images, as many of each class, and, as every set of this package, the encoder's
features of them: it can also train a network from scratch. Without labels, clusters of the features take their place
(`config.encoder.clusters`), which is not in the papers.

LGM: `gradient_matching` between 10 augmented copies of each distilled image and as many real images, 5,000 steps of
Adam at 0.002 (the published loop takes one more), a level of the pyramid more after every 200, from then on with fresh
moments (published code). Different here: images are optimised and encoded at the size of the data (published: crops of
224 pixels out of 256); real images are drawn with replacement, at most as many as there are; and everything, heads too,
is float32 (published: automatic mixed precision).

CLP-DD: `closed_form` on the features of real images, which are computed once; no code is published. Taken from the
paper's abstract: the solver in sample space and the cross-entropy with a temperature, whose sizes are chosen here. The
pyramid and Adam are LGM's; nothing is augmented.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ssdd_jax import distilled, teacher
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Definition, Feed, Method, Problem, Run, Source
from ssdd_jax.methods.frozen_encoder import distortions, objectives, pyramid, ranking, stages
from ssdd_jax.training import streaming

Array = jax.Array

TITLES = {"lgm": "Linear Gradient Matching", "clp_dd": "CLP-DD"}


class State(NamedTuple):
    """Images that are optimised.

    Attributes:
        step: Steps done, int32.
        key: PRNG key; folded with `step`, never advanced.
        levels: See `pyramid.init`.
        opt_state: Adam's moments of them.
    """

    step: Array
    key: Array
    levels: pyramid.Levels
    opt_state: optax.OptState


class Info(NamedTuple):
    """Logged per step: the loss before it, the norm of its gradient, and the number of levels in use."""

    loss: Array
    gradient_norm: Array
    levels: Array


class Real(NamedTuple):
    """Real images of a step: uint8 `(B,H,W,C)`, the encoder's features, normalised, `(B,D)`, and classes `(B,)`."""

    images: Array | np.ndarray
    targets: Array | np.ndarray
    labels: Array | np.ndarray


def make_lgm(config: ConfigDict, problem: Problem) -> Method:
    """Build Linear Gradient Matching from a config.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data and facts about the teacher.

    Returns:
        The method.

    Raises:
        UserError: If there are no classes, or more than N of them.
    """
    # As many real images as augmented distilled ones.
    return _make(config, problem, _matching, lambda distilled_images: config.encoder.copies * distilled_images)


def make_clp_dd(config: ConfigDict, problem: Problem) -> Method:
    """Build CLP-DD from a config.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data and facts about the teacher.

    Returns:
        The method.

    Raises:
        UserError: As for `make_lgm`.
    """
    return _make(config, problem, _closed_form, lambda _: config.distill.batch_size)


def _make(config: ConfigDict, problem: Problem, objective: Callable[..., Array], batch: Callable[[int], int]) -> Method:
    """Build a method from its loss, and the number of real images that it takes for a number of distilled ones."""
    name, options = config.method, config.encoder
    classes = options.clusters or problem.classes
    if not classes:
        raise UserError(
            f"config.method={name} needs labels, and the data set has none: set config.encoder.clusters, such as 10, "
            "to use clusters of the teacher's features in their place"
        )
    if not options.clusters:
        problem.check_classes(name, instead=", or set config.encoder.clusters")
    per_class = config.storage.N // classes
    if not per_class:
        raise UserError(
            f"config.method={name} stores at least one image of each of {classes} classes, and config.storage.N is "
            f"{config.storage.N}: set it to a multiple of {classes}"
        )
    own, most = np.repeat(np.arange(classes), per_class), len(pyramid.sizes(*problem.image_shape[:2]))
    # As many resolutions as have joined at the last step.
    joined = int(pyramid.used(config.distill.steps - 1, every=options.extend_every, most=most))
    size = min(batch(len(own)), problem.images)
    optimizer = optax.adam(config.distill.learning_rate)

    def init(key: Array, source: Source) -> State:
        key_levels, key_steps = jax.random.split(key)
        levels = pyramid.init(key_levels, len(own), problem.image_shape)
        return State(jnp.zeros((), jnp.int32), key_steps, levels, optimizer.init(levels))

    def rows_of(key: Array, step: Array) -> Array:
        """Draw the real images of a step."""
        return jax.random.randint(jax.random.fold_in(jax.random.fold_in(key, step), 0), (size,), 0, problem.images)

    def step(state: State, source: Source, item: Real | None = None) -> tuple[State, Info]:
        key = jax.random.fold_in(state.key, state.step)
        if item is None:
            rows = rows_of(state.key, state.step)
            item = Real(source.images[rows], source.targets[rows], source.prepared.labels[rows])
        # A level joins before the step; Adam begins anew, as published.
        count = pyramid.used(state.step, every=options.extend_every, most=most)
        before = pyramid.used(state.step - 1, every=options.extend_every, most=most)
        levels, opt_state = jax.lax.cond(
            count > before,
            lambda levels, _: _joined(jax.random.fold_in(key, 1), levels, before, optimizer),
            lambda levels, opt_state: (levels, opt_state),
            state.levels,
            state.opt_state,
        )

        def loss(levels: pyramid.Levels) -> Array:
            images = pyramid.decode(levels, count)
            return objective(
                jax.random.fold_in(key, 2), images, jnp.asarray(own), item, source, classes=classes, config=config
            )

        value, gradient = jax.value_and_grad(loss)(levels)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer
            updates, opt_state = optimizer.update(gradient, opt_state)
        after = State(state.step + 1, state.key, optax.apply_updates(levels, updates), opt_state)
        return after, Info(value, optax.tree.norm(gradient), count.astype(jnp.float32))

    def images_of(state: State) -> Array:
        """Decode the images with the levels that the last step used: pixels between 0 and 1 `(P,H,W,C)`."""
        return pyramid.decode(state.levels, pyramid.used(state.step - 1, every=options.extend_every, most=most))

    def export(key: Array, state: State, source: Source) -> distilled.DistilledSet:
        pixels, constants = images_of(state), source.preprocessing
        inputs = constants.inputs(pixels)
        features = teacher.features_of_inputs(source.teacher, inputs)
        return distilled.from_pairs(inputs, constants.targets(features), constants, labels=own.tolist())

    def feed(run: Run) -> Feed | None:
        if run.resident():
            return None
        # The key that `init` stores in the state: the host draws the images that a resident run would draw.
        pairs, key = run.pairs(), jax.random.split(run.key("distill"))[1]
        labels, drawn = stages.labels_of(run).train.astype(np.int32), streaming.on_host(rows_of)

        def read(step: int) -> Real:
            rows = drawn(key, np.int32(step))
            return Real(*pairs.take(rows), labels[rows])

        return streaming.feed(read, steps=config.distill.steps)

    notes = []
    if per_class * classes < config.storage.N:
        notes.append(
            f"{per_class * classes} images, {per_class} of each of {classes} classes, are stored of the "
            f"{config.storage.N} that there is room for: {classes * (per_class + 1)} are the next multiple"
        )
    if joined < most:
        notes.append(
            f"only {joined} of {most} resolutions join in {config.distill.steps:,} steps, so that the images stay "
            f"coarse: set config.encoder.extend_every to {max(1, (config.distill.steps - 2) // (most - 1))} or less"
        )
    return Method(
        init,
        step,
        export,
        steps=config.distill.steps,
        samples=0,
        title=TITLES[name],
        stages=(stages.clusters(),) if options.clusters else (),
        load=stages.load,
        feed=feed,
        after=(
            stages.ridge_head(per_class, classes),
            *((stages.linear_head(per_class, classes),) if options.head_epochs else ()),
            *(ranking.ranking(per_class, classes) if options.label_steps else ()),
        ),
        show=lambda state: {"pixels": images_of(state)},
        pairs=(len(own), problem.dim),
        shapes=(
            ("distilled images", f"{len(own)}, {per_class} of each of {classes} classes"),
            ("resolutions", f"{joined} of {most}, one more after every {options.extend_every:,} steps"),
        ),
        example=lambda stand: stages.Prepared(jnp.arange(problem.images) % classes),
        notes=tuple(notes),
    )


def _joined(
    key: Array, levels: pyramid.Levels, count: Array, optimizer: optax.GradientTransformation
) -> tuple[pyramid.Levels, optax.OptState]:
    extended = pyramid.extend(key, levels, count)
    return extended, optimizer.init(extended)


def _matching(
    key: Array, images: Array, labels: Array, real: Real, source: Source, *, classes: int, config: ConfigDict
) -> Array:
    """LGM's loss of images `(P,H,W,C)`, pixels between 0 and 1."""
    key_head, key_real, key_own = jax.random.split(key, 3)
    copies, constants = config.encoder.copies, source.preprocessing
    augmentation = stages.augmentation(config, noise=True)
    dim = source.preprocessing.target_mean.shape[0]
    head = objectives.random_head(key_head, dim, classes)
    pixels = jnp.asarray(real.images, images.dtype) / 255
    augmented = distortions.apply(pixels, distortions.draw(key_real, pixels.shape, augmentation))
    aim = objectives.head_gradient(head, stages.encode(augmented, source.teacher, constants), jnp.asarray(real.labels))
    several = jnp.tile(images, (copies, 1, 1, 1))
    several = distortions.apply(several, distortions.draw(key_own, several.shape, augmentation))
    features = stages.encode(several, source.teacher, constants)
    found = objectives.head_gradient(head, features, jnp.tile(labels, copies))
    return objectives.gradient_matching(jax.lax.stop_gradient(aim), found)


def _closed_form(
    key: Array, images: Array, labels: Array, real: Real, source: Source, *, classes: int, config: ConfigDict
) -> Array:
    """CLP-DD's loss of images `(P,H,W,C)`, pixels between 0 and 1."""
    constants, options = source.preprocessing, config.encoder
    features = constants.targets(stages.encode(images, source.teacher, constants))
    return objectives.closed_form(
        (features, labels),
        (jnp.asarray(real.targets), jnp.asarray(real.labels)),
        classes=classes,
        ridge_scale=options.ridge_scale,
        temperature=options.temperature,
    )


def _definition(
    name: str, make: Callable[[ConfigDict, Problem], Method], changes: Mapping[str, object], lower: str
) -> Definition:
    return Definition(
        make,
        titles={name: TITLES[name]},
        editions={name: {"method": name, "distill.learning_rate": 2e-3, "distill.save_every": 500, **changes}},
        network=True,
        cpu_steps=(600, 1500),
        lower=lower,
    )


LGM = _definition("lgm", make_lgm, {"distill.steps": 5000}, "config.encoder.copies")
CLP_DD = _definition(
    "clp_dd",
    make_clp_dd,
    {"distill.steps": 5000, "distill.batch_size": 1024},
    "config.storage.N or config.distill.batch_size",
)
