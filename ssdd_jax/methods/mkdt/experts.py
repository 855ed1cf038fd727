"""Training of experts: students that regress the teacher's features on all data, with their trajectories on disk.

MKDT (Joshi, Ni, Mirzasoleiman, ICLR 2025): 100 ConvNets with instance norm, mean squared error on the teacher's
features, SGD (0.1, momentum 0.9, weight decay 1e-4, batch 256), no augmentation; the parameters are saved at the start
and after every epoch. Its distilled set starts from the images with the highest loss after the first epoch.
"""

from __future__ import annotations

import functools
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm.auto import tqdm

from ssdd_jax import inner
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.errors import UserError
from ssdd_jax.methods.mkdt.trajectories import Settings, Store, flatten, group_losses, is_done, merge, numbers
from ssdd_jax.runtime import files
from ssdd_jax.runtime.memory import readable
from ssdd_jax.training import epochs, loop, streaming

Array = jax.Array

# Images per forward pass when losses are measured, and images per transfer from the host.
MEASURE = 256
PART = 32 * MEASURE


@functools.partial(jax.jit, static_argnames="settings")
def train_epoch(
    keys: Array,
    states: inner.State,
    images: Array,
    targets: Array,
    preprocessing: Preprocessing,
    *,
    settings: Settings,
) -> inner.State:
    """Train a group of experts for one epoch of mini-batches, each expert in its own shuffled order.

    Args:
        keys: PRNG keys `(k,)`.
        states: The experts; every leaf has a leading axis k.
        images: uint8 `(n,H,W,C)`.
        targets: Regression targets `(n,D)`.
        preprocessing: Constants of the data set.
        settings: Batch size and SGD.

    Returns:
        The experts after the epoch.
    """
    chex.assert_rank([images, targets], [4, 2])
    chex.assert_equal_shape_prefix([images, targets], 1)

    def step(state: inner.State, indices: Array) -> inner.State:
        return inner.step(state, preprocessing.images(images[indices]), targets[indices], settings=settings.inner)[0]

    options = {"count": len(images), "batch_size": settings.batch_size, "epochs": 1}
    return jax.vmap(lambda key, state: epochs.run(key, state, step, **options))(keys, states)


def train_epoch_streamed(
    keys: Array, states: inner.State, pairs: streaming.Pairs, *, settings: Settings
) -> inner.State:
    """Train like `train_epoch`, with images and features that stay on the host; `keys` `(k,)`, one per expert."""
    # Reads the batches of all experts of a step together, in the orders that `train_epoch` would use.
    read, steps = streaming.shuffled(keys, pairs, batch_size=settings.batch_size)
    size, _ = epochs.batch_of(len(pairs.images), settings.batch_size)
    advance = functools.partial(_advance_fed, pairs.preprocessing, settings=settings)
    per_call = streaming.steps_per_call(pairs, len(keys) * size, steps)
    return streaming.run(advance, states, read, steps=steps, per_call=per_call)


@functools.partial(jax.jit, static_argnames="settings")
def _advance_fed(
    preprocessing: Preprocessing, states: inner.State, items: tuple[Array, Array], count: Array, *, settings: Settings
) -> inner.State:
    def update(state: inner.State, x: Array, y: Array) -> inner.State:
        return inner.step(state, preprocessing.images(x), y, settings=settings.inner)[0]

    return streaming.loop(lambda states, item: jax.vmap(update)(states, *item), states, items, count)


def _losses(variables: inner.Variables, data: streaming.Pairs | _Data) -> np.ndarray:
    """Compute `image_losses` `(n,)`; data on the host are transferred in parts."""
    if isinstance(data, _Data):
        return np.asarray(image_losses(variables, *data))
    indices = np.arange(len(data.images))
    # Whole batches, so that the parts do not change the losses.
    part = min(PART, MEASURE * max(1, streaming.rows_per_piece(data) // MEASURE))
    batches = (data.take(indices[begin : begin + part]) for begin in range(0, len(indices), part))
    return np.concatenate([np.asarray(image_losses(variables, *batch, data.preprocessing)) for batch in batches])


@jax.jit
def image_losses(variables: inner.Variables, images: Array, targets: Array, preprocessing: Preprocessing) -> Array:
    """Compute the loss of one student, in eval mode, on each image, batch by batch.

    Args:
        variables: `params` and `batch_stats` of the student.
        images: uint8 `(n,H,W,C)`.
        targets: Regression targets `(n,D)`.
        preprocessing: Constants of the data set.

    Returns:
        Mean squared error over the D values of each target `(n,)`.
    """
    chex.assert_equal_shape_prefix([images, targets], 1)
    count = len(images)
    size = min(MEASURE, count)
    # The last batch is padded so that all have the same shape; the padding's losses are cut off at the end.
    padded = jnp.pad(images, ((0, -count % size), *((0, 0),) * 3)).reshape(-1, size, *images.shape[1:])
    padded_targets = jnp.pad(targets, ((0, -count % size), (0, 0))).reshape(-1, size, targets.shape[1])

    def batch_losses(batch: tuple[Array, Array]) -> Array:
        x, y = batch
        return jnp.mean(jnp.square(inner.predict(variables, preprocessing.images(x)) - y), axis=1)

    return lax.map(batch_losses, (padded, padded_targets)).reshape(-1)[:count]


@functools.partial(jax.jit, static_argnames=("settings", "image_shape", "dim"))
def _fresh(keys: Array, *, settings: Settings, image_shape: tuple[int, ...], dim: int) -> inner.State:
    """Initialize experts, one per key `(k,)`."""
    options: dict[str, Any] = {"widths": settings.widths, "norm": settings.norm, "settings": settings.inner}
    return jax.vmap(lambda key: inner.init(key, image_shape, dim, **options))(keys)


_flatten_all = jax.jit(jax.vmap(flatten))


class _Data(NamedTuple):
    """Training data of experts on the device: uint8 `(n,H,W,C)`, `(n,D)`, and the data set's constants."""

    images: Array
    targets: Array
    preprocessing: Preprocessing


def make(
    key: Array,
    folder: pathlib.Path,
    images: Array,
    targets: Array,
    preprocessing: Preprocessing,
    *,
    settings: Settings,
    say: Callable[[str], None],
    keep: bool = True,
) -> Store:
    """Call `make_of` on images uint8 `(n,H,W,C)` and regression targets `(n,D)` that are kept on the device."""
    data = _Data(jnp.asarray(images), jnp.asarray(targets), preprocessing)
    return make_of(key, folder, data, settings=settings, say=say, keep=keep)


def make_of(
    key: Array,
    folder: pathlib.Path,
    data: streaming.Pairs | _Data,
    *,
    settings: Settings,
    say: Callable[[str], None],
    keep: bool = True,
) -> Store:
    """Train the experts that are missing, in groups of `vectorize`.

    After an interruption, training resumes with the first incomplete group. The result is bitwise identical to that of
    an uninterrupted training, because an expert depends only on the key and its index.

    Args:
        key: PRNG key; folded by expert.
        folder: Folder of the trajectories and losses.
        data: Training data, on the device or streamed from the host.
        settings: Number of experts and settings of their training.
        say: Called with a message for the user before the training starts.
        keep: Whether to write trajectories. Without them only the losses are written, and one epoch is enough.

    Returns:
        The trajectories and losses.

    Raises:
        UserError: If the disk is too small, an expert diverges, or the folder holds experts of other settings.
        ssdd_jax.training.loop.Stopped: On SIGTERM or SIGINT; complete groups are kept.
    """
    # Groups are complete or absent: a resumed run splits the experts in the same way.
    store = Store(folder)
    size, (shape, dim) = settings.vectorize, _shapes(data)
    groups = [range(first, min(first + size, settings.count)) for first in range(0, settings.count, size)]
    expected = (settings.epochs + 1, numbers(settings, shape, dim))
    missing = [group for group in groups if not is_done(store, group, expected if keep else None)]
    if missing:
        # Without trajectories the training ends after the epoch whose losses are needed.
        passes = settings.epochs if keep else 1
        _prepare(store, sum(map(len, missing)), expected, keep, say)
        with (
            loop.stop_requests() as requested,
            loop.bar("experts", sum(map(len, missing)) * passes, unit="epoch") as bar,
        ):
            for group in missing:
                _make_group(key, store, group, data, settings, _Progress(passes, keep, bar, requested))
    merge(store, groups)
    return store


class _Progress(NamedTuple):
    """Epochs to train, whether trajectories are kept, the progress bar, and the signals received so far."""

    passes: int
    keep: bool
    bar: tqdm
    requested: Sequence[int]


def _shapes(data: streaming.Pairs | _Data) -> tuple[tuple[int, ...], int]:
    """Return the image shape `(H,W,C)` and the target length D."""
    return data.images.shape[1:], (data.targets if isinstance(data, _Data) else data.features).shape[1]


def _make_group(
    key: Array, store: Store, group: range, data: streaming.Pairs | _Data, settings: Settings, progress: _Progress
) -> None:
    """Train a group, write its trajectories, and last its losses, which mark it as complete."""
    snapshots, losses = [], np.zeros(len(data.images))
    for epoch, states in enumerate(_train(key, group, data, settings, progress.passes)):
        vectors = np.asarray(_flatten_all(states.variables["params"]))
        _check_finite(vectors, group, f"parameters after epoch {epoch}")
        if progress.keep:
            snapshots.append(vectors)
        # MKDT ranks the images by the losses after the first epoch, whatever the length of the trajectories.
        if epoch == 1:
            # One expert at a time: the losses of all images need little memory then.
            members = [jax.tree.map(lambda leaf: leaf[i], states.variables) for i in range(len(group))]  # noqa: B023
            expert_losses = np.stack([_losses(variables, data) for variables in members])
            _check_finite(expert_losses, group, "losses after epoch 1")
            losses = expert_losses.sum(0, dtype=np.float64)
        progress.bar.update(len(group) if epoch else 0)
        # A group that is not complete is trained again from its start.
        if progress.requested and epoch < progress.passes:
            raise loop.Stopped(f"experts: stopped in expert {group[0]} of {settings.count}; those before it are kept")
    # Trajectories are written before the losses, so that a kill in between leaves an incomplete group.
    for i, expert in enumerate(group if progress.keep else ()):
        files.write_array(store.path(expert), np.stack([vectors[i] for vectors in snapshots]))
    files.write_array(group_losses(store, group), losses)


def _train(
    key: Array, group: range, data: streaming.Pairs | _Data, settings: Settings, passes: int
) -> Iterator[inner.State]:
    """Yield the group's experts at the start and after every epoch."""
    # One key per expert for its start and one for its orders, both independent of the grouping.
    keys = jax.vmap(lambda expert: jax.random.split(jax.random.fold_in(key, expert)))(jnp.asarray(group))
    shape, dim = _shapes(data)
    states = _fresh(keys[:, 0], settings=settings, image_shape=shape, dim=dim)
    yield states
    for epoch in range(passes):
        orders = jax.vmap(jax.random.fold_in, (0, None))(keys[:, 1], epoch)
        if isinstance(data, _Data):
            states = train_epoch(orders, states, *data, settings=settings)
        else:
            states = train_epoch_streamed(orders, states, data, settings=settings)
        yield states


def _check_finite(values: np.ndarray, group: range, what: str) -> None:
    """Raise an error if `values` `(k,...)`, with one entry per expert of the group, are not all finite."""
    for expert, expert_values in zip(group, values, strict=True):
        if not np.isfinite(expert_values).all():
            raise UserError(
                f"experts: the {what} of expert {expert} are not finite numbers, nothing of it is kept; "
                "try a smaller config.experts.learning_rate"
            )


def _prepare(store: Store, count: int, shape: tuple[int, int], keep: bool, say: Callable[[str], None]) -> None:
    """Create the folder, report the size of the trajectories, and raise an error if the disk is too small."""
    snapshots, size = shape
    if not keep:
        say(f"experts: {count} networks of {size:,} parameters, one epoch each; only their losses are kept")
    with files.saving(store.folder):
        store.folder.mkdir(parents=True, exist_ok=True)
    if not keep:
        return
    # Checked before hours of training, not when the disk is full.
    needed = count * snapshots * size * 4
    say(f"experts: {count} trajectories of {snapshots} snapshots take {readable(needed)} in {store.folder}")
    free = shutil.disk_usage(store.folder).free
    if free < needed:
        raise UserError(
            f"{store.folder} has {readable(free)} free and the experts' trajectories need {readable(needed)}: free "
            "some, choose another --workdir, or a smaller config.experts.count or config.experts.epochs"
        )
