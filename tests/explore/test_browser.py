"""Tests of the interactive page in a browser: its controls change the image and the prediction."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn

from featgan.explore.access_control import build_access_policy
from featgan.explore.edit_request import EditRequest
from featgan.explore.routes import build_app
from featgan.explore.serve import open_listener, page_url
from featgan.explore.session import ExploreSession, load_session
from tests.conftest import World
from tests.helpers.browser import Browser
from tests.helpers.explore import encode_image, pack_attributes, perfect_generator, train_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NUM_SHOWN_SCRIPT = "Number(document.body.dataset.numShown ?? 0)"
STATE_SCRIPT = """({
  edited: document.querySelector('[data-show=edited]').src,
  source: document.getElementById('source').getAttribute('src'),
  prediction: document.querySelector('[data-show=prediction]').textContent,
  bars: document.querySelector('.bars').innerText,
  announcement: document.getElementById('announcement').textContent,
  error: document.getElementById('error-message').textContent,
  output: document.querySelector('.component output')?.textContent,
  value: document.querySelector('.component input')?.value,
  valuetext: document.querySelector('.component input')?.getAttribute('aria-valuetext'),
})"""


class ServedPage:
    """Serves a page from a thread."""

    def __init__(self, session: ExploreSession, token: str | None = None) -> None:
        self.listener = open_listener("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.address = page_url("127.0.0.1", self.port, token)
        app = build_app(session, build_access_policy("127.0.0.1", "127.0.0.1", self.port, token))
        config = uvicorn.Config(app, loop="asyncio", http="h11", ws="none", lifespan="off", log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)

    def __enter__(self) -> "ServedPage":
        self.thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.listener.close()


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("browser")
    train_run(world, root / "features")
    train_run(world, root / "affect", dataset={"condition": {"kind": "valence_arousal"}})
    names = ["Blond_Hair", "Black_Hair", "Smiling"]
    attributes = {
        "shards": str(pack_attributes(world, root / "faces")),
        "condition": {"kind": "attributes", "attributes": names},
    }
    classes = {"shards": str(world.shards.path), "condition": {"kind": "expression"}}
    train_run(world, root / "both", dataset=attributes, second_dataset=classes)
    with perfect_generator(world):
        yield root


def run_and_wait(browser: Browser, script: str) -> dict[str, Any]:
    """Run a script in the page, wait until the next result is displayed, and return the state of the page."""
    before = browser.evaluate_script(NUM_SHOWN_SCRIPT)
    browser.evaluate_script(script)
    browser.wait_until(NUM_SHOWN_SCRIPT, lambda shown: shown > before)
    state: dict[str, Any] = browser.evaluate_script(STATE_SCRIPT)
    return state


def set_slider_script(selector: str, value: float) -> str:
    """Return a script that sets a slider as a user does."""
    return f"""(() => {{ const slider = document.querySelector('{selector}'); slider.value = {value};
      slider.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"""


def press_key(browser: Browser, key: str, code: int) -> None:
    """Press and release a key."""
    for kind in ("keyDown", "keyUp"):
        browser.send_command("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def assert_no_errors(browser: Browser, address: str) -> None:
    """Check that there are no console errors, and no requests to other servers."""
    hosts = {urlsplit(url).netloc for url in browser.requests if not url.startswith("data:")}
    assert browser.problems == [] and hosts == {urlsplit(address).netloc}


@pytest.mark.parametrize("width", [390, 1280])
def test_slider_changes_the_image_and_the_prediction(runs: Path, tmp_path: Path, width: int) -> None:
    with ServedPage(load_session([runs / "features"])) as served, Browser(tmp_path, width) as browser:
        browser.send_command(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )
        browser.open_page(served.address)
        first = browser.wait_until(f"{NUM_SHOWN_SCRIPT} && {STATE_SCRIPT}")
        moved = run_and_wait(browser, set_slider_script("#component-0", -2.5))
        assert moved["edited"] != first["edited"] and moved["bars"] != first["bars"]
        assert moved["output"].startswith("\N{MINUS SIGN}2.50, measured ")
        assert moved["valuetext"].endswith(" standard deviations")
        browser.wait_until(f"{STATE_SCRIPT}.announcement", lambda text: moved["prediction"] in text)
        reset = run_and_wait(browser, "document.querySelector('[data-component=\"0\"] [data-reset]').click()")
        assert reset["edited"] == first["edited"] and reset["value"] == first["value"]
        assert browser.evaluate_script("document.documentElement.scrollWidth <= innerWidth")
        assert_no_errors(browser, served.address)


def test_page_is_usable_with_the_keyboard(runs: Path, tmp_path: Path) -> None:
    with ServedPage(load_session([runs / "features"])) as served, Browser(tmp_path) as browser:
        browser.open_page(served.address)
        first = browser.wait_until(f"{NUM_SHOWN_SCRIPT} && {STATE_SCRIPT}")
        browser.evaluate_script("document.getElementById('component-0').focus()")
        for _ in range(5):
            press_key(browser, "ArrowRight", 39)
        moved = browser.wait_until(STATE_SCRIPT, lambda state: state["edited"] != first["edited"])
        assert float(moved["value"]) > float(first["value"])
        unlabeled = browser.evaluate_script("""[...document.querySelectorAll('input, button')].filter((control) =>
          !control.labels?.length && !control.textContent.trim() && !control.ariaLabel).map((control) => control.id)""")
        assert unlabeled == []
        unnamed = browser.evaluate_script("[...document.images].filter((image) => !image.hasAttribute('alt')).length")
        assert (
            unnamed == 0
            and browser.evaluate_script("document.querySelectorAll('[role=status][aria-live=polite]').length") == 1
        )
        assert_no_errors(browser, served.address)


def test_images_class_steps_and_difference_maps_are_shown(runs: Path, tmp_path: Path) -> None:
    with ServedPage(load_session([runs / "features", runs / "features"])) as served, Browser(tmp_path) as browser:
        browser.open_page(served.address)
        first = browser.wait_until(f"{NUM_SHOWN_SCRIPT} && {STATE_SCRIPT}")
        stepped = run_and_wait(browser, "document.querySelectorAll('.class-step [value^=\"head\"]')[3].click()")
        assert stepped["edited"] != first["edited"]
        other = run_and_wait(browser, "document.querySelectorAll('#target-images input')[3].click()")
        half = run_and_wait(browser, set_slider_script("#target-amount", 0.5))
        assert len({stepped["edited"], other["edited"], half["edited"]}) == 3
        run_and_wait(browser, "document.getElementById('difference').click()")
        maps = browser.evaluate_script(
            "[...document.querySelectorAll('.difference-map')].map((map) => map.offsetHeight > 0)"
        )
        assert maps == [True, True]
        assert run_and_wait(browser, "document.getElementById('reset').click()")["edited"] == first["edited"]
        content = list(encode_image("PNG", (30, 30), "blue"))
        script = f"""(() => {{
          const files = new DataTransfer();
          const content = new Uint8Array({json.dumps(content)});
          files.items.add(new File([content], 'my <b>blue</b>.png', {{type: 'image/png'}}));
          dispatchEvent(new DragEvent('drop', {{dataTransfer: files, cancelable: true}}));
        }})()"""
        dropped = run_and_wait(browser, script)
        assert dropped["source"].startswith("images/u") and dropped["edited"] != first["edited"]
        assert browser.evaluate_script("document.getElementById('source').alt") == "Source: my <b>blue</b>.png"
        browser.evaluate_script(script.replace("new Uint8Array", "''+new Uint8Array").replace("blue", "odd"))
        browser.wait_until(f"{STATE_SCRIPT}.error", lambda text: "not an image" in text)
        assert browser.problems and all("400" in problem for problem in browser.problems)  # Chromium logs the status
        browser.problems.clear()
        assert_no_errors(browser, served.address)


def test_old_response_never_replaces_a_newer_one(runs: Path, tmp_path: Path) -> None:
    session = load_session([runs / "features"])
    edits: list[float] = []

    class SlowSession(ExploreSession):
        def edit_with_all_runs(self, edit_request: EditRequest) -> dict[str, Any]:
            edits.append(edit_request.component_values.get(0, 0.0))
            time.sleep(0.15)
            return super().edit_with_all_runs(edit_request)

    with ServedPage(SlowSession(session.runs, session.image_store)) as served, Browser(tmp_path) as browser:
        browser.open_page(served.address)
        browser.wait_until(NUM_SHOWN_SCRIPT)
        del edits[:]
        browser.evaluate_script(f"""(async () => {{ for (let step = 1; step <= 40; step += 1) {{
          {set_slider_script("#component-0", 0).replace("= 0;", "= step / 20;")};
          await new Promise((done) => setTimeout(done, 15)); }} }})()""")
        browser.wait_until(
            "document.querySelector('.component output').textContent", lambda text: text.startswith("+2.00, measured")
        )
        time.sleep(0.5)
        assert edits[-1] == 2 and len(edits) < 12 and edits == sorted(edits)
        assert browser.evaluate_script("document.querySelector('.component output').textContent").startswith(
            "+2.00, measured"
        )


def test_valence_arousal_pad_edits_and_files_are_saved(runs: Path, tmp_path: Path) -> None:
    with ServedPage(load_session([runs / "affect"]), "t0ken") as served, Browser(tmp_path / "profile") as browser:
        browser.open_page(served.address)
        first = browser.wait_until(f"{NUM_SHOWN_SCRIPT} && {STATE_SCRIPT}")
        assert browser.evaluate_script("location.search") == ""  # the page removes the token
        x, y = browser.evaluate_script(
            "(() => { const bounds = document.querySelector('.valence-arousal-pad').getBoundingClientRect();"
            " return [bounds.left + 0.9 * bounds.width, bounds.top + 0.1 * bounds.height]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            browser.send_command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        browser.wait_until(STATE_SCRIPT, lambda state: state["edited"] != first["edited"])
        values = browser.evaluate_script("[...document.querySelectorAll('.labels input')].map((input) => input.value)")
        assert values == ["0.8", "0.8"]
        browser.send_command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        for kind, start in (("png", b"\x89PNG"), ("gif", b"GIF89a")):
            browser.evaluate_script(f"document.querySelector('[data-save={kind}]').click()")
            end = time.monotonic() + 30
            while not (tmp_path / f"featgan.{kind}").exists() and time.monotonic() < end:
                time.sleep(0.05)
            assert (tmp_path / f"featgan.{kind}").read_bytes().startswith(start)
        image = base64.b64decode(browser.send_command("Page.captureScreenshot", format="png")["data"])
        assert image.startswith(b"\x89PNG")


def test_labels_of_two_data_sets_replace_each_other(runs: Path, tmp_path: Path) -> None:
    """Only one hair color can be set; labels of the second data set replace those of the first."""
    checked_script = "[...document.querySelectorAll('[data-dataset=\"0\"] input')].map((input) => input.checked)"
    with ServedPage(load_session([runs / "both"])) as served, Browser(tmp_path) as browser:
        browser.open_page(served.address)
        browser.wait_until(NUM_SHOWN_SCRIPT)
        toggle = "document.querySelectorAll('[data-dataset=\"0\"] input')[{}]"
        for index in range(3):
            if browser.evaluate_script(f"{toggle.format(index)}.checked"):
                run_and_wait(browser, f"{toggle.format(index)}.click()")
        without_attributes = browser.evaluate_script(STATE_SCRIPT)
        blond = run_and_wait(browser, f"{toggle.format(0)}.click()")
        assert blond["edited"] != without_attributes["edited"]
        assert browser.evaluate_script(checked_script) == [True, False, False]
        run_and_wait(browser, f"{toggle.format(1)}.click()")
        assert browser.evaluate_script(checked_script) == [False, True, False]
        happy = run_and_wait(browser, "document.querySelectorAll('[data-dataset=\"1\"] input')[1].click()")
        # The generator receives zeros for the attributes again, since labels of the second data set leave them unknown.
        assert happy["edited"] == without_attributes["edited"]
        assert_no_errors(browser, served.address)
