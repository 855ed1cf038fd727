"""Sizes for readers."""

import pytest

from ssdd_jax.runtime import memory


@pytest.mark.parametrize(
    ("size", "text"), [(999_999_999, "1,000.0 MB"), (2_340_000_000, "2.3 GB"), (10**6, "1.0 MB"), (12_345, "12 kB")]
)
def test_readable(size, text):
    assert memory.readable(size) == text
