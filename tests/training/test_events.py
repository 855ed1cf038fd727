"""Event files for TensorBoard: the scalars of `metrics.jsonl`, also after a run that was killed."""

import struct
import sys
from typing import NamedTuple

import jax.numpy as jnp
import pytest
import tiny_runs

from ssdd_jax import main
from ssdd_jax.training import events, loop

tensorboard = pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")


class Info(NamedTuple):
    loss: jnp.ndarray


def read(folder):
    """Scalars `(step, tag, value)` in the order in which they were written; a purge drops those it names, as shown."""
    shown = []
    for file in sorted(folder.glob("events.*"), key=lambda file: file.stat().st_mtime_ns):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = tensorboard.proto.event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            place += 16 + length
            if event.HasField("session_log"):
                shown = [line for line in shown if line[0] < event.step]
            for value in event.summary.value:
                number = value.simple_value or sum(value.tensor.float_val)
                shown.append((event.step, value.tag, pytest.approx(number, rel=1e-6)))
    return shown


def test_a_resumed_training_replaces_what_came_after_its_checkpoint(tmp_path):
    with events.writing(tmp_path, "toy", done=0) as add:
        for step in (5, 10, 15):
            add(step, {"loss": 1 / step})
    with events.writing(tmp_path, "toy", done=10) as add:
        add(15, {"loss": 7.0, "gradient_norm": 2.0})
    assert read(tmp_path / "toy") == [
        (5, "toy/loss", 0.2),
        (10, "toy/loss", 0.1),
        (15, "toy/loss", 7.0),
        (15, "toy/gradient_norm", 2.0),
    ]


def test_nothing_is_written_unless_asked_for(tmp_path):
    training = loop.Training(
        "toy", lambda: jnp.zeros(()), lambda state, data: (state + 1, Info(state)), 4, 2, 4, "none"
    )
    loop.run(training, None, metrics=tmp_path / "metrics.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    loop.run(training, None, metrics=tmp_path / "metrics.jsonl", events=tmp_path / "tensorboard")
    lines = loop.read_metrics(tmp_path / "metrics.jsonl")
    expected = [(line["step"], f"toy/{name}", line[name]) for line in lines for name in ("loss", "steps_per_second")]
    assert read(tmp_path / "tensorboard" / "toy") == expected and len(lines) == 2


def test_without_tensorboardx_a_run_does_not_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    line = tiny_runs.arguments(tmp_path, tmp_path / "run")
    assert main.main([*line, "--tensorboard"]) == 2
    assert "--tensorboard needs tensorboardX, which is missing: pip install 'ssdd_jax[tensorboard]'" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.medium
def test_a_run_writes_the_scalars_of_both_trainings(tmp_path):
    tiny_runs.write_data(tmp_path)
    line = tiny_runs.taught(tmp_path, "krr_st", "run")
    assert main.main([*line, "--stage=distill", "--tensorboard"]) == 0
    lines = loop.read_metrics(tmp_path / "run" / "metrics.jsonl")
    for stage in ("teacher", "distill"):
        logged = [(at["step"], at["loss"]) for at in lines if at["stage"] == stage]
        events_of_stage = read(tmp_path / "run" / "tensorboard" / stage)
        assert logged and [(step, value) for step, tag, value in events_of_stage if tag == f"{stage}/loss"] == logged
