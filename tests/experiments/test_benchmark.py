"""The benchmark compares equals: its PyTorch side computes what ours does, and operations are counted as they are."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_networks import channels_first

from experiments import accelerator, benchmark, convolutions, cost_curves
from experiments.jax_side import kernel
from experiments.jax_side import loops as jax_loops
from experiments.jax_side import stages as jax_stages
from experiments.measure import counts
from ssdd_jax import approximate, decoder, inner, krr, outer, teacher
from ssdd_jax.models import convolution

pytestmark = pytest.mark.slow

TINY = [
    "--images=3", "--views=4", "--batch=5", "--size=8", "--widths=4,6", "--dim=7", "--steps=2", "--repeats=2",
    "--teacher-width=2", "--teacher-blocks=1,1", "--projector=6", "--fit-steps=3", "--product=64", "--no-compile",
]  # fmt: skip
# More than in use: at 1e-6 an unrefined solution in float32, as PyTorch's is, is off by parts in a thousand.
RIDGE = 1e-4


def sized(*arguments):
    options = benchmark.parse([*TINY, *arguments])
    return benchmark.sized(options, options.pairs[0])


@pytest.fixture(scope="module")
def problem():
    # Every view, and more features than pairs: otherwise the system is singular but for the ridge.
    return jax_loops.make_problem(sized("--views=8", "--widths=16,32", "--pool=1"))


@pytest.fixture(params=["contiguous_format", "channels_last"])
def reference(problem, request):
    torch = pytest.importorskip("torch")
    torch_reference = pytest.importorskip("experiments.torch_side.reference")
    settings = torch_reference.Settings(
        outer_rate=1e-3,
        inner_rate=0.1,
        momentum=0.9,
        weight_decay=1e-3,
        ridge_scale=RIDGE,
        memory_format=getattr(torch, request.param),
    )
    variables = jax.tree.map(np.asarray, model_of(problem).variables)
    params = torch_reference.Pairs(jax.tree.map(np.asarray, problem.params))
    models = [torch_reference.network_from(variables, (8, 8, 3))]
    return torch_reference.Reference(params, models, settings, torch.device("cpu"))


def model_of(problem):
    """The pool's model with running statistics that are not those of the start."""
    state = jax.tree.map(lambda leaf: leaf[0], problem.models.models)
    return jax.jit(inner.step)(state, *decoder.decode_pairs(problem.params))[0]


def real(problem):
    import torch

    return channels_first(torch, problem.images[:5]), torch.from_numpy(np.array(problem.targets[:5]))


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
    np.testing.assert_allclose(theirs.item(), loss, rtol=5e-4)
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
    np.testing.assert_allclose(reference.outer_step([0], *real(problem)).item(), info.loss, rtol=5e-4)
    theirs = reference.pairs.feature_coefficients.detach()
    np.testing.assert_allclose(theirs, state.params.feature_coefficients, atol=1e-4)


def test_torch_takes_the_same_inner_steps(problem, reference):
    from experiments.torch_side import reference as torch_reference

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


@pytest.fixture(scope="module")
def trained_teachers():
    """One step of both sides on the same views: ours is made to draw what is known, the other gets it."""
    torch = pytest.importorskip("torch")
    from experiments.torch_side import stages as torch_stages

    settings = teacher.Settings(
        width=4, blocks=(1, 1), projector_hidden=16, projector_output=16, batch_size=6, warmup_epochs=0,
        augmentation=teacher.Augmentation(
            crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), jitter_probability=0.0, grayscale_probability=0.0,
            flip_probability=0.0, solarize_probability=(0.0, 1.0),
        ),
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    trainer = teacher.make(settings, image_shape=(8, 8, 3), images_count=6, mean=jax_stages.MEAN, std=jax_stages.STD)
    state = trainer.init(jax.random.key(0))
    step = jax.jit(trainer.step)
    network = torch_stages.teacher_from(jax.tree.map(np.asarray, state.variables), 4, (1, 1), 16)
    made = torch_stages.TeacherSettings(
        settings.off_diagonal, settings.scale, settings.learning_rate * 6 / 256, settings.weight_decay
    )
    theirs = torch_stages.TeacherReference(network, made)
    first = images.astype(np.float32) / 255
    views = [channels_first(torch, (view - 0.5) / 0.25) for view in (first, np.where(first >= 0.5, 1 - first, first))]
    losses = []
    for _ in range(2):
        state, info = step(state, jnp.asarray(images))
        losses.append((float(info.loss), theirs.step(*views).item()))
    return state, theirs, losses, views[0]


def test_torch_takes_the_same_steps_of_the_teacher(trained_teachers):
    state, theirs, losses, _ = trained_teachers
    from experiments.torch_side import stages as torch_stages

    np.testing.assert_allclose(*np.transpose(losses), rtol=1e-4)
    assert losses[1][0] != losses[0][0]
    variables = jax.tree.map(np.asarray, state.variables)
    expected = torch_stages.teacher_from(variables, 4, (1, 1), 16).state_dict()
    for name, value in theirs.network.state_dict().items():
        if "num_batches" not in name:
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_torch_gives_the_same_features(trained_teachers):
    state, theirs, _, images = trained_teachers
    ours = teacher.features_of_inputs(teacher.backbone(state.variables), images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(theirs.features(images), ours, rtol=1e-3, atol=1e-4)


def test_torch_fits_the_same_approximation():
    torch = pytest.importorskip("torch")
    from experiments.torch_side import stages as torch_stages

    generator = np.random.default_rng(0)
    coefficients = generator.normal(size=(3, 5, 4)).astype(np.float32)
    bases = generator.normal(size=(4, 6)).astype(np.float32)
    settings = approximate.Settings(hidden=2, steps=20)
    key = jax.random.key(0)
    ours = approximate.fit(key, jnp.asarray(coefficients), bases=jnp.asarray(bases), settings=settings)
    start = jax.tree.map(np.asarray, approximate.init(key, 3, 4, 2))
    theirs = torch_stages.fit(start, torch.from_numpy(coefficients), torch.from_numpy(bases), settings)
    for found, expected in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_evaluation_takes_as_many_steps_as_it_says():
    options = sized("--evaluation-batch=5", "--steps=4")
    loop = jax_stages.evaluation(jax_loops.make_problem(options), options)
    # Twelve pairs in fives are three steps an epoch: two epochs for at least four steps.
    assert loop.steps == 6
    before = jax.tree.map(np.asarray, loop.state)
    loop()
    assert not np.array_equal(
        before.variables["params"]["fc"]["kernel"], loop.state.variables["params"]["fc"]["kernel"]
    )


def test_quick_report_has_every_row(tmp_path, capsys):
    pytest.importorskip("torch")
    path = tmp_path / "report.json"
    report = benchmark.main(["--quick", *TINY, "--widths=4", "--teacher-blocks=1", f"--output={path}"])
    rows = {(row["stage"], row["side"]): row for row in report["rows"]}
    expected = {(stage, side) for stage in benchmark.STAGES for side in ("jax", "torch")} | {("whole", "official")}
    assert rows.keys() == expected
    for (_, side), row in rows.items():
        assert 0 < row["min"] <= row["seconds"] <= row["max"]
        assert row["gflops"] == pytest.approx(1e-9 * row["flops"] / row["seconds"])
        assert row["steps_per_second"] == pytest.approx(1 / row["seconds"])
        assert (row["memory_bytes"] or 0) > 0 if side == "jax" else row["jax_over_this"]["ratio"] > 0
    # Of the precisions that the rows have, alone: a product in another can take minutes.
    assert {"float32"} == report["product_gflops"]["jax"].keys() == report["product_gflops"]["torch"].keys()
    assert report["scan_overhead"]["ratio"] > 0
    assert json.loads(path.read_text())["options"]["pairs"] == [12]
    printed = capsys.readouterr().out
    assert printed.strip() == path.with_suffix(".md").read_text().strip()
    assert len([line for line in printed.splitlines() if line.startswith("| ")]) == len(rows) + 2


def test_stages_and_sizes_can_be_chosen():
    report = benchmark.main([*TINY[1:], "--pairs=4,8", "--stages=evaluation", "--no-torch"])
    assert [(row["stage"], row["pairs"], row["side"]) for row in report["rows"]] == [
        ("evaluation", 4, "jax"),
        ("evaluation", 8, "jax"),
    ]
    assert report["scan_overhead"] is None


def test_missing_torch_is_said(monkeypatch):
    monkeypatch.setattr(benchmark.util, "find_spec", lambda name: None)
    sides, notes = benchmark.torch_sides(benchmark.parse(["--quick", *TINY]))
    assert sides is None and "ssdd_jax[torch]" in notes[0]


def shapes(**changes):
    made = counts.Sizes(
        images=1, views=1, batch=1, size=4, widths=(2,), dim=3, bases=1, models_per_step=1, teacher_width=2,
        teacher_blocks=(1, 1), projector=5, hidden=1, evaluation_batch=256,
    )  # fmt: skip
    return made._replace(**changes)


def test_flops_are_counted_from_the_shapes():
    network, features = 18 * 3 * 2 * 16, 9
    regression = 2 * features * 2 + 2 / 3 + 2 * 3 * 2
    decoding = 2 * (3 * 16 + 3)
    # A stem padded to 6x6, a block of two convolutions there, one of 2 to 4 and 4 to 4 channels at 3x3, a projection.
    resnet = 36 * (18 * 3 * 2 + 2 * 18 * 2 * 2) + 9 * (18 * (2 * 4 + 4 * 4) + 2 * 2 * 4)
    projector = 2 * (4 * 5 + 5 * 5 + 5 * 5)
    found = counts.stages(shapes())
    assert found["outer"] == pytest.approx(3 * network + 3 * regression + 3 * decoding)
    assert found["inner"] == pytest.approx(2 * network + 6 * 8 * 3)
    assert found["whole"] == pytest.approx(found["outer"] + found["inner"] + decoding)
    assert found["features"] == pytest.approx(resnet)
    assert found["teacher"] == pytest.approx(2 * (3 * resnet - 36 * 18 * 3 * 2 + 3 * projector) + 3 * 2 * 5 * 5)
    assert found["official"] == pytest.approx(resnet + 3 * network + 3 * regression + found["inner"])
    assert found["approximation"] == 0
    assert counts.stages(shapes(views=3))["approximation"] == 2 * 2 * (5 * 1 + 2 * 3)
    assert counts.stages(shapes(images=9, evaluation_batch=4))["evaluation"] == pytest.approx(4 * found["inner"])


def test_flops_are_those_that_torch_counts(problem):
    """An independent count, of the operations that PyTorch carries out."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from experiments.torch_side import sides as torch_sides
    from experiments.torch_side import stages as torch_stages

    options = sized("--views=8", "--widths=16,32", "--pool=1")
    sides = torch_sides.Sides(options)
    found = counts.stages(benchmark.sizes(options))
    one = sides.reference(problem, options, torch_sides.distillation_settings(options))
    images = torch.randn(5, 3, 8, 8)
    network = torch_stages.TeacherReference(
        torch_stages.Teacher(2, (1, 1), 6), torch_stages.TeacherSettings(0.005, 0.1, 0.1, 0.0)
    )
    calls = {
        "inner": lambda: one.inner_step(0, *one.decode()),
        "outer": lambda: one.outer_step([0], images, torch.randn(5, 7)),
        "teacher": lambda: network.step(images, images.flip(3)),
        "features": lambda: network.features(images),
    }
    for stage, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        # Not counted there: the decoding by `addmm` without a gradient of its mean, and the solution of the system.
        assert counter.get_total_flops() == pytest.approx(found[stage], rel=0.03), stage


def test_convolutions_are_timed_in_every_form(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convolutions, "CONTEXTS", ("alone", "scan"))
    path = tmp_path / "convolutions.json"
    convolutions.main(["--batch=2", "--widths=4", "--size=4", "--repeats=1", f"--output={path}"])
    report = json.loads(path.read_text())
    assert [(row["dtype"], row["form"]) for row in report["rows"]] == [
        (dtype, form) for dtype in ("float32", "bfloat16") for form in convolution.FORMS
    ]
    for row in report["rows"]:
        assert len(row["seconds"]) == 4 and min(row["seconds"].values()) > 0
    assert sum(row["chosen"] for row in report["rows"]) == 2
    assert path.with_suffix(".md").read_text().strip() == capsys.readouterr().out.strip()


def test_contexts_compute_the_same_convolutions():
    options = convolutions.parse(["--batch=2", "--models=3"])
    given = convolutions.arguments((4, 3, 5), "float32", options)
    both = convolutions.direction("both", "im2col")
    one, scanned, mapped = (convolutions.within(context, both)(*given) for context in convolutions.CONTEXTS)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), scanned, mapped)
    first = jax.tree.map(lambda leaf: leaf[0], mapped)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, first)


def test_exponents_are_slopes_of_logarithms():
    found = cost_curves.exponent([1, 2, 4, 8], [3 * size**1.5 for size in (1, 2, 4, 8)])
    assert found["slope"] == pytest.approx(1.5) and found["error"] == pytest.approx(0, abs=1e-9)
    noisy = cost_curves.exponent([1, 2, 4], [1, 4, 4])
    # Logarithms 0, 2, 2 over 0, 1, 2: slope 1, residuals -1/3, 2/3, -1/3, one degree of freedom.
    assert noisy["slope"] == pytest.approx(1) and noisy["error"] == pytest.approx((6 / 9 / 2) ** 0.5)


def test_cost_curves_are_measured_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(cost_curves, "BASE", {"images": 2, "pool": 1, "batch": 4, "size": 4, "data": 16})
    monkeypatch.setitem(cost_curves.VALUES, "batch", (2, 4, 64))
    path = tmp_path / "curves.json"
    cost_curves.main(["--sizes=batch", "--widths=3", "--dim=5", "--steps=1", "--repeats=1", f"--output={path}"])
    found = json.loads(path.read_text())["curves"]["batch"]
    assert len(found["seconds"]) == 3 and found["memory_bytes"][2] > found["memory_bytes"][0]
    assert path.with_suffix(".png").stat().st_size > 1000
    assert "real images per step" in path.with_suffix(".md").read_text()


def test_the_forms_take_time_one_by_one(monkeypatch):
    """All together they would count as the longest part, and the parts that follow would be left out."""
    clock = [0.0]
    monkeypatch.setattr(accelerator.time, "monotonic", lambda: clock[0])

    def timed(options):
        clock[0] += 60.0
        return {}

    monkeypatch.setattr(accelerator, "_timed", timed)
    budget = accelerator.Budget(9)
    asked = accelerator.parse(["--quick", "--no-torch"])
    assert len(list(accelerator.forms(asked, budget))) == len(accelerator.FORMS)
    assert budget.longest == 60.0 and not budget.notes
    assert budget.spend("kernel", lambda: "measured") == "measured"


def test_an_accelerator_is_measured_within_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "FORMS", ((1, 1, "lax"), ("all", "all", "patches")))
    monkeypatch.setattr(accelerator, "FORM_SECONDS", 0.01)
    monkeypatch.setattr(benchmark, "TEACHER", ("features",))
    monkeypatch.setattr(convolutions, "CONTEXTS", ("alone",))
    monkeypatch.setattr(convolutions, "FORMS", ("lax",))
    path = tmp_path / "accelerator.json"
    report = accelerator.main(["--quick", "--no-torch", f"--output={path}"])
    assert not report["notes"]
    assert [(row["models_per_step"], row["vectorize"], row["form"]) for row in report["forms"]] == [
        (1, 1, "lax"), (2, 2, "patches"),
    ]  # fmt: skip
    first = report["forms"][0]
    assert first["hours_for_30000"] == pytest.approx(first["seconds_per_step"] * 30_000 / 3600)
    assert report["forms"][1]["flops"] == pytest.approx(2 * first["flops"], rel=0.01)  # but for the decoding
    assert {row["precision"] for row in report["steps"][0]["rows"]} == {"bfloat16"}
    assert [row["stage"] for row in report["steps"][0]["rows"]] == ["inner", "outer", "whole"]
    # The regression is as exact as float32 allows; the careless one is worse or equal, a CPU having no lower precision.
    assert report["kernel"]["regression"][0]["error"] < 5e-2
    assert {row["precision"] for row in report["kernel"]["products"]} >= {"highest", "one pass"}
    assert len(report["around"]["rows"]) == 3 and report["convolutions"]["rows"]
    assert json.loads(path.read_text())["forms"] == report["forms"]
    late = accelerator.main(["--quick", "--minutes=0", f"--output={path}"])
    assert not late["steps"] and late["convolutions"] is None and len(late["notes"]) == 7
    assert "left out" in path.with_suffix(".md").read_text()
    chosen = accelerator.main(["--quick", "--no-torch", "--parts=kernel", f"--output={path}"])
    assert chosen["kernel"] and not chosen["forms"] and not chosen["notes"]


def test_the_kernels_reference_has_the_gradients_of_krr(x64):
    """In float64 the regression and its derivative equal those written out for the measurement."""
    f_syn, y_syn, f_real, y_real = kernel.problem(kernel.QUICK)
    f_syn, y_syn, f_real, y_real = (
        array.astype(np.float32).astype(np.float64) for array in (f_syn, y_syn, f_real, y_real)
    )
    prediction, (in_features, in_targets), _ = kernel.reference(f_syn, y_syn, f_real, y_real)
    np.testing.assert_allclose(krr.predict(f_syn, y_syn, f_real, kernel.RIDGE), prediction, rtol=1e-6)

    def loss(f_syn, y_syn):
        return jnp.mean(jnp.square(krr.predict(f_syn, y_syn, f_real, kernel.RIDGE) - y_real))

    found = jax.grad(loss, argnums=(0, 1))(f_syn, y_syn)
    np.testing.assert_allclose(found[0], in_features, rtol=1e-5, atol=1e-6 * np.abs(in_features).max())
    np.testing.assert_allclose(found[1], in_targets, rtol=1e-5, atol=1e-6 * np.abs(in_targets).max())


def test_a_full_memory_skips_a_part():
    budget = accelerator.Budget(9)
    assert budget.spend("steps", functools.partial(_fail, "RESOURCE_EXHAUSTED: out of memory")) is None
    assert "memory is full" in budget.notes[0]
    with pytest.raises(RuntimeError, match="another"):
        budget.spend("steps", functools.partial(_fail, "another"))


def _fail(words):
    raise RuntimeError(words)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--size=10"], "cannot be halved"),
        (["--models-per-step=3"], "more than --pool=2"),
        (["--pairs=10"], "not a multiple of --views=4"),
        (["--official=elsewhere"], "not a clone of db-Lee/selfsup_dd"),
        (["--stages=outer,other"], "there is no stage other"),
        (["--views=13"], "there are 12"),
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
