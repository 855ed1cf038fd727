"""LARS and the schedule against plain restatements of their rules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.teacher.lars import lars, scale_by_local_rate
from ssdd_jax.teacher.schedule import warmup_cosine

ETA, DECAY, MOMENTUM = 0.02, 1e-4, 0.9


def reference(params, gradients, rates):
    """PyTorch's rule in NumPy: local rate (clipped), decay, momentum, step."""
    params = {name: p.copy() for name, p in params.items()}
    buffers = {}
    for gradient, rate in zip(gradients, rates, strict=True):
        for name, p in params.items():
            d = gradient[name].copy()
            p_norm, g_norm = np.linalg.norm(p), np.linalg.norm(d)
            if p.ndim != 1 and p_norm != 0 and g_norm != 0:
                local = ETA * p_norm / (g_norm + p_norm * DECAY + 1e-8)
                d = (d + DECAY * p) * min(local / rate, 1)
            buffers[name] = d if name not in buffers else MOMENTUM * buffers[name] + d
            params[name] = p - rate * buffers[name]
    return params


@pytest.mark.medium
def test_equals_the_rule_over_several_steps(x64):
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(3, 3, 4, 5)),
        "linear": rng.normal(size=(6, 4)),
        "small_gradient": rng.normal(size=(6, 4)),
        "zero": np.zeros((2, 2)),
        "bias": rng.normal(size=(7,)),
        "scalar": np.asarray(2.0),
    }
    sizes = {name: 1e-4 if name == "small_gradient" else 1.0 for name in params}
    gradients = [
        {name: sizes[name] * np.asarray(rng.normal(size=p.shape)) for name, p in params.items()} for _ in range(6)
    ]
    gradients[2]["linear"][:] = 0.0
    rates = [0.001, 0.05, 0.3, 0.2, 0.1, 0.01]
    table = jnp.asarray(rates)
    optimizer = lars(lambda step: table[step], weight_decay=DECAY, momentum=MOMENTUM, eta=ETA)

    @jax.jit
    def run(params, gradients):
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    out = run(jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, gradients))
    expected = reference(params, gradients, rates)
    for name in params:
        np.testing.assert_allclose(out[name], expected[name], rtol=0, atol=1e-8, err_msg=name)


def test_parameters_are_required():
    transform = scale_by_local_rate(0.1)
    params = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="params"):
        transform.update(params, transform.init(params))


def test_schedule_equals_the_chained_rule():
    # Lightning Bolts' recursion, step by step.
    peak, start, end, warmup, steps = 0.3, 3e-5, 1e-3, 7, 40
    expected = [start]
    for step in range(1, steps):
        last = expected[-1]
        if step < warmup:
            expected.append(last + (peak - start) / (warmup - 1))
        elif step == warmup:
            expected.append(peak)
        else:
            angle = [math.pi * (s - warmup) / (steps - warmup) for s in (step, step - 1)]
            expected.append((1 + math.cos(angle[0])) / (1 + math.cos(angle[1])) * (last - end) + end)
    schedule = warmup_cosine(peak=peak, steps=steps, warmup_steps=warmup, start=start, end=end)
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.arange(steps)), expected, rtol=1e-5, atol=1e-7)


def test_schedule_without_warmup_starts_at_the_peak():
    schedule = warmup_cosine(peak=0.3, steps=10, warmup_steps=0)
    assert float(schedule(0)) == pytest.approx(0.3)
    assert float(schedule(5)) == pytest.approx(0.15)


def test_schedule_refuses_a_warmup_that_does_not_fit():
    with pytest.raises(ValueError, match="10 steps does not fit into 5"):
        warmup_cosine(peak=0.3, steps=5, warmup_steps=10)
