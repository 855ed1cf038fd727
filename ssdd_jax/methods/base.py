"""Types for distillation methods and runs. A method is a NamedTuple of pure functions, as in Optax."""

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
from ssdd_jax.errors import UserError
from ssdd_jax.models import frozen
from ssdd_jax.runtime.workdir import Workdir, fingerprint
from ssdd_jax.training import streaming

Array = jax.Array
Feed = Callable[[int, int], Any]
Say = Callable[[str], None]

# Each stage has its own PRNG key. Changing these numbers would change the results of every seed. A stage that a method
# adds gets a number derived from its name.
_KEYS = {"teacher": 1, "samples": 2, "distill": 3, "approximate": 4}


class Problem(NamedTuple):
    """Facts about the data and the teacher that are available before any stage runs.

    Attributes:
        image_shape: `(H,W,C)`.
        dim: Length D of the teacher's features.
        images: Number n of training images.
        classes: Number of classes; 0 without labels.
        network: Whether the teacher can be run: a network, or for some methods a function, as opposed to precomputed
            features.
        mesh: Devices to split the work over; None for a single device.
        batch_norm: Whether that network has batch norm.
        empty_class: Name of a class that no training image has; empty if there is none.
        platform: Platform that the method's programs are for, such as `cpu`, `cuda` or `tpu`; empty for that of the
            devices here. It decides the precision of the layers and the form of the convolutions.
    """

    image_shape: tuple[int, int, int]
    dim: int
    images: int
    classes: int = 0
    network: bool = False
    mesh: Mesh | None = None
    batch_norm: bool = True
    empty_class: str = ""
    platform: str = ""

    @property
    def image_numbers(self) -> int:
        """Number of values in an image, `H W C`."""
        height, width, channels = self.image_shape
        return height * width * channels

    def check_classes(self, method: str, *, instead: str = "") -> None:
        """Check that every class has a training image, for a method whose images are of classes.

        Args:
            method: The method's name in the config.
            instead: What else the user can do, beside raising the number of images.

        Raises:
            UserError: If a class has none; the message names it.
        """
        if self.empty_class:
            raise UserError(
                f"config.method={method} needs images of every class, and no training image is of the class "
                f"{self.empty_class}: raise config.data.train_limit{instead}"
            )


class Source(NamedTuple):
    """Data that a method distils, on the device: all training images, a part, or none where they are streamed.

    Attributes:
        images: uint8 `(n,H,W,C)`.
        targets: The teacher's features of the images, centred and scaled, `(n,D)`.
        samples: Indices of the images that the method starts from, int32 `(M,)`; meaningless if there are no images.
        view_targets: Like `targets`, for the views of the samples `(views,M,D)`.
        preprocessing: The data set's constants.
        teacher: Variables of the teacher's backbone, a `models.resnet.ResNet`, or a `models.frozen.Frozen` network;
            None if its features are precomputed.
        prepared: Output of the method's `load`.
    """

    images: Array
    targets: Array
    samples: Array
    view_targets: Array
    preprocessing: Preprocessing
    teacher: Any = None
    prepared: Any = None


class Trial(NamedTuple):
    """Part of a stage's work that the dry run times.

    Attributes:
        what: Name of the unit of work, in the plural, such as `steps`.
        count: Remaining units.
        function: A function under `jax.jit`.
        arguments: Its positional arguments.
        options: Its static arguments by name.
        units: Units that one call performs; with `repeated` the largest number that a call accepts.
        repeated: Whether the function takes the number of units as a further positional argument, int32.
        held: Bytes on the device in addition to the memory of the program.
        compiles: Whether to count the compilation time; False if another part of the run compiles the same program.
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
    """Random arrays shaped like the outputs of stages that have not run; see `ssdd_jax.dry_run.standins`.

    Attributes:
        run: The planned run.
        backbone: The teacher as `Run.backbone` returns it; None if it is not a network.
        preprocessing: The data set's constants, with those of the random features.
        state: The method's state at the start.
    """

    run: Run

    @property
    def backbone(self) -> Any:
        """The teacher as `Run.backbone` returns it; None if it is not a network."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The data set's constants, with those of the random features."""

    @property
    def state(self) -> Any:
        """The method's state at the start."""

    def normal(self, *shape: int) -> np.ndarray:
        """Draw standard normal values, float32 `(*shape)`."""

    def features(self, count: int) -> np.ndarray:
        """Draw random features in place of the teacher's `(count,D)`."""


class Stage(NamedTuple):
    """Part of a run that writes its output to a folder, and returns at once if that is complete.

    Attributes:
        name: Used by `--stage`, for the seconds in `results.json`, and as the name of its folder.
        run: Performs the stage.
        shared: Parts of the config that its output depends on, if runs with equal values of these may share it.
        together: Whether the work is split over all devices, so that every process of a run must take part; otherwise
            only the first process runs it.
        output: The file that is written last and marks completion, relative to the run directory, or to the shared
            folder if `shared`; empty if there is no such mark.
        trials: Parts of its work for the dry run to time; None if the dry run has its own measurement for the stage, or
            if it takes only seconds.
        lower: Config keys to lower if its programs need more memory than the device has.
    """

    name: str
    run: Callable[[Run], None]
    shared: tuple[str, ...] = ()
    together: bool = False
    output: str = ""
    trials: Callable[[StandIns], list[Trial]] | None = None
    lower: str = "config.data.image_size"


class Form(NamedTuple):
    """One way to compute a method's outer step, among others that give the same result up to rounding.

    Attributes:
        words: Its description.
        changes: Changes to the config that select it: dotted keys to values.
    """

    words: str
    changes: Mapping[str, Any]


class Method(NamedTuple):
    """A distillation method for fixed shapes: pure functions, and the facts that plans and reports print.

    Attributes:
        init: `(key, source) -> state`. A state is a pytree with the fields `step`, int32, and `key`. The source holds
            the samples and the images that `look` chooses.
        step: `(state, source) -> (state, info)`: one outer step. `info` is a NamedTuple of scalars, `loss` among them.
            With a feed, `(state, source, item) -> (state, info)`. None if nothing is learned.
        export: `(key, state, source) -> DistilledSet`, with the same source as `init`.
        steps: Number of outer steps; 0 if nothing is learned.
        samples: Number M of images that it starts from; 0 if it starts from none.
        title: Display name, such as `KRR-ST`; the name in the config if empty.
        views: Names of the views whose targets it starts from; the first is the unchanged image.
        stages: Method-specific stages between the teacher's features and the choice of samples.
        load: Reads the output of these stages, as a pytree for `Source.prepared`.
        feed: Maps a run to a function `(done, count) -> items`, whose leaves have a leading axis `count`: the host data
            for the steps that follow the first `done`. The items depend on the step number alone, so that a resumed
            run sees the same ones. Returns None if the run's data are on the device.
        look: `(key, n) -> indices`: the training images that `init` reads in addition to the samples, int `(k,)`, for
            the key that `init` receives; it returns None to request all n in order. None if `init` reads no others.
        after: Method-specific stages between the export and the evaluation; each writes a `results.json` to its folder.
        settle: `(source) -> changes`: changes to the config, dotted keys to values, that depend on the data, such as
            numbers of bases; the samples of the source are some hundreds of random images. None if the shapes of the
            data decide everything.
        advice: Hint printed when the loss becomes NaN.
        show: `(state) -> pictures`: snapshots of a state by name: `images` `(M,H,W,C)` as network inputs, or `pixels`
            between 0 and 1, and `bases` `(U,h,w,C)` if it has any. None if nothing is learned.
        spread: `(mesh, like) -> shardings`: the sharding of each leaf of a state, a pytree like it. None to replicate
            the state on every device.
        pairs: Number of pairs, and length of a target. Default: every view of every sample (or of N images) with the
            teacher's features.
        parts: Stored numbers by part. Default: the images and targets of the pairs.
        shapes: Additional rows of the dry run's table of shapes: name and text.
        trials: Additional parts of the stages `distill` and `approximate` for the dry run to time, by stage.
        forms: Ways to compute `step` on this machine, of which the fastest is measured at the start of a long
            distillation, the default first; empty if there is no choice.
        example: Random output of the method-specific stages for the dry run, as `load` returns it.
        example_feed: A feed of random items for the dry run, in place of `feed`.
        notes: What a user should know of the sizes and steps that were chosen, said before the first step.
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
    settle: Callable[[Source], Mapping[str, Any]] | None = None
    advice: str = "try a smaller config.distill.learning_rate in another --workdir"
    show: Callable[[Any], Mapping[str, Array]] | None = None
    spread: Callable[[Mesh, Any], Any] | None = None
    pairs: tuple[int, int] | None = None
    parts: Mapping[str, int] | None = None
    shapes: tuple[tuple[str, str], ...] = ()
    trials: Mapping[str, Callable[[StandIns], list[Trial]]] = {}
    forms: tuple[Form, ...] = ()
    example: Callable[[StandIns], Any] | None = None
    example_feed: Callable[[Run], Feed] | None = None
    notes: tuple[str, ...] = ()


class Definition(NamedTuple):
    """Registry entry of a method: its constructor, and the facts that do not depend on the data.

    Attributes:
        make: `(config, problem) -> Method`.
        titles: Display names, by edition.
        editions: Changes to the default config, by edition: dotted keys to values, `method` among them.
        pooled: Whether it learns against the model pool, so that its steps can be split over several devices, and short
            runs need a larger learning rate.
        network: Whether it runs the teacher's network, so that features alone are not enough.
        forward: Whether it only needs its output, so that a function that computes it is enough.
        cpu_steps: Outer steps that take minutes on a CPU, for images below 32 pixels and for larger ones; None for the
            number in the config.
        size_keys: Config keys that, in addition to `storage.N`, determine how many images are stored.
        lower: Config keys to lower if the device runs out of memory.
        floor: Whether it is a lower bound that the axes of a comparison need not include.
        coded: Whether it stores images of the data as they are, which can be coded as a picture.
        bases: Whether it stores bases and coefficients, which may take less than one image.
    """

    make: Callable[[ConfigDict, Problem], Method]
    titles: Mapping[str, str]
    editions: Mapping[str, Mapping[str, Any]]
    pooled: bool = False
    network: bool = False
    forward: bool = False
    cpu_steps: tuple[int, int] | None = None
    size_keys: tuple[str, ...] = ()
    lower: str = ""
    floor: bool = False
    coded: bool = False
    bases: bool = False


class Run(NamedTuple):
    """Context of a run, passed to every stage.

    Attributes:
        config: The run's config.
        work: The run directory.
        dataset: The images.
        problem: Facts about the data and the teacher that are available before any stage runs.
        method: The distillation method.
        say: Called with each message for the user.
        known: The teacher's features if they are in memory; None to read them from the folder.
        chosen: Likewise the samples.
        brought: Likewise the user's precomputed features, by view.
        extract: The teacher as a function from uint8 images `(k,H,W,C)` to features `(k,D)`, if the user passed one.
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
        """The PRNG key of a stage, a scalar `()`: from `config.seed`, or `config.teacher.seed` for shared outputs."""
        seed = self.config.teacher.seed if shared else self.config.seed
        # Not `hash`, which differs between processes.
        number = _KEYS[stage] if stage in _KEYS else zlib.crc32(stage.encode())
        return jax.random.fold_in(jax.random.key(seed), jnp.uint32(number))

    def samples(self) -> features.Samples:
        """The images that the method starts from; the stage `samples` must be complete."""
        return self.chosen or features.load_samples(self.work.samples)

    def features(self) -> features.Features:
        """The teacher's features; the stage `features` must be complete."""
        return self.known or features.load(self.work.features, fingerprint(self.dataset.train_images))

    def preprocessing(self) -> preprocess.Preprocessing:
        """The data set's constants."""
        return self.pairs().preprocessing

    def pairs(self) -> streaming.Pairs:
        """The training images and the teacher's features of them, on the host."""
        images, train_features = self.dataset.train_images, self.features().train
        moments = preprocess.dataset_moments(self.dataset)
        constants = preprocess.fit(images, train_features, moments=moments)
        return streaming.Pairs(images, train_features, constants, self.config.devices.gigabytes)

    def resident(self, *, features: bool = True) -> bool:
        """Return whether the training images, with or without the teacher's features, are kept on the device."""
        size = self.problem.images * (self.problem.image_numbers + (4 * self.problem.dim if features else 0))
        return streaming.fits(size, self.config.devices.gigabytes)

    def backbone(self) -> Any:
        """The teacher for images normalised with the data set's constants; None if its features are precomputed.

        A teacher trained by the run is returned as the variables of its `ResNet`, any other as a
        `models.frozen.Frozen`.
        """
        if self.extract is not None:
            return frozen.of_function(self.extract, self.problem.dim, preprocess.dataset_moments(self.dataset))
        if self.config.teacher.features:
            return None
        variables, about = self.teacher()
        backbone: Any = teacher.backbone(variables)
        # A converted teacher expects its own normalisation: its wrapper converts from that of the data set.
        if "network" in about:
            backbone = teacher.describe(about).frozen(backbone, given=preprocess.dataset_moments(self.dataset))
        return jax.tree.map(jnp.asarray, backbone)

    def teacher(self) -> tuple[Any, dict[str, Any]]:
        """Variables of the trained teacher, and its description."""
        return teacher.load(self.work.teacher)

    def source(self) -> Source:
        """The data for the method's steps: all images, or none if they are streamed."""
        if not self.resident():
            return _some(self, np.zeros(0, np.int32), np.zeros(0, np.int32))
        pairs = self.pairs()
        return _as_source(self, pairs, pairs.on_device(), self.samples().rows)

    def start(self) -> Source:
        """The data for the method's `init` and `export`: its samples, and the images that `look` chooses."""
        samples, count = self.samples().rows, self.problem.images
        others = self.method.look(self.key("distill"), count) if self.method.look else np.zeros(0, np.int32)
        if others is None:
            # All images in their order, so that the samples keep their indices.
            return _some(self, np.arange(count), samples)
        # The samples come first: their indices are then 0 to M - 1.
        return _some(self, np.concatenate([samples, np.asarray(others)]), np.arange(len(samples)))


def _some(run: Run, indices: np.ndarray, samples: np.ndarray) -> Source:
    """Restrict a run's data to some images; `samples` index into these."""
    pairs = run.pairs()
    subset = pairs._replace(
        images=streaming.gather(pairs.images, indices), features=streaming.gather(pairs.features, indices)
    )
    return _as_source(run, pairs, subset.on_device(), samples)


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
