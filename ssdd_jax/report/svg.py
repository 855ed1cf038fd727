"""Charts as SVG text: pure functions of values. Colours are CSS classes, so that they follow the page's colour scheme.

Drawings with text are about as wide as a phone's screen, so that the text is not scaled down there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

STRIP = (112, 22)  # width and height of an interval
INSET = 8  # space at both ends of an interval, for its marks
CHART = (360, 220)  # width and height of a chart
MARGINS = (46, 22, 12, 36)  # of a chart: left, right, top, bottom


class Scale(NamedTuple):
    """The range of values that a drawing shows, `low < high`."""

    low: float
    high: float

    def place(self, value: float, begin: float, end: float) -> float:
        """Map a value linearly to a coordinate between `begin` and `end`; values outside of the range are clipped."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return begin + share * (end - begin)


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
        xs: Steps.
        ys: Values.
        low: Lower edge of a band around the line, if any.
        high: Upper edge of the band.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def element(name: str, *children: str, **attributes: object) -> str:
    """Create an element as text.

    Args:
        name: Name of the element.
        *children: Content, which must be markup already.
        **attributes: Values are escaped. In names, a trailing `_` is removed (`class_`) and `_` becomes `-`.
    """
    words = (f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"' for key, value in attributes.items())
    return f"<{name}{''.join(words)}>{''.join(children)}</{name}>"


def _text(value: object) -> str:
    # Two decimals are a hundredth of a pixel, and keep the file small.
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def drawing(size: tuple[int, int], words: str, *children: str, stretched: bool = False) -> Markup:
    """Create an SVG image.

    Args:
        size: Width and height of the coordinate system.
        words: Text for screen readers; they ignore the image if it is empty.
        *children: Elements of the image.
        stretched: If True, the image fills its box and does not keep its aspect ratio.
    """
    label = {"role": "img", "aria_label": words} if words else {"aria_hidden": "true"}
    fit = {"preserveAspectRatio": "none"} if stretched else {}
    box = f"0 0 {size[0]} {size[1]}"
    return Markup(element("svg", *children, xmlns="http://www.w3.org/2000/svg", viewBox=box, **label, **fit))


def scale_of(near: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]] = ()) -> Scale:
    """Choose a range that contains all intervals `near`, and those of `others` that are not far away.

    Args:
        near: Intervals `(low, high)`, at least one.
        others: Intervals `(low, high)`; those outside of the range are drawn as arrows at its edge.
    """
    # Equal values span no range, and need a margin that does not depend on it.
    low, high = min(pair[0] for pair in near), max(pair[1] for pair in near)
    margin = 0.6 * (high - low) or 0.05 * abs(high) or 1.0
    inside = [pair for pair in others if low - margin <= sum(pair) / 2 <= high + margin]
    low, high = min([low, *(pair[0] for pair in inside)]), max([high, *(pair[1] for pair in inside)])
    space = 0.06 * (high - low) or margin
    return Scale(low - space, high + space)


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Choose tick values in a range: at most `most` multiples of 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = power * factor
        counts = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        if len(counts) <= most:
            break
    return [float(f"{n * step:.12g}") for n in counts]  # 3 * 0.1 is not 0.3


def interval(mean: float, std: float, values: Sequence[float], scale: Scale, *, strong: bool, words: str) -> Markup:
    """Draw a mean with its error bar and the single values as ticks, or an arrow if the mean is outside of the scale.

    Args:
        mean: Mean of the values.
        std: Standard deviation, half the length of the error bar.
        values: Single values.
        scale: Range of the drawing.
        strong: Whether to emphasise the interval.
        words: Text for screen readers.
    """
    width, height = STRIP
    middle, kind = height / 2, "own" if strong else "other"
    xs = [scale.place(value, INSET, width - INSET) for value in (mean - std, mean, mean + std)]
    grid = element("line", class_="grid", x1=0, x2=width, y1=height - 0.5, y2=height - 0.5)
    if not scale.low <= mean <= scale.high:
        tip, back = (1.0, 8.0) if mean < scale.low else (width - 1.0, width - 8.0)
        points = f"{_text(tip)},{_text(middle)} {_text(back)},{middle - 5} {_text(back)},{middle + 5}"
        return drawing(STRIP, words, grid, element("polygon", class_=f"mark {kind}", points=points))
    # Ticks and caps outside of the scale are left out: clipped to its edge they would show another value.
    parts = [grid]
    for value in values:
        if scale.low <= value <= scale.high:
            x = scale.place(value, INSET, width - INSET)
            parts.append(element("line", class_=f"seed {kind}", x1=x, x2=x, y1=middle - 7, y2=middle + 7))
    if std > 0:
        parts.append(element("line", class_=f"bar {kind}", x1=xs[0], x2=xs[2], y1=middle, y2=middle))
        for x, value in ((xs[0], mean - std), (xs[2], mean + std)):
            if scale.low <= value <= scale.high:
                parts.append(element("line", class_=f"bar {kind}", x1=x, x2=x, y1=middle - 4, y2=middle + 4))
    parts.append(element("circle", class_=f"mark {kind}", cx=xs[1], cy=middle, r=4))
    return drawing(STRIP, words, *parts)


def axis(scale: Scale) -> Markup:
    """Draw the axis under a column of intervals."""
    width, parts = STRIP[0], []
    for value in _spaced_ticks(scale):
        x = scale.place(value, INSET, width - INSET)
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=0, y2=5))
        parts.append(_tick_label(x, 17, number(value), width))
    return drawing((width, 20), "", *parts)


def _spaced_ticks(scale: Scale) -> list[float]:
    """Choose the largest number of ticks whose labels do not overlap, but at least the outermost two."""
    for most in (4, 3, 2):
        values = ticks(*scale, most)
        longest = 7.0 * max((len(number(value)) for value in values), default=0)
        if len(values) > 1 and longest < (values[1] - values[0]) / (scale.high - scale.low) * (STRIP[0] - 2 * INSET):
            return values
    fine = ticks(*scale, 12)
    return [fine[0], fine[-1]]


def _tick_label(x: float, y: float, text: str, width: int) -> str:
    """Create the label of a tick, centred, or shifted into the drawing; a character is at most 7 wide."""
    half = min(3.5 * len(text), width / 2)
    return element("text", escape(text), x=min(max(x, half), width - half), y=y, text_anchor="middle")


def number(value: float) -> str:
    """Format the value of a tick in few characters."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.10g}"


def chart(series: Mapping[str, Series], *, words: str, log: bool = False, level: float | None = None) -> Markup:
    """Draw lines over steps.

    Args:
        series: Lines by name, at most four, each with at least one point.
        words: Text for screen readers.
        log: Whether the vertical axis is logarithmic; all values must be positive then.
        level: A value to mark with a dashed line, if any.
    """
    xs = [x for item in series.values() for x in item.xs]
    ys = [y for item in series.values() for part in (item.ys, item.low, item.high) for y in part or ()]
    ys += [] if level is None else [level]
    # A linear axis includes 0, so that heights are proportional to values.
    height = Scale(math.log10(min(ys)), math.log10(max(ys))) if log else Scale(min(0.0, *ys), max(ys))
    pad = 0.04 * (height.high - height.low) or 0.5
    height = Scale(height.low - pad * (log or height.low < 0), height.high + pad)
    span = Scale(min(0.0, *xs), max(xs) if max(xs) > 0 else 1.0)
    left, right, top, bottom = MARGINS
    right, bottom = CHART[0] - right, CHART[1] - bottom

    def x_of(x: float) -> float:
        return span.place(x, left, right)

    def y_of(y: float) -> float:
        return height.place(math.log10(y) if log else y, bottom, top)

    # SVG paints in order: the grid first, and a band under its line.
    parts = _frame(span, height, log=log)
    for i, item in enumerate(series.values()):
        points = [f"{_text(x_of(x))},{_text(y_of(y))}" for x, y in zip(item.xs, item.ys, strict=True)]
        if item.low is not None and item.high is not None:
            outline = [*zip(item.xs, item.high, strict=True), *reversed([*zip(item.xs, item.low, strict=True)])]
            corners = " ".join(f"{_text(x_of(x))},{_text(y_of(y))}" for x, y in outline)
            parts.append(element("polygon", class_=f"band c{i}", points=corners))
        if len(points) == 1:  # a polyline of one point is invisible
            parts.append(element("circle", class_=f"dot c{i}", cx=x_of(item.xs[0]), cy=y_of(item.ys[0]), r=3))
        parts.append(element("polyline", class_=f"line c{i}", points=" ".join(points)))
    if level is not None:
        y = y_of(level)
        parts.append(element("line", class_="level", x1=left, x2=right, y1=y, y2=y))
    return drawing(CHART, words, *parts)


def _frame(span: Scale, height: Scale, *, log: bool) -> list[str]:
    """Grid lines and tick labels of a chart; `height` is the range of the logarithms if `log` is set."""
    left, right, top, bottom = MARGINS
    right, bottom = CHART[0] - right, CHART[1] - bottom
    parts = []
    for value, position in _vertical_ticks(height, log=log):
        y = height.place(position, bottom, top)
        parts.append(element("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        parts.append(element("text", escape(number(value)), x=left - 6, y=y + 4, text_anchor="end"))
    for value in ticks(*span):
        x = span.place(value, left, right)
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=bottom, y2=bottom + 4))
        parts.append(_tick_label(x, bottom + 17, number(value), CHART[0]))
    parts.append(element("line", class_="frame", x1=left, x2=right, y1=bottom, y2=bottom))
    return [*parts, element("text", "step", x=right, y=bottom + 32, text_anchor="end")]


def _vertical_ticks(height: Scale, *, log: bool) -> list[tuple[float, float]]:
    """Values of the vertical axis and their positions on its scale."""
    if not log:
        return [(value, value) for value in ticks(*height)]
    # Powers of ten if the range holds enough of them, else with values in between.
    powers = range(math.floor(height.low), math.ceil(height.high) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        candidates = [factor * 10.0**power for power in powers for factor in factors]
        inside = [(round(v, 12), math.log10(v)) for v in candidates if height.low <= math.log10(v) <= height.high]
        if len(inside) >= 3:
            break
    if len(inside) < 2:  # a range of less than a factor of about two: ticks as on a linear axis
        return [(value, math.log10(value)) for value in ticks(10**height.low, 10**height.high)]
    return inside[:: -(-len(inside) // 7)]


def stack(parts: Mapping[str, float], whole: float, *, words: str, colours: Mapping[str, int]) -> Markup:
    """Draw a stacked bar in a frame.

    Args:
        parts: Sizes by name.
        whole: Size that the width of the frame stands for, at least the sum of the parts.
        words: Text for screen readers.
        colours: Index of the colour of each part in the style sheet, by name.
    """
    size, begin, rects = (1000, 30), 0.0, []
    for name, part in parts.items():
        width = 1000.0 * part / whole
        title = element("title", escape(f"{name}: {part:,}"))
        rects.append(element("rect", title, class_=f"part c{colours[name]}", x=begin, y=0, width=width, height=30))
        begin += width
    return drawing(size, words, *rects, stretched=True)


def bar(value: float, most: float) -> Markup:
    """Draw a plain bar whose full width stands for `most`; screen readers ignore it, since the page has the value."""
    width = 100.0 * value / most if most else 0.0
    return drawing((100, 10), "", element("rect", class_="spent", x=0, y=0, width=width, height=10), stretched=True)
