"""The live page in a real browser: sliders move the picture and the answer, nothing leaves the machine."""

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

from featgan.explore.access_control import access_for
from featgan.explore.routes import build_app
from featgan.explore.serve import listen, page_address
from featgan.explore.session import Session, open_session
from tests.conftest import World
from tests.helpers.browser import Browser
from tests.helpers.explore import encode, obeying, pack_attributes, train_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SHOWN = "Number(document.body.dataset.shown ?? 0)"
STATE = """({
  edited: document.querySelector('[data-show=edited]').src,
  source: document.getElementById('source').getAttribute('src'),
  headline: document.querySelector('[data-show=headline]').textContent,
  bars: document.querySelector('.bars').innerText,
  spoken: document.getElementById('spoken').textContent,
  trouble: document.getElementById('trouble').textContent,
  output: document.querySelector('.component output')?.textContent,
  value: document.querySelector('.component input')?.value,
  valuetext: document.querySelector('.component input')?.getAttribute('aria-valuetext'),
})"""


class Served:
    """A page that is being served, with its address."""

    def __init__(self, session: Session, token: str | None = None) -> None:
        self.listener = listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.address = page_address("127.0.0.1", self.port, token)
        app = build_app(session, access_for("127.0.0.1", "127.0.0.1", self.port, token))
        config = uvicorn.Config(app, loop="asyncio", http="h11", ws="none", lifespan="off", log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)

    def __enter__(self) -> "Served":
        self.thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.listener.close()


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("browsed")
    train_run(world, root / "features")
    train_run(world, root / "affect", dataset={"condition": {"kind": "valence_arousal"}})
    names = ["Blond_Hair", "Black_Hair", "Smiling"]
    attributes = {
        "shards": str(pack_attributes(world, root / "faces")),
        "condition": {"kind": "attributes", "attributes": names},
    }
    classes = {"shards": str(world.shards.path), "condition": {"kind": "expression"}}
    train_run(world, root / "both", dataset=attributes, second_dataset=classes)
    with obeying(world):
        yield root


def after(browser: Browser, script: str) -> dict[str, Any]:
    """Do something in the page, and wait until its answer is shown."""
    before = browser.run(SHOWN)
    browser.run(script)
    browser.until(SHOWN, lambda shown: shown > before)
    state: dict[str, Any] = browser.run(STATE)
    return state


def slide(selector: str, value: float) -> str:
    return f"""(() => {{ const slider = document.querySelector('{selector}'); slider.value = {value};
      slider.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"""


def press(browser: Browser, key: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def is_quiet(browser: Browser, address: str) -> bool:
    """No error on the console, and no request to any other place than the page's own."""
    places = {urlsplit(url).netloc for url in browser.requests if not url.startswith("data:")}
    assert browser.problems == [] and places == {urlsplit(address).netloc}
    return True


@pytest.mark.parametrize("width", [390, 1280])
def test_a_slider_moves_the_picture_and_the_answer(runs: Path, tmp_path: Path, width: int) -> None:
    with Served(open_session([runs / "features"])) as served, Browser(tmp_path, width) as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        browser.open(served.address)
        first = browser.until(f"{SHOWN} && {STATE}")
        moved = after(browser, slide("#component-0", -2.5))
        assert moved["edited"] != first["edited"] and moved["bars"] != first["bars"]
        assert moved["output"].startswith("\N{MINUS SIGN}2.50, seen ") and "deviations" in moved["valuetext"]
        browser.until(f"{STATE}.spoken", lambda spoken: moved["headline"] in spoken)
        back = after(browser, "document.querySelector('[data-component=\"0\"] [data-reset]').click()")
        assert back["edited"] == first["edited"] and back["value"] == first["value"]
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert is_quiet(browser, served.address)


def test_the_keyboard_is_enough(runs: Path, tmp_path: Path) -> None:
    with Served(open_session([runs / "features"])) as served, Browser(tmp_path) as browser:
        browser.open(served.address)
        first = browser.until(f"{SHOWN} && {STATE}")
        browser.run("document.getElementById('component-0').focus()")
        for _ in range(5):
            press(browser, "ArrowRight", 39)
        moved = browser.until(STATE, lambda state: state["edited"] != first["edited"])
        assert float(moved["value"]) > float(first["value"])
        unlabelled = browser.run("""[...document.querySelectorAll('input, button')].filter((control) =>
          !control.labels?.length && !control.textContent.trim() && !control.ariaLabel).map((each) => each.id)""")
        assert unlabelled == []
        unnamed = browser.run("[...document.images].filter((image) => !image.hasAttribute('alt')).length")
        assert unnamed == 0 and browser.run("document.querySelectorAll('[role=status][aria-live=polite]').length") == 1
        assert is_quiet(browser, served.address)


def test_pictures_classes_and_differences(runs: Path, tmp_path: Path) -> None:
    with Served(open_session([runs / "features", runs / "features"])) as served, Browser(tmp_path) as browser:
        browser.open(served.address)
        first = browser.until(f"{SHOWN} && {STATE}")
        pushed = after(browser, "document.querySelectorAll('.push [value^=\"head\"]')[3].click()")
        assert pushed["edited"] != first["edited"]
        other = after(browser, "document.querySelectorAll('#seconds input')[3].click()")
        half = after(browser, slide("#second-amount", 0.5))
        assert len({pushed["edited"], other["edited"], half["edited"]}) == 3
        after(browser, "document.getElementById('difference').click()")
        maps = browser.run("[...document.querySelectorAll('.change')].map((map) => map.offsetHeight > 0)")
        assert maps == [True, True]
        assert after(browser, "document.getElementById('reset').click()")["edited"] == first["edited"]
        content = list(encode("PNG", (30, 30), "blue"))
        script = f"""(() => {{
          const files = new DataTransfer();
          const content = new Uint8Array({json.dumps(content)});
          files.items.add(new File([content], 'my <b>blue</b>.png', {{type: 'image/png'}}));
          dispatchEvent(new DragEvent('drop', {{dataTransfer: files, cancelable: true}}));
        }})()"""
        dropped = after(browser, script)
        assert dropped["source"].startswith("pictures/u") and dropped["edited"] != first["edited"]
        assert browser.run("document.getElementById('source').alt") == "Source: my <b>blue</b>.png"
        browser.run(script.replace("new Uint8Array", "''+new Uint8Array").replace("blue", "odd"))
        browser.until(f"{STATE}.trouble", lambda said: "not a JPEG or PNG image" in said)
        assert browser.problems and all("400" in problem for problem in browser.problems)  # Chromium notes the status
        browser.problems.clear()
        assert is_quiet(browser, served.address)


def test_a_slow_answer_never_overwrites_a_newer_one(runs: Path, tmp_path: Path) -> None:
    session = open_session([runs / "features"])
    edits: list[float] = []

    class Slow(Session):
        def edit(self, ask: Any) -> dict[str, Any]:
            edits.append(ask.pins.get(0, 0.0))
            time.sleep(0.15)
            return super().edit(ask)

    with Served(Slow(session.runs, session.pictures)) as served, Browser(tmp_path) as browser:
        browser.open(served.address)
        browser.until(SHOWN)
        del edits[:]
        browser.run(f"""(async () => {{ for (let step = 1; step <= 40; step += 1) {{
          {slide("#component-0", 0).replace("= 0;", "= step / 20;")};
          await new Promise((done) => setTimeout(done, 15)); }} }})()""")
        browser.until(
            "document.querySelector('.component output').textContent", lambda text: text.startswith("+2.00, seen")
        )
        time.sleep(0.5)
        assert edits[-1] == 2 and len(edits) < 12 and edits == sorted(edits)
        assert browser.run("document.querySelector('.component output').textContent").startswith("+2.00, seen")


def test_labels_have_a_plane_and_files_are_saved(runs: Path, tmp_path: Path) -> None:
    with Served(open_session([runs / "affect"]), "t0ken") as served, Browser(tmp_path / "profile") as browser:
        browser.open(served.address)
        first = browser.until(f"{SHOWN} && {STATE}")
        assert browser.run("location.search") == ""  # the token has left the address
        x, y = browser.run(
            "(() => { const box = document.querySelector('.pad').getBoundingClientRect();"
            " return [box.left + 0.9 * box.width, box.top + 0.1 * box.height]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        browser.until(STATE, lambda state: state["edited"] != first["edited"])
        values = browser.run("[...document.querySelectorAll('.labels input')].map((input) => input.value)")
        assert values == ["0.8", "0.8"]
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        for kind, start in (("png", b"\x89PNG"), ("gif", b"GIF89a")):
            browser.run(f"document.querySelector('[data-save={kind}]').click()")
            end = time.monotonic() + 30
            while not (tmp_path / f"featgan.{kind}").exists() and time.monotonic() < end:
                time.sleep(0.05)
            assert (tmp_path / f"featgan.{kind}").read_bytes().startswith(start)
        picture = base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"])
        assert picture.startswith(b"\x89PNG")


def test_toggles_of_attributes_and_buttons_of_a_second_data_set(runs: Path, tmp_path: Path) -> None:
    """Hair has one colour at a time; what is asked of the second data set replaces what was asked of the first."""
    checked = "[...document.querySelectorAll('[data-dataset=\"0\"] input')].map((input) => input.checked)"
    with Served(open_session([runs / "both"])) as served, Browser(tmp_path) as browser:
        browser.open(served.address)
        browser.until(SHOWN)
        toggle = "document.querySelectorAll('[data-dataset=\"0\"] input')[{}]"
        for place in range(3):
            if browser.run(f"{toggle.format(place)}.checked"):
                after(browser, f"{toggle.format(place)}.click()")
        bare = browser.run(STATE)
        blond = after(browser, f"{toggle.format(0)}.click()")
        assert blond["edited"] != bare["edited"] and browser.run(checked) == [True, False, False]
        after(browser, f"{toggle.format(1)}.click()")
        assert browser.run(checked) == [False, True, False]
        glad = after(browser, "document.querySelectorAll('[data-dataset=\"1\"] input')[1].click()")
        assert glad["edited"] == bare["edited"]  # the first data set's two numbers are unknown again, so zero
        assert is_quiet(browser, served.address)
