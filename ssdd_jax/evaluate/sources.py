"""From names and paths to what is evaluated: sets, the data that they were distilled from, and targets."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ssdd_jax import config as configuration
from ssdd_jax import data, teacher
from ssdd_jax.data import features, preprocess, targets
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate.entries import REFERENCES, SourceData, Target, content
from ssdd_jax.evaluate.store import mark
from ssdd_jax.models.frozen import Judged
from ssdd_jax.runtime import files
from ssdd_jax.runtime.workdir import Workdir, fingerprint

Path = str | os.PathLike[str]


def name_sets(
    given: DistilledSet | Path | Sequence[Path] | Mapping[str, DistilledSet | Path],
) -> dict[str, DistilledSet | Path]:
    """Sets or their paths by the names of their rows: `distilled` where there is one alone, else by their folders.

    Args:
        given: A set, its path, several paths, or sets or paths by name.

    Raises:
        UserError: If none is given, or two have the same name.
    """
    if isinstance(given, DistilledSet):
        return {"distilled": given}
    if not isinstance(given, Mapping):
        paths = [given] if isinstance(given, str | os.PathLike) else list(given)
        names = ["distilled"] if len(paths) == 1 else [_name(path) for path in paths]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"two sets are called {twice[0]}: name them, as in --set=A=PATH,B=PATH")
        given = dict(zip(names, paths, strict=True))
    if not given:
        raise UserError("no distilled set is given: name one with --set=PATH")
    reserved = [name for name in given if name in ("chance", *REFERENCES)]
    if reserved:
        raise UserError(f"a set cannot be called {reserved[0]}: that is a row of its own")
    return dict(given)


def _name(path: Path) -> str:
    parts = pathlib.Path(path).expanduser().resolve()
    return parts.parent.name if parts.name == "distilled" else parts.stem


def count_of(distilled: DistilledSet) -> int:
    """The N that a set is compared at: the budget it was made for, else as many images as it has pairs."""
    known = distilled.about.get("N") or distilled.about.get("config", {}).get("storage.N")
    return int(known) if known else len(distilled.pairs()[0])


def of_run(folder: Path, *, shared: Path | None = None, data_dir: str = "") -> SourceData:
    """The data and the teacher of a run.

    Args:
        folder: The run's work dir.
        shared: What the run was given as `--shared`, if anything.
        data_dir: Where the data are now, if not where the run found them.

    Raises:
        UserError: If the folder is not a run's, or its data or features are not there.
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
        raise UserError(f"the data of the run {work.folder}: {words}; --data_dir says where they are now") from error
    found = features.load(work.features, fingerprint(dataset.train_images))
    network = own = None
    if (work.teacher / "teacher.json").exists():
        variables, about = teacher.load(work.teacher)
        described = teacher.describe(about, work.teacher / "teacher.json")
        network = as_network(teacher.backbone(variables), described)
        own = (np.asarray(described.mean), np.asarray(described.std)) if described.words else None
    constants = preprocess.fit(dataset.train_images, found.train, moments=preprocess.dataset_moments(dataset))
    return SourceData(dataset, found, constants, network, own, whole=_is_whole(config.data))


def _is_whole(chosen: Any) -> bool:
    """Whether a run's data are what a target of their name is."""
    usual = configuration.default().data
    return all(chosen[key] == usual[key] for key in ("train_split", "test_split", "train_limit", "test_fraction"))


def as_network(backbone: Mapping[str, Any], described: teacher.Description) -> tuple[nn.Module, Any]:
    """A teacher's backbone as a network that can be judged; its head is as wide as its features, and untrained."""
    dim = described.network.features
    head = {"kernel": np.zeros((dim, dim), np.float32), "bias": np.zeros(dim, np.float32)}
    variables = {name: {"backbone": tree} for name, tree in backbone.items()}
    variables["params"]["fc"] = head
    module = Judged(dim, described.network, len(described.mean), described.size, described.resize)
    return module, jax.tree.map(np.asarray, {"batch_stats": {}, **variables})


def of_features(name: str, path: Path, *, data_dir: str = "", image_shape: tuple[int, int, int]) -> SourceData:
    """A data set with features that are brought; the teacher itself is not known.

    Args:
        name: Of the data set, as for `targets`.
        path: Its features, a `.npy` or `.npz` as for `config.teacher.features`.
        data_dir: Where the data are.
        image_shape: `(H,W,C)` of the sets.
    """
    chosen = targets.settings(name, data_dir=data_dir, image_size=image_shape[0])
    dataset = data.load(chosen)
    test = 0 if dataset.test_images is None else len(dataset.test_images)
    brought = features.read(os.fspath(path), train=len(dataset.train_images), test=test, views=())
    found = features.Features(brought.train, brought.test)
    return SourceData(dataset, found, preprocess.fit(dataset.train_images, found.train))


def _config(flat: Mapping[str, Any]) -> Any:
    config = configuration.default()
    known = configuration.flatten(config)
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in flat.items() if key in known}
    config.update_from_flattened_dict(own)
    return config


def of_arrays(name: str, arrays: Sequence[Any]) -> data.Dataset:
    """Arrays in memory as a labelled data set.

    Args:
        name: What it is called.
        arrays: Training images uint8 `(n,H,W,C)` or `(n,H,W)` and their labels, integers `(n,)` from 0 on; then the
            same of the test images.

    Raises:
        UserError: If they are not that.
    """
    if len(arrays) != 4:
        raise UserError(f"target {name}: give training images, their labels, test images and their labels")
    x, y, x_test, y_test = map(np.asarray, arrays)
    if y.ndim != 1 or y_test.ndim != 1 or not (y.size and y.dtype.kind in "iu" and y_test.dtype.kind in "iu"):
        raise UserError(f"target {name}: labels must be whole numbers (n,), not {y.dtype} {y.shape}")
    x, x_test = (part[..., None] if part.ndim == 3 else part for part in (x, x_test))
    names = tuple(map(str, range(int(max(y.max(), y_test.max(initial=0))) + 1)))
    return data.Dataset(name, x, y.astype(np.int32), x_test, y_test.astype(np.int32), names)


def of_features_in_memory(images: Any, found: Any) -> SourceData:
    """The source of sets that were distilled in memory.

    Args:
        images: uint8 `(n,H,W,C)` or `(n,H,W)`.
        found: The teacher's features of them, floats `(n,D)`.

    Raises:
        UserError: If they are not that.
    """
    images, found = np.asarray(images), np.asarray(found)
    images = images[..., None] if images.ndim == 3 else images
    dataset = data.Dataset("the source", images)
    known = features.check("the source's features", {"train": found}, train=len(images))
    return SourceData(dataset, features.Features(known.train, None), preprocess.fit(images, known.train), whole=False)


def target(
    given: str | data.Dataset, source: SourceData | None, *, data_dir: str = "", image_shape: tuple[int, int, int]
) -> Target:
    """A target by name, or a data set as one.

    Args:
        given: A name as for `targets.load`, or a data set.
        source: The sets' source: a target of its name need not be loaded again.
        data_dir: Where the data are.
        image_shape: `(H,W,C)` of the sets.

    Raises:
        UserError: If it cannot be loaded, or is of no use as a target.
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
    """A data set of the right shape as a target, normalised by the moments of its own training images (KRR-ST)."""
    mean, std = preprocess.dataset_moments(dataset)
    assert dataset.test_images is not None
    labels = [part for part in (dataset.train_labels, dataset.test_labels) if part is not None]
    return Target(name, dataset, mean, std, mark(content(dataset), dataset.classes, *labels))
