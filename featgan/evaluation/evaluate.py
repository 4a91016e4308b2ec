"""Evaluation: a checkpoint against its black box, into evaluations/ and TensorBoard."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.config.loading import read_yaml, validate
from featgan.config.schema import Config
from featgan.data.conditions import Condition, ConditionLayout, build_condition
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.evaluation.document import write_document
from featgan.evaluation.edit_metrics import (
    FeatureSubject,
    Pairs,
    edit_pairs,
    measure_faithfulness,
    measure_inception,
    measure_preservation,
    measure_realism,
)
from featgan.evaluation.evaluators import Observers, describe_files, load_observers
from featgan.evaluation.label_models import LabelSubject, measure_labels
from featgan.evaluation.results import Findings
from featgan.evaluation.second_classifier import (
    confirm,
    hear_witness,
    measure_agreement,
    measure_identity,
    measure_witnessed_diversity,
    measure_witnessed_realism,
)
from featgan.evaluation.subgroups import measure_regions
from featgan.evaluation.sweeps import (
    ask_all_the_same,
    measure_diversity,
    measure_projections,
    measure_sufficiency,
    measure_traversal,
    sweep_components,
)
from featgan.evaluation.true_factors import find_columns, measure_factors
from featgan.inference.editor import Editor
from featgan.inference.model import Model, load_model, open_cache, open_shards
from featgan.inference.training_data import open_blackbox
from featgan.run.checkpoint import read_json
from featgan.run.metrics_log import append_line
from featgan.run.paths import evaluation_path
from featgan.system.files import write_whole

ALL = 1 << 30

SUITES = {"quick": (2_000, 128), "standard": (10_000, 256), "full": (ALL, 1024)}
"""Pairs, and images that are swept, at most."""

SWEPT_SHARE = 8
"""Pairs for each image that is swept, where `count` bounds the pairs."""


def evaluate_run(
    run: Path,
    step: int | None = None,
    suite: str = "standard",
    blackboxes: Sequence[str] = (),
    probe: str | None = None,
    num_components: int = 10,
    witness: str | None = None,
    inception: Path | None = None,
    lpips: Path | None = None,
    count: int | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint (the newest by default) and write RUN/evaluations/step-XXXXXXXX-SUITE.json; returns it.

    `blackboxes` holds the SPEC that replaces the one that the features were made with (the weights must be the same);
    for a run on labels it holds judges, one for each data set at most. `probe` is a box fitted on the true factors of
    drawn faces, `witness` the SPEC of a second box; `inception` and `lpips` are files of weights. `count` bounds the
    pairs further than the suite does, and follows its name. UserError when the data or a box is gone.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(run, step, device)
    named = {"blackbox": blackboxes, "probe": probe, "witness": witness, "inception": inception, "lpips": lpips}
    arguments = as_arguments({"suite": suite, **named, "count": count, "components": num_components})
    pairs, swept = suite_size(suite, count)
    shards = open_shards(model)
    if witness is not None and model.condition_kind != "features":
        raise UserError("--witness: a run on labels has a judge for that, a box that took no part in it: --blackbox")
    observers = load_observers(shards, device, probe, witness, inception, lpips)
    if model.condition_kind == "features":
        if len(blackboxes) > 1:
            raise UserError("--blackbox: a run on features has one black box; name a second one with --witness")
        spec = blackboxes[0] if blackboxes else None
        findings = evaluate_features(model, shards, pairs, swept, spec, observers, num_components)
    else:
        config = validate(read_yaml(run / "config.yaml"), str(run / "config.yaml"))
        findings = evaluate_labels(model, shards, config, pairs, blackboxes, observers)
    findings.record |= {
        "pairs": min(pairs, len(shards.split("validation"))),
        "witness": observers.witness.describe() if observers.witness else None,
        "weights": describe_files(inception, lpips),
        "arguments": arguments,
    }
    document = write_document(findings, model.step, suite, model.blackbox)
    path = result_path(run, model.step, suite, count)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(document, indent=1).encode())
    write_board(run, findings, model.step)
    return document | {"path": str(path)}


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options of `featgan evaluate` as they are written, those left out that were not given."""
    found: list[str] = []
    for name, value in options.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            found += [f"--{name}", str(each)] if each is not None else []
    return found


def suite_size(suite: str, count: int | None) -> tuple[int, int]:
    """Pairs, and images that are swept, at most."""
    pairs, swept = SUITES[suite]
    if count is None:
        return pairs, swept
    return min(pairs, count), min(swept, max(1, count // SWEPT_SHARE))


def result_path(run: Path, step: int, suite: str, count: int | None) -> Path:
    """Where an evaluation lies; a count that bounds nothing leaves the suite whole."""
    return evaluation_path(run, step, suite, count if count is not None and count < SUITES[suite][0] else None)


def find_evaluation(run: Path, step: int, suite: str, count: int | None = None) -> dict[str, Any] | None:
    """The evaluation of a step that is there already."""
    path = result_path(run, step, suite, count)
    return read_json(path) | {"path": str(path)} if path.exists() else None


def evaluate_features(
    model: Model,
    shards: ShardSet,
    pairs: int,
    swept: int,
    blackbox: str | None,
    observers: Observers,
    num_components: int,
) -> Findings:
    """All families of measures for a run on features."""
    reader = observers.probe
    columns = find_columns(shards, reader) if reader else None  # a probe that does not fit is refused first
    cache = open_cache(model, shards)
    subject = FeatureSubject(model, open_blackbox(model, blackbox), shards, cache)
    if observers.witness and observers.witness.box.sha256 == subject.box.sha256:
        raise UserError(f"--witness {observers.witness.box.spec}: is the black box itself; name another one")
    drawn = Pairs.draw(len(subject.split), pairs)
    count = min(num_components, subject.space.num_components)
    findings = Findings(num_components=count)
    measure_pairs(findings, subject, drawn, observers)
    rows = drawn.source_rows[:swept]
    sweeps = sweep_components(subject, rows, count, reader)
    family, crosstalk = measure_traversal(subject, sweeps)
    findings.add("traversal", family)
    findings.add("traversal", measure_projections(subject, rows))
    findings.crosstalk = crosstalk.tolist()
    if reader is not None and columns is not None:
        family, response = measure_factors(subject, reader, sweeps)
        findings.add("factors", family)
        findings.factor_names = list(columns.names.all)
        findings.factor_response = response.tolist()
    findings.record["swept"] = len(rows)
    return findings


def measure_pairs(findings: Findings, subject: FeatureSubject, drawn: Pairs, observers: Observers) -> None:
    """Everything that is taken from one set of edits, which is made once and shown once to each box."""
    edits, witness = edit_pairs(subject, drawn), observers.witness
    findings.add("faithfulness", measure_faithfulness(subject, edits))
    findings.add("preservation", measure_preservation(subject, edits, observers.lpips))
    findings.add("realism", measure_realism(subject, edits))
    findings.add("sufficiency", measure_sufficiency(subject, edits))
    equal = ask_all_the_same(subject, edits)
    findings.add("diversity", measure_diversity(equal))
    confirmed = {}
    if witness is not None:
        heard = hear_witness(subject, edits, witness)
        findings.add("witness", measure_agreement(subject, edits, witness, heard))
        findings.add("witness", measure_witnessed_realism(heard), prefix="witness_")
        findings.add("preservation", measure_identity(heard), prefix="witness_")
        findings.add("diversity", measure_witnessed_diversity(equal, witness, heard), prefix="witness_")
        confirmed = confirm(subject, edits, witness, heard)
    if observers.inception is not None:
        findings.add("realism", measure_inception(observers.inception, edits.images), prefix="inception_")
    findings.regions = measure_regions(subject, edits, findings.num_components, confirmed)


def evaluate_labels(
    model: Model, shards: ShardSet, config: Config, pairs: int, judges: Sequence[str], observers: Observers
) -> Findings:
    """What can be measured for a run on labels: preservation, and with a judge whether it obeys.

    Measures of a second data set are prefixed `second_`; regions are of the first alone.
    """
    datasets = [dataset for dataset in (config.dataset, config.second_dataset) if dataset]
    all_shards = [shards, *(ShardSet.open(dataset.shards) for dataset in datasets[1:])]
    for each in all_shards[1:]:
        each.verify()
    pairs_of = zip(datasets, all_shards, strict=True)
    conditions = [build_condition(dataset, shard, "validation") for dataset, shard in pairs_of]
    layout = ConditionLayout(tuple(condition.dim for condition in conditions))
    boxes = assign_judges([load_blackbox(spec, device=model.device) for spec in judges], conditions)
    findings, editor = Findings(), Editor(model)
    for index, (shard, condition) in enumerate(zip(all_shards, conditions, strict=True)):
        subject = LabelSubject(editor, shard.split("validation"), condition, layout, index, boxes[index])
        families, regions = measure_labels(subject, pairs, observers)
        for name, family in families.items():
            findings.add(name, family, prefix="second_" if index else "")
        findings.regions = findings.regions or regions
    return findings


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
    """Every measure as a point of TensorBoard, and all of them as a line of metrics.jsonl."""
    scalars = {
        f"evaluation/{name}": measure.value for name, measure in findings.flat.items() if math.isfinite(measure.value)
    }
    append_line(run, step, scalars)
    with SummaryWriter(str(run / "tensorboard" / "evaluation")) as board:
        for name, value in scalars.items():
            board.add_scalar(name, value, step)
