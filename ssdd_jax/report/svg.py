"""Charts as SVG text: pure functions of numbers. Colours are classes of the page's style sheet, so that they follow it.

Every drawing that carries words is about as wide as a phone, so that these are read there at the size they have here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

STRIP = (112, 22)
INSET = 8
CHART = (360, 220)
MARGINS = (46, 22, 12, 36)  # left, right, top, bottom


class Scale(NamedTuple):
    """The range of values that a drawing shows, `low < high`."""

    low: float
    high: float

    def place(self, value: float, begin: float, end: float) -> float:
        """Where a value lies between two coordinates; one outside of the range lies at its end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return begin + share * (end - begin)


class Series(NamedTuple):
    """A line of a chart: its points, and the band that is drawn around it, if there is one."""

    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def element(name: str, *children: str, **attributes: object) -> str:
    """An element with attributes (`class_` for `class`, `_` for `-`) and children that are markup already."""
    words = (f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"' for key, value in attributes.items())
    return f"<{name}{''.join(words)}>{''.join(children)}</{name}>"


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def drawing(size: tuple[int, int], words: str, *children: str, stretched: bool = False) -> Markup:
    """An SVG image that a screen reader calls `words`; without words it is decoration."""
    said = {"role": "img", "aria_label": words} if words else {"aria_hidden": "true"}
    fit = {"preserveAspectRatio": "none"} if stretched else {}
    box = f"0 0 {size[0]} {size[1]}"
    return Markup(element("svg", *children, xmlns="http://www.w3.org/2000/svg", viewBox=box, **said, **fit))


def scale_of(near: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]] = ()) -> Scale:
    """A range that shows where the intervals `near` differ, and of the others those that are not far away.

    Args:
        near: `(low, high)` of each, at least one.
        others: Likewise; those that are left out are drawn as arrows at the edge.
    """
    low, high = min(pair[0] for pair in near), max(pair[1] for pair in near)
    margin = 0.6 * (high - low) or 0.05 * abs(high) or 1.0
    inside = [pair for pair in others if low - margin <= sum(pair) / 2 <= high + margin]
    low, high = min([low, *(pair[0] for pair in inside)]), max([high, *(pair[1] for pair in inside)])
    space = 0.06 * (high - low) or margin
    return Scale(low - space, high + space)


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers in a range: multiples of 1, 2, 2.5 or 5 times a power of ten, `most` at most."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = power * factor
        counts = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        if len(counts) <= most:
            break
    return [float(f"{n * step:.12g}") for n in counts]


def interval(mean: float, std: float, values: Sequence[float], scale: Scale, *, strong: bool, words: str) -> Markup:
    """A mean with its error bar, and the single values as ticks; an arrow where the mean is beyond the scale."""
    width, height = STRIP
    middle, kind = height / 2, "own" if strong else "other"
    at = [scale.place(value, INSET, width - INSET) for value in (mean - std, mean, mean + std)]
    grid = element("line", class_="grid", x1=0, x2=width, y1=height - 0.5, y2=height - 0.5)
    if not scale.low <= mean <= scale.high:
        tip, back = (1.0, 8.0) if mean < scale.low else (width - 1.0, width - 8.0)
        points = f"{_text(tip)},{_text(middle)} {_text(back)},{middle - 5} {_text(back)},{middle + 5}"
        return drawing(STRIP, words, grid, element("polygon", class_=f"mark {kind}", points=points))
    parts = [grid]
    for value in values:
        if scale.low <= value <= scale.high:
            x = scale.place(value, INSET, width - INSET)
            parts.append(element("line", class_=f"seed {kind}", x1=x, x2=x, y1=middle - 7, y2=middle + 7))
    if std > 0:
        parts.append(element("line", class_=f"bar {kind}", x1=at[0], x2=at[2], y1=middle, y2=middle))
        for x, value in ((at[0], mean - std), (at[2], mean + std)):
            if scale.low <= value <= scale.high:
                parts.append(element("line", class_=f"bar {kind}", x1=x, x2=x, y1=middle - 4, y2=middle + 4))
    parts.append(element("circle", class_=f"mark {kind}", cx=at[1], cy=middle, r=4))
    return drawing(STRIP, words, *parts)


def axis(scale: Scale) -> Markup:
    """The numbers under a column of intervals."""
    width, parts = STRIP[0], []
    for value in _apart(scale):
        x = scale.place(value, INSET, width - INSET)
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=0, y2=5))
        parts.append(_under(x, 17, number(value), width))
    return drawing((width, 20), "", *parts)


def _apart(scale: Scale) -> list[float]:
    """As many ticks as there is room for their numbers, the outermost two at least."""
    for most in (4, 3, 2):
        values = ticks(*scale, most)
        longest = 7.0 * max((len(number(value)) for value in values), default=0)
        if len(values) > 1 and longest < (values[1] - values[0]) / (scale.high - scale.low) * (STRIP[0] - 2 * INSET):
            return values
    fine = ticks(*scale, 12)
    return [fine[0], fine[-1]]


def _under(x: float, y: float, text: str, width: int) -> str:
    """A tick's number, centred, or pushed back into the drawing; a character is 7 wide at most."""
    half = min(3.5 * len(text), width / 2)
    return element("text", escape(text), x=min(max(x, half), width - half), y=y, text_anchor="middle")


def number(value: float) -> str:
    """A tick's number in few characters."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.10g}"


def chart(series: Mapping[str, Series], *, words: str, log: bool = False, level: float | None = None) -> Markup:
    """Lines over steps.

    Args:
        series: By name, at most four; each has a point at least.
        words: What a screen reader says.
        log: Whether the vertical axis is logarithmic; all values are positive then.
        level: A value to mark with a dashed line, if any.
    """
    xs = [x for one in series.values() for x in one.xs]
    every = [y for one in series.values() for part in (one.ys, one.low, one.high) for y in part or ()]
    every += [] if level is None else [level]
    height = Scale(math.log10(min(every)), math.log10(max(every))) if log else Scale(min(0.0, *every), max(every))
    pad = 0.04 * (height.high - height.low) or 0.5
    height = Scale(height.low - pad * (log or height.low < 0), height.high + pad)
    span = Scale(min(0.0, *xs), max(xs) if max(xs) > 0 else 1.0)
    left, right, top, bottom = MARGINS
    right, bottom = CHART[0] - right, CHART[1] - bottom

    def x_of(x: float) -> float:
        return span.place(x, left, right)

    def y_of(y: float) -> float:
        return height.place(math.log10(y) if log else y, bottom, top)

    parts = _frame(span, height, log=log)
    for i, one in enumerate(series.values()):
        points = [f"{_text(x_of(x))},{_text(y_of(y))}" for x, y in zip(one.xs, one.ys, strict=True)]
        if one.low is not None and one.high is not None:
            around = [*zip(one.xs, one.high, strict=True), *reversed([*zip(one.xs, one.low, strict=True)])]
            corners = " ".join(f"{_text(x_of(x))},{_text(y_of(y))}" for x, y in around)
            parts.append(element("polygon", class_=f"band c{i}", points=corners))
        if len(points) == 1:
            parts.append(element("circle", class_=f"dot c{i}", cx=x_of(one.xs[0]), cy=y_of(one.ys[0]), r=3))
        parts.append(element("polyline", class_=f"line c{i}", points=" ".join(points)))
    if level is not None:
        y = y_of(level)
        parts.append(element("line", class_="level", x1=left, x2=right, y1=y, y2=y))
    return drawing(CHART, words, *parts)


def _frame(span: Scale, height: Scale, *, log: bool) -> list[str]:
    """Grid lines and numbers of a chart; `height` is that of the logarithms where `log` is set."""
    left, right, top, bottom = MARGINS
    right, bottom = CHART[0] - right, CHART[1] - bottom
    parts = []
    for value, place in _heights(height, log=log):
        y = height.place(place, bottom, top)
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        parts.append(element("text", escape(number(value)), x=left - 6, y=y + 4, text_anchor="end"))
    for value in ticks(*span):
        x = span.place(value, left, right)
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=bottom, y2=bottom + 4))
        parts.append(_under(x, bottom + 17, number(value), CHART[0]))
    parts.append(element("line", class_="frame", x1=left, x2=right, y1=bottom, y2=bottom))
    return [*parts, element("text", "step", x=right, y=bottom + 32, text_anchor="end")]


def _heights(height: Scale, *, log: bool) -> list[tuple[float, float]]:
    """Values of the vertical axis, and where they are on its scale."""
    if not log:
        return [(value, value) for value in ticks(*height)]
    powers = range(math.floor(height.low), math.ceil(height.high) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        inside = [(round(v, 12), math.log10(v)) for v in found if height.low <= math.log10(v) <= height.high]
        if len(inside) >= 3:
            break
    if len(inside) < 2:  # less than a factor of two: as round numbers
        return [(value, math.log10(value)) for value in ticks(10**height.low, 10**height.high)]
    return inside[:: -(-len(inside) // 7)]


def stack(parts: Mapping[str, float], whole: float, *, words: str, colours: Mapping[str, int]) -> Markup:
    """A bar of parts, one after the other, in a frame as long as the whole.

    Args:
        parts: Sizes by name.
        whole: What the frame's length stands for, no less than their sum.
        words: What a screen reader says.
        colours: Which colour of the style sheet each part has, by name.
    """
    size, begin, found = (1000, 30), 0.0, []
    for name, part in parts.items():
        width = 1000.0 * part / whole
        title = element("title", escape(f"{name}: {part:,}"))
        found.append(element("rect", title, class_=f"part c{colours[name]}", x=begin, y=0, width=width, height=30))
        begin += width
    return drawing(size, words, *found, stretched=True)


def bar(value: float, most: float) -> Markup:
    """A plain bar, `value` of `most`; the number stands beside it."""
    width = 100.0 * value / most if most else 0.0
    return drawing((100, 10), "", element("rect", class_="spent", x=0, y=0, width=width, height=10), stretched=True)
