"""Family `http`: raw and malformed HTTP against `featgan explore`; a normal client must be served all the time."""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tests.chaos.binaries import damage_image
from tests.chaos.documents import damage_bytes, damage_json
from tests.chaos.outcomes import HANG, KILLED, OK, ORPHAN, OTHER_EXIT, TRACEBACK, TRACEBACK_MARKS, Outcome
from tests.chaos.processes import CommandSettings, read_output
from tests.chaos.scenarios import Family, Workplace

COMMAND = "featgan explore runs/a --port 0"
PARTS = ("config.yaml", "shards", "classifier", "runs", "images")
NUM_ATTACKS = 12
NORMAL_CLIENT_SECONDS = 45.0
"""Time in which a normal client, which tries again when it is refused, must be served."""
REPLY_SECONDS = 0.3
EDIT = {"client_id": "a1", "image": "x", "component_values": {"0": 2.0}, "amount": 0.5, "include_difference": True}
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "HEAD", "G\x00T", "get", "", "A" * 3000)
PATHS = (
    "/",
    "/images",
    "/edit",
    "/save.png",
    "/save.gif",
    "/images/x",
    "/../../etc/passwd",
    "/%00",
    "/%ff",
    "//x",
    "*",
    "x",
    "/images?seed=9" + "9" * 50,
    "/images?seed=-1",
    "/" + "a" * 70_000,
    "/images/%2e%2e",
    "/?token=x",
    "http://x/",
    "/\x1b[31m",
)
HEADERS = (
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Content-Length: x",
    "Content-Length: 5\r\nContent-Length: 6",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: x",
    "Host: evil.example",
    "Origin: http://evil.example",
    "Origin: null",
    "Authorization: Bearer x",
    "Authorization: Bearer \xff",
    "Cookie: featgan=x",
    "Cookie: " + "a=b; " * 2000,
    "Sec-Fetch-Site: cross-site",
    "Upgrade: websocket\r\nConnection: Upgrade",
    "Expect: 100-continue",
    "Range: bytes=0-18446744073709551615",
    "X: " + "y" * 100_000,
    "\r\n".join(f"X{n}: y" for n in range(3000)),
    "no colon",
    ": empty",
    " folded",
    "Content-Type: application/json",
    "Content-Type: \x00",
    "Accept-Encoding: gzip;q=x",
    "X-Forwarded-For: 1.2.3.4",
)


class Attacker:
    """Sends raw requests to a server, and keeps some connections open."""

    def __init__(self, address: tuple[str, int], authorization: str, rng: random.Random, images: list[bytes]) -> None:
        self.address, self.authorization, self.rng, self.images = address, authorization, rng, images
        self.open_sockets: list[socket.socket] = []
        self.log: list[str] = []

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(self.address, timeout=5)

    def attack(self) -> None:
        """Run one random attack; a server that refuses it is right."""
        kinds: tuple[Callable[[], str], ...] = (
            self.send_garbage,
            self.send_request,
            self.send_request,
            self.send_edit,
            self.send_edit,
            self.send_upload,
            self.send_upload,
            self.disconnect,
            self.hold_half_header,
            self.hold_half_body,
            self.hold_idle,
            self.send_pipeline,
        )
        kind = self.rng.choice(kinds)
        self.log.append(kind.__name__)
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.log[-1] += f" {kind()}"

    def build_request(self, method: str, path: str, headers: list[str], body: bytes = b"") -> bytes:
        """Return a request with the headers of a normal client, unless they are given."""
        lines = [f"{method} {path} HTTP/1.1", *headers]
        names = {header.partition(":")[0].lower() for header in headers}
        if "host" not in names:
            lines.append(f"Host: 127.0.0.1:{self.address[1]}")
        if "authorization" not in names and self.authorization:
            lines.append(f"Authorization: {self.authorization}")
        if body and not names & {"content-length", "transfer-encoding"}:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join(lines).encode("latin-1", errors="replace") + b"\r\n\r\n" + body

    def exchange(self, data: bytes) -> str:
        """Send bytes and return the first line of the response."""
        with self.connect() as connection:
            connection.sendall(data)
            connection.settimeout(REPLY_SECONDS)
            return connection.recv(4096).split(b"\r\n")[0].decode(errors="replace")

    def send_garbage(self) -> str:
        data, _ = damage_bytes(self.build_request("GET", "/", []), self.rng)
        return self.exchange(data or b"\r\n")

    def send_request(self) -> str:
        headers = self.rng.sample(HEADERS, self.rng.choice((0, 1, 1, 2)))
        body = self.rng.choice((b"", b"", b"{}", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\nx"))
        return self.exchange(self.build_request(self.rng.choice(METHODS), self.rng.choice(PATHS), headers, body))

    def send_edit(self) -> str:
        body, _ = damage_json(json.dumps(EDIT | {"image": self.find_image()}).encode(), self.rng)
        path = self.rng.choice(("/edit", "/edit", "/save.png", "/save.gif"))
        return self.exchange(self.build_request("POST", path, ["Content-Type: application/json"], body))

    def find_image(self) -> str:
        """Return the ID of an image that exists."""
        with contextlib.suppress(OSError, ValueError, LookupError):
            status, body = request_page(self.address, self.authorization, "/images?seed=1", 5)
            if status == 200:
                return str(json.loads(body)[0]["id"])
        return "x"

    def send_upload(self) -> str:
        body, change = damage_image(self.rng.choice(self.images), self.rng)
        return f"{self.exchange(self.build_request('POST', '/images?name=a', [], body))} {change}"

    def disconnect(self) -> str:
        """Send a part of an upload, and reset the connection."""
        data = self.build_request(
            "POST", "/images?name=a", [f"Content-Length: {self.rng.choice((10, 10_000, 1_000_000))}"]
        )
        with self.connect() as connection:
            connection.sendall(data + bytes(self.rng.randrange(9)))
            if self.rng.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return ""

    def hold_half_header(self) -> str:
        for _ in range(self.rng.choice((1, 10, 70))):
            connection = self.connect()
            self.open_sockets.append(connection)
            connection.sendall(self.build_request("GET", "/", [])[: self.rng.randrange(1, 40)])
        return f"{len(self.open_sockets)} open connections"

    def hold_half_body(self) -> str:
        for _ in range(self.rng.choice((1, 3, 10))):
            connection = self.connect()
            self.open_sockets.append(connection)
            path = self.rng.choice(("/edit", "/images?name=a"))
            connection.sendall(
                self.build_request("POST", path, ["Content-Type: application/json", "Content-Length: 500"], b"{")
            )
        return f"{len(self.open_sockets)} open connections"

    def hold_idle(self) -> str:
        for _ in range(self.rng.choice((1, 70, 200))):
            self.open_sockets.append(self.connect())
        return f"{len(self.open_sockets)} open connections"

    def send_pipeline(self) -> str:
        request = self.build_request("GET", self.rng.choice(("/", "/images", "/edit")), [])
        return self.exchange(request * self.rng.choice((2, 100)))

    def close(self) -> None:
        """Close the connections that were kept open."""
        for connection in self.open_sockets:
            connection.close()


def request_page(address: tuple[str, int], authorization: str, path: str, timeout: float) -> tuple[int, bytes]:
    """Request a page as a normal client does."""
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Authorization": authorization} if authorization else {})
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


def is_served(address: tuple[str, int], authorization: str) -> bool:
    """Return whether a normal client gets the page; it tries again when it is refused."""
    deadline = time.monotonic() + NORMAL_CLIENT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if request_page(address, authorization, "/", 10)[0] == 200:
                return True
        time.sleep(0.2)
    return False


class ServerVisit:
    """Waits until the server listens, attacks it, checks that it still serves a normal client, and stops it."""

    def __init__(self, output: Path, rng: random.Random, images: list[bytes]) -> None:
        self.output, self.rng, self.images = output, rng, images
        self.failure = ""
        self.log: list[str] = []
        self.is_done = False

    def poll(self, pid: int, seconds: float) -> None:
        """Do everything once the server has printed its address."""
        match = None if self.is_done else re.search(r"http://\S+", read_output(self.output / "stdout"))
        if match is None:
            return
        self.is_done = True
        address = urlsplit(match[0])
        authorization = f"Bearer {address.query.partition('=')[2]}" if address.query else ""
        attacker = Attacker((address.hostname or "", address.port or 0), authorization, self.rng, self.images)
        self.log = attacker.log
        try:
            for number in range(NUM_ATTACKS):
                attacker.attack()
                if number % 4 == 3 and not is_served(attacker.address, authorization):
                    self.failure = f"a normal client was not served within {NORMAL_CLIENT_SECONDS:.0f} s"
                    break
        finally:
            attacker.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)


def run_requests(workplace: Workplace, index: int) -> Outcome:
    """Start a server, attack it, and stop it."""
    rng = workplace.stream("http", index)
    folder = workplace.overlay.create_copy(PARTS)
    images = [path.read_bytes() for path in sorted((folder / "images").glob("*.jpg"))]
    needs_token = rng.random() < 0.5
    command = COMMAND + " --require-token" * needs_token
    visit = ServerVisit(workplace.overlay.output, rng, images)
    result = workplace.run(command.split(), CommandSettings(on_poll=visit.poll))
    text = result.stderr + result.log
    outcome, detail = OK, ""
    if any(mark in text for mark in TRACEBACK_MARKS):
        outcome, detail = TRACEBACK, text[-2500:]
    elif visit.failure or result.stopped_because:
        outcome, detail = HANG, f"{visit.failure} {result.stopped_because} {text[-500:]}"
    elif result.orphans:
        outcome, detail = ORPHAN, "; ".join(result.orphans)
    elif result.exit_code:
        outcome, detail = (
            (KILLED if result.exit_code < 0 else OTHER_EXIT),
            f"exit code {result.exit_code}; {text[-500:]}",
        )
    group = "with a token" if needs_token else "without a token"
    return Outcome(
        "http", index, group, command, "; ".join(visit.log), outcome, detail, result.seconds, result.peak_bytes / 1e6
    )


HTTP_REQUESTS = Family("http", run_requests, 0.08)
