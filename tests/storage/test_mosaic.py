"""Images coded as one picture."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssdd_jax import config
from ssdd_jax.errors import UserError
from ssdd_jax.storage import mosaic


def smooth(count, height, width, channels, seed=0):
    low = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, channels)).astype(np.uint8)
    return low.repeat(height // 4, axis=1).repeat(width // 4, axis=2)


def test_the_config_knows_all_codes():
    assert config.CODES == tuple(mosaic.CODES)


@pytest.mark.parametrize("shape", [(1, 4, 8, 1), (7, 16, 16, 3), (10, 8, 4, 3), (1, 32, 32, 3)])
def test_png_loses_nothing(shape):
    images = smooth(*shape)
    np.testing.assert_array_equal(mosaic.decode(mosaic.encode(images, "png"), shape), images)


@pytest.mark.parametrize("code", mosaic.LOSSY)
@pytest.mark.parametrize("channels", [1, 3])
def test_quality_buys_bytes(code, channels):
    images = smooth(12, 16, 16, channels)
    coded = [mosaic.encode(images, code, quality) for quality in (5, 50, 95)]
    assert len(coded[0]) < len(coded[1]) < len(coded[2]) < images.size
    errors = [np.abs(mosaic.decode(one, images.shape).astype(int) - images).mean() for one in coded]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.8 * errors[0]


def test_one_picture_is_smaller_than_many():
    images = smooth(100, 16, 16, 3)
    alone = sum(len(mosaic.encode(image[None], "jpeg", 50)) for image in images)
    assert len(mosaic.encode(images, "jpeg", 50)) < alone / 3


def test_damage_is_one_line():
    images = smooth(4, 8, 8, 3)
    coded = mosaic.encode(images, "png")
    with pytest.raises(UserError, match="cannot be decoded"):
        mosaic.decode(coded[:40], images.shape)
    with pytest.raises(UserError, match="cannot be decoded"):
        mosaic.decode(b"no picture", images.shape)
    with pytest.raises(UserError, match=r"a picture of \(16, 16\), not of 9 of 8x8"):
        mosaic.decode(coded, (9, 8, 8, 3))


def test_a_picture_as_large_as_it_says_is_not_decoded():
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    with pytest.raises(UserError, match="memory"):
        mosaic.decode(file.getvalue(), (10**6, 10**4, 10**4, 1))


def test_bytes_of_large_images_are_measured_on_some():
    """A picture of all would be larger than WebP allows."""
    images = np.zeros((70, 2048, 2048, 1), np.uint8)
    assert 0 < mosaic.bytes_each(images, "webp") < 20_000


def test_what_no_picture_holds_is_refused():
    with pytest.raises(UserError, match="images of 2 channels cannot be coded"):
        mosaic.encode(np.zeros((3, 4, 4, 2), np.uint8), "webp")
    with pytest.raises(UserError, match=r"25 images of 4x4000 are more than a webp picture holds: choose .*png"):
        mosaic.encode(np.zeros((25, 4, 4000, 1), np.uint8), "webp")


@settings(deadline=None, max_examples=60)
@given(code=st.sampled_from(tuple(mosaic.CODES)), seed=st.integers(0, 10**6))
def test_changed_bytes_are_images_or_a_line(code, seed):
    generator = np.random.default_rng(seed)
    coded = bytearray(mosaic.encode(smooth(4, 8, 8, 3), code, 50))
    for place in generator.integers(0, len(coded), 3):
        coded[place] = generator.integers(256)
    try:
        assert mosaic.decode(bytes(coded), (4, 8, 8, 3)).shape == (4, 8, 8, 3)
    except UserError as error:
        assert "\n" not in str(error)
