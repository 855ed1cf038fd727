"""Train networks on pairs by regression, several seeds side by side."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm.auto import tqdm

from ssdd_jax import inner, models
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.training import epochs, loop, streaming
from ssdd_jax.training.streaming import memory_bytes

Array = jax.Array
Variables = Any

# Largest share of the memory for the activations of networks trained side by side.
SHARE = 0.4
# Approximate number of device calls of a training; it can be interrupted and reports its progress between them.
PIECES = 10


class Rate(NamedTuple):
    """Constants of SGD that may be chosen on held-out images.

    Attributes:
        learning_rate: Learning rate.
        weight_decay: Weight decay of every parameter, added to the gradient.
    """

    learning_rate: float = 0.1
    weight_decay: float = 1e-3


# Published settings: KRR-ST's for its sets, and those of its subset of real images (`test.py`).
PUBLISHED = Rate(0.1, 1e-3)
PUBLISHED_SUBSET = Rate(0.01, 5e-4)


class Settings(NamedTuple):
    """Settings of training on pairs.

    Attributes:
        steps: Number of SGD steps.
        epochs: If not 0, passes over the pairs instead of a number of steps.
        batch_size: Pairs per step.
        rates: Learning rate and weight decay; several are candidates to choose from.
        momentum: Momentum of SGD.
        cosine: Whether the learning rate decays to 0 along a cosine; otherwise it is constant.
        precision: Precision of the layers, `float32` or `bfloat16`; features are extracted in float32.
    """

    steps: int = 7000
    epochs: int = 0
    batch_size: int = 256
    rates: tuple[Rate, ...] = (PUBLISHED,)
    momentum: float = 0.9
    cosine: bool = False
    precision: str = "float32"

    def steps_on(self, count: int) -> int:
        """Number of steps on `count` pairs."""
        return self.epochs * epochs.batch_of(count, self.batch_size)[1] or self.steps


class _Plan(NamedTuple):
    """Traced constants of a training, so that other values need no compilation.

    Attributes:
        rates: Learning rates and weight decays of the networks, float32 `(seeds,2)`.
        steps: Number of steps, float32 `()`.
        cosine: 1 for a learning rate that decays along a cosine, else 0, float32 `()`.
    """

    rates: Array
    steps: Array
    cosine: Array

    @classmethod
    def of(cls, settings: Settings, rates: Sequence[Rate], count: int) -> _Plan:
        return cls(jnp.asarray(rates, jnp.float32), jnp.float32(settings.steps_on(count)), jnp.float32(settings.cosine))

    def sgd(self, rate: Array, step: Array, momentum: float, precision: str) -> inner.Settings:
        """SGD of a network with the learning rate and weight decay `rate (2,)`, at a step."""
        progress = step.astype(jnp.float32) / self.steps
        factor = 1 - self.cosine * 0.5 * (1 - jnp.cos(jnp.pi * progress))
        return inner.Settings(rate[0] * factor, momentum, rate[1], precision)  # type: ignore[arg-type]


def train(
    keys: Array,
    network: nn.Module,
    pairs: tuple[Array, Array],
    *,
    preprocessing: Preprocessing,
    settings: Settings,
    rates: Sequence[Rate] = (),
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
        settings: Steps, batch size and SGD.
        rates: Learning rate and weight decay of each network, one per key; default: the first of the settings.
        together: Networks side by side in one program; 0: as many as the memory holds, and one on a CPU, which is as
            fast and compiles one program for any number of networks.
        name: Label of the progress bar; no bar if empty.

    Returns:
        Variables with a leading axis of seeds.
    """
    images, targets = pairs
    per_seed = images.ndim == 5
    chex.assert_equal_shape_prefix([images, targets], 2 if per_seed else 1)
    examples = images.shape[1] if per_seed else len(images)
    steps, trained = settings.steps_on(examples), []
    with loop.bar(name, len(keys) * steps) as bar:
        for group in _groups(keys, network, images.shape[-3:], examples, settings, rates, together):
            own = (images[group.seeds], targets[group.seeds]) if per_seed else pairs
            fixed = {"batch_size": settings.batch_size, "momentum": settings.momentum, "network": group.network}
            fixed |= {"precision": settings.precision}
            state = group.state
            for first, count in loop.calls(bar, steps, per_call=-(-steps // PIECES), weight=len(group.orders)):
                span = jnp.int32(first), jnp.int32(first + count)
                state = _advance(state, group.orders, span, group.plan, own, preprocessing, **fixed)
                if not bar.disable:  # the bar shows steps that are done, not those that are dispatched
                    jax.block_until_ready(state)
            trained.append(state.variables)
    return _joined(trained)


def train_streamed(
    keys: Array,
    network: nn.Module,
    pairs: streaming.Pairs,
    *,
    settings: Settings,
    rates: Sequence[Rate] = (),
    together: int = 0,
    name: str = "",
) -> Variables:
    """Train the same networks as `train`, streaming the pairs from the host.

    Args:
        keys: PRNG keys `(seeds,)`; each network's start and order come from its own key alone.
        network: The architecture.
        pairs: Images and features.
        settings: Steps, batch size and SGD.
        rates: Learning rate and weight decay of each network, one per key; default: the first of the settings.
        together: Networks side by side in one program, each with batches of its own; 0: as many as the memory holds,
            and one on a CPU.
        name: Label of the progress bar; no bar if empty.

    Returns:
        Variables with a leading axis of seeds.
    """
    size, _ = epochs.batch_of(pairs.size, settings.batch_size)
    steps, trained = settings.steps_on(pairs.size), []
    with loop.bar(name, len(keys) * steps) as bar:
        for group in _groups(keys, network, pairs.images.shape[1:], pairs.size, settings, rates, together):
            fixed = {"network": group.network, "momentum": settings.momentum, "precision": settings.precision}
            advance = functools.partial(_advance_fed, pairs.preprocessing, group.plan, **fixed)
            read, _ = streaming.shuffled(group.orders, pairs, batch_size=settings.batch_size)
            per_call = streaming.steps_per_call(pairs, len(group.orders) * size, steps)
            after = None if bar.disable else functools.partial(_update, bar, len(group.orders))
            carry = (group.state, jnp.int32(0))
            state, _ = streaming.run(advance, carry, read, steps=steps, per_call=per_call, after=after)
            trained.append(state.variables)
    return _joined(trained)


class _Group(NamedTuple):
    """Networks that are trained side by side in one program, before their first step.

    Attributes:
        seeds: Which of all networks these are.
        network: The architecture, in the form that suits so many.
        state: Their states, with a leading axis of seeds.
        orders: PRNG keys of their orders `(seeds,)`.
        plan: Constants of their training.
    """

    seeds: slice
    network: nn.Module
    state: inner.State
    orders: Array
    plan: _Plan


def _groups(
    keys: Array,
    network: nn.Module,
    image_shape: tuple[int, ...],
    examples: int,
    settings: Settings,
    rates: Sequence[Rate],
    together: int,
) -> Iterator[_Group]:
    """Start the networks of one group after the other; see `train`."""
    size, _ = epochs.batch_of(examples, settings.batch_size)
    together = together or group_size(network, (size, *image_shape))
    rates = rates or [settings.rates[0]] * len(keys)
    network = _in_parallel(network, together)
    for begin in range(0, len(keys), together):
        seeds = slice(begin, begin + together)
        state, orders = _start(keys[seeds], network=network, image_shape=image_shape, momentum=settings.momentum)
        yield _Group(seeds, network, state, orders, _Plan.of(settings, rates[seeds], examples))


def _joined(groups: Sequence[Variables]) -> Variables:
    """Variables of all groups along one axis of seeds."""
    return groups[0] if len(groups) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *groups)


def _in_parallel(network: nn.Module, together: int) -> nn.Module:
    """The network with the form of its convolutions that suits a vmap over several of them.

    On accelerators XLA's convolution becomes a grouped one, which took twice the time of a product over patches
    (`ssdd_jax.methods.bilevel.forms`).
    """
    if together > 1 and jax.default_backend() != "cpu" and getattr(network, "form", "") == "auto":
        return network.clone(form="patches")
    return network


def _update(bar: tqdm, networks: int, steps: int) -> None:
    bar.update(networks * steps)


@functools.partial(jax.jit, static_argnames=("network", "momentum", "precision"), donate_argnums=2)
def _advance_fed(
    preprocessing: Preprocessing,
    plan: _Plan,
    carry: tuple[inner.State, Array],
    items: tuple[Array, Array],
    count: Array,
    *,
    network: nn.Module,
    momentum: float,
    precision: str,
) -> tuple[inner.State, Array]:
    """Take `count` steps of networks side by side; the carry holds their states and the number of the next step."""

    def update(state: inner.State, rate: Array, step: Array, x: Array, y: Array) -> inner.State:
        sgd = plan.sgd(rate, step, momentum, precision)
        return inner.step(state, preprocessing.images(x), y, settings=sgd, network=network)[0]

    def advance(carry: tuple[inner.State, Array], item: tuple[Array, Array]) -> tuple[inner.State, Array]:
        state, step = carry
        return jax.vmap(update, in_axes=(0, 0, None, 0, 0))(state, plan.rates, step, *item), step + 1

    return streaming.loop(advance, carry, items, count)


@functools.partial(jax.jit, static_argnames=("network", "image_shape", "momentum"))
def _start(
    keys: Array, *, network: nn.Module, image_shape: tuple[int, ...], momentum: float
) -> tuple[inner.State, Array]:
    # A network depends on its own key only, so that groups of any size train the same networks.
    def start(key: Array) -> tuple[inner.State, Array]:
        key_init, key_order = jax.random.split(key)
        variables = models.initialize(key_init, network, image_shape)
        optimizer = inner.optimizer(inner.Settings(momentum=momentum))
        return inner.State(variables, optimizer.init(variables["params"])), key_order

    return jax.vmap(start)(keys)


@functools.partial(jax.jit, static_argnames=("network", "batch_size", "momentum", "precision"), donate_argnums=0)
def _advance(
    state: inner.State,
    keys: Array,
    span: tuple[Array, Array],
    plan: _Plan,
    pairs: tuple[Array, Array],
    preprocessing: Preprocessing,
    *,
    network: nn.Module,
    batch_size: int,
    momentum: float,
    precision: str,
) -> inner.State:
    """Take the steps `span[0] .. span[1] - 1` of networks side by side."""

    def run(state: inner.State, key: Array, rate: Array, images: Array, targets: Array) -> inner.State:
        count = len(images)
        _, per_epoch = epochs.batch_of(count, batch_size)

        def order_of(step: Array) -> Array:
            return epochs.shuffled(jax.random.fold_in(key, step // per_epoch), count=count, batch_size=batch_size)

        def body(step: Array, carry: tuple[inner.State, Array]) -> tuple[inner.State, Array]:
            state, order = carry
            # The networks begin their epochs at the same steps, so that this stays a branch under `vmap`.
            order = lax.cond(step % per_epoch == 0, order_of, lambda _: order, step)
            indices = order[step % per_epoch]
            x = images[indices]
            # uint8 images take a quarter of the memory; only the batch is normalised.
            x = preprocessing.images(x) if x.dtype == jnp.uint8 else x
            sgd = plan.sgd(rate, step, momentum, precision)
            return inner.step(state, x, targets[indices], settings=sgd, network=network)[0], order

        return lax.fori_loop(*span, body, (state, order_of(span[0])))[0]

    # Pairs with a leading axis of seeds differ between networks; others are shared without a copy.
    axis = 0 if pairs[0].ndim == 5 else None
    return jax.vmap(run, in_axes=(0, 0, 0, axis, axis))(state, keys, plan.rates, *pairs)


def fresh(keys: Array, network: nn.Module, image_shape: tuple[int, ...]) -> Variables:
    """Initialise the untrained networks that `train` starts from.

    Args:
        keys: PRNG keys `(seeds,)`.
        network: The architecture.
        image_shape: `(H,W,C)`.

    Returns:
        Variables with a leading axis of seeds.
    """
    state, _ = _start(keys, network=network, image_shape=tuple(image_shape), momentum=0.0)
    return state.variables


def group_size(network: nn.Module, batch_shape: Sequence[int]) -> int:
    """Number of networks that `train` trains side by side by default.

    On a CPU one, which is as fast as several, and compiles one program for any number of networks.

    Args:
        network: The architecture.
        batch_shape: Shape of a batch of network inputs, `(B,H,W,C)`.
    """
    return 1 if jax.default_backend() == "cpu" else side_by_side(network, batch_shape)


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
