"""The config: rules for every key, and finding the files that come with the package."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from ssdd_jax import config, methods
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.errors import UserError

# Any value of their type is allowed here: names and paths, which are checked where they are used, and a switch.
FREE = {"method", "data.name", "data.data_dir", "data.train_split", "data.test_split", "teacher.features"}
FREE |= {"evaluate.own_rate", "evaluate.cosine", "data.cache_dir", "teacher.source", "approximate.joint"}
SHIPPED = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("[!_]*.py"))
SHIPPED = [path for path in SHIPPED if path.stem != "folder"]  # which needs one: tests/test_folder_config.py


def changed(key, value):
    found = config.default()
    with found.ignore_type():
        found.update_from_flattened_dict({key: value})
    return found


def test_every_key_has_a_rule_or_is_free():
    """A new key must be given a rule, or be listed here."""
    keys = set(config.flatten(config.default()))
    assert keys - set(config.RULES) == FREE
    assert set(config.RULES) <= keys


def test_the_default_is_valid():
    config.validate(config.default())


WRONG = {
    "seed": -1,
    "data.image_size": -1,
    "data.train_limit": -5,
    "devices.gigabytes": -0.5,
    "data.test_fraction": 1.0,
    "teacher.width": 0,
    "teacher.learning_rate": 0.0,
    "teacher.batch_size": 1,
    "teacher.crop_scale": (0.5, 0.2),
    "teacher.flip_probability": 1.5,
    "teacher.warmup_epochs": -1,
    "views": ("rot0", "rot45"),
    "storage.N": 0,
    "storage.U": -1,
    "storage.hidden": 0,
    "student.widths": (),
    "inner.momentum": 1.0,
    "inner.learning_rate": float("nan"),
    "pool.size": 0,
    "pool.steps": 1,
    "pool.models_per_step": 11,
    "distill.start": "zeros",
    "distill.ridge_scale": 0.0,
    "distill.weight_decay": float("nan"),
    "evaluate.seeds": 0,
    "evaluate.batch_size": 1,
    "evaluate.entries": ("distilled", "teacher", "teacher"),
    "student.norm": "layer",
    "distill.samples": "first",
    "experts.count": 0,
    "experts.widths": (8, 0),
    "experts.norm": "none",
    "experts.momentum": -0.1,
    "mkdt.unroll": 0,
    "mkdt.rate": 0.0,
    "mkdt.rate_learning_rate": -1e-4,
    "scdd.images_per_class": -1,
    "scdd.group_size": 0,
    "scdd.jitter": -1,
    "scdd.temperature": 0.0,
}


@pytest.mark.parametrize("key", WRONG)
def test_values_out_of_range_are_refused_by_name(key):
    with pytest.raises(UserError) as caught:
        config.validate(changed(key, WRONG[key]))
    text = str(caught.value)
    assert text.startswith(f"config.{key}={WRONG[key]!r} is out of range: it must be ")


def test_a_method_that_there_is_not_is_refused():
    asked = methods.Problem((8, 8, 3), 16, 40)
    for refuse in (lambda: methods.check("boosted"), lambda: methods.make(changed("method", "boosted"), asked)):
        with pytest.raises(UserError) as caught:
            refuse()
        names = "boost, composed, krr_st, mkdt, scdd, lgm, clp_dd, subset, rela, noise"
        text = f"config.method='boosted' is out of range: it must be one of {names}"
        assert str(caught.value) == text
    for name in methods.METHODS:
        methods.check(name)


@pytest.mark.parametrize("views", [("rot0", "rot0"), (), ("rot90", "rot0")])
def test_views_start_with_the_image_itself_and_differ(views):
    with pytest.raises(UserError, match="config.views="):
        config.validate(changed("views", views))


def test_crop_and_widths():
    refused = (
        ("encoder.crop_scale", ("a", "b")),
        ("storage.image_weight", float("inf")),
        ("encoder.clusters", 1),
        ("teacher.crop_scale", (0.0, 1.0)),
        ("teacher.crop_scale", (0.5,)),
        ("student.widths", (8, 0)),
    )
    for key, value in refused:
        with pytest.raises(UserError, match=f"config.{key}="):
            config.validate(changed(key, value))


def test_no_mixup_is_allowed():
    """0 is what `post_training.Settings` calls no mixup."""
    config.validate(changed("scdd.mixup", 0.0))


def test_flatten_is_json():
    flat = config.flatten(config.default())
    assert flat["views"] == ["rot0", "rot90", "rot180", "rot270"] and flat["teacher.crop_scale"] == [0.08, 1.0]
    assert not any(isinstance(value, tuple | ConfigDict) for value in flat.values())
    assert config.get(config.default(), "teacher.crop_scale") == (0.08, 1.0)


def test_find_from_another_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _, edition = config.find("configs/digits.py:small").partition(":")
    assert pathlib.Path(found).is_file() and edition == "small"
    assert pathlib.Path(config.find("digits.py")) == pathlib.Path(found)
    # A file of one's own comes first.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text("")
    assert config.find("configs/digits.py") == "configs/digits.py"


@pytest.mark.parametrize("name", ["configs/nothing.py", "elsewhere/digits.py"])
def test_find_lists_what_there_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"no config file {name}: .*configs/digits\.py"):
        config.find(name)


def module_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def editions(path):
    """Which there are besides the empty one: the refusal of an unknown one says; and those that belong together."""
    module = module_of(path)
    with pytest.raises(ValueError, match="unknown edition 'none': there are ") as caught:
        module.get_config("none")
    names = str(caught.value).partition("there are ")[2].split(", ")
    assert set(config.EDITIONS) <= set(names) and len(set(names)) == len(names)
    own = [name for name in names if name not in config.EDITIONS]
    together = [f"{name},{method}" for name in own for method in config.EDITIONS]
    return [*names, *together, *(key for key in module.OWN if "," in key)]


CHOICES = [(path, edition) for path in SHIPPED for edition in ("", *editions(path))]


# What the shipped configs load: images, their number, classes.
PROBLEMS = {
    "digits": ((16, 16, 1), 1437, 10),
    "tfds:cifar10": ((32, 32, 3), 50_000, 10),
    "tfds:cifar100": ((32, 32, 3), 50_000, 100),
    "tiny_imagenet": ((64, 64, 3), 100_000, 200),
    "tfds:imagenet_resized/64x64": ((64, 64, 3), 1_281_167, 1000),
}


@pytest.mark.parametrize(("path", "edition"), CHOICES, ids=lambda value: getattr(value, "stem", value))
def test_every_edition_of_a_shipped_config_can_work(path, edition):
    """It is valid, has only keys that the default has, and its method can serve the data set within the budget."""
    found = module_of(path).get_config(edition)
    config.validate(found)
    assert config.flatten(found).keys() == config.flatten(config.default()).keys()
    shape, images, classes = PROBLEMS[found.data.name]
    asked = methods.Problem(shape, 8 * found.teacher.width, images, classes, network=True)
    method = methods.make(found, asked)
    assert method.samples <= images
    for name in edition.split(","):
        subsets = dict.fromkeys(("random", "kmeans", "high_loss"), "subset")
        presets = {"": "boost", "boost_plus": "composed", "cpu": None, "all_models": None}
        wanted = (presets | subsets).get(name, name)
        assert wanted in (None, found.method)
    assert found.pool.models_per_step == (found.pool.size if "all_models" in edition else 1)
    if "high_loss" in edition or "mkdt" in edition:
        assert found.distill.samples == "high_loss"
        assert len(found.experts.widths) <= len(found.student.widths)


def test_there_are_shipped_configs():
    assert "digits" in [path.stem for path in SHIPPED]
    assert {"cpu,mkdt", "cpu,scdd", "cpu", "mkdt"} <= {edition for _, edition in CHOICES}


OWN = {
    "cpu": {"distill.steps": 800, "storage.N": 50, "distill.steps_per_call": 20},
    "mkdt": {"mkdt.unroll": 10, "distill.steps": 77},
    "cpu,mkdt": {"distill.steps": 200},
}


@pytest.mark.parametrize(
    ("edition", "expected"),
    [
        ("", ("boost", 30_000, 100, 40, 50)),
        ("boost", ("boost", 30_000, 100, 40, 50)),
        ("cpu", ("boost", 800, 50, 40, 20)),
        # A method's edition is what it changes everywhere, and then what the file adds.
        ("mkdt", ("mkdt", 77, 100, 10, 10)),
        # In turn; what is for the two together comes last, whatever the order.
        ("cpu,mkdt", ("mkdt", 200, 50, 10, 10)),
        ("mkdt,cpu", ("mkdt", 200, 50, 10, 20)),
        ("cpu,scdd", ("scdd", 1000, 50, 40, 20)),
        ("scdd,cpu", ("scdd", 800, 50, 40, 20)),
    ],
)
def test_editions_come_in_turn(edition, expected):
    found = config.default()
    assert config.edit(found, edition, OWN) is found
    values = (found.method, found.distill.steps, found.storage.N, found.mkdt.unroll, found.distill.steps_per_call)
    assert values == expected


@pytest.mark.parametrize("edition", ["none", "cpu,none", "cpu;mkdt"])
def test_an_unknown_edition_is_one_line(edition):
    """It lists what there is, and combinations are no names."""
    with pytest.raises(ValueError) as caught:
        config.edit(config.default(), edition, OWN)
    unknown = edition.split(",")[-1]
    names = ["cpu", "mkdt", *(name for name in config.EDITIONS if name != "mkdt")]
    assert str(caught.value) == f"unknown edition {unknown!r}: there are {', '.join(names)}"


def test_a_config_file_cannot_make_up_a_key():
    """A typo in it must not go unnoticed, be it in an edition or not."""
    with pytest.raises((KeyError, ValueError, UserError), match="distill.stepz"):
        config.validate(config.edit(config.default(), "cpu", {"cpu": {"distill.stepz": 1}}))
    found = config.default()
    with pytest.raises((KeyError, AttributeError, UserError), match="stepz"):
        found.distill.stepz = 1
        config.validate(found)


@pytest.mark.parametrize("file", ["digits", "cifar10", "cifar100"])
@pytest.mark.parametrize("name", ["boost", "krr_st", "mkdt", "scdd", "high_loss"])
def test_a_method_on_the_command_line_is_its_edition(file, name):
    """With the rates and steps of the method, and what is changed beside it."""
    change = "--config.distill.samples=kmeans"
    edition = commandline.parse([f"--config=configs/{file}.py:{name}", change])
    assert (
        commandline.parse([f"--config=configs/{file}.py", f"--config.method={name}", change]).config == edition.config
    )
    assert edition.config.method == ("subset" if name == "high_loss" else name)
    assert edition.config.distill.samples == "kmeans"


def test_the_last_of_several_values_counts():
    """Also of a tuple, whose values ml_collections would append to each other."""
    line = ["--config=configs/cifar10.py", "--config.student.widths=(4,8)", "--config.distill.steps=3"]
    line += ["--config.student.widths", "(2,4)", "--config=configs/digits.py", "--config.distill.steps=5"]
    found = commandline.parse(line)
    assert found.config.student.widths == (2, 4) and found.config.distill.steps == 5
    assert found.config.data.name == "digits" and found.workdir.name == "digits"


def test_a_method_beside_an_edition_of_another_kind():
    found = commandline.parse(["--config=configs/cifar10.py:cpu", "--config.method=krr_st"])
    assert found.config == commandline.parse(["--config=configs/cifar10.py:cpu,krr_st"]).config


def test_two_methods_are_refused():
    with pytest.raises(UserError, match="the editions krr_st and mkdt name two methods: choose one$"):
        commandline.parse(["--config=configs/digits.py:krr_st,mkdt"])


def test_editions_are_known_without_another_import():
    """As to a notebook that begins with a config file; a process of its own has imported nothing yet."""
    program = "from ssdd_jax import config; print(config.edit(config.default(), 'kmeans').distill.samples)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert found.stdout == "kmeans\n", found.stderr
