"""Evaluation: a checkpoint against its black box, into evaluations/, TensorBoard and a table on the terminal."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as TerminalTable
from torch.utils.tensorboard import SummaryWriter

from featgan.blackbox.load import BlackBox, load_blackbox
from featgan.checkpoint import read_json
from featgan.conditions import build_condition
from featgan.config import Config, read_yaml, validate
from featgan.data.files import write_whole
from featgan.data.shards import ShardSet
from featgan.errors import UserError
from featgan.measure import (
    FeatureSubject,
    Pairs,
    Table,
    factor_columns,
    label_obedience,
    measure_factors,
    measure_obedience,
    measure_preservation,
    measure_realism,
    measure_sufficiency,
    measure_sweeps,
)
from featgan.metrics.intervals import Measure
from featgan.model import Model, load_model, open_cache

SUITES = {"quick": (256, 32), "standard": (2000, 128)}
"""Pairs, and images that are swept, at most."""

HEADLINES = {
    "shift_aggregate": ("relative shift", "0: the box still sees the source, 1: it sees what was asked"),
    "ccc": ("concordance", "of requested and re-extracted features, mean over dimensions, at most 1"),
    "label_agreement": ("label agreement", "the box decides for the edited image as for the image it was asked to be"),
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
             "flip_success", "valence_ccc", "arousal_ccc")  # fmt: skip
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


def evaluate_run(
    run: Path,
    step: int | None = None,
    suite: str = "standard",
    blackbox: str | None = None,
    probe: str | None = None,
    num_components: int = 10,
) -> dict[str, Any]:
    """Evaluate a checkpoint (the newest by default) and write RUN/evaluations/step-XXXXXXXX-SUITE.json; returns it.

    `blackbox` replaces the SPEC that the features were made with (the weights must be the same), or judges a run on
    labels. `probe` is a box fitted on the true factors of drawn faces. UserError when the data or the box is gone.
    """
    model = load_model(run, step, "cuda" if torch.cuda.is_available() else "cpu")
    shards = ShardSet.open(str(model.dataset["shards"]))
    shards.split("validation")
    pairs, swept = SUITES[suite]
    if model.condition_kind == "features":
        findings = evaluate_features(model, shards, pairs, swept, blackbox, probe, num_components)
    else:
        config = validate(read_yaml(run / "config.yaml"), str(run / "config.yaml"))
        findings = evaluate_labels(model, shards, config, pairs, blackbox)
    document = write_document(findings, model, suite)
    path = evaluation_path(run, model.step, suite)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(document, indent=1).encode())
    write_board(run, findings, model.step)
    return document | {"path": str(path)}


def find_evaluation(run: Path, step: int, suite: str) -> dict[str, Any] | None:
    """The evaluation of a step that is there already."""
    path = evaluation_path(run, step, suite)
    return read_json(path) | {"path": str(path)} if path.exists() else None


def evaluation_path(run: Path, step: int, suite: str) -> Path:
    return run / "evaluations" / f"step-{step:08d}-{suite}.json"


def evaluate_features(
    model: Model, shards: ShardSet, pairs: int, swept: int, blackbox: str | None, probe: str | None, num_components: int
) -> Findings:
    """All families of measures for a run on features."""
    cache = open_cache(model, shards)
    subject = FeatureSubject(model, open_blackbox(model, blackbox), shards, cache)
    drawn = Pairs.draw(len(subject.split), pairs)
    findings = Findings(num_components=min(num_components, subject.space.num_components))
    obedience = measure_obedience(subject, drawn)
    findings.tables |= obedience.tables
    findings.tables["preservation"] = measure_preservation(subject, obedience)
    findings.tables["realism"] = measure_realism(subject, obedience)
    sweeps = measure_sweeps(subject, drawn.source_rows[:swept], num_components)
    findings.tables["traversal"] = sweeps.table
    findings.crosstalk = sweeps.crosstalk.tolist()
    findings.tables["sufficiency"] = measure_sufficiency(subject, drawn)
    if probe is not None:
        reader = load_blackbox(probe, device=model.device)
        findings.tables["factors"], response = measure_factors(subject, reader, sweeps)
        findings.factor_names = list(factor_columns(shards, reader)[0].all)
        findings.factor_response = response.tolist()
    return findings


def evaluate_labels(model: Model, shards: ShardSet, config: Config, pairs: int, blackbox: str | None) -> Findings:
    """What can be measured for a run on labels: preservation, and with a judge whether it obeys."""
    if config.second_dataset is not None:
        raise UserError("evaluate: runs on two data sets can be rendered, but not yet evaluated")
    split = shards.split("validation")
    condition = build_condition(config.dataset, shards, "validation")
    rows = np.random.default_rng(0).permutation(condition.rows)[:pairs]
    values = torch.from_numpy(condition.values(rows, np.zeros(len(rows), bool)))
    judge = open_judge(model, blackbox) if blackbox else None
    return Findings(tables=dict(label_obedience(model, judge, split, values, rows)))


def open_blackbox(model: Model, spec: str | None) -> BlackBox:
    """The box that made the features; UserError when other weights are found under its name."""
    known = model.blackbox or {}
    box = load_blackbox(spec or known["spec"], known.get("layer"), model.device)
    if box.sha256 != known["sha256"]:
        raise UserError(
            f"{spec or known['spec']}: not the box that the features were made with (its weights differ); "
            "name that one with --blackbox, or extract and train anew"
        )
    return box


def open_judge(model: Model, spec: str) -> BlackBox:
    """A box whose outputs are the run's labels; UserError when they are others."""
    judge = load_blackbox(spec, device=model.device)
    fits = judge.output_kind == model.condition_kind
    if model.condition_kind == "expression":
        fits = fits and tuple(judge.class_names) == tuple(model.class_names)
    if not fits:
        raise UserError(
            f"{spec}: tells {judge.output_kind} ({', '.join(judge.class_names)}), but this run's labels are "
            f"{model.condition_kind} ({', '.join(model.card.names)}); fit a judge with `featgan blackbox fit`"
        )
    return judge


def write_document(findings: Findings, model: Model, suite: str) -> dict[str, Any]:
    """The evaluation as JSON: what the report, the board and other programs read."""
    flat = findings.flat
    headline = [
        {"name": name, "label": label, "note": note, **flat[name].to_json()}
        for name, (label, note) in HEADLINES.items()
        if name in flat
    ]
    return {
        "step": model.step,
        "suite": suite,
        "blackbox": model.blackbox,
        "headline": headline,
        "statements": statements(findings),
        "tables": [*control_table(findings), *family_tables(findings), *factor_tables(findings)],
        "components": components(findings),
        "crosstalk": findings.crosstalk,
        "measures": {name: measure.to_json() for name, measure in flat.items()},
    }


def control_table(findings: Findings) -> list[dict[str, Any]]:
    """The generator beside every control, measure by measure."""
    told = {"shift_aggregate", "label_agreement", "valence_ccc"}
    columns = [name for name, table in findings.tables.items() if told & table.keys()]
    rows = [
        [name, *(show(findings.tables[column].get(name)) for column in columns)]
        for name in OBEDIENCE
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


def write_board(run: Path, findings: Findings, step: int) -> None:
    """Every measure as a point of TensorBoard."""
    with SummaryWriter(str(run / "tensorboard" / "evaluation")) as board:
        for name, measure in findings.flat.items():
            if math.isfinite(measure.value):
                board.add_scalar(f"evaluation/{name}", measure.value, step)


BESIDE = {
    "shift_aggregate": "shift",
    "residue_median": "residue",
    "ccc": "CCC",
    "label_agreement": "labels",
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
