"""Files for other tools: the citation, the workflows and the hooks agree with the package."""

import re
import tomllib

import pytest
from tiny_runs import ROOT

import ssdd_jax

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra docs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_one_version():
    citation = read("CITATION.cff")
    assert citation["version"] == PROJECT["version"] == ssdd_jax.__version__
    assert citation["license"] == PROJECT["license"]


def test_the_citation_names_the_articles_of_the_readme():
    text = " ".join((ROOT / "README.md").read_text().split())
    articles = read("CITATION.cff")["references"]
    assert len(articles) == text.count(" title={")
    for article in articles:
        assert f"title={{{article['title']}}}" in text
        authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in article["authors"])
        assert f"author={{{authors}}}" in text and f"year={{{article['year']}}}" in text


def test_every_version_of_python_is_tested():
    named = {re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in PROJECT["classifiers"]}
    versions = sorted(match[1] for match in named if match)
    assert read(".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"] == versions
    matrix = read(".github/workflows/dependencies.yml")["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert {(one["resolution"], one["python"]) for one in matrix} == {
        ("lowest-direct", versions[0]),
        ("highest", versions[-1]),
    }


def test_workflows_run_what_the_documents_name():
    lines = [
        step.get("run", "")
        for file in (ROOT / ".github" / "workflows").glob("*.yml")
        for job in yaml.safe_load(file.read_text())["jobs"].values()
        for step in job["steps"]
    ]
    readme = (ROOT / "README.md").read_text()
    assert "python -m pip install . && python -m ssdd_jax.main" in lines
    assert "python -m pip install . && python -m ssdd_jax.main" in readme
    for line in lines:
        for path in re.findall(r"tests/[\w/]+\.py", line):
            assert (ROOT / path).is_file(), path


def test_hooks_name_files_that_there_are():
    hooks = read(".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "structure", "mypy"}
    for hook in hooks:
        for path in re.findall(r"tests/[\w/]+\.py", hook["entry"]):
            assert (ROOT / path).is_file(), path


def test_every_published_result_has_its_versions():
    folder = ROOT / "experiments" / "results"
    names = [folder / "constraints.txt", folder / "accelerator-h200.constraints.txt"]
    names += [one / "constraints.txt" for one in folder.iterdir() if one.is_dir()]
    lower, upper = next(
        re.fullmatch(r"jax>=([\d.]+),<([\d.]+)", line).groups()
        for line in PROJECT["dependencies"]
        if line.startswith("jax>")
    )
    for name in names:
        head, *pins = name.read_text().splitlines()
        versions = dict(pin.split("==") for pin in pins)
        assert re.match(r"# .*Python 3\.\d+", head) and versions["jax"] == versions["jaxlib"], name
        numbers = [tuple(map(int, text.split("."))) for text in (lower, versions["jax"], upper)]
        assert numbers[0] <= numbers[1] < numbers[2], name
