"""The report: labelled grids, animations, records read tolerantly, and the page in a real browser."""

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from featgan.directions import FeatureSpace
from featgan.report.animation import animate, there_and_back
from featgan.report.cards import ComponentFacts
from featgan.report.curves import draw_curve, thin_out, ticks
from featgan.report.grids import (
    GAP,
    GROUP_GAP,
    MARGIN,
    PAPER,
    Column,
    cell_size,
    fitting,
    font,
    labelled_grid,
    render_grid,
)
from featgan.report.page import Report, build_page, show_number
from featgan.report.records import newest_evaluation, read_metrics
from featgan.report.rendering import Rendering, difference_images, difference_scale, render_sweep
from featgan.report.sources import Sources
from featgan.report.sweeps import Subject, Sweep, class_sweeps, quantile_sweeps, transfer_sweeps

SIZE = 32
NASTY = "<b>x</b>'\"&"


def edit(images: Tensor, condition: Tensor) -> Tensor:
    """Red follows the first number of the condition, a bar at the left the second."""
    edited = images.clone()
    edited[:, 0] += 0.3 * condition[:, :1, None]
    edited[:, :, :, :8] += 0.3 * condition[:, 1, None, None, None]
    return edited.clamp(-1, 1)


@pytest.fixture(scope="module")
def report() -> Report:
    generator = torch.Generator().manual_seed(0)
    training = torch.randn(200, 4, generator=generator)
    training[:, 1] += 3 * training[:, 0]  # the first component is what these two share
    space = FeatureSpace.fit(training)
    images = torch.randint(0, 256, (3, 3, 4, 4), generator=generator, dtype=torch.uint8)
    images = images.repeat_interleave(SIZE // 4, 2).repeat_interleave(SIZE // 4, 3)
    features = torch.randn(3, 4, generator=generator)
    sources = Sources(images, ("one", NASTY, "three"), features, "of the validation set")
    subject = Subject(
        "features", features, images, space.standardize, space, 3, ("calm", NASTY), torch.eye(4)[:2],
    )  # fmt: skip
    sweeps = [*quantile_sweeps(subject), *class_sweeps(subject), *transfer_sweeps(subject)]
    own = Sweep("own", "", "", ("",), space.standardize(features)[:, None])
    reconstruction = render_sweep(edit, sources, own, None).frames[:, 0]
    renderings = [render_sweep(edit, sources, sweep, reconstruction) for sweep in sweeps]
    facts = ComponentFacts(space, torch.eye(4)[:2], ("calm", NASTY), {1: {"index": 1, "slope": 0.625}})
    return Report(
        run=f"run {NASTY}", kind="features", step=30, facts=[("Black box", NASTY)], sources=sources,
        renderings=renderings,
        scale=difference_scale(renderings), component_facts=facts,
        metrics={f"loss/{NASTY}": [(1, 2.0), (2, 1.0)]}, config=f"run: {NASTY}", commands=[f"featgan train {NASTY}"],
        hashes={"shards": "ab" * 32},
    )  # fmt: skip


def test_a_grid_has_a_cell_for_each_image_and_its_headings() -> None:
    columns = [Column("source", torch.full((2, 3, 40, 40), 200, dtype=torch.uint8))]
    columns += [
        Column(name, torch.zeros(2, 3, 40, 40, dtype=torch.uint8), starts_group=name == "10 %")
        for name in ("10 %", "50 %")
    ]
    sheet = labelled_grid("A title", columns)
    cell = cell_size(40)
    assert cell == 120
    assert sheet.width == 2 * MARGIN + 3 * cell + GAP + GROUP_GAP
    top = sheet.height - MARGIN - 2 * cell - GAP
    left = MARGIN + cell + GROUP_GAP
    assert sheet.getpixel((MARGIN + 5, top + 5)) == (200, 200, 200)
    assert sheet.getpixel((left + cell - 1, top + cell - 1)) == (0, 0, 0)
    assert sheet.getpixel((left + 5, top + cell + 1)) == PAPER
    for number in range(3):
        start = MARGIN + number * (cell + GAP) + (GROUP_GAP - GAP) * (number > 0)
        heading = sheet.crop((start, top - 22, start + cell, top)).convert("L")
        assert min(heading.tobytes()) < 60  # ink


def test_headings_shrink_before_they_are_shortened() -> None:
    text, face = fitting("reconstruction", 96, 14)
    assert text == "reconstruction" and 9 <= face.size <= 14 and face.getlength(text) <= 96
    text, face = fitting("a very long name of a class " * 3, 96, 14)
    assert text.endswith("\N{HORIZONTAL ELLIPSIS}") and face.getlength(text) <= 96
    assert font(14).getmask("\N{CYRILLIC CAPITAL LETTER ZHE}").getbbox() is not None


def test_a_component_grid_has_the_source_first_and_difference_maps_beside(report: Report) -> None:
    component, transfer = report.renderings[0], report.renderings[-1]
    with Image.open(io.BytesIO(render_grid(report.sources, component, report.scale))) as image:
        headings = image.text["Columns"].split(" | ")  # type: ignore[attr-defined]
        assert image.width == 2 * MARGIN + 12 * cell_size(SIZE) + 8 * GAP + 3 * GROUP_GAP
    assert headings[:7] == ["source", "1 %", "10 %", "50 %", "90 %", "99 %", "reconstruction"] and len(headings) == 12
    with Image.open(io.BytesIO(render_grid(report.sources, transfer, report.scale))) as taller:
        assert taller.height == image.height + cell_size(SIZE) + GAP  # the pictures above the columns


def test_difference_maps_share_one_scale() -> None:
    sweep = Sweep("a", "class", "A", ("low", "high"), torch.zeros(1, 2, 1))
    frames = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8)
    frames[0, 1] = 51
    rendering = Rendering(sweep, frames, torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    differences = rendering.differences()
    assert differences is not None
    assert rendering.visible_change() == pytest.approx(0.2)
    assert difference_scale([rendering]) == pytest.approx(0.2)
    colours = difference_images(differences, 0.2)
    assert colours.shape == frames.shape
    assert colours[0, 0].max() <= 4 and colours[0, 1, 0].min() > 240
    assert difference_scale([replace(rendering, reconstruction=None)]) == 0.05


def test_animations_go_there_and_back(report: Report) -> None:
    names = [Image.new("L", (1, 1), number) for number in range(4)]
    order, durations = there_and_back(names)
    assert [frame.getpixel((0, 0)) for frame in order] == [0, 1, 2, 3, 2, 1]
    assert durations[0] == durations[3] > durations[1] == durations[5]
    for kind, content in animate(report.renderings[0]).items():
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == kind.upper() and image.n_frames == 16 and image.info["loop"] == 0  # type: ignore[attr-defined]


class Page(HTMLParser):
    """Every start tag with its attributes, and the text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


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


def test_the_page_has_every_component_with_a_labelled_slider(report: Report) -> None:
    page = Page(build_page(report))
    films = [attributes["id"] for tag, attributes in page.tags if "data-film" in attributes]
    assert films == ["component-01", "component-02", "component-03", "class-means"]
    sliders = {attributes["id"] for _, attributes in page.tags if attributes.get("type") == "range"}
    assert (
        sliders == {f"{film}-slider" for film in films} == {name for name in page.attributes("for") if name} & sliders
    )
    identifiers = page.attributes("id")
    assert len(identifiers) == len(set(identifiers))
    assert {link[1:] for link in page.attributes("href") if link and link.startswith("#")} <= set(identifiers)
    assert all("alt" in attributes for tag, attributes in page.tags if tag == "img")
    assert "0.62" in page.text and page.text.count("slope") == 2 and page.text.count("\N{EN DASH}") == 2
    assert "Not evaluated yet" in page.text


def test_what_comes_from_outside_is_escaped(report: Report, tmp_path: Path) -> None:
    evaluation = {
        "step": 20, "suite": NASTY, "statements": [NASTY],
        "headline": [{"label": NASTY, "value": NASTY, "note": NASTY}],
        "tables": [{"title": NASTY, "columns": [NASTY], "rows": [[NASTY, 0.5, None, float("nan")]]}],
    }  # fmt: skip
    html = build_page(replace(report, evaluation=write_evaluation(tmp_path, "a", evaluation)))
    assert "<b>" not in html
    page = Page(html)
    assert page.text.count(NASTY) >= 12
    assert NASTY in (page.attributes("data-labels")[-1] or "").encode().decode("unicode_escape")
    assert "The pictures below are of step 30." in page.text


def write_evaluation(run: Path, name: str, content: Any) -> Any:
    (run / "evaluations").mkdir(exist_ok=True)
    (run / "evaluations" / f"{name}.json").write_text(json.dumps(content))
    return newest_evaluation(run, 30)


def test_the_newest_evaluation_of_the_step_is_taken_and_odd_ones_do_no_harm(tmp_path: Path) -> None:
    assert newest_evaluation(tmp_path, 30) is None
    assert write_evaluation(tmp_path, "a", {"step": 10, "suite": "quick"}).suite == "quick"
    assert write_evaluation(tmp_path, "b", {"step": 30, "suite": "standard"}).suite == "standard"
    assert write_evaluation(tmp_path, "c", {"step": 40}).step == 30
    (tmp_path / "evaluations" / "d.json").write_text('{"step": 30')
    odd = {
        "step": 30,
        "headline": [3, {"value": 1, "low": "x"}],
        "tables": [{"rows": 3}],
        "components": [{"index": "x"}],
    }
    assert write_evaluation(tmp_path, "e", odd | {"statements": 7}).headline[0].low is None
    found = newest_evaluation(tmp_path, 30)
    assert found is not None and found.tables == [] and found.components == {} and found.statements == []


def test_an_evaluation_fills_the_page(report: Report, tmp_path: Path) -> None:
    evaluation = {
        "step": 30, "suite": "quick", "statements": ["Component 2 is not visible."],
        "headline": [{"label": "Relative shift", "value": 0.8125, "low": 0.7, "high": 0.9, "note": "N 200"}],
        "tables": [{"title": "Controls", "columns": ["", "CCC"], "rows": [["identity copy", -0.25]]}],
    }  # fmt: skip
    text = Page(build_page(replace(report, evaluation=write_evaluation(tmp_path, "a", evaluation)))).text
    for expected in (
        "Relative shift",
        "0.81",
        "0.70 to 0.90",
        "N 200",
        "Component 2 is not visible.",
        "\N{MINUS SIGN}0.250",
    ):
        assert expected in text
    assert "Not evaluated yet" not in text and "The pictures below are of step" not in text


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


PROBE = """
<script>
window.addEventListener("load", () => {
  const card = document.getElementById("component-01");
  const slider = card.querySelector("input[type=range]");
  const pixels = async (name) => {
    const image = card.querySelector(`[data-screen=${name}]`);
    while (!image.complete || !image.naturalWidth) await new Promise((done) => setTimeout(done, 20));
    const [box, screen] = [image.getBoundingClientRect(), image.parentElement.getBoundingClientRect()];
    const [x, y] = [image.naturalWidth / box.width, image.naturalHeight / box.height];
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 16;
    canvas.getContext("2d").drawImage(image, (screen.left - box.left) * x, (screen.top - box.top) * y,
      screen.width * x, screen.height * y, 0, 0, 16, 16);
    return [...canvas.getContext("2d").getImageData(4, 4, 8, 8).data].filter((_, index) => index % 4 === 0)
      .reduce((sum, value) => sum + value) / 64;
  };
  const move = async (value) => {
    slider.value = value;
    slider.dispatchEvent(new Event("input", {bubbles: true}));
    return {edit: await pixels("edit"), difference: await pixels("difference"), source: await pixels("source"),
      label: card.querySelector("output").textContent, spoken: slider.getAttribute("aria-valuetext"),
      alt: card.querySelector("[data-screen=edit]").alt};
  };
  (async () => {
    const found = {low: await move(0), high: await move(8)};
    document.querySelectorAll("input[name=source]")[1].click();
    found.other = await move(8);
    found.shown = [...card.querySelectorAll(".films img")].map((film) => film.offsetWidth > 0);
    found.wider = document.documentElement.scrollWidth > window.innerWidth;
    card.querySelector("[data-play]").click();
    await new Promise((done) => setTimeout(done, 600));
    found.played = Number(slider.value);
    found.stages = [...document.querySelectorAll(".stage")].every((stage) => stage.offsetHeight > 0);
    document.body.dataset.found = JSON.stringify(found);
  })().catch((error) => { document.body.dataset.found = JSON.stringify({error: String(error)}); });
});
</script></body>
"""


def browse(page: Path, *options: str) -> tuple[str, str]:
    """Open a page in headless Chromium: the page after its scripts ran, and what the browser logged."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000 --dump-dom"
    command = [chromium, *flags.split(), f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_sliders_move_the_images_in_a_browser(report: Report, tmp_path: Path, width: int) -> None:
    page = tmp_path / "report.html"
    page.write_text(build_page(report).replace("</body>", PROBE))
    dom, log = browse(page, f"--window-size={width},900")
    assert "CONSOLE" not in log, log
    found = json.loads(Page(dom).attributes("data-found")[0] or "")
    expected = [red_inside(report.renderings[0], *place) for place in ((0, 0), (0, 8), (1, 8))]
    measured = [found[name]["edit"] for name in ("low", "high", "other")]
    assert measured == pytest.approx(expected, abs=12)
    assert abs(expected[0] - expected[1]) > 30
    assert found["low"]["difference"] != found["high"]["difference"]
    assert found["low"]["source"] == found["high"]["source"] != found["other"]["source"]
    assert found["high"]["label"] == found["high"]["spoken"] == report.renderings[0].sweep.labels[8]
    assert found["other"]["alt"] == f"Edited source 2, Component 1 at {report.renderings[0].sweep.labels[8]}"
    assert found["shown"] == [False, True, False]
    assert found["played"] != 8 and found["stages"] and not found["wider"]


def red_inside(rendering: Rendering, source: int, target: int) -> float:
    """Mean red of the middle quarter of a frame."""
    quarter = SIZE // 4
    return float(rendering.frames[source, target, 0, quarter:-quarter, quarter:-quarter].float().mean())
