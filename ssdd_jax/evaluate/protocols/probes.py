"""What frozen features are worth: a linear classifier on all labels, one on few, and how much of the teacher they hold.

Nothing here is chosen by the test split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.scipy.linalg import cho_solve

from ssdd_jax.training import epochs

Array = jax.Array

SHOTS, DRAWS = 10, 3
# Ridges that a probe chooses from, over the kernel's mean diagonal entry.
RIDGES = tuple(10.0**power for power in range(-6, 3))
# Shares of the labels that MKDT evaluates with.
FRACTIONS = (0.01, 0.05, 0.1, 0.5)
# Test images that nearest neighbours are looked up for at a time: their similarities to all training images are held.
KNN_CHUNK = 256


class Settings(NamedTuple):
    """The linear classifier's training: SGD, momentum 0.9, cosine decay, no weight decay (KRR-ST)."""

    steps: int = 5000
    batch_size: int = 512
    learning_rate: float = 0.2


def linear(
    key: Array,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    classes: int,
    settings: Settings = Settings(),
) -> Array:
    """Accuracy of a linear classifier trained on all labels by SGD.

    Args:
        key: PRNG key.
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        classes: Number of classes.
        settings: How it is trained; the steps are rounded up to whole epochs.

    Returns:
        Percent of test labels predicted, a scalar.
    """
    weights = fit_linear(key, train, classes=classes, settings=settings)
    return _accuracy(logits(weights, test[0]), test[1])


def fit_linear(key: Array, train: tuple[Array, Array], *, classes: int, settings: Settings = Settings()) -> Array:
    """A linear classifier trained on all labels by SGD.

    Args:
        key: PRNG key.
        train: Features `(n,F)` and labels int32 `(n,)`.
        classes: Number of classes.
        settings: How it is trained; the steps are rounded up to whole epochs.

    Returns:
        Weights `(F+1,classes)`; the last row is the bias.
    """
    features, labels = train
    chex.assert_rank([features, labels], [2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    key_init, key_order = jax.random.split(key)
    bound = features.shape[1] ** -0.5
    weights = jax.random.uniform(key_init, (features.shape[1] + 1, classes), minval=-bound, maxval=bound)
    _, per_epoch = epochs.batch_of(len(features), settings.batch_size)
    count = -(-settings.steps // per_epoch)
    schedule = optax.cosine_decay_schedule(settings.learning_rate, count * per_epoch)
    optimizer = optax.sgd(schedule, momentum=0.9)

    def loss(weights: Array, rows: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(weights, features[rows]), labels[rows]).mean()

    def step(carry: tuple[Array, optax.OptState], rows: Array) -> tuple[Array, optax.OptState]:
        weights, opt_state = carry
        gradient = jax.grad(loss)(weights, rows)
        with jax.numpy_dtype_promotion("standard"):  # optax divides an integer by a float
            updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(weights, updates), opt_state

    carry = (weights, optimizer.init(weights))
    weights, _ = epochs.run(key_order, carry, step, count=len(features), batch_size=settings.batch_size, epochs=count)
    return weights


class LbfgsSettings(NamedTuple):
    """The linear classifier's training by L-BFGS.

    Attributes:
        penalty: What the sum of the squared weights, without the bias, is multiplied by (MKDT,
            `evaluation/linear_evaluation.py`).
        tolerance: Training ends when the gradient's norm is this share of what it was at the start.
        steps: Iterations at most.
        memory: Pairs of steps and gradients that the curvature is estimated from.
    """

    penalty: float = 1e-3
    tolerance: float = 1e-5
    steps: int = 1000
    memory: int = 10


def lbfgs(
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    classes: int,
    settings: LbfgsSettings = LbfgsSettings(),
) -> Array:
    """Accuracy of a linear classifier trained to convergence; see `fit_lbfgs`.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        classes: Number of classes.
        settings: How it is trained.

    Returns:
        Percent of test labels predicted, a scalar.
    """
    weights = fit_lbfgs(train, classes=classes, settings=settings)
    return _accuracy(logits(weights, test[0]), test[1])


def fit_lbfgs(train: tuple[Array, Array], *, classes: int, settings: LbfgsSettings = LbfgsSettings()) -> Array:
    """The linear classifier with the smallest cross-entropy plus `penalty * sum(weights ** 2)` on raw features.

    MKDT's probe (Joshi et al., ICLR 2025; `evaluation/linear_evaluation.py`). There up to 400 iterations of L-BFGS
    start from random weights, without a line search, so that they may not converge, or diverge, where features differ
    much in size. The problem is convex and its solution unique, but for one number added to all biases: here it starts
    at zero and is solved to convergence. Inside, features are centred and scaled, and the
    bias with them, which changes how many iterations it takes (ten times fewer), not what is minimised.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        classes: Number of classes.
        settings: How it is trained.

    Returns:
        Weights `(F+1,classes)` for the features as they are; the last row is the bias.
    """
    features, labels = train
    chex.assert_rank([features, labels], [2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    mean = features.mean(0)
    # The diagonal of the Hessian is about this where every class is as likely as any other.
    scale = lax.rsqrt(features.var(0) / classes + 2 * settings.penalty)

    def raw(inner: Array) -> Array:
        weights = scale[:, None] * inner[:-1]
        return jnp.concatenate([weights, classes**0.5 * inner[-1:] - mean[None] @ weights])

    def objective(inner: Array) -> Array:
        weights = raw(inner)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits(weights, features), labels).mean()
        return loss + settings.penalty * jnp.sum(jnp.square(weights[:-1]))

    with jax.default_matmul_precision("highest"):
        start = jnp.zeros((features.shape[1] + 1, classes), features.dtype)
        return raw(_minimize(objective, start, settings))


def _minimize(objective: Callable[[Array], Array], start: Array, settings: LbfgsSettings) -> Array:
    solver = optax.lbfgs(memory_size=settings.memory)
    first = jnp.linalg.norm(jax.grad(objective)(start))

    def going(carry: tuple[Array, Any, Array, Array]) -> Array:
        _, _, count, slope = carry
        return (count < settings.steps) & (slope > settings.tolerance * first)

    def step(carry: tuple[Array, Any, Array, Array]) -> tuple[Array, Any, Array, Array]:
        at, state, count, _ = carry
        value, gradient = value_and_grad(at, state=state)
        updates, state = solver.update(gradient, state, at, value=value, grad=gradient, value_fn=objective)
        # The last part of the state is the line search's, which knows the gradient where it ended.
        return optax.apply_updates(at, updates), state, count + 1, jnp.linalg.norm(state[-1].grad)

    # optax mixes integers with floats, and scalars with arrays.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        value_and_grad = optax.value_and_grad_from_state(objective)
        return lax.while_loop(going, step, (start, solver.init(start), jnp.zeros((), jnp.int32), first))[0]


def draw_fraction(seed: int, labels: np.ndarray, fraction: float) -> np.ndarray:
    """Which training images keep their label when only a share of them does.

    As MKDT draws them (`utils.py`): without regard to class, so that a class may come up rarely or never. Of one seed
    the smaller draws are the beginnings of the larger, so that shares compare with less noise.

    Args:
        seed: Of the draw.
        labels: `(n,)`.
        fraction: Share of the images, in (0, 1]; see `FRACTIONS`.

    Returns:
        Rows, int32 `(max(1, int(n * fraction)),)`.

    Raises:
        ValueError: If the share is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a share of the labels must be in (0, 1], got {fraction}")
    order = np.random.default_rng(seed).permutation(len(labels))
    return order[: max(1, int(len(labels) * fraction))].astype(np.int32)


def few_labels(
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    rows: Array,
    *,
    classes: int,
    settings: LbfgsSettings = LbfgsSettings(),
) -> Array:
    """Accuracy of `lbfgs` trained on some of the labels, and their images, only.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        rows: Rows that keep their label, int32 `(k,)`, from `draw_fraction`.
        classes: Number of classes.
        settings: How it is trained.

    Returns:
        Percent of test labels predicted, a scalar.
    """
    return lbfgs((train[0][rows], train[1][rows]), test, classes=classes, settings=settings)


def knn(
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    classes: int,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Array:
    """Accuracy of the vote of the nearest training images, without training anything.

    Neighbours are the training images of the largest cosine similarity; each votes for its class with the weight
    `exp(similarity / temperature)`. Wu et al., "Unsupervised feature learning via non-parametric instance
    discrimination", CVPR 2018; 20 neighbours as in solo-learn (`utils/knn.py`).

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        classes: Number of classes.
        neighbours: Training images that vote, or all if there are fewer.
        temperature: The smaller, the more the nearest decide.

    Returns:
        Percent of test labels predicted, a scalar.
    """
    chex.assert_rank([train[0], test[0]], 2)
    count = min(neighbours, len(train[0]))
    # The products are scaled, not the training features: no copy of those.
    shrink = 1 / jnp.maximum(jnp.linalg.norm(train[0], axis=1), 1e-12)

    def vote(query: Array) -> Array:
        direction = query / jnp.maximum(jnp.linalg.norm(query), 1e-12)
        similarity, nearest = lax.top_k((train[0] @ direction) * shrink, count)
        # Over the largest weight that there can be, which changes no decision and cannot overflow.
        weights = jnp.exp((similarity - 1) / temperature)
        return jnp.argmax(jnp.zeros(classes, weights.dtype).at[train[1][nearest]].add(weights))

    with jax.default_matmul_precision("highest"):
        predicted = lax.map(vote, test[0], batch_size=KNN_CHUNK)
    return 100.0 * jnp.mean((predicted == test[1]).astype(jnp.float32))


def logits(weights: Array, features: Array) -> Array:
    """What a linear classifier says: weights `(F+1,classes)` and features `(n,F)` to logits `(n,classes)`."""
    return features @ weights[:-1] + weights[-1][None]


def draw_shots(seed: int, labels: np.ndarray, classes: int) -> np.ndarray | None:
    """Which training images keep their label: int32 `(DRAWS, classes * SHOTS)`, or None if a class has too few."""
    generator = np.random.default_rng(seed)
    rows = [np.flatnonzero(labels == label) for label in range(classes)]
    if min(len(of_class) for of_class in rows) < SHOTS:
        return None
    draws = [
        np.concatenate([generator.choice(of_class, SHOTS, replace=False) for of_class in rows]) for _ in range(DRAWS)
    ]
    return np.stack(draws).astype(np.int32)


def few_shot(train: tuple[Array, Array], test: tuple[Array, Array], shots: Array, *, classes: int) -> Array:
    """Accuracy of ridge regression on few labels, mean over the draws.

    Features are standardised by the training images' (unlabelled) mean and deviation; the ridge is the one with the
    smallest leave-one-out error on the few labels themselves.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        shots: Rows that keep their label, int32 `(draws,k)`.
        classes: Number of classes.

    Returns:
        Percent of test labels predicted, a scalar.
    """
    mean, deviation = train[0].mean(0), train[0].std(0)
    scale = jnp.where(deviation > 1e-6 * deviation.max(), deviation, 1.0)

    def standard(features: Array) -> Array:
        return (features - mean[None]) / scale[None]

    def one(rows: Array) -> Array:
        known, labels = standard(train[0][rows]), jax.nn.one_hot(train[1][rows], classes) - 1 / classes
        with jax.default_matmul_precision("highest"):
            weights = known.T @ _leave_one_out(known @ known.T, labels)
            return _accuracy(standard(test[0]) @ weights, test[1])

    return lax.map(one, shots).mean()


def _leave_one_out(kernel: Array, targets: Array) -> Array:
    """Dual weights `(k,classes)` of the ridge that predicts each left-out row best, in closed form."""
    eye = jnp.eye(len(kernel), dtype=kernel.dtype)

    def fit(ridge: Array) -> tuple[Array, Array]:
        factor = jnp.linalg.cholesky(kernel + ridge * jnp.trace(kernel) / len(kernel) * eye)
        inverse = cho_solve((factor, True), eye)
        weights = inverse @ targets
        residual = weights / jnp.diag(inverse)[:, None]
        return weights, jnp.mean(jnp.square(residual))

    weights, errors = lax.map(fit, jnp.array(RIDGES, kernel.dtype))
    return weights[jnp.nanargmin(errors)]


def feature_r2(train: tuple[Array, Array], test: tuple[Array, Array]) -> Array:
    """Share of the variance of the teacher's test features that ridge regression explains.

    The ridge is chosen on every tenth training image; the regression is then fitted on all of them.

    Args:
        train: Features `(n,F)` and the teacher's features `(n,D)`.
        test: The same of the test images.

    Returns:
        R2 over all D numbers together, 1 at best, a scalar.
    """
    chex.assert_equal_shape_prefix(train, 1)
    chex.assert_equal_shape_prefix(test, 1)
    held = np.arange(len(train[0])) % 10 == 0
    part, rest = _Moments.of(train[0][~held], train[1][~held]), (train[0][held], train[1][held])
    errors = lax.map(lambda ridge: jnp.mean(jnp.square(part.predict(rest[0], ridge) - rest[1])), jnp.array(RIDGES))
    best = jnp.array(RIDGES)[jnp.nanargmin(errors)]
    residual = test[1] - _Moments.of(*train).predict(test[0], best)
    return 1 - jnp.sum(jnp.square(residual)) / jnp.sum(jnp.square(test[1] - test[1].mean(0)[None]))


class _Moments(NamedTuple):
    """What ridge regression needs of its data: means `(1,F)` and `(1,D)`, covariances `(F,F)` and `(F,D)`."""

    mean_x: Array
    mean_y: Array
    within: Array
    across: Array

    @classmethod
    def of(cls, x: Array, y: Array) -> _Moments:
        mean_x, mean_y = x.mean(0)[None], y.mean(0)[None]
        x, y = x - mean_x, y - mean_y
        with jax.default_matmul_precision("highest"):
            return cls(mean_x, mean_y, x.T @ x, x.T @ y)

    def predict(self, x: Array, ridge: Array) -> Array:
        with jax.default_matmul_precision("highest"):
            scaled = ridge * jnp.trace(self.within) / len(self.within)
            eye = jnp.eye(len(self.within), dtype=self.within.dtype)
            factor = jnp.linalg.cholesky(self.within + scaled * eye)
            return (x - self.mean_x) @ cho_solve((factor, True), self.across) + self.mean_y


def _accuracy(logits: Array, labels: Array) -> Array:
    return 100.0 * jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
