"""What the README says exists."""

import importlib
import re

import pytest
from tiny_runs import ROOT

from ssdd_jax import config

README = (ROOT / "README.md").read_text()


def test_starts_with_two_commands():
    commands = re.findall(r"^python -m pip install .*$", README, re.MULTILINE)
    assert [command.split(" && ")[1] for command in commands] == [
        "python -m ssdd_jax.main",
        "python -m pytest -n 2 --dist loadfile",
    ]


def test_keys_exist():
    known = config.flatten(config.default())
    named = set(re.findall(r"--config\.([\w.]+)=", README)) | set(
        re.findall(r"`((?:data|teacher|storage)\.\w+)`", README)
    )
    assert named and named <= set(known)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|experiments|tests)/[\w/.-]+\.\w+", README))))
def test_files_exist(path):
    assert (ROOT / path).exists()


def test_modules_exist():
    table = README[README.index("| module |") : README.index("All of it is pure")]
    names = {
        name
        for line in table.splitlines()[2:]
        if line.startswith("|")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert len(names) > 10
    for name in names:
        importlib.import_module(f"ssdd_jax.{name}")


def test_every_method_is_in_the_table():
    table = README[README.index("| edition | method |") : README.index("python -m experiments.compare")]
    assert set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    ) == set(config.EDITIONS)


def test_the_page_on_adding_a_method_shows_the_code_as_it_is():
    page = (ROOT / "experiments" / "docs" / "adding_a_method.md").read_text()
    module, registry, test = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert module.strip() in (ROOT / "ssdd_jax" / "methods" / "subset.py").read_text()
    assert '"subset": subset.make' in registry and '"random": {"method": "subset"}' in registry
    assert config.EDITIONS["random"] == {"method": "subset"}
    assert test.strip() in (ROOT / "tests" / "test_methods.py").read_text()
