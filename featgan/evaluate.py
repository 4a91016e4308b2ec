"""Evaluation: a checkpoint against its black box, into evaluations/ and TensorBoard."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from featgan.blackbox.load import BlackBox, load_blackbox
from featgan.checkpoint import read_json
from featgan.conditions import Condition, ConditionLayout, build_condition
from featgan.config import Config, read_yaml, validate
from featgan.data.files import write_whole
from featgan.data.shards import ShardSet
from featgan.errors import UserError
from featgan.findings import Findings, write_document
from featgan.measure import (
    FeatureSubject,
    Pairs,
    factor_columns,
    measure_factors,
    measure_obedience,
    measure_preservation,
    measure_realism,
    measure_sufficiency,
    measure_sweeps,
)
from featgan.measure_labels import LabelSubject, measure_labels
from featgan.model import Model, load_model, open_cache, open_shards
from featgan.schedule import evaluation_path

SUITES = {"quick": (256, 32), "standard": (2000, 128)}
"""Pairs, and images that are swept, at most."""


def evaluate_run(
    run: Path,
    step: int | None = None,
    suite: str = "standard",
    blackboxes: Sequence[str] = (),
    probe: str | None = None,
    num_components: int = 10,
) -> dict[str, Any]:
    """Evaluate a checkpoint (the newest by default) and write RUN/evaluations/step-XXXXXXXX-SUITE.json; returns it.

    `blackboxes` holds the SPEC that replaces the one that the features were made with (the weights must be the same);
    for a run on labels it holds judges, one for each data set at most. `probe` is a box fitted on the true factors of
    drawn faces. UserError when the data or the box is gone.
    """
    model = load_model(run, step, "cuda" if torch.cuda.is_available() else "cpu")
    pairs, swept = SUITES[suite]
    if model.condition_kind == "features":
        if len(blackboxes) > 1:
            raise UserError("--blackbox: a run on features has one black box")
        spec = blackboxes[0] if blackboxes else None
        findings = evaluate_features(model, pairs, swept, spec, probe, num_components)
    else:
        config = validate(read_yaml(run / "config.yaml"), str(run / "config.yaml"))
        findings = evaluate_labels(model, config, pairs, blackboxes)
    document = write_document(findings, model.step, suite, model.blackbox)
    path = evaluation_path(run, model.step, suite)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(document, indent=1).encode())
    write_board(run, findings, model.step)
    return document | {"path": str(path)}


def find_evaluation(run: Path, step: int, suite: str) -> dict[str, Any] | None:
    """The evaluation of a step that is there already."""
    path = evaluation_path(run, step, suite)
    return read_json(path) | {"path": str(path)} if path.exists() else None


def evaluate_features(
    model: Model, pairs: int, swept: int, blackbox: str | None, probe: str | None, num_components: int
) -> Findings:
    """All families of measures for a run on features."""
    shards = open_shards(model)
    reader = load_blackbox(probe, device=model.device) if probe else None
    if reader is not None:
        factor_columns(shards, reader)  # a probe that does not fit is refused before anything is measured
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
    if reader is not None:
        findings.tables["factors"], response = measure_factors(subject, reader, sweeps)
        findings.factor_names = list(factor_columns(shards, reader)[0].all)
        findings.factor_response = response.tolist()
    return findings


def evaluate_labels(model: Model, config: Config, pairs: int, judges: Sequence[str]) -> Findings:
    """What can be measured for a run on labels: preservation, and with a judge whether it obeys.

    Measures of a second data set are prefixed `second_`.
    """
    datasets = [dataset for dataset in (config.dataset, config.second_dataset) if dataset]
    shards = [open_shards(model), *(ShardSet.open(dataset.shards) for dataset in datasets[1:])]
    pairs_of = zip(datasets, shards, strict=True)
    conditions = [build_condition(dataset, shard, "validation") for dataset, shard in pairs_of]
    layout = ConditionLayout(tuple(condition.dim for condition in conditions))
    boxes = assign_judges([load_blackbox(spec, device=model.device) for spec in judges], conditions)
    findings = Findings()
    for index, (shard, condition) in enumerate(zip(shards, conditions, strict=True)):
        subject = LabelSubject(model, shard.split("validation"), condition, layout, index, boxes[index])
        for family, table in measure_labels(subject, pairs).items():
            named = {f"second_{name}" if index else name: measure for name, measure in table.items()}
            findings.tables.setdefault(family, {}).update(named)
    return findings


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


def assign_judges(judges: Sequence[BlackBox], conditions: Sequence[Condition]) -> list[BlackBox | None]:
    """Each data set's judge: the box whose outputs are its labels; UserError when a box fits none that is left."""
    found: list[BlackBox | None] = [None] * len(conditions)
    for judge in judges:
        free = (place for place in range(len(conditions)) if found[place] is None)
        places = [place for place in free if fits(judge, conditions[place])]
        if not places:
            labels = "; ".join(f"{each.config.kind} ({', '.join(each.names)})" for each in conditions)
            raise UserError(
                f"{judge.spec}: tells {judge.output_kind} ({', '.join(judge.class_names)}), but this run's labels are "
                f"{labels}; fit a judge with `featgan blackbox fit`"
            )
        found[places[0]] = judge
    return found


def fits(judge: BlackBox, condition: Condition) -> bool:
    """Whether a box tells a condition's labels: the same classes, or at least its attributes."""
    if judge.output_kind != condition.config.kind:
        return False
    if condition.config.kind == "attributes":
        return set(condition.names) <= set(judge.class_names)
    return tuple(judge.class_names) == tuple(condition.names)


def write_board(run: Path, findings: Findings, step: int) -> None:
    """Every measure as a point of TensorBoard."""
    with SummaryWriter(str(run / "tensorboard" / "evaluation")) as board:
        for name, measure in findings.flat.items():
            if math.isfinite(measure.value):
                board.add_scalar(f"evaluation/{name}", measure.value, step)
