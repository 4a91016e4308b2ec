"""What an evaluation has found: as JSON, as tables with controls, in words, and on the terminal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table as TerminalTable

from featgan.measure import Table
from featgan.metrics.intervals import Measure

HEADLINES = {
    "shift_aggregate": ("relative shift", "0: the box still sees the source, 1: it sees what was asked"),
    "ccc": ("concordance", "of requested and re-extracted features, mean over dimensions, at most 1"),
    "label_agreement": ("label agreement", "the box decides for the edited image as for the image it was asked to be"),
    "attribute_agreement": ("attribute agreement", "share of attributes that the judge sees as asked"),
    "flip_success": ("flips", "the same, on the pairs of which another decision was asked"),
    "retrieval_top1": ("retrieval", "the request is the nearest of the gallery"),
    "monotonicity": ("monotonicity", "rank correlation of requested and measured component"),
    "diagonal_dominance": ("own component", "share of the measured change that lies in the component asked for"),
    "frechet_edited": ("Frechet distance", "of edited images in the box's own space; beside it, real against real"),
    "self_l1": ("self-reconstruction", "mean |G(x, f(x)) - x|, of a range of 2"),
    "edit_l1": ("size of the edit", "mean |G(x, c) - x|, of a range of 2"),
    "factor_change_expression": ("expression factors", "change in deviations per deviation of a component"),
    "factor_nuisance_ratio": ("nuisance / expression", "change of true factors that mean nothing, to those that do"),
}
"""Measure => label and how to read it, in the order shown."""

OBEDIENCE = ("shift_aggregate", "shift_median", "residue_median", "ccc", "r2", "centred_cosine", "components_ccc",
             "retrieval_top1", "retrieval_top5", "retrieval_mrr", "label_agreement", "label_macro_f1",
             "attribute_agreement", "flip_success", "attributes_kept", "valence_ccc", "arousal_ccc")  # fmt: skip
"""Measures shown beside every control."""


@dataclass
class Findings:
    """Everything one evaluation has found."""

    tables: dict[str, Table] = field(default_factory=dict)  # family, or control, => measures
    crosstalk: list[list[float]] = field(default_factory=list)
    factor_names: list[str] = field(default_factory=list)
    factor_response: list[list[float]] = field(default_factory=list)
    num_components: int = 0

    @property
    def flat(self) -> Table:
        """The generator's own measures by name."""
        own = ("generator", "traversal", "preservation", "realism", "sufficiency", "factors")
        return {name: measure for family in own for name, measure in self.tables.get(family, {}).items()}


def write_document(findings: Findings, step: int, suite: str, blackbox: dict[str, str] | None) -> dict[str, Any]:
    """The evaluation as JSON: what the report, the board and other programs read."""
    flat = findings.flat
    headline = [
        {"name": name, "label": label, "note": note, **flat[name].to_json()}
        for name, (label, note) in HEADLINES.items()
        if name in flat
    ]
    return {
        "step": step,
        "suite": suite,
        "blackbox": blackbox,
        "headline": headline,
        "statements": statements(findings),
        "tables": [*control_table(findings), *family_tables(findings), *factor_tables(findings)],
        "components": components(findings),
        "crosstalk": findings.crosstalk,
        "measures": {name: measure.to_json() for name, measure in flat.items()},
    }


def control_table(findings: Findings) -> list[dict[str, Any]]:
    """The generator beside every control, measure by measure."""
    told = {"shift_aggregate", "label_agreement", "valence_ccc", "attribute_agreement"}
    columns = [name for name, table in findings.tables.items() if told & table.keys()]
    rows = [
        [name, *(show(findings.tables[column].get(name)) for column in columns)]
        for name in (*OBEDIENCE, *(f"second_{name}" for name in OBEDIENCE))
        if any(name in findings.tables[column] for column in columns)
    ]
    if not rows:
        return []
    return [{"title": "Faithfulness, with controls", "columns": ["measure", *columns], "rows": rows}]


def family_tables(findings: Findings) -> list[dict[str, Any]]:
    """Every other family as measure, value, interval, N."""
    families = ("traversal", "preservation", "realism", "sufficiency", "factors")
    columns = ["measure", "value", "95 %", "images"]
    found = []
    for family in families:
        rows = [
            [name, show(measure), interval(measure), measure.count]
            for name, measure in findings.tables.get(family, {}).items()
            if not name.startswith("component_")
        ]
        if rows:
            found.append({"title": family.capitalize(), "columns": columns, "rows": rows})
    return found


def factor_tables(findings: Findings) -> list[dict[str, Any]]:
    """What each component does to each true factor."""
    if not findings.factor_names:
        return []
    rows = [
        [name, *(f"{response[index]:+.2f}" for response in findings.factor_response)]
        for index, name in enumerate(findings.factor_names)
    ]
    columns = ["factor", *(f"component {index + 1}" for index in range(len(findings.factor_response)))]
    return [{"title": "True factors: change in deviations per deviation asked", "columns": columns, "rows": rows}]


def components(findings: Findings) -> list[dict[str, Any]]:
    """By component, from 0: slope, monotonicity, linearity, share of the change in itself, visibility to the probe."""
    table, found = findings.flat, []
    for index, row in enumerate(findings.crosstalk):
        total = sum(map(abs, row))
        entry: dict[str, Any] = {"index": index, "dominance": abs(row[index]) / total if total else 0.0}
        for name in ("slope", "monotonicity", "linearity", "ccc", "nuisance_ratio"):
            measure = table.get(f"component_{index + 1:02d}_{name}")
            if measure is not None and math.isfinite(measure.value):
                entry[name] = measure.value
        found.append(entry)
    return found


def statements(findings: Findings) -> list[str]:
    """In words, what the numbers can and cannot support."""
    flat, said = findings.flat, []
    shift = flat.get("shift_aggregate")
    if shift is not None:
        if shift.value < 0.2:
            said.append(f"The edits hardly reach what was asked: relative shift {shift.value:.2f}.")
        identity = findings.tables["identity_copy"].get("label_agreement")
        agreement = flat.get("label_agreement")
        if identity and agreement and agreement.low <= identity.high:
            said.append("The box decides as asked no more often than for unchanged sources.")
    reconstruction = flat.get("self_l1")
    if reconstruction is not None and reconstruction.value > 0.2:
        said.append(
            f"The generator does not keep its source (self-reconstruction {reconstruction.value:.2f}): "
            "faithfulness without preservation shows what fools the box, not what it looks at."
        )
    for entry in components(findings):
        if entry.get("slope", 1.0) < 0.1:
            said.append(f"Component {entry['index'] + 1} is not visible in pixels: slope {entry['slope']:.2f}.")
    ratio = flat.get("factor_nuisance_ratio")
    if ratio is not None:
        word = "stay put" if ratio.value <= 0.25 else "move as well"
        said.append(f"Nuisance factors {word}: {ratio.value:.2f} of the change of the factors that mean something.")
    if "generator" not in findings.tables:
        said.append("Trained on labels: without a judge (--blackbox) only preservation is measured.")
    return said


def show(measure: Measure | None) -> str:
    """Three digits; a dash where there is none."""
    return "-" if measure is None or not math.isfinite(measure.value) else f"{measure.value:.3f}"


def interval(measure: Measure) -> str:
    return f"{measure.low:.3f} to {measure.high:.3f}" if math.isfinite(measure.low) else "-"


BESIDE = {
    "shift_aggregate": "shift",
    "residue_median": "residue",
    "ccc": "CCC",
    "label_agreement": "labels",
    "attribute_agreement": "attributes",
    "flip_success": "flips",
    "valence_ccc": "valence",
    "arousal_ccc": "arousal",
    "retrieval_top1": "top 1",
}
"""Measures of the terminal's table of controls, which has a row a control and must fit 80 columns."""


def beside_controls(group: Mapping[str, Any]) -> TerminalTable:
    """The generator and every control as rows, the main measures as columns."""
    table = TerminalTable(title=group["title"], title_justify="left")
    table.add_column("")
    rows = [row for row in group["rows"] if row[0] in BESIDE]
    for row in rows:
        table.add_column(BESIDE[row[0]], justify="right")
    for index, name in enumerate(group["columns"][1:], 1):
        table.add_row(name.replace("_", " "), *(str(row[index]) for row in rows))
    return table


def print_evaluation(document: Mapping[str, Any], out: Console) -> None:
    """The headline, the statements and the table of controls, on the terminal."""
    table = TerminalTable(title=f"step {document['step']}, suite {document['suite']}", title_justify="left")
    for column in ("measure", "value", "95 %", "how to read it"):
        table.add_column(column, justify="right" if column in ("value", "95 %") else "left")
    for line in document["headline"]:
        value = "-" if line["value"] is None else f"{line['value']:.3f}"
        bounds = "-" if line["low"] is None else f"{line['low']:.3f} .. {line['high']:.3f}"
        table.add_row(line["label"], value, bounds, line["note"])
    out.print(table)
    for group in document["tables"]:
        if group["columns"][1] == "generator":
            out.print(beside_controls(group))
    for sentence in document["statements"]:
        out.print(f"* {sentence}")
