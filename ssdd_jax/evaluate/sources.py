"""Load the inputs of an evaluation by name or path: distilled sets, their source data and teacher, and targets."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ssdd_jax import config as configuration
from ssdd_jax import data, teacher
from ssdd_jax.data import conversion, features, labels, preprocess, targets
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate.entries import REFERENCES, SourceData, Target, content
from ssdd_jax.evaluate.store import mark
from ssdd_jax.models.frozen import Judged
from ssdd_jax.report import labels as entry_labels
from ssdd_jax.runtime import files
from ssdd_jax.runtime.workdir import Workdir, fingerprint

Path = str | os.PathLike[str]


def name_sets(
    given: DistilledSet | Path | Sequence[Path] | Mapping[str, DistilledSet | Path],
) -> dict[str, DistilledSet | Path]:
    """Name the rows of sets: `distilled` for a single set, the names of their folders for several.

    Args:
        given: A set, its path, several paths, or sets or paths by name.

    Returns:
        Sets or paths by name.

    Raises:
        UserError: If there are no sets, two have the same name, or a name is that of a baseline.
    """
    if isinstance(given, DistilledSet):
        return {"distilled": given}
    if not isinstance(given, Mapping):
        if not isinstance(given, str | os.PathLike | Sequence):
            raise UserError(f"{given!r} is not a set, nor sets or paths by name: read one with ssdd_jax.load")
        paths = [given] if isinstance(given, str | os.PathLike) else list(given)
        names = ["distilled"] if len(paths) == 1 else [_name(path) for path in paths]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"two sets are called {twice[0]}: name them, as in --set=A=PATH,B=PATH")
        given = dict(zip(names, paths, strict=True))
    if not given:
        raise UserError("no distilled set is given: name one with --set=PATH")
    known = ("chance", *REFERENCES, *entry_labels.ENTRIES.values())
    reserved = [name for name in given if name in known or re.fullmatch(r"random_real_\d+|\d+ random images", name)]
    if reserved:
        raise UserError(f"a set cannot be called {reserved[0]}: that is the name of a baseline; choose another name")
    return dict(given)


def _name(path: Path) -> str:
    # Every run calls its set `distilled`: the name of the run tells sets apart.
    parts = pathlib.Path(path).expanduser().resolve()
    return parts.parent.name if parts.name == "distilled" else parts.stem


def count_of(distilled: DistilledSet) -> int:
    """Return the N of a set's random baseline: what its budget holds, or the number of pairs if unknown."""
    budget = (
        distilled.about.get("random_images")
        or distilled.about.get("N")
        or distilled.about.get("config", {}).get("storage.N")
    )
    return int(budget) if budget else len(distilled.pairs()[0])


def of_run(folder: Path, *, shared: Path | None = None, data_dir: str = "") -> SourceData:
    """Load the data and the teacher of a run.

    Args:
        folder: The run's work dir.
        shared: The run's `--shared` folder, if it had one.
        data_dir: Folder of the data, if they have moved since the run.

    Raises:
        UserError: If the folder is not a run's, or its data or features are missing.
    """
    work = Workdir(folder, shared)
    if not work.config.exists():
        raise UserError(f"{work.folder} is not a run's folder: there is no config.json in it")
    config = _config(files.read_json(work.config))
    if data_dir:
        config.data.data_dir = data_dir
    if not features.complete(work.features):
        raise UserError(
            f"{work.features} holds no features of the teacher: if the run had a --shared folder, name it here too"
        )
    try:
        dataset = data.load(config.data)
    except UserError as error:
        words = str(error).replace("--config.data.", "--")
        # Errors of the loader name config keys, which this command does not have.
        raise UserError(f"the data of the run {work.folder}: {words}; --data_dir names their folder") from error
    # The fingerprint guards against features of other images.
    teacher_features = features.load(work.features, fingerprint(dataset.train_images))
    network = moments = None
    if (work.teacher / "teacher.json").exists():
        variables, about = teacher.load(work.teacher)
        described = teacher.describe(about, work.teacher / "teacher.json")
        network = as_network(teacher.backbone(variables), described)
        # A downloaded teacher keeps its own normalisation; one trained by the run uses that of its data.
        moments = (np.asarray(described.mean), np.asarray(described.std)) if described.words else None
    constants = preprocess.fit(
        dataset.train_images, teacher_features.train, moments=preprocess.dataset_moments(dataset)
    )
    return SourceData(dataset, teacher_features, constants, network, moments, whole=_is_whole(config.data))


def _is_whole(data_config: Any) -> bool:
    """Return whether a run used the complete data set, as a target of the same name does."""
    usual = configuration.default().data
    return all(data_config[key] == usual[key] for key in ("train_split", "test_split", "train_limit", "test_fraction"))


def as_network(backbone: Mapping[str, Any], described: teacher.Description) -> tuple[nn.Module, Any]:
    """Wrap a teacher's backbone as a network that the protocols can evaluate.

    Args:
        backbone: Collections of the backbone's variables.
        described: The teacher's architecture and preprocessing.

    Returns:
        The module and its variables as NumPy arrays. The head has as many outputs as there are features and is zero:
        protocols that need a head replace it.
    """
    dim = described.network.features
    head = {"kernel": np.zeros((dim, dim), np.float32), "bias": np.zeros(dim, np.float32)}
    variables = {name: {"backbone": tree} for name, tree in backbone.items()}
    variables["params"]["fc"] = head
    module = Judged(
        dim, described.network, len(described.mean), described.size, described.resize, described.shortest_side
    )
    return module, jax.tree.map(np.asarray, {"batch_stats": {}, **variables})


def of_features(name: str, path: Path, *, data_dir: str = "", image_shape: tuple[int, int, int]) -> SourceData:
    """Load a data set with precomputed features; the teacher network is unknown.

    Args:
        name: Name of the data set, as for `targets`.
        path: Features of its images, a `.npy` or `.npz` as for `config.teacher.features`.
        data_dir: Folder of the data.
        image_shape: Image shape `(H,W,C)` of the sets.

    Raises:
        UserError: If the data or features are missing or invalid.
    """
    # Images are resized to squares only: others must have the shape of the sets already.
    size = image_shape[0] if image_shape[0] == image_shape[1] else 0
    data_config = targets.settings(name, data_dir=data_dir, image_size=size)
    dataset = data.load(data_config)
    test = 0 if dataset.test_images is None else len(dataset.test_images)
    precomputed = features.read(os.fspath(path), train=len(dataset.train_images), test=test, views=())
    teacher_features = features.Features(precomputed.train, precomputed.test)
    return SourceData(dataset, teacher_features, preprocess.fit(dataset.train_images, teacher_features.train))


def _config(flat: Mapping[str, Any]) -> Any:
    # Keys that this version does not know are dropped: the run may have been made by another version.
    config = configuration.default()
    defaults = configuration.flatten(config)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in flat.items() if key in defaults}
    config.update_from_flattened_dict(values)
    return config


def of_arrays(name: str, arrays: Sequence[Any]) -> data.Dataset:
    """Create a labelled data set from arrays in memory.

    Args:
        name: Name in the results.
        arrays: Training images uint8 `(n,H,W,C)` or `(n,H,W)` and their labels `(n,)`, whole numbers or names; then the
            same of the test images. Other forms of images are converted by `data.conversion`.

    Raises:
        UserError: If there are not four arrays, or they are of other forms.
    """
    if len(arrays) != 4:
        raise UserError(f"target {name}: give training images, their labels, test images and their labels")
    where = f"target {name}: images"
    x, x_test = (conversion.to_images(where, images) for images in (arrays[0], arrays[2]))
    given = [
        labels.check(f"target {name}", conversion.to_array(f"target {name}: labels", own), len(images))
        for own, images in ((arrays[1], x), (arrays[3], x_test))
    ]
    found = labels.classes(f"target {name}", given)
    return data.Dataset(name, x, found.parts[0], x_test, found.parts[1], found.names, found.notes)


def of_features_in_memory(images: Any, found: Any) -> SourceData:
    """Create the source data of sets that were distilled from arrays in memory.

    Args:
        images: Images uint8 `(n,H,W,C)` or `(n,H,W)`, or of the forms that `data.conversion.to_images` takes.
        found: The teacher's features of the images, floats `(n,D)`.

    Raises:
        UserError: If the features are invalid or not one per image.
    """
    images = conversion.to_images("the source's images", images)
    found = conversion.to_features("the source's features", found)
    dataset = data.Dataset("the source", images)
    valid = features.check("the source's features", {"train": found}, train=len(images))
    return SourceData(dataset, features.Features(valid.train, None), preprocess.fit(images, valid.train), whole=False)


def target(
    given: str | data.Dataset, source: SourceData | None, *, data_dir: str = "", image_shape: tuple[int, int, int]
) -> Target:
    """Load a target by name, or adapt a data set.

    Args:
        given: A name as for `targets.load`, or a data set.
        source: Source data of the sets; a target of the same name shares its images.
        data_dir: Folder of the data.
        image_shape: Image shape `(H,W,C)` of the sets.

    Raises:
        UserError: If the target cannot be loaded, has no labels or test images, or has a single class.
    """
    if isinstance(given, data.Dataset):
        name, dataset = given.name, given
        dataset = targets.adapt(dataset, image_shape)
    elif source is not None and source.whole and targets.NAMES.get(given, given) == source.dataset.name:
        name, dataset = given, targets.adapt(source.dataset, image_shape)
    else:
        name, dataset = given, targets.load(given, data_dir=data_dir, image_shape=image_shape)
    return as_target(name, dataset)


def as_target(name: str, dataset: data.Dataset) -> Target:
    """Create a target, normalised by the channel moments of its own training images (KRR-ST).

    Args:
        name: Name in the results.
        dataset: Labelled data with test images, uint8 `(n,H,W,C)` in the image shape of the sets.
    """
    mean, std = preprocess.dataset_moments(dataset)
    assert dataset.test_images is not None
    both = [part for part in (dataset.train_labels, dataset.test_labels) if part is not None]
    return Target(name, dataset, mean, std, mark(content(dataset), dataset.classes, *both))
