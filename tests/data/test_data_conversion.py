"""Images and features as notebooks have them: converted, or refused with advice that holds for their values."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import ssdd_jax
from ssdd_jax.data import conversion
from ssdd_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 8, 10, 3), np.uint8)
FEATURES = RNG.normal(size=(12, 5)).astype(np.float32)
SPAN = np.linspace(0, 1, IMAGES.size).reshape(IMAGES.shape)
PIL = [Image.fromarray(image) for image in IMAGES]


class Items:
    """A data set of PyTorch: a length and items by number, and no end of its own."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index % len(self.items)]


def first(images):
    return torch.tensor(np.moveaxis(images, -1, 1))


FORMS = {
    "array": IMAGES,
    "jax": jnp.asarray(IMAGES),
    "int64": IMAGES.astype(np.int64),
    "uint16": IMAGES.astype(np.uint16),
    "float levels": IMAGES.astype(np.float32),
    "float levels with rounding": IMAGES.astype(np.float64) + 1e-3 * (IMAGES < 255),
    "float 0..1": IMAGES / 255,
    "float16 0..1": (IMAGES / 255).astype(np.float16),
    "channels first": IMAGES.transpose(0, 3, 1, 2),
    "torch": torch.tensor(IMAGES),
    "torch, channels first": first(IMAGES),
    "torch, 0..1 with gradients": (first(IMAGES) / 255).requires_grad_(),
    "torch list": [first(IMAGES[i : i + 1])[0] for i in range(12)],
    "torch batches": [first(IMAGES[:7]), first(IMAGES[7:])],
    "nested lists": IMAGES.tolist(),
    "numbers as objects": IMAGES.astype(object),
    "memory": memoryview(IMAGES),
    "PIL": PIL,
    "PIL tuple": tuple(PIL),
    "PIL as objects": np.array([*PIL, None], object)[:-1],
    "PIL of several modes": [*PIL[:-2], PIL[-2].convert("RGBA"), PIL[-1].convert("RGBX")],
    "pairs of a list": [(image, 1) for image in PIL],
    "torch data set": Items([(first(IMAGES[i : i + 1])[0], i % 3) for i in range(12)]),
    "torchvision data set": Items([(image, 1) for image in PIL]),
    "subset": torch.utils.data.Subset(torch.utils.data.TensorDataset(first(IMAGES), torch.arange(12)), range(12)),
    "Hugging Face": Items([{"label": 1, "img": image} for image in PIL]),
    "TFDS, whole": {"image": IMAGES, "label": np.arange(12)},
}


@pytest.mark.parametrize("name", FORMS)
def test_images(name):
    found = conversion.to_images("images", FORMS[name])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, IMAGES)


@pytest.mark.parametrize("scale", [1, 255])
def test_images_of_bfloat16(scale, tmp_path):
    """In memory, and from a file of NumPy, which stores bytes without a type. The type has eight bits of a fraction."""
    half = np.asarray(IMAGES / scale).astype(jnp.bfloat16)
    np.save(tmp_path / "images.npy", half)
    for given in (half, jnp.asarray(half), np.load(tmp_path / "images.npy")):
        found = conversion.to_images("images", given)
        assert found.dtype == np.uint8 and np.abs(found.astype(int) - IMAGES).max() <= 1


def test_pairs_of_bfloat16(tmp_path):
    inputs, targets = (RNG.normal(size=shape).astype(jnp.bfloat16) for shape in ((6, 8, 8, 3), (6, 5)))
    np.savez(tmp_path / "pairs.npz", images=inputs, targets=targets)
    for found, wanted in zip(ssdd_jax.load(tmp_path / "pairs.npz").pairs(), (inputs, targets), strict=True):
        np.testing.assert_array_equal(found, wanted.astype(np.float32))


def test_arrays_of_uint8_are_not_copied():
    assert conversion.to_images("images", IMAGES) is IMAGES


def test_grey_images():
    grey = [image.convert("L") for image in PIL]
    wanted = np.stack([np.asarray(image) for image in grey])[..., None]
    np.testing.assert_array_equal(conversion.to_images("images", grey), wanted)
    np.testing.assert_array_equal(conversion.to_images("images", wanted[..., 0]), wanted)
    np.testing.assert_array_equal(conversion.to_images("images", torch.tensor(wanted[:, None, :, :, 0])), wanted)
    for mixed in ([PIL[0], *grey[1:]], [IMAGES[0], *wanted[1:, ..., 0]]):
        found = conversion.to_images("images", mixed)
        np.testing.assert_array_equal(found[0], IMAGES[0])
        np.testing.assert_array_equal(found[1:], np.repeat(wanted[1:], 3, 3))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([*PIL[:-1], Image.new("RGB", (20, 16))], r"number 0 has the shape \(8, 10, 3\) and number 11 .*\(16, 20, 3\)"),
        (IMAGES.astype(int) - 9, "not int64 from -9 to 246"),
        (IMAGES[0], "that of a single image"),
        (PIL[0], "is a single image"),
        ([], "is empty"),
        (np.zeros((3, 8, 8, 4), np.uint8), r"with transparency: leave it out, as in images\[\.\.\., :3\]"),
        (IMAGES.reshape(12, -1), r"must have the shape .* not \(12, 240\)"),
        (IMAGES * np.nan, "not finite"),
        (4.3 * SPAN, r"from 0 to 4.3: if they were normalised, undo it first"),
        (5 * SPAN - 2, r"from -2 to 3: if they were normalised, undo it first"),
        (IMAGES + 1j, "must be numbers, not complex128"),
        ("photos", "is a path: .*configs/folder.py:photos"),
        (["a.png", "b.png"], r"are paths: open them first, as in \[PIL.Image.open"),
        ([("a.png", 0), ("b.png", 1)], "are paths"),
        ([b"\x89PNG"], r"are encoded: open them first, as in \[PIL.Image.open\(io.BytesIO"),
        (None, "is a NoneType: give an array, a list or a data set"),
        (torch.utils.data.DataLoader(Items(PIL), shuffle=True), "no fixed order.*loader.dataset"),
        ((image for image in PIL), r"a generator has no fixed order.*list\(\.\.\.\)"),
        ({1, 2}, "a set has no fixed order"),
        ([{"picture": image} for image in PIL], "no image under image, img, .* only picture"),
        ([object(), object()], "number 0 must be an array of numbers"),
        ([Image.new("F", (4, 4))] * 3, "number 0: its values are floating-point numbers"),
    ],
)
def test_images_refused(given, words):
    with pytest.raises(UserError, match=words) as caught:
        conversion.to_images("images", given)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("images")


@pytest.mark.parametrize(
    ("images", "pixels"),
    [
        (SPAN > 0.5, 255.0 * (SPAN > 0.5)),
        ((SPAN > 0.5).astype(int), 255.0 * (SPAN > 0.5)),
        (np.rint(16 * SPAN), 255 / 16 * np.rint(16 * SPAN)),
        (np.rint(16 * SPAN).astype(np.uint16), 255 / 16 * np.rint(16 * SPAN)),
        (SPAN * 1.02, 255 * np.clip(SPAN * 1.02, 0, 1)),
        (2 * SPAN - 1, 255 * SPAN),
        (np.rint(1023 * SPAN).astype(np.uint16), 255 * SPAN),
        (np.rint(65535 * SPAN).astype(np.uint16), 255 * SPAN),
    ],
    ids=["booleans", "zeros and ones", "digits", "digits as numbers", "overshoot", "-1..1", "10 bits", "16 bits"],
)
def test_the_advice_is_right_for_the_values(images, pixels):
    """The advice of the message gives the pixels that these values stand for."""
    with pytest.raises(UserError) as caught:
        conversion.to_images("images", images)
    advice = re.search(r"(\(.*?astype\('uint8'\))", str(caught.value).partition(": ")[2]).group(1)
    followed = eval(advice, {"images": images})
    assert followed.dtype == np.uint8
    assert np.abs(followed.astype(float) - pixels).max() <= 1


FORMS_OF_FEATURES = {
    "array": FEATURES,
    "jax": jnp.asarray(FEATURES),
    "torch with gradients": torch.tensor(FEATURES, requires_grad=True),
    "maps of one pixel": torch.tensor(FEATURES)[:, :, None, None],
    "list of rows": [torch.tensor(row, requires_grad=True) for row in FEATURES],
    "list of batches": [torch.tensor(FEATURES[:5]), torch.tensor(FEATURES[5:])],
    "list of batches of maps": [torch.tensor(FEATURES[:5, :, None, None]), torch.tensor(FEATURES[5:, :, None, None])],
    "nested lists": FEATURES.tolist(),
}


@pytest.mark.parametrize("name", FORMS_OF_FEATURES)
def test_features(name):
    np.testing.assert_array_equal(conversion.to_features("features", FORMS_OF_FEATURES[name]), FEATURES)


def test_features_of_half_precision():
    half = torch.tensor(FEATURES).bfloat16()
    wanted = half.float().numpy()
    for given in (half, list(half), [half[:5], half[5:]]):
        np.testing.assert_array_equal(conversion.to_features("features", given), wanted)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([FEATURES[0], FEATURES[1, :3]], r"differ in shape: \(5,\) first, and \(3,\) later"),
        ("features.npy", r"is a path: load its array first, as in numpy.load\('features.npy'\)"),
        ([object()], "must be an array of numbers"),
        ({"pooler_output": FEATURES, "hidden": FEATURES}, "is a mapping with pooler_output, hidden: give one"),
        (None, "is a NoneType"),
    ],
)
def test_features_refused(given, words):
    with pytest.raises(UserError, match=words) as caught:
        conversion.to_features("features", given)
    assert "\n" not in str(caught.value)


def distil(images, features, **options):
    return ssdd_jax.distill(images, features, N=4, method="random", say=lambda line: None, **options)


def test_a_set_is_the_same_of_every_form():
    square = IMAGES[:, :, :8]
    wanted, _ = distil(square, FEATURES).pairs()
    teacher = torch.tensor(FEATURES, requires_grad=True)
    forms = [
        (Items([(first(square[i : i + 1])[0] / 255, i) for i in range(12)]), teacher),
        ([Image.fromarray(image) for image in square], list(teacher)),
        (first(square), lambda images: teacher[: len(images)]),
        (square.astype(np.int32), {"train": teacher, "rot90": teacher}),
    ]
    for images, features in forms:
        np.testing.assert_array_equal(distil(images, features, seed=torch.tensor(0)).pairs()[0], wanted)


def test_a_function_that_returns_all_outputs_of_a_network():
    with pytest.raises(UserError, match="features is a mapping with pooler_output: give one of its arrays"):
        distil(IMAGES, lambda images: {"pooler_output": FEATURES[: len(images)]})


def test_a_network_of_pytorch_is_no_function_of_images():
    with pytest.raises(UserError, match="features is a module of PyTorch.*wrap it, as in lambda x: ") as caught:
        distil(IMAGES, torch.nn.Linear(3, 2))
    assert "\n" not in str(caught.value)
