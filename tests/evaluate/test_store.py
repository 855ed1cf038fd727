"""The evaluator's cache, which several evaluations may share."""

import threading

import tiny_runs

from ssdd_jax.evaluate import store


def test_what_one_computes_another_finds(tmp_path):
    key, computed, waited = {"entry": "distilled"}, [], threading.Event()
    begun = threading.Event()

    def evaluate(name, wait):
        cache = store.Store(tmp_path)
        with cache.alone(key, wait):
            if not cache.values(key):
                begun.set()
                if name == "first":
                    assert waited.wait(tiny_runs.TIMEOUT)
                computed.append(name)
                cache.add_values(key, {0: {"linear": 50.0}})
        assert cache.values(key) == {0: {"linear": 50.0}}

    first = threading.Thread(target=evaluate, args=("first", lambda: None))
    first.start()
    assert begun.wait(tiny_runs.TIMEOUT)
    evaluate("second", waited.set)
    first.join(tiny_runs.TIMEOUT)
    assert computed == ["first"] and [path.name for path in tmp_path.iterdir()] == ["values"]


def test_temporary_files_are_everyones_own(tmp_path):
    one, other = store.Store(tmp_path), store.Store(tmp_path)
    left = tmp_path / store.SCRATCH / "of a killed process"
    left.mkdir(parents=True)
    (left / "train.npy").write_bytes(b"x")
    with one.scratch() as first:
        assert not left.exists()
        first.mkdir(parents=True)
        (first / "train.npy").write_bytes(b"x")
        with other.scratch() as second:
            assert first != second and (first / "train.npy").exists()
        assert (first / "train.npy").exists()
    assert not (tmp_path / store.SCRATCH).exists()
