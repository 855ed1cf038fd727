"""The training loop: resuming, stopping, NaN, metrics, damaged checkpoints."""

import errno
import gc
import json
import os
import re
import shutil
import signal
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.errors import StoredError, UserError
from ssdd_jax.runtime import signs
from ssdd_jax.training import checkpoints, loop
from ssdd_jax.training.checkpoints import Checkpoints

# Orbax leaves coroutines behind when it cannot read a checkpoint, which complain once they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect():
    """Collect them here, not in somebody else's test."""
    yield
    gc.collect()


class State(NamedTuple):
    step: jax.Array
    key: jax.Array
    values: jax.Array


class Info(NamedTuple):
    loss: jax.Array
    size: jax.Array


DATA = np.linspace(-1, 1, 64, dtype=np.float32)


def init():
    return State(jnp.zeros((), jnp.int32), jax.random.key(7), jnp.ones(64))


def step(state, data):
    """Chaotic, so that a bit that differs shows."""
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), state.values.shape)
    values = jnp.sin(3 * state.values + data + 0.1 * noise)
    return State(state.step + 1, state.key, values), Info(jnp.square(values).sum(), jnp.float32(2.0))


def training(**changes):
    usual = {"init": init, "step": step, "steps": 20, "per_call": 5, "save_every": 5, "advice": "lower the rate"}
    return loop.Training("toy", **(usual | changes))


class Folder:
    """A work dir: its checkpoints are opened anew for every run, as a new process would."""

    def __init__(self, path):
        self.checkpoints, self.metrics, self.said = path / "checkpoints", path / "metrics.jsonl", []

    def run(self, watch=None, **changes):
        with Checkpoints(self.checkpoints, say=self.said.append) as opened:
            return loop.run(
                training(**changes), jnp.asarray(DATA), checkpoints=opened, metrics=self.metrics, watch=watch
            )

    def steps(self):
        with Checkpoints(self.checkpoints, say=self.said.append) as opened:
            return opened.steps()

    def restore(self):
        with Checkpoints(self.checkpoints, say=self.said.append) as opened:
            return opened.restore(jax.eval_shape(init))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in state._replace(key=jax.random.key_data(state.key))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The states of a run that was left alone, by step."""
    states = {}
    path = tmp_path_factory.mktemp("alone")
    Folder(path).run(watch=lambda progress: states.update({progress.done: bits(progress.state)}), per_call=1)
    assert set(states) == set(range(1, 21))
    return states


def stop_at(step):
    """A watcher that sends SIGTERM to this process after `step`."""

    def watch(progress):
        if progress.done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


@pytest.mark.medium
@pytest.mark.parametrize("per_call", [3, 7, 20])
def test_calls_of_any_length_give_the_same_bits(folder, alone, per_call):
    seen = []
    state = folder.run(per_call=per_call, watch=lambda progress: seen.append((progress.done, len(progress.info.loss))))
    assert bits(state) == alone[20]
    assert [done for done, _ in seen] == [min(k, 20) for k in range(per_call, 20 + per_call, per_call)]
    assert sum(count for _, count in seen) == 20


@pytest.mark.medium
def test_sigterm_saves_and_a_resumed_run_gives_the_same_bits(folder, alone):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(loop.Stopped, match="toy: stopped at step 6 of 20"):
        folder.run(per_call=3, save_every=100, watch=stop_at(6))
    assert signal.getsignal(signal.SIGTERM) is before
    assert folder.steps() == [6]
    restored, done = folder.restore()
    assert done == 6 and bits(restored) == alone[6]
    seen = []
    state = folder.run(per_call=4, watch=lambda progress: seen.append(progress.done))
    assert seen[0] == 10 and bits(state) == alone[20]
    # A finished run is only read.
    assert bits(folder.run(watch=lambda progress: pytest.fail("trained again"))) == alone[20]


@pytest.mark.medium
def test_a_stop_in_the_last_step_is_not_lost(folder, alone):
    """More work follows the training: the signal is meant for that too."""
    with pytest.raises(loop.Stopped, match="stopped at step 20 of 20"):
        folder.run(watch=stop_at(20))
    assert folder.steps()[-1] == 20
    assert bits(folder.run()) == alone[20]


def test_a_signal_that_comes_too_late_has_its_usual_effect():
    # A job in the background of a shell script ignores it, and stays so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), loop.stop_requests() as requested:
            signal.raise_signal(signal.SIGINT)
            assert requested == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.medium
def test_a_killed_run_resumes_from_its_last_checkpoint(folder, alone):
    class Killed(Exception):
        pass

    def watch(progress):
        if progress.done == 15:
            raise Killed

    with pytest.raises(Killed):
        folder.run(watch=watch)
    assert folder.steps()[-1] == 10
    assert bits(folder.run()) == alone[20]


@pytest.mark.medium
def test_a_nan_names_its_step_and_keeps_the_last_good_state(folder, alone):
    def failing(state, data):
        state, info = step(state, data)
        return state, info._replace(loss=jnp.where(state.step >= 13, jnp.nan, info.loss))

    words = "toy: the loss is not a number at step 13; the state of step 10 is kept; lower the rate"
    with pytest.raises(UserError, match=words):
        folder.run(step=failing)
    restored, done = folder.restore()
    assert done == 10 and bits(restored) == alone[10]
    assert [line["step"] for line in loop.read_metrics(folder.metrics)] == [5, 10]


@pytest.mark.medium
def test_metrics_lines(folder):
    """One per call: means of the call's steps, and the rate."""
    losses = {}
    folder.run(watch=lambda progress: losses.update({progress.done: progress.info.loss.mean()}))
    lines = loop.read_metrics(folder.metrics)
    assert [(line["stage"], line["step"], line["size"]) for line in lines] == [("toy", k, 2.0) for k in (5, 10, 15, 20)]
    for line in lines:
        np.testing.assert_allclose(line["loss"], losses[line["step"]], rtol=1e-6)
        assert line["steps_per_second"] > 0


def test_metrics_of_a_long_run_are_thinned(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"stage": "teacher", "step": step, "loss": 1.0} for step in range(1, 6)]
    lines += [{"stage": "distill", "step": step, "loss": 1 / step} for step in range(1, 1001)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert loop.read_metrics(path) == lines
    few = loop.read_metrics(path, most=10)
    assert few[:5] == lines[:5]  # a short stage as a whole
    steps = [line["step"] for line in few[5:]]
    assert steps[0] == 1 and steps[-1] == 1000 and 10 <= len(steps) <= 20
    assert len(set(np.diff(steps[:-1]))) == 1 and all(line in lines for line in few)


def test_damaged_lines_of_metrics_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = {"stage": "distill", "step": 1, "loss": 0.5}
    bad = [b"\xff\xfe", b"[]", b"3", b'{"stage": "distill", "step": "2", "loss": 1}', b'{"step": 2, "loss": 1}',
           b'{"stage": "distill", "step": 2}', b'{"stage": "distill", "step": 2, "loss": "a"}', b"{" * 100_000,
           b'{"stage": "distill", "st']  # fmt: skip
    path.write_bytes(b"\n".join([*bad[:4], json.dumps(good).encode(), *bad[4:]]))
    assert loop.read_metrics(path) == [good]
    assert loop.read_metrics(tmp_path / "missing") == []


@pytest.mark.medium
def test_metrics_beyond_the_resumed_step_are_dropped(folder):
    """Also a line that a kill cut short; what other stages wrote stays."""
    with pytest.raises(loop.Stopped):
        folder.run(watch=stop_at(10))
    other = {"stage": "teacher", "step": 999, "loss": 1.0}
    beyond = {"stage": "toy", "step": 15, "loss": 123.0}
    with open(folder.metrics, "a") as file:
        file.write(json.dumps(other) + "\n" + json.dumps(beyond) + "\n" + '{"stage": "toy", "st')
    folder.run()
    found = [(line["stage"], line["step"]) for line in loop.read_metrics(folder.metrics)]
    assert found == [("toy", 5), ("toy", 10), ("teacher", 999), ("toy", 15), ("toy", 20)]
    assert all(line["loss"] != 123.0 for line in loop.read_metrics(folder.metrics))
    assert len(folder.metrics.read_text().splitlines()) == 5


def fed_step(state, data, item):
    """Every item shows in the state and in the loss."""
    state, info = step(state, data + item["shift"])
    return state, info._replace(loss=item["number"].astype(jnp.float32))


class Feed:
    """Items that say which step they are for; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, done, count):
        self.asked.append((done, count))
        numbers = np.arange(done, done + count)
        return {"number": numbers, "shift": np.sin(numbers, dtype=np.float32)[:, None].repeat(64, 1)}


def watch_losses(found, then=lambda progress: None):
    def watch(progress):
        found.extend(progress.info.loss.tolist())
        then(progress)

    return watch


@pytest.mark.medium
def test_items_reach_their_steps(folder):
    """In order, each once: with calls that are not whole, and in a resumed run, whose bits are the same."""
    found, feed = [], Feed()
    expected = bits(folder.run(step=fed_step, feed=feed, per_call=3, watch=watch_losses(found)))
    assert found == list(range(20))
    assert all(count == 3 for _, count in feed.asked)  # whole calls, so that one program serves all
    assert [done for done, _ in feed.asked] == list(range(0, 20, 3))

    other = Folder(folder.metrics.parent / "other")
    other.metrics.parent.mkdir()
    found, feed = [], Feed()
    with pytest.raises(loop.Stopped):
        other.run(step=fed_step, feed=feed, per_call=4, watch=watch_losses(found, stop_at(8)))
    assert found == list(range(8))
    feed = Feed()
    state = other.run(step=fed_step, feed=feed, per_call=5, watch=watch_losses(found))
    assert feed.asked[0] == (8, 5) and found == list(range(20))
    assert bits(state) == expected


@pytest.mark.medium
def test_items_are_not_baked_in(folder, alone):
    """Items are arguments of the compiled call: a feed of zero shifts gives the values of a run without one."""
    feed = Feed()

    def still(done, count):
        return feed(done, count) | {"shift": np.zeros((count, 64), np.float32)}

    # Four steps only: another program rounds otherwise, and every step magnifies it.
    values = folder.run(step=fed_step, feed=still, steps=4).values
    np.testing.assert_allclose(values, np.frombuffer(alone[4][2], np.float32), atol=1e-4)
    other = Folder(folder.metrics.parent / "other")
    other.metrics.parent.mkdir()
    late = bits(other.run(step=fed_step, feed=lambda done, count: (feed if done >= 15 else still)(done, count)))
    assert late != alone[20]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with the checkpoints of steps 15 and 20."""
    path = tmp_path_factory.mktemp("finished")
    Folder(path).run()
    assert Folder(path).steps() == [15, 20]
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.medium
def test_a_truncated_checkpoint_is_never_garbage(finished, alone, tmp_path):
    """Each file of the newest one in turn: the same bits, or the one before it, with a word to the user."""
    files = [file.relative_to(finished) for file in (finished / "checkpoints" / "20").rglob("*") if file.is_file()]
    assert len(files) >= 4
    fell_back = 0
    for number, file in enumerate(files):
        folder = Folder(tmp_path / str(number))
        shutil.copytree(finished / "checkpoints", folder.checkpoints)
        truncate(tmp_path / str(number) / file)
        restored, done = folder.restore()
        assert bits(restored) == alone[done], file
        assert done in (15, 20), file
        if done == 15:
            fell_back += 1
            assert "checkpoint of step 20 cannot be read" in folder.said[0] and "going back" in folder.said[0]
            assert (tmp_path / str(number) / "checkpoints-damaged" / "20").is_dir()
            assert folder.steps() == [15]
    assert fell_back > 0


@pytest.mark.medium
def test_a_flipped_bit_is_never_garbage(finished, alone, tmp_path):
    """Of the files with the numbers, which their library reads without a word if they are still in its format."""
    files = [file for file in (finished / "checkpoints" / "20").rglob("*") if file.is_file() and "d" in file.parts]
    assert files
    generator, fell_back = np.random.default_rng(0), 0
    for number in range(24):
        folder = Folder(tmp_path / str(number))
        shutil.copytree(finished / "checkpoints", folder.checkpoints)
        file = tmp_path / str(number) / files[number % len(files)].relative_to(finished)
        content = bytearray(file.read_bytes())
        content[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
        file.write_bytes(content)
        restored, done = folder.restore()
        assert bits(restored) == alone[done], file
        fell_back += done == 15
    assert fell_back > 0


@pytest.mark.medium
def test_other_numbers_than_the_saved_ones_are_not_restored(finished, alone, monkeypatch, tmp_path):
    folder = Folder(tmp_path)
    monkeypatch.setattr(checkpoints, "checksums", lambda state: [0 for _ in jax.tree.leaves(state)])
    folder.run()
    monkeypatch.undo()
    assert folder.restore() is None and "checkpoint of step 20 cannot be read (ValueError)" in folder.said[0]


@pytest.mark.medium
def test_all_checkpoints_damaged_starts_anew(finished, alone, tmp_path):
    folder = Folder(tmp_path)
    shutil.copytree(finished / "checkpoints", folder.checkpoints)
    for file in folder.checkpoints.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    seen = []
    assert bits(folder.run(watch=lambda progress: seen.append(progress.done))) == alone[20]
    assert seen[0] == 5 and len(folder.said) == 2


@pytest.mark.medium
@pytest.mark.parametrize(
    "error",
    [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), MemoryError(), OSError(errno.EIO, "I/O error")],
    ids=["device", "host", "disk"],
)
def test_an_error_that_says_nothing_of_a_checkpoint_leaves_it_in_place(error, finished, monkeypatch, tmp_path):
    folder = Folder(tmp_path)
    shutil.copytree(finished / "checkpoints", folder.checkpoints)

    def fail(self, *_, **__):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("orbax.checkpoint.CheckpointManager.restore", fail)
        with pytest.raises(StoredError, match="checkpoint of step 20 in .* cannot be read now"):
            folder.restore()
    assert folder.steps() == [15, 20] and folder.restore()[1] == 20


@pytest.mark.medium
def test_a_state_of_another_shape_is_not_restored(finished, tmp_path):
    folder = Folder(tmp_path)
    shutil.copytree(finished / "checkpoints", folder.checkpoints)
    like = jax.eval_shape(init)._replace(values=jax.ShapeDtypeStruct((65,), jnp.float32))
    with Checkpoints(folder.checkpoints, say=folder.said.append) as opened:
        restored = opened.restore(like)
        assert restored is None or restored[0].values.shape == (65,)


@pytest.mark.medium
def test_a_second_signal_acts_as_ever():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("outer"))
    try:
        with loop.stop_requests() as requested:
            os.kill(os.getpid(), signal.SIGTERM)
            assert requested == [signal.SIGTERM] and received == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert requested == [signal.SIGTERM] and received == ["outer"]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.medium
def test_step_is_pure():
    """The toy step itself gives the same bits compiled alone, so that the comparisons above mean something."""
    state = init()
    run = jax.jit(lambda state: step(state, jnp.asarray(DATA))[0])
    assert bits(run(state)) == bits(run(state)) != bits(state)


def test_long_work_says_what_it_is(monkeypatch, capsys):
    monkeypatch.setattr(loop, "SILENT_SECONDS", 0.01)
    with loop.working("distill: compiling"):
        until = time.monotonic() + 60
        printed = ""
        while not printed and time.monotonic() < until:
            printed += capsys.readouterr().err
            time.sleep(0.01)
    assert re.fullmatch(r"distill: compiling, \d+ s\n", printed)
    with loop.working("distill: computing the start"):
        signs.count("models trained", 5)
        signs.count("models trained", 5)
        while "models" not in printed and time.monotonic() < until:
            printed += capsys.readouterr().err
            time.sleep(0.01)
    assert "distill: computing the start, 2 of 5 models trained, " in printed
    monkeypatch.setattr(loop, "SILENT_SECONDS", 3600)
    with loop.working("distill: compiling"):
        pass
    with pytest.raises(ValueError, match="failed"), loop.working("distill: compiling"):
        raise ValueError("failed")
    assert capsys.readouterr().err == ""
