"""Targets by name, FGVC-Aircraft's files, and what a data set must have to be a target."""

import importlib
import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from ssdd_jax import config
from ssdd_jax.data import Dataset, aircraft_files, images, load, targets
from ssdd_jax.errors import UserError

TFDS_NAMES = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "imagenette": "imagenette",
    "cars": "cars196",
    "cub2011": "caltech_birds2011",
    "stanford_dogs": "stanford_dogs",
    "flowers": "oxford_flowers102",
}
VARIANTS = ("737-200", "DC-9-30", "Cessna 172")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), np.uint8)
LABELS = np.arange(12, dtype=np.int32) % 2


def refused(text, function, *arguments, **options):
    """A UserError of one line that holds the text."""
    with pytest.raises(UserError, match=text) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)


def save(path, **changes):
    """An archive of NumPy arrays with a test part, and its name; None leaves an array out."""
    arrays = {"x": PIXELS, "y": LABELS, "x_test": PIXELS[:4], "y_test": LABELS[:4]} | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return f"npz:{path}"


def luma(pixels):
    return pixels.astype(np.float64) @ [0.299, 0.587, 0.114]


def encoded(pixels, file_format="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


# ---- names


@pytest.mark.parametrize("name", targets.NAMES)
def test_short_names(name):
    chosen = targets.settings(name, data_dir="somewhere", image_size=32)
    assert chosen.name == (f"tfds:{TFDS_NAMES[name]}" if name in TFDS_NAMES else name)
    assert (chosen.data_dir, chosen.image_size) == ("somewhere", 32)
    defaults = config.default().data
    assert set(chosen) == set(defaults) and (chosen.train_split, chosen.test_split) == ("train", "test")


@pytest.mark.parametrize("name", ["digits", "tfds:food101", "folder:a b/c", "npz:~/x.npz"])
def test_full_names_pass_through(name):
    assert targets.settings(name).name == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cifra10", "did you mean cifar10 or cifar100"),
        ("dogs", "did you mean stanford_dogs[?]$"),
        ("CUB", "did you mean cub2011[?]$"),
        ("tinyimagenet", "did you mean tiny_imagenet"),
        ("zebra", r"no target 'zebra': give cifar10, .*, digits, tfds:NAME, folder:PATH, npz:PATH or npy:PATH$"),
        ("tfds:", "no target 'tfds:'"),
        ("zip:x", "no target 'zip:x'"),
        ("", "no target ''"),
    ],
)
def test_unknown_names(name, text):
    refused(text, targets.settings, name)


@pytest.mark.parametrize("name", TFDS_NAMES)
def test_tfds_knows_every_name(name, tmp_path):
    text = f"target {name}: tfds:{TFDS_NAMES[name]} is not prepared in "
    refused(text, targets.load, name, data_dir=str(tmp_path), image_shape=(32, 32, 3))


# ---- shapes and channels


def test_channels():
    grey = images.to_channels(PIXELS, 1)
    assert grey.shape == (12, 6, 8, 1) and grey.dtype == np.uint8
    assert np.abs(grey[..., 0] - luma(PIXELS)).max() < 0.51, "not the luma of ITU-R 601, rounded"
    np.testing.assert_array_equal(grey[0], images.decode(encoded(PIXELS[0]), 1))
    colour = images.to_channels(grey, 3)
    assert colour.shape == PIXELS.shape and (colour == grey).all()
    assert images.to_channels(PIXELS, 3) is PIXELS and images.to_channels(grey, 1) is grey
    with pytest.raises(ValueError, match="channels must be 1 or 3, not 4"):
        images.to_channels(PIXELS, 4)


def test_grey_target_of_a_colour_set():
    """Digits have no test part of their own: a fifth is held out, as for a run."""
    dataset = targets.load("digits", image_shape=(12, 12, 3), train_limit=50)
    own = load(targets.settings("digits", image_size=12))
    assert dataset.train_images.shape == (50, 12, 12, 3) and dataset.test_images.shape == (359, 12, 12, 3)
    assert (dataset.test_images == own.test_images).all() and dataset.test_images.std() > 50
    np.testing.assert_array_equal(dataset.test_labels, own.test_labels)


def test_colour_target_of_a_grey_set_is_resized_by_its_shorter_side(tmp_path):
    """The sides of 6x8 are not squeezed: the middle six columns stay."""
    dataset = targets.load(save(tmp_path / "a.npz"), image_shape=(6, 6, 1))
    assert np.abs(dataset.train_images[..., 0] - luma(PIXELS[:, :, 1:7])).max() < 0.51
    assert np.abs(dataset.test_images[..., 0] - luma(PIXELS[:4, :, 1:7])).max() < 0.51
    np.testing.assert_array_equal(dataset.train_labels, LABELS)
    assert targets.load(save(tmp_path / "a.npz"), image_shape=(3, 3, 3)).test_images.shape == (4, 3, 3, 3)


def test_images_that_fit_are_kept(tmp_path):
    square = PIXELS[:, :, :6]
    name = save(tmp_path / "a.npz", x=square, x_test=square[:4])
    np.testing.assert_array_equal(targets.load(name, image_shape=(6, 6, 3)).train_images, square)
    wide = targets.load(save(tmp_path / "b.npz"), image_shape=(6, 8, 3))
    np.testing.assert_array_equal(wide.train_images, PIXELS)


def test_adapt_resizes_a_data_set_in_memory():
    dataset = targets.adapt(Dataset("mine", PIXELS, LABELS, PIXELS[:4], LABELS[:4], ("a", "b")), (6, 6, 3))
    np.testing.assert_array_equal(dataset.train_images, PIXELS[:, :, 1:7])
    np.testing.assert_array_equal(dataset.test_images, PIXELS[:4, :, 1:7])


# ---- what a target must have


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"y": None, "y_test": None}, "there are no labels"),
        ({"y_test": None}, "only one of the training and the test images have labels"),
        ({"y": np.zeros(12, int), "class_names": np.array(["cat", "dog"])}, "all of one class, 'cat'.*needs two"),
        ({"class_names": np.array(["cat"])}, "2 different labels from 0 to 1, and 1 class names: give"),
        ({"class_names": np.array(["cat", "dog"]), "y_test": LABELS[:4] + 1}, "3 different labels from 0 to 2, and 2"),
        ({"y": LABELS - 1}, "labels from -1 to 1; they must not be negative; -1 marks images without"),
        ({"y": LABELS / 2}, "labels as float64"),
        ({"y": LABELS[:5]}, "5 labels for 12 images"),
    ],
)
def test_labels_refused(tmp_path, changes, text):
    name = save(tmp_path / "a.npz", **changes)
    refused(f"^target {name}: (?!npz:).*{text}", targets.load, name, image_shape=(6, 6, 3))


def test_limited_to_one_class(tmp_path):
    name = save(tmp_path / "a.npz")
    refused("all of one class", targets.load, name, image_shape=(6, 6, 3), train_limit=1)


def test_no_test_part_and_no_square():
    alone = Dataset("mine", PIXELS, LABELS, class_names=("a", "b"))
    refused("^mine: there is no test part", targets.adapt, alone, (6, 6, 3))
    both = Dataset("mine", PIXELS, LABELS, PIXELS, LABELS, ("a", "b"))
    refused("^mine: the images are 6x8 .*, 6x7 are needed, and only to squares", targets.adapt, both, (6, 7, 3))
    with pytest.raises(ValueError, match="channels"):
        targets.adapt(both, (6, 6, 2))


def test_short_name_reads_a_prepared_folder(tmp_path):
    """CIFAR-10 in small, and one whose test labels are hidden (-1, as TFDS has them)."""
    tfds = importlib.import_module("tensorflow_datasets")

    def prepare(name, hidden):
        rows = [{"image": encoded(PIXELS[i]), "label": i % 2} for i in range(12)]
        test = [row | {"label": -1} if hidden else row for row in rows[:4]]
        features = tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(6, 8, 3)), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
        )
        members = {
            "name": name,
            "VERSION": tfds.core.Version("1.0.0"),
            "_info": lambda self: tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True),
            "_split_generators": lambda self, manager: {"train": enumerate(rows), "test": enumerate(test)},
            "_generate_examples": None,
        }
        with tfds.core.registered.skip_registration():
            builder = type("Small", (tfds.core.GeneratorBasedBuilder,), members)
        builder(data_dir=tmp_path, file_format="array_record").download_and_prepare()

    prepare("cifar10", hidden=False)
    dataset = targets.load("cifar10", data_dir=str(tmp_path), image_shape=(6, 6, 1))
    assert dataset.name == "tfds:cifar10" and dataset.class_names == ("cat", "dog")
    assert np.abs(dataset.train_images[..., 0] - luma(PIXELS[:, :, 1:7])).max() < 0.51
    prepare("cifar100", hidden=True)
    text = "^target cifar100: .*test labels run from -1 to -1.*marks a split without labels"
    refused(text, targets.load, "cifar100", data_dir=str(tmp_path), image_shape=(6, 6, 3))


# ---- FGVC-Aircraft


@pytest.fixture
def aircraft(tmp_path):
    """Three variants, not in alphabetical order; an image's red is ten times its number, its sides differ."""
    root = tmp_path / "fgvc-aircraft-2013b"
    folder = root / "data" / "images"
    folder.mkdir(parents=True)
    for number in range(9):
        pixels = np.full((10 + number % 2, 16, 3), (10 * number, 0, 0), np.uint8)
        (folder / f"{number:07}.jpg").write_bytes(encoded(pixels, "JPEG"))
    lines = [f"{number:07} {VARIANTS[number % 3]}\n" for number in (4, 0, 5, 2, 1, 3)]
    (root / "data" / "images_variant_trainval.txt").write_text("".join(lines))
    lines = [f"{number:07} {VARIANTS[number % 3]}\r\n" for number in (8, 6, 7)]
    (root / "data" / "images_variant_test.txt").write_text("".join(lines))
    (root / "data" / "variants.txt").write_text("\n".join(VARIANTS))
    return root


def packed(root, path, mode="w:gz"):
    """The folder as an archive, with the lists after the images and the images from last to first."""
    with tarfile.open(path, mode) as archive:
        for file in sorted(root.rglob("*"), reverse=True):
            archive.add(file, file.relative_to(root.parent), recursive=False)
    return path


def read(data_dir, **changes):
    settings = targets.settings("aircraft", data_dir=str(data_dir), image_size=8)
    settings.update(changes)
    return load(settings)


def check(dataset):
    assert dataset.class_names == VARIANTS and dataset.image_shape == (8, 8, 3)
    assert dataset.train_labels.tolist() == [1, 0, 2, 2, 1, 0] and dataset.test_labels.tolist() == [2, 0, 1]
    for part, numbers in ((dataset.train_images, (4, 0, 5, 2, 1, 3)), (dataset.test_images, (8, 6, 7))):
        np.testing.assert_allclose(part[:, :, :, 0].mean((1, 2)), 10 * np.array(numbers), atol=3)
        assert part[..., 2].max() < 10


@pytest.mark.parametrize("chunk", [512, 2])
def test_aircraft_from_a_folder_and_an_archive(aircraft, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(aircraft_files, "_CHUNK", chunk)
    check(read(tmp_path))
    folder = read(aircraft, train_limit=4)
    elsewhere = tmp_path / "archive"
    elsewhere.mkdir()
    path = packed(aircraft, elsewhere / "fgvc-aircraft-2013b.tar.gz")
    check(read(elsewhere))
    check(read(packed(aircraft, elsewhere / "other.tar", "w")))
    limited = read(path, train_limit=4)
    np.testing.assert_array_equal(limited.train_images, folder.train_images)
    np.testing.assert_array_equal(limited.train_labels, folder.train_labels)
    assert sorted(file.name for file in elsewhere.iterdir()) == ["fgvc-aircraft-2013b.tar.gz", "other.tar"]


def test_aircraft_as_a_target(aircraft, tmp_path):
    dataset = targets.load("aircraft", data_dir=str(tmp_path), image_shape=(5, 5, 1))
    assert dataset.train_images.shape == (6, 5, 5, 1) and dataset.test_images.shape == (3, 5, 5, 1)
    np.testing.assert_allclose(dataset.test_images.mean((1, 2, 3)), [0.299 * red for red in (80, 60, 70)], atol=2)


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("images/0000005.jpg", None, r"lacks data/images/0000005.jpg, which its lists name"),
        ("images/0000005.jpg", b"none", r"data/images/0000005.jpg is not an image"),
        ("images_variant_test.txt", None, "lacks a readable data/images_variant_test.txt"),
        ("images_variant_test.txt", b"\xff", "lacks a readable data/images_variant_test.txt"),
        ("images_variant_test.txt", b"", "data/images_variant_test.txt names no images"),
        ("images_variant_test.txt", b"0000008 Cessna 172\n0000007", "line 2 of .*test.txt is not an image and its var"),
        ("images_variant_test.txt", b"../8 737-200", r"line 1 of .* not an image and its variant: '\.\./8 737-200'"),
        ("images_variant_test.txt", b"0000008 737-900", "line 1 of .*: data/variants.txt has no variant '737-900'"),
        ("images_variant_test.txt", b"0000008 737-200\n0000004 737-200", "line 2 .*0000004.jpg was named before"),
        ("variants.txt", b"737-200\nDC-9-30\nDC-9-30\nCessna 172", "names a variant twice"),
    ],
)
def test_aircraft_refused(aircraft, tmp_path, archived, file, content, text):
    path = aircraft / "data" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    place = packed(aircraft, tmp_path / "packed.tar.gz") if archived else aircraft
    refused(text, targets.load, "aircraft", data_dir=str(place), image_shape=(8, 8, 3))


def test_aircraft_missing_damaged_or_of_no_size(aircraft, tmp_path):
    refused("differ in size; give one with --config.data.image_size", read, tmp_path, image_size=0)
    path = packed(aircraft, tmp_path / "packed.tar.gz")
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        refused("packed.tar.gz is not a tar archive, or a damaged one: ", read, path)
    shutil.rmtree(aircraft)
    refused("holds no FGVC-Aircraft: point --config.data.data_dir at", read, tmp_path)
