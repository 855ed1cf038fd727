"""Reports in a real browser: nothing overflows, nothing is missing, nothing is loaded, no error is logged.

The runs are made up, with what is hard to lay out: long names, many parts, stages, images and rows.
"""

import pathlib
import shutil

import numpy as np
import pytest

from ssdd_jax import config as configuration
from ssdd_jax import report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at a page with")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
SECTIONS = {
    "run": ("run", "measures", "images", "bases", "moments", "curves", "storage", "stages", "again"),
    "bare": ("run", "measures", "images", "bases", "moments", "curves", "storage", "stages", "again"),
    "comparison": ("notes", "measures", "images", "storage", "stages", "different", "again"),
}
LONG = "folder:/a/rather/long/path/without/any/space/in/it/to/a/folder_of_photographs_that_someone_took_on_holiday"

# What is wider than the window, but for what scrolls in a box of its own or is there for screen readers only.
WIDER = """() => [...document.querySelectorAll("body *")].filter(one => {
  const box = one.getBoundingClientRect(), inside = one.closest(".scroll, .unseen");
  return (!inside || (inside === one && one.matches(".scroll"))) && box.width > 0
    && (box.right > document.documentElement.clientWidth + 0.5 || box.left < -0.5);
}).map(one => one.outerHTML.slice(0, 90))"""
# Text that is cut off, or runs out of its element.
CUT = """() => [...document.querySelectorAll("h1, h2, p, dd, dt, th, td, figcaption, li, pre, caption")].filter(one =>
  !one.closest(".unseen, details:not([open])") && one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 0
).map(one => one.outerHTML.slice(0, 90))"""
# SVG text beyond the drawing it belongs to.
OUTSIDE = """() => [...document.querySelectorAll("svg text")].filter(one => {
  const box = one.getBoundingClientRect(), whole = one.ownerSVGElement.getBoundingClientRect();
  return box.left < whole.left - 1 || box.right > whole.right + 1 || box.bottom > whole.bottom + 1;
}).map(one => one.textContent)"""
# The least contrast of any text with the background that it stands on.
CONTRAST = """() => {
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => channels(color).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = one => {
    for (; one; one = one.parentElement) {
      const found = channels(getComputedStyle(one).backgroundColor);
      if (found.length === 3 || found[3] > 0) return getComputedStyle(one).backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const own = one => one.tagName !== "title"
    && [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  return Math.min(...[...document.querySelectorAll("body *")].filter(own).map(one => {
    const style = getComputedStyle(one), svg = one.closest("svg");
    const pair = [light(svg ? style.fill : style.color), light(behind(svg || one))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  }));
}"""


def values(generator, low, spread):
    found = generator.normal(low, spread, 3)
    return {"mean": float(found.mean()), "std": float(found.std(ddof=1)), "seeds": 3, "values": found.tolist()}


def made_up(method, *, seed=0, bare=False):
    """A run that never was."""
    generator = np.random.default_rng(seed)
    entries = {"distilled": 61.0, "random_real": 60.0, "random_init": 22.0, "full_data": 63.0, "teacher": 90.0}
    parts = ("image_bases", "image_coefficients", "image_mean", "feature_bases", "feature_coefficients", "feature_mean")
    stored = {name: int(generator.integers(1, 15_000)) for name in (*parts, "networks.first", "networks.second")}
    stages = ("data", "teacher", "features", "experts", "samples", "distill", "approximate", "evaluate")
    config = configuration.flatten(configuration.default()) | {"data.name": LONG, "distill.steps": 30_000 + seed}
    results = {
        "storage": {
            **{"numbers": sum(stored.values()), "budget": 120_000, "bytes": 480_123, "N": 100, "images": 90},
            "parts": stored,
        },
        "seconds": {name: float(generator.gamma(1, 800)) for name in stages},
        **{"method": method, "samples": "random", "dataset": LONG, "seed": seed, "version": "0.1.0"},
        "machine": "NVIDIA H100 80GB HBM3, 128 cores, x86_64",
    }
    lines, snapshots, calls = [], {}, []
    if not bare:
        results |= {
            "linear": {name: values(generator, mean, 2.0) for name, mean in entries.items()},
            "few_shot": {name: values(generator, mean / 2, 1.0) for name, mean in entries.items()},
            "feature_r2": {name: values(generator, mean / 100, 0.002) for name, mean in entries.items()},
            "memory": {name: {"host": 3_210_000_000, "device": 81_500_000_000} for name in stages},
            "data": {"images": 50_000, "test_images": 10_000, "shape": [32, 32, 3], "classes": 10, "features": 512},
        }
        steps = range(1000, 31_000, 1000)
        lines = [{"stage": "teacher", "step": step, "loss": 1e5 / step} for step in steps]
        lines += [
            {"stage": "distill", "step": s, "loss": 3.0 / s, "mean_age": s % 977, "min_age": s % 300, "max_age": 990}
            for s in steps
        ]
        seen = {
            "images": generator.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
            "bases": generator.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8),
        }
        snapshots = {100: seen, 3000: seen, 30_000: seen}
        call = {"date": "2026-01-02T03:04:05+00:00", "ssdd_jax": "0.1.0", "jax": "0.10.2", "python": "3.11.9"}
        command = f"python -m ssdd_jax.main --config=configs/folder.py:{LONG} --workdir=runs/{'x' * 80}"
        calls = [call | {"command": command, "machine": results["machine"]}] * 2
    return report.Record(
        folder=pathlib.Path(f"runs/{method}-{seed}"),
        config=config,
        results=results,
        about={"teacher": "ResNet-18 of width 64, Barlow Twins, 1000 epochs"},
        lines=lines,
        calls=calls,
        images=generator.integers(0, 256, (90, 32, 32, 3), dtype=np.uint8),
        bases=None if bare else generator.integers(0, 256, (70, 16, 16, 3), dtype=np.uint8),
        pairs=360,
        snapshots=snapshots,
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run, one of which little is known, and ten runs side by side."""
    folder = tmp_path_factory.mktemp("pages")
    report.write(folder / "run.html", made_up("boost"))
    report.write(folder / "bare.html", made_up("subset", bare=True))
    names = [f"{'Boost-SSDD' * (seed % 3)} N = {seed}" for seed in range(10)]
    sides = [report.side_of(name, [made_up("boost", seed=seed)]) for seed, name in enumerate(names)]
    beside = {"random_init": {"linear": [20.0, 21.0]}, "teacher": {"linear": [90.0]}}
    notes = [f"Not measured: {LONG}"]
    report.compare(folder / "comparison.html", sides, beside=beside, command=f"python {LONG}", notes=notes)
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", SECTIONS)
def test_a_page_is_whole(name, width, scheme, pages, browser):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    tab, logged, asked = context.new_page(), [], []
    tab.on("console", lambda message: logged.append(message.text))
    tab.on("pageerror", lambda error: logged.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    address = (pages / f"{name}.html").as_uri()
    tab.goto(address)
    assert not logged
    assert {url for url in asked if not url.startswith("data:")} == {address}
    for one in tab.query_selector_all("details"):
        one.evaluate("one => one.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert tab.evaluate(WIDER) == [] and tab.evaluate(CUT) == [] and tab.evaluate(OUTSIDE) == []
    sections = tab.evaluate("[...document.querySelectorAll('section')].map(s => [s.id, s.offsetHeight])")
    assert [section for section, _ in sections] == list(SECTIONS[name])
    assert all(height > 40 for _, height in sections)
    images = tab.evaluate("[...document.images].map(i => [i.naturalWidth, i.clientWidth, i.alt])")
    assert len(images) >= 90 and all(natural > 0 and shown >= 24 and alt for natural, shown, alt in images)
    sizes = tab.evaluate("[...document.querySelectorAll('svg')].map(s => Math.min(s.clientWidth, s.clientHeight))")
    assert len(sizes) >= 9 and min(sizes) >= 8
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(background) < 40 if scheme == "dark" else min(background) > 240
    assert tab.evaluate(CONTRAST) >= 4.5
    context.close()


def test_the_drawings_follow_the_scheme(pages, browser):
    """A page that is open when the scheme changes changes with it."""
    tab = browser.new_page(color_scheme="light")
    tab.goto((pages / "run.html").as_uri())
    seen = []
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        seen.append(tab.evaluate("getComputedStyle(document.querySelector('polyline')).stroke"))
    assert seen[0] != seen[1]
    tab.close()
