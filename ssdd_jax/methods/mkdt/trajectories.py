"""Trajectories of experts on disk: their layout, and the feed of MKDT's outer steps.

A trajectory is the parameters of one expert at the start and after every epoch (MKDT, section 4.2): a float32 array
`(epochs+1,P)`, one file per expert.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import inner
from ssdd_jax.data import mapped
from ssdd_jax.errors import StoredError, UserError
from ssdd_jax.models import convnet
from ssdd_jax.runtime import files

Array = jax.Array


class Settings(NamedTuple):
    """Settings of the training of experts.

    Attributes:
        count: Number of experts.
        epochs: Passes over the data; a trajectory has `epochs + 1` snapshots.
        widths: Channels of each block.
        norm: `instance` or `batch`; the running statistics of batch norm are not stored.
        batch_size: Images per step.
        vectorize: Number of experts that are trained side by side.
        inner: Rate, momentum and weight decay of SGD.
    """

    count: int = 100  # type: ignore[assignment]  # instead of the tuple's method
    epochs: int = 3
    widths: tuple[int, ...] = (128, 128, 128)
    norm: str = "instance"
    batch_size: int = 256
    vectorize: int = 1
    inner: inner.Settings = inner.Settings(0.1, 0.9, 1e-4)


def numbers(settings: Settings, image_shape: tuple[int, ...], dim: int) -> int:
    """Number of parameters P of one student for images `(H,W,C)` and targets of length `dim`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_like(settings, image_shape, dim)))


def bytes_needed(settings: Settings, image_shape: tuple[int, ...], dim: int) -> int:
    """Size of all trajectories on disk in bytes: `count (epochs + 1) P` float32 numbers."""
    return settings.count * (settings.epochs + 1) * numbers(settings, image_shape, dim) * 4


def _like(settings: Settings, image_shape: tuple[int, ...], dim: int) -> Any:
    """Return the abstract parameters of one student."""
    network = convnet.ConvNet(tuple(settings.widths), dim, settings.norm)
    return jax.eval_shape(lambda: convnet.initialize(jax.random.key(0), network, image_shape)["params"])


def flatten(params: Any) -> Array:
    """Concatenate all parameters into a vector: layers by name, arrays of a layer by name, each in C order.

    Args:
        params: Parameters of a `ConvNet`.

    Returns:
        float32 `(P,)`: with instance norm `conv0` (`bias`, `kernel`), `conv1`, ..., `fc`, `in0` (`bias`, `scale`), ...
    """
    return jnp.concatenate([leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(params)])


def unflatten(vector: Array, settings: Settings, image_shape: tuple[int, ...], dim: int) -> Any:
    """Invert `flatten`.

    Args:
        vector: Parameters `(P,)`.
        settings: Settings of the students.
        image_shape: `(H,W,C)`.
        dim: Length D of a target.

    Returns:
        `params` of a `ConvNet`, in the vector's precision.
    """
    leaves, structure = jax.tree.flatten(_like(settings, image_shape, dim))
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    chex.assert_shape(vector, (sum(sizes),))
    parts = jnp.split(vector, np.cumsum(sizes)[:-1].tolist())
    return jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])


def file_name(expert: int) -> str:
    """Name the file of the trajectory of one expert."""
    return f"expert_{expert:04d}.npy"


@dataclasses.dataclass(frozen=True)
class Store:
    """Trajectories in a folder: `expert_0000.npy` and so on, float32 `(epochs+1,P)`, and `losses.npy`, float32 `(n,)`.

    Attributes:
        folder: The folder.
    """

    folder: pathlib.Path

    def path(self, expert: int) -> pathlib.Path:
        """Path of the trajectory of one expert."""
        return self.folder / file_name(expert)

    def count(self) -> int:
        """Number of trajectories in the folder; files are written atomically, so that each is complete."""
        return sum(1 for _ in self.folder.glob("expert_*.npy"))

    def read(self, expert: int, epoch: int) -> np.ndarray:
        """Read one snapshot without the rest of the trajectory.

        Args:
            expert: Index of the expert.
            epoch: Number of epochs before the snapshot; 0 is the start.

        Returns:
            Parameters, float32 `(P,)`, in the order of `flatten`.

        Raises:
            UserError: If the file is missing or damaged.
        """
        # A copy, so that the file is closed again.
        return np.array(self.open(expert)[epoch])

    def losses(self) -> np.ndarray:
        """Read the mean over the experts of `image_losses` after the first epoch, float32 `(n,)`.

        MKDT starts from the images with the highest losses.

        Raises:
            UserError: If the file is missing or damaged.
        """
        return files.read_array(self.folder / "losses.npy")

    def open(self, expert: int) -> np.ndarray:
        """Map one trajectory `(epochs+1,P)` from the disk.

        Raises:
            StoredError: If the file is missing or damaged.
        """
        try:
            return mapped.read(self.path(expert))
        except UserError as error:
            raise StoredError(f"{error}; delete it and start again") from None


def is_done(store: Store, group: range, expected: tuple[int, int] | None) -> bool:
    """Return whether a group's losses, and its trajectories if their shape is `expected`, are complete."""
    if not (group_losses(store, group).exists() or (store.folder / "losses.npy").exists()):
        return False
    if expected is None:
        return True
    # A shape that differs means other settings: matching such experts would fail much later.
    existing = [expert for expert in group if store.path(expert).exists()]
    for expert in existing:
        shape = store.open(expert).shape
        if shape != expected:
            raise UserError(
                f"{store.path(expert)} holds {shape} numbers, and these settings make {expected}: delete {store.folder}"
            )
    return len(existing) == len(group)


def group_losses(store: Store, group: range) -> pathlib.Path:
    """Path of the sum of a group's losses, float64 `(n,)`, which exists until `merge`."""
    return store.folder / f"group_{group[0]:04d}_{group[-1]:04d}.npy"


def merge(store: Store, groups: Sequence[range]) -> None:
    """Combine the groups' losses into `losses.npy`, and delete the group files."""
    # The group files are deleted only after `losses.npy` is written, so that a kill loses nothing.
    path = store.folder / "losses.npy"
    if not path.exists():
        total = np.sum([files.read_array(group_losses(store, group)) for group in groups], axis=0)
        files.write_array(path, (total / sum(map(len, groups))).astype(np.float32))
    for leftover in store.folder.glob("group_*.npy*"):
        leftover.unlink()


def feed(
    store: Store, settings: Settings, *, max_start_epoch: int, expert_epochs: int, seed: int
) -> Callable[[int, int], dict[str, np.ndarray]]:
    """Build the feed of start and target parameters, read from the disk as the outer steps need them.

    Args:
        store: The trajectories.
        settings: Settings of the experts.
        max_start_epoch: The start is drawn uniformly from the snapshots 0 to `max_start_epoch - 1`.
        expert_epochs: Number of epochs from the start to the target.
        seed: Seed of the choice of expert and epoch, which depends on it and on the step number alone.

    Returns:
        `(done, count) -> {"start": (count,P), "target": (count,P)}`, float32, for the steps that follow the
        first `done`.

    Raises:
        ValueError: If a trajectory is too short for these epochs.
    """
    if max_start_epoch < 1 or expert_epochs < 1 or max_start_epoch - 1 + expert_epochs > settings.epochs:
        raise ValueError(
            f"a start before epoch {max_start_epoch} and {expert_epochs} epochs from there need experts of "
            f"{max_start_epoch - 1 + expert_epochs} epochs, these have {settings.epochs}"
        )

    def read(done: int, count: int) -> dict[str, np.ndarray]:
        starts, targets = [], []
        for step in range(done, done + count):
            # A generator per step: a resumed run draws the same trajectories without replaying the earlier steps.
            generator = np.random.default_rng((seed, step))
            expert, epoch = int(generator.integers(settings.count)), int(generator.integers(max_start_epoch))
            starts.append(store.read(expert, epoch))
            targets.append(store.read(expert, epoch + expert_epochs))
        return {"start": np.stack(starts), "target": np.stack(targets)}

    return read


def random_feed(
    settings: Settings, image_shape: tuple[int, ...], dim: int
) -> Callable[[int, int], dict[str, np.ndarray]]:
    """Build a feed like that of `feed` with random parameters `(count,P)` of a realistic scale, for the dry run."""
    size = numbers(settings, image_shape, dim)
    # Scaled like trained weights, so that the unrolled steps stay finite.
    ends = np.random.default_rng(1).standard_normal((2, size), np.float32) * np.float32(0.02)

    def items(done: int, count: int) -> dict[str, np.ndarray]:
        return {name: np.broadcast_to(end, (count, size)) for name, end in zip(("start", "target"), ends, strict=True)}

    return items
