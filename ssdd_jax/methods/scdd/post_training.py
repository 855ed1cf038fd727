"""SC-DD's post-training: distil the inverted network into a new one on the recovered images.

Zhou, Yin, Shao and Shen, "Self-supervised Dataset Distillation: A Good Compression Is All You Need", 2024, arXiv
2404.07976, as the published code for CIFAR-100 computes it, but for four differences. The weights after the last epoch
are evaluated, whereas that code reports the best accuracy on the test images over all epochs. The teacher normalises by
its running statistics; there it is left in training mode, so that soft labels depend on the batch, and the statistics
drift (the code for ImageNet-1K does as this one). The last batch of an epoch is filled up instead of smaller. And the
images are not written as JPEG in between.
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
    """Settings of the training on recovered images; the defaults are the published ones for CIFAR-100.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images per step.
        learning_rate: AdamW's rate in the first epoch.
        weight_decay: AdamW's decay, of every parameter.
        temperature: Divisor of both networks' logits.
        mixup: Both parameters of the beta distribution of the mixup coefficient; 0 for no mixup.
        padding: Black pixels on every side before the random crop.
        flip: Probability of a horizontal flip.
        rate_epochs: The rate of epoch e is the first rate times `0.5 (1 + cos(pi e / (2 rate_epochs)))`, and 0 after
            `rate_epochs`. This is half a cosine decay: in epoch `rate_epochs` half of the rate is left.
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
        width: Width of the ResNet.
        blocks: Blocks per stage.
        classes: Number of classes.
        bottleneck: Whether the blocks are bottlenecks.
    """

    width: int
    blocks: tuple[int, ...]
    classes: int
    bottleneck: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map network inputs `(B,H,W,C)` to logits `(B,classes)`."""
        x = ResNet(self.width, self.blocks, self.bottleneck, name="backbone")(x, train=train)
        return nn.Dense(self.classes, name="head")(x)


def distillation_loss(student: Array, teacher: Array, *, temperature: float = 30.0) -> Array:
    """Kullback-Leibler divergence from the teacher's to the student's softened prediction.

    Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, without its factor `temperature ** 2`.

    Args:
        student: Logits `(B,classes)`.
        teacher: Logits `(B,classes)`; they receive no gradient.
        temperature: Divisor of the logits.

    Returns:
        Sum over the classes and mean over the batch, a scalar.
    """
    chex.assert_equal_shape([student, teacher])
    teacher_log = jax.nn.log_softmax(lax.stop_gradient(teacher) / temperature)
    student_log = jax.nn.log_softmax(student / temperature)
    return jnp.mean(jnp.sum(jnp.exp(teacher_log) * (teacher_log - student_log), axis=-1))


def rate_factor(epoch: Array, *, rate_epochs: int = 300) -> Array:
    """Compute the factor of the first rate in an epoch, a scalar; see `Settings.rate_epochs`."""
    done = jnp.asarray(epoch, jnp.float32)
    return jnp.where(done <= rate_epochs, 0.5 * (1.0 + jnp.cos(jnp.pi * done / (2.0 * rate_epochs))), 0.0)


def optimizer(settings: Settings, steps_per_epoch: int) -> optax.GradientTransformation:
    """AdamW with a rate that is constant within an epoch."""

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
    """Train one network by distillation from the inverted one, which receives the same augmented images.

    This is a pure function that can be vmapped over keys.

    Args:
        key: PRNG key.
        images: Recovered images `(P,H,W,C)`, network inputs.
        network: The teacher, in eval mode.
        low: Network input of black `(C,)`.
        width: The student's width.
        blocks: The student's blocks per stage.
        classes: Number of classes, equal to that of the teacher's probe.
        bottleneck: Whether the student's blocks are bottlenecks.
        settings: Settings of the training.

    Returns:
        `params` and `batch_stats` of a `Student` after the last epoch.

    Raises:
        ValueError: If the number of classes differs from that of the probe.
    """
    chex.assert_rank([images, low], [4, 1])
    if network.probe.shape[1] != classes:
        raise ValueError(f"the probe has {network.probe.shape[1]} classes, not {classes}")
    # Separate keys for the initialization, the order of the images, and their augmentation.
    key_init, key_order, key_augment = jax.random.split(key, 3)
    student: Any = Student(width, tuple(blocks), classes, bottleneck)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    variables = initializer.initialize(key_init, student, shape)
    adamw = optimizer(settings, epochs.batch_of(len(images), settings.batch_size)[1])

    def loss(params: Any, stats: Any, x: Array) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": stats}
        predicted, updated = student.apply(variables, x, train=True, mutable=["batch_stats"])
        soft_labels = inversion.logits(network, x)
        return distillation_loss(predicted, soft_labels, temperature=settings.temperature), updated["batch_stats"]

    def step(carry: tuple[Array, Any, Any], indices: Array) -> tuple[Array, Any, Any]:
        done, variables, opt_state = carry
        # Folded from the number of steps, so that every batch gets a new augmentation.
        x = _augmented(jax.random.fold_in(key_augment, done), images[indices], low, settings)
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
    """Compute the accuracy of a trained network's classifier.

    Args:
        variables: Output of `train`.
        images: Network inputs `(m,H,W,C)`, or with `preprocessing` uint8 images, which are normalised batch by batch.
        labels: int32 `(m,)`.
        preprocessing: Constants of the data set.

    Returns:
        Percent, a scalar.
    """
    chex.assert_rank([images, labels], [4, 1])
    chex.assert_equal_shape_prefix([images, labels], 1)
    # The architecture is recovered from the shapes of the parameters.
    params = variables["params"]
    backbone = from_params(params["backbone"])
    student = Student(backbone.width, backbone.blocks, params["head"]["bias"].shape[0], backbone.bottleneck)

    def predicted(batch: Array) -> Array:
        x = batch if preprocessing is None else preprocessing.images(batch)
        return jnp.argmax(jnp.asarray(student.apply(variables, x, train=False)), -1)

    # The last batch is padded so that all have the same shape; predictions of the padding are cut off.
    count = len(images)
    size = min(EVAL_BATCH, count)
    padded = jnp.pad(images, ((0, -count % size), *((0, 0),) * 3))
    predictions = lax.map(predicted, padded.reshape(-1, size, *images.shape[1:])).reshape(-1)[:count]
    return 100.0 * jnp.mean((predictions == labels).astype(jnp.float32))


def _augmented(key: Array, images: Array, low: Array, settings: Settings) -> Array:
    """Crop, flip and mix images `(B,H,W,C)`."""
    key_crop, key_flip, key_mixup = jax.random.split(key, 3)
    x = transforms.random_crop(key_crop, images, low, padding=settings.padding)
    x = transforms.random_flip(key_flip, x, probability=settings.flip)
    return transforms.mixup(key_mixup, x, concentration=settings.mixup) if settings.mixup else x
