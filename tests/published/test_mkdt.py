"""Agreement with the published PyTorch code of MKDT: the loss of four unrolled steps and its three gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative

from ssdd_jax.methods.mkdt import matching

# Largest relative distance (Euclidean) allowed.
ALLOWED = {
    "float64": {"loss": 1e-8, "images": 1e-8, "targets": 1e-8, "rate": 1e-8, "student": 1e-8},
    "float32": {"loss": 1e-6, "images": 3e-6, "targets": 2e-6, "rate": 1e-6, "student": 1e-5},
}
CHANNELS, DIM, LAST = 8, 24, (2, 2)
CONVS, NORMS = ("features.0", "features.4", "features.8"), ("features.1", "features.5", "features.9")


@pytest.fixture(params=["float64", pytest.param("float32", marks=pytest.mark.slow)])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


def parameters(arrays, prefix):
    """Out of PyTorch's names and layouts; the classifier's input is flattened channels-first there."""
    params = {}
    for i, (conv, norm) in enumerate(zip(CONVS, NORMS, strict=True)):
        kernel = arrays[f"{prefix}{conv}.weight"].transpose(2, 3, 1, 0)
        params[f"conv{i}"] = {"kernel": kernel, "bias": arrays[f"{prefix}{conv}.bias"]}
        params[f"in{i}"] = {"scale": arrays[f"{prefix}{norm}.weight"], "bias": arrays[f"{prefix}{norm}.bias"]}
    weight = arrays[f"{prefix}classifier.weight"].reshape(DIM, CHANNELS, *LAST)
    kernel = weight.transpose(2, 3, 1, 0).reshape(-1, DIM)
    return params | {"fc": {"kernel": kernel, "bias": arrays[f"{prefix}classifier.bias"]}}


def final_student(arrays):
    """The one vector of all parameters, cut up in the order of the published network."""
    ends = np.cumsum([arrays[f"start.{name}"].size for name in arrays["names"]])[:-1]
    parts = np.split(arrays["final_student"], ends)
    names = arrays["names"]
    return {name: part.reshape(arrays[f"start.{name}"].shape) for name, part in zip(names, parts, strict=True)}


@pytest.mark.medium
def test_loss_and_gradients(dtype, fixture_arrays):
    arrays = fixture_arrays("mkdt")
    start, target = (
        jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), parameters(arrays, prefix))
        for prefix in ("start.", "target.")
    )
    pairs = tuple(jnp.asarray(arrays[name], dtype) for name in ("images", "targets"))
    rate, rows = jnp.asarray(arrays["lr"], dtype), jnp.asarray(arrays["batches"], jnp.int32)

    function = jax.jit(jax.value_and_grad(matching.loss, argnums=(0, 1)))
    value, ((images, targets), slope) = function(pairs, rate, start, target, rows)
    found = {"loss": value, "images": images, "targets": targets, "rate": slope}
    assert all(array.dtype == dtype for array in found.values())
    names = {"loss": "loss", "images": "grad_images", "targets": "grad_targets", "rate": "grad_lr"}
    distances = {name: relative(array, arrays[names[name]]) for name, array in found.items()}

    # The student's end is where the distance to it vanishes.
    student = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), parameters(final_student(arrays), ""))
    distances["student"] = float(jax.jit(matching.loss)(pairs, rate, start, student, rows)) ** 0.5
    print(dtype, distances)
    allowed = ALLOWED[dtype.name]
    assert {name: value for name, value in distances.items() if not value < allowed[name]} == {}
