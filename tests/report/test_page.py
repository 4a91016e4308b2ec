"""The page: self-contained, escaped, complete, and filled from records that are read tolerantly."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featgan.report.analysis.class_edits import Tile, name_tint
from featgan.report.analysis.class_reliability import Evidence
from featgan.report.analysis.subgroup_tables import region_tables
from featgan.report.figures.curves import draw_curve, thin_out, ticks
from featgan.report.html import summary_text
from featgan.report.html.page import Report, build_page, show_number
from featgan.report.run_files import best_evaluation, parse_evaluation, read_metrics
from tests.helpers.report import NASTY, build_report, evaluation, measures


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report()


class Page(HTMLParser):
    """Every start tag with its attributes, and the text of the page outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: Any = None
        self.place = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.place = "data" if ("id", "data") in attrs else tag

    def handle_endtag(self, tag: str) -> None:
        self.place = ""

    def handle_data(self, data: str) -> None:
        if self.place == "data":
            self.data = json.loads(data)
        elif self.place not in ("style", "script"):
            self.text += data

    def attributes(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def evaluated(report: Report, run: Path, content: Any = None) -> Report:
    """The report with an evaluation that was read from a file."""
    return replace(report, evaluation=write_evaluation(run, "a", evaluation() if content is None else content))


def write_evaluation(run: Path, name: str, content: Any) -> Any:
    (run / "evaluations").mkdir(exist_ok=True)
    (run / "evaluations" / f"{name}.json").write_text(json.dumps(content))
    return best_evaluation(run, 30)


def test_the_page_loads_nothing(report: Report) -> None:
    html = build_page(report)
    page = Page(html)
    assert all(source and source.startswith("data:image/") for source in page.attributes("src"))
    links = [link for link in page.attributes("href") if link is not None]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"https?://|url\(|@import|\bfetch\(|XMLHttpRequest", html)
    assert not {"iframe", "object", "embed", "form"} & {tag for tag, _ in page.tags}
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:")


def test_the_opening_has_a_row_for_each_component_with_all_it_promises(report: Report) -> None:
    page = Page(build_page(report))
    rows = [attributes for tag, attributes in page.tags if tag == "li" and "data-matters" in attributes]
    assert {row["data-card"] for row in rows} == {"component-01", "component-02", "component-03"}
    shares = [float(row["data-matters"] or 0) for row in rows]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(0.877, abs=1e-3)
    opening = page.text[: page.text.index("The components, one by one")]
    for word in ("matters", "visible", "slope", "cross-talk", "What can be concluded", "What cannot be concluded"):
        assert word in opening
    assert "12\N{NO-BREAK SPACE}% of the variation in its answer lies outside" in opening
    assert "tells 2 classes apart" in opening and "4 numbers" in opening and "featgan evaluate" in opening
    # The very strips of the rows are those of the cards: the script takes them from here.
    assert all(page.data["films"][row["data-card"]]["films"].count(None) == 1 for row in rows)


def test_answer_by_answer_it_says_how_far_to_believe_the_tiles(report: Report, tmp_path: Path) -> None:
    content = evaluation()
    content["regions"] = [
        {
            "by": "class", "region": name, "pairs": 40, "measures": measures(flip_success=0.9, witness_agreement=seen),
            "controls": {"nearest_real": measures(witness_agreement=0.7)},
        }
        for name, seen in (("calm", 0.8), (NASTY, 0.3), ("component 1", 0.1))
    ]  # fmt: skip
    assert report.answer is not None
    known = replace(report, answer=replace(report.answer, recalls={"calm": (0.9, 30), NASTY: (0.4, 10)}))
    full = evaluated(known, tmp_path, content)
    assert full.evidence is not None and full.evidence.unconfirmed == (NASTY,)
    lines = {
        line.question: [(cell.text, cell.count, cell.is_low) for cell in line.cells] for line in full.evidence.lines
    }
    space = "\N{NO-BREAK SPACE}%"
    assert lines == {
        "edits that it sees as such": [("90" + space, 50, False), ("90" + space, 50, False)],
        "a second classifier": [("80" + space, 50, False), ("30" + space, 50, True)],
        "the same of real pictures": [("70" + space, 50, False), ("70" + space, 50, False)],
        "real ones that it tells rightly": [("90" + space, 30, False), ("40" + space, 10, True)],
    }
    page = Page(build_page(full))
    assert f"A second classifier seldom sees {NASTY} in the edits towards it" in page.text
    assert "rightly in 78 % of the validation pictures (its most frequent class makes up 75 %)" in page.text
    content["regions"][1]["controls"] = {"nearest_real": measures(witness_agreement=0.2)}
    blind = evaluated(known, tmp_path, content)
    assert blind.evidence is not None and (blind.evidence.unconfirmed, blind.evidence.unjudged) == ((), (NASTY,))
    assert f"cannot judge {NASTY}: it seldom sees it in real pictures either" in Page(build_page(blind)).text
    older = evaluated(replace(known, step=40), tmp_path, content)
    assert older.evidence is not None and len(older.evidence.lines) == 1, "an evaluation of another step says nothing"
    bare = Page(build_page(report))
    assert "a second classifier" not in bare.text and "seldom sees" not in bare.text, "nothing is made up"


def test_tiles_ask_for_answers_that_the_box_has(report: Report) -> None:
    assert report.answer is not None and report.tiles is not None
    assert replace(report, answer=replace(report.answer, names=("young", "old"))).tiles is None


def test_answers_that_are_told_by_colour_are_named(report: Report) -> None:
    assert report.tiles is not None
    tile, own = Tile("", False, True), Tile("", True, False)
    colours = np.zeros((3, 2, 3))
    colours[:2, 0, 1] = -0.2  # two of the three pictures lose green towards the first answer
    colours[:, 1, 0] = [0.5, 0.01, 0.01]  # the first one, which has the second answer already, does not count
    tiles = replace(report.tiles, tiles=((tile, own), (tile, tile), (tile, tile)), colours=colours)
    assert tiles.tinted() == {"calm": "darker"}
    reached, tinted = summary_text.reach(tiles, Evidence(()))
    assert (
        "Moved towards <em>calm</em>" in reached
        and "The whole picture gets darker towards <em>calm</em>: it may" in tinted
    )
    for doubted in (Evidence((), tiles.sweep.headings), Evidence((), (), tiles.sweep.headings)):
        assert summary_text.reach(tiles, doubted) == [tinted], "nobody else sees it"
    assert name_tint(np.array([0.2, -0.2, -0.2])) == "redder and darker" and name_tint(np.full(3, 0.1)) == "brighter"
    assert name_tint(np.array([0.2, 0.1, -0.3])) == "yellower" and name_tint(np.zeros(3)) == "another colour"


def test_every_film_has_a_labelled_slider(report: Report) -> None:
    page = Page(build_page(report))
    films = {attributes["id"] for tag, attributes in page.tags if "data-film" in attributes}
    assert films == {"component-01", "component-02", "component-03", "class-means"} == set(page.data["films"])
    sliders = {attributes["id"] for _, attributes in page.tags if attributes.get("type") == "range"}
    assert sliders == {f"{film}-slider" for film in films} <= set(page.attributes("for"))
    identifiers = page.attributes("id")
    assert len(identifiers) == len(set(identifiers))
    assert {link[1:] for link in page.attributes("href") if link and link.startswith("#")} <= set(identifiers)
    assert all("alt" in attributes for tag, attributes in page.tags if tag == "img")


def test_the_answers_behind_a_slider_are_the_boxes(report: Report) -> None:
    film = Page(build_page(report)).data["films"]["component-01"]
    rendering = report.renderings[0]
    assert rendering.seen is not None and report.answer is not None
    expected = report.answer.shown(rendering.seen.outputs)
    assert film["bars"] == [0, 1]
    assert film["answers"][1][3] == pytest.approx(expected[1, 3], abs=1e-3)
    assert sum(film["answers"][2][6]) == pytest.approx(1, abs=2e-3)


def test_what_comes_from_outside_is_escaped(report: Report, tmp_path: Path) -> None:
    content = {
        "step": 20, "suite": NASTY, "statements": [NASTY],
        "remarks": [{"about": NASTY, "verdict": "limits", "text": NASTY}],
        "headline": [{"label": NASTY, "value": NASTY, "note": NASTY}],
        "tables": [{"title": NASTY, "columns": [NASTY], "rows": [[NASTY, 0.5, None, float("nan")]]}],
        "regions": [{"by": NASTY, "region": NASTY, "pairs": NASTY, "measures": {NASTY: {"value": NASTY}}}],
    }  # fmt: skip
    html = build_page(evaluated(build_report(names={0: NASTY}), tmp_path, content))
    assert "<b>x" not in html
    page = Page(html)
    assert page.text.count(NASTY) >= 15
    assert NASTY in page.data["names"] and "The pictures of this page are of step 30." in page.text


def test_the_best_evaluation_of_the_step_is_taken_and_odd_ones_do_no_harm(report: Report, tmp_path: Path) -> None:
    assert best_evaluation(tmp_path, 30) is None
    assert write_evaluation(tmp_path, "a", {"step": 10, "suite": "quick"}).suite == "quick"
    assert write_evaluation(tmp_path, "b", {"step": 30, "suite": "standard"}).suite == "standard"
    assert write_evaluation(tmp_path, "c", {"step": 40}).step == 30
    witnessed = {"step": 30, "pairs": 900, "measures": {"ccc": {}, "witness_agreement": {}}, "arguments": ["--x", "y"]}
    assert write_evaluation(tmp_path, "f", witnessed).arguments == ["--x", "y"]
    for lesser in ({"pairs": 900, "measures": {"ccc": {}}}, {"pairs": 16, "measures": witnessed["measures"]}):
        assert "witness_agreement" in write_evaluation(tmp_path, "g", {"step": 30, **lesser}).measures, "not the newest"
    (tmp_path / "evaluations" / "f.json").unlink()
    (tmp_path / "evaluations" / "g.json").unlink()
    (tmp_path / "evaluations" / "d.json").write_text('{"step": 30')
    odd = {
        "step": 30, "headline": [3, {"value": 1, "low": "x"}], "tables": [{"rows": 3}], "components": [{"index": "x"}],
        "statements": 7, "crosstalk": [[1], "x"], "measures": [1], "controls": {"identity_copy": 3}, "remarks": {},
        "regions": [{"by": 3, "measures": 4}, 5],
    }  # fmt: skip
    found = write_evaluation(tmp_path, "e", odd)
    assert found.headline[0].low is None
    assert (found.tables, found.components, found.statements) == ([], {}, [])
    assert "Numbers and controls" in Page(build_page(replace(report, evaluation=found))).text


def test_an_evaluation_fills_the_page(report: Report, tmp_path: Path) -> None:
    page = Page(build_page(evaluated(report, tmp_path)))
    for expected in (
        "Relative shift", "0.81", "0.70 to 0.90", "N 200", "Component 3 is not visible.", "Supported", "Limited",
        "\N{MINUS SIGN}0.250", "ccc a", "By class asked for", "component 1: below 10 %", "flips",
        "A second classifier, which took no part in training, agrees", "80\N{NO-BREAK SPACE}% of the edited",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "Not evaluated yet" not in page.text and "The pictures of this page are of step" not in page.text
    spoken = [label for label in page.attributes("aria-label") if label and label.startswith("concordance")]
    assert spoken == [
        "concordance of asked and seen features: "
        "the generator 0.75, a copy of the source 0.05, the nearest real image 0.97"
    ]


def test_regions_stand_beside_real_images_and_name_the_classes_that_are_missing(report: Report) -> None:
    glad = {"by": "class", "region": "glad", "pairs": 9, "measures": measures(flip_success=0.5, witness_agreement=0.25)}
    glad["controls"] = {"nearest_real": measures(flip_success=0.75), "ceiling_real": measures(witness_agreement=0.625)}
    table = region_tables(parse_evaluation({"regions": [glad]}).regions, ("calm", "glad"))[0]
    assert table.missing == ("calm",)
    assert [(entry.value, entry.real) for entry in table.rows[0][2]] == [(0.5, 0.75), (0.25, 0.625)]
    assert region_tables(parse_evaluation({"regions": [glad]}).regions)[0].missing == ()


def test_marks_of_controls_stand_where_their_values_are(report: Report, tmp_path: Path) -> None:
    html = build_page(evaluated(report, tmp_path))
    places = dict(re.findall(r'class="mark (\w+)" style="left: ([\d.]+)%" title="[^"]*: 0\.(?:75|97)"', html))
    # The line goes from -0.1 to 1.1.
    assert {kind: float(place) for kind, place in places.items()} == {
        "generator": pytest.approx(100 * 0.85 / 1.2, abs=0.01),
        "nearest": pytest.approx(100 * 1.07 / 1.2, abs=0.01),
    }


def test_metrics_keep_finite_numbers_and_the_last_of_a_step(tmp_path: Path) -> None:
    lines = ['{"step": 2, "a": 1.0}', '{"step": 1, "a": 4}', '{"step": 2, "a": 3.0, "b": NaN}', "[]", '{"step": 3, "a"']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_metrics(tmp_path) == {"a": [(1, 4.0), (2, 3.0)]}
    assert read_metrics(tmp_path / "absent") == {}


def test_curves_are_thinned_and_ticks_are_round() -> None:
    bins = thin_out([(step, float(step % 2)) for step in range(1000)], 100)
    assert len(bins) == 100 and all((entry.low, entry.mean, entry.high) == (0, 0.5, 1) for entry in bins)
    assert ticks(0.03, 1.04) == [0.5, 1.0] and ticks(-3, 7) == [0, 5]
    assert ticks(5, 5) == [5]
    assert "<b>" not in draw_curve([(1, 1.0), (2, 1.0)], NASTY)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\N{EN DASH}"), (float("nan"), "\N{EN DASH}"), (0.5, "0.50"), (0.041, "0.041"),
     (-1.25, "\N{MINUS SIGN}1.25"),
     (12345, "12\N{NARROW NO-BREAK SPACE}345"), (123.4, "123.4"), ("x", "x"), (True, "yes")],
)  # fmt: skip
def test_numbers_are_shown_shortly(value: object, text: str) -> None:
    assert show_number(value, 2) == text
