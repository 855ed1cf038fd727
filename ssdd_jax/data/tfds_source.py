"""Reader of images from a prepared TensorFlow Datasets (TFDS) folder, without TensorFlow.

TFDS is imported inside the functions: the import is slow, and only these sources need it.
"""

from __future__ import annotations

import difflib
import json
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssdd_jax.data import labels as label_table
from ssdd_jax.data.encoded import EncodedImages
from ssdd_jax.data.folder import TEST_NAMES
from ssdd_jax.data.images import one_line
from ssdd_jax.data.source import ImageSource, Part
from ssdd_jax.errors import UserError

_NAME = re.compile(r"(?P<dataset>[a-z]\w*)(/(?P<config>[\w.\-+]+))?(:[\d.]+)?", re.IGNORECASE)
# Records parsed at a time for their labels.
_LABEL_BLOCK = 8192


def open_tfds(name: str, data_dir: str, *, train_split: str, test_split: str, image_size: int) -> ImageSource:
    """Open a data set that TFDS has prepared as ArrayRecord; nothing is downloaded.

    The images are the input of TFDS' supervised pair, else the feature named `image`, else the only image feature.
    The labels are the target of that pair, else the feature named `label`, else the only class label, else none. Whole
    numbers and texts under the first two are labels too if there is no class label.

    Args:
        name: `NAME`, `NAME/CONFIG` or either with `:VERSION`, such as `cifar10` or `imagenet_resized/64x64`.
        data_dir: Folder of the prepared TFDS data sets, or of this one; "" is the default of TFDS.
        train_split: A split of the data set, or a slice such as `train[:90%]`.
        test_split: A split or slice, as above; "test" also matches "validation" and "val"; "" reads no test part.
        image_size: The height and width to resize to, or 0.

    Returns:
        The source. It has no test part if the data set has no split besides that of the training part.

    Raises:
        UserError: If the data set is unknown, not prepared (the message names the command that prepares it), or
            in another file format, a split does not exist, or the images are not of 8 bits.
    """
    builder = _builder(name, data_dir)
    image, label = _features(name, builder.info)
    train = _part(name, builder, train_split, (image, label), image_size)
    test_split = _test_split(name, sorted(builder.info.splits), train_split, test_split)
    test = _part(name, builder, test_split, (image, label), image_size) if test_split else None
    if label is None:
        return ImageSource(train, test, ())
    # Labels that are no class labels to TFDS may be any numbers or texts.
    names = getattr(builder.info.features[label], "names", None) or ()
    if names:
        return ImageSource(train, test, tuple(names))
    parts = [part for part in (train, test) if part is not None]
    classes = label_table.classes(f"tfds:{name}", [part.labels for part in parts])
    parts = [part._replace(labels=own) for part, own in zip(parts, classes.parts, strict=True)]
    return ImageSource(parts[0], parts[1] if test else None, classes.names, classes.notes)


def prepare_command(name: str, data_dir: str) -> str:
    """Return the shell command that prepares a TFDS data set as ArrayRecord, which needs TensorFlow."""
    data_dir_argument = f", data_dir={json.dumps(data_dir)}" if data_dir else ""
    code = (
        "import tensorflow_datasets as tfds; "
        f'tfds.builder({json.dumps(name)}{data_dir_argument}, file_format="array_record").download_and_prepare()'
    )
    return f"pip install 'ssdd_jax[prepare]' && python -c {shlex.quote(code)}"


def _builder(name: str, data_dir: str) -> Any:
    """Create the TFDS builder of a prepared folder from its files alone (no code, no network)."""
    import tensorflow_datasets as tfds

    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f"tfds:{name} is not a data set's name; write tfds:NAME or tfds:NAME/CONFIG")
    data_dir = _around(data_dir, match["dataset"])
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    except tfds.core.registered.DatasetNotFoundError:
        raise _why_not_found(name, match["dataset"], match["config"], data_dir) from None
    except Exception as error:  # a damaged folder: TFDS, protobuf and JSON each have their own errors
        raise UserError(f"the prepared folder of tfds:{name} cannot be read: {one_line(error)}") from error


def _around(data_dir: str, dataset: str) -> str:
    """Return the folder of all data sets, also if `data_dir` is that of this data set or of a version of it."""
    place = pathlib.Path(data_dir).absolute()
    if not data_dir or (place / dataset).is_dir():
        return data_dir
    return next((str(part.parent) for part in (place, *place.parents) if part.name == dataset), data_dir)


def _why_not_found(name: str, dataset: str, config: str | None, data_dir: str) -> UserError:
    """Build the error for an unknown data set, or for one that is not prepared."""
    import tensorflow_datasets as tfds

    if dataset == "tiny_imagenet":
        return UserError(
            f"tfds:tiny_imagenet is not prepared in {data_dir or '~/tensorflow_datasets'}; prepare it with "
            "ssdd_jax.data.tiny_imagenet.TinyImagenet, or read the original files with "
            "--config.data.name=tiny_imagenet"
        )
    # Community data sets would need the network.
    available = tfds.list_builders(with_community_datasets=False)
    if dataset not in available:
        close = difflib.get_close_matches(dataset, available, n=3)
        hint = f"; did you mean {' or '.join(f'tfds:{name}' for name in close)}?" if close else ""
        return UserError(f"TFDS knows no data set {dataset!r}, and {data_dir or 'its folder'} holds none{hint}")
    configs = list(tfds.builder_cls(dataset).builder_configs)
    if config and configs and config not in configs:
        return UserError(f"tfds:{dataset} has no configuration {config!r}, only {', '.join(configs)}")
    return UserError(
        f"tfds:{name} is not prepared in {data_dir or '~/tensorflow_datasets'}; point "
        f"--config.data.data_dir at a folder that has it, or prepare it: {prepare_command(name, data_dir)}"
    )


def _features(name: str, info: Any) -> tuple[str, str | None]:
    """Select the names of the image feature and of the label feature."""
    import tensorflow_datasets as tfds

    features = dict(info.features)
    # A supervised pair may hold other features, such as two images or nested tuples: it counts only as a preference.
    supervised = info.supervised_keys or (None, None)
    images = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image) and not isinstance(feature, tfds.features.LabeledImage)
    ]
    labels = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
    ] or [key for key in (supervised[1], "label") if key in features and _is_label(features[key])]
    image = _choose(images, supervised[0], "image")
    if image is None:
        raise UserError(f"tfds:{name} has no feature that is clearly its image, only {', '.join(features)}")
    if features[image].np_dtype != np.uint8 or features[image].shape[-1] not in (1, 3, 4):
        raise UserError(
            f"tfds:{name} has images of type {features[image].np_dtype} and shape {features[image].shape}; "
            "grey or colour images of 8 bits are needed"
        )
    return image, _choose(labels, supervised[1], "label")


def _is_label(feature: Any) -> bool:
    """Return whether a feature is one whole number or one text."""
    import tensorflow_datasets as tfds

    whole = feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)
    return whole or isinstance(feature, tfds.features.Text)


def _choose(candidates: Sequence[str], supervised: Any, usual: str) -> str | None:
    """Return the supervised key if it is a candidate, else the usual name, else the only candidate, else None."""
    if isinstance(supervised, str) and supervised in candidates:
        return supervised
    if usual in candidates:
        return usual
    return candidates[0] if len(candidates) == 1 else None


def _test_split(name: str, splits: Sequence[str], train_split: str, test_split: str) -> str:
    """Resolve the test split; "" if the data set has only the split of the training part."""
    if test_split != "test" or "test" in splits:
        return test_split
    fallback = next((split for split in TEST_NAMES if split in splits and split != train_split), "")
    # With other splits at hand the user has to choose: holding out training images silently would be a surprise.
    if not fallback and set(splits) - {re.split(r"\W", train_split)[0]}:
        raise UserError(
            f"tfds:{name} has no split 'test', only {', '.join(splits)}: choose one with "
            "--config.data.test_split, or '' to hold out a part of the training images"
        )
    return fallback


def _part(name: str, builder: Any, split: str, features: tuple[str, str | None], image_size: int) -> Part:
    """Open one split: labels are read at once, images are decoded on demand."""
    import tensorflow_datasets as tfds

    image, label = features
    try:
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except NotImplementedError as error:
        raise UserError(
            f"tfds:{name} is prepared as {builder.info.file_format.value}, which only TensorFlow reads; "
            f"prepare it as array_record in another data_dir: {prepare_command(name, 'ANOTHER_DIR')}"
        ) from error
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"tfds:{name} has no split {split!r} ({one_line(error)}); it has {', '.join(sorted(builder.info.splits))}"
        ) from error
    if not len(records):
        raise UserError(f"the split {split!r} of tfds:{name} is empty")
    # Parsing only the image feature halves the time; decoding is left to `EncodedImages`, as for other sources.
    image_only = tfds.features.FeaturesDict({image: builder.info.features[image]})
    encoded = {image: tfds.decode.SkipDecoding()}

    def fetch(indices: Sequence[int]) -> list[bytes]:
        raw = records.__getitems__(indices)
        return [image_only.deserialize_example_np(record, decoders=encoded)[image] for record in raw]

    labels = None
    if label is not None:
        labels = _labels(name, records, label, builder.info.features[label])
    images = EncodedImages(
        fetch,
        lambda index: f"image {index} of the split {split!r} of tfds:{name}",
        image_size,
        1 if builder.info.features[image].shape[-1] == 1 else 3,
    )
    return Part(len(records), labels, images.read)


def _labels(name: str, records: Any, label: str, feature: Any) -> np.ndarray:
    """Read the labels of all records, `(n,)`: int32 of class labels, others as `labels.check` returns them."""
    import tensorflow_datasets as tfds

    # The labels are needed at once, for the split into parts; the images of the records are not parsed.
    label_only = tfds.features.FeaturesDict({label: feature})
    labels: list[Any] = []
    try:
        for start in range(0, len(records), _LABEL_BLOCK):
            block = range(start, min(start + _LABEL_BLOCK, len(records)))
            labels += [label_only.deserialize_example_np(record)[label] for record in records.__getitems__(block)]
        if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes:
            return np.array(labels, np.int32)
    except (RuntimeError, ValueError, TypeError) as error:  # the last for a record without a label
        raise UserError(f"the files of tfds:{name} are missing or damaged: {one_line(error)}") from error
    return label_table.check(f"tfds:{name}", np.array(labels), len(records))
