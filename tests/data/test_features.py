"""Precomputed features: types of numbers, and features or images that are all the same."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import ssdd_jax
from ssdd_jax import data
from ssdd_jax.data import features
from ssdd_jax.errors import UserError

COUNT = 12
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
FEATURES = np.random.default_rng(1).normal(size=(COUNT, 5)).astype(np.float32)


def read(path):
    return features.read(str(path), train=COUNT, test=0, views=("rot90",))


@pytest.mark.parametrize("kind", [np.float16, np.float64, jnp.bfloat16])
def test_files_of_every_floating_point_type_are_read(kind, tmp_path):
    """NumPy stores bfloat16 as bytes without a type."""
    given = FEATURES.astype(kind)
    np.save(tmp_path / "features.npy", given)
    np.savez(tmp_path / "features.npz", train=given, rot90=-given)
    for name in ("features.npy", "features.npz"):
        found = read(tmp_path / name)
        assert found.train.dtype == np.float32
        np.testing.assert_array_equal(found.train, given.astype(np.float32))
    np.testing.assert_array_equal(found.views["rot90"], -given.astype(np.float32))


@pytest.mark.parametrize("kind", ["array", "function", "mapping"])
def test_bfloat16_features_in_memory(kind):
    half = jnp.asarray(FEATURES, jnp.bfloat16)
    given = {"array": half, "function": lambda images: half[: len(images)], "mapping": {"train": half}}[kind]
    found = ssdd_jax.distill(IMAGES, given, N=3, method="random", say=lambda line: None)
    # Eight bits of a bfloat16's fraction are all that differs.
    _, wanted = ssdd_jax.distill(IMAGES, FEATURES, N=3, method="random", say=lambda line: None).pairs()
    np.testing.assert_allclose(found.pairs()[1], wanted, atol=0.03)


@pytest.mark.parametrize("name", ["features", "arr_0", "embeddings"])
def test_an_archive_of_one_array_has_the_features(name, tmp_path):
    np.savez(tmp_path / "features.npz", **{name: FEATURES})
    np.testing.assert_array_equal(read(tmp_path / "features.npz").train, FEATURES)
    for other in ({name: FEATURES, "ids": np.arange(COUNT)}, {"rot90": FEATURES}, {"test": FEATURES}):
        np.savez(tmp_path / "features.npz", **other)
        with pytest.raises(UserError, match="has no array named train: it holds"):
            read(tmp_path / "features.npz")


@pytest.mark.parametrize("kind", ["tensor", "half with gradients", "by name", "maps"])
def test_files_of_tensors(kind, tmp_path):
    tensor = torch.tensor(FEATURES)
    content = {
        "tensor": tensor,
        "half with gradients": tensor.bfloat16().requires_grad_(),
        "by name": {"train": tensor, "rot90": -tensor},
        "maps": tensor[:, :, None, None],
    }[kind]
    torch.save(content, tmp_path / "features.pt")
    found = read(tmp_path / "features.pt")
    wanted = tensor.bfloat16().float() if "half" in kind else tensor
    np.testing.assert_array_equal(found.train, wanted.numpy())
    assert ("rot90" in found.views) == (kind == "by name")


def test_what_is_no_file_of_features(tmp_path):
    (tmp_path / "features.csv").write_text("1,2")
    (tmp_path / "features.pt").write_bytes(b"damaged")
    torch.save(threading.Lock, tmp_path / "features.pth")
    for name, words in (
        ("features.csv", "is not .npy, .npz or .pt: save the array with numpy.save"),
        ("features.pt", "is not a file of tensors, or is damaged"),
        ("features.pth", "is not a file of tensors, or is damaged"),
        ("none.npy", "there is no file"),
    ):
        with pytest.raises(UserError, match=words) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_order_in_memory_changes_nothing(order, tmp_path):
    """Of arrays that scikit-learn returns by columns, in files and in a set that is saved."""
    given = np.array(FEATURES, order=order)
    np.save(tmp_path / "features.npy", given)
    np.testing.assert_array_equal(read(tmp_path / "features.npy").train, FEATURES)
    made = ssdd_jax.distill(np.array(IMAGES, order=order), given, N=3, method="random", say=lambda line: None)
    made.save(tmp_path / "set")
    plain = ssdd_jax.distill(IMAGES, FEATURES, N=3, method="random", say=lambda line: None)
    for found, wanted in zip(ssdd_jax.load(tmp_path / "set").pairs(), plain.pairs(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_features_of_all_images_are_to_be_split():
    with pytest.raises(
        UserError, match="of 12 images, and the data set has 9 training and 3 test .* as test in an .npz"
    ):
        features.check("here", {"train": FEATURES}, train=9, test=3)
    with pytest.raises(UserError, match="train has features of 12 images, the data set has 9 training images"):
        features.check("here", {"train": FEATURES, "test": FEATURES[:3]}, train=9, test=3)


def test_integers_are_no_features(tmp_path):
    with pytest.raises(UserError, match=r"must be floats of shape \(n, D\), not int64"):
        features.check("here", {"train": np.zeros((COUNT, 5), np.int64)}, train=COUNT)


def collapsed(scale=1.0):
    """The same features up to the roundings of a network."""
    noise = np.random.default_rng(2).uniform(1 - 2e-7, 1 + 2e-7, FEATURES.shape)
    return (scale * FEATURES[:1] * noise).astype(np.float32)


@pytest.mark.parametrize("given", [collapsed(), collapsed(1e4), collapsed(1e-9), np.zeros_like(FEATURES)])
def test_a_collapsed_teacher_is_refused_before_anything_is_distilled(given):
    with pytest.raises(UserError, match="features: the features are the same for all 12 images") as error:
        ssdd_jax.distill(IMAGES, given, N=3)
    assert "\n" not in str(error.value) and "collapsed" in str(error.value)
    with pytest.raises(UserError, match="teacher: the features are the same for all 12 images"):
        list(features.varied("teacher", np.split(given, 3), COUNT))


@pytest.mark.parametrize("kind", ["column", "one image", "small", "far from zero"])
def test_features_that_differ_a_little_are_taken(kind):
    given = {
        "column": np.where(np.arange(5) == 3, np.float32(0.5), FEATURES),
        "one image": np.where(np.arange(COUNT)[:, None] == 11, FEATURES, FEATURES[:1]),
        "small": FEATURES * 1e-12,
        "far from zero": 100 + 0.01 * FEATURES,
    }[kind].astype(np.float32)
    assert len(features.check("here", {"train": given}, train=COUNT).train) == COUNT
    assert len(np.concatenate(list(features.varied("here", np.split(given, 3), COUNT)))) == COUNT


def test_images_that_are_all_the_same_are_refused():
    same = np.repeat(IMAGES[:1], COUNT, axis=0)
    with pytest.raises(UserError, match="images: all 12 training images are the same"):
        ssdd_jax.distill(same, FEATURES, N=3)
    same[-1, 0, 0, 0] ^= 1
    data.Dataset("images", same).check_varied()
    data.Dataset("images", IMAGES[:1]).check_varied()
