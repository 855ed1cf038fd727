"""Readers of files from elsewhere, each with a valid file of a few kilobytes that it reads."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import pathlib
import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import approximate, decoder, distilled, formats
from ssdd_jax import config as configuration
from ssdd_jax.data import features, loading, preprocess
from ssdd_jax.models import resnet
from ssdd_jax.runtime import files
from ssdd_jax.teacher import pretrained

COUNT, SIDE, DIM = 12, 8, 6


class Reader(NamedTuple):
    """A reader under test.

    Attributes:
        make: Writes valid files into an empty folder; returns the path to give to `read`.
        read: Reads the path; its result is compared if `exact`.
        kinds: Endings of the files that it reads, as in `damage.LIES`.
        exact: Whether the files have checksums, so that what is read is what was written or nothing.
    """

    make: Callable[[pathlib.Path], pathlib.Path]
    read: Callable[[pathlib.Path], Any]
    kinds: tuple[str, ...]
    exact: bool = False


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Return whether two results hold the same arrays."""
    return set(found) == set(expected) and all(np.array_equal(found[name], expected[name]) for name in expected)


def _images(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, channels), np.uint8)


def _features(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, DIM)).astype(np.float32)


def _set(*, parameterized: bool = False) -> distilled.DistilledSet:
    constants = preprocess.fit(_images(), _features())
    images, targets = constants.images(jnp.asarray(_images())), constants.targets(jnp.asarray(_features()))
    if not parameterized:
        return distilled.from_pairs(images, targets, constants, dataset="made")
    views = ("rot0", "rot90")
    params = decoder.init(
        jax.random.key(0), images, targets, jnp.stack([targets] * 2), image_bases=4, feature_bases=3, base_size=(4, 4),
        samples=jnp.arange(6), views=views,
    )  # fmt: skip
    settings = approximate.Settings(hidden=2, steps=5)
    networks = approximate.fit(
        jax.random.key(1), params.feature_coefficients, bases=params.feature_bases, settings=settings
    )
    return distilled.from_params(params, networks, constants, dataset="made")


def _save_set(folder: pathlib.Path, *, parameterized: bool, images: str = "float32") -> pathlib.Path:
    distilled.pack(_set(parameterized=parameterized), images=images).save(folder / "set")
    return folder / "set"


def _read_set(path: pathlib.Path) -> dict[str, np.ndarray]:
    found = distilled.load(path)
    images, targets = found.pairs()
    return {"images": np.asarray(images), "targets": np.asarray(targets)}


def _export(folder: pathlib.Path, *, form: str) -> pathlib.Path:
    formats.write(_set(), folder / "export", form)
    return folder / "export"


def _read_export(path: pathlib.Path) -> dict[str, np.ndarray]:
    images, targets = formats.read(path).pairs()
    return {"images": np.asarray(images), "targets": np.asarray(targets)}


def _data(path: pathlib.Path, *, kind: str) -> Any:
    settings = configuration.default().data
    settings.name, settings.image_size, settings.test_fraction = f"{kind}:{path}", SIDE, 0.0
    dataset = loading.load(settings)
    return {"images": np.asarray(dataset.train_images)}


def _npz(folder: pathlib.Path) -> pathlib.Path:
    np.savez(folder / "images.npz", train_images=_images(), train_labels=np.arange(COUNT) % 3)
    return folder / "images.npz"


def _npy(folder: pathlib.Path) -> pathlib.Path:
    (folder / "arrays").mkdir()
    np.save(folder / "arrays" / "train_images.npy", _images())
    np.save(folder / "arrays" / "train_labels.npy", np.arange(COUNT) % 3)
    return folder / "arrays"


def _pictures(folder: pathlib.Path) -> pathlib.Path:
    from PIL import Image

    for number, image in enumerate(_images()):
        place = folder / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        ending = ("png", "jpg", "webp", "bmp", "gif", "tiff")[number % 6]
        Image.fromarray(image).save(place / f"{number}.{ending}")
    return folder / "photos"


def _features_file(folder: pathlib.Path, *, ending: str) -> pathlib.Path:
    path = folder / f"features.{ending}"
    if ending == "npy":
        np.save(path, _features())
    elif ending == "npz":
        np.savez(path, train=_features(), test=_features(4))
    else:
        import torch

        torch.save({"train": torch.from_numpy(_features())}, path)
    return path


def _read_features(path: pathlib.Path) -> Any:
    found = features.read(str(path), train=COUNT, test=4, views=("rot0",))
    return {"train": np.asarray(found.train)}


def _network() -> dict[str, np.ndarray]:
    """Tensors of a narrow ResNet of one block per stage, named as torchvision names them."""
    generator = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {"conv1.weight": generator.normal(size=(4, 3, 3, 3))}

    def norm(name: str, width: int) -> None:
        for leaf, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            tensors[f"{name}.{leaf}"] = np.full(width, value)

    norm("bn1", 4)
    for stage, (before, width) in enumerate(((4, 4), (4, 8), (8, 16), (16, 32)), start=1):
        block = f"layer{stage}.0"
        tensors[f"{block}.conv1.weight"] = generator.normal(size=(width, before, 3, 3))
        tensors[f"{block}.conv2.weight"] = generator.normal(size=(width, width, 3, 3))
        norm(f"{block}.bn1", width)
        norm(f"{block}.bn2", width)
        if stage > 1:
            tensors[f"{block}.downsample.0.weight"] = generator.normal(size=(width, before, 1, 1))
            norm(f"{block}.downsample.1", width)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def _weights(folder: pathlib.Path, *, ending: str) -> pathlib.Path:
    path, tensors = folder / f"network.{ending}", _network()
    if ending == "pt":
        import torch

        torch.save({"state_dict": {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}}, path)
    else:
        import safetensors.numpy

        safetensors.numpy.save_file(tensors, path)
    return path


def _flax_tree() -> dict[str, Any]:
    network = resnet.ResNet(4, (1, 1, 1, 1))
    return dict(network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))


def _msgpack(folder: pathlib.Path) -> pathlib.Path:
    from flax import serialization

    (folder / "network.msgpack").write_bytes(serialization.msgpack_serialize(jax.device_get(_flax_tree())))
    return folder / "network.msgpack"


def _zip(folder: pathlib.Path) -> pathlib.Path:
    """Tiny ImageNet's archive, with a few images of two classes."""
    import zipfile

    from PIL import Image

    names = ("n01443537", "n01629819")
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", "\n".join(names))
        lines = []
        for number, image in enumerate(_images()):
            packed = io.BytesIO()
            Image.fromarray(image).save(packed, "JPEG")
            name = names[number % 2]
            if number < 8:
                archive.writestr(f"tiny-imagenet-200/train/{name}/images/{name}_{number}.JPEG", packed.getvalue())
            else:
                archive.writestr(f"tiny-imagenet-200/val/images/val_{number}.JPEG", packed.getvalue())
                lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t7\t7")
        archive.writestr("tiny-imagenet-200/val/val_annotations.txt", "\n".join(lines))
    return folder / "tiny-imagenet-200.zip"


def _read_zip(path: pathlib.Path) -> Any:
    settings = configuration.default().data
    settings.name, settings.data_dir, settings.image_size = "tiny_imagenet", str(path.parent), SIDE
    return loading.load(settings).train_images


def _aircraft(folder: pathlib.Path, *, ending: str) -> pathlib.Path:
    """FGVC-Aircraft's archive, with a few images of two variants."""
    from PIL import Image

    names = [f"{number:07d}" for number in range(COUNT)]
    lines = [f"{name} {('707-320', 'A 300')[number % 2]}" for number, name in enumerate(names)]
    texts = {"variants": "707-320\nA 300", "images_variant_trainval": "\n".join(lines[:8])}
    texts["images_variant_test"] = "\n".join(lines[8:])
    contents = {f"{name}.txt": text.encode() for name, text in texts.items()}
    for name, image in zip(names, _images(), strict=True):
        packed = io.BytesIO()
        Image.fromarray(image).save(packed, "JPEG")
        contents[f"images/{name}.jpg"] = packed.getvalue()
    path = folder / f"fgvc-aircraft-2013b.{ending}"
    with tarfile.open(path, "w:gz" if ending.endswith("gz") else "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"fgvc-aircraft-2013b/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _read_aircraft(path: pathlib.Path) -> Any:
    settings = configuration.default().data
    settings.name, settings.data_dir, settings.image_size = "aircraft", str(path), SIDE
    return loading.load(settings).train_images


def _tfds(folder: pathlib.Path) -> pathlib.Path:
    """A data set that TFDS has prepared."""
    import tensorflow_datasets as tfds
    from PIL import Image

    rows = []
    for number, image in enumerate(_images()):
        packed = io.BytesIO()
        Image.fromarray(image).save(packed, "PNG")
        rows.append({"image": packed.getvalue(), "label": number % 2})

    class Fuzzed(tfds.core.GeneratorBasedBuilder):
        """Two classes."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            label = tfds.features.ClassLabel(names=["cat", "dog"])
            contents = {"image": tfds.features.Image(shape=(SIDE, SIDE, 3)), "label": label}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(contents))

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples(rows), "test": self._generate_examples(rows[:4])}

        def _generate_examples(self, chosen: Any) -> Any:
            return enumerate(chosen)

    Fuzzed(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder / "fuzzed"


def _read_tfds(path: pathlib.Path) -> Any:
    settings = configuration.default().data
    settings.name, settings.data_dir = "tfds:fuzzed", str(path.parent)
    return loading.load(settings).train_images


def _orbax(folder: pathlib.Path) -> pathlib.Path:
    import orbax.checkpoint as ocp

    ocp.PyTreeCheckpointer().save(folder / "network", _flax_tree())
    return folder / "network"


def _run_teacher(folder: pathlib.Path) -> pathlib.Path:
    """A teacher as a run keeps it."""
    variables = jax.device_get(_flax_tree())
    place = folder / "teacher"
    checksum = files.write_tensors(place / "teacher.safetensors", variables, sealed=False)
    about = {"mean": [0.5] * 3, "std": [0.25] * 3, "sha256": checksum}
    files.write_sealed(place / "teacher.json", about)
    return place


def _parquet(folder: pathlib.Path) -> pathlib.Path:
    """Pairs as the hub has them."""
    import pyarrow
    import pyarrow.parquet

    (folder / "hub" / "data").mkdir(parents=True)
    images = _images().astype(np.float32).reshape(COUNT, -1)
    columns = {"pixel_values": images.reshape(COUNT, SIDE, SIDE, 3).tolist(), "target": _features().tolist()}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "hub" / "data" / "train.parquet")
    return folder / "hub"


def _hugging_face(folder: pathlib.Path) -> pathlib.Path:
    import safetensors.numpy

    place = folder / "hub"
    place.mkdir()
    safetensors.numpy.save_file(_network(), place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_features": 32}))
    return place


def _read_weights(path: pathlib.Path) -> Any:
    moments = np.full(3, 0.5), np.full(3, 0.25)
    variables, _ = pretrained.load(str(path), image_shape=(32, 32, 3), moments=moments)
    return variables


READERS = {
    "set": Reader(functools.partial(_save_set, parameterized=False), _read_set, ("safetensors", "json"), exact=True),
    "set_of_bases": Reader(
        functools.partial(_save_set, parameterized=True), _read_set, ("safetensors", "json"), exact=True
    ),
    "set_packed": Reader(
        functools.partial(_save_set, parameterized=True, images="int5"), _read_set, ("safetensors", "json"), exact=True
    ),
    "set_coded": Reader(
        functools.partial(_save_set, parameterized=False, images="webp"), _read_set, ("safetensors", "json"), exact=True
    ),
    "export_npz": Reader(functools.partial(_export, form="npz"), _read_export, ("npz",)),
    "export_png": Reader(functools.partial(_export, form="png"), _read_export, ("png", "npy", "json")),
    "export_safetensors": Reader(functools.partial(_export, form="safetensors"), _read_export, ("safetensors",)),
    "export_krr_st": Reader(functools.partial(_export, form="krr_st"), _read_export, ("pt", "json")),
    "npz": Reader(_npz, functools.partial(_data, kind="npz"), ("npz",)),
    "npy": Reader(_npy, functools.partial(_data, kind="npy"), ("npy",)),
    "folder": Reader(_pictures, functools.partial(_data, kind="folder"), ("png",)),
    "features_npy": Reader(functools.partial(_features_file, ending="npy"), _read_features, ("npy",)),
    "features_npz": Reader(functools.partial(_features_file, ending="npz"), _read_features, ("npz",)),
    "features_pt": Reader(functools.partial(_features_file, ending="pt"), _read_features, ("pt",)),
    "weights_pt": Reader(functools.partial(_weights, ending="pt"), _read_weights, ("pt",)),
    "weights_safetensors": Reader(functools.partial(_weights, ending="safetensors"), _read_weights, ("safetensors",)),
    "weights_msgpack": Reader(_msgpack, _read_weights, ()),
    "tiny_imagenet": Reader(_zip, _read_zip, ()),
    "aircraft_tar": Reader(functools.partial(_aircraft, ending="tar"), _read_aircraft, ("tar",)),
    "aircraft_tar_gz": Reader(functools.partial(_aircraft, ending="tar.gz"), _read_aircraft, ()),
    "tfds": Reader(_tfds, _read_tfds, ("json",)),
    "weights_orbax": Reader(_orbax, _read_weights, ()),
    "weights_of_run": Reader(_run_teacher, _read_weights, ("safetensors", "json")),
    "weights_folder": Reader(_hugging_face, _read_weights, ("safetensors", "json")),
}
if importlib.util.find_spec("pyarrow") is not None:
    READERS["parquet"] = Reader(_parquet, _read_export, ())
