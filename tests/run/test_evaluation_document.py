"""The evaluation document: what is written is read again, and files of any content are read without an error."""

import json
from pathlib import Path

import pytest

from featgan.run.evaluation_document import (
    ComponentRecord,
    Conclusion,
    EstimateRecord,
    EvaluationDocument,
    HeadlineEntry,
    SubgroupRecord,
    TableRecord,
    best_evaluation,
    parse_evaluation,
    read_evaluation,
    write_evaluation,
)
from featgan.system.limits import MAX_JSON_BYTES


def make_document() -> EvaluationDocument:
    """Return a document with content in every part."""
    metrics = {"ccc": EstimateRecord(value=0.5, low=0.4, high=0.6, count=10), "r2": EstimateRecord(value=0.1, count=10)}
    return EvaluationDocument(
        step=30,
        suite="quick",
        blackbox={"spec": "classifiers/a", "layer": "hidden", "sha256": "1" * 64},
        pairs=200,
        swept_images=25,
        second_classifier={"spec": "classifiers/b", "layer": "hidden", "sha256": "2" * 64, "feature_cache": None},
        weights={"lpips": {"file": "vgg16.pth", "sha256": "3" * 64}},
        arguments=("--suite", "quick"),
        headline=(
            HeadlineEntry(name="ccc", label="concordance", note="a note", value=0.5, low=0.4, high=0.6, count=10),
        ),
        conclusions=(Conclusion(family="traversal", kind="limits", text="A sentence."),),
        tables=(TableRecord(family="traversal", title="Traversal", columns=("metric", "value"), rows=(("ccc", 3),)),),
        components=(ComponentRecord(index=0, dominance=0.9, slope=0.5),),
        crosstalk=((0.5, 0.1), (0.0, 1.0)),
        metrics=metrics,
        baselines={"copy_source": metrics},
        subgroups=(SubgroupRecord(group="class", name="happy", pairs=9, metrics=metrics, baselines={"x": metrics}),),
    )


def write_json(run: Path, name: str, content: object) -> Path:
    """Write a file of any content among the evaluations of a run."""
    path = run / "evaluations" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_written_document_is_read_again(tmp_path: Path) -> None:
    path, document = tmp_path / "evaluations" / "step-00000030-quick.json", make_document()
    assert all(getattr(document, name) for name in EvaluationDocument.model_fields if name != "path")
    write_evaluation(path, document)
    assert read_evaluation(path) == document.model_copy(update={"path": path})
    assert set(json.loads(path.read_text())) == set(EvaluationDocument.model_fields) - {"path"}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"step": 30', "[" * 100_000, "\0"])
def test_file_without_a_json_object_is_not_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert read_evaluation(path) is None
    assert read_evaluation(tmp_path / "missing.json") is None


def test_too_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"{}")
    assert read_evaluation(path) is not None
    with path.open("ab") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    assert read_evaluation(path) is None


def test_missing_parts_are_empty() -> None:
    assert parse_evaluation({}) == EvaluationDocument()
    assert parse_evaluation({"unknown": 1, "step": 3}) == EvaluationDocument(step=3)


def test_malformed_parts_are_dropped() -> None:
    document = parse_evaluation(
        {
            "step": "30", "suite": 3, "pairs": True, "blackbox": 7, "weights": [1], "second_classifier": [],
            "headline": [3, {"value": 1, "low": "x"}], "tables": [{"rows": 3}, {"rows": [3], "columns": []}],
            "components": [{"index": "x"}, {"slope": 1}], "crosstalk": [[1], "x"], "metrics": [1],
            "baselines": {"copy_source": 3}, "conclusions": [{"kind": "other", "text": "x"}, 3],
            "subgroups": [{"group": 3, "metrics": 4}, 5], "arguments": ["--x", 3], "path": "/etc/passwd",
        }
    )  # fmt: skip
    assert document == EvaluationDocument(
        suite="3",
        headline=(HeadlineEntry(value=1.0),),
        baselines={"copy_source": {}},
        subgroups=(SubgroupRecord(group="3"),),
        arguments=("--x",),
    )


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "true", '"0.5"', "[]"])
def test_values_that_are_not_finite_numbers_are_none(tmp_path: Path, number: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"metrics": {{"ccc": {{"value": {number}, "low": 0, "high": {number}, "count": 5}}}}}}')
    document = read_evaluation(path)
    assert document is not None and document.metrics["ccc"] == EstimateRecord(count=5)


def test_missing_estimate_is_written_as_null(tmp_path: Path) -> None:
    path, nan = tmp_path / "a.json", float("nan")
    estimate = EstimateRecord(value=nan, low=nan, high=nan, count=0)
    write_evaluation(path, EvaluationDocument(metrics={"ccc": estimate}))
    assert json.loads(path.read_text())["metrics"]["ccc"] == {"value": None, "low": None, "high": None, "count": 0}


def test_table_cells_are_scalars() -> None:
    cells = ["a", 3, 0.5, True, None, float("nan"), {"x": 1}]
    document = parse_evaluation({"tables": [{"columns": ["a", 3], "rows": [cells]}]})
    assert document.tables[0].columns == ("a", "3")
    assert document.tables[0].rows == (("a", 3, 0.5, True, None, None, "{'x': 1}"),)


def test_headline_without_a_label_has_its_name() -> None:
    assert parse_evaluation({"headline": [{"name": "ccc"}]}).headline[0].label == "ccc"


def test_best_evaluation_is_of_the_step_with_most_pairs_and_metrics(tmp_path: Path) -> None:
    def best_after(name: str, content: object) -> EvaluationDocument:
        write_json(tmp_path, name, content)
        document = best_evaluation(tmp_path, 30)
        assert document is not None
        return document

    assert best_evaluation(tmp_path, 30) is None
    assert best_after("a", {"step": 10, "suite": "quick"}).suite == "quick"
    assert best_after("b", {"step": 30, "suite": "standard"}).suite == "standard"
    assert best_after("c", {"step": 40}).step == 30
    thorough = {
        "step": 30, "pairs": 900, "metrics": {"ccc": {}, "second_classifier_agreement": {}}, "arguments": ["--x", "y"],
    }  # fmt: skip
    assert best_after("f", thorough).arguments == ("--x", "y")
    for lesser in ({"pairs": 900, "metrics": {"ccc": {}}}, {"pairs": 16, "metrics": thorough["metrics"]}):
        assert best_after("g", {"step": 30, **lesser}).arguments == ("--x", "y"), "the newest file is less thorough"
    (tmp_path / "evaluations" / "d.json").write_text('{"step": 30')
    assert best_after("h", {"step": 30}).arguments == ("--x", "y"), "a corrupted file is ignored"
