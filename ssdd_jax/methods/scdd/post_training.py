"""SC-DD's own post-training: a new network learns from the inverted one on the recovered images.

Zhou, Yin, Shao and Shen, "Self-supervised Dataset Distillation: A Good Compression Is All You Need", 2024, arXiv
2404.07976, as the published code for CIFAR-100 computes it, with one difference: what counts are the weights after the
last epoch, where that code reports the best accuracy on the test images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.methods.scdd import inversion
from ssdd_jax.models.resnet import ResNet, from_params
from ssdd_jax.teacher import network as initializer
from ssdd_jax.training import epochs, transforms

Array = jax.Array
Variables = Any

# Test images per forward pass.
EVAL_BATCH = 256


class Settings(NamedTuple):
    """How a network is trained on recovered images; the defaults are the published ones for CIFAR-100.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images per step.
        learning_rate: AdamW's rate in the first epoch.
        weight_decay: AdamW's decay, of every parameter.
        temperature: What both networks' logits are divided by.
        mixup: Both parameters of the beta distribution of mixup's share; 0 for no mixup.
        padding: Black pixels on every side before the random crop.
        flip: Probability of a horizontal flip.
        rate_epochs: The rate of epoch e is `0.5 (1 + cos(pi e / (2 rate_epochs)))` of the first, and 0 after
            `rate_epochs`: half of it is left at the end, not nothing.
    """

    epochs: int = 200
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    temperature: float = 30.0
    mixup: float = 0.8
    padding: int = 4
    flip: float = 0.5
    rate_epochs: int = 300


class Student(nn.Module):
    """A ResNet and a linear classifier.

    Attributes:
      width: the ResNet's width.
      blocks: its blocks per stage.
      classes: number of classes.
      bottleneck: whether its blocks are bottlenecks.
    """

    width: int
    blocks: tuple[int, ...]
    classes: int
    bottleneck: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps network inputs `(B, H, W, C)` to logits `(B, classes)`."""
        x = ResNet(self.width, self.blocks, self.bottleneck, name="backbone")(x, train=train)
        return nn.Dense(self.classes, name="head")(x)


def distillation_loss(student: Array, teacher: Array, *, temperature: float = 30.0) -> Array:
    """Kullback-Leibler divergence of the student's softened prediction from the teacher's.

    Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, without its factor `temperature ** 2`.

    Args:
        student: Logits `(B,classes)`.
        teacher: Logits `(B,classes)`; they get no gradient.
        temperature: What both are divided by.

    Returns:
        The sum over the classes, mean over the batch, a scalar.
    """
    chex.assert_equal_shape([student, teacher])
    wanted = jax.nn.log_softmax(lax.stop_gradient(teacher) / temperature)
    found = jax.nn.log_softmax(student / temperature)
    return jnp.mean(jnp.sum(jnp.exp(wanted) * (wanted - found), axis=-1))


def rate_factor(epoch: Array, *, rate_epochs: int = 300) -> Array:
    """Share of the first rate in an epoch, a scalar; see `Settings.rate_epochs`."""
    done = jnp.asarray(epoch, jnp.float32)
    return jnp.where(done <= rate_epochs, 0.5 * (1.0 + jnp.cos(jnp.pi * done / (2.0 * rate_epochs))), 0.0)


def optimizer(settings: Settings, steps_per_epoch: int) -> optax.GradientTransformation:
    """AdamW, its rate the same throughout an epoch."""

    def schedule(step: Array) -> Array:
        return settings.learning_rate * rate_factor(step // steps_per_epoch, rate_epochs=settings.rate_epochs)

    return optax.adamw(schedule, weight_decay=settings.weight_decay)


def train(
    key: Array,
    images: Array,
    network: inversion.Network,
    *,
    low: Array,
    width: int,
    blocks: tuple[int, ...],
    classes: int,
    bottleneck: bool = False,
    settings: Settings = Settings(),
) -> Variables:
    """Train one network by distillation from the inverted one, which sees the same cropped and mixed images.

    A pure function, to be vmapped over keys.

    Args:
        key: PRNG key.
        images: Recovered images `(P,H,W,C)`, network inputs.
        network: The teacher, in eval mode.
        low: Network input of black `(C,)`.
        width: The student's width.
        blocks: Its blocks per stage.
        classes: Number of classes, those of the teacher's probe.
        bottleneck: Whether its blocks are bottlenecks.
        settings: How it is trained.

    Returns:
        `params` and `batch_stats` of a `Student` after the last epoch.

    Raises:
        ValueError: If the probe has another number of classes.
    """
    chex.assert_rank([images, low], [4, 1])
    if network.probe.shape[1] != classes:
        raise ValueError(f"the probe knows {network.probe.shape[1]} classes, not {classes}")
    key_init, key_order, key_augment = jax.random.split(key, 3)
    student: Any = Student(width, tuple(blocks), classes, bottleneck)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    variables = initializer.initialize(key_init, student, shape)
    adamw = optimizer(settings, epochs.batch_of(len(images), settings.batch_size)[1])

    def loss(params: Any, stats: Any, x: Array) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": stats}
        found, updated = student.apply(variables, x, train=True, mutable=["batch_stats"])
        wanted = inversion.logits(network, x)
        return distillation_loss(found, wanted, temperature=settings.temperature), updated["batch_stats"]

    def step(carry: tuple[Array, Any, Any], rows: Array) -> tuple[Array, Any, Any]:
        done, variables, opt_state = carry
        x = _augmented(jax.random.fold_in(key_augment, done), images[rows], low, settings)
        params = variables["params"]
        gradient, stats = jax.grad(loss, has_aux=True)(params, variables["batch_stats"], x)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of an integer
            updates, opt_state = adamw.update(gradient, opt_state, params)
        return done + 1, {"params": optax.apply_updates(params, updates), "batch_stats": stats}, opt_state

    carry = (jnp.zeros((), jnp.int32), variables, adamw.init(variables["params"]))
    sizes = {"count": len(images), "batch_size": settings.batch_size, "epochs": settings.epochs}
    return epochs.run(key_order, carry, step, **sizes)[1]


@jax.jit
def accuracy(variables: Variables, images: Array, labels: Array, preprocessing: Preprocessing | None = None) -> Array:
    """Share of the labels that a trained network's own classifier predicts.

    Args:
        variables: From `train`.
        images: Network inputs `(m,H,W,C)`, or with `preprocessing` uint8 images, which are normalised batch by batch.
        labels: int32 `(m,)`.
        preprocessing: Constants of the data set.

    Returns:
        Percent, a scalar.
    """
    chex.assert_rank([images, labels], [4, 1])
    chex.assert_equal_shape_prefix([images, labels], 1)
    params = variables["params"]
    backbone = from_params(params["backbone"])
    student = Student(backbone.width, backbone.blocks, params["head"]["bias"].shape[0], backbone.bottleneck)

    def predicted(batch: Array) -> Array:
        x = batch if preprocessing is None else preprocessing.images(batch)
        return jnp.argmax(jnp.asarray(student.apply(variables, x, train=False)), -1)

    count = len(images)
    size = min(EVAL_BATCH, count)
    padded = jnp.pad(images, ((0, -count % size), *((0, 0),) * 3))
    found = lax.map(predicted, padded.reshape(-1, size, *images.shape[1:])).reshape(-1)[:count]
    return 100.0 * jnp.mean((found == labels).astype(jnp.float32))


def _augmented(key: Array, images: Array, low: Array, settings: Settings) -> Array:
    """Cropped, flipped and mixed images `(B,H,W,C)`."""
    key_crop, key_flip, key_mixup = jax.random.split(key, 3)
    x = transforms.random_crop(key_crop, images, low, padding=settings.padding)
    x = transforms.random_flip(key_flip, x, probability=settings.flip)
    return transforms.mixup(key_mixup, x, concentration=settings.mixup) if settings.mixup else x
