"""Contents of a run before any of it is done: shapes, numbers stored, and the stages that are done already."""

from __future__ import annotations

import pathlib

from ssdd_jax.methods.base import Run, Stage
from ssdd_jax.runtime.memory import readable

DONE = "done"


def newest(folder: pathlib.Path) -> int:
    """The step of the newest checkpoint in a folder, 0 without one; nothing is opened."""
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def state_of(run: Run, stage: Stage) -> str:
    """Progress of a stage: `done`, the part of it that is done, or an empty string; nothing is opened or written.

    Args:
        run: The run.
        stage: One of its stages.
    """
    work = run.work
    if stage.name == "teacher" and not run.problem.network:
        return "brought"
    if stage.output and ((work.shared if stage.shared else work.folder) / stage.output).exists():
        return DONE
    if stage.name == "distill" and run.method.step is None:
        return "nothing to learn"
    checkpoints = {"teacher": work.teacher / "checkpoints", "distill": work.checkpoints}
    step = newest(checkpoints[stage.name]) if stage.name in checkpoints else 0
    return f"{step:,} steps done" if step else ""


def shapes_of(run: Run) -> list[tuple[str, str]]:
    """Rows of names and shapes: of the data, the teacher's features, and the method."""
    problem = run.problem
    assert run.dataset.test_images is not None
    size = "x".join(map(str, problem.image_shape))
    image_bytes, feature_bytes = problem.images * problem.image_numbers, 4 * problem.images * problem.dim
    where = "on the device" if run.resident() else "streamed from the host"
    pairs, dim = pairs_of(run)
    return [
        ("training images n", f"{problem.images:,} of {size}, {readable(image_bytes)} {where}"),
        ("test images", f"{len(run.dataset.test_images):,} of {size}"),
        ("classes", f"{problem.classes:,}" if problem.classes else "no labels: feature_r2 alone is measured"),
        ("teacher's features", f"{problem.images:,} of {problem.dim:,}, {readable(feature_bytes)}"),
        ("pairs", f"{pairs:,} of {size} and {dim:,}"),
        *run.method.shapes,
    ]


def pairs_of(run: Run) -> tuple[int, int]:
    """The number of pairs that the set decodes to, and the length of a target."""
    if run.method.pairs is not None:
        return run.method.pairs
    return len(run.method.views) * (run.method.samples or run.config.storage.N), run.problem.dim


def parts_of(run: Run) -> dict[str, int]:
    """Numbers that the set stores, by part."""
    if run.method.parts is not None:
        return dict(run.method.parts)
    count, dim = pairs_of(run)
    return {"images": count * run.problem.image_numbers, "targets": count * dim}
