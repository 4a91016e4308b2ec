"""The report in a real browser: sliders, keyboard, contrast, narrow screens, and no network requests."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featgan.report.edits.rendering import RenderedSweep
from featgan.report.html.page import Report, build_report_page
from featgan.run.evaluation_document import parse_evaluation
from tests.helpers.browser import find_chromium
from tests.helpers.report import SIZE, build_report, evaluation_document

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'featgan[test]'")

WAIT_MILLISECONDS = 150
"""Maximum time to decode an image."""

MEAN_RED_SCRIPT = """([card, screen]) => {
  const image = document.querySelector(`#${card} [data-screen=${screen}]`);
  const [bounds, frame] = [image.getBoundingClientRect(), image.parentElement.getBoundingClientRect()];
  const [x, y] = [image.naturalWidth / bounds.width, image.naturalHeight / bounds.height];
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 16;
  canvas.getContext("2d").drawImage(image, (frame.left - bounds.left) * x, (frame.top - bounds.top) * y,
    frame.width * x, frame.height * y, 0, 0, 16, 16);
  const pixels = canvas.getContext("2d").getImageData(4, 4, 8, 8).data;
  return [...pixels].filter((_, index) => index % 4 === 0).reduce((sum, value) => sum + value) / 64;
}"""

FOCUS_SCRIPT = "(({id, name, className}) => id || name || className)(document.activeElement)"

CONTRASTS_SCRIPT = """() => {
  const parseColor = (text) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d");
    context.fillStyle = text;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, index) => sum + v * [0.2126, 0.7152, 0.0722][index], 0);
  const backgroundColor = (element) => {
    for (let node = element; node; node = node.parentElement) {
      const color = parseColor(getComputedStyle(node).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const contrasts = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const bounds = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !bounds.width || style.visibility === "hidden") continue;
    if (["SCRIPT", "STYLE"].includes(element.tagName) || element.closest("svg")) continue;
    const [text, background] = [luminance(parseColor(style.color)), luminance(backgroundColor(element))];
    const contrast = (Math.max(text, background) + 0.05) / (Math.min(text, background) + 0.05);
    contrasts.push([contrast, walker.currentNode.data.trim().slice(0, 40)]);
  }
  return contrasts;
}"""


@pytest.fixture(scope="module")
def report() -> Report:
    return replace(build_report(names={0: "smile"}), evaluation=parse_evaluation(evaluation_document()))


@pytest.fixture(scope="module")
def path(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("report") / "report.html"
    page.write_text(build_report_page(report))
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = find_chromium()
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class PageVisit:
    """The page in a browser, with its requests and error messages."""

    def __init__(self, browser: Any, path: Path, width: int = 1440, height: int = 900, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def mean_red(self, card: str, screen: str) -> float:
        self.page.wait_for_timeout(WAIT_MILLISECONDS)
        return float(self.page.evaluate(MEAN_RED_SCRIPT, [card, screen]))

    def move_slider(self, card: str, frame: int) -> None:
        self.page.locator(f"#{card}-slider").fill(str(frame))

    def close_without_errors(self) -> None:
        """Assert that the page made no other request and raised no error, then close it."""
        assert [url for url in self.requests if not url.startswith(("data:", "file:"))] == []
        assert len([url for url in self.requests if url.startswith("file:")]) == 1
        assert self.errors == []
        self.context.close()


def center_mean_red(rendering: RenderedSweep, source: int, target: int) -> float:
    """Return the mean red of the central half of a frame."""
    quarter = SIZE // 4
    return float(rendering.frames[source, target, 0, quarter:-quarter, quarter:-quarter].float().mean())


def test_slider_changes_the_images_and_the_outputs(browser: Any, path: Path, report: Report) -> None:
    visit, rendering = PageVisit(browser, path), report.renderings[0]
    start, other = report.start, (report.start + 1) % 3
    card = visit.page.locator("#component-01")
    observed = {}
    for frame in (0, 6):
        visit.move_slider("component-01", frame)
        assert visit.mean_red("component-01", "edit") == pytest.approx(center_mean_red(rendering, start, frame), abs=12)
        label = rendering.sweep.labels[frame]
        assert card.locator("output").inner_text() == label
        assert str(card.locator("input").get_attribute("aria-valuetext")).startswith(label)
        observed[frame] = (
            visit.mean_red("component-01", "difference"),
            card.locator(".outputs .value").all_inner_texts(),
        )
    assert abs(center_mean_red(rendering, start, 0) - center_mean_red(rendering, start, 6)) > 30
    assert observed[0][0] != observed[6][0] and observed[0][1] != observed[6][1]
    assert rendering.predictions is not None and report.output_spec is not None
    share = report.output_spec.display_values(rendering.predictions.outputs)[start, 6, 0]
    assert float(observed[6][1][0].removesuffix(" %")) == pytest.approx(100 * share, abs=0.6)
    visit.page.locator(f"input[name=source][value='{other}']").check()
    assert visit.mean_red("component-01", "edit") == pytest.approx(center_mean_red(rendering, other, 6), abs=12)
    alt = f"Edited source {other + 1}, Component 1: smile at {rendering.sweep.labels[6]}"
    assert card.locator("[data-screen=edit]").get_attribute("alt") == alt
    strips = [
        visit.page.locator(selector).get_attribute("src")
        for selector in ("#ranking [data-card=component-01] .strip img", "#component-01 .films img")
    ]
    assert strips[0] == strips[1]
    visit.close_without_errors()


def test_class_edits_show_the_outputs_of_the_selected_source(browser: Any, path: Path, report: Report) -> None:
    visit = PageVisit(browser, path)
    rendering = next(rendering for rendering in report.renderings if rendering.sweep.group == "class")
    assert (
        rendering.predictions is not None and report.output_spec is not None and report.source_predictions is not None
    )
    before, after = (
        report.output_spec.display_values(predictions.outputs)
        for predictions in (report.source_predictions, rendering.predictions)
    )
    class_edits = visit.page.locator(".class-edits li")
    for source in range(3):
        visit.page.locator(f"input[name=source][value='{source}']").check()
        source_class = report.output_spec.names[int(before[source, 0].argmax())]
        assert visit.page.locator("[data-source-class]").inner_text() == source_class
        for index, name in enumerate(report.output_spec.names):
            output = (
                class_edits.nth(index)
                .locator("[data-class-edit]")
                .inner_text()
                .replace("\N{NO-BREAK SPACE}", " ")
                .split(" → ")
            )
            expected = [100 * before[source, 0, index], 100 * after[source, index, index]]
            assert [float(number.removesuffix(" %")) for number in output] == pytest.approx(expected, abs=0.6)
            assert class_edits.nth(index).get_by_role("link").inner_text() == name
            is_reached = after[source, index].argmax() == index != before[source, 0].argmax()
            assert ("reached" in (class_edits.nth(index).get_attribute("class") or "")) == is_reached
    visit.close_without_errors()


def test_film_plays_and_a_click_selects_a_frame(browser: Any, path: Path) -> None:
    visit = PageVisit(browser, path)
    slider, button = visit.page.locator("#component-02-slider"), visit.page.locator("#component-02 [data-play]")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    sync_api.expect(slider).not_to_have_value("6")
    button.click()
    bounding_box = visit.page.locator("#component-02 .films").bounding_box()
    visit.page.locator("#component-02 .films").click(position={"x": bounding_box["width"] * 2.5 / 7, "y": 5})
    assert slider.input_value() == "2" and button.get_attribute("aria-pressed") == "false"
    visit.close_without_errors()


def test_first_screen_contains_the_ranking_and_the_conclusions(browser: Any, path: Path) -> None:
    visit = PageVisit(browser, path)
    rows = visit.page.locator("#ranking li")
    assert rows.count() == 3 and [rows.nth(index).is_visible() for index in range(3)] == [True, False, False]
    unfold = visit.page.get_by_role("button", name="Show 2 components")
    unfold.click()
    assert unfold.is_hidden() and visit.page.evaluate("document.activeElement.hash") == "#component-02"
    for element in [*(rows.nth(index) for index in range(3)), visit.page.locator(".conclusions")]:
        bounding_box = element.bounding_box()
        assert bounding_box["y"] + bounding_box["height"] <= 900 and bounding_box["height"] > 30

    # The conclusions fit with the longest text of an evaluation, too.
    visit.page.evaluate(
        """() => document.querySelectorAll(".conclusions ul").forEach((list, index) => {
          list.innerHTML = `<li>${"twenty-seven characters ... ".repeat(5)}</li>`.repeat(4 - 2 * index);
        })"""
    )
    bounding_box = visit.page.locator(".conclusions").bounding_box()
    assert bounding_box["y"] + bounding_box["height"] <= 900

    # No element covers the rows: a trial click checks that a click would be received.
    for index in range(3):
        rows.nth(index).get_by_role("link").click(trial=True, timeout=2000)
        rows.nth(index).locator(".strip").click(trial=True, timeout=2000)

    def order(key: str) -> list[float]:
        return [float(rows.nth(index).get_attribute(f"data-{key}")) for index in range(3)]

    assert order("importance") == sorted(order("importance"), reverse=True)
    visit.page.get_by_role("button", name="visibility").click()
    assert order("visibility") == sorted(order("visibility"), reverse=True)
    visit.page.get_by_role("button", name="importance").click()
    assert order("importance") == sorted(order("importance"), reverse=True)
    assert visit.page.locator("#ranking").get_by_role("link", name="smile").count() == 1
    visit.close_without_errors()


def test_keyboard_reaches_every_control(browser: Any, path: Path, report: Report) -> None:
    visit = PageVisit(browser, path)
    focused = []
    for _ in range(60):
        visit.page.keyboard.press("Tab")
        focused.append(visit.page.evaluate(FOCUS_SCRIPT))
        if focused[-1] == "component-01-slider":
            break
    assert focused[0] == "skip" and "source" in focused and focused[-1] == "component-01-slider"
    for key, expected in (("ArrowLeft", "5"), ("Home", "0"), ("ArrowRight", "1"), ("End", "6")):
        visit.page.keyboard.press(key)
        assert visit.page.locator("#component-01-slider").input_value() == expected
    outlined = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outlined == "solid"
    visit.page.locator("input[name=source]:checked").focus()
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator("input[name=source]:checked").get_attribute("value") == str((report.start + 1) % 3)
    visit.close_without_errors()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Any, path: Path, scheme: str) -> None:
    visit = PageVisit(browser, path, scheme=scheme)
    background = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(21, 23, 26)") == (scheme == "dark")
    contrasts = visit.page.evaluate(CONTRASTS_SCRIPT)
    assert len(contrasts) > 80
    assert min(contrasts)[0] >= 4.5, min(contrasts)
    visit.close_without_errors()


@pytest.mark.parametrize("width", [320, 390, 820, 1280, 1920])
def test_page_fits_every_width_and_rows_are_complete(browser: Any, path: Path, width: int) -> None:
    visit = PageVisit(browser, path, width=width, height=844)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    if width < 500:  # a phone: the first row is at most one swipe away
        assert visit.page.locator(".class-edits .strip").bounding_box()["y"] < 844
        assert visit.page.locator("#ranking .strip").first.bounding_box()["y"] < 2 * 844
    visit.page.locator("[data-unfold]").click()
    for index in range(3):
        strip = visit.page.locator("#ranking .strip img").nth(index).bounding_box()
        assert strip["width"] / strip["height"] == pytest.approx(7, rel=0.05)
        assert 0 <= strip["x"] and strip["x"] + strip["width"] <= width
    inside = """[...document.querySelectorAll("td, th")].every((cell) => {
      const [inner, outer] = [cell.getBoundingClientRect(), cell.closest("table").getBoundingClientRect()];
      return inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
    })"""
    assert visit.page.evaluate(inside)
    visit.close_without_errors()


def test_page_without_scripts_shows_the_ranking_and_the_metrics(browser: Any, path: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("#ranking .strip img").first.bounding_box()["height"] > 20
    assert page.locator(".controls").first.is_hidden() and page.locator("#numbers .headline").is_visible()
    assert page.locator("#class-means .films img").first.bounding_box()["height"] > 20
    context.close()
