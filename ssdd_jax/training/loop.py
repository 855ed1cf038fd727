"""The loop that drives every training: many steps per call, checkpoints, progress, a clean stop, a check for NaN."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from ssdd_jax.errors import Stopped, UserError
from ssdd_jax.runtime import devices, files
from ssdd_jax.training.checkpoints import Checkpoints


class Training(NamedTuple):
    """What the loop is to do.

    Attributes:
        name: For the progress bar and `metrics.jsonl`.
        init: `() -> state`; called only where there is no checkpoint.
        step: `(state, data) -> (state, info)`; `info` is a NamedTuple of scalars with a field `loss`.
        steps: How many steps.
        per_call: How many of them in one compiled call.
        save_every: Steps between checkpoints; rounded up to whole calls.
        advice: What to try when the loss is no longer a number.
        feed: `(done, count) -> items`, leaves with a leading axis `count`: what the steps after the first `done` need
            from the host, read while the device computes. `step` is given the step's item as its third argument.
        shardings: Where each leaf of the state lies on a mesh, a pytree like it, as `init` gives it; None for one
            device.
    """

    name: str
    init: Callable[[], Any]
    step: Callable[..., tuple[Any, Any]]
    steps: int
    per_call: int
    save_every: int
    advice: str
    feed: Callable[[int, int], Any] | None = None
    shardings: Any = None


class Progress(NamedTuple):
    """Passed to a watcher after each call: steps done, the state, and the scalars of the call's steps `(k,)`."""

    done: int
    state: Any
    info: Any


def run(
    training: Training,
    data: Any,
    *,
    checkpoints: Checkpoints | None = None,
    metrics: pathlib.Path | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Any:
    """Train to the end, from the newest checkpoint if there is one.

    The steps of a call run in one compiled loop whose length is an argument, so that a call of any length computes the
    same bits, and a resumed run those of one that was left alone.

    Args:
        training: What to do.
        data: A pytree on the device, or on the mesh, passed to every step.
        checkpoints: Where states are kept; None for nowhere.
        metrics: A file of JSON lines to append to; lines after the step that is resumed from are dropped. None for no
            file.
        watch: Called after every compiled call; the next one overwrites the state that it is given.

    Returns:
        The final state.

    Raises:
        UserError: If the loss is not a number any more; the last good state is kept, if there are checkpoints.
        Stopped: If SIGTERM or SIGINT came, to any of several processes; the state is saved, if there are checkpoints.
    """
    restored = checkpoints.restore(_abstract(training)) if checkpoints else None
    state, done = restored if restored else (training.init(), 0)
    if done >= training.steps:
        return state
    # Always whole calls, the last one too, so that one program serves all.
    items = _items(training, done)
    call = compiled(training, state, data, items)
    if metrics is not None:
        _drop_lines(metrics, training.name, done)
    saved = done
    with stop_requests() as requested, bar(training.name, training.steps, initial=done) as progress:
        for first, count in calls(progress, training.steps, per_call=training.per_call, done=done):
            began = time.perf_counter()
            state, info = call(state, data, items, np.int32(count))
            done = first + count
            # The next items are read while the device computes.
            if done < training.steps:
                items = _items(training, done)
            info = jax.tree.map(lambda values: np.asarray(values)[:count], info)  # noqa: B023, used at once
            kept = f"the state of step {saved} is kept; " if checkpoints else ""
            check_finite(info.loss, functools.partial(_not_a_number, training, first, kept))
            seconds = time.perf_counter() - began
            if metrics is not None:
                _log(metrics, training.name, done, info, count / seconds)
            progress.set_postfix(loss=f"{info.loss.mean():.4f}", refresh=False)
            if watch is not None:
                watch(Progress(done, state, info))
            stop = devices.any_process(bool(requested))
            if checkpoints and (done - saved >= training.save_every or done == training.steps or stop):
                checkpoints.save(done, state)
                saved = done
            if stop and done < training.steps:
                if checkpoints:
                    checkpoints.wait()
                raise Stopped(f"{training.name}: stopped at step {done} of {training.steps}")
    if checkpoints:
        checkpoints.wait()
    return state


def _not_a_number(training: Training, done: int, kept: str, index: int) -> str:
    return f"{training.name}: the loss is not a number at step {done + index + 1}; {kept}{training.advice}"


def _abstract(training: Training) -> Any:
    like = jax.eval_shape(training.init)
    if training.shardings is None:
        return like
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), like, training.shardings
    )


def _items(training: Training, done: int) -> Any:
    if training.feed is None:
        return None
    items = training.feed(done, training.per_call)
    if training.shardings is None:
        return jax.device_put(items)
    return devices.place(jax.tree.leaves(training.shardings)[0].mesh, items)


def compiled(training: Training, state: Any, data: Any, items: Any) -> Any:
    """The function that `run` calls, `(state, data, items, count) -> (state, infos)`; the state is given away.

    Args:
        training: What to do.
        state: Its state, or abstract values of it; `data` and `items` likewise.
        data: As for `run`.
        items: What the feed gives, None without one.

    Returns:
        A function under `jax.jit`; the infos have leading axes `per_call`, of which the first `count` are filled.
    """

    def step(state: Any, data: Any, items: Any, i: Any) -> tuple[Any, Any]:
        if training.feed is None:
            return training.step(state, data)
        return training.step(state, data, jax.tree.map(lambda leaf: leaf[i], items))

    _, like = jax.eval_shape(step, state, data, items, 0)

    def call(state: Any, data: Any, items: Any, count: Any) -> tuple[Any, Any]:
        def body(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, infos = carry
            state, info = step(state, data, items, i)
            if training.shardings is not None:
                state = lax.with_sharding_constraint(state, training.shardings)
            return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), infos, info)

        infos = jax.tree.map(lambda one: jnp.zeros((training.per_call, *one.shape), one.dtype), like)
        return lax.fori_loop(0, count, body, (state, infos))

    if training.shardings is None:
        return jax.jit(call, donate_argnums=0)
    everywhere = devices.sharding(jax.tree.leaves(training.shardings)[0].mesh)
    return jax.jit(call, donate_argnums=0, out_shardings=(training.shardings, everywhere))


def bar(name: str, total: int, *, initial: int = 0, unit: str = "step") -> tqdm:
    """A progress bar on standard error, drawn rarely where nobody watches, so that a log file stays short.

    Args:
        name: Label; nothing is drawn if it is empty.
        total: Units of the whole work.
        initial: Units that are done.
        unit: Name of the unit.

    Returns:
        The bar, to be used as a context.
    """
    every = 0.5 if sys.stderr.isatty() else 20.0
    return tqdm(
        total=total,
        initial=initial,
        desc=name,
        unit=unit,
        mininterval=every,
        maxinterval=every,
        dynamic_ncols=True,
        disable=not name or not devices.is_first(),
    )


def calls(progress: tqdm, steps: int, *, per_call: int, done: int = 0, weight: int = 1) -> Iterator[tuple[int, int]]:
    """Split steps into calls, and move a progress bar after each.

    Args:
        progress: The bar.
        steps: Steps of the whole training.
        per_call: Steps of a call; the last one may have fewer.
        done: Steps that are done before.
        weight: Units of the bar that a step counts, such as the number of networks side by side.

    Yields:
        The first step of a call, and the number of its steps.
    """
    for first in range(done, steps, per_call):
        count = min(per_call, steps - first)
        yield first, count
        progress.update(weight * count)


def check_finite(losses: Any, message: Callable[[int], str]) -> None:
    """Refuse losses that are not finite numbers.

    Args:
        losses: `(k,)`.
        message: From the index of the first bad one to the text of the error.

    Raises:
        UserError: If one of them is NaN or infinite.
    """
    bad = np.flatnonzero(~np.isfinite(np.asarray(losses)))
    if len(bad):
        raise UserError(message(int(bad[0])))


def _log(path: pathlib.Path, name: str, done: int, info: Any, rate: float) -> None:
    if not devices.is_first():
        return
    line = {"stage": name, "step": done}
    line |= {field: float(np.mean(values)) for field, values in info._asdict().items()}
    with files.saving(path):
        files.append_json_line(path, line | {"steps_per_second": round(rate, 3)})


def _drop_lines(path: pathlib.Path, name: str, done: int) -> None:
    """Drop what was logged beyond the step that is resumed from, and a line cut short by a kill."""
    if path.exists() and devices.is_first():
        kept = [line for line in read_metrics(path) if line["stage"] != name or line["step"] <= done]
        files.write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; one that a kill cut short is left out."""
    return files.read_json_lines(path)


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Within it SIGTERM and SIGINT only add to the list that it yields; a second one acts as it always does."""
    requested: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, _: Any) -> None:
        requested.append(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield requested
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
