"""The page: it is self-contained, escaped and complete, also with malformed evaluations."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featgan.report.analysis.class_edits import ClassEdit, describe_color_change
from featgan.report.analysis.class_reliability import ReliabilityTable
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.analysis.subgroup_tables import build_subgroup_tables
from featgan.report.edits.sweeps import MAX_CLASSES
from featgan.report.figures.curves import axis_ticks, bin_points, draw_curve
from featgan.report.html import summary_text
from featgan.report.html.number_format import format_number
from featgan.report.html.page import Report, build_report_page
from featgan.report.html.scope_text import evaluation_scope, ranking_scope
from featgan.report.run_files import read_metric_series
from featgan.run.evaluation_document import best_evaluation, parse_evaluation
from tests.helpers.report import UNSAFE_TEXT, build_report, evaluation_document, metric_entries


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report()


class ParsedPage(HTMLParser):
    """Every start tag with its attributes, and the text outside of styles and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: Any = None
        self.current_tag = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.current_tag = "data" if ("id", "data") in attrs else tag

    def handle_endtag(self, tag: str) -> None:
        self.current_tag = ""

    def handle_data(self, data: str) -> None:
        if self.current_tag == "data":
            self.data = json.loads(data)
        elif self.current_tag not in ("style", "script"):
            self.text += data

    def attribute_values(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def with_evaluation(report: Report, run: Path, content: Any = None) -> Report:
    """Return the report with an evaluation that was read from a file."""
    return replace(report, evaluation=write_evaluation(run, "a", evaluation_document() if content is None else content))


def write_evaluation(run: Path, name: str, content: Any) -> Any:
    (run / "evaluations").mkdir(exist_ok=True)
    (run / "evaluations" / f"{name}.json").write_text(json.dumps(content))
    return best_evaluation(run, 30)


def test_page_loads_no_external_resources(report: Report) -> None:
    html = build_report_page(report)
    page = ParsedPage(html)
    assert all(source and source.startswith("data:image/") for source in page.attribute_values("src"))
    links = [link for link in page.attribute_values("href") if link is not None]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"https?://|url\(|@import|\bfetch\(|XMLHttpRequest", html)
    assert not {"iframe", "object", "embed", "form"} & {tag for tag, _ in page.tags}
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:")


def test_ranking_has_a_row_for_each_component(report: Report) -> None:
    page = ParsedPage(build_report_page(report))
    rows = [attributes for tag, attributes in page.tags if tag == "li" and "data-importance" in attributes]
    assert {row["data-card"] for row in rows} == {"component-01", "component-02", "component-03"}
    shares = [float(row["data-importance"] or 0) for row in rows]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(0.877, abs=1e-3)
    opening = page.text[: page.text.index("Metrics and baselines")]
    for word in (
        "importance",
        "visibility",
        "slope",
        "cross-talk",
        "What can be concluded",
        "What cannot be concluded",
    ):
        assert word in opening
    assert "12\N{NO-BREAK SPACE}% of the output variance is not explained" in opening
    assert "distinguishes 2 classes." in opening and "4 features" in opening and "featgan evaluate" in opening
    # The script reads the filmstrips of the cards from the rows.
    assert all(page.data["films"][row["data-card"]]["films"].count(None) == 1 for row in rows)


def test_reliability_of_each_class_is_shown(report: Report, tmp_path: Path) -> None:
    content = evaluation_document()
    content["subgroups"] = [
        {
            "group": "class",
            "name": name,
            "pairs": 40,
            "metrics": metric_entries(validity=0.9, second_classifier_agreement=agreement),
            "baselines": {"nearest_real": metric_entries(second_classifier_agreement=0.7)},
        }
        for name, agreement in (("calm", 0.8), (UNSAFE_TEXT, 0.3), ("component 1", 0.1))
    ]
    assert report.output_spec is not None
    known = replace(
        report, output_spec=replace(report.output_spec, recalls={"calm": (0.9, 30), UNSAFE_TEXT: (0.4, 10)})
    )
    full = with_evaluation(known, tmp_path, content)
    assert full.reliability is not None and full.reliability.unconfirmed_classes == (UNSAFE_TEXT,)
    rows = {row.label: [(cell.text, cell.count, cell.is_low) for cell in row.cells] for row in full.reliability.rows}
    space = "\N{NO-BREAK SPACE}%"
    assert rows == {
        "edits that this classifier predicts as the target class": [
            ("90" + space, 50, False),
            ("90" + space, 50, False),
        ],
        "edits that the second classifier predicts as the target class": [
            ("80" + space, 50, False),
            ("30" + space, 50, True),
        ],
        "real images that the second classifier predicts as the target class": [
            ("70" + space, 50, False),
            ("70" + space, 50, False),
        ],
        "labeled images that this classifier predicts correctly": [("90" + space, 30, False), ("40" + space, 10, True)],
    }
    page = ParsedPage(build_report_page(full))
    assert f"The second classifier confirms fewer than half of the edits toward {UNSAFE_TEXT}." in page.text
    assert (
        "It predicts the labeled class for 78"
        + space
        + " of the validation images; the most frequent class makes up 75"
        in page.text
    )
    content["subgroups"][1]["baselines"] = {"nearest_real": metric_entries(second_classifier_agreement=0.2)}
    unverifiable = with_evaluation(known, tmp_path, content)
    assert unverifiable.reliability is not None and (
        unverifiable.reliability.unconfirmed_classes,
        unverifiable.reliability.unverifiable_classes,
    ) == ((), (UNSAFE_TEXT,))
    assert (
        f"The second classifier cannot verify edits toward {UNSAFE_TEXT}: it predicts the target class for fewer"
        in ParsedPage(build_report_page(unverifiable)).text
    )
    other_step = with_evaluation(replace(known, step=40), tmp_path, content)
    assert other_step.reliability is not None and len(other_step.reliability.rows) == 1, (
        "an evaluation of another step does not count"
    )
    unevaluated = ParsedPage(build_report_page(report))
    assert "that the second classifier predicts" not in unevaluated.text
    assert "confirms fewer than half" not in unevaluated.text


def test_class_edits_target_classes_of_the_classifier(report: Report) -> None:
    assert report.output_spec is not None and report.class_edits is not None
    assert replace(report, output_spec=replace(report.output_spec, names=("young", "old"))).class_edits is None


def test_classes_distinguished_by_color_are_named(report: Report) -> None:
    assert report.class_edits is not None
    reached_edit, source_edit = ClassEdit("", False, True), ClassEdit("", True, False)
    colors = np.zeros((3, 2, 3))
    colors[:2, 0, 1] = -0.2  # two of the three images lose green toward the first class
    colors[:, 1, 0] = [0.5, 0.01, 0.01]  # the first source, which is predicted as the second class, does not count
    class_edits = replace(
        report.class_edits,
        edits=((reached_edit, source_edit), (reached_edit, reached_edit), (reached_edit, reached_edit)),
        color_changes=colors,
    )
    assert class_edits.describe_color_changes() == {"calm": "darker"}
    reached, recolored = summary_text.reached_class_conclusions(class_edits, ReliabilityTable(()))
    assert (
        "Edits toward <em>calm</em> and" in reached
        and "Edits toward <em>calm</em> make the whole image darker. The classifier may" in recolored
    )
    classes = class_edits.sweep.headings
    for unconfirmed in (ReliabilityTable((), classes), ReliabilityTable((), (), classes)):
        assert summary_text.reached_class_conclusions(class_edits, unconfirmed) == [recolored]
    assert (
        describe_color_change(np.array([0.2, -0.2, -0.2])) == "redder and darker"
        and describe_color_change(np.full(3, 0.1)) == "brighter"
    )
    assert (
        describe_color_change(np.array([0.2, 0.1, -0.3])) == "yellower"
        and describe_color_change(np.zeros(3)) == "a different color"
    )


def test_classes_without_edits_are_counted_if_they_are_many(report: Report) -> None:
    assert report.class_edits is not None
    (sentence,) = missing_classes_of(report, 2, 4)
    assert "The report has no edits toward <em>class 2</em> and <em>class 3</em>, because almost no" in sentence
    (sentence,) = missing_classes_of(report, 2, 200)
    assert "no edits toward 198 of the 200 classes, because almost no" in sentence and "class 9" not in sentence
    (sentence,) = missing_classes_of(report, MAX_CLASSES, 200)
    assert "edits toward 16 of the 200 classes." in sentence and "because" not in sentence


def missing_classes_of(report: Report, num_shown: int, num_classes: int) -> list[str]:
    """Return the limitations for a classifier whose first `num_shown` classes have edits."""
    assert report.class_edits is not None
    names = tuple(f"class {index}" for index in range(num_classes))
    class_edits = replace(
        report.class_edits,
        sweep=replace(report.class_edits.sweep, headings=names[:num_shown]),
        source_classes=(),
    )
    return list(summary_text.unreached_class_limitations(class_edits, OutputSpec("expression", names)))


@pytest.mark.parametrize(
    ("num_evaluated_images", "expected"),
    [
        (None, "Visibility, slope and cross-talk are measured on the 3 images of this page (validation images)."),
        (1234, "Slope and cross-talk are measured on 1\N{NARROW NO-BREAK SPACE}234 validation images (suite quick). "
               "Visibility is measured on the 3 images of this page (validation images)."),
    ],
)  # fmt: skip
def test_note_below_the_ranking_has_the_images_of_each_metric(
    report: Report, num_evaluated_images: int | None, expected: str
) -> None:
    ranking = replace(report.ranking, num_evaluated_images=num_evaluated_images)
    text = ranking_scope(ranking, report.sources, parse_evaluation(evaluation_document()), 9)
    assert text == (
        f"{expected} Importance is computed from the training images and the last layer of the classifier. "
        "The source image that is shown first has changes of median size. "
        "This page shows the first 3 of 9 components."
    )
    assert "Importance is measured on the 3 images" in ranking_scope(
        replace(ranking, is_importance_measured=True), report.sources, None, None
    )


def test_evaluation_states_its_checkpoint_and_images() -> None:
    evaluation = parse_evaluation(evaluation_document())
    used = "This evaluation used the checkpoint of step 30 and the validation images"
    assert evaluation_scope(evaluation, False, 30) == f"{used}. Its suite is <em>quick</em>."
    assert evaluation_scope(evaluation, True, 30).startswith(f"{used}, not the images of this page. ")
    assert "<strong>The edits of this page use the checkpoint of step 40.</strong>" in evaluation_scope(
        evaluation, False, 40
    )
    unknown = evaluation_scope(parse_evaluation({}), True, 40)
    assert unknown.startswith("This evaluation used the validation images, not the images of this page. ")


def test_every_film_has_a_labeled_slider(report: Report) -> None:
    page = ParsedPage(build_report_page(report))
    films = {attributes["id"] for tag, attributes in page.tags if "data-film" in attributes}
    assert films == {"component-01", "component-02", "component-03", "class-means"} == set(page.data["films"])
    sliders = {attributes["id"] for _, attributes in page.tags if attributes.get("type") == "range"}
    assert sliders == {f"{film}-slider" for film in films} <= set(page.attribute_values("for"))
    identifiers = page.attribute_values("id")
    assert len(identifiers) == len(set(identifiers))
    assert {link[1:] for link in page.attribute_values("href") if link and link.startswith("#")} <= set(identifiers)
    assert all("alt" in attributes for tag, attributes in page.tags if tag == "img")


def test_outputs_of_a_slider_are_those_of_the_classifier(report: Report) -> None:
    film = ParsedPage(build_report_page(report)).data["films"]["component-01"]
    rendering = report.renderings[0]
    assert rendering.predictions is not None and report.output_spec is not None
    expected = report.output_spec.display_values(rendering.predictions.outputs)
    assert film["bars"] == [0, 1]
    assert film["outputs"][1][3] == pytest.approx(expected[1, 3], abs=1e-3)
    assert sum(film["outputs"][2][6]) == pytest.approx(1, abs=2e-3)


def test_external_text_is_escaped(report: Report, tmp_path: Path) -> None:
    content = {
        "step": 20,
        "suite": UNSAFE_TEXT,
        "conclusion_texts": [UNSAFE_TEXT],
        "conclusions": [{"family": UNSAFE_TEXT, "kind": "limits", "text": UNSAFE_TEXT}],
        "headline": [{"label": UNSAFE_TEXT, "value": UNSAFE_TEXT, "note": UNSAFE_TEXT}],
        "tables": [{"title": UNSAFE_TEXT, "columns": [UNSAFE_TEXT], "rows": [[UNSAFE_TEXT, 0.5, None, float("nan")]]}],
        "subgroups": [
            {
                "group": UNSAFE_TEXT,
                "name": UNSAFE_TEXT,
                "pairs": UNSAFE_TEXT,
                "metrics": {UNSAFE_TEXT: {"value": UNSAFE_TEXT}},
            }
        ],
    }
    html = build_report_page(with_evaluation(build_report(names={0: UNSAFE_TEXT}), tmp_path, content))
    assert "<b>x" not in html
    page = ParsedPage(html)
    assert page.text.count(UNSAFE_TEXT) >= 15
    assert UNSAFE_TEXT in page.data["names"] and "The edits of this page use the checkpoint of step 30." in page.text


def test_page_uses_the_most_thorough_evaluation_of_the_step(tmp_path: Path) -> None:
    assert best_evaluation(tmp_path, 30) is None
    assert write_evaluation(tmp_path, "a", {"step": 10, "suite": "quick"}).suite == "quick"
    assert write_evaluation(tmp_path, "b", {"step": 30, "suite": "standard"}).suite == "standard"
    assert write_evaluation(tmp_path, "c", {"step": 40}).step == 30
    metrics: dict[str, Any] = {"ccc": {}, "second_classifier_agreement": {}}
    thorough = {"step": 30, "pairs": 900, "metrics": metrics, "arguments": ["--x", "y"]}
    assert write_evaluation(tmp_path, "f", thorough).arguments == ("--x", "y")
    for newer in ({"pairs": 900, "metrics": {"ccc": {}}}, {"pairs": 16, "metrics": metrics}):
        evaluation = write_evaluation(tmp_path, "g", {"step": 30, **newer})
        assert "second_classifier_agreement" in evaluation.metrics and evaluation.pairs == 900
    (tmp_path / "evaluations" / "f.json").unlink()
    (tmp_path / "evaluations" / "g.json").unlink()
    (tmp_path / "evaluations" / "d.json").write_text('{"step": 30')
    malformed = {
        "step": 30,
        "headline": [3, {"value": 1, "low": "x"}],
        "tables": [{"rows": 3}],
        "components": [{"index": "x"}],
        "conclusions": {},
    }
    evaluation = write_evaluation(tmp_path, "e", malformed)
    assert evaluation.headline[0].low is None
    assert (evaluation.tables, evaluation.components, evaluation.conclusions) == ((), (), ())


def test_malformed_evaluation_leaves_the_page_complete(report: Report, tmp_path: Path) -> None:
    malformed = {
        "step": 30,
        "headline": [3, {"value": 1, "low": "x"}],
        "tables": [{"rows": 3}],
        "components": [{"index": "x"}],
        "crosstalk": [[1], "x"],
        "metrics": [1],
        "baselines": {"copy_source": 3},
        "conclusions": {},
        "subgroups": [{"group": 3, "metrics": 4}, 5],
    }
    page = build_report_page(replace(report, evaluation=write_evaluation(tmp_path, "e", malformed)))
    assert 'id="numbers"' in page


def test_page_shows_the_evaluation(report: Report, tmp_path: Path) -> None:
    page = ParsedPage(build_report_page(with_evaluation(report, tmp_path)))
    for expected in (
        "target progress",
        "0.81",
        "0.70 to 0.90",
        "N 200",
        "Component 3 is not visible.",
        "Supported",
        "Limited",
        "\N{MINUS SIGN}0.250",
        "ccc a",
        "By target class",
        "component 1: below 10 %",
        "validity",
        "A second classifier, which was not used in training, confirms",
        "80\N{NO-BREAK SPACE}% of them",
    ):
        assert expected in page.text, expected
    assert "not evaluated yet" not in page.text and "The edits of this page use the checkpoint" not in page.text
    alt_texts = [label for label in page.attribute_values("aria-label") if label and label.startswith("concordance")]
    assert alt_texts == [
        "concordance (CCC): the generator 0.75, the unchanged source image 0.05, the nearest real image 0.97"
    ]


def test_subgroup_tables_have_real_images_and_missing_classes(report: Report) -> None:
    glad = {
        "group": "class",
        "name": "glad",
        "pairs": 9,
        "metrics": metric_entries(validity=0.5, second_classifier_agreement=0.25),
    }
    glad["baselines"] = {
        "nearest_real": metric_entries(validity=0.75),
        "target_real": metric_entries(second_classifier_agreement=0.625),
    }
    table = build_subgroup_tables(parse_evaluation({"subgroups": [glad]}).subgroups, ("calm", "glad"))[0]
    assert table.missing_classes == ("calm",)
    assert [(entry.value, entry.real) for entry in table.rows[0][2]] == [(0.5, 0.75), (0.25, 0.625)]
    assert build_subgroup_tables(parse_evaluation({"subgroups": [glad]}).subgroups)[0].missing_classes == ()


def test_marks_are_at_the_values_of_the_metrics(report: Report, tmp_path: Path) -> None:
    html = build_report_page(with_evaluation(report, tmp_path))
    positions = dict(re.findall(r'class="mark (\w+)" style="left: ([\d.]+)%" title="[^"]*: 0\.(?:75|97)"', html))
    # The axis goes from -0.1 to 1.1.
    assert {kind: float(position) for kind, position in positions.items()} == {
        "generator": pytest.approx(100 * 0.85 / 1.2, abs=0.01),
        "nearest": pytest.approx(100 * 1.07 / 1.2, abs=0.01),
    }


def test_metric_series_have_finite_values_and_the_last_one_of_a_step(tmp_path: Path) -> None:
    lines = ['{"step": 2, "a": 1.0}', '{"step": 1, "a": 4}', '{"step": 2, "a": 3.0, "b": NaN}', "[]", '{"step": 3, "a"']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_metric_series(tmp_path) == {"a": [(1, 4.0), (2, 3.0)]}
    assert read_metric_series(tmp_path / "absent") == {}


def test_curves_are_binned_and_ticks_are_round() -> None:
    bins = bin_points([(step, float(step % 2)) for step in range(1000)], 100)
    assert len(bins) == 100 and all(
        (curve_bin.low, curve_bin.mean, curve_bin.high) == (0, 0.5, 1) for curve_bin in bins
    )
    assert axis_ticks(0.03, 1.04) == [0.5, 1.0] and axis_ticks(-3, 7) == [0, 5]
    assert axis_ticks(5, 5) == [5]
    assert "<b>" not in draw_curve([(1, 1.0), (2, 1.0)], UNSAFE_TEXT)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (float("nan"), "\N{EN DASH}"),
        (0.5, "0.50"),
        (0.041, "0.041"),
        (-1.25, "\N{MINUS SIGN}1.25"),
        (12345, "12\N{NARROW NO-BREAK SPACE}345"),
        (123.4, "123.4"),
        ("x", "x"),
        (True, "yes"),
    ],
)
def test_numbers_are_formatted(value: object, text: str) -> None:
    assert format_number(value, 2) == text
