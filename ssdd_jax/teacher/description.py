"""What a teacher is: its network, and the images that this takes; kept as `teacher.json` beside the weights."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ssdd_jax.errors import UserError
from ssdd_jax.models.frozen import Backbone, Frozen
from ssdd_jax.models.resnet import ResNet
from ssdd_jax.models.vit import Encoder

NETWORKS: dict[str, Callable[..., Backbone]] = {"resnet": ResNet, "vit": Encoder}
# Of a module: what only matters before it is trained, and what Flax adds.
_UNKEPT = {"last_scale", "stem_start", "parent", "name"}


class Description(NamedTuple):
    """A teacher.

    Attributes:
        network: The network, up to its features.
        mean: Of each channel, of pixels in 0..1.
        std: Of each channel.
        size: Side of the network's inputs in pixels; 0 for images as they are.
        resize: How images are brought to that size, one of `models.frozen.RESIZE`.
        words: What it is, for people; empty for a teacher that the run has trained.
    """

    network: Backbone
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int = 0
    resize: str = "linear"
    words: str = ""

    def frozen(self, backbone: Any, *, given: tuple[Any, Any] | None = None) -> Frozen:
        """The network behind its preprocessing.

        Args:
            backbone: The network's variables.
            given: Mean and standard deviation `(C,)` that images are normalised by; those of the network if left out.
        """
        scale = shift = None
        if given is not None:
            (mean, std), own_mean, own_std = given, np.asarray(self.mean), np.asarray(self.std)
            scale, shift = (
                jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1)
                for value in (std / own_std, (mean - own_mean) / own_std)
            )
        return Frozen(backbone, scale, shift, network=self.network, size=self.size, resize=self.resize, exact=True)

    def as_json(self) -> dict[str, Any]:
        """JSON values, of which `read` makes the description again."""
        name = "resnet" if isinstance(self.network, ResNet) else "vit"
        options = {
            field.name: getattr(self.network, field.name)
            for field in dataclasses.fields(self.network)
            if field.name not in _UNKEPT
        }
        own = {name: value for name, value in self._asdict().items() if name != "network"}
        return {"network": name, "options": options, **own}


def read(about: Mapping[str, Any], path: pathlib.Path | str = "teacher.json") -> Description:
    """The description in a `teacher.json`.

    Args:
        about: Its content. A teacher that a run has trained is told by `width`, `blocks`, `mean` and `std` alone.
        path: The file, for messages.

    Raises:
        UserError: If something is missing, or is not known.
    """
    try:
        mean, std = _numbers(about["mean"]), _numbers(about["std"])
        if "network" not in about:
            return Description(ResNet(int(about["width"]), tuple(about["blocks"])), mean, std)
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in about["options"].items()}
        network = NETWORKS[about["network"]](**options)
        return Description(network, mean, std, int(about["size"]), about["resize"], about["words"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} does not describe a teacher ({error!r}): restore it, or delete its folder") from None


def _numbers(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
