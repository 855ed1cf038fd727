"""The config: rules for every key, and finding the files that come with the package."""

import importlib.util
import inspect
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from ssdd_jax import config
from ssdd_jax.errors import UserError

# Any text is allowed here: names and paths, which the data source checks.
FREE = {"data.name", "data.data_dir", "data.train_split", "data.test_split", "teacher.features"}
SHIPPED = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("[!_]*.py"))


def changed(key, value):
    found = config.default()
    with found.ignore_type():
        found.update_from_flattened_dict({key: value})
    return found


def test_every_key_has_a_rule_or_is_free():
    """A new key must be given a rule, or be listed here."""
    keys = set(config.flatten(config.default()))
    ruled = set(config.RULES) | {"method"}
    assert keys - ruled == FREE
    assert ruled <= keys


def test_the_default_is_valid():
    config.validate(config.default())


WRONG = {
    "seed": -1,
    "method": "boosted",
    "data.image_size": -1,
    "data.train_limit": -5,
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
}


@pytest.mark.parametrize("key", WRONG)
def test_values_out_of_range_are_refused_by_name(key):
    with pytest.raises(UserError) as caught:
        config.validate(changed(key, WRONG[key]))
    text = str(caught.value)
    assert text.startswith(f"config.{key}={WRONG[key]!r} is out of range: it must be ")


@pytest.mark.parametrize("views", [("rot0", "rot0"), (), ("rot90", "rot0")])
def test_views_start_with_the_image_itself_and_differ(views):
    with pytest.raises(UserError, match="config.views="):
        config.validate(changed("views", views))


def test_crop_and_widths():
    for key, value in (("teacher.crop_scale", (0.0, 1.0)), ("teacher.crop_scale", (0.5,)), ("student.widths", (8, 0))):
        with pytest.raises(UserError, match=f"config.{key}="):
            config.validate(changed(key, value))


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


def editions(path):
    """The config of every edition; which there are, the refusal of an unknown one says."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [module.get_config()]
    if inspect.signature(module.get_config).parameters:
        with pytest.raises(ValueError, match="unknown edition 'none'") as caught:
            module.get_config("none")
        names = set(re.findall(r"'(\w+)'", str(caught.value))) - {"none"}
        assert names
        found += [module.get_config(name) for name in names]
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load_and_validate(path):
    """With every edition, and only keys that the default has."""
    for found in editions(path):
        config.validate(found)
        assert config.flatten(found).keys() == config.flatten(config.default()).keys()


def test_there_are_shipped_configs():
    assert "digits" in [path.stem for path in SHIPPED]
