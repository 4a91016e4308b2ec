"""What one evaluation has found: families of measures for the generator and every control, regions, components."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from featgan.evaluation.edit_metrics import Family, Table
from featgan.evaluation.subgroups import RegionFamily

FAMILIES = {
    "faithfulness": "Faithfulness: does the box see what was asked?",
    "sufficiency": "Sufficiency: how many components decide?",
    "witness": "Witness: does a second box see the change?",
    "traversal": "Traversal: does a slider do one thing?",
    "preservation": "Preservation: what stays?",
    "realism": "Realism: are the edits where real images are?",
    "diversity": "Diversity: do different sources stay different when the same is asked?",
    "factors": "True factors, as a probe reads them",
}
"""Family => title of its table, in the order shown."""


@dataclass
class Findings:
    """Everything one evaluation has found."""

    families: dict[str, Family] = field(default_factory=dict)  # family => generator and controls => measures
    regions: list[RegionFamily] = field(default_factory=list)
    crosstalk: list[list[float]] = field(default_factory=list)
    factor_names: list[str] = field(default_factory=list)
    factor_response: list[list[float]] = field(default_factory=list)
    num_components: int = 0
    record: dict[str, Any] = field(default_factory=dict)  # what was measured, and with which observers

    def add(self, name: str, family: Family, prefix: str = "") -> None:
        """More measures of a family, each name after `prefix`."""
        for column, table in family.items():
            named = {f"{prefix}{measure}": value for measure, value in table.items()}
            self.families.setdefault(name, {}).setdefault(column, {}).update(named)

    @property
    def flat(self) -> Table:
        """The generator's own measures by name; those by region are apart."""
        own = [self.families[name].get("generator", {}) for name in FAMILIES if name in self.families]
        return {name: measure for table in own for name, measure in table.items()}

    def control(self, column: str) -> Table:
        """A control's measures by name, over all families."""
        return {name: found for family in self.families.values() for name, found in family.get(column, {}).items()}

    @property
    def controls(self) -> list[str]:
        """Every control, in the order of its first appearance."""
        columns = (column for name in FAMILIES for column in self.families.get(name, {}))
        return list(dict.fromkeys(column for column in columns if column != "generator"))

    @property
    def regions_by(self) -> Mapping[str, list[RegionFamily]]:
        """Regions by what they are regions of; all components together."""
        found: dict[str, list[RegionFamily]] = {}
        for region in self.regions:
            found.setdefault(region.by.split()[0], []).append(region)
        return found

    @property
    def components(self) -> list[dict[str, Any]]:
        """By component, from 0: slope, monotonicity, linearity, share of the change in itself, nuisance."""
        table, found = self.flat, []
        for index, row in enumerate(self.crosstalk):
            total = sum(map(abs, row))
            entry: dict[str, Any] = {"index": index, "dominance": abs(row[index]) / total if total else 0.0}
            for name in ("slope", "monotonicity", "linearity", "ccc", "nuisance_ratio"):
                measure = table.get(f"component_{index + 1:02d}_{name}")
                if measure is not None and math.isfinite(measure.value):
                    entry[name] = measure.value
            found.append(entry)
        return found
