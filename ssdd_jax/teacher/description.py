"""Description of a teacher: its network and preprocessing, stored as `teacher.json` beside the weights."""

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
SUPERVISED = "supervised"
"""First word of the summary of a teacher that was trained with labels."""
# Module fields that are not stored: those that only affect initialisation, and those that Flax adds.
_OMITTED = {"last_scale", "stem_start", "parent", "name"}


class Description(NamedTuple):
    """Network and preprocessing of a teacher.

    Attributes:
        network: The network, up to its features.
        mean: Mean of each channel, for pixels in 0..1.
        std: Standard deviation of each channel.
        size: Side of the network's inputs in pixels; 0 to leave images in their size.
        resize: Interpolation used for resizing to that side, one of `models.frozen.RESIZE`.
        words: Human-readable summary; empty for a teacher that the run has trained.
        shortest_side: Side that the shorter side of an image is resized to before a central crop of `size`; 0 to
            resize the whole image.
        supervised: Whether the network was trained with labels, as far as its file tells.
        aside: Names of what its file holds besides the network, such as heads.
    """

    network: Backbone
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int = 0
    resize: str = "linear"
    words: str = ""
    shortest_side: int = 0
    supervised: bool = False
    aside: tuple[str, ...] = ()

    def frozen(self, backbone: Any, *, given: tuple[Any, Any] | None = None) -> Frozen:
        """Bind variables to the network, preceded by its preprocessing.

        Args:
            backbone: The network's variables.
            given: Mean and standard deviation `(C,)` that images are normalised by; None for those of the network.

        Returns:
            The frozen network.
        """
        scale = shift = None
        # Both normalisations in one affine map: (x * std + mean - network_mean) / network_std.
        if given is not None:
            (mean, std), network_mean, network_std = given, np.asarray(self.mean), np.asarray(self.std)
            scale, shift = (
                jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1)
                for value in (std / network_std, (mean - network_mean) / network_std)
            )
        return Frozen(
            backbone,
            scale,
            shift,
            network=self.network,
            size=self.size,
            resize=self.resize,
            shortest_side=self.shortest_side,
            exact=True,
        )

    def as_json(self) -> dict[str, Any]:
        """Convert the description to JSON values, from which `read` restores it."""
        name = "resnet" if isinstance(self.network, ResNet) else "vit"
        options = {
            field.name: getattr(self.network, field.name)
            for field in dataclasses.fields(self.network)
            if field.name not in _OMITTED
        }
        constants = {name: value for name, value in self._asdict().items() if name != "network"}
        return {"network": name, "options": options, **constants}


def read(about: Mapping[str, Any], path: pathlib.Path | str = "teacher.json") -> Description:
    """Restore a description from the content of a `teacher.json`.

    Args:
        about: Content of the file. That of a teacher trained by a run has only `width`, `blocks`, `mean` and `std`.
        path: The file, for messages.

    Returns:
        The description.

    Raises:
        UserError: If an entry is missing or invalid.
    """
    try:
        mean, std = _numbers(about["mean"]), _numbers(about["std"])
        if "network" not in about:
            return Description(ResNet(int(about["width"]), tuple(about["blocks"])), mean, std)
        # JSON has no tuples, but the fields of a Flax module must be hashable.
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in about["options"].items()}
        network = NETWORKS[about["network"]](**options)
        # Versions before 0.2 wrote neither a crop nor what lies beside the network.
        shortest, supervised = int(about.get("shortest_side", 0)), bool(about.get("supervised", False))
        aside = tuple(map(str, about.get("aside", ())))
        return Description(
            network, mean, std, int(about["size"]), about["resize"], about["words"], shortest, supervised, aside
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} does not describe a teacher ({error!r}): restore it, or delete its folder") from None


def heading(words: str) -> str:
    """Return the heading of results with a teacher: `supervised teacher` if its summary says so, else empty.

    Args:
        words: Summary of the teacher, as in `Description.words` and in the description of a distilled set.
    """
    return f"{SUPERVISED} teacher" if words.startswith(f"{SUPERVISED} ") else ""


def _numbers(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
