"""What a run consists of before any of it is done: shapes, numbers stored, and which stages are done already."""

from __future__ import annotations

from ssdd_jax import distilled, methods
from ssdd_jax.data import features
from ssdd_jax.dry_run.costs import newest, pairs_of
from ssdd_jax.methods import boost
from ssdd_jax.methods.base import Run
from ssdd_jax.methods.mkdt import stage as expert_stage
from ssdd_jax.methods.mkdt import trajectories
from ssdd_jax.methods.scdd import method as scdd

DONE = "done"


def state_of(run: Run, name: str) -> str:
    """How far a stage is: `done`, what of it is done, or nothing; nothing is opened or written.

    Args:
        run: The run.
        name: Of the stage.
    """
    work = run.work
    marks = {
        "teacher": work.teacher / "teacher.json",
        "samples": work.samples / "rows.npy",
        "distill": work.distilled / distilled.DESCRIPTION,
        "approximate": work.distilled / distilled.DESCRIPTION,
        "evaluate": work.results,
        "experts": work.own("experts", shared=True) / "losses.npy",
        "probe": work.own("probe", shared=True) / "weights.npy",
        "post_training": work.own("post_training", shared=False) / "results.json",
    }
    if name == "features":
        return DONE if features.complete(work.features) else ""
    if name == "teacher" and not run.problem.network:
        return "brought"
    if name in marks and marks[name].exists():
        return DONE
    folder = {"teacher": work.teacher / "checkpoints", "distill": work.checkpoints}.get(name)
    if name == "distill" and run.method.step is None:
        return "nothing to learn"
    step = newest(folder) if folder else 0
    return f"{step:,} steps done" if step else ""


def shapes_of(run: Run) -> list[tuple[str, str]]:
    """Names and shapes of what matters, a row each."""
    config, problem, method = run.config, run.problem, run.method
    assert run.dataset.test_images is not None
    size = "x".join(map(str, problem.image_shape))
    held, known = problem.images * problem.image_numbers, 4 * problem.images * problem.dim
    where = "on the device" if run.resident() else "streamed from the host"
    pairs, dim = pairs_of(run)
    rows = [
        ("training images n", f"{problem.images:,} of {size}, {bytes_in_words(held)} {where}"),
        ("test images", f"{len(run.dataset.test_images):,} of {size}"),
        ("classes", f"{problem.classes:,}" if problem.classes else "no labels: feature_r2 alone is measured"),
        ("teacher's features", f"{problem.images:,} of {problem.dim:,}, {bytes_in_words(known)}"),
    ]
    if config.method == "boost":
        plan = boost.plan_of(config, problem)
        low = "x".join(map(str, (*plan.base_size, problem.image_shape[-1])))
        rows += [
            ("distilled images M", f"{plan.M:,} of {size}, in {plan.views} views"),
            ("image bases U", f"{plan.U:,} of {low}, coefficients {plan.M:,}x{plan.U:,}"),
            ("feature bases V", f"{plan.V:,} of {plan.dim:,}, coefficients {plan.views}x{plan.M:,}x{plan.V:,}"),
        ]
    rows.append(("pairs", f"{pairs:,} of {size} and {dim:,}"))
    if config.method in methods.POOLED:
        each = trajectories.numbers(trajectories.Settings(widths=tuple(config.student.widths), norm=config.student.norm),
                               problem.image_shape, problem.dim)  # fmt: skip
        rows.append(("pool", f"{config.pool.size} networks of {each:,} parameters, renewed after {config.pool.steps:,} "
                     f"steps, {config.pool.models_per_step} a step"))  # fmt: skip
        rows.append(("outer batch", f"{config.distill.batch_size:,} real images"))
    if any(stage.name == expert_stage.NAME for stage in method.stages):
        settings = expert_stage.settings_of(config)
        disk = trajectories.bytes_needed(settings, problem.image_shape, problem.dim)
        rows.append(("experts", f"{settings.count} of {settings.epochs} epochs, {bytes_in_words(disk)} on the disk"))
    return rows


def parts_of(run: Run) -> dict[str, int]:
    """Numbers that the set stores, by part."""
    if run.config.method == "boost":
        return boost.plan_of(run.config, run.problem).parts
    count, dim = pairs_of(run)
    if run.config.method == "scdd":
        count = scdd.images_per_class(run.config, run.problem) * run.problem.classes
    return {"images": count * run.problem.image_numbers, "targets": count * dim}


def bytes_in_words(size: float) -> str:
    """Bytes in kB, MB or GB of 1000."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.0f} kB"
