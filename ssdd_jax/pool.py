"""The pool of inner models: stacked on the device, at spread ages, renewed when old (KRR-ST, section 3.2).

One pytree holds all L models. How many of the drawn models are trained side by side is `vectorize`: all of them on an
accelerator, one or two where memory or cache says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ssdd_jax import inner
from ssdd_jax.runtime import devices
from ssdd_jax.runtime.devices import DATA, POOL

Array = jax.Array


class Settings(NamedTuple):
    """The pool's constants.

    Attributes:
        size: Number of models L.
        steps: Age Z at which a model is renewed.
        vectorize: How many models are trained side by side.
        widths: Channels of each block of a model.
        norm: Its norm, `batch` or `instance`.
        inner: How a model is trained.
        mesh: Devices over whose axis `pool` the models are split; None for one device.
    """

    size: int = 10
    steps: int = 1000
    vectorize: int = 1
    widths: tuple[int, ...] = (128, 256, 512)
    norm: str = "batch"
    inner: inner.Settings = inner.Settings()
    mesh: Mesh | None = None


class Pool(NamedTuple):
    """The models in training.

    Attributes:
        models: `inner.State` whose every leaf has a leading axis L.
        ages: Steps that each model has been trained, int32 `(L,)`.
        key: PRNG key for the models to come.
    """

    models: inner.State
    ages: Array
    key: Array


def init(key: Array, x: Array, y: Array, *, settings: Settings = Settings()) -> Pool:
    """L models, each trained on the pairs for a number of steps drawn uniformly from 1 to Z-1.

    Args:
        key: PRNG key.
        x: Images of the pairs `(S,H,W,C)`.
        y: Targets of the pairs `(S,D)`.
        settings: The pool's constants.

    Returns:
        The pool.
    """
    chex.assert_rank([x, y], [4, 2])
    key_ages, key_models, key_next = jax.random.split(key, 3)
    ages = jax.random.randint(key_ages, (settings.size,), 1, max(settings.steps, 2))

    def grow(members: tuple[Array, Array], pairs: tuple[Array, Array]) -> inner.State:
        def one(member: tuple[Array, Array]) -> inner.State:
            key, age = member
            model = _fresh(key, *pairs, settings)
            return lax.fori_loop(0, age, lambda _, model: inner.step(model, *pairs, settings=settings.inner)[0], model)

        return lax.map(one, members, batch_size=settings.vectorize)

    models = _split(grow, (jax.random.split(key_models, settings.size), ages), (x, y), settings)
    return Pool(models, ages, key_next)


def draw(key: Array, size: int, count: int) -> Array:
    """`count` of `size` models without repetition, int32 `(count,)`."""
    return jax.random.permutation(key, size)[:count] if count < size else jnp.arange(size)


def drawn(leaves: Any, indices: Array) -> Any:
    """Those of these indices out of a pytree whose leading axes are the models', and all as they are if all are drawn.

    Args:
        leaves: A pytree with leading axes L.
        indices: Which models, int `(k,)`, no repetition.

    Returns:
        The pytree with leading axes k; where k = L in the order of the models, without a copy.
    """
    return jax.tree.map(lambda leaf: leaf if len(indices) == len(leaf) else leaf[indices], leaves)


def step(pool: Pool, indices: Array, x: Array, y: Array, *, settings: Settings = Settings()) -> Pool:
    """Train the drawn models by one step, or renew those that have reached age Z.

    Args:
        pool: The models.
        indices: Which models, int `(k,)`, no repetition.
        x: Images of the pairs `(S,H,W,C)`.
        y: Targets of the pairs `(S,D)`.
        settings: The pool's constants.

    Returns:
        The pool after the step.
    """
    chex.assert_rank([indices, x, y], [1, 4, 2])
    models, ages = drawn((pool.models, pool.ages), indices)
    old = ages >= settings.steps
    key_next, *keys = jax.random.split(pool.key, len(indices) + 1)

    def stepped(members: tuple[inner.State, Array, Array], pairs: tuple[Array, Array]) -> inner.State:
        models, old, keys = members

        def trained(model: inner.State) -> inner.State:
            return inner.step(model, *pairs, settings=settings.inner)[0]

        def renewed(models: inner.State) -> inner.State:
            fresh = jax.vmap(lambda key: _fresh(key, *pairs, settings))(keys)
            return jax.tree.map(lambda new, was: jnp.where(_like(old, new), new, was), fresh, models)

        after = lax.map(trained, models, batch_size=settings.vectorize)
        # Fresh weights are drawn only when a model is renewed, which is once in Z steps.
        return lax.cond(jnp.any(old), renewed, lambda models: models, after)

    after = _split(stepped, (models, old, jnp.stack(keys)), (x, y), settings)
    changed = after, jnp.where(old, 0, ages + 1)
    if len(indices) < settings.size:  # in place, where the caller gives the pool away
        changed = jax.tree.map(lambda all_, new: all_.at[indices].set(new), (pool.models, pool.ages), changed)
    return Pool(*changed, key_next)


def spread(mesh: Mesh, like: Pool) -> Any:
    """Where the leaves of a pool lie: the models over the axis `pool`, if it divides them, all else on every device.

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
    """`work(members, pairs)`, each device along `pool` for its own members.

    Batch norm sees all pairs, so that along `data` all devices do the same; unless there is nothing to split along
    `pool`: then each has a part of the pairs, and XLA sums over all of them.
    """
    mesh = settings.mesh
    if mesh is None:
        return work(members, pairs)
    if mesh.shape[POOL] == 1:
        split = len(pairs[0]) % mesh.shape[DATA] == 0
        return work(members, devices.over_data(mesh, pairs) if split else pairs)
    if len(jax.tree.leaves(members)[0]) % mesh.shape[POOL]:
        return work(members, pairs)
    specs = PartitionSpec(POOL), PartitionSpec()
    return jax.shard_map(work, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(members, pairs)


def _fresh(key: Array, x: Array, y: Array, settings: Settings) -> inner.State:
    shape, dim = x.shape[1:], y.shape[-1]
    return inner.init(key, shape, dim, widths=settings.widths, norm=settings.norm, settings=settings.inner)


def _like(flags: Array, leaf: Array) -> Array:
    return flags.reshape(-1, *(1,) * (leaf.ndim - 1))
