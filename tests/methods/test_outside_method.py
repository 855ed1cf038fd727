"""A method from outside the package: one module, one registration, and everything serves it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from helpers import bytes_and_features

import ssdd_jax
from experiments import compare
from experiments.measure import comparison
from ssdd_jax import config, distilled, dry_run, main, methods, pipeline
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.runtime import files

pytestmark = pytest.mark.medium

TITLE = "Toy method"


class State(NamedTuple):
    step: jax.Array
    key: jax.Array
    targets: jax.Array


class Info(NamedTuple):
    loss: jax.Array


def make(chosen, problem):
    """N real images, whose targets move towards the mean of all targets."""

    def init(key, source):
        return State(jnp.zeros((), jnp.int32), key, source.view_targets[0])

    def step(state, source):
        loss = jnp.mean(jnp.square(state.targets - source.targets.mean(0)[None]))
        return state._replace(step=state.step + 1, targets=0.9 * state.targets), Info(loss)

    def export(key, state, source):
        images = source.preprocessing.images(source.images[source.samples])
        return distilled.from_pairs(images, state.targets, source.preprocessing)

    return methods.Method(
        init,
        step,
        export,
        steps=chosen.distill.steps,
        samples=chosen.storage.N,
        title=TITLE,
        shapes=(("toys", "one"),),
    )


DEFINITION = methods.Definition(
    make, titles={"toy": TITLE}, editions={"toy": {"method": "toy", "distill.learning_rate": 0.1}}, cpu_steps=(4, 5)
)


@pytest.fixture(scope="module", autouse=True)
def registered():
    methods.register("toy", DEFINITION)
    yield
    del methods.METHODS["toy"], config.EDITIONS["toy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, and a finished run of the method in `run`."""
    folder = tmp_path_factory.mktemp("toy")
    tiny_runs.write_data(folder)
    assert main.main(line(folder)) == 0
    return folder


def line(folder, workdir="run"):
    arguments = tiny_runs.arguments(folder, workdir, evaluate__seeds=1)
    return ["--config=configs/digits.py:toy", *arguments[1:]]


def test_a_run(folder):
    results = files.read_json(folder / "run" / "results.json")
    assert results["method"] == "toy" and results["title"] == TITLE
    about = ssdd_jax.load(folder / "run" / "distilled").about
    assert about["method"] == "toy" and about["config"]["distill.learning_rate"] == 1e-2  # the command line's wins


def test_the_report_names_it(folder):
    assert f"{TITLE} on npz:" in (folder / "run" / "report.html").read_text()


def test_the_dry_run_measures_it(folder):
    options = commandline.parse(line(folder, "planned"))
    plan = pipeline.plan(options.config, options.workdir, until="approximate")
    assert ("toys", "one") in plan.shapes and plan.parts == {"images": 4 * 64, "targets": 4 * 12}
    by_name = {stage.name: stage for stage in plan.stages}
    assert by_name["distill"].costs[-1].count == 40 and np.isfinite(plan.seconds)
    assert "toys" in dry_run.text(plan)


def test_from_python():
    images, features = bytes_and_features()
    found = ssdd_jax.distill(
        images, features, method="toy", N=3, config={"student.widths": (4, 8)}, say=lambda line: None
    )
    assert found.about["config"]["distill.steps"] == 4  # its own, on a CPU
    targets = np.asarray(found.pairs()[1])
    start = ssdd_jax.distill(images, features, method="random", N=3, say=lambda line: None).pairs()[1]
    np.testing.assert_allclose(targets, 0.9**4 * start, rtol=1e-5, atol=1e-6)


def test_a_comparison(folder, tmp_path):
    changes = [argument for argument in line(folder)[1:] if argument.startswith("--config.")]
    changes = [argument for argument in changes if "storage.N" not in argument]
    options = compare.parse(
        ["--methods=toy,random", "--N=3", "--seeds=1", f"--workdir={tmp_path / 'compare'}", *changes]
    )
    table = comparison.table(compare.run_all(options))
    assert f"| {TITLE} | 3 |" in table and "| random subset | 3 |" in table


def test_twice_under_one_name_is_refused():
    methods.register("toy", DEFINITION)  # the same again, as by a config file that is read twice
    with pytest.raises(ValueError, match="'toy' is registered already"):
        methods.register("toy", DEFINITION._replace(floor=True))
    with pytest.raises(ValueError, match="an edition 'random' already"):
        methods.register("other", DEFINITION._replace(editions={"random": {}}))
    assert "other" not in methods.METHODS


def test_the_set_says_who_made_it(folder):
    found = ssdd_jax.load(folder / "run" / "distilled")
    assert dataclasses.replace(found, about={}).numbers_stored() == 4 * (64 + 12)
