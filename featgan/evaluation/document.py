"""What an evaluation has found: as JSON, as tables with controls, in words, and on the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column as TerminalColumn
from rich.table import Table as TerminalTable

from featgan.evaluation.conclusions import remarks
from featgan.evaluation.edit_metrics import Table
from featgan.evaluation.results import FAMILIES, Findings
from featgan.evaluation.subgroups import RegionFamily
from featgan.metrics.bootstrap import Measure

HEADLINES = {
    "shift_aggregate": ("relative shift", "0: the box still sees the source, 1: it sees what was asked"),
    "ccc": ("concordance", "of requested and re-extracted features, mean over dimensions, at most 1"),
    "label_agreement": ("label agreement", "the box decides for the edited image as for the image it was asked to be"),
    "attribute_agreement": ("attribute agreement", "share of attributes that the judge sees as asked"),
    "flip_success": ("flips", "the same, on the pairs of which another decision was asked"),
    "retrieval_top1": ("retrieval", "the request is the nearest of the gallery"),
    "witness_agreement": ("witness", "a second box sees the label asked for, where another one was asked"),
    "witness_gap": ("first box - witness", "what the first box sees more of than the witness, of the same pairs"),
    "monotonicity": ("monotonicity", "rank correlation of requested and measured component"),
    "diagonal_dominance": ("own component", "share of the measured change that lies in the component asked for"),
    "frechet_edited": ("Frechet distance", "of edited images to real ones, in the box's own space"),
    "frechet_real_floor": ("real to real", "the same between two halves of the real images: the floor"),
    "self_l1": ("self-reconstruction", "mean |G(x, f(x)) - x|, of a range of 2"),
    "edit_l1": ("size of the edit", "mean |G(x, c) - x|, of a range of 2"),
    "asked_edit_coarse_share": ("coarse share", "of the edit's energy where another decision is asked; noise has .05"),
    "diversity_ratio": ("diversity", "distance of sources asked for the same, as a share of their own; 1 as before"),
    "factor_change_expression": ("expression factors", "change in deviations per deviation of a component"),
    "factor_nuisance_ratio": ("nuisance / expression", "change of true factors that mean nothing, to those that do"),
}
"""Measure => label and how to read it, in the order shown."""


def write_document(findings: Findings, step: int, suite: str, blackbox: dict[str, str] | None) -> dict[str, Any]:
    """The evaluation as JSON: what the report, the board and other programs read."""
    flat, said = findings.flat, remarks(findings)
    headline = [
        {"name": name, "label": label, "note": note, **flat[name].to_json()}
        for name, (label, note) in HEADLINES.items()
        if name in flat
    ]
    return {
        "step": step,
        "suite": suite,
        "blackbox": blackbox,
        **findings.record,
        "headline": headline,
        "statements": [remark.text for remark in said],
        "remarks": [remark.to_json() for remark in said],
        "tables": [*family_tables(findings), *region_tables(findings), *factor_tables(findings)],
        "components": findings.components,
        "crosstalk": findings.crosstalk,
        "measures": as_json(flat),
        "controls": {column: as_json(findings.control(column)) for column in findings.controls},
        "regions": [region_json(region) for region in findings.regions],
    }


def as_json(table: Table) -> dict[str, Any]:
    return {name: measure.to_json() for name, measure in table.items()}


def region_json(region: RegionFamily) -> dict[str, Any]:
    """One region: what it is of, its name, its pairs, the generator's measures and those of each control."""
    family = region.family
    controls = {column: as_json(table) for column, table in family.items() if column != "generator" and table}
    own = as_json(family["generator"])
    return {"by": region.by, "region": region.name, "pairs": region.count, "measures": own, "controls": controls}


def family_tables(findings: Findings) -> list[dict[str, Any]]:
    """Every family: measure, value, interval, N, and the value of each control; components are told apart."""
    found = []
    for name, title in FAMILIES.items():
        family = findings.families.get(name, {})
        others = [column for column in family if column != "generator"]
        measures = [measure for measure in family.get("generator", {}) if not measure.startswith("component_")]
        rows = [[measure, *row_beside(family, measure, others)] for measure in measures]
        if rows:
            columns = ["measure", "generator", "95 %", "images", *others]
            found.append({"family": name, "title": title, "columns": columns, "rows": rows})
    return found


REGION_TITLES = {
    "class": "By class asked for",
    "octant": "By octant of valence and arousal asked for (1: valence 1, turning towards arousal 1)",
    "component": "By range of each component between its training quantiles",
}


def region_tables(findings: Findings) -> list[dict[str, Any]]:
    """A table for each kind of region: region, measure, and then as in every family."""
    found = []
    for by, regions in findings.regions_by.items():
        others = [name for name in regions[0].family if name != "generator" and any(r.family[name] for r in regions)]
        rows = [
            [region_name(region), measure, *row_beside(region.family, measure, others)]
            for region in regions
            for measure in region.family["generator"]
        ]
        columns = ["region", "measure", "generator", "95 %", "pairs", *others]
        found.append({"family": f"regions_{by}", "title": REGION_TITLES[by], "columns": columns, "rows": rows})
    return found


def region_name(region: RegionFamily) -> str:
    return region.name if region.by == "class" else f"{region.by} {region.name}"


def row_beside(family: Mapping[str, Table], measure: str, others: Sequence[str]) -> list[Any]:
    """Value, interval and N of the generator's measure, and the value of each control."""
    own = family["generator"][measure]
    return [show(own), interval(own), own.count, *(show(family[column].get(measure)) for column in others)]


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


def show(measure: Measure | None) -> str:
    """Three digits; a dash where there is none."""
    return "-" if measure is None or not math.isfinite(measure.value) else f"{measure.value:.3f}"


def interval(measure: Measure) -> str:
    return f"{measure.low:.3f} to {measure.high:.3f}" if math.isfinite(measure.low) else "-"


BESIDE: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "beside controls",
        {
            "shift_aggregate": "shift",
            "residue_median": "residue",
            "ccc": "CCC",
            "label_agreement": "labels",
            "attribute_agreement": "attributes",
            "flip_success": "flips",
            "valence_ccc": "valence",
            "arousal_ccc": "arousal",
            "retrieval_top1": "top 1",
        },
    ),
    (
        "beside controls",
        {
            "slope": "slope",
            "diagonal_dominance": "own",
            "self_l1": "self",
            "edit_l1": "edit",
            "asked_edit_coarse_share": "coarse",
            "diversity_ratio": "diverse",
            "factor_nuisance_ratio": "nuisance",
        },
    ),
    (
        "where real ones are",
        {
            "frechet_edited": "Frechet",
            "kid_edited": "KID",
            "inception_frechet_edited": "FID",
            "inception_kid_edited": "FID's KID",
            "edit_lpips": "LPIPS",
        },
    ),
    (
        "a second box",
        {
            "witness_agreement": "labels",
            "box_agreement": "box's",
            "boxes_agree": "agree",
            "witness_edit_cosine": "cosine",
            "witness_shift_aggregate": "shift",
            "witness_frechet_edited": "Frechet",
            "witness_kid_edited": "KID",
        },
    ),
)
"""Titles and measures of the terminal's tables, which have a row a control and must fit 80 columns."""


def beside_controls(title: str, document: Mapping[str, Any], headings: Mapping[str, str]) -> TerminalTable | None:
    """The generator and every control that has such measures as rows, the measures as columns."""
    columns = {"generator": document["measures"], **document["controls"]}
    present = [name for name in headings if any(name in measures for measures in columns.values())]
    if not present:
        return None
    columns_shown = (TerminalColumn(headings[name], justify="right", no_wrap=True) for name in present)
    table = TerminalTable(
        TerminalColumn(title, no_wrap=True), *columns_shown, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column, measures in columns.items():
        values = [(measures.get(name) or {}).get("value") for name in present]
        if any(value is not None for value in values):
            table.add_row(column.replace("_", " "), *map(figure, values))
    return table


def figure(value: float | None) -> str:
    """Short enough for a column, whatever the size."""
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10_000 else f"{value:.1e}"


def print_evaluation(document: Mapping[str, Any], out: Console) -> None:
    """The headline, the controls beside it and the statements, on the terminal."""
    images = max((line["count"] for line in document["headline"]), default=0)
    title = f"step {document['step']}, suite {document['suite']}, {images} images"
    table = TerminalTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("measure", "value", "95 %", "how to read it"):
        table.add_column(column, justify="right" if column in ("value", "95 %") else "left")
    for line in document["headline"]:
        value = "-" if line["value"] is None else f"{line['value']:.3f}"
        bounds = "-" if line["low"] is None else f"{line['low']:.3f} .. {line['high']:.3f}"
        table.add_row(line["label"], value, bounds, line["note"])
    out.print(table)
    for heading, headings in BESIDE:
        beside = beside_controls(heading, document, headings)
        if beside is not None:
            out.print(beside)
    for sentence in document["statements"]:
        out.print(f"* {sentence}")
