"""The probes on tables: features that are read in pieces, because they do not fit the device with copies.

Each computes what the probe of the same name computes on arrays, up to the rounding of sums in another order.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ssdd_jax.evaluate.protocols.probes import common, krr_st, mkdt, regression, shots, standard
from ssdd_jax.evaluate.protocols.probes.common import Standard, logits
from ssdd_jax.evaluate.protocols.probes.krr_st import SgdSettings
from ssdd_jax.evaluate.protocols.probes.mkdt import LbfgsSettings
from ssdd_jax.evaluate.protocols.probes.neighbours import KNN_CHUNK, vote
from ssdd_jax.evaluate.protocols.probes.pieces import Moments, Piece, Table, every, moments, total
from ssdd_jax.evaluate.protocols.probes.regression import R2, RIDGES
from ssdd_jax.evaluate.protocols.probes.standard import LinearSettings
from ssdd_jax.training import epochs, streaming

Array = jax.Array
Labelled = tuple[Table, Array]


def linear(train: Labelled, test: Labelled, *, classes: int, settings: LinearSettings = LinearSettings()) -> Array:
    """Fit the scale-free linear probe and test it; see `probes.linear`."""
    return _accuracy(fit_linear(train, classes=classes, settings=settings), test)


def fit_linear(train: Labelled, *, classes: int, settings: LinearSettings = LinearSettings()) -> Array:
    """Fit multinomial logistic regression to standardised features; see `probes.fit_linear`."""
    table, labels = train
    # One pass gives the standardisation and the preconditioner.
    whole = moments((table,), every, products=True)
    deviation = jnp.sqrt(jnp.diag(whole.products) / len(table))
    standard_ = Standard.of_moments(whole.mean, deviation)
    within = whole.products / len(table) / (standard_.scale[:, None] * standard_.scale[None])
    held = common.held_out(len(table), settings.share)
    held_back, fitted = jnp.asarray(held, jnp.float32), np.float32(len(table) - held.sum())

    def losses(weights: Array, piece: Piece) -> tuple[Array, Array]:
        """Logits of a piece, and the loss of each row."""
        scores = logits(weights, standard_.apply(piece.x))
        return scores, optax.softmax_cross_entropy_with_integer_labels(scores, labels[piece.positions])

    def loss(weights: Array, final: Array) -> Array:
        def of_piece(weights: Array, piece: Piece) -> Array:
            share = jnp.where(final > 0, 1, 1 - held_back[piece.positions]) * piece.valid
            return jnp.sum(share * losses(weights, piece)[1])

        return _differentiable(table, of_piece)(weights) / jnp.where(final > 0, np.float32(len(table)), fitted)

    def error(weights: Array) -> Array:
        def of_piece(piece: Piece) -> Array:
            scores, loss = losses(weights, piece)
            wrong = (jnp.argmax(scores, -1) != labels[piece.positions]).astype(loss.dtype)
            return jnp.sum(held_back[piece.positions] * piece.valid * (wrong + 1e-6 * loss))

        return total(table, of_piece) / np.float32(held.sum())

    with jax.default_matmul_precision("highest"):
        found = standard.search(standard.Objective(loss, error, within), classes=classes, settings=settings)
    return standard_.raw(found)


def _differentiable(table: Table, terms: Any) -> Any:
    """Return `weights -> total of terms(weights, piece)`, whose value and gradient take one pass together."""

    @jax.custom_vjp
    def value(weights: Array) -> Array:
        return total(table, lambda piece: terms(weights, piece))

    def forward(weights: Array) -> tuple[Array, Array]:
        return total(table, lambda piece: jax.value_and_grad(terms)(weights, piece))

    value.defvjp(forward, lambda gradient, cotangent: (cotangent * gradient,))
    return value


def lbfgs(train: Labelled, test: Labelled, *, classes: int, settings: LbfgsSettings = LbfgsSettings()) -> Array:
    """Train a linear classifier on raw features by L-BFGS and test it; see `probes.lbfgs`."""
    return _accuracy(fit_lbfgs(train, classes=classes, settings=settings), test)


def fit_lbfgs(train: Labelled, *, classes: int, settings: LbfgsSettings = LbfgsSettings()) -> Array:
    """Minimise the penalised cross-entropy of a linear classifier on raw features; see `probes.fit_lbfgs`."""
    table, labels = train
    whole = moments((table,), every, products=False)

    def terms(weights: Array, piece: Piece) -> Array:
        scores = logits(weights, piece.x)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels[piece.positions])
        return jnp.sum(piece.valid * losses)

    loss = _differentiable(table, terms)
    return mkdt.search(
        lambda weights: loss(weights) / np.float32(len(table)),
        (whole.mean, whole.products / len(table)),
        classes=classes,
        settings=settings,
    )


def few_shot(train: Labelled, test: Labelled, shots_: np.ndarray, *, classes: int) -> Array:
    """Fit ridge regression to few labels and test it; see `probes.few_shot`. It is not compiled as a whole."""
    table, labels = train
    standard_ = _standard(table)
    # The labelled images of one draw at a time are on the device; one pass over the test images serves all draws.
    weights = [_shot_weights(standard_, table.gather(draw), labels[draw], classes=classes) for draw in shots_]
    return _shot_accuracy(standard_, jnp.stack(weights), test)


@jax.jit
def _standard(table: Table) -> Standard:
    whole = moments((table,), every, products=False)
    return Standard.of_moments(whole.mean, jnp.sqrt(whole.products / len(table)))


@functools.partial(jax.jit, static_argnames="classes")
def _shot_weights(standard_: Standard, features: Array, labels: Array, *, classes: int) -> Array:
    return shots.weights(standard_.apply(features), labels, classes=classes)


@jax.jit
def _shot_accuracy(standard_: Standard, weights: Array, test: Labelled) -> Array:
    """Mean accuracy in percent of weights `(draws,F,classes)`."""

    def correct(piece: Piece) -> Array:
        inputs = standard_.apply(piece.x)
        return lax.map(lambda one: _correct(inputs @ one, test[1], piece), weights)

    with jax.default_matmul_precision("highest"):
        return 100.0 * total(test[0], correct).mean() / np.float32(len(test[0]))


def knn(train: Labelled, test: Labelled, *, classes: int, neighbours: int = 20, temperature: float = 0.07) -> Array:
    """Classify test images by a weighted vote of their nearest training images; see `probes.knn`.

    The training images are read once for each piece of the test images.
    """
    table, labels = train
    count = min(neighbours, len(table))
    # The similarities of as many queries take about as much as a piece.
    together = max(1, min(KNN_CHUNK, table.shape[1] // 3))

    def correct(queries: Piece) -> Array:
        directions = _unit(queries.x)

        def nearer(best: tuple[Array, Array], piece: Piece) -> tuple[Array, Array]:
            others = _unit(piece.x)

            def of_one(query: tuple[Array, Array, Array]) -> tuple[Array, Array]:
                direction, similarity, nearest = query
                new = jnp.where(piece.valid > 0, others @ direction, -jnp.inf)
                # Those of earlier pieces come first: of equal ones the first is kept, as in one sorted list.
                similarity, chosen = lax.top_k(jnp.concatenate([similarity, new]), count)
                return similarity, jnp.concatenate([nearest, piece.positions])[chosen]

            return lax.map(of_one, (directions, *best), batch_size=together)

        none = jnp.full((len(directions), count), -jnp.inf), jnp.zeros((len(directions), count), jnp.int32)
        similarity, nearest = table.fold(nearer, none)
        votes = jax.vmap(functools.partial(vote, classes=classes, temperature=temperature))
        predicted = votes(similarity, labels[nearest])
        return jnp.sum(jnp.where(predicted == test[1][queries.positions], queries.valid, 0.0))

    with jax.default_matmul_precision("highest"):
        return 100.0 * total(test[0], correct) / np.float32(len(test[0]))


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1), 1e-12)[:, None]


def feature_r2(train: tuple[Table, Table], test: tuple[Table, Table]) -> R2:
    """Compute the R2 of ridge regression to the teacher's features; see `probes.feature_r2`."""
    width = train[0].shape[1]
    held_back = jnp.asarray(common.held_out(len(train[0]), regression.HELD_OUT), jnp.float32)

    def held(piece: Piece) -> Array:
        return held_back[piece.positions] * piece.valid

    # The moments of all images follow from those of the two parts.
    rest = moments(train, lambda piece: piece.valid - held(piece), products=True)
    whole = rest.merged(moments(train, held, products=True))
    whitening = regression.whitening(whole.products[width:, width:] / len(train[0]))
    fitted, final = _regression(rest, width), _regression(whole, width)
    ridges = jnp.array(RIDGES)

    def squares(residual: Array, weight: Array) -> Array:
        """Sums of squares `(2,)` of residuals `(rows,D)`, plain and whitened."""
        residual = residual * weight[:, None]
        return jnp.stack([jnp.sum(jnp.square(residual)), jnp.sum(jnp.square(residual @ whitening))])

    def errors(model: regression.Regression, maps: Array, tables: tuple[Table, Table], weigh: Any) -> Array:
        """Sums of squares `(k,2)` of the residuals of the linear maps `(k,F,D)`."""

        def terms(piece: Piece) -> Array:
            targets = tables[1].piece(piece.number).x
            one = functools.partial(model.predict, piece.x)
            return lax.map(lambda map_: squares(one(map_) - targets, weigh(piece)), maps)

        return total(tables[0], terms)

    with jax.default_matmul_precision("highest"):
        chosen = jnp.nanargmin(errors(fitted, lax.map(fitted.solve, ridges), train, held), axis=0)
        residual = jnp.diag(errors(final, lax.map(final.solve, ridges[chosen]), test, every))
        mean = moments(test[1:], every, products=False).mean
        spread = total(test[1], lambda piece: squares(piece.x - mean[None], piece.valid))
    return R2(*(1 - residual / spread))


def _regression(moments_: Moments, width: int) -> regression.Regression:
    """Sufficient statistics of the regression of the last columns on the first `width`."""
    mean, products = moments_.mean[None], moments_.products
    return regression.Regression(mean[:, :width], mean[:, width:], products[:width, :width], products[:width, width:])


def fit_linear_krr_st(key: Array, train: Labelled, *, classes: int, settings: SgdSettings = SgdSettings()) -> Array:
    """Train a linear classifier on all labels by SGD; see `probes.fit_linear_krr_st`. It is not compiled as a whole.

    The host draws the batches, in the same order, and reads ahead while the device computes.
    """
    table, labels = train
    if table.array is not None:
        return _fit_krr_st(key, (table.array, labels), classes=classes, settings=settings)
    assert table.reader is not None and table.reader.array is not None
    features, known = table.reader.array, np.asarray(labels)
    training = krr_st.training(table.shape, classes=classes, settings=settings)
    key_init, key_order = jax.random.split(key)
    order = streaming.orders(key_order, count=len(table), batch_size=settings.batch_size)

    def read(step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = order(step)
        return streaming.gather(features, rows), known[rows]

    batch = epochs.batch_of(len(table), settings.batch_size)[0]
    # As many bytes as the pieces of the other probes.
    per_call = max(1, min(training.steps, table.rows // batch))
    advance = functools.partial(_advance_krr_st, shape=table.shape, classes=classes, settings=settings)
    weights, _ = streaming.run(advance, training.init(key_init), read, steps=training.steps, per_call=per_call)
    return weights


def linear_krr_st(
    key: Array, train: Labelled, test: Labelled, *, classes: int, settings: SgdSettings = SgdSettings()
) -> Array:
    """Train a linear classifier on all labels by SGD and test it; see `probes.linear_krr_st`."""
    return _accuracy(fit_linear_krr_st(key, train, classes=classes, settings=settings), test)


_fit_krr_st = jax.jit(krr_st.fit_linear_krr_st, static_argnames=("classes", "settings"))


@functools.partial(jax.jit, static_argnames=("shape", "classes", "settings"), donate_argnums=0)
def _advance_krr_st(
    carry: Any, items: Any, count: Array, *, shape: tuple[int, int], classes: int, settings: SgdSettings
) -> Any:
    step = krr_st.training(shape, classes=classes, settings=settings).step
    return streaming.loop(lambda carry, item: step(carry, *item), carry, items, count)


def _correct(scores: Array, labels: Array, piece: Piece) -> Array:
    """Number of rows of a piece whose scores `(rows,classes)` are highest for their label."""
    return jnp.sum(jnp.where(jnp.argmax(scores, -1) == labels[piece.positions], piece.valid, 0.0))


@jax.jit
def _accuracy(weights: Array, test: Labelled) -> Array:
    """Accuracy in percent of a linear classifier."""
    correct = total(test[0], lambda piece: _correct(logits(weights, piece.x), test[1], piece))
    return 100.0 * correct / np.float32(len(test[0]))
