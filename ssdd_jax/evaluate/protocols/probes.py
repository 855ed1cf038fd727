"""Evaluate frozen features: linear probes on all or few labels, k-NN, and regression of the teacher's features.

No hyperparameter is chosen on the test split.
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

# Labels per class of the few-shot probe, and the number of random draws that it is averaged over.
SHOTS, DRAWS = 10, 3
# Candidates for the ridge, relative to the mean of the kernel's diagonal.
RIDGES = tuple(10.0**power for power in range(-6, 3))
# Fractions of the labels in MKDT's evaluation.
FRACTIONS = (0.01, 0.05, 0.1, 0.5)
# Test images per k-NN batch; their similarities to all training images are in memory together.
KNN_CHUNK = 256


class Settings(NamedTuple):
    """Settings of the linear classifier: SGD, momentum 0.9, cosine decay, no weight decay (KRR-ST).

    Attributes:
        steps: Number of SGD steps, rounded up to whole epochs.
        batch_size: Images per step.
        learning_rate: Learning rate of the first step.
    """

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
    """Train a linear classifier on all labels by SGD and test it.

    Args:
        key: PRNG key.
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        classes: Number of classes.
        settings: Training settings.

    Returns:
        Test accuracy in percent, a scalar.
    """
    weights = fit_linear(key, train, classes=classes, settings=settings)
    return _accuracy(logits(weights, test[0]), test[1])


def fit_linear(key: Array, train: tuple[Array, Array], *, classes: int, settings: Settings = Settings()) -> Array:
    """Train a linear classifier on all labels by SGD.

    Args:
        key: PRNG key of the initial weights and of the order of the images.
        train: Features `(n,F)` and labels int32 `(n,)`.
        classes: Number of classes.
        settings: Training settings.

    Returns:
        Weights `(F+1,classes)`; the last row is the bias.
    """
    features, labels = map(jnp.asarray, train)
    chex.assert_rank([features, labels], [2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    key_init, key_order = jax.random.split(key)
    # Initial weights as those of `torch.nn.Linear`.
    bound = features.shape[1] ** -0.5
    weights = jax.random.uniform(key_init, (features.shape[1] + 1, classes), minval=-bound, maxval=bound)
    _, per_epoch = epochs.batch_of(len(features), settings.batch_size)
    # Whole epochs, so that the cosine reaches 0 in the last step.
    count = -(-settings.steps // per_epoch)
    schedule = optax.cosine_decay_schedule(settings.learning_rate, count * per_epoch)
    optimizer = optax.sgd(schedule, momentum=0.9)

    def loss(weights: Array, indices: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(weights, features[indices]), labels[indices]
        ).mean()

    def step(carry: tuple[Array, optax.OptState], indices: Array) -> tuple[Array, optax.OptState]:
        weights, opt_state = carry
        gradient = jax.grad(loss)(weights, indices)
        with jax.numpy_dtype_promotion("standard"):  # optax divides an integer by a float
            updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(weights, updates), opt_state

    carry = (weights, optimizer.init(weights))
    weights, _ = epochs.run(key_order, carry, step, count=len(features), batch_size=settings.batch_size, epochs=count)
    return weights


class LbfgsSettings(NamedTuple):
    """Settings of the linear classifier trained by L-BFGS.

    Attributes:
        penalty: Coefficient of the sum of the squared weights, without the bias (MKDT,
            `evaluation/linear_evaluation.py`).
        tolerance: Training ends when the norm of the gradient is this fraction of its initial value.
        steps: Largest number of iterations.
        memory: Pairs of steps and gradients from which the curvature is estimated.
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
    """Train a linear classifier to convergence by L-BFGS and test it; see `fit_lbfgs`.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        classes: Number of classes.
        settings: Training settings.

    Returns:
        Test accuracy in percent, a scalar.
    """
    weights = fit_lbfgs(train, classes=classes, settings=settings)
    return _accuracy(logits(weights, test[0]), test[1])


def fit_lbfgs(train: tuple[Array, Array], *, classes: int, settings: LbfgsSettings = LbfgsSettings()) -> Array:
    """Minimise cross-entropy plus `penalty * sum(weights ** 2)` of a linear classifier on raw features, by L-BFGS.

    MKDT's probe (Joshi et al., ICLR 2025; `evaluation/linear_evaluation.py`). Its code runs up to 400 iterations of
    L-BFGS from random weights without a line search, which may not converge, or may diverge, if the scales of the
    features differ much. The problem is convex and its solution is unique up to a constant added to all biases: this
    function starts at zero and iterates to convergence. Internally, features are centred and scaled, and the bias with
    them, which takes ten times fewer iterations and does not change the objective.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        classes: Number of classes.
        settings: Training settings.

    Returns:
        Weights `(F+1,classes)` for the raw features; the last row is the bias.
    """
    features, labels = map(jnp.asarray, train)
    chex.assert_rank([features, labels], [2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    mean = features.mean(0)
    # Preconditioner: approximately the inverse root of the Hessian's diagonal when all classes are equally likely.
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
    initial_norm = jnp.linalg.norm(jax.grad(objective)(start))

    def has_not_converged(carry: tuple[Array, Any, Array, Array]) -> Array:
        _, _, count, norm = carry
        return (count < settings.steps) & (norm > settings.tolerance * initial_norm)

    def step(carry: tuple[Array, Any, Array, Array]) -> tuple[Array, Any, Array, Array]:
        weights, state, count, _ = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = solver.update(gradient, state, weights, value=value, grad=gradient, value_fn=objective)
        # The last element is the state of the line search, which holds the gradient at its final point.
        return optax.apply_updates(weights, updates), state, count + 1, jnp.linalg.norm(state[-1].grad)

    # optax mixes integers with floats, and scalars with arrays.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        value_and_grad = optax.value_and_grad_from_state(objective)
        carry = (start, solver.init(start), jnp.zeros((), jnp.int32), initial_norm)
        return lax.while_loop(has_not_converged, step, carry)[0]


def draw_fraction(seed: int, labels: np.ndarray, fraction: float) -> np.ndarray:
    """Draw the training images that keep their label, a fraction of all.

    As in MKDT (`utils.py`), the draw is not stratified, so that classes may be rare or missing. For one seed, smaller
    draws are prefixes of larger ones, which reduces the noise between fractions.

    Args:
        seed: Seed of the draw.
        labels: Labels `(n,)`; only their number matters.
        fraction: Fraction of the images, in (0, 1]; see `FRACTIONS`.

    Returns:
        Indices, int32 `(max(1, int(n * fraction)),)`.

    Raises:
        ValueError: If the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of the labels must be in (0, 1], got {fraction}")
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
    """Run the probe `lbfgs` on a subset of the labelled training images.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        rows: Indices of the subset, int32 `(k,)`, from `draw_fraction`.
        classes: Number of classes.
        settings: Training settings.

    Returns:
        Test accuracy in percent, a scalar.
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
    """Classify test images by a weighted vote of their nearest training images (k-NN).

    Neighbours are the training images with the largest cosine similarity; each votes for its class with the weight
    `exp(similarity / temperature)`. Wu et al., "Unsupervised feature learning via non-parametric instance
    discrimination", CVPR 2018; 20 neighbours as in solo-learn (`utils/knn.py`).

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        classes: Number of classes.
        neighbours: Number of neighbours; all training images if there are fewer.
        temperature: Temperature of the weights; a smaller one gives nearer neighbours more weight.

    Returns:
        Test accuracy in percent, a scalar.
    """
    train, test = jax.tree.map(jnp.asarray, (train, test))
    chex.assert_rank([train[0], test[0]], 2)
    count = min(neighbours, len(train[0]))
    # Scaling the products instead of the training features avoids a copy of the features.
    shrink = 1 / jnp.maximum(jnp.linalg.norm(train[0], axis=1), 1e-12)

    def vote(query: Array) -> Array:
        direction = query / jnp.maximum(jnp.linalg.norm(query), 1e-12)
        similarity, nearest = lax.top_k((train[0] @ direction) * shrink, count)
        # Relative to the largest possible weight, which does not change the vote and avoids overflow.
        weights = jnp.exp((similarity - 1) / temperature)
        return jnp.argmax(jnp.zeros(classes, weights.dtype).at[train[1][nearest]].add(weights))

    with jax.default_matmul_precision("highest"):
        predicted = lax.map(vote, test[0], batch_size=KNN_CHUNK)
    return 100.0 * jnp.mean((predicted == test[1]).astype(jnp.float32))


def logits(weights: Array, features: Array) -> Array:
    """Compute the logits of a linear classifier.

    Args:
        weights: Weights `(F+1,classes)`; the last row is the bias.
        features: Features `(n,F)`.

    Returns:
        Logits `(n,classes)`.
    """
    features, weights = jnp.asarray(features), jnp.asarray(weights)
    return features @ weights[:-1] + weights[-1][None]


def draw_shots(seed: int, labels: np.ndarray, classes: int) -> np.ndarray | None:
    """Draw `SHOTS` labelled training images per class, `DRAWS` times.

    Args:
        seed: Seed of the draws.
        labels: Labels `(n,)`.
        classes: Number of classes.

    Returns:
        Indices, int32 `(DRAWS, classes * SHOTS)`, or None if a class has fewer than `SHOTS` images.
    """
    generator = np.random.default_rng(seed)
    by_class = [np.flatnonzero(labels == label) for label in range(classes)]
    if min(len(indices) for indices in by_class) < SHOTS:
        return None
    draws = [
        np.concatenate([generator.choice(indices, SHOTS, replace=False) for indices in by_class]) for _ in range(DRAWS)
    ]
    return np.stack(draws).astype(np.int32)


def few_shot(train: tuple[Array, Array], test: tuple[Array, Array], shots: Array, *, classes: int) -> Array:
    """Fit ridge regression to few labels and test it, averaged over the draws.

    Features are standardised by the mean and standard deviation of all training images, labelled or not. The ridge
    minimises the leave-one-out error on the few labels.

    Args:
        train: Features `(n,F)` and labels int32 `(n,)`.
        test: Features `(m,F)` and labels int32 `(m,)`.
        shots: Indices of the labelled images, int32 `(draws,k)`, from `draw_shots`.
        classes: Number of classes.

    Returns:
        Test accuracy in percent, a scalar.
    """
    train, test = jax.tree.map(jnp.asarray, (train, test))
    mean, deviation = train[0].mean(0), train[0].std(0)
    # Constant features are centred only: their rounding errors would be scaled up.
    scale = jnp.where(deviation > 1e-6 * deviation.max(), deviation, 1.0)

    def standardise(features: Array) -> Array:
        return (features - mean[None]) / scale[None]

    def accuracy_of(indices: Array) -> Array:
        features, labels = standardise(train[0][indices]), jax.nn.one_hot(train[1][indices], classes) - 1 / classes
        with jax.default_matmul_precision("highest"):
            # The dual form, whose size is the number of labels, which are few.
            weights = features.T @ _leave_one_out(features @ features.T, labels)
            return _accuracy(standardise(test[0]) @ weights, test[1])

    return lax.map(accuracy_of, shots).mean()


def _leave_one_out(kernel: Array, targets: Array) -> Array:
    """Dual weights `(k,classes)` of the ridge with the smallest leave-one-out error, in closed form."""
    eye = jnp.eye(len(kernel), dtype=kernel.dtype)

    def fit(ridge: Array) -> tuple[Array, Array]:
        factor = jnp.linalg.cholesky(kernel + ridge * jnp.trace(kernel) / len(kernel) * eye)
        inverse = cho_solve((factor, True), eye)
        weights = inverse @ targets
        # Residual of each example under the fit to all others, without refitting.
        residual = weights / jnp.diag(inverse)[:, None]
        return weights, jnp.mean(jnp.square(residual))

    weights, errors = lax.map(fit, jnp.array(RIDGES, kernel.dtype))
    return weights[jnp.nanargmin(errors)]


def feature_r2(train: tuple[Array, Array], test: tuple[Array, Array]) -> Array:
    """Compute the R2 of ridge regression from features to the teacher's features of test images.

    The ridge is chosen on every tenth training image; the regression is then fitted to all training images.

    Args:
        train: Features `(n,F)` and the teacher's features `(n,D)` of the training images.
        test: Features `(m,F)` and the teacher's features `(m,D)` of the test images.

    Returns:
        R2 over all D dimensions together, at most 1, a scalar.
    """
    train, test = jax.tree.map(jnp.asarray, (train, test))
    chex.assert_equal_shape_prefix(train, 1)
    chex.assert_equal_shape_prefix(test, 1)
    held_out = np.arange(len(train[0])) % 10 == 0
    fitted, rest = _Moments.of(train[0][~held_out], train[1][~held_out]), (train[0][held_out], train[1][held_out])
    # Errors of the smallest ridges are NaN if the covariance is singular.
    errors = lax.map(lambda ridge: jnp.mean(jnp.square(fitted.predict(rest[0], ridge) - rest[1])), jnp.array(RIDGES))
    best = jnp.array(RIDGES)[jnp.nanargmin(errors)]
    residual = test[1] - _Moments.of(*train).predict(test[0], best)
    return 1 - jnp.sum(jnp.square(residual)) / jnp.sum(jnp.square(test[1] - test[1].mean(0)[None]))


class _Moments(NamedTuple):
    """Sufficient statistics of ridge regression: means `(1,F)` and `(1,D)`, covariances `(F,F)` and `(F,D)`.

    The covariances are sums, not means, over the images.
    """

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
