"""Archives, folders of images and parquet files that others made: what is read of them, and what is refused."""

import numpy as np
import pytest
from helpers import CHANNELS, DIM, SIZE, bytes_and_features, normal
from PIL import Image
from test_formats import COUNT, NOTHING_KNOWN, SETS, Bomb, equal, refused

from ssdd_jax import formats
from ssdd_jax.data import preprocess
from ssdd_jax.runtime import files


def archive(path, **arrays):
    images, features = bytes_and_features(COUNT)
    made = {"images": images, "targets": features} | arrays
    np.savez(path, **{name: value for name, value in made.items() if value is not None})
    return images, features


def test_an_archive_of_bytes_is_normalised(tmp_path):
    """By its own moments if it names none."""
    images, features = archive(tmp_path / "own.npz")
    found = formats.read(tmp_path / "own.npz")
    equal(found.pairs()[1:], [features])
    inputs = np.asarray(found.pairs()[0], np.float64)
    np.testing.assert_allclose(inputs.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std((0, 1, 2)), 1, atol=1e-5)
    constants = {"image_mean": np.float32([0.1, 0.2, 0.3]), "image_std": np.float64(0.5), "target_scale": 3.0}
    archive(tmp_path / "given.npz", **constants)
    found = formats.read(tmp_path / "given.npz")
    np.testing.assert_allclose(found.pairs()[0], (images / 255 - constants["image_mean"]) / 0.5, atol=1e-6)
    equal(found.pairs()[1:], [features])
    assert found.preprocessing.target_scale == 3 and found.preprocessing.image_std.tolist() == [0.5] * 3


@pytest.mark.parametrize("names", [("x", "y"), ("x_syn", "y_syn"), ("images", "targets")])
def test_an_archive_of_floats_is_taken_as_it_is(tmp_path, names):
    inputs, targets = normal(0, COUNT, SIZE, SIZE, CHANNELS), normal(1, COUNT, DIM)
    np.savez(tmp_path / "a.npz", **dict(zip(names, (inputs, np.asarray(targets, np.float64)), strict=True)))
    found = formats.read(tmp_path / "a.npz")
    equal(found.pairs(), (inputs, targets))
    assert [value.tolist() for value in found.preprocessing] == list(NOTHING_KNOWN)
    assert found.about == {"method": "imported", "from": "npz"}


def test_an_exported_archive_stands_alone(tmp_path):
    """Without the folder's `constants.json` only words are lost."""
    made = SETS["pairs"]()
    formats.write(made, tmp_path, "npz")
    moved = tmp_path / "moved.npz"
    (tmp_path / "pairs.npz").rename(moved)
    found = formats.read(moved)
    equal(found.pairs(), made.pairs())
    equal(found.preprocessing, made.preprocessing)
    assert found.statics == made.statics and found.about == {"method": "imported", "from": "npz"}


ARCHIVES = {
    "no images": ({"images": None}, "holds no images: name the array one of images, x, x_syn"),
    "no targets": ({"targets": None}, "holds no targets: name the array one of targets, y, y_syn"),
    "channels first": ({"images": np.zeros((6, 3, 8, 8))}, r"channels first: save it as \(P,H,W,C\), transposed by"),
    "grey without an axis": ({"images": np.zeros((6, 8, 8), np.uint8)}, r"images in .* has the shape \(6, 8, 8\)"),
    "integers": ({"images": np.zeros((6, 8, 8, 3), np.int32)}, "holds int32: network inputs as floats are needed"),
    "words": ({"targets": np.array([["a"]] * 6)}, "targets in .* holds <U1, apparently labels"),
    "labels": ({"targets": np.arange(6)}, "holds int64, apparently labels: target features"),
    "not finite": ({"targets": np.full((6, 2), np.nan)}, "targets in .* holds values that are not finite"),
    "counts": ({"targets": np.zeros((7, 2))}, "holds 6 images and 7 targets"),
    "half the constants": ({"image_mean": np.zeros(3)}, "image_mean and image_std are given together or not at all"),
    "short constants": ({"target_mean": np.zeros(2)}, "target_mean must be 6 finite numbers"),
    "no deviation": ({"image_mean": 0.0, "image_std": 0.0}, "image_std must be 3 finite numbers above 0"),
    "scales": ({"target_scale": np.ones(2)}, "target_scale must be one finite number above 0"),
    "a rate below 0": ({"learning_rate": -0.1}, "learning_rate must be one finite number above 0"),
    "pickled": ({"images": np.array([Bomb()], dtype=object)}, "holds pickled objects, which are never loaded"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_are_refused(tmp_path, case):
    changes, words = ARCHIVES[case]
    archive(tmp_path / "a.npz", **changes)
    refused(words, tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_damaged_archives_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    refused("a.npz is not a file of NumPy arrays, or a damaged one|pickled objects", tmp_path / "a.npz")


# Folders of images.


def folder_of_images(path, *, mode="RGB", size=SIZE, extension="png", count=COUNT, targets=True):
    """Images at two depths, and targets of their rows."""
    images, features = bytes_and_features(count, size=size, channels=1 if mode == "L" else 3)
    (path / "b").mkdir(parents=True)
    names = [f"a{row}.{extension}" if row < 3 else f"b/{row}.{extension.upper()}" for row in range(count)]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image[..., 0] if mode == "L" else image).save(path / name)
    if targets:
        np.save(path / "features.npy", features)
    return images, features


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_folder_of_images(tmp_path, mode):
    """In the order of their paths, normalised by their own moments; grey stays grey."""
    images, features = folder_of_images(tmp_path, mode=mode)
    (tmp_path / ".hidden.png").write_text("no image")
    found = formats.read(tmp_path)
    mean, std = preprocess.channel_moments(images)
    np.testing.assert_allclose(found.pairs()[0], (images / 255 - mean) / std, atol=1e-5)
    equal(found.pairs()[1:], [features])
    assert found.about == {"method": "imported", "from": "png"} and len(mean) == (1 if mode == "L" else 3)


def test_one_coloured_image_makes_all_rgb(tmp_path):
    folder_of_images(tmp_path, mode="L")
    Image.fromarray(bytes_and_features(1)[0][0]).save(tmp_path / "a1.png")
    images = formats.read(tmp_path).images()
    assert images.shape == (COUNT, SIZE, SIZE, 3)
    np.testing.assert_allclose(images[0, ..., 0], images[0, ..., 2], atol=1e-5)


def test_given_constants_of_a_folder(tmp_path):
    images, _ = folder_of_images(tmp_path, extension="bmp")
    files.write_json(tmp_path / "constants.json", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 1.0]})
    inputs = formats.read(tmp_path).pairs()[0]
    np.testing.assert_allclose(inputs, (images / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1.0], atol=1e-5)


@pytest.mark.parametrize("name", ["targets", "whatever"])
def test_features_in_an_archive(tmp_path, name):
    _, features = folder_of_images(tmp_path, targets=False)
    np.savez(tmp_path / "features.npz", **{name: features})
    equal(formats.read(tmp_path).pairs()[1:], [features])
    np.savez(tmp_path / "features.npz", one=features, two=features)
    refused("features.npz holds one, two: name the array targets", tmp_path)


def another_size(path):
    Image.new("RGB", (8, 9)).save(path / "a2.png")


def no_images(path):
    for file in [*path.glob("*.png"), *path.glob("b/*")]:
        file.unlink()


FOLDERS = {
    "counts": (lambda p: np.save(p / "features.npy", np.zeros((5, 2))), "holds 6 images and 5 targets"),
    "labels": (lambda p: np.save(p / "features.npy", np.arange(6)), "features.npy holds int64, apparently labels"),
    "one axis": (lambda p: np.save(p / "features.npy", np.zeros(6)), r"features.npy has the shape \(6,\)"),
    "pickled": (lambda p: np.save(p / "features.npy", np.array([Bomb()])), "features.npy holds pickled objects"),
    "damaged": (lambda p: (p / "a1.png").write_text("no image"), "a1.png is not an image that can be read"),
    "another size": (another_size, r"differ in size: .*a0.png is 8x8 and .*a2.png is 8x9 \(width x height\)"),
    "no images": (no_images, "holds no images"),
    "no features": (lambda p: (p / "features.npy").unlink(), "the supported forms are .*features.npy or features.npz"),
    "constants of other channels": (
        lambda p: files.write_json(p / "constants.json", {"image_mean": [0.5], "image_std": [0.5]}),
        "image_mean must be 3 finite numbers",
    ),
    "constants in words": (
        lambda p: files.write_json(p / "constants.json", {"image_mean": "half", "image_std": "half"}),
        "image_mean must be 3 finite numbers",
    ),
    "a budget in words": (
        lambda p: files.write_json(p / "constants.json", {"N": "twenty"}),
        "N is 'twenty', and must be a whole number above 0",
    ),
    "a method that is a number": (
        lambda p: files.write_json(p / "constants.json", {"method": 3}),
        "method is 3, and must be text",
    ),
    "a list of constants": (lambda p: files.write_json(p / "constants.json", [1]), "is not a JSON object of constants"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_refused(tmp_path, case):
    damage, words = FOLDERS[case]
    folder_of_images(tmp_path)
    damage(tmp_path)
    refused(words, tmp_path)


# Parquet files.


def parquet(folder, name="a.parquet", **columns):
    arrow = pytest.importorskip("pyarrow")
    made = {"pixel_values": np.zeros((COUNT, 8, 8, 3)).tolist(), "target": np.zeros((COUNT, DIM)).tolist()} | columns
    (folder / "data").mkdir(exist_ok=True)
    table = arrow.table({key: value for key, value in made.items() if value is not None})
    pytest.importorskip("pyarrow.parquet").write_table(table, folder / "data" / name)


def test_parquet_of_others(tmp_path):
    """Lists of any length, float64, in several files."""
    inputs, targets = normal(0, COUNT, 2, 4, 3), normal(1, COUNT, 5)
    for name, rows in (("1.parquet", slice(4, None)), ("0.parquet", slice(4))):
        columns = {"pixel_values": inputs[rows].tolist(), "target": targets[rows].tolist()}
        parquet(tmp_path, name, **columns)
    equal(formats.read(tmp_path).pairs(), (inputs, targets))


PARQUETS = {
    "no inputs": ({"pixel_values": None}, "has no column 'pixel_values': pixel_values and target are needed"),
    "labels": ({"target": list(range(COUNT))}, "target in .* holds int64, apparently labels"),
    "ragged": ({"target": [[1.0], [1.0, 2.0]] * 3}, "target in .* has rows of different sizes"),
    "empty cells": ({"target": [None, [1.0]] * 3}, "target in .* has empty cells"),
    "words": ({"target": [["a"]] * COUNT}, "target in .* holds string: floats are needed"),
    "channels first": ({"pixel_values": np.zeros((COUNT, 3, 8, 8)).tolist()}, "channels first"),
}


@pytest.mark.parametrize("case", PARQUETS)
def test_parquet_that_is_refused(tmp_path, case):
    columns, words = PARQUETS[case]
    parquet(tmp_path, **columns)
    refused(words, tmp_path)


def test_damaged_parquet_is_refused(tmp_path):
    parquet(tmp_path)
    parquet(tmp_path, "b.parquet", target=np.zeros((COUNT, 2)).tolist())
    refused("differ in shape", tmp_path)
    (tmp_path / "data" / "a.parquet").write_text("none")
    refused("a.parquet is not a parquet file, or a damaged one", tmp_path)


def test_parquet_with_a_name_that_is_not_utf8_is_refused(tmp_path):
    parquet(tmp_path)
    file = tmp_path / "data" / "a.parquet"
    content = file.read_bytes()
    assert b"target" in content
    file.write_bytes(content.replace(b"target", b"\xff\xferget"))
    refused("a.parquet is not a parquet file, or a damaged one", tmp_path)
