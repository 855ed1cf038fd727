"""The versions of the libraries that are written beside a result."""

from importlib import metadata

import pytest

from ssdd_jax.runtime import constraints


def test_every_library_with_its_version(tmp_path):
    constraints.write(tmp_path)
    head, *pins = (tmp_path / "constraints.txt").read_text().splitlines()
    assert head.startswith("# ssdd_jax ") and "Python 3." in head
    versions = dict(pin.split("==") for pin in pins)
    assert list(versions) == sorted(versions)
    # Those of pyproject.toml, by their normalised names, and what these need themselves.
    assert {"jax", "jaxlib", "ml-collections", "pillow", "tensorflow-datasets", "absl-py"} <= set(versions)
    assert "pytest" not in versions and "torch" not in versions
    for name in ("jax", "numpy", "ml-collections"):
        assert versions[name] == metadata.version(name)


def test_a_stray_pyproject_beside_the_package_is_not_read(tmp_path, monkeypatch):
    module = tmp_path / "site-packages" / "ssdd_jax" / "runtime" / "constraints.py"
    monkeypatch.setattr(constraints, "__file__", str(module))
    monkeypatch.setattr(constraints.metadata, "requires", lambda name: ["jax>=0.10"])
    module.parent.mkdir(parents=True)
    for text in ('[project]\nname = "other"\ndependencies = ["left-pad"]\n', "[tool.ruff]\n"):
        (tmp_path / "site-packages" / "pyproject.toml").write_text(text)
        assert constraints._requirements() == ["jax>=0.10"]


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("jax>=0.10,<0.13", "jax"),
        ("ml_collections (>=1)", "ml-collections"),
        ('Typing.Extensions>=4; python_version < "3.14"', "typing-extensions"),
        ("jax[cuda13]==0.10", "jax"),
    ],
)
def test_names_are_normalised(requirement, name):
    assert constraints._name(requirement) == name
