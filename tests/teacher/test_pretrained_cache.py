"""Networks in the cache of the Hugging Face hub: folders of revisions, whose files are links."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from ssdd_jax.errors import UserError
from ssdd_jax.teacher.pretrained import reading


def revision(root, name, value):
    """A revision as the hub's library stores it."""
    folder = root / "snapshots" / name
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    safetensors.numpy.save_file({"weight": np.full(2, value, np.float32)}, root / "blobs" / f"{name}-weights")
    (root / "blobs" / f"{name}-config").write_text(json.dumps({"model_type": "resnet"}))
    for blob, file in (("weights", "model.safetensors"), ("config", "config.json")):
        os.symlink(f"../../blobs/{name}-{blob}", folder / file)


def test_the_revision_of_the_main_branch_is_read(tmp_path):
    root = tmp_path / "models--owner--name"
    revision(root, "aaa", 1.0)
    found = reading.read(str(root))
    assert found.facts["config"] == {"model_type": "resnet"}
    np.testing.assert_array_equal(np.asarray(found.tensors["weight"]), [1.0, 1.0])
    revision(root, "bbb", 2.0)
    with pytest.raises(UserError, match="is not in a supported format"):  # either could be meant
        reading.read(str(root))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("bbb")
    np.testing.assert_array_equal(np.asarray(reading.read(str(root)).tensors["weight"]), [2.0, 2.0])
