"""The report in a real browser: sliders, keyboard, contrast, narrow screens, and nothing asked of the network."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featgan.report.edits.rendering import Rendering
from featgan.report.html.page import Report, build_page
from featgan.report.run_files import parse_evaluation
from tests.helpers.browser import find_chromium
from tests.helpers.report import SIZE, build_report, evaluation

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'featgan[test]'")

WAIT = 150
"""Milliseconds that a picture may take to be decoded."""

MEAN_RED = """([card, screen]) => {
  const image = document.querySelector(`#${card} [data-screen=${screen}]`);
  const [box, frame] = [image.getBoundingClientRect(), image.parentElement.getBoundingClientRect()];
  const [x, y] = [image.naturalWidth / box.width, image.naturalHeight / box.height];
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 16;
  canvas.getContext("2d").drawImage(image, (frame.left - box.left) * x, (frame.top - box.top) * y,
    frame.width * x, frame.height * y, 0, 0, 16, 16);
  const pixels = canvas.getContext("2d").getImageData(4, 4, 8, 8).data;
  return [...pixels].filter((_, index) => index % 4 === 0).reduce((sum, value) => sum + value) / 64;
}"""

FOCUS = "(({id, name, className}) => id || name || className)(document.activeElement)"

CONTRASTS = """() => {
  const colour = (text) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d");
    context.fillStyle = text;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, index) => sum + v * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const found = colour(getComputedStyle(each).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const box = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !box.width || style.visibility === "hidden") continue;
    if (["SCRIPT", "STYLE"].includes(element.tagName) || element.closest("svg")) continue;
    const [one, other] = [light(colour(style.color)), light(ground(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    found.push([contrast, walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def report() -> Report:
    return replace(build_report(names={0: "smile"}), evaluation=parse_evaluation(evaluation()))


@pytest.fixture(scope="module")
def path(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("report") / "report.html"
    page.write_text(build_page(report))
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = find_chromium()
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Visit:
    """The page as a browser shows it, and what it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, width: int = 1440, height: int = 900, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def red(self, card: str, screen: str) -> float:
        self.page.wait_for_timeout(WAIT)
        return float(self.page.evaluate(MEAN_RED, [card, screen]))

    def move(self, card: str, frame: int) -> None:
        self.page.locator(f"#{card}-slider").fill(str(frame))

    def close(self) -> None:
        """Nothing but the file itself and what it holds was asked for, and nothing went wrong."""
        assert [url for url in self.requests if not url.startswith(("data:", "file:"))] == []
        assert len([url for url in self.requests if url.startswith("file:")]) == 1
        assert self.complaints == []
        self.context.close()


def red_inside(rendering: Rendering, source: int, target: int) -> float:
    """Mean red of the middle quarter of a frame."""
    quarter = SIZE // 4
    return float(rendering.frames[source, target, 0, quarter:-quarter, quarter:-quarter].float().mean())


def test_sliders_move_the_pictures_and_the_answers(browser: Any, path: Path, report: Report) -> None:
    visit, rendering = Visit(browser, path), report.renderings[0]
    start, other = report.start, (report.start + 1) % 3
    card = visit.page.locator("#component-01")
    seen = {}
    for frame in (0, 6):
        visit.move("component-01", frame)
        assert visit.red("component-01", "edit") == pytest.approx(red_inside(rendering, start, frame), abs=12)
        label = rendering.sweep.labels[frame]
        assert card.locator("output").inner_text() == label
        assert str(card.locator("input").get_attribute("aria-valuetext")).startswith(label)
        seen[frame] = (visit.red("component-01", "difference"), card.locator(".answers .value").all_inner_texts())
    assert abs(red_inside(rendering, start, 0) - red_inside(rendering, start, 6)) > 30
    assert seen[0][0] != seen[6][0] and seen[0][1] != seen[6][1]
    assert rendering.seen is not None and report.answer is not None
    share = report.answer.shown(rendering.seen.outputs)[start, 6, 0]
    assert float(seen[6][1][0].removesuffix(" %")) == pytest.approx(100 * share, abs=0.6)
    visit.page.locator(f"input[name=source][value='{other}']").check()
    assert visit.red("component-01", "edit") == pytest.approx(red_inside(rendering, other, 6), abs=12)
    alt = f"Edited source {other + 1}, Component 1: smile at {rendering.sweep.labels[6]}"
    assert card.locator("[data-screen=edit]").get_attribute("alt") == alt
    strips = [
        visit.page.locator(place).get_attribute("src")
        for place in ("#ranking [data-card=component-01] .strip img", "#component-01 .films img")
    ]
    assert strips[0] == strips[1]
    visit.close()


def test_the_answers_under_the_tiles_are_those_of_the_picture_chosen(browser: Any, path: Path, report: Report) -> None:
    visit, rendering = Visit(browser, path), next(each for each in report.renderings if each.sweep.group == "class")
    assert rendering.seen is not None and report.answer is not None and report.source_seen is not None
    before, after = (report.answer.shown(seen.outputs) for seen in (report.source_seen, rendering.seen))
    tiles = visit.page.locator(".tiles li")
    for source in range(3):
        visit.page.locator(f"input[name=source][value='{source}']").check()
        own = report.answer.names[int(before[source, 0].argmax())]
        assert visit.page.locator("[data-tile-own]").inner_text() == own
        for index, name in enumerate(report.answer.names):
            said = tiles.nth(index).locator("[data-tile]").inner_text().replace("\N{NO-BREAK SPACE}", " ").split(" → ")
            expected = [100 * before[source, 0, index], 100 * after[source, index, index]]
            assert [float(number.removesuffix(" %")) for number in said] == pytest.approx(expected, abs=0.6)
            assert tiles.nth(index).get_by_role("link").inner_text() == name
            is_reached = after[source, index].argmax() == index != before[source, 0].argmax()
            assert ("reached" in (tiles.nth(index).get_attribute("class") or "")) == is_reached
    visit.close()


def test_a_film_plays_and_a_click_on_a_frame_shows_it(browser: Any, path: Path) -> None:
    visit = Visit(browser, path)
    slider, button = visit.page.locator("#component-02-slider"), visit.page.locator("#component-02 [data-play]")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    sync_api.expect(slider).not_to_have_value("6")
    button.click()
    box = visit.page.locator("#component-02 .films").bounding_box()
    visit.page.locator("#component-02 .films").click(position={"x": box["width"] * 2.5 / 7, "y": 5})
    assert slider.input_value() == "2" and button.get_attribute("aria-pressed") == "false"
    visit.close()


def test_the_first_screen_holds_the_ranking_and_can_be_ranked_by_what_is_visible(browser: Any, path: Path) -> None:
    visit = Visit(browser, path)
    rows = visit.page.locator("#ranking li")
    assert rows.count() == 3 and [rows.nth(index).is_visible() for index in range(3)] == [True, False, False]
    unfold = visit.page.get_by_role("button", name="Show the 2 that carry")
    unfold.click()  # those on which the answer hardly hangs
    assert unfold.is_hidden() and visit.page.evaluate("document.activeElement.hash") == "#component-02"
    for place in [*(rows.nth(index) for index in range(3)), visit.page.locator(".verdict")]:
        box = place.bounding_box()
        assert box["y"] + box["height"] <= 900 and box["height"] > 30

    # So it does with as many words as an evaluation may find.
    visit.page.evaluate(
        """() => document.querySelectorAll(".verdict ul").forEach((list, index) => {
          list.innerHTML = `<li>${"twenty-seven characters ... ".repeat(5)}</li>`.repeat(4 - 2 * index);
        })"""
    )
    box = visit.page.locator(".verdict").bounding_box()
    assert box["y"] + box["height"] <= 900

    # Nothing lies over it: a trial checks that a click would arrive.
    for index in range(3):
        rows.nth(index).get_by_role("link").click(trial=True, timeout=2000)
        rows.nth(index).locator(".strip").click(trial=True, timeout=2000)

    def order(key: str) -> list[float]:
        return [float(rows.nth(index).get_attribute(f"data-{key}")) for index in range(3)]

    assert order("matters") == sorted(order("matters"), reverse=True)
    visit.page.get_by_role("button", name="how visible they are").click()
    assert order("visible") == sorted(order("visible"), reverse=True)
    visit.page.get_by_role("button", name="how much they matter").click()
    assert order("matters") == sorted(order("matters"), reverse=True)
    assert visit.page.locator("#ranking").get_by_role("link", name="smile").count() == 1
    visit.close()


def test_the_keyboard_reaches_everything(browser: Any, path: Path, report: Report) -> None:
    visit = Visit(browser, path)
    reached = []
    for _ in range(60):
        visit.page.keyboard.press("Tab")
        reached.append(visit.page.evaluate(FOCUS))
        if reached[-1] == "component-01-slider":
            break
    assert reached[0] == "skip" and "source" in reached and reached[-1] == "component-01-slider"
    for key, expected in (("ArrowLeft", "5"), ("Home", "0"), ("ArrowRight", "1"), ("End", "6")):
        visit.page.keyboard.press(key)
        assert visit.page.locator("#component-01-slider").input_value() == expected
    outlined = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outlined == "solid"
    visit.page.locator("input[name=source]:checked").focus()
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator("input[name=source]:checked").get_attribute("value") == str((report.start + 1) % 3)
    visit.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Any, path: Path, scheme: str) -> None:
    visit = Visit(browser, path, scheme=scheme)
    ground = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (ground == "rgb(21, 23, 26)") == (scheme == "dark")
    contrasts = visit.page.evaluate(CONTRASTS)
    assert len(contrasts) > 80
    assert min(contrasts)[0] >= 4.5, min(contrasts)
    visit.close()


@pytest.mark.parametrize("width", [320, 390, 820, 1280, 1920])
def test_no_width_scrolls_sideways_and_every_row_is_whole(browser: Any, path: Path, width: int) -> None:
    visit = Visit(browser, path, width=width, height=844)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    if width < 500:  # a phone: the first row is to be seen with one move of a finger
        assert visit.page.locator(".tiles .strip").bounding_box()["y"] < 844
        assert visit.page.locator("#ranking .strip").first.bounding_box()["y"] < 2 * 844
    visit.page.locator("[data-unfold]").click()
    for index in range(3):
        strip = visit.page.locator("#ranking .strip img").nth(index).bounding_box()
        assert strip["width"] / strip["height"] == pytest.approx(7, rel=0.05)
        assert 0 <= strip["x"] and strip["x"] + strip["width"] <= width
    inside = """[...document.querySelectorAll("td, th")].every((cell) => {
      const [one, all] = [cell.getBoundingClientRect(), cell.closest("table").getBoundingClientRect()];
      return one.top >= all.top - 1 && one.bottom <= all.bottom + 1;
    })"""
    assert visit.page.evaluate(inside)
    visit.close()


def test_without_scripts_the_ranking_and_the_numbers_still_show(browser: Any, path: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("#ranking .strip img").first.bounding_box()["height"] > 20
    assert page.locator(".controls").first.is_hidden() and page.locator("#numbers .headline").is_visible()
    assert page.locator("#class-means .films img").first.bounding_box()["height"] > 20
    context.close()
