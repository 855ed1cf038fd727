"""The evaluation: rows and reference points, what is shared and kept, what is refused, and what comes out."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import bytes_and_features

import ssdd_jax
from ssdd_jax import data, distilled, evaluate, formats
from ssdd_jax.data import features, preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import api, entries, extraction, rates, store, suite, tables, training
from ssdd_jax.evaluate.protocols import table
from ssdd_jax.models.resnet import ResNetClassifier
from ssdd_jax.report import statistics
from ssdd_jax.runtime.workdir import fingerprint, held
from ssdd_jax.training import streaming

pytestmark = pytest.mark.medium

MODEL = "convnet_4_8_bn"
# As small as it gets: what is tested is what happens, not how well it works.
SMALL = {
    "steps": 2,
    "full_steps": 3,
    "weight_decays": 1e-3,
    "linear_steps": 10,
    "finetune_steps": 2,
    "finetune_batch_size": 8,
    "kd_epochs": 1,
    "kd_teacher": MODEL,
    "kd_teacher_steps": 2,
}


def made(name, seed, count=90, classes=2):
    """Two thirds to train, one third to test; the classes take turns."""
    images, known = bytes_and_features(count, seed)
    labels = (np.arange(count) % classes).astype(np.int32)
    part = 2 * count // 3
    names = tuple("abcdefgh"[:classes])
    return data.Dataset(name, images[:part], labels[:part], images[part:], labels[part:], names), known


DATASET, KNOWN = made("made", 0)
OTHER = made("other", 5, classes=3)[0]
CONSTANTS = preprocess.fit(DATASET.train_images, KNOWN[:60])
SOURCE = evaluate.SourceData(DATASET, features.Features(KNOWN[:60], KNOWN[60:]), CONSTANTS)


def pairs_of(rows):
    return CONSTANTS.images(jnp.asarray(DATASET.train_images[rows])), CONSTANTS.targets(jnp.asarray(KNOWN[rows]))


SET = distilled.from_pairs(*pairs_of(np.arange(6)), CONSTANTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that the tests share: what one has trained another finds."""
    return tmp_path_factory.mktemp("evaluate")


def ask(folder, sets=SET, **changes):
    options = {"models": [MODEL], "targets": [DATASET], "protocols": ["linear"], "seeds": 2, "source": SOURCE}
    lines = []
    found = ssdd_jax.evaluate(sets, workdir=folder, say=lines.append, **{**options, **SMALL, **changes})
    return found, lines


def row(found, entry, measure="linear", target="made", model=MODEL):
    (one,) = [
        x
        for x in found["rows"]
        if (x["entry"], x["measure"], x["target"]) == (entry, measure, target) and x["model"] in (model, None)
    ]
    return one


def count_training(monkeypatch):
    """Counts the networks that are trained from now on, by how many pairs they see."""
    calls, own = [], training.train

    def train(keys, network, pairs, **options):
        calls.append((len(keys), pairs[0].shape[-4], options["settings"].steps))
        return own(keys, network, pairs, **options)

    monkeypatch.setattr(training, "train", train)
    return calls


def count_extraction(monkeypatch):
    """The numbers of images whose features are computed from now on."""
    calls, own = [], extraction.extract

    def extract(network, variables, images, **options):
        calls.append(len(images))
        return own(network, variables, images, **options)

    monkeypatch.setattr(extraction, "extract", extract)
    return calls


def test_every_reference_point_is_in_the_table(folder):
    found, _ = ask(folder)
    assert [x["entry"] for x in found["rows"]] == [
        "distilled", "random_real", "random_init", "full_data", "teacher", "chance",
    ]  # fmt: skip
    assert row(found, "chance")["values"] == [50.0]
    for entry in ("distilled", "random_real", "random_init", "full_data", "teacher"):
        one = row(found, entry)
        assert one["seeds"] == 2 == len(one["values"]) and one["mean"] == pytest.approx(
            np.mean(one["values"]), abs=1e-3
        )
    assert row(found, "teacher")["model"] is None and row(found, "distilled")["model"] == MODEL
    json.dumps(found, allow_nan=False)


def test_what_rows_are_trained_on(tmp_path, monkeypatch):
    calls = count_training(monkeypatch)
    ask(tmp_path)
    # Two seeds each: the set, as many random images, at first with both of their settings, whose better network is kept
    # for the first seed, and all of them with steps of their own.
    assert calls == [(2, 6, 2), (2, 6, 2), (1, 6, 2), (2, 60, 3)]


def test_asking_again_computes_nothing(folder, monkeypatch):
    first, _ = ask(folder)
    calls = count_training(monkeypatch)
    monkeypatch.setattr(extraction, "extract", None)
    again, _ = ask(folder)
    assert calls == [] and again["rows"] == first["rows"]


def test_one_more_target_trains_nothing(folder, monkeypatch):
    ask(folder)
    calls = count_training(monkeypatch)
    extracted = count_extraction(monkeypatch)
    found, _ = ask(folder, targets=[DATASET, OTHER])
    assert calls == []
    # Four rows of networks, two seeds, both parts of the new target alone.
    assert extracted == [60, 30] * 8
    assert row(found, "distilled", target="other")["mean"] >= 0
    assert row(found, "chance", target="other")["values"] == [33.3333]


@pytest.mark.slow
def test_features_that_do_not_fit_are_read_in_pieces(tmp_path, monkeypatch):
    """From files that are gone at the end: the rows of features on the device, to an image more or less of 30."""
    protocols = ["linear", "linear_krr_st", "few_shot", "feature_r2", "knn", "few_labels"]
    options = {"protocols": protocols, "references": ["teacher"], "seeds": 1}
    expected, _ = ask(tmp_path / "whole", **options)
    monkeypatch.setattr(streaming, "memory_bytes", lambda: 4000)
    extracted, own = [], extraction.extract

    def extract(*arguments, path=None, **constants):
        extracted.append(path)
        return own(*arguments, path=path, **constants)

    monkeypatch.setattr(extraction, "extract", extract)
    found, lines = ask(tmp_path / "pieces", **options)
    assert extracted and all(path.parent.name == "network" for path in extracted)
    assert any("are written to" in line and "read in pieces" in line for line in lines)
    assert not (tmp_path / "pieces" / "store" / suite.SCRATCH).exists()
    for one, other in zip(found["rows"], expected["rows"], strict=True):
        assert [one[key] for key in ("entry", "measure")] == [other[key] for key in ("entry", "measure")]
        tolerance = 2e-3 if one["measure"].startswith("feature_r2") else 100 / 30 + 1e-3
        np.testing.assert_allclose(one["values"], other["values"], atol=tolerance)


@pytest.mark.slow
def test_one_more_seed_trains_one_network_each(folder, monkeypatch):
    two, _ = ask(folder)
    calls = count_training(monkeypatch)
    three, _ = ask(folder, seeds=3)
    assert calls == [(1, 6, 2), (1, 6, 2), (1, 60, 3)]
    assert row(three, "distilled")["values"][:2] == row(two, "distilled")["values"]


@pytest.mark.slow
def test_features_are_computed_once_for_all_protocols(folder, monkeypatch):
    ask(folder)
    extracted = count_extraction(monkeypatch)
    frozen = [name for name, one in table.PROTOCOLS.items() if one.frozen is not None and name != "linear"]
    found, _ = ask(folder, protocols=frozen, references=["teacher"])
    assert extracted == [60, 30] * 2
    measures = {x["measure"] for x in found["rows"] if x["entry"] == "distilled"}
    assert measures == {measure for name in frozen for measure in table.PROTOCOLS[name].columns}
    assert row(found, "teacher", "feature_r2")["mean"] == pytest.approx(1.0, abs=1e-3)
    assert row(found, "distilled", "feature_r2")["mean"] < 0.999
    assert not any(x["measure"] == "feature_r2" and x["entry"] == "chance" for x in found["rows"])


def test_settings_and_content_decide_what_is_known(folder, monkeypatch):
    ask(folder)
    calls = count_training(monkeypatch)
    ask(folder, references=[], weight_decays=0.0)
    ask(folder, references=[], seed=7)
    other = distilled.from_pairs(*pairs_of(np.arange(6, 12)), CONSTANTS)
    ask(folder, other, references=[])
    assert calls == [(2, 6, 2)] * 3
    # Another probe asks for no other network.
    ask(folder, references=[], linear_steps=11)
    assert len(calls) == 3


def test_several_sets_and_their_paired_differences(folder):
    second = distilled.from_pairs(*pairs_of(np.arange(20, 26)), CONSTANTS)
    found, _ = ask(folder, {"ours": SET, "theirs": second}, seeds=3, references=["random_real"])
    assert [x["entry"] for x in found["rows"]] == ["ours", "theirs", "random_real", "chance"]
    assert [(x["first"], x["second"]) for x in found["differences"]] == [
        ("ours", "theirs"), ("ours", "random_real"), ("theirs", "random_real"),
    ]  # fmt: skip
    expected = statistics.paired(row(found, "ours")["values"], row(found, "theirs")["values"])
    assert found["differences"][0] == found["differences"][0] | expected
    words = tables.markdown(found)
    assert "| convnet_4_8_bn | ours − theirs | " in words and "95 % confidence intervals over 3 paired seeds" in words


@pytest.mark.slow
def test_a_teacher_that_comes_to_hand_later_gets_its_row(tmp_path):
    asked = {"targets": [OTHER], "references": ["teacher"], "protocols": ["linear", "finetune"]}
    found, _ = ask(tmp_path, **asked)
    assert not [x for x in found["rows"] if x["entry"] == "teacher"]
    module = ResNetClassifier(KNOWN.shape[1], 1, (1, 1, 1, 1))
    variables = jax.device_get(ssdd_jax.models.initialize(jax.random.key(3), module, (8, 8, 3)))
    found, _ = ask(tmp_path, source=SOURCE._replace(teacher=(module, variables)), **asked)
    assert {x["measure"] for x in found["rows"] if x["entry"] == "teacher"} == {"linear", "finetune"}


def test_the_teacher_that_features_are_compared_with_is_part_of_what_is_asked(tmp_path):
    """Another teacher of the same length, in the same folder, for the same networks; and none at all."""
    asked = {"protocols": ["feature_r2"], "references": ["random_init"]}
    assert not ask(tmp_path, source=None, **asked)[0]["rows"]
    first, _ = ask(tmp_path, **asked)
    shuffled = SOURCE._replace(features=features.Features(KNOWN[:60][::-1].copy(), KNOWN[60:][::-1].copy()))
    second, _ = ask(tmp_path, source=shuffled, **asked)
    values = [row(found, "random_init", "feature_r2")["values"] for found in (first, second)]
    assert values[0] != values[1]


def test_streams_of_random_numbers_are_apart():
    """`fold_in` with a small number is one of the keys of `split`: no other stream may be made so."""
    key = jax.random.key(0)
    networks = {tuple(k) for k in np.asarray(jax.random.key_data(jax.random.split(key, 100)))}
    for number in (entries.DRAW, suite.SUPERVISED):
        assert tuple(np.asarray(jax.random.key_data(jax.random.fold_in(key, number)))) not in networks


def test_every_image_counts():
    images = np.zeros((3000, 8, 8, 3), np.uint8)
    one = data.Dataset("one", images, None, images[:10], None)
    images = images.copy()
    images[1501] = 1
    assert entries.content(one) != entries.content(data.Dataset("one", images, None, images[:10], None))


def test_what_is_not_flipped():
    options = table.Settings()
    for name, flip in (("digits", 0.0), ("tfds:svhn_cropped", 0.0), ("cifar10", 0.5)):
        target = evaluate.Target(name, DATASET, np.zeros(3), np.ones(3), "")
        assert table._with_steps(options.tuning, target).flip == flip


def test_two_commands_at_once(tmp_path):
    with held(tmp_path), pytest.raises(UserError, match="another run is using"):
        ask(tmp_path)


def test_a_lone_name_is_a_list_of_one(folder):
    found, _ = ask(folder, models=MODEL, protocols="linear", targets=DATASET, references=[])
    assert [x["entry"] for x in found["rows"]] == ["distilled", "chance"]


def test_sets_of_different_teachers_are_told_apart(folder):
    first, second = (dataclasses.replace(SET, about={"teacher": name}) for name in ("A", "B"))
    _, lines = ask(folder, {"a": first, "b": second}, references=[])
    assert any("differ in their teacher (a: A, b: B)" in line for line in lines)


def test_the_kept_features_are_those_of_the_same_images_alone(tmp_path):
    """A target with the source's training images and other test images is not what the teacher's features are of."""
    shifted = dataclasses.replace(DATASET, name="shifted", test_images=DATASET.test_images[::-1].copy())
    found, _ = ask(tmp_path, targets=[shifted], references=["teacher"])
    assert not [x for x in found["rows"] if x["entry"] == "teacher"]


def test_more_random_images_than_there_are(tmp_path):
    large = distilled.from_pairs(jnp.zeros((70, 8, 8, 3)), jnp.zeros((70, 6)), CONSTANTS)
    options = entries.Settings(training.Settings(), training.Settings())
    assert entries.of_reference("random_real", SOURCE, large, 70, options).offered == 60


@pytest.mark.slow
def test_sets_of_different_size_have_random_images_each(folder):
    larger = distilled.from_pairs(*pairs_of(np.arange(9)), CONSTANTS)
    found, _ = ask(folder, {"small": SET, "large": larger}, references=["random_real"])
    assert [x["entry"] for x in found["rows"]] == ["small", "large", "random_real_6", "random_real_9", "chance"]
    assert "9 random images" in tables.markdown(found)


def test_the_random_images_are_those_of_the_budget(monkeypatch, tmp_path):
    """A set of a run is compared at the N it was made for, not at its number of pairs."""
    budget = distilled.from_pairs(*pairs_of(np.arange(6)), CONSTANTS, config={"storage.N": 4})
    calls = count_training(monkeypatch)
    ask(tmp_path, budget, references=["random_real"])
    # The set; random images with both of their settings, and the second seed with the better one.
    assert calls == [(2, 6, 2), (2, 4, 2), (1, 4, 2)]


def test_random_images_come_with_their_own_features(monkeypatch):
    seen = []
    monkeypatch.setattr(training, "train", lambda keys, network, pairs, **_: seen.append(pairs))
    options = entries.Settings(training.Settings(), training.Settings())
    entry = entries.of_reference("random_real", SOURCE, SET, 5, options)
    entry.train(jax.random.split(jax.random.key(0), 2), None, [training.PUBLISHED] * 2)
    ((images, targets),) = seen
    everything = np.asarray(CONSTANTS.images(jnp.asarray(DATASET.train_images))).reshape(60, -1)
    drawn = []
    for seed in range(2):
        flat = np.asarray(images[seed]).reshape(5, -1)
        rows = [int(np.argmin(np.abs(everything - image).sum(1))) for image in flat]
        np.testing.assert_allclose(flat, everything[rows], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(targets[seed], CONSTANTS.targets(jnp.asarray(KNOWN[rows])), rtol=1e-5, atol=1e-6)
        assert len(set(rows)) == 5
        drawn.append(rows)
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("carried", "own_rate", "expected"), [(0.03, True, 0.03), (0.03, False, 0.1), (None, True, 0.1)]
)
def test_only_a_set_is_trained_at_its_own_rate(carried, own_rate, expected):
    """And only where that is asked for, and there is one; the baselines never are."""
    options = entries.Settings(training.Settings(), training.Settings(), own_rate=own_rate)
    own = distilled.from_pairs(*pairs_of(np.arange(6)), CONSTANTS, learning_rate=carried)
    baselines = [entries.of_reference(name, SOURCE, own, 6, options) for name in ("random_real", "full_data")]
    rows = [entries.of_set("distilled", own, SOURCE, options), *baselines]
    # Real images choose between both published settings.
    assert [[rate.learning_rate for rate in one.rates] for one in rows] == [[expected], [0.1, 0.01], [0.1]]


@pytest.mark.slow
def test_whole_networks_are_tuned_and_taught(folder):
    """Fine-tuning and distillation without target data, for every row that can have them."""
    module = ResNetClassifier(KNOWN.shape[1], 1, (1, 1, 1, 1))
    variables = jax.device_get(ssdd_jax.models.initialize(jax.random.key(3), module, (8, 8, 3)))
    source = SOURCE._replace(teacher=(module, variables))
    found, lines = ask(folder, protocols=["finetune", "zero_shot_kd"], source=source)
    for entry in ("distilled", "random_real", "random_init", "full_data", "teacher"):
        assert 0 <= row(found, entry, "finetune")["mean"] <= 100
    taught = {x["entry"] for x in found["rows"] if x["measure"] == "zero_shot_kd"}
    assert taught == {"distilled", "random_real", "random_init", "teacher", "chance"}
    # One supervised network for all of them.
    assert sum("on the labels of made" in line for line in lines) == 1
    assert len(set(row(found, "teacher", "zero_shot_kd")["values"])) == 1
    again, lines = ask(folder, protocols=["zero_shot_kd"], source=source)
    assert not any("on the labels" in line for line in lines)


def test_a_teacher_that_is_not_at_hand_has_a_row_where_its_features_are_known(folder):
    found, _ = ask(folder, targets=[DATASET, OTHER], references=["teacher"])
    assert {(x["entry"], x["target"]) for x in found["rows"]} == {
        ("distilled", "made"), ("distilled", "other"), ("teacher", "made"), ("chance", "made"), ("chance", "other"),
    }  # fmt: skip


def test_without_a_source_an_untrained_network_is_left(folder):
    found, _ = ask(folder, source=None)
    assert [x["entry"] for x in found["rows"]] == ["distilled", "random_init", "chance"]


def test_long_or_short_fine_tuning():
    """10,000 iterations on CIFAR and Tiny ImageNet, 5,000 elsewhere, whatever asks for 0 (KRR-ST, test.py)."""
    options = table.Settings()
    for name, steps in (("cifar10", 10_000), ("tfds:cifar100", 10_000), ("tiny_imagenet", 10_000), ("cars", 5000)):
        target = evaluate.Target(name, DATASET, np.zeros(3), np.ones(3), "")
        assert table.PROTOCOLS["finetune"].uses(options, target, None)[0] == steps
        assert table.supervised_uses(target, options)[1] == steps


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocols": ["linear", "liner"]}, "unknown protocol 'liner': there are linear, linear_krr_st, lbfgs"),
        ({"models": ["resnet19"]}, "there is no architecture 'resnet19'"),
        ({"models": ["vgg11"]}, "vgg11"),
        ({"targets": ["cifar11"]}, "there is no target 'cifar11'"),
        ({"targets": [], "source": None}, "no target is given"),
        ({"epoch": 3}, "unknown setting 'epoch'"),
        ({"steps": 0}, "steps=0 is out of range: it must be at least 1"),
        ({"weight_decays": (1e-3, -1.0)}, "weight_decays=(0.001, -1.0) is out of range"),
        ({"weight_decays": ()}, "weight_decays=() is out of range"),
        ({"fractions": 0.3}, "fractions=0.3: there are 0.01, 0.05"),
        ({"calibrate": "some"}, "calibrate='some' is unknown: there are none, untrained, all"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is out of range: it must be above 0"),
        ({"steps": 1.5}, "steps=1.5 is not an int"),
        ({"seeds": -1}, "seeds=-1 is out of range"),
        ({"protocols": ["zero_shot_kd"], "kd_teacher": "resnet99"}, "there is no architecture 'resnet99'"),
        ({"source": None, "features": "f.npz"}, "name it too, as in --source=tfds:cifar100"),
        ({"edition": "papers"}, "unknown edition 'papers': there are paper, mkdt, cpu, digits"),
        ({"references": ["teacher", "oracle"]}, "unknown reference 'oracle'"),
    ],
)
def test_refuses(changes, words, folder):
    with pytest.raises(UserError) as error:
        ask(folder, **changes)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("dataset", "target"), [("digits", "digits"), ("tfds:cifar10", "cifar10"), ("mine", "")])
def test_the_default_target_is_what_a_set_names_as_its_data(dataset, target):
    item = dataclasses.replace(SET, about={"dataset": dataset})
    if target:
        assert api._default_target(None, item) == target
    else:
        with pytest.raises(UserError, match="no target is given"):
            api._default_target(None, item)


@pytest.mark.parametrize(
    ("dataset", "backend", "edition", "said"),
    [("digits", "cpu", "digits", 0), ("cifar10", "cpu", "cpu", 1), ("cifar10", "gpu", "paper", 0)],
)
def test_the_settings_suit_the_machine(dataset, backend, edition, said, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    lines = []
    item = dataclasses.replace(SET, about={"dataset": dataset})
    assert api._default_edition(item, lines.append) == edition
    assert len(lines) == said and all("edition cpu" in line and "edition paper" in line for line in lines)


def test_refuses_parts_that_do_not_fit_together(folder):
    narrow = distilled.from_pairs(pairs_of(np.arange(6))[0], jnp.zeros((6, 5)), CONSTANTS)
    with pytest.raises(UserError, match="targets of distilled have 5 dimensions and the teacher's features 6"):
        ask(folder, narrow)
    grey = distilled.from_pairs(jnp.zeros((6, 8, 8, 1)), jnp.zeros((6, 6)), CONSTANTS)
    with pytest.raises(UserError, match="the images of a are 8x8x3 and those of b 8x8x1"):
        ask(folder, {"a": SET, "b": grey})
    with pytest.raises(UserError, match="source made are 8x8x3, those of distilled 8x8x1"):
        ask(folder, grey)
    single = data.Dataset("one", *([DATASET.train_images, np.zeros(60, np.int32)] * 2), ("a", "b"))
    with pytest.raises(UserError, match="all of one class"):
        ask(folder, targets=[single])
    for name in (
        "teacher",
        "chance",
        "random_real",
        "random_real_20",
        "random images",
        "20 random images",
        "untrained",
    ):
        with pytest.raises(UserError, match=f"a set cannot be called {name}"):
            ask(folder, {name: SET})
    for sets in (None, 3, {"a": None}):
        with pytest.raises(UserError, match="is not a set|is not a path"):
            ask(folder, sets)
    for source in ((DATASET.train_images,), (DATASET.train_images, 1, 2)):
        with pytest.raises(UserError, match="a source in memory is a pair"):
            ask(folder, source=source)
    with pytest.raises(UserError, match="targets are names of data sets, or arrays by name"):
        ask(folder, targets=(DATASET.train_images, DATASET.train_labels))
    for seeds in ("2", 2.5, True, -1):
        with pytest.raises(UserError, match=f"seeds={seeds!r} is out of range: it must be a whole number"):
            ask(folder, seeds=seeds)


@pytest.mark.slow
def test_soft_labels_may_be_of_another_length(folder, tmp_path):
    """Logits of classes (SC-DD) are not the teacher's features; a set says so, in every form."""
    soft = distilled.from_pairs(pairs_of(np.arange(6))[0], jnp.eye(6)[:, :2], CONSTANTS, soft_labels=True)
    soft = dataclasses.replace(soft, preprocessing=CONSTANTS._replace(target_mean=jnp.zeros(2)))
    formats.write(soft, tmp_path / "png", "png")
    found, _ = ask(folder, formats.read(tmp_path / "png"), references=["random_real"])
    assert [x["entry"] for x in found["rows"]] == ["distilled", "random_real", "chance"]


def test_a_network_that_diverged_is_told_and_not_kept(tmp_path):
    with pytest.raises(UserError, match="convnet_4_8_bn diverged on distilled: try a smaller learning_rate"):
        ask(tmp_path, references=[], learning_rate=1e30)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_is_written(folder, tmp_path):
    found, _ = ask(folder)
    words = evaluate.write(found, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "evaluation.md").read_text() == words + "\n"
    assert (tmp_path / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    lines = words.splitlines()
    assert "| architecture | trained on | linear probe (%) |" in lines
    one = row(found, "random_init")
    assert f"| {MODEL} | untrained | {one['mean']:.1f} ± {one['std']:.1f} |" in lines
    assert "|  | chance | 50.0 |" in lines
    assert f"{MODEL} {found['models'][0]['parameters']:,} parameters" in words


def test_nothing_to_draw(folder, tmp_path):
    found, said = ask(folder, source=None, protocols=["feature_r2"], references=[])
    assert any("feature_r2 is left out on" in line and "the teacher's features" in line for line in said)
    evaluate.write(found, tmp_path)
    assert not (tmp_path / "evaluation.png").exists() and (tmp_path / "evaluation.json").exists()


def test_paired_intervals():
    found = statistics.paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    half = 4.302653 * 1.0 / math.sqrt(3)  # Student's t for 2 degrees of freedom; the differences 2, 3, 1 deviate by 1
    assert found == {
        "mean": 2.0, "low": round(2 - half, 4), "high": round(2 + half, 4), "level": 0.95, "seeds": 3,
    }  # fmt: skip
    assert statistics.paired([1.0], [2.0]) == {"mean": -1.0, "low": None, "high": None, "level": 0.95, "seeds": 1}
    alike = statistics.paired([95.1, 95.1, 95.2], [95.0, 95.0, 95.1])
    assert alike["low"] == alike["mean"] == alike["high"] == 0.1
    assert statistics.paired([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])["high"] == 1.0
    with pytest.raises(ValueError, match="got 1 and 2"):
        statistics.paired([1.0], [1.0, 2.0])


def test_summary():
    found = statistics.summary([1.0, 2.0, 4.00004])
    assert found == {"mean": 2.3333, "std": 1.5275, "seeds": 3, "values": [1.0, 2.0, 4.0]}
    assert statistics.summary([3.0]) == {"mean": 3.0, "std": 0.0, "seeds": 1, "values": [3.0]}


def test_marks_tell_contents_apart():
    arrays = [np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(4, np.int32), np.ones(4, np.float32)]
    assert len({store.mark(array) for array in arrays} | {store.mark("a", "b"), store.mark("ab")}) == 6
    assert store.mark(np.zeros(4, np.float32)) == store.mark(jnp.zeros(4))


def test_rows_of_a_request_without_labels(tmp_path):
    """As in a run on unlabelled data: the teacher's features alone are measured."""
    plain = data.Dataset("plain", DATASET.train_images, None, DATASET.test_images, None)
    request = suite.Request(
        sets={"distilled": SET},
        counts={"distilled": 6},
        models=(MODEL,),
        targets=(evaluate.Target("plain", plain, np.zeros(3), np.ones(3), "mark"),),
        protocols=("linear", "few_shot", "feature_r2"),
        references=("random_init",),
        source=SOURCE,
        seeds=1,
        seed=0,
        training=entries.Settings(training.Settings(2), training.Settings(1)),
        judging=table.Settings(),
    )
    found = evaluate.run(request, evaluate.Store(tmp_path), say=lambda line: None)
    assert {x["measure"] for x in found} == {"feature_r2", "feature_r2_whitened"} and len(found) == 4


def test_the_rate_is_chosen_on_training_images_that_were_not_trained_on(tmp_path, monkeypatch):
    """By candidate for the first seed, once; random images have KRR-ST's setting for them as a candidate too."""
    calls = count_training(monkeypatch)
    held, own = [], rates.explained

    def explained(network, source, rows, **options):
        held.append(rows)
        return own(network, source, rows, **options)

    monkeypatch.setattr(rates, "explained", explained)
    asked = {
        "weight_decays": (1e-4, 1.0),
        "full_weight_decays": (1e-4, 1.0),
        "references": ["random_real", "full_data"],
    }
    found, lines = ask(tmp_path, **asked)
    # Candidates, then the second seed: the first is one of the candidates, but for all images, which held some out.
    assert calls == [(2, 6, 2), (1, 6, 2), (4, 6, 2), (1, 6, 2), (2, 30, 3), (2, 60, 3)]
    assert [len(rows) for rows in held] == [30] * 8
    for rows in held[2:6]:
        assert len({tuple(rows) for rows in held[2:6]}) == 1
    published = {(0.1, 1e-4), (0.1, 1.0), training.PUBLISHED, training.PUBLISHED_SUBSET}
    one = row(found, "random_real")
    assert (one["learning_rate"], one["weight_decay"]) in published and "weight_decay" not in row(found, "chance")
    said = [line.split(": ", 2)[2] for line in lines if "by R2 on held-out training images" in line]
    assert len(said) == 3
    for line in said:
        chosen, tried = line.rstrip(")").split(", by R2 on held-out training images (")
        values = dict(re.findall(r"(rate \S+, weight decay \S+): (-?[\d.]+)", tried))
        assert len(values) > 1 and max(values, key=lambda name: float(values[name])) == chosen, line
    again, _ = ask(tmp_path, **asked)
    assert len(calls) == 6 and again["rows"] == found["rows"]
    # The chosen value alone finds the same networks.
    ask(tmp_path, references=[], weight_decays=row(found, "distilled")["weight_decay"])
    assert len(calls) == 6


def test_a_subset_is_not_held_out_from_itself(tmp_path, monkeypatch):
    held, own = [], rates.explained

    def explained(network, source, rows, **options):
        held.append(rows)
        return own(network, source, rows, **options)

    monkeypatch.setattr(rates, "explained", explained)
    rows = entries.held_out(60)[:6]

    def made(rows, images):
        one = distilled.from_pairs(*pairs_of(rows), CONSTANTS)
        return dataclasses.replace(one, about={"samples": rows.tolist(), "images": images})

    options = {"weight_decays": (1e-4, 1e-3), "references": []}
    ask(tmp_path, made(rows, fingerprint(DATASET.train_images)), **options)
    assert len(held) == 2 and all(len(one) == 30 and not set(one) & set(rows) for one in held)
    # Rows of other images say nothing about these.
    ask(tmp_path, made(rows, "other"), **options)
    assert len(held) == 4 and all(set(one) & set(rows) for one in held[2:])
    # Nothing is left to choose on where it holds almost all images.
    found, lines = ask(tmp_path, made(np.arange(50), fingerprint(DATASET.train_images)), **options)
    assert row(found, "distilled")["weight_decay"] == 1e-3 and len(held) == 4
    assert any("there are no images of the source to choose it on" in line for line in lines)


def test_features_of_one_test_image_have_nothing_to_explain(tmp_path):
    """Not a value that no file can hold; the other measures are there."""
    one = dataclasses.replace(
        DATASET, name="one", test_images=DATASET.test_images[:1], test_labels=DATASET.test_labels[:1]
    )
    source = SOURCE._replace(dataset=one, features=features.Features(KNOWN[:60], KNOWN[60:61]))
    found, _ = ask(tmp_path, targets=[one], source=source, protocols=["linear", "feature_r2"], references=[])
    assert {x["measure"] for x in found["rows"]} == {"linear"}


def test_without_a_source_the_published_weight_decay_is_used(tmp_path):
    found, lines = ask(tmp_path, source=None, weight_decays=(1e-4, 1e-3), references=[])
    assert row(found, "distilled")["weight_decay"] == 1e-3
    assert any("there are no images of the source to choose it on" in line for line in lines)


def test_which_networks_are_calibrated(tmp_path):
    """The untrained ones by default; the choice changes no other row, and is part of what is cached."""
    values = {}
    for name in ("none", "untrained", "all"):
        found, _ = ask(tmp_path, calibrate=name, protocols=["linear_krr_st", "knn", "feature_r2"])
        values[name] = {
            entry: [row(found, entry, measure)["values"] for measure in ("knn", "feature_r2")]
            for entry in ("distilled", "random_init", "teacher")
        }
    assert values["none"]["random_init"] != values["untrained"]["random_init"] == values["all"]["random_init"]
    assert values["none"]["distilled"] == values["untrained"]["distilled"] != values["all"]["distilled"]
    assert values["none"]["teacher"] == values["all"]["teacher"]


@pytest.mark.slow
def test_the_edition_of_mkdt(tmp_path, monkeypatch):
    """20 epochs at weight decay 1e-4 and the set's own rate, and 1 and 5 % of the labels."""
    calls = []
    monkeypatch.setattr(
        training, "train", lambda keys, network, pairs, **options: calls.append(options) or training.fresh(
            keys, network, pairs[0].shape[-3:]
        )
    )  # fmt: skip
    own = distilled.from_pairs(*pairs_of(np.arange(6)), CONSTANTS, learning_rate=0.03)
    options = {"models": [MODEL], "targets": [DATASET], "source": SOURCE, "workdir": tmp_path, "seeds": 1}
    found = ssdd_jax.evaluate(own, edition="mkdt", say=lambda line: None, **options)
    assert {x["measure"] for x in found["rows"]} == {"few_labels_1", "few_labels_5"}
    assert [one["rates"] for one in calls] == [[(0.03, 1e-4)], [(0.1, 1e-4)], [(0.1, 1e-4)]]
    assert [one["settings"].steps_on(600) for one in calls] == [60] * 3 and not any(c["settings"].cosine for c in calls)
