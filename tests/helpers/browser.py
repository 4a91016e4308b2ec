"""Control headless Chromium over its DevTools pipe: open pages, run scripts, record errors and requests."""

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

CHROMIUM_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe"
)
TIMEOUT_SECONDS = 60
"""Timeout for a response of the browser and for a state that a test waits for."""


def find_chromium() -> str:
    """Return the path of Chromium; without one, skip the test, or fail it if FEATGAN_NEEDS_BROWSER is set."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        skip_or_fail = pytest.fail if os.environ.get("FEATGAN_NEEDS_BROWSER") else pytest.skip
        skip_or_fail("no Chromium on this machine (Debian: apt-get install chromium)")
    return path


class Browser:
    """One page; `problems` are its console errors and exceptions, `requests` the URLs that it requested."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        chromium = find_chromium()
        self.command = [
            chromium,
            *CHROMIUM_FLAGS.split(),
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
        ]
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.last_message_id, self.buffer = 0, b""

    def __enter__(self) -> Self:
        command_reader, self.to_browser = os.pipe()
        self.from_browser, response_writer = os.pipe()

        # The browser reads commands from descriptor 3 and writes to 4, each message ended by a zero byte.
        command = ["bash", "-c", f'exec "$@" 3<&{command_reader} 4>&{response_writer}', "bash", *self.command]
        self.process = subprocess.Popen(
            command, pass_fds=(command_reader, response_writer), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(command_reader)
        os.close(response_writer)
        self.session = ""
        target = self.send_command("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send_command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send_command(f"{domain}.enable")
        self.send_command("Emulation.setFocusEmulationEnabled", enabled=True)  # a headless page has no focus otherwise
        return self

    def __exit__(self, *details: object) -> None:
        self.process.terminate()
        self.process.wait(TIMEOUT_SECONDS)
        os.close(self.to_browser)
        os.close(self.from_browser)

    def send_command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self.last_message_id += 1
        message: dict[str, Any] = {"id": self.last_message_id, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            response = self.receive_message()
            if response.get("id") == self.last_message_id:
                assert "error" not in response, response
                return response["result"]

    def receive_message(self) -> dict[str, Any]:
        """Return the next message and record its event."""
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], TIMEOUT_SECONDS)
            assert ready, "the browser does not respond"
            chunk = os.read(self.from_browser, 1 << 16)
            assert chunk, "the browser has ended"
            self.buffer += chunk
        text, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self.record_event(message.get("method", ""), message.get("params", {}))
        return message

    def record_event(self, event: str, details: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.problems.append(str(details["args"]))
        elif event == "Runtime.exceptionThrown":
            self.problems.append(str(details["exceptionDetails"]))
        elif event == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])

    def open_page(self, address: str) -> None:
        """Open a page and wait until it is loaded."""
        response = self.send_command("Page.navigate", url=address)
        assert "errorText" not in response, response
        self.wait_until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate_script(self, script: str) -> Any:
        """Evaluate an expression in the page, await its promise and return the value."""
        response = self.send_command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in response, response
        return response["result"].get("value")

    def wait_until(self, condition: str, is_reached: Callable[[Any], bool] = bool) -> Any:
        """Wait until an expression in the page fulfills `is_reached`; return its value."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            value = self.evaluate_script(condition)
            if is_reached(value):
                return value
            time.sleep(0.02)
        raise AssertionError(f"timeout: {condition}")
