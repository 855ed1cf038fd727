"""The documents name commands, keys, files and modules that exist."""

import re

import pytest
from tiny_runs import ROOT

from ssdd_jax import config, methods

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
DOCUMENTS = {
    file.relative_to(ROOT).as_posix(): file.read_text()
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "index.md", *GUIDES)
}
README = DOCUMENTS["README.md"]
ARCHITECTURE = DOCUMENTS["docs/guides/architecture.md"]


def table(text, header):
    """The rows of the table that begins with a header, as lists of cells."""
    lines = text[text.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_starts_with_two_commands():
    commands = re.findall(r"^python -m pip install .*$", README, re.MULTILINE)
    assert [command.split(" && ")[1] for command in commands] == [
        "python -m ssdd_jax.main",
        "python -m pytest -n 2 --dist loadfile",
    ]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_keys_exist():
    known = set(config.flatten(config.default()))
    groups = "|".join({key.split(".")[0] for key in known if "." in key})
    for name, text in DOCUMENTS.items():
        keys = set(re.findall(r"--config\.([\w.]+)=", text))
        keys |= set(re.findall(rf"`(?:config\.)?((?:{groups})\.\w+)`", text))
        keys = {key for key in keys if not key.endswith(SUFFIXES)}
        assert keys <= known | {"KEY"}, name  # which stands for any
    assert "--config.data.data_dir=" in README


# Names of files stand in backquotes as config keys do.
SUFFIXES = (".py", ".json", ".safetensors")


def links():
    for name, text in DOCUMENTS.items():
        for target in re.findall(r"\]\(([^)#\s]+)\)", text):
            if "://" not in target:
                yield pytest.param((ROOT / name).parent / target, id=f"{name}: {target}")


@pytest.mark.parametrize("target", list(links()))
def test_links_between_documents_lead_somewhere(target):
    assert target.resolve().is_relative_to(ROOT.resolve()) and target.exists()


def paths():
    pattern = r"(?<![\w/.])(?:configs|experiments|tests|ssdd_jax|docs)/[\w/.-]+\.(?:py|md|png|ipynb)"
    return sorted({path for text in DOCUMENTS.values() for path in re.findall(pattern, text)})


@pytest.mark.parametrize("path", paths())
def test_files_exist(path):
    assert (ROOT / path).exists()


def test_the_map_of_the_code_names_what_is_there():
    rows = [row for row in table(ARCHITECTURE, "| topic | file | name |") if row[1]]
    assert len(rows) > 40
    for topic, files, names in rows:
        source = "\n".join((ROOT / "docs" / "guides" / file).read_text() for file in re.findall(r"\]\((.*?)\)", files))
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^((async )?def|class) {name}\b|^{name}\b", source, re.MULTILINE), (topic, name)


def test_the_map_of_the_code_has_every_folder():
    listed = set(re.findall(r"`(\w+)/`", ARCHITECTURE[ARCHITECTURE.index("## Folders") :]))
    assert {file.parent.name for file in (ROOT / "ssdd_jax").glob("*/__init__.py")} <= listed


@pytest.mark.parametrize("name", ["README.md", "docs/guides/methods.md"])
def test_every_method_is_in_the_table(name):
    rows = table(DOCUMENTS[name], "| edition | method |")
    assert methods.METHODS and set(re.findall(r"`(\w+)`", "".join(row[0] for row in rows))) == set(config.EDITIONS)


def test_the_guide_on_adding_a_method_shows_the_code_as_it_is():
    page = DOCUMENTS["docs/guides/adding_a_method.md"]
    module, definition, registry, test = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    subset = (ROOT / "ssdd_jax" / "methods" / "subset.py").read_text()
    assert module.strip() in subset and definition.strip() in subset
    assert registry.split("#")[0].strip() in (ROOT / "ssdd_jax" / "methods" / "__init__.py").read_text()
    assert test.strip() in (ROOT / "tests" / "methods" / "test_methods.py").read_text()
