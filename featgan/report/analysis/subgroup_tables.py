"""Tables by region: averages hide failure on rare classes, octants and the far ends of a component."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from featgan.report.run_files import Region, is_number, mapping

TITLES = {
    "class": "By class asked for",
    "octant": "By octant of valence and arousal asked for",
    "component": "By range of a component, between its training quantiles",
}


REAL = ("nearest_real", "ceiling_real")
"""Controls that show real images: the nearest to what was asked, else those with the label asked for."""


@dataclass(frozen=True)
class Entry:
    """A measure of a region, with its interval; `share` in [0, 1] draws a bar where all of its column lie there."""

    value: float | None
    low: float | None = None
    high: float | None = None
    share: float | None = None
    real: float | None = None  # what real images score


@dataclass(frozen=True)
class RegionTable:
    """Regions of one kind as rows, their measures as columns."""

    title: str
    measures: list[str]
    rows: list[tuple[str, object, list[Entry]]]  # region, pairs, one entry a measure
    missing: tuple[str, ...] = ()  # classes that no pair asks for


def region_tables(regions: Sequence[Region], classes: Sequence[str] = ()) -> list[RegionTable]:
    """One for each kind of region, in the order of their first appearance; that of classes names the missing ones."""
    tables = []
    for kind in dict.fromkeys(kind_of(region) for region in regions):
        members = [region for region in regions if kind_of(region) == kind]
        there = {region.name for region in members}
        missing = tuple(name for name in classes if name not in there) if kind == "class" else ()
        tables.append(replace(tabulate(kind, members), missing=missing))
    return tables


def kind_of(region: Region) -> str:
    return region.by.split()[0] if region.by else ""


def tabulate(kind: str, regions: Sequence[Region]) -> RegionTable:
    """All measures that any of the regions has."""
    measures = list(dict.fromkeys(name for region in regions for name in region.measures))
    bounded = {name for name in measures if all(is_share(region, name) for region in regions)}
    rows = [
        (name_of(region), region.pairs, [entry_of(region, name, name in bounded) for name in measures])
        for region in regions
    ]
    return RegionTable(TITLES.get(kind, f"By {kind}"), measures, rows)


def name_of(region: Region) -> str:
    """`happy`; `octant 3`; `component 2: below 10 %`."""
    if region.by == "class":
        return region.name
    return f"{region.by} {region.name}" if region.by == "octant" else f"{region.by}: {region.name}"


def value_of(region: Region, name: str) -> object:
    return mapping(region.measures.get(name)).get("value")


def is_share(region: Region, name: str) -> bool:
    """Whether a value, where there is one, lies between 0 and 1."""
    value = value_of(region, name)
    return not is_number(value) or 0 <= value <= 1


def entry_of(region: Region, name: str, is_bounded: bool) -> Entry:
    found = mapping(region.measures.get(name))
    value, low, high = (entry if is_number(entry) else None for entry in map(found.get, ("value", "low", "high")))
    real = (mapping(region.controls.get(control, {}).get(name)).get("value") for control in REAL)
    return Entry(value, low, high, value if is_bounded else None, next(filter(is_number, real), None))
