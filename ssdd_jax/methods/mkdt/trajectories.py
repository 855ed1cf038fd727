"""Trajectories of experts on disk: their layout, and what the outer steps of MKDT read of them.

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
from ssdd_jax.errors import UserError
from ssdd_jax.models import convnet
from ssdd_jax.runtime import files

Array = jax.Array


class Settings(NamedTuple):
    """How experts are trained.

    Attributes:
        count: Number of experts.
        epochs: Passes over the data; a trajectory has one snapshot more.
        widths: Channels of each block.
        norm: `instance` or `batch`; of batch norm's running statistics nothing is kept.
        batch_size: Images per step.
        vectorize: How many experts are trained side by side.
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
    """Parameters P of one student for images `(H,W,C)` and targets of length `dim`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_like(settings, image_shape, dim)))


def bytes_needed(settings: Settings, image_shape: tuple[int, ...], dim: int) -> int:
    """Bytes of all trajectories on disk: `count (epochs + 1) P` numbers of float32."""
    return settings.count * (settings.epochs + 1) * numbers(settings, image_shape, dim) * 4


def _like(settings: Settings, image_shape: tuple[int, ...], dim: int) -> Any:
    """Shapes of one student's parameters."""
    network = convnet.ConvNet(tuple(settings.widths), dim, settings.norm)
    return jax.eval_shape(lambda: convnet.initialize(jax.random.key(0), network, image_shape)["params"])


def flatten(params: Any) -> Array:
    """All parameters as one vector: layers by name, in each its arrays by name, in each row by row.

    Args:
        params: Of a `ConvNet`.

    Returns:
        float32 `(P,)`: with instance norm `conv0` (`bias`, `kernel`), `conv1`, ..., `fc`, `in0` (`bias`, `scale`), ...
    """
    return jnp.concatenate([leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(params)])


def unflatten(vector: Array, settings: Settings, image_shape: tuple[int, ...], dim: int) -> Any:
    """The parameters that `flatten` made a vector of.

    Args:
        vector: `(P,)`.
        settings: Of the students.
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


@dataclasses.dataclass(frozen=True)
class Store:
    """Trajectories in a folder: `expert_0000.npy` and so on, float32 `(epochs+1,P)`, and `losses.npy`, float32 `(n,)`.

    Attributes:
        folder: Where they are.
    """

    folder: pathlib.Path

    def path(self, expert: int) -> pathlib.Path:
        """The file of one trajectory."""
        return self.folder / f"expert_{expert:04d}.npy"

    def count(self) -> int:
        """How many trajectories are there; each file is written whole."""
        return sum(1 for _ in self.folder.glob("expert_*.npy"))

    def read(self, expert: int, epoch: int) -> np.ndarray:
        """One snapshot; nothing else of the trajectory is read from the disk.

        Args:
            expert: Which expert.
            epoch: After how many epochs; 0 is the start.

        Returns:
            Parameters float32 `(P,)` in the order of `flatten`.

        Raises:
            UserError: If the file is missing or damaged.
        """
        return np.array(self.open(expert)[epoch])

    def losses(self) -> np.ndarray:
        """Mean over the experts of `image_losses` after the first epoch, float32 `(n,)`: MKDT starts from the highest.

        Raises:
            UserError: If the file is missing or damaged.
        """
        return files.read_array(self.folder / "losses.npy")

    def open(self, expert: int) -> np.ndarray:
        """One trajectory `(epochs+1,P)`, mapped from the disk.

        Raises:
            UserError: If the file is missing or damaged.
        """
        path = self.path(expert)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: delete {self.folder} and start again") from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it and start again") from None


def is_done(store: Store, group: range, expected: tuple[int, int] | None) -> bool:
    """Whether a group's losses are there, and its trajectories where a shape is expected of them."""
    if not (group_losses(store, group).exists() or (store.folder / "losses.npy").exists()):
        return False
    if expected is None:
        return True
    there = [expert for expert in group if store.path(expert).exists()]
    for expert in there:
        shape = store.open(expert).shape
        if shape != expected:
            raise UserError(
                f"{store.path(expert)} holds {shape} numbers, and these settings make {expected}: delete {store.folder}"
            )
    return len(there) == len(group)


def group_losses(store: Store, group: range) -> pathlib.Path:
    """The sum of a group's losses, float64 `(n,)`, until all groups are there."""
    return store.folder / f"group_{group[0]:04d}_{group[-1]:04d}.npy"


def merge(store: Store, groups: Sequence[range]) -> None:
    """Make `losses.npy` of the groups' losses, and remove those."""
    path = store.folder / "losses.npy"
    if not path.exists():
        total = np.sum([files.read_array(group_losses(store, group)) for group in groups], axis=0)
        files.write_array(path, (total / sum(map(len, groups))).astype(np.float32))
    for leftover in store.folder.glob("group_*.npy"):
        leftover.unlink()


def feed(
    store: Store, settings: Settings, *, max_start_epoch: int, expert_epochs: int, seed: int
) -> Callable[[int, int], dict[str, np.ndarray]]:
    """Where students start and arrive, read from the disk as the outer steps come.

    Args:
        store: The trajectories.
        settings: Of the experts.
        max_start_epoch: The start is drawn uniformly from the snapshots 0 to `max_start_epoch - 1`.
        expert_epochs: How many epochs later the target is.
        seed: Which expert and epoch a step sees depends on this and on the step's number alone.

    Returns:
        `(done, count) -> {"start": (count,P), "target": (count,P)}`, float32, for the steps from `done` on.

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
            generator = np.random.default_rng((seed, step))
            expert, epoch = int(generator.integers(settings.count)), int(generator.integers(max_start_epoch))
            starts.append(store.read(expert, epoch))
            targets.append(store.read(expert, epoch + expert_epochs))
        return {"start": np.stack(starts), "target": np.stack(targets)}

    return read


def random_feed(
    settings: Settings, image_shape: tuple[int, ...], dim: int
) -> Callable[[int, int], dict[str, np.ndarray]]:
    """A feed like that of `feed`, of random parameters `(count,P)` that an expert might have, for the dry run."""
    size = numbers(settings, image_shape, dim)
    ends = np.random.default_rng(1).standard_normal((2, size), np.float32) * np.float32(0.02)

    def items(done: int, count: int) -> dict[str, np.ndarray]:
        return {name: np.broadcast_to(end, (count, size)) for name, end in zip(("start", "target"), ends, strict=True)}

    return items
