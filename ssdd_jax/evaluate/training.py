"""Train networks on pairs by regression, several seeds side by side, and extract features of frozen networks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from ssdd_jax import inner, models
from ssdd_jax.data.preprocess import Preprocessing, from_bytes
from ssdd_jax.errors import UserError
from ssdd_jax.training import epochs, loop, streaming
from ssdd_jax.training.streaming import memory_bytes

Array = jax.Array
Variables = Any

# Images per forward pass in feature extraction.
EXTRACT = 256
# Largest share of the memory for the activations of networks trained side by side.
SHARE = 0.4
# Approximate number of device calls of a training; it can be interrupted and reports its progress between them.
PIECES = 10


class Settings(NamedTuple):
    """Settings of training on pairs.

    Attributes:
        epochs: Passes over the pairs.
        batch_size: Pairs per step.
        sgd: Learning rate, momentum and weight decay.
    """

    epochs: int = 1000
    batch_size: int = 256
    sgd: inner.Settings = inner.Settings()


def train(
    keys: Array,
    network: nn.Module,
    pairs: tuple[Array, Array],
    *,
    preprocessing: Preprocessing,
    settings: Settings,
    together: int = 0,
    name: str = "",
) -> Variables:
    """Train one network per key on pairs, minimising the mean squared error in shuffled mini-batches.

    Args:
        keys: PRNG keys `(seeds,)`; each network's start and order come from its own key alone.
        network: The architecture.
        pairs: Images `(P,H,W,C)`, network inputs or uint8, which are normalised batch by batch, and targets `(P,D)`;
            or with a leading axis of seeds.
        preprocessing: Constants of the data set.
        settings: Passes, batch size and SGD.
        together: Networks side by side in one program; 0: as many as the memory holds.
        name: Label of the progress bar; no bar if empty.

    Returns:
        Variables with a leading axis of seeds.
    """
    images, targets = pairs
    per_seed = images.ndim == 5
    chex.assert_equal_shape_prefix([images, targets], 2 if per_seed else 1)
    shape, examples = images.shape[-3:], images.shape[1] if per_seed else len(images)
    size, per_epoch = epochs.batch_of(examples, settings.batch_size)
    together = together or side_by_side(network, (size, *shape))
    piece = -(-settings.epochs // PIECES)
    fixed = settings._replace(epochs=0)  # the number of epochs must not cause a recompilation
    trained = []
    with loop.bar(name, len(keys) * settings.epochs * per_epoch) as bar:
        for begin in range(0, len(keys), together):
            group = slice(begin, begin + together)
            group_pairs = (images[group], targets[group]) if per_seed else pairs
            state, orders = _start(keys[group], network=network, image_shape=shape, settings=fixed)
            weight = len(keys[group]) * per_epoch
            for first, count in loop.calls(bar, settings.epochs, per_call=piece, weight=weight):
                span = jnp.int32(first), jnp.int32(first + count)
                state = _advance(state, orders, span, group_pairs, preprocessing, network=network, settings=fixed)
                if not bar.disable:  # the bar shows steps that are done, not those that are dispatched
                    jax.block_until_ready(state)
            trained.append(state.variables)
    return trained[0] if len(trained) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trained)


def train_streamed(
    keys: Array,
    network: nn.Module,
    pairs: streaming.Pairs,
    *,
    settings: Settings,
    together: int = 0,
    name: str = "",
) -> Variables:
    """Train the same networks as `train`, streaming the pairs from the host.

    Args:
        keys: PRNG keys `(seeds,)`; each network's start and order come from its own key alone.
        network: The architecture.
        pairs: Images and features.
        settings: Passes, batch size and SGD.
        together: Networks side by side in one program, each with batches of its own; 0: as many as the memory holds.
        name: Label of the progress bar; no bar if empty.

    Returns:
        Variables with a leading axis of seeds.
    """
    shape = pairs.images.shape[1:]
    size, per_epoch = epochs.batch_of(len(pairs.images), settings.batch_size)
    together, steps = together or side_by_side(network, (size, *shape)), settings.epochs * per_epoch
    advance = functools.partial(_advance_fed, pairs.preprocessing, network=network, settings=settings)
    trained = []
    with loop.bar(name, len(keys) * steps) as bar:
        for begin in range(0, len(keys), together):
            group = keys[begin : begin + together]
            start, orders = _start(group, network=network, image_shape=shape, settings=settings._replace(epochs=0))
            read, _ = streaming.shuffled(orders, pairs, batch_size=settings.batch_size)
            per_call = streaming.steps_per_call(pairs, len(group) * size, steps)
            after = None if bar.disable else functools.partial(_update, bar, len(group))
            state = streaming.run(advance, start, read, steps=steps, per_call=per_call, after=after)
            trained.append(state.variables)
    return trained[0] if len(trained) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trained)


def _update(bar: tqdm, networks: int, steps: int) -> None:
    bar.update(networks * steps)


@functools.partial(jax.jit, static_argnames=("network", "settings"), donate_argnums=1)
def _advance_fed(
    preprocessing: Preprocessing,
    state: inner.State,
    items: tuple[Array, Array],
    count: Array,
    *,
    network: nn.Module,
    settings: Settings,
) -> inner.State:
    def update(state: inner.State, x: Array, y: Array) -> inner.State:
        return inner.step(state, preprocessing.images(x), y, settings=settings.sgd, network=network)[0]

    return streaming.loop(lambda state, item: jax.vmap(update)(state, *item), state, items, count)


@functools.partial(jax.jit, static_argnames=("network", "image_shape", "settings"))
def _start(
    keys: Array, *, network: nn.Module, image_shape: tuple[int, ...], settings: Settings
) -> tuple[inner.State, Array]:
    # A network depends on its own key only, so that groups of any size train the same networks.
    def start(key: Array) -> tuple[inner.State, Array]:
        key_init, key_order = jax.random.split(key)
        variables = models.initialize(key_init, network, image_shape)
        return inner.State(variables, inner.optimizer(settings.sgd).init(variables["params"])), key_order

    return jax.vmap(start)(keys)


@functools.partial(jax.jit, static_argnames=("network", "settings"), donate_argnums=0)
def _advance(
    state: inner.State,
    keys: Array,
    span: tuple[Array, Array],
    pairs: tuple[Array, Array],
    preprocessing: Preprocessing,
    *,
    network: nn.Module,
    settings: Settings,
) -> inner.State:
    """Run the epochs `span[0] .. span[1] - 1` of networks side by side."""
    # Pairs with a leading axis of seeds differ between networks; others are shared without a copy.
    axis = 0 if pairs[0].ndim == 5 else None
    run = functools.partial(_epochs, span=span, network=network, preprocessing=preprocessing, settings=settings)
    return jax.vmap(run, in_axes=(0, 0, axis))(state, keys, pairs)


def _epochs(
    state: inner.State,
    key: Array,
    pairs: tuple[Array, Array],
    *,
    span: tuple[Array, Array],
    network: nn.Module,
    preprocessing: Preprocessing,
    settings: Settings,
) -> inner.State:
    images, targets = pairs

    def step(state: inner.State, indices: Array) -> inner.State:
        x = images[indices]
        # uint8 images take a quarter of the memory; only the batch is normalised.
        x = preprocessing.images(x) if x.dtype == jnp.uint8 else x
        return inner.step(state, x, targets[indices], settings=settings.sgd, network=network)[0]

    def epoch(number: Array, state: inner.State) -> inner.State:
        return epochs.one(key, state, step, number, count=len(images), batch_size=settings.batch_size)

    return lax.fori_loop(*span, epoch, state)


def fresh(keys: Array, network: nn.Module, image_shape: tuple[int, ...]) -> Variables:
    """Initialise the untrained networks that `train` starts from.

    Args:
        keys: PRNG keys `(seeds,)`.
        network: The architecture.
        image_shape: `(H,W,C)`.

    Returns:
        Variables with a leading axis of seeds.
    """
    state, _ = _start(keys, network=network, image_shape=tuple(image_shape), settings=Settings())
    return state.variables


def extract(
    network: nn.Module, variables: Variables, images: np.ndarray, *, mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """Extract features of a frozen network, a batch at a time.

    Args:
        network: The architecture.
        variables: Variables of one network.
        images: Images uint8 `(n,H,W,C)`.
        mean: Mean of each channel `(C,)`, of pixels in 0..1.
        std: Standard deviation of each channel `(C,)`.

    Returns:
        Features `(n,F)`, float32.

    Raises:
        UserError: If the features do not fit into the memory of the device, to which the probes copy them.
    """
    constants = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    features = []
    for begin in range(0, len(images), EXTRACT):
        batch = images[begin : begin + EXTRACT]
        # The last batch is padded to avoid recompilation.
        padded = np.concatenate([batch, np.zeros((EXTRACT - len(batch), *batch.shape[1:]), np.uint8)])
        features.append(np.asarray(_features(variables, padded, *constants, network=network))[: len(batch)])
        # The first batch determines the length of a feature, so that the check precedes most of the work.
        needed = len(images) * features[0][0].nbytes
        if needed > memory_bytes():
            raise UserError(
                f"evaluate: {len(images):,} features of {features[0].shape[1]:,} dimensions take {needed / 1e9:.0f} GB "
                f"of the {memory_bytes() / 1e9:.0f} GB of memory: evaluate on smaller targets "
                "(python -m ssdd_jax.evaluate)"
            )
    return np.concatenate(features)


@functools.partial(jax.jit, static_argnames="network")
def _features(variables: Variables, images: Array, mean: Array, std: Array, *, network: nn.Module) -> Array:
    return models.features(network, variables, from_bytes(images, mean, std))


def side_by_side(network: nn.Module, batch_shape: Sequence[int]) -> int:
    """Estimate the number of networks whose activations fit into memory side by side; at least 1.

    Args:
        network: The architecture.
        batch_shape: Shape of a batch of network inputs, `(B,H,W,C)`.
    """
    return max(1, int(SHARE * memory_bytes() / activation_bytes(network, tuple(batch_shape))))


@functools.cache
def activation_bytes(network: nn.Module, batch_shape: tuple[int, ...]) -> int:
    """Bytes of all intermediate values of a forward pass in training.

    This is an upper bound of the activations that the backward pass needs.

    Args:
        network: The architecture.
        batch_shape: Shape of a batch of network inputs, `(B,H,W,C)`.
    """
    # Traced on abstract shapes: nothing is computed or allocated.
    x = jax.ShapeDtypeStruct(batch_shape, jnp.float32)
    variables = jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), x)
    apply = functools.partial(network.apply, train=True, mutable=["batch_stats"])
    equations = jax.make_jaxpr(apply)(variables, x).eqns
    return sum(int(np.prod(out.aval.shape)) * 4 for equation in equations for out in equation.outvars)
