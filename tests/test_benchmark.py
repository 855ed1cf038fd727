"""The benchmark compares equals: its PyTorch side computes what ours does."""

import functools
import json

import jax
import numpy as np
import pytest

from experiments import benchmark, jax_loops
from ssdd_jax import decoder, inner, outer

TINY = ["--images=3", "--views=4", "--batch=5", "--size=8", "--widths=4,6", "--dim=7", "--steps=2", "--repeats=2"]
# More than in use: at 1e-6 an unrefined solution in float32, as PyTorch's is, is off by parts in a thousand.
RIDGE = 1e-4


@pytest.fixture(scope="module")
def problem():
    # Every view, and more features than pairs: otherwise the system is singular but for the ridge.
    return jax_loops.make_problem(benchmark.parse([*TINY, "--views=8", "--widths=16,32", "--pool=1"]))


@pytest.fixture(params=["contiguous_format", "channels_last"])
def reference(problem, request):
    torch = pytest.importorskip("torch")
    torch_reference = pytest.importorskip("experiments.torch_reference")
    settings = torch_reference.Settings(
        outer_rate=1e-3,
        inner_rate=0.1,
        momentum=0.9,
        weight_decay=1e-3,
        ridge_scale=RIDGE,
        memory_format=getattr(torch, request.param),
    )
    variables = jax.tree.map(np.asarray, model_of(problem).variables)
    params = jax.tree.map(np.asarray, problem.params)
    return torch_reference.Reference(params, [variables], settings, torch.device("cpu"))


def model_of(problem):
    """The pool's model with running statistics that are not those of the start."""
    state = jax.tree.map(lambda leaf: leaf[0], problem.models.models)
    return jax.jit(inner.step)(state, *decoder.decode_pairs(problem.params))[0]


def real(problem):
    import torch

    images, targets = np.array(problem.images[:5]), np.array(problem.targets[:5])
    return torch.from_numpy(images.transpose(0, 3, 1, 2)), torch.from_numpy(targets)


def test_torch_decodes_the_same_pairs(problem, reference):
    images, targets = decoder.decode_pairs(problem.params)
    their_images, their_targets = reference.decode()
    np.testing.assert_allclose(their_images.permute(0, 2, 3, 1), images, atol=1e-5)
    np.testing.assert_allclose(their_targets, targets, atol=1e-5)


def test_torch_takes_the_same_outer_gradient(problem, reference):
    loss, gradient = jax.jit(jax.value_and_grad(functools.partial(outer.loss, ridge_scale=RIDGE)))(
        problem.params, model_of(problem).variables, problem.images[:5], problem.targets[:5]
    )
    theirs = reference.outer_loss(0, *real(problem))
    theirs.backward()
    pairs = reference.pairs
    np.testing.assert_allclose(theirs.item(), loss, rtol=1e-4)
    bases = np.moveaxis(np.asarray(gradient.image_bases), -1, 1).reshape(pairs.image_bases.shape)
    close(pairs.image_bases.grad, bases)
    close(pairs.image_coefficients.grad, gradient.image_coefficients)
    close(pairs.feature_bases.grad, gradient.feature_bases)
    close(pairs.feature_coefficients.grad, gradient.feature_coefficients)
    assert all(weight.grad is None for weight in reference.models[0].parameters())


def test_torch_takes_the_same_outer_step(problem, reference):
    batch = outer.Batch(
        jax.tree.map(lambda leaf: leaf[None], model_of(problem).variables), problem.images[:5], problem.targets[:5]
    )
    settings = outer.Settings(ridge_scale=RIDGE)
    start = outer.init(problem.params, settings=settings)
    state, info = jax.jit(functools.partial(outer.step, settings=settings))(start, batch)
    np.testing.assert_allclose(reference.outer_step([0], *real(problem)).item(), info.loss, rtol=1e-4)
    theirs = reference.pairs.feature_coefficients.detach()
    np.testing.assert_allclose(theirs, state.params.feature_coefficients, atol=1e-4)


def test_torch_takes_the_same_inner_steps(problem, reference):
    from experiments import torch_reference

    state, pairs = model_of(problem), decoder.decode_pairs(problem.params)
    # The momentum of the step that moved the statistics stays behind: both start from the weights alone.
    state = inner.State(state.variables, inner.optimizer(inner.Settings()).init(state.variables["params"]))
    state, losses = jax.jit(inner.train, static_argnums=3)(state, *pairs, 3)
    theirs = [reference.inner_step(0, *reference.decode()).item() for _ in range(3)]
    np.testing.assert_allclose(theirs, losses, rtol=1e-4)
    expected = torch_reference.network_from(jax.tree.map(np.asarray, state.variables), (8, 8, 3)).state_dict()
    for name, value in reference.models[0].state_dict().items():
        if "num_batches" not in name:
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_benchmark_reports_without_torch(tmp_path, capsys):
    path = tmp_path / "report.json"
    report = benchmark.main(["--quick", "--no-torch", *TINY, "--product=64", f"--output={path}"])
    assert {"machine", "options", "flops", "scan_overhead", "jax", "torch"} <= report.keys()
    assert report["torch"] is None
    assert report["scan_overhead"]["ratio"] > 0
    for part in ("outer", "inner", "whole"):
        row = report["jax"][part]
        assert {"seconds", "best_seconds", "gflops", "share", "compile_seconds"} <= row.keys()
        assert 0 < row["best_seconds"] <= row["seconds"]
    assert json.loads(path.read_text())["options"]["images"] == 3
    assert "scan over single steps" in capsys.readouterr().out


def test_missing_torch_is_said(monkeypatch, capsys):
    monkeypatch.setattr(benchmark.util, "find_spec", lambda name: None)
    options = benchmark.parse(["--quick", *TINY])
    sides, report = benchmark.torch_sides(jax_loops.make_problem(options), options)
    assert not sides and "ssdd_jax[torch]" in report["note"]


def test_flops_are_counted_from_the_shapes():
    options = benchmark.parse(["--images=1", "--views=1", "--batch=1", "--size=4", "--widths=2", "--dim=3"])
    network, features = 18 * 3 * 2 * 16, 9
    regression = 2 * features * 2 + 2 / 3 + 2 * 3 * 2
    decoding = 2 * (3 * 16 + 3)
    counts = jax_loops.flops(options)
    assert counts["outer"] == pytest.approx(3 * network + 3 * regression + 3 * decoding)
    assert counts["inner"] == pytest.approx(2 * network + 6 * 8 * 3)
    assert counts["whole"] == pytest.approx(counts["outer"] + counts["inner"] + decoding)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--size=10"], "cannot be halved"),
        (["--models-per-step=3"], "more than --pool=2"),
        (["--views=9"], "there are 8"),
        (["--steps=0"], "not above 0"),
        (["--output=missing/report.json"], "no folder"),
    ],
)
def test_wrong_options_are_explained(arguments, words, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse(arguments)
    assert words in capsys.readouterr().err


def close(theirs, ours):
    """Within 1e-3 of the largest entry: the system is ill-conditioned in float32."""
    ours = np.asarray(ours)
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-3, atol=1e-3 * np.abs(ours).max())
