"""What a run has recorded so far, read tolerantly: its newest evaluation, training curves and configuration."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

MAX_EVALUATION_BYTES = 32 << 20
MAX_METRICS_BYTES = 256 << 20
MAX_SERIES = 200

Series = dict[str, list[tuple[int, float]]]
"""Name => (step, value) in the order written."""


@dataclass(frozen=True)
class Headline:
    """One number of the first panel, with its interval where there is one."""

    label: str
    value: object
    low: float | None
    high: float | None
    note: str


@dataclass(frozen=True)
class Remark:
    """A sentence of an evaluation: it `supports` what the pictures show, `limits` it, or says what is `unknown`."""

    about: str
    verdict: str
    text: str


@dataclass(frozen=True)
class Region:
    """Measures over the pairs of one region; `by` is class, octant, or component and its number."""

    by: str
    name: str
    pairs: object
    measures: dict[str, Any]
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)  # control => its measures


@dataclass(frozen=True)
class Evaluation:
    """The parts of an evaluation that a report shows; everything may be empty."""

    step: int | None = None
    suite: str = ""
    headline: list[Headline] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    components: dict[int, dict[str, Any]] = field(default_factory=dict)  # by index, from 0
    crosstalk: list[Any] = field(default_factory=list)
    measures: dict[str, Any] = field(default_factory=dict)  # of the generator
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)  # control => its measures
    remarks: list[Remark] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)  # of the command that made it, without run and step

    @property
    def num_swept(self) -> int | None:
        """Pictures that the numbers of the components are from."""
        slope = self.measures.get("slope")
        count = slope.get("count") if isinstance(slope, dict) else None
        return count if isinstance(count, int) else None


def best_evaluation(run: Path, step: int) -> Evaluation | None:
    """The evaluation of the step, or of any when it has none, with most pairs and observers, the newest of equals.

    None when there is none at all.
    """
    found = []
    for path in sorted((run / "evaluations").glob("*.json")):
        content = read_json(path)
        if content is not None:
            weight = (content.get("step") == step, thoroughness(content), path.stat().st_mtime_ns, path.name)
            found.append((weight, content))
    if not found:
        return None
    return parse_evaluation(max(found, key=lambda entry: entry[0])[1])


def thoroughness(content: Mapping[str, Any]) -> tuple[float, int]:
    """Pairs, and measures of the generator: a witness, a probe or weights add some."""
    pairs = content.get("pairs")
    return float(pairs) if is_number(pairs) else 0.0, len(mapping(content.get("measures")))


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object of bounded size, or None."""
    try:
        if path.stat().st_size > MAX_EVALUATION_BYTES:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def parse_evaluation(content: Mapping[str, Any]) -> Evaluation:
    """Keep what has the expected form, leave out the rest."""
    names = ("step", "statements", "crosstalk", "arguments")
    step, statements, crosstalk, arguments = (content.get(name) for name in names)
    components = mappings(content.get("components"))
    return Evaluation(
        step=step if isinstance(step, int) else None,
        suite=str(content.get("suite") or ""),
        headline=[parse_headline(entry) for entry in mappings(content.get("headline"))],
        tables=[table for table in mappings(content.get("tables")) if is_table(table)],
        statements=[text for text in statements if isinstance(text, str)] if isinstance(statements, list) else [],
        components={entry["index"]: entry for entry in components if isinstance(entry.get("index"), int)},
        crosstalk=crosstalk if isinstance(crosstalk, list) else [],
        measures=mapping(content.get("measures")),
        controls=parse_controls(content),
        remarks=[parse_remark(entry) for entry in mappings(content.get("remarks"))],
        regions=[parse_region(entry) for entry in mappings(content.get("regions"))],
        arguments=[each for each in arguments if isinstance(each, str)] if isinstance(arguments, list) else [],
    )


def parse_remark(entry: Mapping[str, Any]) -> Remark:
    return Remark(*(str(entry.get(name) or "") for name in ("about", "verdict", "text")))


def parse_region(entry: Mapping[str, Any]) -> Region:
    by, name = (str(entry.get(key) or "") for key in ("by", "region"))
    return Region(by, name, entry.get("pairs"), mapping(entry.get("measures")), parse_controls(entry))


def parse_controls(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: mapping(measures) for name, measures in mapping(entry.get("controls")).items()}


def parse_headline(entry: Mapping[str, Any]) -> Headline:
    low, high = entry.get("low"), entry.get("high")
    known = is_number(low) and is_number(high)
    return Headline(
        label=str(entry.get("label") or entry.get("name") or ""),
        value=entry.get("value"),
        low=low if known else None,
        high=high if known else None,
        note=str(entry.get("note") or ""),
    )


def mapping(value: object) -> dict[str, Any]:
    """A mapping with its keys as text; nothing when it is none."""
    return {str(name): entry for name, entry in value.items()} if isinstance(value, dict) else {}


def mappings(value: object) -> list[dict[str, Any]]:
    """The mappings in a list; nothing when it is no list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def is_table(table: Mapping[str, Any]) -> bool:
    rows, columns = table.get("rows"), table.get("columns")
    return isinstance(rows, list) and isinstance(columns, list) and all(isinstance(row, list) for row in rows)


def read_metrics(run: Path) -> Series:
    """The scalars of metrics.jsonl by name; damaged lines and values that are not finite are left out.

    A run that was resumed may have written a step twice: the last value counts.
    """
    latest: dict[str, dict[int, float]] = {}
    for line in read_lines(run / "metrics.jsonl"):
        step = line.get("step")
        if not isinstance(step, int):
            continue
        for name, value in line.items():
            known = name in latest or len(latest) < MAX_SERIES
            if name != "step" and known and is_number(value):
                latest.setdefault(name, {})[step] = float(value)
    return {name: sorted(points.items()) for name, points in latest.items()}


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a .jsonl file, one a line; nothing when it is missing or too large."""
    if not path.is_file() or path.stat().st_size > MAX_METRICS_BYTES:
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                content = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(content, dict):
                yield content


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_config(run: Path) -> str:
    """The resolved configuration as it was written, or nothing."""
    path = run / "config.yaml"
    if not path.is_file() or path.stat().st_size > 1 << 20:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")
