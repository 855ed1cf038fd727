"""Metadata that cannot be read never cost the pixels of an image."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin

from ssdd_jax.data import metadata
from ssdd_jax.data.encoded import DAMAGE
from ssdd_jax.data.images import decode, size

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
TURNED = np.rot90(PIXELS, -1)


def encoded(kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(*entries):
    """An EXIF block with the orientation 6 and further entries: tag, type, count, value or its place."""
    entries = ((0x0112, 3, 1, struct.pack("<HH", 6, 0)), *entries)
    body = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack("<HHI", tag, kind, count) + value
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 0)


# A resolution that is text, one whose numbers lie beyond the end, and a block of camera data that does.
BROKEN = {
    "text for a number": exif((0x011A, 2, 3, b"72\0\0")),
    "beyond the end": exif((0x011A, 5, 1, struct.pack("<I", 10**6))),
    "camera data beyond the end": exif((0x8769, 4, 1, struct.pack("<I", 10**6))),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore")  # Pillow's own, about the metadata
def test_an_image_is_turned_whatever_else_its_exif_block_holds(kind, name):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    prefix = b"" if kind == "PNG" else b"Exif\0\0"
    found = decode(encoded(kind, exif=prefix + BROKEN[name], **options), 3)
    plain = decode(encoded(kind, **options), 3)
    np.testing.assert_array_equal(found, np.rot90(plain, -1))


@pytest.mark.parametrize("orientation", range(1, 10))
def test_every_orientation(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    content = encoded("PNG", exif=block)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(decode(content, 3), np.asarray(ImageOps.exif_transpose(image)))


def test_a_block_that_is_no_exif():
    np.testing.assert_array_equal(decode(encoded("PNG", exif=b"no such thing"), 3), PIXELS)


def with_chunk(content, name, body, *, checksum=None):
    """A PNG file with another chunk before its pixels."""
    checksum = zlib.crc32(name + body) if checksum is None else checksum
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)
    place = content.index(b"IDAT") - 4
    return content[:place] + chunk + content[place:]


LARGE = zlib.compress(b"a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"Comment\0text", 0),
        (b"zTXt", b"Comment\0\0" + LARGE, None),
        (b"iTXt", b"Comment\0\1\0\0\0" + LARGE, None),
        (b"iCCP", b"profile\0\0" + LARGE, None),
        (b"gAMA", b"\0", None),
        (b"pHYs", b"\0\0", None),
    ],
    ids=lambda chunk: chunk[0].decode(),
)
def test_chunks_of_png_that_cannot_be_read(chunk):
    name, body, checksum = chunk
    turned = encoded("PNG", exif=exif())
    np.testing.assert_array_equal(decode(with_chunk(turned, name, body, checksum=checksum), 3), TURNED)
    with pytest.raises(DAMAGE):  # what is critical still counts
        decode(with_chunk(turned, b"IHDR", body), 3)


def test_sizes_are_read_without_decoding(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(with_chunk(encoded("PNG"), b"tEXt", b"Comment\0text", checksum=0))
    (tmp_path / "b.png").write_bytes(encoded("PNG"))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    assert size(tmp_path / "a.png") == size(tmp_path / "b.png") == (9, 6)
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(DAMAGE):
        size(tmp_path / "c.png")


def test_transparency_survives():
    """Of a file whose texts are taken away: it is part of the picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(buffer, "PNG", transparency=7)
    content = with_chunk(buffer.getvalue(), b"tEXt", b"Comment\0text", checksum=0)
    assert (decode(content, 3) == 255).all()


def test_segments_of_jpeg(monkeypatch):
    """Those with profiles and comments are left out when Pillow fails on them; the pixels stay bit by bit."""
    content = encoded("JPEG", exif=b"Exif\0\0" + exif(), icc_profile=b"p" * 300, comment=b"words", quality=95)
    for orientation in (True, False):
        stripped = metadata.without(content, orientation=orientation)
        assert len(stripped) < len(content) - 300 and (b"Exif" in stripped) == orientation
        plain = decode(content, 3)
        np.testing.assert_array_equal(decode(stripped, 3), plain if orientation else np.rot90(plain))

    def fail(image, marker):
        raise TypeError("a profile of an unknown kind")

    monkeypatch.setitem(JpegImagePlugin.MARKER, 0xFFFE, ("COM", "Comment", fail))
    np.testing.assert_array_equal(decode(content, 3), plain)


def test_what_is_no_png_nor_jpeg_has_none_to_take_away():
    for content in (b"", b"GIF89a", b"\xff\xd8", b"\xff\xd8\xff", encoded("JPEG")[:20], encoded("PNG")[:20]):
        assert metadata.without(content, orientation=True) is None or content.startswith((b"\xff\xd8", b"\x89PNG"))
        with pytest.raises(DAMAGE):
            decode(content, 3)
