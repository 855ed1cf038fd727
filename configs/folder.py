"""A folder of photographs of any sizes: folder.py:PATH or folder.py:PATH,METHOD.

Settings are chosen from the images and the machine (`ssdd_jax.api.photos`), and each can be changed by its key.
Subfolders are classes; subfolders train and test (or val) are splits. Without labels the evaluation measures
feature_r2 alone.
Command: python -m ssdd_jax.main --config=configs/folder.py:PATH [--dry_run]
"""

import jax
from ml_collections import ConfigDict

from ssdd_jax.api import photos
from ssdd_jax.config import folder_argument
from ssdd_jax.data import folder


def get_config(argument: str = "") -> ConfigDict:
    """Return the config; `argument` is `PATH` or `PATH,METHOD`."""
    path, method = folder_argument(argument)
    found = folder.survey(path)
    return photos.choose(found, method=method or "boost", accelerator=jax.default_backend() != "cpu")
