"""What a set stores, as a bar of its parts in a frame that is the budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from ssdd_jax.report import labels, svg

# A part's colour is the same on every page.
COLOURS = {name: i for i, name in enumerate(dict.fromkeys(labels.PARTS.values()))}


class StoredPart(NamedTuple):
    """A part of what is stored: its name, numbers, share of the budget, and colour of the style sheet."""

    name: str
    numbers: int
    share: str
    colour: int


class Storage(NamedTuple):
    """What a set stores: numbers, budget, bytes on the disk, parts, what is left, and the bar."""

    numbers: int
    budget: int
    bytes: int
    parts: list[StoredPart]
    left: int
    left_share: str
    bar: Markup


def of_results(results: Mapping[str, Any], *, whole: int = 0) -> Storage:
    """The storage of a `results.json`; `whole` is what the bar's length stands for, the budget if left out."""
    kept = results["storage"]
    numbers, budget = kept["numbers"], kept["budget"]
    sizes = labels.parts(kept["parts"])
    colours = {name: COLOURS.get(name, len(COLOURS)) for name in sizes}
    said = f"{numbers:,} of {budget:,} numbers: " + ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    return Storage(
        numbers,
        budget,
        kept["bytes"],
        [StoredPart(name, count, labels.percent(count, budget), colours[name]) for name, count in sizes.items()],
        budget - numbers,
        labels.percent(budget - numbers, budget),
        svg.stack(sizes, max(whole, budget, numbers), words=said, colours=colours),
    )
