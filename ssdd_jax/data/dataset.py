"""`Dataset`: the common in-memory form of every source of images."""

from __future__ import annotations

import dataclasses

import numpy as np

from ssdd_jax.errors import UserError

# Images that are compared at once.
PIECE = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images with their labels, checked on construction.

    Attributes:
        name: Name of the data set, such as `tfds:cifar10`.
        train_images: `(n, H, W, C)` uint8, where C is 1 or 3.
        train_labels: `(n,)` int32 in `[0, classes)`, or None for an unlabelled data set.
        test_images: `(m, H, W, C)` uint8, or None without a test part.
        test_labels: `(m,)` int32 in `[0, classes)`; present exactly when the training labels and the test
            images both are.
        class_names: One name per class, in the order of the labels; empty when there are no labels.
        notes: What a user should know about the data set, such as images that are not read; one line each.

    Raises:
        UserError: If the arrays do not fit this description.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray | None = None
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_images("training", self.train_images)
        self._check_labels("training", self.train_labels, len(self.train_images))
        # A data set may have no test part, but a test part must be complete and match the training part.
        if self.test_images is None:
            if self.test_labels is not None:
                raise UserError(f"{self.name}: there are test labels but no test images")
            return
        self._check_images("test", self.test_images)
        if self.test_images.shape[1:] != self.train_images.shape[1:]:
            raise UserError(
                f"{self.name}: the training images are {_size(self.train_images)} and the test images "
                f"{_size(self.test_images)}; give them one size with --config.data.image_size"
            )
        if (self.train_labels is None) != (self.test_labels is None):
            raise UserError(
                f"{self.name}: only one of the training and the test images have labels; label both or none, "
                "or set --config.data.test_split='' to hold out a part of the training images instead"
            )
        self._check_labels("test", self.test_labels, len(self.test_images))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    @property
    def classes(self) -> int:
        """The number of classes, 0 without labels."""
        return len(self.class_names)

    def with_labels_that_tell(self) -> Dataset:
        """Return the data set, without labels if they are all of one class, where every accuracy would be 100 %."""
        if self.train_labels is None or len(present := np.unique(self.train_labels)) > 1:
            return self
        note = f"no labels: all training images are of one class, {self.class_names[present[0]]}"
        notes = (*self.notes, note)
        return dataclasses.replace(self, train_labels=None, test_labels=None, class_names=(), notes=notes)

    def empty_class(self) -> str:
        """Return the name of the first class that no training image has; empty if there is none."""
        missing = np.setdiff1d(np.arange(self.classes), [] if self.train_labels is None else self.train_labels)
        return self.class_names[missing[0]] if len(missing) else ""

    def check_varied(self) -> None:
        """Check that the training images are not all the same.

        Raises:
            UserError: If they are, so that nothing can be learned from them.
        """
        first, count = self.train_images[:1], len(self.train_images)
        # The first other images settle it for any real data set; the last ones must be read only to refuse it.
        pieces = (self.train_images[begin : begin + PIECE] for begin in range(0, count, PIECE))
        if count > 1 and all((piece == first).all() for piece in pieces):
            raise UserError(f"{self.name}: all {count:,} training images are the same: check how they were read")

    def _check_images(self, part: str, images: np.ndarray) -> None:
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            kind = getattr(images, "dtype", type(images).__name__)
            raise UserError(f"{self.name}: the {part} images must be a uint8 NumPy array, not {kind}")
        if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
            raise UserError(
                f"{self.name}: the {part} images must have the shape (n, height, width, 1 or 3), not {images.shape}"
            )

    def _check_labels(self, part: str, labels: np.ndarray | None, count: int) -> None:
        # `class_names` alone decides whether the data set is labelled: `classes` is its length.
        if (labels is None) != (not self.class_names):
            raise UserError(
                f"{self.name}: there are {self.classes} class names but "
                f"{'no' if labels is None else 'some'} {part} labels; give both or neither"
            )
        if labels is None:
            return
        if not isinstance(labels, np.ndarray) or labels.dtype != np.int32 or labels.ndim != 1:
            kind = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
            raise UserError(f"{self.name}: the {part} labels must be an int32 NumPy array (n,), not {kind}")
        if len(labels) != count:
            raise UserError(f"{self.name}: there are {count} {part} images but {len(labels)} labels")
        # TFDS writes -1 for the labels of a test split that are not public.
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.classes:
            hint = "; -1 marks a split without labels: choose another --config.data.test_split" if low == -1 else ""
            raise UserError(
                f"{self.name}: the {part} labels run from {low} to {high} and must lie in 0..{self.classes - 1}{hint}"
            )


def _size(images: np.ndarray) -> str:
    return "x".join(str(length) for length in images.shape[1:])
