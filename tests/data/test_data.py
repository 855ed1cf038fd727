"""`Dataset`, `load`, the choice of rows, and the sources that are arrays."""

import dataclasses
import io

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ml_collections import ConfigDict

from ssdd_jax.data import Dataset, load
from ssdd_jax.data.source import hold_out, limit
from ssdd_jax.errors import UserError

IMAGES = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
LABELS = np.array([0, 1, 1, 0], np.int32)
DEFAULTS = {
    "data_dir": "",
    "train_split": "train",
    "test_split": "test",
    "image_size": 0,
    "train_limit": 0,
    "test_fraction": 0.2,
    "cache_dir": "",
}


def settings(name, **changes):
    return ConfigDict(DEFAULTS | {"name": str(name)} | changes)


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def refused(text, name, **changes):
    """`load` raises a UserError of one line that holds the text."""
    with pytest.raises(UserError, match=text) as caught:
        load(settings(name, **changes))
    assert "\n" not in str(caught.value)


def test_dataset_properties():
    dataset = Dataset("mine", IMAGES, LABELS, IMAGES, LABELS, ("cat", "dog"))
    assert dataset.image_shape == (2, 2, 3)
    assert dataset.classes == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"
    assert Dataset("mine", IMAGES).classes == 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train_images": IMAGES.astype(np.float32)}, "must be a uint8"),
        ({"train_images": IMAGES.tolist()}, "must be a uint8 NumPy array, not list"),
        ({"train_images": IMAGES[..., :2]}, r"not \(4, 2, 2, 2\)"),
        ({"train_images": IMAGES[:0]}, r"not \(0, 2, 2, 3\)"),
        ({"train_images": IMAGES[0]}, r"not \(2, 2, 3\)"),
        ({"test_images": IMAGES[:, :1]}, "2x2x3 and the test images 1x2x3"),
        ({"train_labels": LABELS[:3]}, "4 training images but 3 labels"),
        ({"train_labels": LABELS.astype(np.int64)}, "must be an int32"),
        ({"test_labels": LABELS + 1}, r"run from 1 to 2 and must lie in 0\.\.1"),
        ({"test_labels": LABELS - 1}, "-1 marks a split without labels"),
        ({"test_labels": None}, "only one of the training and the test images"),
        ({"test_images": None}, "test labels but no test images"),
        ({"class_names": ()}, "0 class names but some training labels"),
        ({"train_labels": None, "test_labels": None}, "2 class names but no training labels"),
    ],
)
def test_dataset_refuses(changes, text):
    good = Dataset("mine", IMAGES, LABELS, IMAGES, LABELS, ("cat", "dog"))
    with pytest.raises(UserError, match=f"mine: .*{text}"):
        dataclasses.replace(good, **changes)


def test_digits():
    dataset = load(settings("digits"))
    assert dataset.train_images.shape == (1438, 8, 8, 1) and dataset.test_images.shape == (359, 8, 8, 1)
    assert dataset.train_images.max() == 255 and dataset.train_images.min() == 0
    assert dataset.class_names == tuple("0123456789")
    assert set(np.bincount(dataset.test_labels)) <= {34, 35, 36, 37}
    larger = load(settings("digits", image_size=16))
    assert larger.image_shape == (16, 16, 1)
    np.testing.assert_array_equal(larger.train_labels, dataset.train_labels)
    # Doubling keeps the mean, and halving again gives nearly the same picture.
    halves = larger.train_images.reshape(-1, 8, 2, 8, 2, 1).mean((2, 4))
    assert abs(halves.mean() - dataset.train_images.mean()) < 3
    assert np.corrcoef(halves.ravel(), dataset.train_images.ravel())[0, 1] > 0.95


def test_train_limit_is_nested_and_leaves_the_test_images():
    full, ten, five = (load(settings("digits", train_limit=n)) for n in (0, 10, 5))
    assert len(ten.train_images) == 10
    np.testing.assert_array_equal(five.train_images, ten.train_images[:5])
    np.testing.assert_array_equal(full.test_images, ten.test_images)
    assert len(set(ten.train_labels.tolist())) > 3
    assert len(load(settings("digits", train_limit=10**6)).train_images) == len(full.train_images)


@pytest.mark.parametrize(("labels", "changes"), [(np.zeros(4, np.int32), {}), (LABELS, {"train_limit": 1})])
def test_labels_of_a_single_class_are_no_labels(labels, changes, tmp_path):
    name = save(tmp_path / "one.npz", train_images=IMAGES, train_labels=labels, class_names=["cat", "dog"])
    dataset = load(settings(name, test_fraction=0.25, **changes)).with_labels_that_tell()
    assert dataset.train_labels is None and dataset.test_labels is None and dataset.class_names == ()
    assert dataset.notes[-1].startswith("no labels: all training images are of one class")


def test_no_part_held_out():
    dataset = load(settings("digits", test_fraction=0.0))
    assert len(dataset.train_images) == 1797 and dataset.test_images is None and dataset.test_labels is None


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("cifar10", {}, "digits, tfds:NAME.*did you mean tfds:cifar10"),
        ("imagenet_resized/64x64", {}, "did you mean tfds:imagenet_resized/64x64"),
        ("folder:", {}, "must be digits, tfds:NAME, tiny_imagenet, aircraft, folder:PATH, npz:PATH or npy:PATH"),
        ("", {}, "must be"),
        ("digits", {"image_size": -1}, "image_size must be 0 or"),
        ("digits", {"train_limit": -1}, "train_limit must be 0"),
        ("digits", {"test_fraction": 1.0}, "test_fraction must be"),
        ("digits", {"train_split": "test"}, "are both 'test'"),
    ],
)
def test_settings_refused(name, changes, text):
    refused(text, name, **changes)


@hypothesis.given(
    labels=hnp.arrays(np.int32, st.integers(5, 60), elements=st.integers(0, 4)), fraction=st.floats(0.05, 0.7)
)
def test_hold_out_parts_the_rows_by_class(labels, fraction):
    kept, held = hold_out(len(labels), labels, fraction)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(labels)))
    np.testing.assert_array_equal(hold_out(len(labels), labels, fraction)[1], held)
    share = len(held) / len(labels)
    for label in range(5):
        assert abs(np.sum(labels[held] == label) - share * np.sum(labels == label)) < 3
    assert len(hold_out(len(labels), None, fraction)[1]) == len(held)


def test_hold_out_and_limit_never_change():
    """The choices are part of what makes a published number comparable: they must not move."""
    assert hold_out(10, None, 0.3)[1].tolist() == [2, 4, 8]
    assert hold_out(10, np.arange(10) % 2, 0.4)[1].tolist() == [1, 2, 8, 9]
    assert limit(np.arange(10), 4).tolist() == [2, 9, 6, 4]
    with pytest.raises(UserError, match="cannot hold out 1 of 1"):
        hold_out(1, None, 0.2)


@hypothesis.given(
    images=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5).map(lambda shape: (*shape[:3], 3)))
)
def test_npz_keeps_pixels(tmp_path_factory, images):
    name = save(tmp_path_factory.mktemp("npz") / "a.npz", x=images, x_test=images)
    dataset = load(settings(name))
    np.testing.assert_array_equal(dataset.train_images, images)
    np.testing.assert_array_equal(dataset.test_images, images)
    assert dataset.train_labels is None


@pytest.mark.parametrize(
    "keys", [("train_images", "train_labels"), ("images", "labels"), ("x_train", "y_train"), ("x", "y")]
)
def test_npz_names_and_held_out_part(tmp_path, keys):
    images, labels = np.repeat(IMAGES, 5, axis=0), np.repeat(LABELS, 5)[:, None].astype(np.int64)
    dataset = load(settings(save(tmp_path / "a.npz", **dict(zip(keys, (images, labels), strict=True)))))
    assert len(dataset.train_images) == 16 and len(dataset.test_images) == 4
    assert dataset.class_names == ("0", "1")
    assert sorted(dataset.test_labels.tolist()) == [0, 0, 1, 1]


def test_npz_class_names_floats_and_grey(tmp_path):
    grey = IMAGES[..., 0]
    name = save(
        tmp_path / "a.npz",
        x_train=grey.astype(np.float64) / 255,
        y_train=LABELS,
        test_images=grey,
        test_labels=LABELS,
        class_names=np.array(["cat", "dog"]),
    )
    dataset = load(settings(name))
    np.testing.assert_array_equal(dataset.train_images, grey[..., None])
    np.testing.assert_array_equal(dataset.test_images, grey[..., None])
    assert dataset.class_names == ("cat", "dog")
    assert load(settings(name, image_size=5)).image_shape == (5, 5, 1)
    assert len(load(settings(name, test_split="", test_fraction=0.5)).test_images) == 2


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"pictures": IMAGES}, "holds no images: name the array one of train_images"),
        ({"x": np.zeros((2, 8), np.uint8)}, r"a.npz must have the shape .* not \(2, 8\)"),
        ({"x": np.zeros((0, 8, 8, 3), np.uint8)}, r"not \(0, 8, 8, 3\)"),
        (
            {"x": IMAGES * 8.0},
            "a.npz must be uint8, 0 to 255, not float64 from 0 to 376: if these are pixels of 10 bits",
        ),
        ({"x": IMAGES.astype(np.int64) - 9}, "int64 from -9 to 38: scale them"),
        ({"x": np.full((2, 8, 8, 3), np.nan)}, "values that are not finite"),
        ({"x": np.full((2, 8, 8, 3), "a")}, "must be numbers, not <U1"),
        ({"x": IMAGES, "y": LABELS - 1}, "labels from -1 to 0"),
        ({"x": IMAGES, "y": LABELS + 0.5}, "labels as float64 .*one whole number or name per image"),
        ({"x": IMAGES, "y": np.array([0, 1, np.nan, 1])}, "labels as float64"),
        ({"x": IMAGES, "y": np.eye(4, dtype=np.int32)}, r"shape \(4, 4\).*labels.argmax\(1\), if these are one-hot"),
        (
            {"x": IMAGES, "y": LABELS, "x_test": IMAGES, "y_test": LABELS.astype(str)},
            "names and labels that are numbers",
        ),
        (
            {"x": IMAGES, "y": LABELS[:3], "x_test": IMAGES, "y_test": LABELS},
            "3 labels for 4 images",
        ),
        ({"x": IMAGES, "y": LABELS, "x_test": IMAGES}, "only one of"),
        ({"x": IMAGES, "y_test": LABELS}, "test labels but no test images"),
        ({"x": np.array([None, 1], object)}, "pickled objects, which are never loaded"),
    ],
)
def test_npz_refused(tmp_path, arrays, text):
    refused(text, save(tmp_path / "a.npz", **arrays))


def test_npz_parts_under_other_names(tmp_path):
    """A validation part stands for a missing test part, and what is not read is named."""
    parts = {"x_train": IMAGES, "y_train": LABELS, "x_val": IMAGES[:2] + 1, "y_val": LABELS[:2]}
    dataset = load(settings(save(tmp_path / "a.npz", **parts)))
    np.testing.assert_array_equal(dataset.test_images, IMAGES[:2] + 1)
    assert dataset.notes == ()
    more = parts | {"x_test": IMAGES[2:], "y_test": LABELS[2:], "ids": np.arange(4)}
    dataset = load(settings(save(tmp_path / "a.npz", **more)))
    np.testing.assert_array_equal(dataset.test_images, IMAGES[2:])
    assert dataset.notes == (f"not read: x_val, y_val, ids in {tmp_path / 'a.npz'}",)


def test_one_file_of_images(tmp_path):
    np.save(tmp_path / "images.npy", np.repeat(IMAGES, 3, 0))
    assert load(settings(f"npy:{tmp_path / 'images.npy'}")).train_images.shape == (10, 2, 2, 3)


def test_npz_damaged(tmp_path):
    path = tmp_path / "a.npz"
    refused("is not a file", f"npz:{path}")
    save(path, x=IMAGES)
    content = path.read_bytes()
    for damaged in (
        b"",
        b"not an archive",
        content[: len(content) // 2],
        content[:150] + b"x" * 20 + content[170:],
    ):
        path.write_bytes(damaged)
        refused("a.npz (is not a file of NumPy arrays|holds pickled)", f"npz:{path}")
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    path.write_bytes(buffer.getvalue())
    refused("a single array", f"npz:{path}")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "a.npz", x=IMAGES, x_test=IMAGES)
    assert load(settings("npz:~/a.npz")).image_shape == (2, 2, 3)
