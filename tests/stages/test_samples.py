"""Which images are chosen."""

import numpy as np
import pytest
from helpers import dataset, make_run, problem, small_config

from ssdd_jax import config as configuration
from ssdd_jax import methods
from ssdd_jax.data import features, mapped
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files
from ssdd_jax.runtime.workdir import fingerprint
from ssdd_jax.stages import features as teacher_features
from ssdd_jax.stages import samples as sampling

CLUSTERS = 5


def preparations(chosen):
    asked = problem(chosen)
    return sampling.preparations(chosen, asked, methods.make(chosen, asked))


def clustered(seed=0):
    """Features of 40 images in five far clusters of 16, 10, 7, 4 and 3 images, and each image's cluster."""
    generator = np.random.default_rng(seed)
    cluster = generator.permutation(np.repeat(np.arange(CLUSTERS), (16, 10, 7, 4, 3)))
    centres = 100 * np.eye(CLUSTERS, 16)
    return (centres[cluster] + generator.normal(size=(40, 16))).astype(np.float32), cluster


@pytest.fixture
def run(tmp_path):
    """`run(samples, seed)`: a run whose features are clustered, and whose images' losses are known."""

    def make(samples, seed=0):
        chosen = small_config("subset")
        chosen.distill.samples, chosen.seed = samples, seed
        made = make_run(tmp_path, chosen)
        features.save(
            made.work.features,
            features.Features(clustered()[0], None),
            fingerprint(dataset().train_images),
        )
        files.write_array(made.work.own("experts", shared=True) / "losses.npy", losses())
        return made

    return make


def losses():
    """A permutation, two of whose numbers are the same."""
    found = np.random.default_rng(3).permutation(40).astype(np.float32)
    found[found == 38] = 37
    return found


@pytest.mark.parametrize("count", [1, 6, 40])
@pytest.mark.parametrize("samples", configuration.SAMPLES)
def test_every_choice(run, samples, count):
    """The number asked for, int32, no repetition, the same for the same seed."""
    rows = sampling.indices_of(run(samples), count)
    assert rows.dtype == np.int32 and rows.shape == (count,)
    assert len(set(rows.tolist())) == count and rows.min() >= 0 and rows.max() < 40
    np.testing.assert_array_equal(rows, sampling.indices_of(run(samples), count))


def test_there_is_a_function_for_every_name():
    assert tuple(sampling.SELECTIONS) == configuration.SAMPLES


@pytest.mark.parametrize("samples", configuration.SAMPLES)
def test_none_at_all(run, samples):
    """Also where what the choice needs is not there."""
    made = run(samples)
    (made.work.own("experts", shared=True) / "losses.npy").unlink()
    (made.work.features / "train.npy").unlink()
    rows = sampling.indices_of(made, 0)
    assert rows.dtype == np.int32 and rows.shape == (0,)


def test_random_goes_by_the_runs_seed(run):
    rows = [sampling.indices_of(run("random", seed), 6).tolist() for seed in range(4)]
    assert len({tuple(found) for found in rows}) == 4
    # Anything can come first: not the first images in another order.
    assert max(max(found) for found in rows) > 30


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_finds_one_image_of_each_cluster(run, seed):
    """The one nearest to its mean; that of the largest cluster comes first."""
    rows = sampling.indices_of(run("kmeans", seed), CLUSTERS)
    found, cluster = clustered()
    assert cluster[rows].tolist() == [0, 1, 2, 3, 4]
    for number, row in enumerate(rows):
        members = np.flatnonzero(cluster == number)
        distances = np.linalg.norm(found[members] - found[members].mean(0), axis=1)
        assert row == members[distances.argmin()]


def test_an_image_is_not_taken_for_two_centres():
    """Twelve images in three places, a centre for each image: every one comes once."""
    same = np.repeat(np.eye(3, 4, dtype=np.float32), 4, axis=0)
    same += np.random.default_rng(0).normal(size=same.shape).astype(np.float32) * 1e-3
    rows = sampling.nearest_to_centres(same, 12, seed=0)
    assert sorted(rows.tolist()) == list(range(12))


def test_kmeans_in_pieces_finds_the_same_images(tmp_path):
    """From a file, of which no more than the limit is read at a time."""
    found, cluster = clustered()
    np.save(tmp_path / "features.npy", found)
    features_on_disk, limit = mapped.read(tmp_path / "features.npy").view(Counted), found.nbytes
    Counted.most = 0
    rows = sampling.nearest_to_centres(features_on_disk, CLUSTERS, seed=0, limit=limit)
    np.testing.assert_array_equal(rows, sampling.nearest_to_centres(found, CLUSTERS, seed=0))
    assert 0 < Counted.most <= limit // sampling.COPIES and cluster[rows].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [3, 30])
def test_kmeans_in_pieces_takes_no_image_twice(count, monkeypatch):
    """Where all images that are kept for a centre have been taken by others."""
    monkeypatch.setattr(sampling, "CANDIDATES", 1)
    same = np.repeat(np.eye(3, 4, dtype=np.float32), 10, axis=0)
    same += np.random.default_rng(0).normal(size=same.shape).astype(np.float32) * 1e-3
    rows = sampling.nearest_to_centres(same, count, seed=0, limit=100)
    assert len(set(rows.tolist())) == count


class Counted(np.memmap):
    """A mapped array that notes the most bytes that were ever taken of it at once."""

    most = 0

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if isinstance(found, np.ndarray):
            Counted.most = max(Counted.most, found.nbytes)
        return found


@pytest.mark.parametrize("count", [2, 5])
def test_high_loss_takes_the_highest(run, count):
    """Of two that are the same, the first."""
    rows = sampling.indices_of(run("high_loss"), count)
    np.testing.assert_array_equal(losses()[rows], np.sort(losses())[::-1][:count])
    two = np.flatnonzero(losses() == 37)
    assert rows[0] == losses().argmax() and rows[1] == two[0] < two[1]


def test_only_high_loss_needs_experts():
    """One epoch of them, of which nothing but the losses is kept."""
    chosen = small_config("subset")
    for samples in configuration.SAMPLES:
        chosen.distill.samples = samples
        needed = preparations(chosen)
        assert [stage.name for stage in needed] == ["experts"] * (samples == "high_loss")


@pytest.mark.medium
def test_high_loss_of_trained_experts(tmp_path):
    """Its stage leaves the losses that the choice reads, and no trajectory."""
    chosen = small_config("subset")
    chosen.distill.samples = "high_loss"
    made = make_run(tmp_path, chosen)
    known = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    known[[3, 30]] *= 30  # what no student can have learned in an epoch
    features.save(made.work.features, features.Features(known, None), fingerprint(dataset().train_images))
    for stage in preparations(chosen):
        stage.run(made)
    assert set(sampling.indices_of(made, 2).tolist()) == {3, 30}
    assert [path.name for path in (tmp_path / "experts").glob("*.npy")] == ["losses.npy"]
    assert np.isfinite(files.read_array(tmp_path / "experts" / "losses.npy")).all()


def test_experts_that_cannot_halve_the_images_are_refused():
    """As MKDT refuses them: one line that names the key, and no traceback."""
    chosen = small_config("subset")
    chosen.distill.samples, chosen.experts.widths = "high_loss", (4, 4, 4, 4)
    with pytest.raises(UserError, match="^config.experts.widths: images of 8x8 cannot be halved 4 times"):
        preparations(chosen)


def test_the_data_decide_the_sizes_once(tmp_path):
    """They are kept with the samples, whose number is among them; a run that comes back reads them."""
    made = make_run(tmp_path, small_config())
    teacher_features.compute(made)
    lines = []
    sampling.choose(made._replace(say=lines.append))
    kept = files.read_sealed(tmp_path / "samples" / "changes.json")
    assert set(kept) == {"storage.M", "storage.U", "storage.V"} and "chosen by the data" in lines[-1]
    settled = sampling.settled(made)
    assert [settled.config.storage[name] for name in "MUV"] == [kept[f"storage.{name}"] for name in "MUV"]
    assert settled.method.samples == len(made.samples().rows) == kept["storage.M"]
    assert made.samples().views.shape[:2] == (2, kept["storage.M"])
    assert sum(settled.method.parts.values()) <= 6 * (8 * 8 * 3 + 16)


def test_given_sizes_are_not_chosen_again(tmp_path):
    chosen = small_config()
    chosen.storage.update(M=7, U=3, V=2)
    made = make_run(tmp_path, chosen)
    teacher_features.compute(made)
    sampling.choose(made)
    assert made.samples().changes == {} and len(made.samples().rows) == 7
    assert sampling.settled(made) is made
