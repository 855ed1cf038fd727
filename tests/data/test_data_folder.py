"""Images from folders, in every form in which they come."""

import hypothesis
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp
from ml_collections import ConfigDict
from PIL import Image

from ssdd_jax.data import load
from ssdd_jax.errors import UserError

DEFAULTS = {
    "data_dir": "",
    "train_split": "train",
    "test_split": "test",
    "image_size": 0,
    "train_limit": 0,
    "test_fraction": 0.0,
    "cache_dir": "",
}


def read(path, **changes):
    return load(ConfigDict(DEFAULTS | {"name": f"folder:{path}"} | changes))


def write(path, pixels=(10, 20, 30), size=(4, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else Image.new("RGB", size, pixels)
    image.save(path, **options)


def refused(text, path, **changes):
    with pytest.raises(UserError, match=text) as caught:
        read(path, **changes)
    assert "\n" not in str(caught.value)


@hypothesis.given(
    images=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6).map(lambda s: (*s, 3)))
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_png_keeps_pixels_and_order(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("png")
    for index, pixels in enumerate(images):
        write(folder / f"{index:02}.png", pixels)
    dataset = read(folder)
    np.testing.assert_array_equal(dataset.train_images, images)
    assert dataset.train_labels is None and dataset.class_names == ()


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_splits_and_labels(tmp_path, test):
    for part, count in (("train", 3), (test, 2)):
        for value, name in enumerate(("dog", "cat")):
            for index in range(count):
                write(tmp_path / part / name / "deeper" / f"{index}.PNG", (value, 0, index))
    write(tmp_path / "stray.png", size=(9, 9))
    (tmp_path / "train" / "notes.txt").write_text("not an image")
    write(tmp_path / "train" / ".hidden" / "a.png", size=(9, 9))
    write(tmp_path / "train" / "cat" / ".hidden.png", size=(9, 9))
    dataset = read(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and dataset.test_labels.tolist() == [
        0,
        0,
        1,
        1,
    ]
    assert dataset.train_images[:, 0, 0, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert dataset.test_images.shape == (4, 4, 4, 3)
    held = read(tmp_path, test_split="", test_fraction=0.34)
    assert held.train_images.shape[0] == 4 and held.test_labels.tolist() == [0, 1]


def test_split_settings_name_subfolders(tmp_path):
    for part, name in ((part, name) for part in ("small", "mine", "test") for name in "ab"):
        write(tmp_path / part / name / "0.png", (len(part), 0, 0))
    dataset = read(tmp_path, train_split="small", test_split="mine")
    assert dataset.train_images.max() == 5 and dataset.test_images.max() == 4
    refused("no folder 'large': check --config.data.train_split", tmp_path, train_split="large")
    refused("no folder 'large': check --config.data.test_split", tmp_path, train_split="small", test_split="large")


def test_labels_need_every_image_in_one_of_two_subfolders(tmp_path):
    write(tmp_path / "a" / "0.png")
    assert read(tmp_path).train_labels is None
    write(tmp_path / "b" / "0.png")
    assert read(tmp_path).train_labels.tolist() == [0, 1]
    write(tmp_path / "0.png")
    assert read(tmp_path).train_labels is None


def test_test_classes_must_fit(tmp_path):
    for name in ("train/a/0.png", "train/b/0.png", "test/c/0.png"):
        write(tmp_path / name)
    refused("has a class 'c' that the training images have not", tmp_path)
    (tmp_path / "test" / "c" / "0.png").rename(tmp_path / "test" / "0.png")
    refused("only one of the training and the test images have labels", tmp_path)


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm"])
def test_formats(tmp_path, ending):
    write(tmp_path / f"a.{ending}", (200, 100, 50), (8, 8))
    assert np.abs(read(tmp_path).train_images.astype(int) - [200, 100, 50]).max() < 8


def test_modes_become_rgb(tmp_path):
    grey = np.full((4, 4), 100, np.uint8)
    write(tmp_path / "a.png", grey)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    Image.fromarray(grey.astype(np.int32) * 257).save(tmp_path / "c.tif")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 1, 2, 3])
    palette.save(tmp_path / "d.png", transparency=1)  # wholly transparent: white
    Image.new("RGBA", (4, 4), (0, 0, 0, 155)).save(tmp_path / "e.png")
    Image.new("LA", (4, 4), (0, 155)).save(tmp_path / "f.png")
    Image.new("CMYK", (4, 4), (155, 155, 155, 0)).save(tmp_path / "g.tif")
    Image.new("1", (4, 4), 1).save(tmp_path / "h.png")
    Image.new("RGB", (4, 4), (7, 8, 9)).save(tmp_path / "i.png", transparency=(7, 8, 9))
    palette.save(tmp_path / "j.gif")
    images = read(tmp_path).train_images
    assert (images == images[:, :1, :1]).all()
    expected = [[100] * 3] * 3 + [[255] * 3] + [[100] * 3] * 3 + [[255] * 3] * 2 + [[1, 2, 3]]
    np.testing.assert_array_equal(images[:, 0, 0], expected)


def test_orientation_is_respected(tmp_path):
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees, clockwise
    write(tmp_path / "a.png", pixels, exif=exif)
    np.testing.assert_array_equal(read(tmp_path).train_images[0], np.rot90(pixels, -1))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path).train_images[0, 0, 0].tolist() == [255, 0, 0]


def test_sizes(tmp_path):
    write(tmp_path / "a.png", size=(6, 4))
    write(tmp_path / "b.png", size=(4, 4))
    refused(r"a.png is 6x4 and .*b.png is 4x4 .*--config.data.image_size", tmp_path)
    assert read(tmp_path, image_size=3).train_images.shape == (2, 3, 3, 3)
    stripes = np.zeros((4, 8, 3), np.uint8)
    stripes[:, 2:6] = 255
    write(tmp_path / "a.png", stripes)
    assert (read(tmp_path, image_size=4).train_images[0] == 255).all(), "not cut around the centre"


def test_damaged_images_are_named(tmp_path):
    rng = np.random.default_rng(0)
    for ending in ("png", "jpg", "webp", "gif", "bmp", "tif"):
        folder = tmp_path / ending
        write(folder / f"a.{ending}")
        path = folder / f"b.{ending}"
        write(path, rng.integers(0, 255, (64, 64, 3), np.uint8))
        content = path.read_bytes()
        for damaged in (b"", content[: len(content) // 2], b"text"):
            path.write_bytes(damaged)
            refused(rf"b\.{ending} is not an image that can be read.*replace it", folder, image_size=4)


def test_many_blocks_and_threads(tmp_path):
    """More files than one block, large enough for several threads, and a bad one late."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    for index in range(300):
        pixels[0, 0] = divmod(index, 256) + (0,)
        write(tmp_path / f"{index:03}.png", pixels, compress_level=0)
    images = read(tmp_path).train_images
    assert (images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]).tolist() == list(range(300))
    (tmp_path / "290.png").write_bytes(b"")
    refused("290.png", tmp_path)


def test_nothing_there(tmp_path):
    refused("is not a folder", tmp_path / "missing")
    (tmp_path / "a.txt").write_text("text")
    refused("holds no images", tmp_path)
    write(tmp_path / "a.png")
    refused("cannot hold out 1 of 1", tmp_path, test_fraction=0.2)
