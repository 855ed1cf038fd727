"""Small builders that several tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import config, data, decoder, inner, methods
from ssdd_jax.data import preprocess
from ssdd_jax.methods.base import Run
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.runtime import files
from ssdd_jax.runtime.workdir import Workdir
from ssdd_jax.stages import features, samples
from ssdd_jax.teacher import network as teacher_network

WIDTHS = (4, 8)
SIZE, CHANNELS, DIM = 8, 3, 6
CLASSES = 3


def relative(found, expected):
    """Distance over the expected norm, in float64."""
    found, expected = (np.asarray(value, np.float64) for value in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def normal(seed, *shape):
    """Gaussian float32."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pairs(seed=0, count=8):
    """Images `(count,8,8,3)` and targets `(count,6)`."""
    return normal(seed, count, SIZE, SIZE, CHANNELS), normal(seed + 1, count, DIM)


def network(seed):
    """A fresh inner model of the pairs' shapes."""
    return _init(jax.random.key(seed))


_init = jax.jit(lambda key: inner.init(key, (SIZE, SIZE, CHANNELS), DIM, widths=WIDTHS))


def params(*, M=5, U=4, V=3, views=("rot0", "rot90"), base=4, size=SIZE, channels=CHANNELS, dim=DIM, seed=0):
    """Decoder parameters with random numbers in every place."""
    return decoder.Params(
        image_bases=normal(seed, U, base, base, channels),
        image_coefficients=normal(seed + 1, M, U),
        image_mean=normal(seed + 2, base, base, channels),
        feature_bases=normal(seed + 3, V, dim),
        feature_coefficients=normal(seed + 4, len(views), M, V),
        feature_mean=normal(seed + 5, dim),
        image_size=(size, size),
        views=views,
    )


def bytes_and_features(count=40, seed=0, size=SIZE, channels=CHANNELS, dim=DIM):
    """uint8 images and float32 features that depend on them."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    mixing = generator.normal(size=(size * size * channels, dim)) / 50
    features = np.tanh((images.reshape(count, -1) / 255.0 - 0.5) @ mixing) + 0.5
    return images, features.astype(np.float32)


def small_config(method="boost"):
    """A config that runs in a moment on 8x8 images."""
    chosen = config.default()
    chosen.method = method
    chosen.storage.N = 6
    chosen.storage.base_size = 4
    chosen.storage.hidden = 2
    chosen.views = ("rot0", "rot90")
    chosen.student.widths = WIDTHS
    chosen.pool.size = 2
    chosen.pool.steps = 4
    chosen.distill.steps = 3
    chosen.distill.batch_size = 8
    chosen.distill.weight_decay = 0.1
    chosen.approximate.steps = 20
    chosen.teacher.blocks = (1, 1, 1, 1)
    chosen.teacher.width = 2
    chosen.experts.count = 2
    chosen.experts.widths = WIDTHS
    chosen.experts.batch_size = 16
    chosen.experts.vectorize = 2
    chosen.mkdt.unroll = 2
    chosen.mkdt.batch_size = 4
    chosen.scdd.group_size = 6
    chosen.scdd.jitter = 0  # so that a test can say what the first loss is
    chosen.encoder.copies = 2
    chosen.encoder.extend_every = 1
    chosen.evaluate.probe_steps = 20
    chosen.evaluate.probe_batch_size = 16
    return chosen


def problem(chosen):
    """The problem of `dataset` with the teacher of the config."""
    return methods.Problem((SIZE, SIZE, CHANNELS), 8 * chosen.teacher.width, 40, CLASSES, network=True)


def dataset(images=None):
    """40 images, the first ten of them again as test images, in three classes that take turns."""
    images = bytes_and_features()[0] if images is None else images
    label = np.arange(len(images), dtype=np.int32) % CLASSES
    return data.Dataset("made", images, label, images[:10], label[:10], ("a", "b", "c"))


@functools.cache
def _teacher_variables(width, blocks):
    shape = (SIZE, SIZE, CHANNELS)
    return jax.device_get(teacher_network.initialize(jax.random.key(8), ResNet(width, blocks), shape))


def make_run(folder, chosen):
    """A run of `dataset` in an empty folder with an untrained teacher, and nothing else yet; see `small_config`."""
    images, work, options = dataset(), Workdir(folder), chosen.teacher
    variables = _teacher_variables(options.width, tuple(options.blocks))
    checksum = files.write_tensors(
        work.teacher / "teacher.safetensors", {name: {"backbone": tree} for name, tree in variables.items()}
    )
    mean, std = preprocess.channel_moments(images.train_images)
    about = {"blocks": list(options.blocks), "width": options.width, "mean": mean.tolist(), "std": std.tolist()}
    files.write_json(work.teacher / "teacher.json", about | {"sha256": checksum})
    asked = problem(chosen)
    return Run(chosen, work, images, asked, methods.make(chosen, asked), lambda line: None)


def prepare(run):
    """Everything before the distillation; returns the run with the sizes that its data decide."""
    features.compute(run)
    for stage in run.method.stages:
        stage.run(run)
    samples.choose(run)
    return samples.settled(run)
