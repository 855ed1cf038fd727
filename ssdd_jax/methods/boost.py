"""Boost-SSDD (Yu, Yao and Chiu, "Boost Self-Supervised Dataset Distillation via Parameterization, Predefined
Augmentation, and Approximation", ICLR 2025): parameterized pairs under fixed views, learned against a model pool."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssdd_jax import approximate, augment, decoder, distilled
from ssdd_jax.errors import UserError
from ssdd_jax.methods import bilevel, budget, starts
from ssdd_jax.methods.base import Definition, Method, Problem, Source, StandIns, Trial
from ssdd_jax.storage import packing

Array = jax.Array

# Principal components are computed from at most this many images, fewer of more than this many numbers: more hardly
# change them, and could exhaust memory.
START_IMAGES = 50_000
START_NUMBERS = 64 * 64 * 3
# Every fifth image is held out from the bases whose error determines their numbers.
FOLDS = 5
# Precisions that are tried for a budget in bytes.
PRECISIONS = ("int8", "int6", "int5", "int4", "int3")
# Number of steps of the fit that the dry run times.
TRIED = 100
TITLE = "Boost-SSDD"


class Joint(NamedTuple):
    """Parameters of a set whose further views are predicted throughout the distillation, as they are when it is stored.

    Attributes:
        params: The decoder's parameters; `feature_coefficients` are those of the first view alone, `(1,M,V)`.
        networks: One approximation network per further view.
    """

    params: decoder.Params
    networks: approximate.Networks

    def decoder(self) -> decoder.Params:
        """Return the decoder's parameters with the predicted coefficients of all views `(views,M,V)`."""
        coefficients = approximate.apply(self.networks, self.params.feature_coefficients[0])
        return dataclasses.replace(self.params, feature_coefficients=coefficients)

    def rounded(self, images: str, targets: str) -> Joint:
        """Round parameters and networks as they will be stored in these precisions of images and targets."""
        networks = {
            name: packing.rounded(f"networks.{name}", array, images=images, targets=targets)
            for name, array in self.networks._asdict().items()
        }
        return Joint(rounded(self.params, images, targets), approximate.Networks(**networks))

    def pairs(self) -> tuple[Array, Array]:
        """Decode images `(views*M,H,W,C)` and targets `(views*M,D)`."""
        return decoder.decode_pairs(self.decoder())

    def learned(self) -> Joint:
        """Return a mask like the parameters: True for all but the means."""
        return Joint(decoder.learned(self.params), jax.tree.map(lambda _: True, self.networks))


def rounded(params: decoder.Params, images: str, targets: str) -> decoder.Params:
    """Round the stored parameters as they will be stored; the gradient is that of the identity.

    Args:
        params: The decoder's parameters. The coefficients of further views are not stored and stay as they are.
        images: Precision of the image part, a name in `storage.quantize.NAMES`.
        targets: Precision of the feature part.

    Returns:
        The rounded parameters.
    """
    if images == targets == "float32":
        return params
    arrays = {name: getattr(params, name) for name in packing.AXES if hasattr(params, name)}
    first, others = params.feature_coefficients[0], params.feature_coefficients[1:]
    arrays["feature_coefficients"] = first
    arrays = {name: packing.rounded(name, array, images=images, targets=targets) for name, array in arrays.items()}
    arrays["feature_coefficients"] = jnp.concatenate([arrays["feature_coefficients"][None], others])
    return dataclasses.replace(params, **arrays)


def plan_of(config: ConfigDict, problem: Problem) -> budget.Sizes:
    """Choose sizes that fit the budget; see `budget.plan`."""
    # Published for 32x32 and 64x64. Bases are never larger than the images.
    smaller = min(problem.image_shape[:2])
    side = config.storage.base_size or (16 if smaller >= 32 else max(smaller // 2, 1))
    plan = functools.partial(
        budget.plan,
        N=config.storage.N,
        image_shape=problem.image_shape,
        dim=problem.dim,
        base_size=budget.low_size(problem.image_shape, side),
        views=len(config.views),
        hidden=config.storage.hidden,
        images=problem.images,
        M=config.storage.M,
        U=config.storage.U,
        V=config.storage.V,
    )
    # Sizes that do not fit in int8 may fit in a coarser precision, if that is up to the data.
    *others, last = _stored(config)
    for stored in others:
        with contextlib.suppress(UserError):
            return plan(stored=stored)
    return plan(stored=last)


def _stored(config: ConfigDict) -> list[dict[str, Any]]:
    """List the budget in bytes with the precisions, and with coarser ones in place of those that the data decide."""
    (images, targets), storage = budget.precisions(config), config.storage
    pairs = [(images, targets)]
    if storage.bytes:
        pairs += [
            (coarser if storage.images == "auto" else images, coarser if storage.targets == "auto" else targets)
            for coarser in PRECISIONS[1:]
        ]
    return [
        {"bytes": storage.bytes, "image_precision": images, "target_precision": targets}
        for images, targets in dict.fromkeys(pairs)
    ]


def make(config: ConfigDict, problem: Problem) -> Method:
    """Build Boost-SSDD from a config.

    Args:
        config: See `ssdd_jax.config.default`.
        problem: Shapes of the data.

    Returns:
        The method.

    Raises:
        UserError: If the configured sizes do not fit the budget or the data, or a view does not suit the image shape.
    """
    plan, views = plan_of(config, problem), tuple(config.views)
    precisions = plan.image_precision, plan.target_precision
    try:
        # Checked here, because the first use of the table would be inside a compiled function.
        augment.table(views, *problem.image_shape[:2])
    except ValueError as error:
        raise UserError(f"{error}; choose other config.views") from None

    def start(key: Array, source: Source) -> decoder.Params:
        return decoder.init(
            key,
            source.preprocessing.images(source.images),
            source.targets,
            source.view_targets,
            image_bases=plan.U,
            feature_bases=plan.V,
            base_size=plan.base_size,
            samples=source.samples,
            views=views,
            start=config.distill.start,
        )

    free = [name for name in ("M", "U", "V") if not config.storage[name]]
    most = min(START_IMAGES, START_IMAGES * START_NUMBERS // problem.image_numbers)

    # Precisions that the data decide.
    automatic = {key: plan.bytes > 0 and config.storage[key] == "auto" for key in ("images", "targets")}

    def settle(source: Source) -> dict[str, Any]:
        lost = None
        if plan.bytes:
            tried = [
                PRECISIONS if chosen else (own,) for chosen, own in zip(automatic.values(), precisions, strict=True)
            ]
            params = start(jax.random.key(0), source)
            lost = {(images, targets): rounding(params, images, targets) for images in tried[0] for targets in tried[1]}
        limits = {"most": problem.images, **budget.wishes(config)}
        score = starts.score_of(config, source, plan.base_size) if config.storage.criterion == "loss" else None
        chosen = budget.fit(plan, *errors(plan, source), free=free, lost=lost, score=score, **limits)
        changes = {"storage.M": chosen.M, "storage.U": chosen.U, "storage.V": chosen.V}
        names = {"storage.images": chosen.image_precision, "storage.targets": chosen.target_precision}
        return changes | {key: name for key, name in names.items() if automatic[key.removeprefix("storage.")]}

    joint = bool(config.approximate.joint) and len(views) > 1
    fit = approximate.Settings(config.storage.hidden, config.approximate.steps, config.approximate.learning_rate)

    def start_joint(key: Array, source: Source) -> Joint:
        key_params, key_networks = jax.random.split(key)
        params = start(key_params, source)
        coefficients = params.feature_coefficients
        networks = approximate.fit(key_networks, coefficients, bases=params.feature_bases, settings=fit)
        return Joint(dataclasses.replace(params, feature_coefficients=coefficients[:1]), networks)

    def decode(params: decoder.Params) -> tuple[Array, Array]:
        return decoder.decode_pairs(rounded(params, *precisions))

    def decode_joint(tied: Joint) -> tuple[Array, Array]:
        return tied.rounded(*precisions).pairs()

    def export(key: Array, state: bilevel.State, source: Source) -> distilled.DistilledSet:
        if joint:
            tied: Joint = state.outer.params
            return distilled.from_params(tied.decoder(), tied.networks, source.preprocessing)
        # Views other than the first are stored as networks that predict their coefficients from those of the first.
        params, stored = state.outer.params, rounded(state.outer.params, *precisions)
        networks = approximate.fit(key, stored.feature_coefficients, bases=stored.feature_bases, settings=fit)
        lost = approximate.unexplained(networks, stored.feature_coefficients, stored.feature_bases)
        by_view = dict(zip(views[1:], np.asarray(lost).round(4).tolist(), strict=True))
        return distilled.from_params(params, networks, source.preprocessing, approximation_error=by_view)

    functions = bilevel.make(
        config,
        problem,
        start=start_joint if joint else start,
        decode=decode_joint if joint else decode,
        learned=Joint.learned if joint else decoder.learned,
    )
    return Method(
        functions.init,
        functions.step,
        export,
        steps=config.distill.steps,
        samples=plan.M,
        title=f"{TITLE}, joint" if joint else TITLE,
        views=views,
        feed=functions.feed,
        look=functools.partial(_look, most=most),
        settle=settle if free or any(automatic.values()) else None,
        advice=bilevel.ADVICE,
        show=_show,
        spread=bilevel.spread,
        forms=bilevel.forms(config, problem.platform),
        parts=plan.parts,
        shapes=(*_shapes(plan, free), *bilevel.shapes(config, problem)),
        trials=bilevel.trials(config, problem.platform) | ({} if joint else {"approximate": _fit_trials}),
    )


def errors(plan: budget.Sizes, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Measure the share of the variance of images and of targets that bases leave, on examples not fitted to.

    Args:
        plan: Sizes, of which those of the data count.
        source: The data; its samples are the images whose views are known.

    Returns:
        Errors of 0, 1, ... bases, as many as the data can span: `(most_U+1,)` and `(most_V+1,)`.
    """

    @jax.jit
    def of_images(images: Array) -> Array:
        low = decoder.downsample(source.preprocessing.images(images), plan.base_size).reshape(len(images), -1)
        equal = jnp.full(len(low), 1 / len(low), low.dtype)
        return decoder.unexplained(low, equal, np.arange(len(low)) % FOLDS == 0, min(low.shape[1], len(low) - 1))

    @jax.jit
    def of_targets(targets: Array, view_targets: Array) -> Array:
        vectors, weights = decoder.weighted_features(targets, view_targets)
        # An image is held out in all of its views.
        held_out = np.arange(len(targets)) % FOLDS == 0
        others = np.tile(np.asarray(source.samples) % FOLDS == 0, plan.views - 1)
        most = min(plan.dim, len(targets) - 1)
        return decoder.unexplained(vectors, weights, np.concatenate([held_out, others]), most)

    return np.asarray(of_images(source.images)), np.asarray(of_targets(source.targets, source.view_targets))


def rounding(params: decoder.Params, images: str, targets: str) -> tuple[float, float]:
    """Measure the share of the variance of decoded images and of targets that rounding loses.

    Args:
        params: Parameters that decode to images and targets of the data.
        images: Precision of the image part, a name in `storage.quantize.NAMES`.
        targets: Precision of the feature part.

    Returns:
        The shares of the images and of the targets of the first view.
    """
    after = rounded(params, images, targets)

    def lost(exact: Array, changed: Array) -> float:
        return float(jnp.sum(jnp.square(changed - exact)) / jnp.sum(jnp.square(exact - exact.mean(0)[None])))

    return (
        lost(decoder.decode_images(params), decoder.decode_images(after)),
        lost(decoder.decode_targets(params)[0], decoder.decode_targets(after)[0]),
    )


def _shapes(plan: budget.Sizes, free: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the rows of the dry run's table; `free` names the sizes that the data will decide."""
    notes = {name: "; the data will decide" if name in free else "" for name in ("M", "U", "V")}
    size, low = ("x".join(map(str, shape)) for shape in (plan.image_shape, (*plan.base_size, plan.image_shape[-1])))
    return (
        ("distilled images M", f"{plan.M:,} of {size}, in {plan.views} views{notes['M']}"),
        ("image bases U", f"{plan.U:,} of {low}, coefficients {plan.M:,}x{plan.U:,}{notes['U']}"),
        ("feature bases V", f"{plan.V:,} of {plan.dim:,}, coefficients {plan.views}x{plan.M:,}x{plan.V:,}{notes['V']}"),
    )


def _fit_trials(stand: StandIns) -> list[Trial]:
    """Trial of the fit of the approximation networks, which the export compiles."""
    config, params = stand.run.config, stand.state.outer.params
    # `compiles=False` below: the measurement of the export includes the compilation.
    tried = min(TRIED, config.approximate.steps)
    settings = approximate.Settings(config.storage.hidden, tried, config.approximate.learning_rate)

    @jax.jit
    def fit(coefficients: Array, bases: Array) -> Any:
        return approximate.fit(jax.random.key(0), coefficients, bases=bases, settings=settings)

    arguments = params.feature_coefficients, params.feature_bases
    return [Trial("steps", config.approximate.steps, fit, arguments, units=tried, compiles=False)]


def _look(key: Array, count: int, *, most: int) -> Array | None:
    """Choose the images, besides the samples, for the principal components: all `count` (None), or `most` of them."""
    if count <= most:
        return None
    return jax.random.choice(bilevel.key_of_look(key), count, (most,), replace=False)


def _show(state: bilevel.State) -> dict[str, Array]:
    params = state.outer.params
    params = params.params if isinstance(params, Joint) else params
    return {"images": decoder.decode_images(params), "bases": params.image_bases}


DEFINITION = Definition(
    make,
    titles={"boost": TITLE},
    editions={"boost": {}},
    pooled=True,
    bases=True,
    cpu_steps=(500, 800),
    lower="config.pool.vectorize, config.distill.batch_size or config.storage.M",
)
