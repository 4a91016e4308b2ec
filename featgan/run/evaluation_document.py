"""The evaluation document `RUN/evaluations/step-*.json`: one schema that is used to write it and to read it.

Reading is tolerant: files may be older, incomplete or not from featgan. Unknown keys are ignored, missing parts are
empty, malformed parts are dropped, and numbers that are not finite become None.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from featgan.system.file_cache import cache_by_version
from featgan.system.files import atomic_write
from featgan.system.json_files import read_side_file

ConclusionKind = Literal["supports", "limits", "unknown"]


def to_finite_number(value: object) -> float | None:
    """Return a finite number as float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def to_integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def to_text(value: object) -> str:
    return str(value or "")


def list_texts(value: object) -> list[str]:
    """Return the strings of a list."""
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list | tuple) else []


def list_records(value: object) -> list[object]:
    """Return the mappings and records of a list."""
    return [entry for entry in value if is_record(entry)] if isinstance(value, list | tuple) else []


def to_named_records(value: object) -> dict[str, object]:
    """Return the mappings and records of a mapping, with strings as keys."""
    return {str(name): entry for name, entry in value.items() if is_record(entry)} if isinstance(value, dict) else {}


def to_named_texts(value: object) -> dict[str, str | None] | None:
    """Return the strings of a mapping, None for anything else."""
    if not isinstance(value, dict):
        return None
    return {str(name): entry for name, entry in value.items() if entry is None or isinstance(entry, str)}


def to_weight_files(value: object) -> dict[str, object]:
    return {name: to_named_texts(entry) for name, entry in to_named_records(value).items()}


def is_record(value: object) -> bool:
    return isinstance(value, dict | BaseModel)


def to_matrix(value: object) -> list[list[float | None]]:
    """Return rows of numbers; nothing if a row is not a list."""
    if not isinstance(value, list | tuple) or not all(isinstance(row, list | tuple) for row in value):
        return []
    return [[to_finite_number(entry) for entry in row] for row in value]


def to_table_cell(value: object) -> object:
    """Return a string, a boolean or a finite number as it is, None for other numbers, and anything else as a string."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return value if to_finite_number(value) is not None else None
    return str(value)


Number = Annotated[float | None, BeforeValidator(to_finite_number)]
Integer = Annotated[int | None, BeforeValidator(to_integer)]
Text = Annotated[str, BeforeValidator(to_text)]
Texts = Annotated[tuple[str, ...], BeforeValidator(list_texts)]
NamedTexts = Annotated[dict[str, str | None] | None, BeforeValidator(to_named_texts)]
Cell = Annotated[str | bool | int | float | None, BeforeValidator(to_table_cell)]


class DocumentModel(BaseModel):
    """A part of the document."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class EstimateRecord(DocumentModel):
    """A metric with its 95 % interval and the number of images; None if it was not measured."""

    value: Number = None
    low: Number = None
    high: Number = None
    count: Integer = None

    @model_validator(mode="before")
    @classmethod
    def drop_half_interval(cls, values: Any) -> Any:
        """Drop the bounds of an interval that has only one."""
        if isinstance(values, dict) and None in (
            to_finite_number(values.get("low")),
            to_finite_number(values.get("high")),
        ):
            return {**values, "low": None, "high": None}
        return values


Metrics = Annotated[dict[str, EstimateRecord], BeforeValidator(to_named_records)]


def metric_value(metrics: Mapping[str, EstimateRecord], name: str) -> float | None:
    """Return the value of a metric, None if it was not measured."""
    estimate = metrics.get(name)
    return estimate.value if estimate else None


def to_named_mappings(value: object) -> dict[str, object]:
    """Return a mapping of baselines; the metrics of a malformed one are empty."""
    return {str(name): entry for name, entry in value.items()} if isinstance(value, dict) else {}


Baselines = Annotated[dict[str, Metrics], BeforeValidator(to_named_mappings)]


class HeadlineEntry(EstimateRecord):
    """A metric of the first table, with the texts shown next to it."""

    name: Text = ""
    label: Text = ""
    note: Text = ""

    @model_validator(mode="before")
    @classmethod
    def set_default_label(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("label"):
            return {**values, "label": values.get("name")}
        return values


class Conclusion(DocumentModel):
    """A sentence that `supports` the edits as explanations, `limits` them, or states what is `unknown`."""

    family: Text
    """A family of metrics."""
    kind: ConclusionKind
    text: Text


class SubgroupRecord(DocumentModel):
    """The metrics over the pairs of one subgroup of targets."""

    group: Text = ""
    """`class`, `octant`, or `component` and its number."""
    name: Text = ""
    pairs: Integer = None
    metrics: Metrics = {}
    """Metrics of the generator."""
    baselines: Baselines = {}


class TableRecord(DocumentModel):
    """A table that is ready to be shown."""

    family: Text = ""
    title: Text = ""
    columns: tuple[Annotated[str, BeforeValidator(str)], ...]
    rows: tuple[tuple[Cell, ...], ...]


class ComponentRecord(DocumentModel):
    """Traversal metrics of one component; `index` starts at 0."""

    index: int
    dominance: Number = None
    """Share of the measured change that is in the component itself."""
    slope: Number = None
    monotonicity: Number = None
    linearity: Number = None
    ccc: Number = None
    nuisance_ratio: Number = None


def valid_conclusions(value: object) -> list[object]:
    """Return the records of a list whose kind is known."""
    kinds = get_args(ConclusionKind)
    return [entry for entry in list_records(value) if not isinstance(entry, dict) or entry.get("kind") in kinds]


def valid_tables(value: object) -> list[object]:
    """Return the records of a list that have columns and rows."""
    return [entry for entry in list_records(value) if not isinstance(entry, dict) or is_table(entry)]


def is_table(entry: dict[str, Any]) -> bool:
    rows, columns = entry.get("rows"), entry.get("columns")
    return isinstance(columns, list) and isinstance(rows, list) and all(isinstance(row, list) for row in rows)


def valid_components(value: object) -> list[object]:
    """Return the records of a list that have an index."""
    return [
        entry
        for entry in list_records(value)
        if not isinstance(entry, dict) or to_integer(entry.get("index")) is not None
    ]


class EvaluationDocument(DocumentModel):
    """One evaluation of one checkpoint; every part may be empty."""

    step: Integer = None
    suite: Text = ""
    blackbox: NamedTexts = None
    """The classifier of a feature-conditioned run; None for a label-conditioned run."""
    pairs: Integer = None
    """Number of pairs of a source and a target."""
    swept_images: Integer = None
    """Number of images whose components were swept."""
    second_classifier: NamedTexts = None
    """`spec`, `layer`, `sha256`, and `feature_cache`: the cache its predictions were read from."""
    weights: Annotated[dict[str, dict[str, str | None]], BeforeValidator(to_weight_files)] = {}
    """`inception` and `lpips`: `file` and `sha256` of the weights."""
    arguments: Texts = ()
    """Options of `featgan evaluate` that make this evaluation again, without run and step."""
    headline: Annotated[tuple[HeadlineEntry, ...], BeforeValidator(list_records)] = ()
    conclusions: Annotated[tuple[Conclusion, ...], BeforeValidator(valid_conclusions)] = ()
    tables: Annotated[tuple[TableRecord, ...], BeforeValidator(valid_tables)] = ()
    components: Annotated[tuple[ComponentRecord, ...], BeforeValidator(valid_components)] = ()
    crosstalk: Annotated[tuple[tuple[float | None, ...], ...], BeforeValidator(to_matrix)] = ()
    """[K, M]: mean change of measured component M per unit of target change of component K."""
    metrics: Metrics = {}
    """Metrics of the generator."""
    baselines: Baselines = {}
    subgroups: Annotated[tuple[SubgroupRecord, ...], BeforeValidator(list_records)] = ()
    path: Annotated[Path | None, Field(exclude=True)] = None
    """The file, which is not part of the content."""

    @property
    def components_by_index(self) -> dict[int, ComponentRecord]:
        return {component.index: component for component in self.components}

    @property
    def num_sweep_images(self) -> int | None:
        """Number of images that the metrics of the components are from."""
        slope = self.metrics.get("slope")
        return slope.count if slope else None


def write_evaluation(path: Path, document: EvaluationDocument) -> None:
    """Write a document to a JSON file, atomically."""
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, json.dumps(document.model_dump(mode="json"), indent=1).encode())


def read_evaluation(path: Path) -> EvaluationDocument | None:
    """Read a document; None if the file is missing, and None with a warning if it cannot be used."""
    content = read_side_file(path)
    return None if content is None else parse_evaluation(content, path)


@cache_by_version
def read_metrics_or_none(path: Path) -> Mapping[str, float] | None:
    """Return the measured values of the metrics in an evaluation file; None if it is missing or damaged.

    They are empty if the file cannot be read now. Only this part of the document is parsed, and each version of a file
    is read once, because the launcher reads the evaluations of all runs.
    """
    content = read_side_file(path, unreadable={})
    if content is None:
        return None
    metrics = to_named_records(content.get("metrics"))
    values = {name: to_finite_number(entry.get("value")) for name, entry in metrics.items() if isinstance(entry, dict)}
    return {name: value for name, value in values.items() if value is not None}


def read_metrics(path: Path) -> Mapping[str, float]:
    """Return the measured values of the metrics in an evaluation file; empty if it is missing or cannot be used."""
    return read_metrics_or_none(path) or {}


def has_result(path: Path) -> bool:
    """Return whether an evaluation file exists and is not damaged; a damaged one is written again."""
    return read_metrics_or_none(path) is not None


def parse_evaluation(content: dict[str, Any], path: Path | None = None) -> EvaluationDocument:
    """Return the valid parts of a JSON object."""
    return EvaluationDocument.model_validate({**content, "path": path})


def best_evaluation(run_dir: Path, step: int) -> EvaluationDocument | None:
    """Return the most thorough evaluation of a step, or of another step if that step has none.

    The most thorough evaluation has the most pairs, then the most metrics, then the newest file. None if there is none.
    """
    candidates = []
    for path in sorted((run_dir / "evaluations").glob("*.json")):
        document = read_evaluation(path)
        if document is not None:
            thoroughness = document.pairs or 0, len(document.metrics)
            sort_key = document.step == step, thoroughness, path.stat().st_mtime_ns, path.name
            candidates.append((sort_key, document))
    return max(candidates, key=lambda candidate: candidate[0])[1] if candidates else None
