"""The probes on features that are read in pieces: the results of features on the device, and how much is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.dry_run.timing import memory_of
from ssdd_jax.evaluate.protocols import probes
from ssdd_jax.evaluate.protocols.probes import compiled, pieces

CLASSES, WIDTH, DIM, SETTINGS = 3, 10, 4, probes.SgdSettings(steps=30, batch_size=32, learning_rate=0.02)


@pytest.fixture(scope="module")
def arrays():
    """Overlapping classes whose features differ in scale, and a teacher's features; piece sizes do not divide them."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(WIDTH, DIM))

    def split(count):
        x = generator.normal(size=(count, WIDTH))
        x[np.arange(count), np.arange(count) % CLASSES] += 1.5
        x = x * np.linspace(0.2, 4, WIDTH) + np.linspace(-3, 30, WIDTH)
        return x.astype(np.float32), (x @ mixing + generator.normal(size=(count, DIM))).astype(np.float32)

    (train, teacher_train), (test, teacher_test) = split(307), split(101)
    return {"train": train, "test": test, "teacher_train": teacher_train, "teacher_test": teacher_test}


def labels(part):
    return jnp.arange(len(part), dtype=jnp.int32) % CLASSES


def limit_of(arrays, kind):
    """Gigabytes that hold the features with copies, once, or a few rows of them."""
    size = sum(array.nbytes for array in arrays.values())
    return {"resident": 10 * size, "device": 1.5 * size, "host": 0.2 * size}[kind] / 1e9


PROBES = {
    "linear": lambda train, test, _: compiled.linear(train, test, classes=CLASSES),
    "linear_krr_st": lambda train, test, _: compiled.linear_krr_st(
        jax.random.key(0), train, test, classes=CLASSES, settings=SETTINGS
    ),
    "lbfgs": lambda train, test, _: compiled.lbfgs(train, test, classes=CLASSES),
    "few_labels": lambda train, test, _: compiled.few_labels(train, test, np.arange(150)[::-1], classes=CLASSES),
    "few_shot": lambda train, test, _: compiled.few_shot(
        train, test, probes.draw_shots(0, np.asarray(train[1]), CLASSES), classes=CLASSES
    ),
    "knn": lambda train, test, _: compiled.knn(train, test, classes=CLASSES, neighbours=5),
    "feature_r2": lambda train, test, teacher: jnp.stack(
        compiled.feature_r2((train[0], teacher[0]), (test[0], teacher[1]))
    ),
}


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["device", pytest.param("host", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PROBES)
def test_pieces_give_the_results_of_the_whole(name, kind, arrays, monkeypatch):
    """On the device once, or on the host, of which no more than a piece is read at a time."""
    read, own = [], pieces.Reader.read

    def counted(self, begin, count):
        found = own(self, begin, count)
        read.append(found.nbytes)
        return found

    monkeypatch.setattr(pieces.Reader, "read", counted)

    def measured(limit):
        placing = pieces.Placing(limit)
        placed = placing.place(classes=CLASSES, **arrays)
        train, test = ((placed[part], labels(arrays[part])) for part in ("train", "test"))
        found = np.asarray(PROBES[name](train, test, (placed["teacher_train"], placed["teacher_test"])))
        placing.close()
        return found, placed["train"]

    expected, whole = measured(limit_of(arrays, "resident"))
    found, table = measured(limit_of(arrays, kind))
    assert isinstance(whole, jax.Array) and (table.array is None) == (kind == "host")
    # One image more or less of 101, where rounding decides; the R2 are of order 1.
    np.testing.assert_allclose(found, expected, atol=1e-4 if name == "feature_r2" else 100 / 101 + 1e-3)
    if kind == "host":
        held = pieces.HELD * max(read, default=0)
        assert held <= 1e9 * limit_of(arrays, kind) and (read or name == "linear_krr_st")
        assert 3 < len(table) / table.rows


@pytest.mark.medium
def test_weights_of_pieces_are_those_of_the_whole(arrays):
    """To the rounding of sums in another order, and not only what they predict."""
    placing = pieces.Placing(limit_of(arrays, "host"))
    table, known = placing.place(train=arrays["train"])["train"], labels(arrays["train"])
    fit = jax.jit(compiled.streamed.fit_linear, static_argnames="classes")
    expected = jax.jit(probes.fit_linear, static_argnames="classes")((arrays["train"], known), classes=CLASSES)
    np.testing.assert_allclose(fit((table, known), classes=CLASSES), expected, rtol=1e-3, atol=1e-3)
    # The order of the images is the same, and so are the bits of every batch.
    key = jax.random.key(3)
    expected = compiled.fit_linear_krr_st(key, (arrays["train"], known), classes=CLASSES, settings=SETTINGS)
    found = compiled.fit_linear_krr_st(key, (table, known), classes=CLASSES, settings=SETTINGS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("width", [48, 256])
@pytest.mark.parametrize("name", ["linear", "lbfgs", "knn", "feature_r2"])
def test_programs_hold_a_few_pieces(name, width):
    """By XLA's estimate, whatever the number of rows: pieces, and matrices as wide as the features."""
    count, dim, rows = 100_000, 32, 4000

    def table(columns):
        return pieces.Table(None, None, pieces.Reader(), (count, columns), rows)

    options = {} if name == "feature_r2" else {"classes": CLASSES}
    side = (table(width), table(dim) if name == "feature_r2" else jax.ShapeDtypeStruct((count,), jnp.int32))
    probe = jax.jit(getattr(compiled.streamed, name), static_argnames=tuple(options))
    held = memory_of(probe.lower(side, side, **options).compile())
    labels_and_held_back = 3 * 4 * count
    piece, matrix = 4 * rows * (width + dim + CLASSES), 4 * (width + dim) ** 2
    assert held <= pieces.HELD * piece + pieces.MATRICES * matrix + labels_and_held_back < 4 * count * width


def test_moments_are_those_of_float64():
    """Of columns far from zero, in rows that are sorted, where sums of squares would lose all digits."""
    x = np.sort(np.random.default_rng(0).normal(size=(1000, 3)), 0).astype(np.float32) + np.float32([1e4, 0, -1e3])
    placing = pieces.Placing(2e-6)
    table = placing.place(train=x)["train"]
    assert len(table) > 10 * table.rows
    found = jax.jit(lambda table: pieces.moments((table,), pieces.every, products=True))(table)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(found.products / 1000, np.cov(exact.T, ddof=0), rtol=1e-5)


def test_a_sum_does_not_lose_small_terms():
    found = pieces.Sum(jnp.float32(1e8), jnp.float32(0))
    for _ in range(100):
        found = found.plus(jnp.float32(1))
    # Float32 next to 1e8 are 8 apart: added one by one to the total, ones would change nothing.
    assert abs(float(found.total) - 1e8 - 100) <= 8


def test_a_table_covers_every_row_once():
    x = np.arange(22, dtype=np.float32).reshape(11, 2)
    chosen = np.array([9, 1, 4, 4, 0])
    for on_device in (True, False):
        reader = pieces.Reader()
        reader.array = x
        table = pieces.Table(jnp.asarray(x) if on_device else None, None, None if on_device else reader, (11, 2), 4)
        for part, rows in ((table, np.arange(11)), (table.take(chosen), chosen)):
            found = [jax.jit(lambda table, i: table.piece(i))(part, jnp.int32(i)) for i in range(-(-len(part) // 4))]
            kept = np.concatenate([piece.x[piece.valid > 0] for piece in found])
            np.testing.assert_array_equal(kept, x[rows])
            for piece in found:
                np.testing.assert_array_equal(piece.x, x[rows][piece.positions])
