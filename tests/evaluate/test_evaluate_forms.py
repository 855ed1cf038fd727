"""What people hand to an evaluation: tensors, PIL images, labels that are identifiers or names."""

import numpy as np
import pytest
import torch
from helpers import bytes_and_features
from PIL import Image

import ssdd_jax
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import api, options, sources, suite

IMAGES, FEATURES = bytes_and_features(60)
IDS = np.array([70, 5_000_000, 12])[np.arange(60) % 3]


@pytest.mark.parametrize("kind", ["identifiers", "names", "tensors"])
def test_a_target_of_arrays(kind):
    labels = {"identifiers": IDS, "names": IDS.astype(str), "tensors": torch.tensor(IDS)}[kind]
    images = torch.tensor(np.moveaxis(IMAGES, -1, 1)) if kind == "tensors" else [Image.fromarray(x) for x in IMAGES]
    dataset = sources.of_arrays("mine", (images[:40], labels[:40], images[40:], labels[40:]))
    assert set(dataset.class_names) == {"12", "70", "5000000"}
    np.testing.assert_array_equal(np.array(dataset.class_names)[dataset.train_labels], IDS[:40].astype(str))
    np.testing.assert_array_equal(dataset.test_images, IMAGES[40:])


def test_a_source_of_tensors():
    given = sources.of_features_in_memory(IMAGES.astype(int), torch.tensor(FEATURES, requires_grad=True))
    np.testing.assert_array_equal(given.dataset.train_images, IMAGES)
    np.testing.assert_array_equal(given.features.train, FEATURES)


def request(labels):
    dataset = sources.of_arrays("mine", (IMAGES, labels, IMAGES, labels))
    made = ssdd_jax.distill(IMAGES, FEATURES, N=4, method="random", say=lambda line: None)
    preset = options.edition("paper")
    resolved = options.make(preset, {})
    return suite.Request(
        sets={"distilled": made},
        counts={"distilled": 4},
        models=(),
        targets=[sources.as_target("mine", dataset)],
        protocols=("linear", "few_shot"),
        references=(),
        source=None,
        seeds=1,
        seed=0,
        training=options.for_training(resolved),
        judging=options.for_judging(resolved),
    )


def test_what_is_left_out_is_said():
    whole = api._notes(request(np.arange(60) % 3))
    assert whole == []
    few = api._notes(request(np.minimum(np.arange(60), 3) + 1))
    assert "4 labels that occur, 1 to 4" in few[0]
    assert "few_shot is left out on mine: it takes 10" in few[1] and "3 of 4 classes have fewer, such as '1'" in few[1]


def test_seeds_that_jax_would_cut():
    preset = options.edition("paper")
    assert options.make(preset, {"seed": 2**32 - 1}).seed == 2**32 - 1
    with pytest.raises(UserError, match="seed=4294967296 is out of range: it must be at most 4294967295"):
        options.make(preset, {"seed": 2**32})
