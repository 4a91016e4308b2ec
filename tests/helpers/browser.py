"""Headless Chromium over its DevTools pipe: pages are opened, scripts run in them, what they log and load is noted."""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe"
)
SECONDS = 60
"""An answer of the browser, or a state that is waited for, has come by then."""


def find_chromium() -> str:
    """Its path; where there is none the test is skipped, or fails where FEATGAN_NEEDS_BROWSER says that it must run."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing = pytest.fail if os.environ.get("FEATGAN_NEEDS_BROWSER") else pytest.skip
        missing("no Chromium on this machine (Debian: apt-get install chromium)")
    return found


class Browser:
    """One page; `problems` are its console errors and exceptions, `requests` every address that it asked for."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        chromium = find_chromium()
        self.command = [chromium, *FLAGS.split(), f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.number, self.received = 0, b""

    def __enter__(self) -> Self:
        from_us, self.to_browser = os.pipe()
        self.from_browser, to_us = os.pipe()

        # The browser reads commands from descriptor 3 and writes to 4, each message ended by a zero byte.
        shell = ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", *self.command]
        self.process = subprocess.Popen(
            shell, pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(from_us)
        os.close(to_us)
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # a page without a window has no focus
        return self

    def __exit__(self, *details: object) -> None:
        self.process.terminate()
        self.process.wait(SECONDS)
        os.close(self.to_browser)
        os.close(self.from_browser)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self) -> dict[str, Any]:
        """The next message; events are noted on the way."""
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.from_browser], [], [], SECONDS)
            assert ready, "the browser does not answer"
            part = os.read(self.from_browser, 1 << 16)
            assert part, "the browser has ended"
            self.received += part
        text, _, self.received = self.received.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self.note(message.get("method", ""), message.get("params", {}))
        return message

    def note(self, event: str, details: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.problems.append(str(details["args"]))
        elif event == "Runtime.exceptionThrown":
            self.problems.append(str(details["exceptionDetails"]))
        elif event == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])

    def open(self, address: str) -> None:
        """Go to a page and wait until it is loaded."""
        answer = self.call("Page.navigate", url=address)
        assert "errorText" not in answer, answer
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, condition: str, reached: Callable[[Any], bool] = bool) -> Any:
        """Wait until an expression in the page is as wanted; its value then."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            value = self.run(condition)
            if reached(value):
                return value
            time.sleep(0.02)
        raise AssertionError(f"never came true: {condition}")
