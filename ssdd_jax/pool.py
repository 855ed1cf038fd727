"""Pool of inner models: stacked on the device, at spread ages, replaced when old (KRR-ST, section 3.2).

One pytree holds all L models. `vectorize` is the number of drawn models that are trained in parallel, under a `vmap`:
all of them on an accelerator, one or two where memory or cache is the limit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ssdd_jax import inner
from ssdd_jax.runtime import devices, signs
from ssdd_jax.runtime.devices import DATA, POOL

Array = jax.Array


class Settings(NamedTuple):
    """Settings of the pool.

    Attributes:
        size: Number of models L.
        steps: Age Z at which a model is replaced by a fresh one.
        batch_size: Pairs of each step in `init`, drawn at random for each model; 0 for all of them.
        vectorize: Number of models trained in parallel.
        widths: Channels of each block of a model.
        norm: Normalisation layer of a model, `batch` or `instance`.
        inner: Settings of a model's training.
        mesh: Devices over whose axis `pool` the models are split; None for one device.
        counted: Pairs times values of an image times steps from which on `init` counts the models that it has
            trained (`runtime.signs`), by a callback to the host; 0 never does.
    """

    size: int = 10
    steps: int = 1000
    batch_size: int = 0
    vectorize: int = 1
    widths: tuple[int, ...] = (128, 256, 512)
    norm: str = "batch"
    inner: inner.Settings = inner.Settings()
    mesh: Mesh | None = None
    counted: int = 0


class Pool(NamedTuple):
    """State of the models in training.

    Attributes:
        models: `inner.State` whose every leaf has a leading axis L.
        ages: Number of steps that each model has been trained, int32 `(L,)`.
        key: PRNG key for the models that will be created.
    """

    models: inner.State
    ages: Array
    key: Array


def init(key: Array, x: Array, y: Array, *, settings: Settings = Settings()) -> Pool:
    """Create L models, each trained on the pairs for a number of steps drawn uniformly from 1 to Z-1.

    Args:
        key: PRNG key.
        x: Images of the pairs `(S,H,W,C)`.
        y: Targets of the pairs `(S,D)`.
        settings: Settings of the pool.

    Returns:
        The pool.
    """
    chex.assert_rank([x, y], [4, 2])
    key_ages, key_models, key_next = jax.random.split(key, 3)
    # Ages are spread, so that the models are not all replaced at once.
    ages = jax.random.randint(key_ages, (settings.size,), 1, max(settings.steps, 2))

    def grow(members: tuple[Array, Array], pairs: tuple[Array, Array]) -> inner.State:
        def grow_one(member: tuple[Array, Array]) -> inner.State:
            key, age = member
            some = 0 < settings.batch_size < len(x)
            key_fresh, key_pairs = jax.random.split(key) if some else (key, key)

            def train(step: Array, model: inner.State) -> inner.State:
                batch = draw_pairs(jax.random.fold_in(key_pairs, step), pairs, settings.batch_size)
                return inner.step(model, *batch, settings=settings.inner)[0]

            # The bound is traced: one program grows models to any age. Under a vmap the loop runs to the oldest age,
            # and a model keeps its state after its own.
            grown = lax.fori_loop(0, age, train, _fresh(key_fresh, *pairs, settings))
            if settings.counted and settings.steps * x.size >= settings.counted:
                tell = functools.partial(signs.count, "models trained", settings.size)
                jax.debug.callback(tell, jax.tree.leaves(grown)[0].reshape(-1)[0])
            return grown

        return lax.map(grow_one, members, batch_size=settings.vectorize)

    keys = jax.random.split(key_models, settings.size)
    if settings.vectorize == 1:
        return Pool(_split(grow, (keys, ages), (x, y), settings), ages, key_next)
    # Models of similar ages grow side by side, so that few of them wait for an older one.
    order = jnp.argsort(ages)
    models = _split(grow, (keys[order], ages[order]), (x, y), settings)
    before = jnp.argsort(order)
    return Pool(jax.tree.map(lambda leaf: leaf[before], models), ages, key_next)


def draw(key: Array, size: int, count: int) -> Array:
    """Draw the indices of `count` out of `size` models, or pairs, without replacement, int32 `(count,)`."""
    return jax.random.permutation(key, size)[:count] if count < size else jnp.arange(size)


def draw_pairs(key: Array, pairs: tuple[Array, Array], count: int) -> tuple[Array, Array]:
    """Draw pairs without replacement.

    Args:
        key: PRNG key.
        pairs: Images `(S,H,W,C)` and targets `(S,D)`.
        count: Number of pairs to draw; all of them, in their order, if it is 0 or at least S.

    Returns:
        Images `(count,H,W,C)` and targets `(count,D)`.
    """
    x, y = pairs
    if not 0 < count < len(x):
        return x, y
    indices = draw(key, len(x), count)
    return x[indices], y[indices]


def drawn(leaves: Any, indices: Array) -> Any:
    """Select the drawn models from a pytree whose leading axes are those of the models.

    Args:
        leaves: A pytree with leading axes L.
        indices: Indices of the models, int `(k,)`, without repetition.

    Returns:
        The pytree with leading axes k. If all models are drawn (k = L), they keep their order and are not copied.
    """
    leaves = jax.tree.map(jnp.asarray, leaves)
    return jax.tree.map(lambda leaf: leaf if len(indices) == len(leaf) else leaf[indices], leaves)


def step(pool: Pool, indices: Array, x: Array, y: Array, *, settings: Settings = Settings()) -> Pool:
    """Train the drawn models by one step, and replace those that have reached age Z by fresh ones.

    Args:
        pool: The models.
        indices: Indices of the drawn models, int `(k,)`, without repetition.
        x: Images of the pairs `(S,H,W,C)`.
        y: Targets of the pairs `(S,D)`.
        settings: Settings of the pool.

    Returns:
        The pool after the step.
    """
    chex.assert_rank([indices, x, y], [1, 4, 2])
    pool = jax.tree.map(jnp.asarray, pool)
    models, ages = drawn((pool.models, pool.ages), indices)
    old = ages >= settings.steps
    # A key per drawn model, used only if that model is replaced.
    key_next, *keys = jax.random.split(pool.key, len(indices) + 1)

    def advance(members: tuple[inner.State, Array, Array], pairs: tuple[Array, Array]) -> inner.State:
        models, old, keys = members

        def train(model: inner.State) -> inner.State:
            return inner.step(model, *pairs, settings=settings.inner)[0]

        def replace_old(models: inner.State) -> inner.State:
            fresh = jax.vmap(lambda key: _fresh(key, *pairs, settings))(keys)
            return jax.tree.map(lambda new, trained: jnp.where(_like(old, new), new, trained), fresh, models)

        after = lax.map(train, models, batch_size=settings.vectorize)
        # Fresh weights are drawn only when a model is replaced, which happens once in Z steps.
        return lax.cond(jnp.any(old), replace_old, lambda models: models, after)

    after = _split(advance, (models, old, jnp.stack(keys)), (x, y), settings)
    updated = after, jnp.where(old, 0, ages + 1)
    if len(indices) < settings.size:  # in place if the caller donates the pool
        updated = jax.tree.map(lambda stacked, new: stacked.at[indices].set(new), (pool.models, pool.ages), updated)
    return Pool(*updated, key_next)


def spread(mesh: Mesh, like: Pool) -> Any:
    """Return the shardings of a pool's leaves.

    The models are split over the axis `pool` if it divides their number; everything else is replicated.

    Args:
        mesh: The devices.
        like: A pool, or its abstract values.

    Returns:
        A pool of shardings.
    """
    divides = len(like.ages) % mesh.shape[POOL] == 0
    over_pool = devices.sharding(mesh, POOL) if divides else devices.sharding(mesh)
    return devices.shardings(mesh, like)._replace(models=jax.tree.map(lambda _: over_pool, like.models))


def _split(
    work: Callable[[Any, Any], inner.State], members: Any, pairs: tuple[Array, Array], settings: Settings
) -> inner.State:
    """Compute `work(members, pairs)`, with the members split over the devices along `pool`.

    Batch norm needs all pairs, so the devices along `data` repeat the same work, unless the mesh has no devices along
    `pool`: then the pairs are split over `data` and XLA inserts the sums.
    """
    mesh = settings.mesh
    if mesh is None:
        return work(members, pairs)
    if mesh.shape[POOL] == 1:
        # Batch norm's means over the split pairs become collective sums.
        split = len(pairs[0]) % mesh.shape[DATA] == 0
        return work(members, devices.over_data(mesh, pairs) if split else pairs)
    if len(jax.tree.leaves(members)[0]) % mesh.shape[POOL]:
        return work(members, pairs)
    # The models are independent of each other, so the devices need no communication.
    specs = PartitionSpec(POOL), PartitionSpec()
    return jax.shard_map(work, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(members, pairs)


def _fresh(key: Array, x: Array, y: Array, settings: Settings) -> inner.State:
    shape, dim = x.shape[1:], y.shape[-1]
    return inner.init(key, shape, dim, widths=settings.widths, norm=settings.norm, settings=settings.inner)


def _like(flags: Array, leaf: Array) -> Array:
    """Reshape flags `(k,)` to broadcast against a leaf `(k,...)`."""
    return flags.reshape(-1, *(1,) * (leaf.ndim - 1))
