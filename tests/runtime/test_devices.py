"""Several devices give what one gives: the two of this process, and eight virtual ones in a process of their own."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CHANNELS, DIM, SIZE, bytes_and_features, pairs, problem, relative, small_config
from tiny_runs import TIMEOUT

from ssdd_jax import config as configuration
from ssdd_jax import methods, teacher
from ssdd_jax.data import preprocess
from ssdd_jax.errors import Stopped, UserError
from ssdd_jax.runtime import devices, files
from ssdd_jax.runtime.workdir import Workdir
from ssdd_jax.teacher import network
from ssdd_jax.training import loop
from ssdd_jax.training.checkpoints import Checkpoints

MODELS = 8
STEPS = 4
# By name: devices along `pool` and along `data`, and models per step.
MESHES = {
    "data 2": (1, 2, MODELS),
    "pool 4 data 2": (4, 2, MODELS),
    "two of them": (2, 4, 2),
}
# Rounding grows: in the regression, which is well-posed here, and where AdamW divides a gradient of nearly zero by its
# own size. The gradient shows it first.
close = functools.partial(np.testing.assert_allclose, rtol=2e-5)
close_gradients = functools.partial(np.testing.assert_allclose, rtol=1e-3)


def boost_config(models):
    chosen = small_config()
    chosen.pool.size, chosen.pool.models_per_step = MODELS, models
    chosen.distill.batch_size, chosen.distill.ridge_scale = 16, 1e-2
    chosen.distill.steps, chosen.distill.learning_rate = STEPS, 1e-3
    return chosen


def boost(mesh, models, **changes):
    """A boost run as the stage `distill` puts it together: the training and its data."""
    chosen = boost_config(models)
    method = methods.make(chosen, problem(chosen)._replace(mesh=mesh))
    images, features = bytes_and_features(dim=8 * chosen.teacher.width)
    constants = preprocess.fit(images, features)
    targets = constants.targets(jnp.asarray(features))
    samples = jnp.arange(method.samples)
    source = methods.Source(jnp.asarray(images), targets, samples, jnp.stack([targets[samples]] * 2), constants)
    key, source = devices.place(mesh, (jax.random.key(0), source))
    like = jax.eval_shape(method.init, key, source)
    shardings = None if mesh is None else method.spread(mesh, like)
    init = jax.jit(method.init, out_shardings=shardings)
    training = loop.Training(
        name="distill",
        init=lambda: init(key, source),
        step=method.step,
        steps=STEPS,
        per_call=1,
        save_every=2,
        advice="",
        shardings=shardings,
    )
    return training._replace(**changes), source


def run(folder, training, data):
    """Losses, gradient norms and mean ages by step of what was run now, and the final state."""
    infos = []
    with Checkpoints(folder / "checkpoints", say=print) as checkpoints:
        state = loop.run(
            training,
            data,
            checkpoints=checkpoints,
            metrics=folder / "metrics.jsonl",
            watch=lambda progress: infos.append([float(value[0]) for value in progress.info]),
        )
    return infos, state


def boost_report(folder):
    """Every mesh, and a run that eight devices begin and one ends."""
    found = {}
    for name, (pool, data, models) in MESHES.items():
        training, source = boost(devices.make(pool, data, models=models), models)
        infos, state = run(folder / name, training, source)
        whole = devices.local(devices.make(pool, data, models=models), state)
        kernel = state.pool.models.variables["params"]["conv0"]["kernel"]
        found[name] = {
            "infos": infos,
            "rows": kernel.addressable_shards[0].data.shape[0],
            "ages": whole.pool.ages.tolist(),
            "bases": np.asarray(whole.outer.params.image_bases).ravel().tolist(),
        }
    shutil.copytree(folder / "pool 4 data 2" / "checkpoints" / "2", folder / "moved" / "checkpoints" / "2")
    found["moved"] = {"infos": run(folder / "moved", *boost(None, MODELS))[0]}
    return found


def teacher_losses(mesh, steps=3):
    """Losses of a narrow teacher's first steps, and its features of some images."""
    images, _ = bytes_and_features(count=40)
    settings = teacher.Settings(2, (1, 1, 1, 1), 8, 8, epochs=2, batch_size=16, warmup_epochs=1)
    constants = {"mean": (0.5,) * CHANNELS, "std": (0.3,) * CHANNELS}
    trainer = teacher.make(settings, image_shape=(SIZE, SIZE, CHANNELS), images_count=40, mesh=mesh, **constants)
    state, data = devices.place(mesh, (jax.jit(trainer.init)(jax.random.key(0)), jnp.asarray(images)))
    step, losses = jax.jit(trainer.step), []
    rows = trainer.rows(jax.random.key(0))
    for number in range(steps):
        state, info = step(state, data[rows(number)])
        losses.append(float(info.loss))
    variables = jax.device_get(state.variables)
    found = np.concatenate(list(network.feature_batches(variables, images, **constants, batch_size=16, mesh=mesh)))
    return {"losses": losses, "features": found.tolist()}


def report():
    """All that needs eight devices, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        found = boost_report(pathlib.Path(folder))
    return found | {"teacher": teacher_losses(devices.make(2, 4, models=2))}


@pytest.fixture(scope="module")
def eight():
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"  # the last count holds
    environment |= {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """On one device: by models per step the infos and the final state."""
    folder = tmp_path_factory.mktemp("one")
    return {models: run(folder / str(models), *boost(None, models)) for models in (MODELS, 2)}


def compare(found, expected):
    """Losses, gradient norms, and ages: their mean, the youngest and the oldest."""
    checks = (close, close_gradients, close, close, close)
    for values, wanted, check in zip(np.transpose(found), np.transpose(expected), checks, strict=True):
        check(values, wanted)


@pytest.mark.slow
def test_boost_is_the_same_on_two_devices(tmp_path):
    """Those of this process; in small what follows."""
    infos, state = run(tmp_path / "one", *boost(None, 2))
    found, other = run(tmp_path / "two", *boost(devices.make(1, 2, models=2), 2))
    compare(found, infos)
    assert other.pool.ages.tolist() == state.pool.ages.tolist()
    assert relative(np.ravel(other.outer.params.image_bases), np.ravel(state.outer.params.image_bases)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_boost_is_the_same_on_a_mesh(name, eight, one):
    pool, _, models = MESHES[name]
    infos, state = one[models]
    found = eight[name]
    compare(found["infos"], infos)
    assert found["ages"] == state.pool.ages.tolist()
    assert models < MODELS or min(found["ages"]) < STEPS  # some were renewed
    assert relative(found["bases"], np.ravel(state.outer.params.image_bases)) < 1e-4
    assert found["rows"] == MODELS // pool


@pytest.mark.slow
def test_a_run_of_eight_devices_continues_on_one(eight, one):
    infos, _ = one[MODELS]
    assert len(eight["moved"]["infos"]) == STEPS - 2  # the others were not done again
    compare(eight["moved"]["infos"], infos[2:])


@pytest.mark.slow
def test_the_teacher_is_the_same_on_a_mesh(eight):
    """Batch norm's statistics are those of the whole batch of 16, not of the two images of a device."""
    found, expected = eight["teacher"], teacher_losses(None)
    close(found["losses"], expected["losses"])
    np.testing.assert_allclose(found["features"], expected["features"], rtol=1e-3, atol=1e-5)


def memory(size):
    """Memory of the compiled call of the loop on one device, and the bytes of the pool."""
    training, source = boost(None, 1)
    chosen = boost_config(1)
    chosen.pool.size, chosen.student.widths = size, (32, 64)
    method = methods.make(chosen, problem(chosen))
    like = jax.eval_shape(method.init, jax.random.key(0), source)
    training = training._replace(step=method.step)
    compiled = loop.compiled(training, like, source, None).lower(like, source, None, np.int32(1)).compile()
    return compiled.memory_analysis(), sum(leaf.size * 4 for leaf in jax.tree.leaves(like.pool.models))


@pytest.mark.slow
def test_the_pool_is_updated_in_place():
    """A step of one model needs no copy of the others."""
    (four, size_four), (eight, size_eight) = memory(4), memory(8)
    assert four.alias_size_in_bytes >= size_four and eight.alias_size_in_bytes >= size_eight
    assert eight.temp_size_in_bytes - four.temp_size_in_bytes < 0.1 * (size_eight - size_four)


def shape(*arguments, **options):
    mesh = devices.make(*arguments, **options)
    return mesh and tuple(mesh.devices.shape)


def test_a_mesh_of_two_devices():
    assert jax.device_count() == 2
    assert shape(0, 0) is None  # virtual CPU devices are used where they are asked for
    assert shape(1, 1, models=5) is None
    assert shape(2, 0, models=4, batches={"distill.batch_size": 5}) == (2, 1)
    assert shape(0, 1, models=4) == (2, 1) and shape(0, 2, models=3) == (1, 2)
    assert shape(1, 0, models=4, batches={"distill.batch_size": 6}) == (1, 2)
    assert shape(1, 0, batches={"distill.batch_size": 6, "teacher.batch_size": 5}) is None


@pytest.mark.parametrize(
    ("asked", "options", "words"),
    [
        ((2, 0), {"models": 3}, "config.devices.pool=2 does not divide the 3 models of a step"),
        ((1, 2), {"batches": {"distill.batch_size": 5}}, "config.devices.data=2 does not divide config.distill.batch"),
        ((2, 2), {"models": 2}, "pool=2 times data=2 is 4 devices, and there are 2"),
        ((4, 0), {"models": 4}, "pool=4 times data=1 is 4 devices, and there are 2"),
    ],
)
def test_what_cannot_be_split_is_refused(asked, options, words):
    with pytest.raises(UserError, match=words):
        devices.make(*asked, **options)


@pytest.mark.parametrize("hosts", ["node1", "node1:80", "node1:80,2", "node1:80,2,2", "node1:80,2,-1", "a b:80,2,0"])
def test_hosts_that_mean_nothing_are_refused(hosts):
    chosen = configuration.default()
    chosen.devices.hosts = hosts
    with pytest.raises(UserError, match="config.devices.hosts=.* ADDRESS:PORT,COUNT,INDEX"):
        configuration.validate(chosen)


def test_auto_without_a_cluster_is_refused():
    with pytest.raises(UserError, match="config.devices.hosts='auto'"):
        devices.join("auto")
    assert devices.is_first() and not jax.distributed.is_initialized()


def test_alone_an_error_is_itself():
    for kind in (UserError, Stopped, ZeroDivisionError):
        with pytest.raises(kind, match="own words"), devices.agreed():
            raise kind("own words")
    assert devices.any_process(True) and not devices.any_process(False)


def test_place_and_local_are_inverse():
    """Also for keys, and for what is split."""
    mesh = devices.make(1, 2)
    tree = {"key": jax.random.key(3), "x": pairs()[0], "n": np.arange(3)}
    placed = devices.place(mesh, tree)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed))
    split = jax.jit(lambda x: devices.over_data(mesh, x))(placed["x"])
    assert split.addressable_shards[0].data.shape == (4, SIZE, SIZE, CHANNELS)
    back = devices.local(mesh, placed | {"x": split})
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(back))
    np.testing.assert_array_equal(back["x"], tree["x"])
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(tree["key"]))
    assert devices.place(None, tree) is tree and devices.local(None, tree) is tree


def test_a_batch_is_split_as_far_as_it_divides():
    mesh = devices.make(1, 2)
    halves = jax.jit(lambda x: devices.over_all(mesh, x))(jnp.zeros((6, DIM)))
    assert halves.addressable_shards[0].data.shape == (3, DIM)


def test_a_work_dir_is_not_bound_to_its_devices(tmp_path):
    work, chosen = Workdir(tmp_path), configuration.default()
    work.record(chosen)
    chosen.devices.pool, chosen.devices.hosts = 2, "auto"
    with work.claim(chosen):
        assert files.read_json(work.config)["devices.pool"] == 0
    chosen.seed = 1
    with pytest.raises(UserError, match="seed"), work.claim(chosen):
        pass


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    print(json.dumps(report()))
