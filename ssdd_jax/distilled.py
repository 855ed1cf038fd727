"""Distilled set: the artefact that every method exports and that is stored, loaded and evaluated.

A set consists of its *kind* (the way it is decoded), the arrays that are stored and counted, the data set's constants,
and a description. On disk it is a folder with `set.safetensors` and `set.json`; the latter is written last and holds
the checksum of the former. Arrays are stored in float32, or packed in fewer bits (`pack`), images also as one coded
picture.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import approximate, compose, decoder
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files
from ssdd_jax.storage import mosaic, packing
from ssdd_jax.storage.container import Part

Array = jax.Array
SCHEMA = 3  # of packed sets; all others are written, and can be read by earlier versions, as 1
TENSORS, DESCRIPTION = "set.safetensors", "set.json"
# Of WebP and JPEG, where neither a quality nor a number of bytes is given.
DEFAULT_QUALITY = 80
# Share of the scale of targets by which rounding to float16 may change their mean; else it stays in float32, if there
# is no limit of bytes.
MEAN_ERROR = 0.01
# Key of the statics of packed sets of schema 2: precision and shape of each array.
PACKED = "packed"
# While a set is overwritten: the arrays of the former one.
PREVIOUS = "previous.safetensors"


@dataclasses.dataclass(frozen=True)
class DistilledSet:
    """A distilled set.

    Attributes:
        kind: Name of the decoder, a key of `KINDS`.
        arrays: Stored arrays, whose sizes count as storage, float32.
        statics: Sizes and names that decoding also needs, JSON values.
        preprocessing: Constants of the data set.
        about: Provenance (method, config, data set, class names, teacher, version, seed), JSON values.
        stored: The arrays in their packed form, as they are written; None if `arrays` are written as they are. `arrays`
            then are what the packed form holds.
    """

    kind: str
    arrays: Mapping[str, Array]
    statics: Mapping[str, Any]
    preprocessing: Preprocessing
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stored: Mapping[str, Part] | None = None

    def pairs(self) -> tuple[Array, Array]:
        """Decode the training pairs; the result is cached.

        Returns:
            Images `(P,H,W,C)`, normalised as network input, and targets `(P,D)`: the teacher's features, centred and
            scaled. `preprocessing.pixels` and `preprocessing.features` invert the normalisation.
        """
        return self._pairs

    def images(self) -> Array:
        """Decode the images without their further views: pixels in 0..1 `(M,H,W,C)`."""
        return self.preprocessing.pixels(self._pairs[0][: self.statics.get("images", len(self._pairs[0]))])

    def stored_images(self) -> Array | None:
        """Return the stored images `(U,h,w,C)` that others are composed of, as pixels in 0..1; None for other sets."""
        return self.preprocessing.pixels(self.arrays["images"]) if self.kind == "composed" else None

    @functools.cached_property
    def _pairs(self) -> tuple[Array, Array]:
        return KINDS[self.kind](self.arrays, self.statics)

    def numbers_stored(self) -> int:
        """Count the numbers in the stored arrays; the data set's constants are excluded."""
        return sum(int(np.prod(array.shape)) for array in self.arrays.values())

    def bytes_stored(self) -> int:
        """Count the bytes of the file `set.safetensors`: arrays, the data set's constants, and its header."""
        return len(files.tensors_content(self._tensors()))

    def _tensors(self) -> dict[str, Any]:
        if self.stored is not None:
            return packing.write(self.stored, self.preprocessing)
        return {"arrays": dict(self.arrays), "preprocessing": self.preprocessing._asdict()}

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the set.

        Args:
            path: The folder to create or overwrite; `~` is the home directory, as for `load`.

        Returns:
            Size of the two files in bytes.

        Raises:
            UserError: If the disk is full or cannot be written to.
        """
        folder = pathlib.Path(path).expanduser()
        tensors = self._tensors()
        # The description is written last: a folder that has one holds a complete set. Until then the arrays of the set
        # that is overwritten are kept under another name, where `load` finds them.
        if not (folder / PREVIOUS).is_file() or _is_whole(folder):  # they may be kept since an earlier attempt
            files.keep(folder / TENSORS, folder / PREVIOUS)
        try:
            checksum = files.write_tensors(folder / TENSORS, tensors, sealed=False)
        except UserError:  # nothing was overwritten
            files.remove(folder / PREVIOUS)
            raise
        description = {
            "schema": 1 if self.stored is None else SCHEMA,
            "kind": self.kind,
            "statics": dict(self.statics),
            "about": dict(self.about),
            "sha256": checksum,
        }
        files.write_sealed(folder / DESCRIPTION, description)
        files.remove(folder / PREVIOUS)
        return sum((folder / name).stat().st_size for name in (TENSORS, DESCRIPTION))


def load(path: str | os.PathLike[str]) -> DistilledSet:
    """Read a distilled set. Nothing is unpickled; pairs are decoded on first use.

    Args:
        path: The folder that `DistilledSet.save` wrote.

    Returns:
        The set.

    Raises:
        UserError: If the folder holds no set, a damaged set, or a set of a newer schema.
    """
    # The description decides first: it names the schema, the decoder and the checksum of the arrays.
    folder = pathlib.Path(path).expanduser()
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} holds no distilled set: there is no {DESCRIPTION} in it")
    description = files.read_sealed(folder / DESCRIPTION)
    try:
        if description["schema"] > SCHEMA:
            raise UserError(
                f"{folder} was written with schema {description['schema']}, "
                f"this version reads up to {SCHEMA}: update ssdd_jax"
            )
        if description["kind"] not in KINDS:
            kind = description["kind"]
            raise UserError(f"{folder} is of the unknown kind {kind!r}: known are {', '.join(KINDS)}")
        tensors = _tensors(folder, description["sha256"])
        statics = dict(description["statics"])
        facts = statics.pop(PACKED, None)
        stored, arrays = None, {}
        if packing.BLOCK in tensors:
            stored, preprocessing = packing.read(tensors)
        else:
            constants = {name: jnp.asarray(value) for name, value in tensors["preprocessing"].items()}
            if facts is None:
                arrays = {name: jnp.asarray(array) for name, array in tensors["arrays"].items()}
            else:
                constants = {name: value.astype(jnp.float32) for name, value in constants.items()}
                stored = packing.read_separate(tensors["arrays"], facts)
            preprocessing = Preprocessing(**constants)
        return DistilledSet(
            kind=description["kind"],
            arrays=arrays if stored is None else packing.unpack(stored, preprocessing),
            statics=statics,
            preprocessing=preprocessing,
            about=description["about"],
            stored=stored,
        )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{folder / DESCRIPTION} is not the description of a distilled set: {error}") from None


def _is_whole(folder: pathlib.Path) -> bool:
    """Return whether the description of a set belongs to the arrays beside it."""
    try:
        files.read_tensors(folder / TENSORS, files.read_json(folder / DESCRIPTION)["sha256"])
    except (UserError, KeyError, TypeError):
        return False
    return True


def _tensors(folder: pathlib.Path, checksum: str) -> dict[str, Any]:
    """Read the arrays that a description belongs to, by their checksum: a mixture of two sets is refused."""
    try:
        return files.read_tensors(folder / TENSORS, checksum)
    except UserError:
        # A process that was overwriting the set ended before it wrote the new description.
        if not (folder / PREVIOUS).is_file():
            raise
        return files.read_tensors(folder / PREVIOUS, checksum)


def pack(
    distilled: DistilledSet, *, images: str = "float32", targets: str = "float32", quality: int = 0, limit: int = 0
) -> DistilledSet:
    """Pack the arrays of a set in fewer bits.

    Args:
        distilled: The set.
        images: Precision of the image part, a name in `storage.quantize.NAMES`; for images of 1 or 3 channels that are
            stored as such also `png`, `webp` or `jpeg`.
        targets: Precision of the feature part, a name in `storage.quantize.NAMES`.
        quality: Of WebP and JPEG, 1 to 100; 0 for the highest. It is lowered until the set has no more than `limit`
            bytes; without a limit, 0 is `DEFAULT_QUALITY`.
        limit: The most bytes of `set.safetensors`; 0 for no limit.

    Returns:
        A set of the rounded arrays, with their packed form; the set itself if all is float32 and there is no limit.

    Raises:
        UserError: If the set has more bytes than the limit, or its images cannot be coded.
    """
    if images == targets == "float32" and not limit:
        return distilled
    if images in mosaic.CODES and "images" not in distilled.arrays:
        raise UserError(f"{images} codes images, and this set stores bases: choose a precision, such as int8")
    constants = distilled.preprocessing
    mean = jnp.asarray(constants.target_mean)
    half = mean.astype(jnp.float16).astype(jnp.float32)
    # The mean of a teacher's features may be larger than float16 holds, or too large beside their deviation. Plans for
    # a limit count on 16 bits.
    close = jnp.abs(half - mean) <= MEAN_ERROR * constants.target_scale
    kept = bool((jnp.isfinite(half) if limit else close).all())
    rounded = constants._replace(target_mean=half) if kept else constants

    def at(quality: int) -> DistilledSet:
        stored = packing.pack(distilled.arrays, rounded, images=images, targets=targets, quality=quality)
        arrays = packing.unpack(stored, rounded)
        return dataclasses.replace(distilled, arrays=arrays, preprocessing=rounded, stored=stored)

    if images in mosaic.LOSSY and limit:
        quality = packing.largest_quality(lambda q: at(q).bytes_stored(), limit, most=quality or 100)
    packed = at(quality or DEFAULT_QUALITY)
    if limit and packed.bytes_stored() > limit:
        raise UserError(
            f"storage exceeds the budget: {packed.bytes_stored():,} > {limit:,} bytes; choose fewer bits for images or "
            "targets, fewer images or bases (storage.M, U and V), or more bytes"
        )
    return packed


def from_pairs(
    images: Array,
    targets: Array,
    preprocessing: Preprocessing,
    *,
    learning_rate: float | None = None,
    soft_labels: bool = False,
    **about: Any,
) -> DistilledSet:
    """Create a set that stores its pairs directly.

    Args:
        images: Images `(P,H,W,C)`, normalised as network input.
        targets: Targets `(P,D)`, centred and scaled.
        preprocessing: The data set's constants.
        learning_rate: Learning rate to train on the set with, for methods that learn it; like every other setting of
            the training it is not counted as storage.
        soft_labels: True if the targets are class logits instead of the teacher's features.
        **about: Provenance of the set, JSON values.

    Returns:
        The set.
    """
    statics: dict[str, Any] = {} if learning_rate is None else {"learning_rate": learning_rate}
    statics |= {"soft_labels": True} if soft_labels else {}
    return DistilledSet("pairs", {"images": images, "targets": targets}, statics, preprocessing, about)


def from_params(
    params: decoder.Params, networks: approximate.Networks, preprocessing: Preprocessing, **about: Any
) -> DistilledSet:
    """Create a parameterized set: bases, coefficients of the first view, means, approximation networks.

    Args:
        params: The decoder's parameters; only the first view's feature coefficients are stored.
        networks: One network per further view.
        preprocessing: The data set's constants.
        **about: Provenance of the set, JSON values.

    Returns:
        The set.
    """
    # Coefficients of further views are left out: the networks predict them from the first.
    arrays = {
        "image_bases": params.image_bases,
        "image_coefficients": params.image_coefficients,
        "image_mean": params.image_mean,
        "feature_bases": params.feature_bases,
        "feature_coefficients": params.feature_coefficients[0],
        "feature_mean": params.feature_mean,
        **{f"networks.{name}": value for name, value in networks._asdict().items()},
    }
    statics = {
        "image_size": list(params.image_size),
        "views": list(params.views),
        "images": len(params.image_coefficients),
    }
    return DistilledSet("bases", arrays, statics, preprocessing, about)


def from_composed(params: compose.Params, preprocessing: Preprocessing, **about: Any) -> DistilledSet:
    """Create a set of composed images: the stored images, feature bases, coefficients, and the seed of the table.

    Args:
        params: The parameters.
        preprocessing: The data set's constants.
        **about: Provenance of the set, JSON values.

    Returns:
        The set.
    """
    statics = {"image_size": list(params.image_size), "seed": params.seed}
    return DistilledSet("composed", params.arrays(), statics, preprocessing, about)


def params_of(distilled: DistilledSet) -> decoder.Params:
    """Return the decoder's parameters of a parameterized set; the coefficients of further views are recomputed."""
    return _params(distilled.arrays, distilled.statics)


def _params(arrays: Mapping[str, Array], statics: Mapping[str, Any]) -> decoder.Params:
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    networks = approximate.Networks(**{f: arrays[f"networks.{f}"] for f in approximate.Networks._fields})
    return decoder.Params(
        image_bases=arrays["image_bases"],
        image_coefficients=arrays["image_coefficients"],
        image_mean=arrays["image_mean"],
        feature_bases=arrays["feature_bases"],
        feature_coefficients=approximate.apply(networks, arrays["feature_coefficients"]),
        feature_mean=arrays["feature_mean"],
        image_size=(int(statics["image_size"][0]), int(statics["image_size"][1])),
        views=tuple(statics["views"]),
    )


def _decode_bases(arrays: Mapping[str, Array], statics: Mapping[str, Any]) -> tuple[Array, Array]:
    return decoder.decode_pairs(_params(arrays, statics))


def _decode_pairs(arrays: Mapping[str, Array], statics: Mapping[str, Any]) -> tuple[Array, Array]:
    return jnp.asarray(arrays["images"]), jnp.asarray(arrays["targets"])


def _decode_composed(arrays: Mapping[str, Array], statics: Mapping[str, Any]) -> tuple[Array, Array]:
    height, width = map(int, statics["image_size"])
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    return compose.Params(**arrays, image_size=(height, width), seed=int(statics["seed"])).pairs()


KINDS: dict[str, Callable[[Mapping[str, Array], Mapping[str, Any]], tuple[Array, Array]]] = {
    "bases": _decode_bases,
    "composed": _decode_composed,
    "pairs": _decode_pairs,
}
"""Decoders by kind: the stored arrays and static values to images `(P,H,W,C)` and targets `(P,D)`."""
