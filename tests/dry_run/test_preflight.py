"""The check of memory before the first stage: its estimates, what it refuses, and that it stops nothing else."""

import jax
import jax.numpy as jnp
import pytest
import tiny_runs

from ssdd_jax import dry_run, main, pipeline
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.dry_run import peaks, preflight
from ssdd_jax.dry_run.preflight import Need, Shortage
from ssdd_jax.dry_run.timing import memory_of
from ssdd_jax.methods import bilevel
from ssdd_jax.stages import forms
from ssdd_jax.training import streaming


def peak(function, *arguments):
    return peaks.peak(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_the_peak_counts_what_lives_at_a_time():
    x = jnp.zeros(1000)
    # The argument, and two results at a time, however long the chain.
    assert peak(lambda x: jnp.sin(jnp.cos(jnp.sin(jnp.cos(x)))), x) == 3 * 4000
    # All results that a later equation reads live until then.
    assert peak(lambda x: sum([jnp.sin(x), jnp.cos(x), jnp.tan(x)], start=jnp.zeros(1000)), x) > 4 * 4000
    # A loop holds its body once, not once a step.
    assert peak(lambda x: jax.lax.fori_loop(0, 100, lambda _, x: jnp.sin(jnp.cos(x)), x), x) <= 6 * 4000


def test_the_peak_bounds_what_xla_takes():
    def loss(w, x):
        for _ in range(4):
            x = jnp.tanh(x @ w)
        return jnp.sum(x * x)

    step, arguments = jax.grad(loss), (jnp.zeros((64, 64)), jnp.zeros((512, 64)))
    compiled = memory_of(jax.jit(step).lower(*arguments).compile())
    assert compiled <= peak(step, *arguments) <= 3 * compiled


def prepared(folder, edition, **changes):
    options = commandline.parse(tiny_runs.taught(folder, edition, "planned", **changes))
    job = pipeline.prepare(options.config, pipeline.Workdir(options.workdir, options.shared), lambda line: None)
    return job, pipeline.stages_of(job.method, job.config, job.problem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_runs.with_teacher(tmp_path_factory.mktemp("preflight"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edition", "gigabytes"),
    # What every method has in common is bounded in both ways for one of them.
    [
        ("boost", 0.0),
        ("boost", 1e-6),
        ("krr_st", 1e-6),
        ("mkdt", 0.0),
        ("scdd", 1e-6),
        ("high_loss", 1e-6),
        ("noise", 0.0),
        ("lgm", 0.0),
        ("clp_dd", 1e-6),
    ],
)
def test_every_stage_is_bounded_without_being_run(edition, gigabytes, folder):
    """On abstract shapes, with the data on the device and streamed; XLA's estimate is within the margin."""
    job, stages = prepared(folder, edition, devices__gigabytes=gigabytes, encoder__label_steps=2)
    shapes = preflight.Shapes(job)
    for stage in stages:
        for need in preflight._needs(shapes, stage):
            assert need.size > 0
            if stage.name == "distill" and need.compiled is not None:
                assert 0 < need.compiled() <= preflight.MARGIN * need.size
    names = {stage.name for stage in stages if list(preflight._needs(shapes, stage))}
    own = {"mkdt": {"experts"}, "high_loss": {"experts"}, "scdd": {"probe", "post_training"}}
    heads = dict.fromkeys(("lgm", "clp_dd"), {"linear_head", "hard_labels", "hard_labels_augmented"})
    assert names == {"teacher", "features", "distill", "evaluate"} | (own | heads).get(edition, set())


@pytest.mark.slow
def test_a_size_that_is_too_large_is_found(folder, monkeypatch):
    """And not the same run on a device that holds it."""
    job, stages = prepared(folder, "krr_st")
    assert dry_run.shortages(job, stages) == []
    monkeypatch.setattr(streaming, "memory_bytes", lambda: 50_000)
    found = dry_run.shortages(job, stages)
    (distill,) = [one for one in found if one.words.startswith("distill")]
    assert distill.exact and "the device has 50 kB: lower config.pool.vectorize" in distill.words


@pytest.mark.medium
def test_a_distillation_that_measures_its_forms_needs_the_memory_of_the_smallest(folder, monkeypatch):
    """Parallel models by patches take much more than one model after the other, and are left out if they do not fit."""
    monkeypatch.setattr(bilevel, "_platform", lambda platform: "cuda")

    def steps(least, **changes):
        job, _ = prepared(folder, "boost", pool__models_per_step=2, **changes)
        monkeypatch.setattr(forms, "LEAST_STEPS", least)
        *_, need = preflight._of_distill(preflight.Shapes(job))
        return need.size, job

    (parallel, job), (smallest, _) = steps(10**9), steps(1)
    (sequential, _) = steps(10**9, pool__vectorize=1, pool__form="lax")
    assert smallest == sequential < parallel
    # A run that has chosen takes that form.
    job.work.folder.mkdir(exist_ok=True)
    forms.keep(job.work.folder, {"pool.vectorize": 2, "pool.form": "patches"}, [])
    try:
        assert steps(1)[0] > smallest
    finally:
        (job.work.folder / forms.FILE).unlink()


@pytest.mark.parametrize(
    ("backend", "choice", "status"), [("gpu", "refuse", 2), ("gpu", "warn", 0), ("cpu", "refuse", 0)]
)
def test_what_is_refused_and_what_is_said(backend, choice, status, tmp_path, monkeypatch, capsys):
    """A run that cannot fit ends on an accelerator before its first stage; a rough estimate refuses nothing."""
    tiny_runs.write_data(tmp_path)
    shortages = [Shortage("evaluate needs much", exact=False), Shortage("distill needs more", exact=True)]
    monkeypatch.setattr(dry_run, "shortages", lambda job, stages: shortages)
    monkeypatch.setattr(pipeline.jax, "default_backend", lambda: backend)
    line = [*tiny_runs.arguments(tmp_path, devices__preflight=choice), "--stage=features"]
    assert main.main(line) == status
    out, err = capsys.readouterr()
    assert "memory: evaluate needs much" in out
    assert (tmp_path / "run" / "features").exists() == (status == 0)
    if status:
        assert err.strip().splitlines()[-1] == (
            "ssdd_jax: distill needs more, or set config.devices.preflight=warn to try"
        )
        # What the message asks for is done in the same folder.
        monkeypatch.setattr(dry_run, "shortages", lambda job, stages: [])
        assert main.main([*line, "--config.distill.batch_size=5"]) == 0
    else:
        assert "memory: distill needs more" in out


@pytest.mark.parametrize("choice", ["refuse", "off"])
def test_a_prediction_that_fails_stops_nothing(choice, tmp_path, monkeypatch, capsys):
    def fail(job, stages):
        raise ValueError("no such\nshape")

    tiny_runs.write_data(tmp_path)
    monkeypatch.setattr(dry_run, "shortages", fail)
    assert main.main([*tiny_runs.arguments(tmp_path, devices__preflight=choice), "--stage=features"]) == 0
    assert ("memory cannot be predicted: no such shape" in capsys.readouterr().out) == (choice == "refuse")


def test_xlas_estimate_replaces_a_size_that_may_not_fit():
    assert preflight._settled(Need(5, lambda: 1 / 0), 10) == (5, False)
    assert preflight._settled(Need(6, lambda: 9), 10) == (9, True)
    assert preflight._settled(Need(20, lambda: 7), 10) == (7, True)
    assert preflight._settled(Need(20, lambda: 15), 10) == (15, True)
    assert preflight._settled(Need(20, lambda: 0), 10) == (20, False)
    assert preflight._settled(Need(20), 10) == (20, False)
