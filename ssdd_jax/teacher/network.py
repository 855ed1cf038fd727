"""Network of the teacher's training (backbone and projector), and feature extraction with the trained backbone."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssdd_jax.data.preprocess import from_bytes
from ssdd_jax.models import chunks, frozen
from ssdd_jax.models.frozen import Frozen
from ssdd_jax.models.norm import BatchNorm
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.runtime import devices, files

Array = jax.Array
Variables = dict[str, Any]

# Images per forward pass on a CPU, at 64x64; 32 took 3 % longer, all 256 took 25 % longer.
EVAL_CHUNK = 16
# Fewest images per forward pass, for large images.
LEAST_CHUNK = 2

# Images per batch of features, and the side from which on it is in inverse proportion to their pixels: a transformer's
# attention on 256 images of 518x518 would take tens of gigabytes.
BATCH = 256
BATCH_SIDE = 224

# The variance of PyTorch's linear layers.
_linear_init = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "normal")


class Projector(nn.Module):
    """Three linear layers with batch norm and ReLU between them.

    The layers have no biases: batch norm, and after the last layer the loss, subtract the mean over the batch.

    Attributes:
        hidden: Width of both hidden layers.
        output: Number of projected dimensions P.
    """

    hidden: int
    output: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map features `(B, D)` to projections `(B, P)`."""
        for layer in ("1", "2"):
            x = nn.Dense(self.hidden, use_bias=False, kernel_init=_linear_init, name="linear" + layer)(x)
            x = nn.relu(BatchNorm(name="norm" + layer)(x, use_running_average=not train))
        return nn.Dense(self.output, use_bias=False, kernel_init=_linear_init, name="linear3")(x)


class Network(nn.Module):
    """Backbone followed by the projector, as used in training.

    Attributes:
        width: The backbone's width.
        blocks: The backbone's blocks per stage.
        hidden: The projector's hidden width.
        output: Number of projected dimensions P.
    """

    width: int
    blocks: tuple[int, ...]
    hidden: int
    output: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map normalised images `(B, H, W, C)` to projections `(B, P)`."""
        x = ResNet(self.width, self.blocks, name="backbone")(x, train=train)
        return Projector(self.hidden, self.output, name="projector")(x, train=train)


def initialize(key: Array, network: nn.Module, image_shape: tuple[int, int, int]) -> Variables:
    """Initialise variables with the distribution of `network.init`, from a single normal draw.

    Each random kernel of `network.init` compiles a generator of its own, which takes five seconds or more on
    two CPU cores; this takes less than one.

    Args:
        key: PRNG key.
        network: A module whose call takes `train`.
        image_shape: `(H, W, C)`.

    Returns:
        `params` and `batch_stats`, float32.
    """
    # Abstract evaluation gives the shapes without compiling a generator.
    zeros = jnp.zeros((1, *image_shape))
    shapes = jax.eval_shape(partial(network.init, train=False), key, zeros)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    kernels = [leaf for _, leaf in leaves if leaf.ndim > 1]
    normal = iter(_split(jax.random.normal(key, (sum(leaf.size for leaf in kernels),)), kernels))
    # Vectors are the parameters and statistics of batch norm, and biases: their initial values are constants.
    constants = {"scale": jnp.ones, "var": jnp.ones, "bias": jnp.zeros, "mean": jnp.zeros}
    values = []
    for path, leaf in leaves:
        if leaf.ndim > 1:
            values.append(next(normal) * _kernel_std(leaf.shape))
        else:
            values.append(constants[path[-1].key](leaf.shape, leaf.dtype))
    return jax.tree.unflatten(structure, values)


def normalize(images: Array, mean: Sequence[float] | Array, std: Sequence[float] | Array) -> Array:
    """Subtract each channel's mean and divide by its standard deviation.

    Args:
        images: `(..., C)` in [0, 1].
        mean: Mean of each channel `(C,)`.
        std: Standard deviation of each channel `(C,)`.

    Returns:
        An array with the shape and dtype of `images`.
    """
    shape = (1,) * (images.ndim - 1) + (images.shape[-1],)
    mean, std = (jnp.asarray(values, images.dtype).reshape(shape) for values in (mean, std))
    return (images - mean) / std


def load(folder: pathlib.Path) -> tuple[Variables, dict[str, Any]]:
    """Load the variables of a run's trained teacher from `folder`, and the content of its `teacher.json`.

    Raises:
        UserError: If a file is missing or damaged.
    """
    about = files.read_sealed(folder / "teacher.json")
    return files.read_tensors(folder / "teacher.safetensors", about["sha256"]), about


def backbone(variables: Variables) -> Variables:
    """Select the variables of the backbone from those of a `Network`."""
    return {name: collection["backbone"] for name, collection in variables.items()}


def features_of_inputs(backbone: Variables | Frozen, x: Array) -> Array:
    """Compute features of normalised images, in evaluation mode, without the projector.

    Args:
        backbone: `params` and `batch_stats` of a `ResNet`, or a `models.frozen.Frozen` network.
        x: Images `(n, H, W, C)`, normalised as in training.

    Returns:
        Features `(n, D)`, float32; `D = 8 * width` of a `ResNet` of basic blocks.
    """
    network = frozen.of(backbone)

    def apply(images: Array) -> Array:
        return jnp.asarray(network.apply(images))

    # On a CPU, activations of a small chunk stay in the cache.
    return chunks.through(apply, x, _chunk_size(network, x))


def _chunk_size(network: Frozen, x: Array) -> int:
    """Number of images per forward pass on a CPU, in inverse proportion to their pixels."""
    return max(LEAST_CHUNK, min(EVAL_CHUNK, EVAL_CHUNK * 64**2 // _pixels(network, x.shape)))


def batch_of(variables: Variables | Frozen, image_shape: Sequence[int]) -> int:
    """Return the number of images in a batch of `feature_batches`.

    Args:
        variables: `params` and `batch_stats` of a backbone, or a `models.frozen.Frozen` network.
        image_shape: `(H,W,C)` of the images.
    """
    return max(1, min(BATCH, BATCH * BATCH_SIDE**2 // _pixels(frozen.of(variables), image_shape)))


def _pixels(network: Frozen, shape: Sequence[int]) -> int:
    """Pixels of one input of the network, for images of a shape that ends in `(H,W,C)`."""
    return network.size**2 or shape[-3] * shape[-2]


def features(
    variables: Variables | Frozen,
    images: Array | np.ndarray,
    *,
    mean: Sequence[float] | Array,
    std: Sequence[float] | Array,
    batch_size: int = 0,
) -> np.ndarray:
    """Compute features of images with a trained teacher, in evaluation mode, without the projector.

    Args:
        variables: `params` and `batch_stats` of a `Network`, or a `models.frozen.Frozen` one.
        images: uint8 `(n, H, W, C)`.
        mean: Mean of each channel `(C,)`, as in training.
        std: Standard deviation of each channel `(C,)`, as in training.
        batch_size: Images per batch; 0 for `batch_of`.

    Returns:
        Features `(n, D)`, float32; `D = 8 * width` of a `Network`.
    """
    return np.concatenate(list(feature_batches(variables, images, mean=mean, std=std, batch_size=batch_size)))


def feature_batches(
    variables: Variables | Frozen,
    images: Array | np.ndarray,
    *,
    mean: Sequence[float] | Array,
    std: Sequence[float] | Array,
    batch_size: int = 0,
    mesh: Mesh | None = None,
) -> Iterator[np.ndarray]:
    """Yield the result of `features` batch by batch: `(batch_size, D)`, and fewer for the last batch.

    One compiled program serves all batches, as the last one is padded. With a mesh, each of its devices has
    `batch_size` of the images, and every process gets all features.
    """
    chex.assert_rank(images, 4)
    constants = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    network = variables if isinstance(variables, Frozen) else backbone(variables)
    # Placed once: the variables would otherwise be transferred with every batch.
    arguments = devices.place(mesh, (jax.tree.map(jnp.asarray, network), *constants))
    batch_size = (batch_size or batch_of(network, images.shape[1:])) * (mesh.size if mesh else 1)
    # Of several processes each reads the images of its own devices.
    rows = devices.rows(mesh, batch_size, everywhere=True)
    own = rows.own.stop - rows.own.start
    for begin in range(0, len(images), batch_size):
        batch = np.asarray(images[begin + rows.own.start : begin + rows.own.stop])
        padded = np.pad(batch, ((0, own - len(batch)), (0, 0), (0, 0), (0, 0)))
        found = _features_of_bytes(rows.place(padded[None]), *arguments, mesh=mesh)
        yield np.asarray(found)[: len(images) - begin]


@partial(jax.jit, static_argnames="mesh")
def _features_of_bytes(
    images: Array, backbone: Variables | Frozen, mean: Array, std: Array, *, mesh: Mesh | None
) -> Array:
    """Features `(B,D)` of one batch, images `(1,B,H,W,C)`."""
    inputs = from_bytes(devices.over_all(mesh, images[0]), mean, std)
    return devices.replicated(mesh, features_of_inputs(backbone, inputs))


def _kernel_std(shape: tuple[int, ...]) -> float:
    """Initial standard deviation of a kernel: `(h, w, I, O)` of a convolution, `(I, O)` of a linear layer."""
    # He et al. with fan-out for convolutions; for linear layers PyTorch's variance.
    if len(shape) == 4:
        height, width, _, outputs = shape
        return math.sqrt(2.0 / (height * width * outputs))
    return math.sqrt(1.0 / (3.0 * shape[0]))


def _split(values: Array, leaves: Sequence[jax.ShapeDtypeStruct]) -> list[Array]:
    """Split `(n,)` into arrays of the leaves' shapes."""
    ends = [sum(leaf.size for leaf in leaves[: i + 1]) for i in range(len(leaves) - 1)]
    parts = jnp.split(values, ends)
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
