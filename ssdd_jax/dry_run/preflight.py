"""Check before the first stage: does the device have the memory that each stage is predicted to need?

A run that is small by a rough bound passes at once. Otherwise its programs are traced on abstract shapes, which takes
up to half a minute and allocates nothing, and those whose traced peak comes near the memory are compiled, for XLA's
own estimate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import methods, teacher
from ssdd_jax.data.preprocess import Preprocessing, from_bytes
from ssdd_jax.dry_run import contents, evaluating
from ssdd_jax.dry_run.peaks import peak
from ssdd_jax.dry_run.standins import StandIns
from ssdd_jax.dry_run.timing import memory_of
from ssdd_jax.evaluate import extraction, training
from ssdd_jax.methods import Stage
from ssdd_jax.methods.base import Run
from ssdd_jax.runtime.memory import readable
from ssdd_jax.stages import forms
from ssdd_jax.stages import teacher as teacher_stage
from ssdd_jax.teacher.network import BATCH, Network
from ssdd_jax.training import loop, streaming

Array = jax.Array


# Upper bound of the memory of a step over that of the forward pass's activations, in the rough bound.
GENEROUS = 10
# A program is compiled if this multiple of its traced peak exceeds the memory. On a CPU, XLA estimates for the steps of
# the digits run 0.85 (distillation) and 1.53 (teacher) of the traced peak.
MARGIN = 2


class Need(NamedTuple):
    """Predicted memory of one program of a stage.

    Attributes:
        size: Bytes on the device, data included, by the traced peak or by the sizes of the arrays.
        compiled: Compiles the program and returns XLA's estimate in bytes; None if there is no single program.
    """

    size: int
    compiled: Callable[[], int] | None = None


class Shortage(NamedTuple):
    """A stage that is predicted to need more memory than the device has.

    Attributes:
        words: Description with both sizes and the config keys to lower.
        exact: Whether XLA's estimate says so, and not only a rough one.
    """

    words: str
    exact: bool


def shortages(run: Run, stages: Sequence[Stage]) -> list[Shortage]:
    """Compare the predicted memory of all stages that are not done with that of the device.

    Args:
        run: The run; any of its stages may be done.
        stages: The stages after `data`, up to the last requested one.

    Returns:
        The stages that need more than there is.
    """
    left = [stage for stage in stages if contents.state_of(run, stage) not in contents.COMPLETE]
    if not left or _is_small(run):
        return []
    shapes = Shapes(run)
    return [shortage for stage in left if (shortage := _shortage(shapes, stage)) is not None]


def _shortage(shapes: Shapes, stage: Stage) -> Shortage | None:
    available = streaming.memory_bytes()
    needed, exact = max((_settled(need, available) for need in _needs(shapes, stage)), default=(0, False))
    if needed <= available:
        return None
    words = f"{stage.name} needs about {readable(needed)} and the device has {readable(available)}"
    return Shortage(f"{words}: lower {stage.lower}", exact)


def _settled(need: Need, available: int) -> tuple[int, bool]:
    """Bytes of a program, and whether they are XLA's estimate, which replaces a size that may not fit."""
    if need.compiled is None or MARGIN * need.size <= available:
        return need.size, False
    # Zero from a backend that reports no memory.
    exact = need.compiled()
    return (exact, True) if exact else (need.size, False)


def _is_small(run: Run) -> bool:
    """Return whether a generous multiple of the networks' activations fits the device, beside the data."""
    config, problem = run.config, run.problem
    if config.teacher.source:
        return False
    pairs, _ = contents.pairs_of(run)
    largest = max(pairs, config.distill.batch_size, config.evaluate.batch_size, extraction.EXTRACT)
    network = evaluating.network_of(run)
    activations = config.pool.size * training.activation_bytes(network, (largest, *problem.image_shape))
    if problem.network:
        teacher_network = Network(config.teacher.width, tuple(config.teacher.blocks), 1, 1)
        # Two views.
        shape = (2 * max(config.teacher.batch_size, BATCH), *problem.image_shape)
        activations += training.activation_bytes(teacher_network, shape)
    data = problem.images * (problem.image_numbers + 4 * problem.dim)
    return GENEROUS * (activations + data) <= streaming.memory_bytes()


def _needs(shapes: Shapes, stage: Stage) -> Iterator[Need]:
    if stage.trials is not None:
        for trial in stage.trials(shapes):
            repeated = (np.int32(1),) if trial.repeated else ()
            arguments = (*trial.arguments, *repeated)
            yield _need(functools.partial(trial.function, **trial.options), *arguments, held=trial.held)
    elif stage.name in _STAGES:
        yield from _STAGES[stage.name](shapes)


def _need(function: Callable[..., Any], *arguments: Any, held: int = 0) -> Need:
    """Trace a function on arrays or abstract values; `held` bytes are on the device besides."""
    traced = peak(jax.make_jaxpr(function)(*arguments).jaxpr)
    return Need(traced + held, lambda: memory_of(jax.jit(function).lower(*arguments).compile()) + held)


class Shapes(StandIns):
    """Abstract values in place of the arrays of a run; nothing is computed or allocated."""

    @functools.cached_property
    def backbone(self) -> Any:
        """The teacher; the variables of one that is still to be trained are abstract."""
        config, work = self.run.config, self.run.work
        if not self.run.problem.network or config.teacher.source or (work.teacher / "teacher.json").exists():
            return super().backbone
        return teacher.backbone(self.teacher_state.variables)

    @functools.cached_property
    def teacher_state(self) -> teacher.State:
        """The state of the teacher's training."""
        return jax.eval_shape(self.trainer.init, jax.random.key(0))

    @functools.cached_property
    def start(self) -> methods.Source:
        """The data for the method's `init`: the samples, and the images that `look` chooses."""
        method, problem = self.job.method, self.run.problem
        look: Any = method.look
        others = jax.eval_shape(lambda key: look(key, problem.images), self.job.key("distill")) if look else ()
        images = (
            problem.images if others is None else method.samples + sum(leaf.size for leaf in jax.tree.leaves(others))
        )
        return self._source(images)

    @property
    def source(self) -> methods.Source:
        """The data for the method's steps."""
        return self._source(self.run.problem.images if self.run.resident() else 0)

    @functools.cached_property
    def state(self) -> Any:
        """The method's state at the start."""
        return jax.eval_shape(self.job.method.init, self.job.key("distill"), self.start)

    @property
    def preprocessing(self) -> Preprocessing:
        """The data set's constants."""
        problem = self.run.problem
        channels, features = _floats(problem.image_shape[-1]), _floats(problem.dim)
        return Preprocessing(channels, channels, features, _floats())

    def normal(self, *shape: int) -> np.ndarray:
        """Return zeros, which take no memory."""
        return np.broadcast_to(np.float32(0), shape)

    def features(self, count: int) -> np.ndarray:
        """Return zeros, which take no memory, in place of the teacher's features."""
        return self.normal(count, self.run.problem.dim)

    def _source(self, images: int) -> methods.Source:
        method, problem = self.job.method, self.run.problem
        source: Any = methods.Source(
            jax.ShapeDtypeStruct((images, *problem.image_shape), jnp.uint8),  # type: ignore[arg-type]
            _floats(images, problem.dim),
            jax.ShapeDtypeStruct((method.samples,), jnp.int32),  # type: ignore[arg-type]
            _floats(len(method.views), method.samples, problem.dim),
            self.preprocessing,
        )
        return self.complete(source)


def _floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _of_teacher(shapes: Shapes) -> Iterator[Need]:
    run = shapes.run
    if run.config.teacher.source:
        return
    size, problem, resident = run.config.teacher.batch_size, run.problem, run.resident(features=False)
    images = jax.ShapeDtypeStruct((problem.images, *problem.image_shape), jnp.uint8) if resident else None
    item = jax.ShapeDtypeStruct(
        (size,) if resident else (size, *problem.image_shape), jnp.int32 if resident else jnp.uint8
    )
    step = teacher_stage.step_of(shapes.trainer, resident=resident)
    described = loop.Training("teacher", lambda: None, step, 1, run.config.teacher.steps_per_call, 1, "", feed=_no_feed)
    yield _steps(described, shapes, shapes.teacher_state, images, item)


def _of_features(shapes: Shapes) -> Iterator[Need]:
    if shapes.backbone is None:
        return
    images = jax.ShapeDtypeStruct((shapes.batch_size, *shapes.run.problem.image_shape), jnp.uint8)
    channels = _floats(images.shape[-1])

    def of_bytes(images: Any, backbone: Any, mean: Any, std: Any) -> Any:
        return teacher.features_of_inputs(backbone, from_bytes(images, mean, std))

    yield _need(of_bytes, images, shapes.backbone, channels, channels)


def _of_distill(shapes: Shapes) -> Iterator[Need]:
    run, job = shapes.run, shapes.job
    # The form that a run has chosen, or those that it will try: it leaves out the ones that are too large, and starts
    # in the first that fits.
    changes = [form.changes for form in run.method.forms] if forms.measured(run) else []
    in_forms = [forms.method_of(job, one) for one in changes] or [job.method]
    starts = [_need(method.init, job.key("distill"), shapes.start) for method in in_forms]
    yield min(starts, key=lambda need: need.size)
    if job.method.step is None:
        return
    chosen = forms.stored(run) if changes else None
    methods_tried = in_forms if chosen is None else [forms.method_of(job, chosen)]
    feed = job.method.feed(job) if job.method.feed else None
    item = None
    if feed is not None:
        item = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), feed(0, 1))
    needs = []
    for method in methods_tried:
        assert method.step is not None
        described = loop.Training(
            "distill", lambda: None, method.step, 1, run.config.distill.steps_per_call, 1, "", feed and _no_feed
        )
        needs.append(_steps(described, shapes, shapes.state, shapes.source, item))
    yield min(needs, key=lambda need: need.size)


def _of_evaluate(shapes: Shapes) -> Iterator[Need]:
    yield from map(Need, evaluating.sizes(shapes.run))


_STAGES: dict[str, Callable[[Shapes], Iterator[Need]]] = {
    "teacher": _of_teacher,
    "features": _of_features,
    "distill": _of_distill,
    "evaluate": _of_evaluate,
}


def _no_feed(done: int, count: int) -> Any:
    raise AssertionError("nothing is run")


def _steps(described: loop.Training, shapes: Shapes, state: Any, data: Any, item: Any) -> Need:
    """Memory of a training's steps; the items of two calls are on the device, if it is fed."""
    arguments = (state, data) if described.feed is None else (state, data, item)
    items = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((described.per_call, *leaf.shape), leaf.dtype), item)
    held, traced = 2 * _bytes(items), peak(jax.make_jaxpr(described.step)(*arguments).jaxpr)
    mesh = shapes.run.problem.mesh
    if mesh is not None:
        # What is computed is split over the devices, state and data are not; abstract values do not say how.
        fixed = _bytes(arguments)
        return Need(held + fixed + (traced - fixed) // mesh.size)

    def compiled() -> int:
        program = loop.compiled(described, state, data, items).lower(state, data, items, np.int32(1)).compile()
        return memory_of(program) + held // 2

    return Need(traced + held, compiled)


def _bytes(tree: Any) -> int:
    """Bytes of a pytree of arrays or abstract values; PRNG keys are negligible."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
