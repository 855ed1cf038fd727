"""Heads on a frozen encoder: they learn what can be learned, and the baselines are the images that they should be."""

import pathlib
import re
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_runs
from ml_collections import ConfigDict

from ssdd_jax import config as configuration
from ssdd_jax import distilled, main, methods, pipeline
from ssdd_jax.api import defaults
from ssdd_jax.cli import arguments
from ssdd_jax.errors import UserError
from ssdd_jax.methods.base import Problem
from ssdd_jax.methods.frozen_encoder import distortions, heads, ranking, stages
from ssdd_jax.runtime import files
from ssdd_jax.runtime.workdir import Workdir

CLASSES = 3
RANKED = (ranking.PLAIN, ranking.AUGMENTED)


def clusters(count, dim=4, seed=0):
    """Features around a point of each class, and the classes."""
    labels = np.arange(count) % CLASSES
    centres = np.random.default_rng(0).normal(size=(CLASSES, dim)) * 4
    centres -= centres.mean(0)
    return (centres[labels] + np.random.default_rng(seed).normal(size=(count, dim))).astype(np.float32), labels


def test_a_head_learns_the_colours_of_classes():
    """From one image of each; the rate is large enough for the few steps."""
    images = np.zeros((CLASSES, 4, 4, 3), np.float32)
    images[np.arange(CLASSES), :, :, np.arange(CLASSES)] = 1
    settings = heads.Settings(epochs=60, learning_rate=5.0, augmentation=distortions.Settings(noise=False))
    head = jax.jit(
        lambda key: heads.train(
            key, images, np.arange(CLASSES), lambda x: x.mean((1, 2)), classes=CLASSES, settings=settings
        )
    )(jax.random.key(0))
    assert head.weights.shape == (3, CLASSES) and head.bias.shape == (CLASSES,)
    assert head.scores(np.eye(3, dtype=np.float32)).argmax(1).tolist() == [0, 1, 2]


def test_ridge_regression_does_not_depend_on_the_scale():
    features, labels = clusters(30)
    tested, wanted = clusters(300, seed=1)
    found = heads.ridge(features, labels, tested, classes=CLASSES)
    assert (found == wanted).mean() > 0.9
    np.testing.assert_array_equal(heads.ridge(features * 64, labels, tested * 64, classes=CLASSES), found)


def test_random_images_of_each_class():
    labels = np.array([0, 0, 0, 1, 1, 2])
    rows = heads.random_images(jax.random.key(0), labels, 2, CLASSES)
    assert labels[rows].tolist() == [0, 0, 1, 1, 2] and len(set(rows)) == 5
    others = {tuple(heads.random_images(jax.random.key(seed), labels, 2, CLASSES)) for seed in range(9)}
    assert len(others) > 1


def test_centroids_are_nearest_to_the_means():
    features, labels = clusters(60)
    rows = heads.centroids(features, labels, 1, CLASSES)
    for label, row in enumerate(rows):
        own = features[labels == label]
        distances = np.linalg.norm(own - own.mean(0), axis=1)
        np.testing.assert_array_equal(features[row], own[distances.argmin()])


def test_neighbours_are_of_the_same_class_and_direction():
    features, labels = clusters(60)
    rows = np.array([7, 3, 8])
    np.testing.assert_array_equal(heads.neighbours(features[rows] * 5, labels[rows], features, labels), rows)
    assert labels[heads.neighbours(features[rows], (labels[rows] + 1) % CLASSES, features, labels)].tolist() == [
        (label + 1) % CLASSES for label in labels[rows]
    ]


def test_a_class_without_images_has_no_neighbours():
    features, labels = clusters(60)
    rows = np.array([7, 3, 8])
    found = heads.neighbours(features[rows], np.array([labels[7], CLASSES + 1, labels[8]]), features, labels)
    np.testing.assert_array_equal(found, rows[[0, 2]])


def test_dd_rankings_scores():
    """As its definition says: 1 for what recovers all images and beats random ones, 0 for the opposite."""
    assert ranking.label_robust_score(1.0, 0.0, 1.0, weight=1.0) == pytest.approx(1)
    assert ranking.label_robust_score(0.0, 1.0, 1.0) == pytest.approx(0)
    # No better than random images and as good as all of them: a score of 0 before it is normalised.
    middle = (1 - np.exp(-1)) / (np.e - np.exp(-1))
    assert ranking.label_robust_score(0.7, 0.7, 0.7) == pytest.approx(middle)
    assert ranking.label_robust_score(0.5, 0.3, 0.8) == pytest.approx(ranking.normalised(0.5 * 0.2 - 0.5 * 0.3))
    assert ranking.augmentation_robust_score(0.0, 0.0) == pytest.approx(middle)
    assert ranking.augmentation_robust_score(0.1, 0.3, weight=0.25) == pytest.approx(ranking.normalised(0.15))


@pytest.mark.slow
def test_a_run_with_clusters_in_place_of_labels(tmp_path, capsys):
    """All the way, with both heads in the results and on the page; another number of clusters is another run."""
    tiny_runs.write_data(tmp_path, labels=False)
    changes = {"encoder__clusters": 3, "encoder__head_epochs": 5, "encoder__copies": 2, "distill__steps": 20}
    changes |= {"encoder__label_steps": 3, "evaluate__full_steps": 5}
    line = tiny_runs.taught(tmp_path, "lgm", **changes)
    assert main.main(line) == 0, capsys.readouterr().err
    results = files.read_sealed(tmp_path / "lgm" / "results.json")
    for head in ("ridge_head", "linear_head"):
        assert set(results[head]) == {"distilled", "random_real", "centroids", "neighbours"}
        for entry, one in results[head].items():
            # Ridge regression on the same images gives the same head.
            seeds = 1 if head == "ridge_head" and entry != "random_real" else 2
            assert 0 <= one["mean"] <= 100 and one["seeds"] == seeds
    plain, augmented = ({entry: one["values"] for entry, one in results[name].items()} for name in RANKED)
    assert set(plain) == {"distilled", "random_real", "full_data"} and set(augmented) == {"distilled", "random_real"}
    found = {name: one["values"] for name, one in results["dd_ranking"].items()}
    for seed in range(2):
        own, drawn, full = (plain[name][seed] / 100 for name in ("distilled", "random_real", "full_data"))
        apart = (augmented["distilled"][seed] - augmented["random_real"][seed]) / 100
        assert found["lrs"][seed] == pytest.approx(ranking.label_robust_score(own, drawn, full), abs=1e-4)
        assert found["ars"][seed] == pytest.approx(ranking.augmentation_robust_score(own - drawn, apart), abs=1e-4)
    page = (tmp_path / "lgm" / "report.html").read_text()
    assert "ridge regression on the frozen teacher" in page and "label-robust score" in page
    assert files.read_array(tmp_path / "shared" / "clusters" / "train.npy").max() == 2
    assert main.main([*line, "--config.encoder.clusters=2"]) == 2


@pytest.mark.slow
def test_heads_see_the_images_as_they_are_stored(tmp_path):
    """Not their targets, which are of the images before rounding; with as many real images as the bytes hold."""
    tiny_runs.write_data(tmp_path)
    changes = {"storage__images": "int2", "storage__targets": "float32", "storage__bytes": 3500}
    line = tiny_runs.taught(tmp_path, "clp_dd", **changes, encoder__head_epochs=0, distill__steps=5)
    line = [argument for argument in line if not argument.startswith("--config.storage.N")]
    assert main.main(line) == 0
    options = arguments.parse(line)
    run = pipeline.prepare(configuration.resolved(options.config), Workdir(options.workdir, options.shared), print)
    loaded = distilled.load(run.work.distilled)
    own, classes = np.asarray(loaded.about["labels"]), run.problem.classes
    _, found = next(iter(stages.entries(run, len(own) // classes, classes, fill=True)))
    entry, (images, targets) = found["distilled"], loaded.pairs()
    expected = stages.encode(run.preprocessing().pixels(images), run.backbone(), run.preprocessing())
    np.testing.assert_allclose(entry.features, expected, rtol=1e-4, atol=1e-4)
    stored = np.asarray(run.preprocessing().features(targets))
    assert np.abs(stored - entry.features).mean() > 0.1 * np.abs(stored - stored.mean(0)).mean()
    room = loaded.about["random_images"] // classes
    assert room > len(own) // classes and len(found["random_real"].labels) == room * classes
    rows = files.read_sealed(options.workdir / "results.json")["ridge_head"]
    assert rows["random_real"]["images"] == room * classes and rows["distilled"]["images"] == len(own)


@pytest.mark.parametrize(
    ("edition", "changes", "words"),
    [
        ("lgm", {"storage__N": 2}, "stores at least one image of each of 3 classes"),
        ("clp_dd", {"encoder__clusters": 9}, "stores at least one image of each of 9 classes"),
    ],
)
def test_too_few_images_are_refused(edition, changes, words, tmp_path, capsys):
    tiny_runs.write_data(tmp_path)
    assert main.main(tiny_runs.taught(tmp_path, edition, **changes)) == 2
    assert words in capsys.readouterr().err


def test_a_class_without_a_training_image_is_named(tmp_path, capsys):
    tiny_runs.write_data(tmp_path)
    with np.load(tmp_path / "images.npz") as found:
        arrays = dict(found)
    arrays["train_labels"] = np.where(arrays["train_labels"] == 1, 0, arrays["train_labels"])
    np.savez(tmp_path / "images.npz", **arrays)
    line = tiny_runs.taught(tmp_path, "lgm")
    assert main.main(line) == 2
    assert "no training image is of the class 1" in capsys.readouterr().err
    assert not (tmp_path / "shared" / "teacher").exists()
    assert main.main(tiny_runs.taught(tmp_path, "random", "other")[:-1] + ["--stage=features"]) == 0


def test_empty_clusters_are_refused():
    features = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    config = ConfigDict({"encoder": {"clusters": 5}})
    run = SimpleNamespace(
        config=config,
        features=lambda: SimpleNamespace(train=features, test=features),
        key=lambda *_, **__: jax.random.key(0),
        work=SimpleNamespace(own=lambda *_, **__: pathlib.Path("nowhere")),
    )
    with pytest.raises(UserError, match="3 of the 5 clusters have no training image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of fewer points than clusters
        stages._cluster(run)


def test_resolutions_that_join_are_shown():
    chosen = configuration.edit(configuration.default(), "lgm")
    problem = Problem((16, 16, 3), 8, 100, 10, network=True)
    chosen.storage.N, chosen.distill.steps = 10, 600
    assert ("resolutions", "3 of 5, one more after every 200 steps") in methods.make(chosen, problem).shapes
    # What is chosen for a few steps lets all of them join.
    chosen = defaults.choose((16, 16, 3), 1000, method="lgm", accelerator=False)
    shapes = dict(methods.make(chosen, problem).shapes)
    assert shapes["resolutions"].startswith("5 of 5") and chosen.encoder.extend_every == 100
    assert defaults.choose((64, 64, 3), 1000, method="lgm", accelerator=True).encoder.extend_every == 200


def test_what_a_user_should_know_is_said_before_the_first_step():
    """Sizes that leave room, and steps that leave the images coarse; what it advises is enough."""
    chosen = configuration.edit(configuration.default(), "lgm")
    problem = Problem((16, 16, 3), 8, 100, 10, network=True)
    chosen.storage.N, chosen.distill.steps = 27, 600
    left, coarse = methods.make(chosen, problem).notes
    assert "20 images, 2 of each of 10 classes, are stored of the 27 that there is room for: 30 are" in left
    assert "only 3 of 5 resolutions join in 600 steps" in coarse
    chosen.encoder.extend_every = int(re.search(r"extend_every to (\d+) or less", coarse)[1])
    chosen.storage.N = 30
    assert methods.make(chosen, problem).notes == ()
    chosen.encoder.extend_every += 1
    assert len(methods.make(chosen, problem).notes) == 1


def test_a_stage_goes_on_after_the_seeds_that_are_done(tmp_path):
    run = SimpleNamespace(work=SimpleNamespace(own=lambda name, shared: tmp_path / name))
    assert stages.part(run, "linear_head", 0, lambda: {"distilled": 3.5}) == {"distilled": 3.5}
    asked = []
    for seed in (0, 1):
        assert stages.part(run, "linear_head", seed, lambda: asked.append(1) or {"distilled": 4.0})  # noqa: B023
    assert asked == [1] and stages.part(run, "linear_head", 0, dict) == {"distilled": 3.5}


def test_without_labels_clusters_are_named(tmp_path, capsys):
    tiny_runs.write_data(tmp_path, labels=False)
    assert main.main(tiny_runs.taught(tmp_path, "lgm")) == 2
    said = capsys.readouterr().err
    assert "needs labels, and the data set has none: set config.encoder.clusters" in said
