"""Training loop: many steps per compiled call, checkpoints, progress, clean stops, and a check for NaN."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm.auto import tqdm

from ssdd_jax.errors import Stopped, UserError
from ssdd_jax.runtime import devices, files, signs
from ssdd_jax.training import events as event_files
from ssdd_jax.training.checkpoints import Checkpoints

# Work that takes longer than this says what it is, and again at the intervals of a log file.
SILENT_SECONDS, LOG_SECONDS = 2.0, 20.0


class Training(NamedTuple):
    """Description of a training for the loop.

    Attributes:
        name: Name in the progress bar and in `metrics.jsonl`.
        init: `() -> state`; called only if there is no checkpoint.
        step: `(state, data) -> (state, info)`; `info` is a NamedTuple of scalars with a field `loss`.
        steps: Number of steps.
        per_call: Number of steps in one compiled call.
        save_every: Steps between checkpoints; rounded up to whole calls.
        advice: Hint printed when the loss becomes NaN.
        feed: `(done, count) -> items`, leaves with a leading axis `count`: host data for the steps that follow the
            first `done`, read while the device computes. `step` receives its item as the third argument.
        shardings: Sharding of each leaf of the state on a mesh, a pytree like it, as returned by `init`; None for one
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
    events: pathlib.Path | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Any:
    """Train to the last step, resuming from the newest checkpoint if there is one.

    The steps of a call run in one compiled loop whose length is an argument. A call of any length therefore computes
    the same bits, and a resumed run the same as an uninterrupted one.

    Args:
        training: The training.
        data: A pytree on the device, or on the mesh, passed to every step.
        checkpoints: Checkpoints to resume from and to save to; None to save nothing.
        metrics: A file of JSON lines to append to; lines after the step of the checkpoint are dropped. None to log
            nothing.
        events: Folder of event files for TensorBoard, with the scalars of the metrics; None to write none.
        watch: Called after every compiled call; the next call overwrites the state that it receives.

    Returns:
        The final state.

    Raises:
        UserError: If the loss is NaN or infinite; the last checkpoint is kept.
        Stopped: On SIGTERM or SIGINT to any of several processes; the state is saved, if there are checkpoints.
    """
    # Abstract values: the initial state of a resumed run is never computed.
    restored = checkpoints.restore(_abstract(training)) if checkpoints else None
    with working(f"{training.name}: computing the start"):
        state, done = jax.block_until_ready(restored if restored else (training.init(), 0))
    if done >= training.steps:
        return state
    # Items always fill a whole call, also in the last one, so that a single compiled program is enough.
    items = items_of(training, done)
    with working(f"{training.name}: compiling"):
        call = compiled(training, state, data, items).lower(state, data, items, np.int32(1)).compile()
    if metrics is not None:
        _drop_lines(metrics, training.name, done)
    saved = done
    with (
        stop_requests() as requested,
        event_files.writing(events, training.name, done=done) as add_event,
        bar(training.name, training.steps, initial=done) as progress,
    ):
        for first, count in calls(progress, training.steps, per_call=training.per_call, done=done):
            began = time.perf_counter()
            state, info = call(state, data, items, np.int32(count))
            done = first + count
            # Dispatch is asynchronous: the next items are read while the device computes.
            if done < training.steps:
                items = items_of(training, done)
            # Waits for the device. Entries beyond the steps of a short last call are unused.
            info = jax.tree.map(lambda values: np.asarray(values)[:count], info)  # noqa: B023, used at once
            rescue = f"the state of step {saved} is kept; " if checkpoints else ""
            check_finite(info.loss, functools.partial(_not_a_number, training, first, rescue))
            seconds = time.perf_counter() - began
            scalars = _scalars(info, count / seconds)
            if metrics is not None:
                _log(metrics, training.name, done, scalars)
            add_event(done, scalars)
            progress.set_postfix(loss=f"{info.loss.mean():.4f}", refresh=False)
            if watch is not None:
                watch(Progress(done, state, info))
            # All processes must agree to stop at the same step, because checkpoints are written collectively.
            stop = devices.any_process(bool(requested))
            if checkpoints and (done - saved >= training.save_every or done == training.steps or stop):
                checkpoints.save(done, state)
                saved = done
            if stop:  # also after the last step, as more work follows
                if checkpoints:
                    checkpoints.wait()
                raise Stopped(f"{training.name}: stopped at step {done} of {training.steps}")
    if checkpoints:
        checkpoints.wait()
    return state


def _not_a_number(training: Training, done: int, rescue: str, index: int) -> str:
    return f"{training.name}: the loss is not a number at step {done + index + 1}; {rescue}{training.advice}"


def _abstract(training: Training) -> Any:
    like = jax.eval_shape(training.init)
    if training.shardings is None:
        return like
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like, training.shardings
    )


def items_of(training: Training, done: int) -> Any:
    """Return the feed's items for the call that follows the first `done` steps, on the device; None without a feed."""
    if training.feed is None:
        return None
    items = training.feed(done, training.per_call)
    if training.shardings is None:
        return jax.device_put(items)
    if isinstance(jax.tree.leaves(items)[0], jax.Array):  # the feed has read this process's rows only, and placed them
        return items
    return devices.place(jax.tree.leaves(training.shardings)[0].mesh, items)


def compiled(training: Training, state: Any, data: Any, items: Any, *, donate: bool = True) -> Any:
    """Build the function that `run` calls, `(state, data, items, count) -> (state, infos)`.

    Args:
        training: The training.
        state: Its state, or abstract values of it; `data` and `items` likewise.
        data: As for `run`.
        items: Output of the feed, None without one.
        donate: Whether the function may overwrite the state that it is given.

    Returns:
        A jitted function; the infos have leading axes `per_call`, of which the first `count` entries are filled.
    """

    @functools.partial(jax.jit, inline=True)  # so that it is traced once, for its outputs and in the loop
    def step(state: Any, data: Any, items: Any, i: Any) -> tuple[Any, Any]:
        if training.feed is None:
            return training.step(state, data)
        return training.step(state, data, jax.tree.map(lambda leaf: leaf[i], items))

    def call(state: Any, data: Any, items: Any, count: Any) -> tuple[Any, Any]:
        def body(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, infos = carry
            state, info = step(state, data, items, i)
            # Without the constraint the compiler may choose another layout inside the loop.
            if training.shardings is not None:
                state = lax.with_sharding_constraint(state, training.shardings)
            return state, jax.tree.map(lambda values, value: values.at[i].set(value), infos, info)

        _, like = jax.eval_shape(step, state, data, items, jnp.int32(0))
        infos = jax.tree.map(lambda value: jnp.zeros((training.per_call, *value.shape), value.dtype), like)
        return lax.fori_loop(jnp.int32(0), count, body, (state, infos))

    # Donation lets the next state reuse the memory of the previous one.
    donated = (0,) if donate else ()
    if training.shardings is None:
        return jax.jit(call, donate_argnums=donated)
    everywhere = devices.sharding(jax.tree.leaves(training.shardings)[0].mesh)
    return jax.jit(call, donate_argnums=donated, out_shardings=(training.shardings, everywhere))


def bar(name: str, total: int, *, initial: int = 0, unit: str = "step") -> tqdm:
    """Create a progress bar on standard error, updated rarely without a terminal to keep log files short.

    Args:
        name: Label; nothing is drawn if it is empty.
        total: Total number of units.
        initial: Units that are done.
        unit: Name of the unit.

    Returns:
        The bar, a context manager.
    """
    every = _seconds_between_signs()
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


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Context that says on standard error what is being done, if it takes long, how far it is, and since when.

    Args:
        what: The work, such as `distill: compiling`.
    """
    began, done = time.monotonic(), threading.Event()

    def say() -> None:
        wait = SILENT_SECONDS
        while not done.wait(wait):
            far = f", {counted.text}" if counted.text else ""
            print(f"{what}{far}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            wait = LOG_SECONDS

    with signs.counting() as counted:
        thread = threading.Thread(target=say, daemon=True)
        if what and devices.is_first():
            thread.start()
        try:
            yield
        finally:
            done.set()
            if thread.ident is not None:
                thread.join()


def _seconds_between_signs() -> float:
    """Return how often progress is drawn: often for a reader at a terminal or a notebook, rarely in a log file."""
    return 0.5 if sys.stderr.isatty() or "ipykernel" in sys.modules else LOG_SECONDS


def calls(progress: tqdm, steps: int, *, per_call: int, done: int = 0, weight: int = 1) -> Iterator[tuple[int, int]]:
    """Split steps into calls, and advance a progress bar after each.

    Args:
        progress: The bar.
        steps: Steps of the whole training.
        per_call: Steps of a call; the last one may have fewer.
        done: Steps that are done already.
        weight: Units of the bar per step, such as the number of networks side by side.

    Yields:
        The first step of a call, and its number of steps.
    """
    for first in range(done, steps, per_call):
        count = min(per_call, steps - first)
        yield first, count
        progress.update(weight * count)


def check_finite(losses: Any, message: Callable[[int], str]) -> None:
    """Check that losses are finite.

    Args:
        losses: Losses `(k,)`.
        message: Maps the index of the first loss that is not finite to the text of the error.

    Raises:
        UserError: If one of them is NaN or infinite.
    """
    not_finite = np.flatnonzero(~np.isfinite(np.asarray(losses)))
    if len(not_finite):
        raise UserError(message(int(not_finite[0])))


def _scalars(info: Any, rate: float) -> dict[str, float]:
    """Return what is logged about a call: the means of its scalars `(k,)`, and its steps per second."""
    means = {field: float(np.mean(values)) for field, values in info._asdict().items()}
    return means | {"steps_per_second": round(rate, 3)}


def _log(path: pathlib.Path, name: str, done: int, scalars: dict[str, float]) -> None:
    if not devices.is_first():
        return
    with files.saving(path):
        files.append_json_line(path, {"stage": name, "step": done} | scalars)


def _drop_lines(path: pathlib.Path, name: str, done: int) -> None:
    """Drop the lines after the step of the checkpoint, and an incomplete last line left by a kill."""

    def of_stage(line: dict[str, Any]) -> bool:
        return _is_metric(line) and line["stage"] == name

    # Steps of a stage follow each other, so that those before a line of a step that is done are done too.
    files.cut_json_lines(
        path,
        stop=lambda line: of_stage(line) and line["step"] <= done,
        drop=lambda line: not _is_metric(line) or of_stage(line),
    )


def _metrics(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Read the lines of a `metrics.jsonl` one after the other, except what is damaged or was left by a kill."""
    return filter(_is_metric, files.json_lines(path))


def _is_metric(line: dict[str, Any]) -> bool:
    """Return whether a line has a stage, a step and numbers, among them the loss."""
    numbers = [value for key, value in line.items() if key != "stage"]
    named = isinstance(line.get("stage"), str) and isinstance(line.get("step"), int) and "loss" in line
    return named and all(isinstance(value, int | float) for value in numbers)


def read_metrics(path: pathlib.Path, *, most: int = 0) -> list[dict[str, Any]]:
    """Read the lines of a `metrics.jsonl`, except what is damaged or was left by a kill.

    Args:
        path: The file; one that is missing has no lines.
        most: Keep at most twice as many lines of each stage, at equal distances, and the last; all of them if 0. A
            long run writes more lines than fit into memory or a figure.

    Returns:
        The lines, in the order of the file.

    Raises:
        UserError: If the file cannot be read.
    """
    stages: dict[str, _Thinned] = {}
    for place, line in enumerate(_metrics(path)):
        stages.setdefault(line["stage"], _Thinned(most)).add(place, line)
    kept = [one for stage in stages.values() for one in stage.lines()]
    return [line for _, line in sorted(kept, key=lambda one: one[0])]


class _Thinned:
    """Lines at equal distances, fewer than twice `most` however many are added, and the last."""

    def __init__(self, most: int) -> None:
        self.most, self.count, self.every = most, 0, 1
        self.kept: list[tuple[int, dict[str, Any]]] = []

    def add(self, place: int, line: dict[str, Any]) -> None:
        self.last = place, line
        if self.count % self.every == 0:
            self.kept.append(self.last)
        self.count += 1
        if self.most and len(self.kept) == 2 * self.most:
            del self.kept[1::2]
            self.every *= 2

    def lines(self) -> list[tuple[int, dict[str, Any]]]:
        return self.kept if self.kept[-1] is self.last else [*self.kept, self.last]


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Context that collects SIGTERM and SIGINT in the list it yields; a repeated signal has its usual effect.

    So has one that nothing came of, because it arrived too late: at the end of the context.
    """
    requested: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, _: Any) -> None:
        requested.append(number)
        # The second signal of a kind reaches the previous handler, so that a hanging run can be ended.
        signal.signal(number, before[signal.Signals(number)])

    try:
        # What is ignored, as SIGINT is by a job in the background of a shell script, stays so.
        for number in [one for one in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(one) != signal.SIG_IGN]:
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread, where handlers cannot be set
        pass
    ended = False
    try:
        yield requested
        ended = True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended and requested and jax.process_count() == 1:  # several have to agree first
        signal.raise_signal(requested[-1])
