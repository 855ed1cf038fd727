"""Removal of the metadata of encoded images, for files whose metadata cannot be read while their pixels can."""

from __future__ import annotations

import struct

_PNG = b"\x89PNG\r\n\x1a\n"
# Markers of JPEG: segments without a length, and the start of the pixels.
_BARE, _SCAN = (0x01, *range(0xD0, 0xD9)), 0xDA
_APPLICATION, _COMMENT = range(0xE0, 0xF0), 0xFE
# Application segments that say how the pixels are coded.
_CODING = {0xE0: b"JFIF", 0xEE: b"Adobe"}
_EXIF = {0xE1: b"Exif"}


def without(encoded: bytes, *, orientation: bool) -> bytes | None:
    """Remove profiles, texts and other metadata from a PNG or JPEG file; the pixels stay as they are.

    Args:
        encoded: Content of the file.
        orientation: Whether to keep the EXIF block, which holds the orientation.

    Returns:
        The content without metadata, or None for other formats and for files whose structure is damaged.
    """
    try:
        if encoded.startswith(_PNG):
            return _of_png(encoded, (b"tRNS", b"eXIf") if orientation else (b"tRNS",))
        if encoded.startswith(b"\xff\xd8"):
            return _of_jpeg(encoded, _CODING | _EXIF if orientation else _CODING)
    except (struct.error, IndexError):
        pass
    return None


def _of_png(encoded: bytes, kept: tuple[bytes, ...]) -> bytes:
    """Keep the critical chunks, whose names begin with a capital letter, and those of the names in `kept`."""
    parts, place = [_PNG], len(_PNG)
    while place < len(encoded):
        (length,) = struct.unpack(">I", encoded[place : place + 4])
        name = encoded[place + 4 : place + 8]
        if name[:1].isupper() or name in kept:
            parts.append(encoded[place : place + 12 + length])
        place += 12 + length
    return b"".join(parts)


def _of_jpeg(encoded: bytes, kept: dict[int, bytes]) -> bytes:
    """Drop comments and application segments, but those that begin as `kept` says for their marker."""
    parts, place = [encoded[:2]], 2
    while encoded[place] == 0xFF:
        marker = encoded[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == _SCAN:
            break
        (length,) = (0,) if marker in _BARE else struct.unpack(">H", encoded[place + 2 : place + 4])
        segment = encoded[place : place + 2 + length]
        metadata = marker == _COMMENT or marker in _APPLICATION
        if not metadata or (marker in kept and segment[4:].startswith(kept[marker])):
            parts.append(segment)
        place += len(segment)
    return b"".join([*parts, encoded[place:]])
