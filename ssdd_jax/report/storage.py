"""The storage of a distilled set as a stacked bar of its parts, relative to the budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from ssdd_jax.report import labels, svg

# Fixed by name, so that a part has the same colour on every page.
COLOURS = {name: i for i, name in enumerate(dict.fromkeys(labels.PARTS.values()))}


class StoredPart(NamedTuple):
    """A stored part: its name, size in numbers or bytes, share of the budget, and index of its colour."""

    name: str
    size: int
    share: str
    colour: int


class Storage(NamedTuple):
    """The storage of a distilled set.

    Attributes:
        used: Numbers or bytes stored.
        budget: Numbers or bytes that may be stored.
        unit: `numbers` or `bytes`.
        bytes: Size on disk, the description included.
        parts: The stored parts.
        left: Unused rest of the budget.
        left_share: Unused share of the budget, formatted.
        bar: Stacked bar of the parts.
    """

    used: int
    budget: int
    unit: str
    bytes: int
    parts: list[StoredPart]
    left: int
    left_share: str
    bar: Markup


def used(stored: Mapping[str, Any]) -> tuple[int, str]:
    """Return what a set takes of its budget, and the unit, from `storage` in `results.json`.

    Versions before budgets in bytes counted numbers only, and named no unit.
    """
    return stored.get("used", stored["numbers"]), stored.get("unit", "numbers")


def of_results(results: Mapping[str, Any], *, whole: int = 0) -> Storage:
    """Read the storage from `results.json` and draw its bar.

    Args:
        results: Content of `results.json`.
        whole: Numbers or bytes that the full width of the bar stands for; 0: the budget.
    """
    stored = results["storage"]
    budget, (taken, unit) = stored["budget"], used(stored)
    sizes = labels.parts(stored["parts"])
    # Parts without a fixed colour share one further colour.
    colours = {name: COLOURS.get(name, len(COLOURS)) for name in sizes}
    words = f"{taken:,} of {budget:,} {unit}: " + ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    return Storage(
        taken,
        budget,
        unit,
        stored["bytes"],
        [StoredPart(name, count, labels.percent(count, budget), colours[name]) for name, count in sizes.items()],
        budget - taken,
        labels.percent(budget - taken, budget),
        svg.stack(sizes, max(whole, budget, taken), words=words, colours=colours),
    )
