"""Blocks of packed sets: what is written is read, in no more bytes than were planned; damage is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdd_jax.runtime import files
from ssdd_jax.storage import container, packing, quantize

Part = container.Part


def part(seed, precision, shape, axis=0):
    array = np.random.default_rng(seed).standard_normal(shape)
    return Part(precision, shape, *quantize.pack(jnp.asarray(array, jnp.float32), precision, axis=axis))


def same(one, other):
    assert list(one) == list(other)
    for first, second in zip(one.values(), other.values(), strict=True):
        assert (first.precision, first.shape) == (second.precision, second.shape)
        for a, b in zip(first[2:], second[2:], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a is b is None or a.dtype == b.dtype


@settings(deadline=None, max_examples=40)
@given(
    arrays=st.lists(
        st.tuples(st.sampled_from(quantize.NAMES), st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 9),
)
def test_what_is_written_is_read(arrays, seed):
    parts = {f"array{k}": part(seed + k, *array) for k, array in enumerate(arrays)}
    content = container.write(parts)
    same(container.read(content, {}), parts)
    assert container.write(container.read(content, {})) == content
    # Never more than what was planned with the bits of the precisions.
    payload = sum(quantize.size(one.shape, one.precision) for one in parts.values())
    planned = container.size({name: (one.precision, one.shape) for name, one in parts.items()}, payload)
    assert len(content) <= planned


def test_whole_numbers_take_about_their_entropy():
    one = part(0, "int5", (3000, 12), axis=1)
    share = np.unique(one.values, return_counts=True)[1] / one.values.size
    entropy = -(share * np.log2(share)).sum() * one.values.size / 8
    content, coding = container.code(one)
    assert coding & 1 and entropy < len(content) < 1.03 * entropy + 100
    assert len(content) < 0.9 * quantize.size(one.shape, "int5", axis=1)


def test_what_cannot_be_shortened_is_written_bit_by_bit():
    values = np.random.default_rng(0).integers(-4, 4, (9, 7)).astype(np.int8)
    content, coding = container.code(Part("int3", (9, 7), values, np.ones(9, np.float16)))
    assert not coding & 1 and content[:24] == container.packed_bits(values, 3).tobytes()


def test_bits_lie_one_after_the_other():
    values = np.array([[-3, -2, -1, 0, 1, 2, 3]], np.int8)
    packed = container.packed_bits(values, 3)
    # Distances from -4, of three bits each: 1 to 7.
    assert np.unpackbits(packed)[:21].reshape(7, 3).tolist() == [
        [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1],
    ]  # fmt: skip
    np.testing.assert_array_equal(container.unpacked_bits(packed, 3, (1, 7)), values)


def test_pictures_lie_between_other_arrays():
    picture = Part("webp", (2, 3, 3, 1), np.arange(17, dtype=np.uint8))
    plain = Part("png", (2, 3, 3, 1), np.zeros(90, np.uint8))  # which a deflate stream shortens
    parts = {"a": part(0, "int8", (4, 5)), "images": picture, "b": part(1, "float16", (3,)), "plain": plain}
    same(container.read(container.write(parts), {}), parts)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scales_lie_along_the_axis(axis):
    parts = {"targets": part(0, "int6", (30, 20), axis=axis)}
    same(container.read(container.write(parts), {"targets": axis}), parts)


def lines(*rows):
    table = container._table(rows)
    return len(table).to_bytes(2, "little") + table


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05\x00abcde",
        container.write({"a": part(0, "int5", (40, 30))})[:-1],
        container.write({"a": part(0, "int5", (2, 3))})[:-1],
        container.write({"a": part(0, "float32", (2, 3))}) + b"x",
        lines("a int9 0 3") + b"abc",
        lines("a int8 0 many"),
        lines("a int8 0 -1 -3") + b"abc",
        lines("a float32 1 1099511627776") + b"abc",
        lines("a float32 0 1099511627775") + b"abc",
        lines("images webp 0 1 1 1 1 9") + b"abc",
        lines("a"),
    ],
)
def test_damage_is_refused(content):
    with pytest.raises(ValueError, match=r"the block|unknown precision|invalid literal|not enough values"):
        container.read(content, {})


def test_the_size_of_a_file_is_that_of_safetensors(tmp_path):
    for count in (1, 90, 999, 1000, 65_000):
        files.write_tensors(tmp_path / "set", {packing.BLOCK: np.zeros(count, np.uint8)}, sealed=False)
        assert (tmp_path / "set").stat().st_size == packing._file_size(count)
