"""A TFDS builder of Tiny ImageNet, which TFDS does not include.

It prepares a folder that `tfds:tiny_imagenet` reads, and needs no TensorFlow:

    import tensorflow_datasets as tfds
    from ssdd_jax.data.tiny_imagenet import TinyImagenet

    builder = TinyImagenet(data_dir="~/tensorflow_datasets", file_format="array_record")
    manual = tfds.download.DownloadConfig(manual_dir="the folder that holds tiny-imagenet-200.zip")
    builder.download_and_prepare(download_config=manual)

This module imports TFDS, which is slow; the library reads a prepared folder without it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from ssdd_jax.data import tiny_imagenet_files
from ssdd_jax.errors import UserError


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Builder of Tiny ImageNet: 200 classes of 500 training and 50 validation images each, at 64x64.

    The labels follow `wnids.txt`. The JPEG files are stored unchanged; a few of them are grey.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked or not, into the manual folder."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiny ImageNet, the data set of a Stanford course: a part of ImageNet at 64x64.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
                    # The class names are read from `wnids.txt` during preparation.
                    "label": tfds.features.ClassLabel(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
            citation="Ya Le and Xuan Yang. Tiny ImageNet Visual Recognition Challenge. 2015.",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        manual_dir = pathlib.Path(dl_manager.manual_dir)
        path = tiny_imagenet_files.find(manual_dir)
        if path is None:
            raise UserError(f"{manual_dir} holds no Tiny ImageNet. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        # The labels of the test images are not public: only the validation images can serve as a test part.
        listing = tiny_imagenet_files.list_images(path)
        self.info.features["label"].names = list(listing.class_names)
        return {
            "train": self._generate_examples(listing, listing.train),
            "validation": self._generate_examples(listing, listing.validation),
        }

    def _generate_examples(
        self, listing: tiny_imagenet_files.Listing, images: tuple[tuple[str, int], ...]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, label in images:
            yield name, {"image": listing.read(name), "label": label}
