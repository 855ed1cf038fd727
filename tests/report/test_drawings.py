"""Tests of the charts, storage bars and pictures of reports."""

import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from pages import SPACE, of_class, parse
from PIL import Image

from ssdd_jax.report import (
    labels,
    storage,
    svg,
)
from ssdd_jax.report.pictures import picture

pytestmark = pytest.mark.medium


def test_ticks_are_round_and_inside():
    assert svg.ticks(0, 500) == [0, 200, 400]
    assert svg.ticks(0.871, 1.0) == [0.9, 0.95, 1.0]
    for low, high in ((0.0, 1.0), (93.2, 98.1), (-3e-5, 2e-5), (7.0, 30_000.0)):
        found = svg.ticks(low, high)
        assert 2 <= len(found) <= 4 and all(low <= value <= high for value in found)
        assert np.allclose(np.diff(found), found[1] - found[0])


@pytest.mark.parametrize("scale", [(0.86, 0.945), (91, 96.5), (0.6051, 0.6142), (22, 98), (0.9398, 0.9402), (-1, 1)])
def test_numbers_of_an_axis_do_not_touch(scale):
    texts = parse(svg.axis(svg.Scale(*scale))).findall(f"{SPACE}text")
    assert len(texts) >= 2 and all(scale[0] <= float(text.text) <= scale[1] for text in texts)
    for left, right in zip(texts, texts[1:], strict=False):
        between = float(right.get("x")) - float(left.get("x"))
        assert between > 3 * (len(left.text) + len(right.text))


def test_error_bars_are_where_they_belong():
    scale = svg.Scale(90.0, 100.0)
    root = parse(svg.interval(95.0, 1.0, [94.0, 95.0, 96.0], scale, strong=True, words="mine"))
    width = svg.STRIP[0] - 2 * svg.INSET

    def place(value):
        return pytest.approx(svg.INSET + (value - 90) / 10 * width, abs=0.01)

    (mark,) = of_class(root, "mark")
    assert float(mark.get("cx")) == place(95.0)
    line, *caps = of_class(root, "bar")
    assert (float(line.get("x1")), float(line.get("x2"))) == (place(94.0), place(96.0))
    assert [float(cap.get("x1")) for cap in caps] == [place(94.0), place(96.0)]
    assert [float(seed.get("x1")) for seed in of_class(root, "seed")] == [place(94.0), place(95.0), place(96.0)]
    assert root.get("aria-label") == "mine"


def test_what_is_beyond_the_axis_is_an_arrow():
    scale = svg.scale_of([(94, 96), (95, 98)], [(20, 25), (99, 99)])
    assert scale.low > 25 and scale.low < 94 and scale.high > 99
    root = parse(svg.interval(22.0, 5.0, [20.0], scale, strong=False, words=""))
    (arrow,) = of_class(root, "mark")
    assert arrow.tag == f"{SPACE}polygon" and arrow.get("points").startswith("1,") and not of_class(root, "bar")


def test_equal_values_have_a_scale():
    scale = svg.scale_of([(0.0, 0.0), (0.0, 0.0)])
    assert scale.low < 0 < scale.high
    parse(svg.interval(0.0, 0.0, [], scale, strong=True, words=""))


@pytest.mark.parametrize("log", [False, True])
def test_a_chart_follows_its_numbers(log):
    series = svg.Series([10, 20, 40], [1.0, 10.0, 100.0], [0.5, 5.0, 50.0], [2.0, 20.0, 200.0])
    root = parse(svg.chart({"loss": series}, words="<loss>", log=log, level=150.0))
    (line,), (band,) = of_class(root, "line"), of_class(root, "band")
    points = np.array([point.split(",") for point in line.get("points").split()], float)
    assert np.isclose((points[2, 0] - points[1, 0]) / (points[1, 0] - points[0, 0]), 2, rtol=0.01)
    rises = -np.diff(points[:, 1])
    assert np.isclose(rises[1] / rises[0], 1 if log else 10, rtol=0.02)
    assert len(band.get("points").split()) == 6
    (level,) = of_class(root, "level")
    assert points[2, 1] > float(level.get("y1")) > 0


@pytest.mark.parametrize("ys", [[0.5], [0.0, 0.0], [2.0, 2.0], [-1.0, 1.0]])
def test_a_chart_of_little(ys):
    root = parse(svg.chart({"loss": svg.Series(range(len(ys)), ys)}, words="", log=min(ys) > 0))
    assert "nan" not in ElementTree.tostring(root).decode() and of_class(root, "line")


def test_the_storage_bar_adds_up():
    parts = {"image_bases": 30, "networks.one": 10, "networks.two": 15, "image_mean": 5}
    kept = {"numbers": 60, "budget": 80, "bytes": 300, "parts": parts}
    found = storage.of_results({"storage": kept})
    rects = parse(found.bar).findall(f"{SPACE}rect")
    widths = [float(rect.get("width")) for rect in rects]
    assert widths == [375.0, 62.5, 312.5] and sum(widths) == 1000 * 60 / 80
    assert [float(rect.get("x")) for rect in rects] == [0.0, 375.0, 437.5]
    assert [(part.name, part.size) for part in found.parts] == [
        ("image bases", 30),
        ("image mean", 5),
        ("approximation networks", 25),
    ]
    assert found.left == 20 and found.left_share == "25.0 %"
    # Results of versions before budgets in bytes name no unit; those of later ones do.
    assert storage.used(kept) == (60, "numbers") == (found.used, found.unit)
    assert storage.used(kept | {"used": 290, "unit": "bytes"}) == (290, "bytes")
    assert len({part.colour for part in found.parts}) == 3


def test_pictures_hold_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    found = picture(pixels, "one")
    content = base64.b64decode(found.source.removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
    assert (found.width, found.height) == (7, 5)


def test_units():
    assert [labels.seconds(value) for value in (0.04, 99.0, 240, 3000, 90_000)] == [
        *("0.0 s", "99.0 s", "4.0 min", "50 min", "25.0 h")
    ]
    assert [labels.size(value) for value in (12, 3100, 2.5e9)] == ["12 bytes", "3.1 kB", "2.5 GB"]
    assert [labels.size(value) for value in (999.4e6, 999.7e6, 1.2e13)] == ["999 MB", "1 GB", "12,000 GB"]
