"""The program of a whole outer step for accelerators, lowered on a CPU: what is in it, and what is not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax import config as configuration
from ssdd_jax import methods
from ssdd_jax.data import preprocess
from ssdd_jax.training import loop

SIDE, DIM, COUNT, MODELS = 8, 6, 40, 3
CONVOLUTION = re.compile(r"stablehlo\.convolution.*?feature_group_count = (\d+).*?: \((.*?)\) ->", re.S)
PRODUCT = re.compile(r"stablehlo\.dot_general (.*?) : \((.*?)\) ->")


def program(platform, **changes):
    """The training loop's program for a platform, as text, with three models per step."""
    config = configuration.default()
    config.update_from_flattened_dict(
        {
            "storage.N": 4, "storage.M": 5, "storage.base_size": 4, "student.widths": (16, 16), "pool.size": MODELS,
            "pool.models_per_step": MODELS, "distill.batch_size": 8,
        } | changes
    )  # fmt: skip
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    targets = generator.normal(size=(COUNT, DIM)).astype(np.float32)
    method = methods.make(config, methods.Problem((SIDE, SIDE, 3), DIM, COUNT, platform=platform))
    constants = preprocess.fit(images, targets)
    scaled = constants.targets(jnp.asarray(targets))
    rows = jnp.arange(method.samples)
    source = methods.Source(jnp.asarray(images), scaled, rows, jnp.stack([scaled[rows]] * 4), constants)
    state = jax.eval_shape(method.init, jax.random.key(0), source)
    training = loop.Training("distill", lambda: None, method.step, 10, 5, 10, "")
    call = loop.compiled(training, state, source, None)
    return call.trace(state, source, None, np.int32(1)).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    "platform", [pytest.param("cuda", marks=pytest.mark.medium), pytest.param("tpu", marks=pytest.mark.slow)]
)
def test_one_model_after_the_other(platform):
    text = program(platform, **{"pool.vectorize": 1})
    convolutions = CONVOLUTION.findall(text)
    # XLA's own convolutions, none of them grouped, all in bfloat16.
    assert len(convolutions) >= 2 * 3
    assert {groups for groups, _ in convolutions} == {"1"}
    assert all(types.count("bf16") == 2 for _, types in convolutions)
    check_the_rest(text)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_models_in_parallel(platform):
    """By default products of patches, batched over the models: no convolution is left."""
    text = program(platform)
    assert "stablehlo.convolution" not in text
    batched = [types for how, types in PRODUCT.findall(text) if "batching_dims" in how and types.count("bf16") == 2]
    assert batched and all(re.match(rf"tensor<({MODELS}|\d+x{MODELS})x", types.replace(" ", "")) for types in batched)
    check_the_rest(text)


@pytest.mark.slow
def test_a_grouped_convolution_has_to_be_asked_for():
    text = program("cuda", **{"pool.form": "lax"})
    assert str(MODELS) in {groups for groups, _ in CONVOLUTION.findall(text)}


def check_the_rest(text):
    """Precision of the regression, no Winograd, the state donated, nothing that runs on the host."""
    # Float32 products belong to decoding, the last layer and the regression; those of the kernel's size are exact.
    exact = [how for how, types in PRODUCT.findall(text) if "bf16" not in types and "HIGHEST" in how]
    assert len(exact) >= 10
    # Winograd's products are batched over its sixteen sums.
    assert not any(re.match(r"tensor<16x\d+x\d+xf32>, tensor<16x", types) for _, types in PRODUCT.findall(text))
    assert "tf.aliasing_output" in text or "jax.buffer_donor" in text
    assert "callback" not in text and "infeed" not in text and "outfeed" not in text
