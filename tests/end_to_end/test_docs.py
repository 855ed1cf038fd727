"""The documentation site: it builds without warnings, has a page per module, valid links, and examples that run."""

import functools
import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser

import numpy as np
import pytest
import tiny_runs
from helpers import bytes_and_features
from tiny_runs import ROOT

import ssdd_jax

pytestmark = pytest.mark.medium


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public_modules():
    """Names of the public modules, as the import system finds them."""
    found = ["ssdd_jax", *(one.name for one in pkgutil.walk_packages(ssdd_jax.__path__, "ssdd_jax."))]
    return [name for name in found if not any(part.startswith("_") for part in name.split("."))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", ROOT / "mkdocs.yml", "-d", folder]
    environment = {"PATH": "", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=tiny_runs.TIMEOUT)
    assert done.returncode == 0 and not done.stdout and not done.stderr, done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """Links, loaded files, anchors and text of a page."""

    def __init__(self, file):
        super().__init__()
        self.links, self.loaded, self.anchors, self.text = [], [], set(), []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors.add(given.get("id"))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        loaded = given.get("src") or (given.get("href") if tag == "link" else None)
        self.loaded.extend([loaded] if loaded else [])

    def handle_data(self, data):
        self.text.append(data)


@functools.cache
def read(file):
    return Page(file)


@pytest.mark.slow
def test_every_module_has_a_page(site):
    known = public_modules()
    assert len(known) > 80 and known.count("ssdd_jax.krr") == 1
    assert sorted(hooks().modules()) == sorted(known)
    start = read(site / "index.html")
    for name in known:
        page = site / "modules" / f"{name}.html"
        assert page.is_file(), name
        assert f"modules/{name}.html" in start.links, name  # the navigation lists it
        module = importlib.import_module(name)
        first = module.__doc__.split()[:4]  # and it says what the module says
        words = " ".join("".join(read(page).text).split())
        assert " ".join(first).replace("`", "") in words, name


@pytest.mark.slow
def test_a_page_shows_shapes_and_settings(site):
    words = " ".join("".join(read(site / "modules" / "ssdd_jax.krr.html").text).split())
    for expected in (
        "predict",
        "Synthetic features (S,F)",
        "ridge_scale",
        "float",
        "KRR-ST",
        "Predicted targets (B,D)",
    ):
        assert expected in words
    words = " ".join("".join(read(site / "modules" / "ssdd_jax.pool.html").text).split())
    assert "Age Z at which a model is replaced" in words  # the fields of a NamedTuple


@pytest.mark.slow
def test_links_lead_somewhere_and_nothing_is_fetched(site):
    checked = 0
    for file in site.rglob("*.html"):
        if file.name == "404.html":  # its links are absolute: it is shown for any address
            continue
        page = read(file)
        for link in page.loaded:
            assert not urllib.parse.urlparse(link).scheme.startswith("http"), (file.name, link)
        for link in (*page.links, *page.loaded):
            parts = urllib.parse.urlparse(link)
            if parts.scheme:
                continue
            target = (file.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else file
            assert target.exists(), (file.name, link)
            if parts.fragment and target.suffix == ".html":
                assert parts.fragment in read(target).anchors, (file.name, link)
            checked += 1
    assert checked > 1000


@pytest.mark.slow
def test_the_navigation_has_every_guide(site):
    start = read(site / "index.html")
    names = [file.stem for file in (ROOT / "docs" / "guides").glob("*.md")]
    assert len(names) > 10 and all(f"guides/{name}.html" in start.links for name in names)
    assert set(hooks().GUIDES) == set(names)


@pytest.mark.slow
def test_links_to_source_files_lead_to_pages_of_modules(site):
    page = read(site / "guides" / "architecture.html")
    assert "../modules/ssdd_jax.krr.html" in page.links
    assert not [link for link in page.links if link.endswith(".py")]


# Elements beyond the right edge, but for what scrolls in a box of its own or is not open.
WIDER = """() => [...document.querySelectorAll("body *")].filter(one => {
  const box = one.getBoundingClientRect();
  return !one.closest(".md-typeset__scrollwrap, .highlight, pre, .md-sidebar, .md-search, .md-overlay")
    && box.width > 0 && box.right > document.documentElement.clientWidth + 0.5;
}).map(one => one.outerHTML.slice(0, 100))"""


@pytest.mark.slow
def test_pages_fit_on_a_phone(site):
    """The guides, and the modules with the longest names, at 390 pixels: nothing is cut off, no error is logged."""
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"))
    browser = next(filter(None, browsers), None) or pytest.skip("there is no Chromium to look at a page with")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    modules = sorted((site / "modules").glob("*.html"), key=lambda file: len(file.name))[-15:]
    errors, wide = [], {}
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
        page.on("pageerror", lambda error: errors.append(str(error)))
        for file in [site / "index.html", *sorted((site / "guides").glob("*.html")), *modules]:
            page.goto(file.as_uri())
            wide[file.name] = page.evaluate(WIDER)
        chromium.close()
    assert len(wide) > 25 and not errors
    assert not {name: elements for name, elements in wide.items() if elements}


def test_groups_name_modules_that_there_are():
    known = {name.split(".")[1] for name in public_modules() if "." in name}
    named = [name for names in hooks().GROUPS.values() for name in names.split()]
    assert not set(named) - known and len(named) == len(set(named))


@pytest.mark.slow
def test_the_examples_of_the_first_page_run(tmp_path, monkeypatch):
    """Each has at most three lines; the settings are replaced by the smallest possible."""
    monkeypatch.chdir(tmp_path)
    images, features = bytes_and_features(60)
    distill, train, evaluate = ssdd_jax.distill, ssdd_jax.train, ssdd_jax.evaluate
    options = {"models": ["convnet_4_8_bn"], "seeds": 1, "steps": 1, "full_steps": 1, "weight_decays": 1e-3}
    monkeypatch.setattr(ssdd_jax, "distill", functools.partial(distill, N=6, method="random"))
    monkeypatch.setattr(ssdd_jax, "train", lambda distilled, model: train(distilled, "resnet10_2", epochs=1))
    monkeypatch.setattr(ssdd_jax, "evaluate", functools.partial(evaluate, **options))
    labels = np.arange(60) % 3
    names = {"images": images, "features": features, "train_images": images, "train_labels": labels}
    names |= {"test_images": images[:9], "test_labels": labels[:9]}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.S)
    assert len(blocks) == 4
    for block in blocks:
        assert len([line for line in block.splitlines() if not line.startswith("import")]) <= 3
        exec(block, names)
    assert names["inputs"].shape[1:] == (8, 8, 3) and names["targets"].shape == (len(names["inputs"]), 6)
    assert names["embeddings"].shape[0] == 9 and np.isfinite(names["embeddings"]).all()
    entries = {row["entry"] for row in names["result"]["rows"]}
    assert {"distilled", "random_real", "random_init", "full_data", "chance"} <= entries
