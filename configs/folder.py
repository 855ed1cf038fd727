"""A folder of photographs of any sizes: folder.py:PATH or folder.py:PATH,METHOD.

Settings are chosen from the images found (`ssdd_jax.api.photos`); every one of them can be changed by its key.
Subfolders are classes; subfolders train and test (or val) are the splits; without labels the evaluation measures
feature_r2 alone.
Command: python -m ssdd_jax.main --config=configs/folder.py:PATH [--dry_run]
"""

import jax
from ml_collections import ConfigDict

from ssdd_jax.api import photos
from ssdd_jax.config import folder_argument
from ssdd_jax.data import folder


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` is a folder, or a folder, a comma, and the name of a method."""
    path, method = folder_argument(argument)
    found = folder.survey(path)
    return photos.choose(found, method=method or "boost", accelerator=jax.default_backend() != "cpu")
