"""The storage of a distilled set as a stacked bar of its parts, relative to the budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from ssdd_jax.report import labels, svg

# Fixed by name, so that a part has the same colour on every page.
COLOURS = {name: i for i, name in enumerate(dict.fromkeys(labels.PARTS.values()))}


class StoredPart(NamedTuple):
    """A stored part: its name, numbers, share of the budget, and index of its colour in the style sheet."""

    name: str
    numbers: int
    share: str
    colour: int


class Storage(NamedTuple):
    """The storage of a distilled set.

    Attributes:
        numbers: Numbers stored.
        budget: Numbers that may be stored.
        bytes: Size on disk.
        parts: The stored parts.
        left: Unused numbers of the budget.
        left_share: Unused share of the budget, formatted.
        bar: Stacked bar of the parts.
    """

    numbers: int
    budget: int
    bytes: int
    parts: list[StoredPart]
    left: int
    left_share: str
    bar: Markup


def of_results(results: Mapping[str, Any], *, whole: int = 0) -> Storage:
    """Read the storage from `results.json` and draw its bar.

    Args:
        results: Content of `results.json`.
        whole: Numbers that the full width of the bar stands for; 0: the budget.
    """
    stored = results["storage"]
    numbers, budget = stored["numbers"], stored["budget"]
    sizes = labels.parts(stored["parts"])
    # Parts without a fixed colour share one further colour.
    colours = {name: COLOURS.get(name, len(COLOURS)) for name in sizes}
    words = f"{numbers:,} of {budget:,} numbers: " + ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    return Storage(
        numbers,
        budget,
        stored["bytes"],
        [StoredPart(name, count, labels.percent(count, budget), colours[name]) for name, count in sizes.items()],
        budget - numbers,
        labels.percent(budget - numbers, budget),
        svg.stack(sizes, max(whole, budget, numbers), words=words, colours=colours),
    )
