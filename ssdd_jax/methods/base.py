"""Types of the distillation methods and of a run: a method is a NamedTuple of pure functions, as in Optax."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssdd_jax import data, teacher
from ssdd_jax.data import features, preprocess
from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.runtime.workdir import Workdir, fingerprint
from ssdd_jax.training import streaming

Array = jax.Array
Feed = Callable[[int, int], Any]
Say = Callable[[str], None]

# Each stage draws from a key of its own. These numbers stay what they are, so that seeds keep their meaning; a stage
# that a method brings gets one from its name.
_KEYS = {"teacher": 1, "samples": 2, "distill": 3, "approximate": 4}


class Problem(NamedTuple):
    """What is known before any work is done.

    Attributes:
        image_shape: `(H,W,C)`.
        dim: Length D of the teacher's features.
        images: Number n of training images.
        classes: Number of classes; 0 without labels.
        network: Whether the teacher is a network that can be run, not features that were brought.
        mesh: The devices to split the work over; None for one.
        batch_norm: Whether that network has batch norm.
    """

    image_shape: tuple[int, int, int]
    dim: int
    images: int
    classes: int = 0
    network: bool = False
    mesh: Mesh | None = None
    batch_norm: bool = True

    @property
    def image_numbers(self) -> int:
        """Numbers in an image, HWC."""
        height, width, channels = self.image_shape
        return height * width * channels


class Source(NamedTuple):
    """The data that a method distils, on the device: all training images, or a part, or none where they are streamed.

    Attributes:
        images: uint8 `(n,H,W,C)`.
        targets: The teacher's features of the images, centred and scaled, `(n,D)`.
        samples: Which of them the method starts from, int32 `(M,)`; of no use where there are none.
        view_targets: The same as `targets` for the views of the samples `(views,M,D)`.
        preprocessing: The data set's constants.
        teacher: Variables of the teacher's backbone, a `models.resnet.ResNet`, or a `models.frozen.Frozen` network;
            None if its features were brought.
        prepared: What the method's `load` gave.
    """

    images: Array
    targets: Array
    samples: Array
    view_targets: Array
    preprocessing: Preprocessing
    teacher: Any = None
    prepared: Any = None


class Trial(NamedTuple):
    """A piece of a stage's work for the dry run to time.

    Attributes:
        what: The unit it is counted in, in the plural, such as `steps`.
        count: Units that are left to do.
        function: A function under `jax.jit`.
        arguments: Its positional arguments.
        options: Its static arguments by name.
        units: Units that one call does; with `repeated` the most that a call may be asked for.
        repeated: Whether the function takes the number of units as a further positional argument, int32.
        held: Bytes on the device that the program's own memory does not include.
        compiles: Whether the time to compile counts; not where another piece of the run compiles the same program.
    """

    what: str
    count: float  # type: ignore[assignment]  # instead of the tuple's method
    function: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = {}
    units: int = 1
    repeated: bool = False
    held: int = 0
    compiles: bool = True


class StandIns(Protocol):
    """Random arrays in the right shapes for the outputs of stages that have not run; see `ssdd_jax.dry_run.standins`.

    Attributes:
        run: The run that is planned.
        backbone: The teacher as `Run.backbone` gives it; None where it is not a network that can be run.
        preprocessing: The data set's constants, with those of the random features.
        state: The method's state at the start.
    """

    run: Run

    @property
    def backbone(self) -> Any:
        """The teacher as `Run.backbone` gives it."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The data set's constants."""

    @property
    def state(self) -> Any:
        """The method's state at the start."""

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers, float32, of the shape `(*shape)`."""

    def features(self, count: int) -> np.ndarray:
        """Features of the teacher `(count,D)`."""


class Stage(NamedTuple):
    """A part of a run that leaves its output in a folder, and returns at once where that is complete.

    Attributes:
        name: For `--stage`, the seconds in `results.json`, and its folder.
        run: Does the work.
        shared: The parts of the config that its output depends on, if runs that agree in them may share it.
        together: Whether it splits its work over all devices, so that every process of a run must take part; otherwise
            the first does it alone.
        output: The file that is written last, relative to the run directory, or to the shared folder if `shared`;
            empty where nothing tells that the stage is complete.
        trials: Pieces of its work for the dry run to time; None where the dry run knows the stage, or it takes seconds.
        lower: Config keys to lower where its programs need more memory than the device has.
    """

    name: str
    run: Callable[[Run], None]
    shared: tuple[str, ...] = ()
    together: bool = False
    output: str = ""
    trials: Callable[[StandIns], list[Trial]] | None = None
    lower: str = "config.data.image_size"


class Method(NamedTuple):
    """A distillation method for given shapes: pure functions, and the facts that plans and reports print.

    Attributes:
        init: `(key, source) -> state`. A state is a pytree with the fields `step`, int32, and `key`. The source has
            the samples and the images that `look` chooses.
        step: `(state, source) -> (state, info)`: one outer step. `info` is a NamedTuple of scalars, `loss` among them.
            With a feed, `(state, source, item) -> (state, info)`. None where nothing is learned.
        export: `(key, state, source) -> DistilledSet`, with the source that `init` was given.
        steps: Number of outer steps; 0 where nothing is learned.
        samples: Number M of images that it starts from; 0 if it starts from none.
        title: Name for readers, such as `KRR-ST`; the name in the config if empty.
        views: Names of the views whose targets it starts from, the first being the image as it is.
        stages: Stages of its own between the teacher's features and the choice of samples.
        load: Reads the output of these stages, as a pytree for `Source.prepared`.
        feed: From a run to `(done, count) -> item`s, leaves with a leading axis `count`: what the steps after the first
            `done` need from the host. A pure function of the step's number, so that a resumed run sees the same. None
            instead of it where the run's data are on the device.
        look: `(key, n) -> indices`: the training images besides the samples that `init` looks at when it is given the
            key, int `(k,)`; None instead of them for all n in their order. None where it looks at none.
        after: Stages of its own between the export and the evaluation; each leaves a `results.json` in its folder.
        advice: Hint printed when the loss becomes NaN.
        show: `(state) -> pictures`: pictures of a state while it learns, by name: `images` `(M,H,W,C)` as network
            inputs, and `bases` `(U,h,w,C)` if it has any. None where nothing is learned.
        spread: `(mesh, like) -> shardings`: where each leaf of a state lies on several devices, a pytree like it. None
            for all of it on every device.
        pairs: Number of pairs, and length of a target; every view of every sample (or of N images) with the teacher's
            features if left out.
        parts: Numbers stored, by part; images and targets of the pairs if left out.
        shapes: Further rows of the dry run's table of shapes: name and text.
        trials: Further pieces of work in the stages `distill` and `approximate`, by stage, for the dry run to time.
        example: Random output of its own stages for the dry run, as `load` returns it.
        example_feed: A feed of random items for the dry run, in place of `feed`.
    """

    init: Callable[[Array, Source], Any]
    step: Callable[..., tuple[Any, Any]] | None
    export: Callable[[Array, Any, Source], DistilledSet]
    steps: int
    samples: int
    title: str = ""
    views: tuple[str, ...] = ("rot0",)
    stages: tuple[Stage, ...] = ()
    load: Callable[[Run], Any] | None = None
    feed: Callable[[Run], Feed | None] | None = None
    look: Callable[[Array, int], Array | None] | None = None
    after: tuple[Stage, ...] = ()
    advice: str = "try a smaller config.distill.learning_rate in another --workdir"
    show: Callable[[Any], Mapping[str, Array]] | None = None
    spread: Callable[[Mesh, Any], Any] | None = None
    pairs: tuple[int, int] | None = None
    parts: Mapping[str, int] | None = None
    shapes: tuple[tuple[str, str], ...] = ()
    trials: Mapping[str, Callable[[StandIns], list[Trial]]] = {}
    example: Callable[[StandIns], Any] | None = None
    example_feed: Callable[[Run], Feed] | None = None


class Definition(NamedTuple):
    """The registry's record of a method: its constructor, and the facts that are known before there are data.

    Attributes:
        make: `(config, problem) -> Method`.
        titles: Names for readers, by edition.
        editions: Changes to the default config, by edition: dotted keys to values, `method` among them.
        pooled: Whether it learns against the model pool, so that its steps split over several devices and few steps
            want a larger learning rate.
        network: Whether it runs the teacher's network, so that features alone do not serve it.
        cpu_steps: Outer steps that minutes on a CPU allow, below 32 pixels and from there on; None for those of the
            config.
        size_keys: Config keys that, beside `storage.N`, choose how many images are stored.
        lower: Config keys to lower where the device's memory is full.
        floor: Whether it is a lower bound that the axes of a comparison need not show.
    """

    make: Callable[[ConfigDict, Problem], Method]
    titles: Mapping[str, str]
    editions: Mapping[str, Mapping[str, Any]]
    pooled: bool = False
    network: bool = False
    cpu_steps: tuple[int, int] | None = None
    size_keys: tuple[str, ...] = ()
    lower: str = ""
    floor: bool = False


class Run(NamedTuple):
    """What every stage is given.

    Attributes:
        config: The run's config.
        work: Its folder.
        dataset: Its images.
        problem: What is known of them before any work.
        method: Its method.
        say: Called with each message for the user.
        known: The teacher's features, where they are in memory instead of in the folder.
        chosen: Likewise the samples.
        brought: Likewise the features that the user gave, by view.
        extract: The teacher as a function of uint8 images `(k,H,W,C)` to features `(k,D)`, where it is given as one.
    """

    config: ConfigDict
    work: Workdir
    dataset: data.Dataset
    problem: Problem
    method: Method
    say: Say
    known: features.Features | None = None
    chosen: features.Samples | None = None
    brought: features.Brought | None = None
    extract: Callable[[np.ndarray], np.ndarray] | None = None

    def key(self, stage: str, *, shared: bool = False) -> jax.Array:
        """The PRNG key of a stage: from `config.seed`, or from `config.teacher.seed` for what runs may share."""
        seed = self.config.teacher.seed if shared else self.config.seed
        number = _KEYS[stage] if stage in _KEYS else zlib.crc32(stage.encode())
        return jax.random.fold_in(jax.random.key(seed), jnp.uint32(number))

    def samples(self) -> features.Samples:
        """The images that the method starts from, once they are chosen."""
        return self.chosen or features.load_samples(self.work.samples)

    def features(self) -> features.Features:
        """The teacher's features, once they are there."""
        return self.known or features.load(self.work.features, fingerprint(self.dataset.train_images))

    def preprocessing(self) -> preprocess.Preprocessing:
        """The data set's constants."""
        return self.pairs().preprocessing

    def pairs(self) -> streaming.Pairs:
        """The training images and the teacher's features of them, on the host."""
        images, known = self.dataset.train_images, self.features().train
        moments = preprocess.dataset_moments(self.dataset)
        return streaming.Pairs(images, known, preprocess.fit(images, known, moments=moments))

    def resident(self, *, features: bool = True) -> bool:
        """Whether the training images, with the teacher's features or without, are kept on the device."""
        size = self.problem.images * (self.problem.image_numbers + (4 * self.problem.dim if features else 0))
        return streaming.fits(size, self.config.devices.gigabytes)

    def backbone(self) -> Any:
        """The teacher for images as the data set's constants normalise them; None if its features were brought.

        Of one that the run has trained the variables of its `ResNet`, of another a `models.frozen.Frozen`.
        """
        if self.config.teacher.features:
            return None
        variables, about = self.teacher()
        found: Any = teacher.backbone(variables)
        if "network" in about:
            found = teacher.describe(about).frozen(found, given=preprocess.dataset_moments(self.dataset))
        return jax.tree.map(jnp.asarray, found)

    def teacher(self) -> tuple[Any, dict[str, Any]]:
        """Variables of the trained teacher, and its description."""
        return teacher.load(self.work.teacher)

    def source(self) -> Source:
        """The data that the method's steps are given: all, or none of the images where they are streamed."""
        if not self.resident():
            return _some(self, np.zeros(0, np.int32), np.zeros(0, np.int32))
        pairs = self.pairs()
        return _as_source(self, pairs, pairs.on_device(), self.samples().rows)

    def start(self) -> Source:
        """The data that the method's `init` and `export` are given: its samples, and what else it looks at."""
        samples, count = self.samples().rows, self.problem.images
        rows = self.method.look(self.key("distill"), count) if self.method.look else np.zeros(0, np.int32)
        if rows is None:
            return _some(self, np.arange(count), samples)
        return _some(self, np.concatenate([samples, np.asarray(rows)]), np.arange(len(samples)))


def _some(run: Run, rows: np.ndarray, samples: np.ndarray) -> Source:
    """Some rows alone; `samples` are positions among them."""
    pairs = run.pairs()
    some = pairs._replace(images=streaming.gather(pairs.images, rows), features=streaming.gather(pairs.features, rows))
    return _as_source(run, pairs, some.on_device(), samples)


def _as_source(run: Run, pairs: streaming.Pairs, on_device: tuple[Array, Array], samples: np.ndarray) -> Source:
    views = jnp.asarray(run.samples().views)
    return Source(
        *on_device,
        samples=jnp.asarray(samples, jnp.int32),
        view_targets=pairs.preprocessing.targets(views),
        preprocessing=pairs.preprocessing,
        teacher=run.backbone(),
        prepared=run.method.load(run) if run.method.load else None,
    )
