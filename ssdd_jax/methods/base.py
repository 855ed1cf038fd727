"""What a distillation method is: a NamedTuple of pure functions, in the way that an optax transformation is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax.sharding import Mesh

from ssdd_jax.data.preprocess import Preprocessing
from ssdd_jax.distilled import DistilledSet

if TYPE_CHECKING:  # stages are given methods, and methods may bring stages
    from ssdd_jax.methods.run import Run

Array = jax.Array
Feed = Callable[[int, int], Any]


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


class Stage(NamedTuple):
    """A part of a run that leaves its output in a folder, and returns at once where that is complete.

    Attributes:
        name: For `--stage`, the seconds in `results.json`, and its folder.
        run: Does the work.
        shared: The parts of the config that its output depends on, if runs that agree in them may share it.
        together: Whether it splits its work over all devices, so that every process of a run must take part; otherwise
            the first does it alone.
    """

    name: str
    run: Callable[[Run], None]
    shared: tuple[str, ...] = ()
    together: bool = False


class Method(NamedTuple):
    """A distillation method.

    Attributes:
        init: `(key, source) -> state`. A state is a pytree with the fields `step`, int32, and `key`. The source has
            the samples and what `look` names.
        step: `(state, source) -> (state, info)`: one outer step. `info` is a NamedTuple of scalars, `loss` among them.
            With a feed, `(state, source, item) -> (state, info)`. None where there is nothing to learn.
        export: `(key, state, source) -> DistilledSet`, with the source that `init` was given.
        steps: Number of outer steps; 0 where there is nothing to learn.
        samples: Number M of images that it starts from; 0 if it starts from none.
        views: Names of the views whose targets it starts from, the first being the image as it is.
        stages: Stages of its own between the teacher's features and the choice of samples.
        load: What these stages made, as a pytree for `Source.prepared`.
        feed: From a run to `(done, count) -> item`s, leaves with a leading axis `count`: what the steps after the first
            `done` need from the host. A pure function of the step's number, so that a resumed run sees the same. None
            instead of it where the run's data are on the device.
        look: `(key, n) -> rows`: the training images besides the samples that `init` looks at when it is given the
            key, int `(k,)`; None instead of them for all n in their order. None where it looks at none.
        after: Stages of its own between the export and the evaluation; each leaves a `results.json` in its folder.
        advice: What to try when the loss is no longer a number.
        show: `(state) -> pictures`: what can be seen of a state while it learns, by name: `images` `(M,H,W,C)` as
            network inputs, and `bases` `(U,h,w,C)` if it has any. None where there is nothing to learn.
        spread: `(mesh, like) -> shardings`: where each leaf of a state lies on several devices, a pytree like it. None
            for all of it on every device.
    """

    init: Callable[[Array, Source], Any]
    step: Callable[..., tuple[Any, Any]] | None
    export: Callable[[Array, Any, Source], DistilledSet]
    steps: int
    samples: int
    views: tuple[str, ...] = ("rot0",)
    stages: tuple[Stage, ...] = ()
    load: Callable[[Run], Any] | None = None
    feed: Callable[[Run], Feed | None] | None = None
    look: Callable[[Array, int], Array | None] | None = None
    after: tuple[Stage, ...] = ()
    advice: str = "try a smaller config.distill.learning_rate in another --workdir"
    show: Callable[[Any], Mapping[str, Array]] | None = None
    spread: Callable[[Mesh, Any], Any] | None = None
