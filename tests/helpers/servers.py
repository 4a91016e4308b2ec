"""Servers for tests, on loopback: HTTP with faults, and S3 by moto in a process of its own."""

import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from featgan.data.remote.fetching import CONNECTIONS

Fault = Callable[["FaultyHandler"], bool]
"""Answers a request and returns True, or changes it and returns False."""


class FaultyHandler(SimpleHTTPRequestHandler):
    """Sends the files of a folder, except for requests with a fault."""

    server: "FaultyServer"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, directory=str(arguments[2].folder), **options)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.requests.append(self.path)
            self.server.headers.append(dict(self.headers))
            faults = self.server.faults[path]
            fault = faults.pop(0) if faults else None
        if fault is None or not fault(self):
            super().do_GET()

    def send_content(
        self, content: bytes, length: int | None = None, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a complete answer; `length` replaces the length in its header."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


class FaultyServer(ThreadingHTTPServer):
    """A server on a free port of 127.0.0.1, which keeps its port while it is stopped."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        super().__init__(("127.0.0.1", port), FaultyHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fail(self, path: str, *faults: Fault) -> None:
        """Answer the next requests for a path with faults, one for each request."""
        self.faults[path] += faults

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing about connections that the client closes early."""


@contextmanager
def serve_folder(folder: Path, port: int = 0) -> Iterator[FaultyServer]:
    """Serve a folder over http in a thread."""
    with FaultyServer(folder, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def send_status(status: int, **headers: str) -> Fault:
    """Answer with a status of HTTP and an empty page."""

    def answer(handler: FaultyHandler) -> bool:
        handler.send_content(b"", None, status, headers)
        return True

    return answer


def redirect_to(url: str) -> Fault:
    """Answer with a redirect."""
    return send_status(302, Location=url)


def cut_body(num_bytes: int, pause: float = 0.0) -> Fault:
    """Send the start of the file and close the connection after a pause, in which the client can read it."""

    def answer(handler: FaultyHandler) -> bool:
        content = (handler.server.folder / handler.path.lstrip("/").partition("?")[0]).read_bytes()
        handler.send_content(content[:num_bytes], len(content))
        time.sleep(pause)
        handler.close_connection = True
        return True

    return answer


def send_bytes(content: bytes, length: int | None = None) -> Fault:
    """Send other bytes than those of the file."""

    def answer(handler: FaultyHandler) -> bool:
        handler.send_content(content, length)
        handler.close_connection = True
        return True

    return answer


def drop_connection(handler: FaultyHandler) -> bool:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()
    return True


def wait_seconds(seconds: float) -> Fault:
    """Answer later."""

    def answer(handler: FaultyHandler) -> bool:
        time.sleep(seconds)
        return False

    return answer


AWS_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "NO_PROXY": "127.0.0.1",
}

MOTO_SCRIPT = """
import sys
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass
class S3Server:
    """A running server; `environment` are the variables with which its clients find it."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        return {**AWS_ENVIRONMENT, "AWS_ENDPOINT_URL": self.url}

    def put(self, name: str, content: bytes = b"") -> None:
        """Create a bucket, or a file `BUCKET/KEY`."""
        headers = {"Content-Type": "application/octet-stream"}  # moto reads a form otherwise
        request = urllib.request.Request(f"{self.url}/{name}", content, headers, method="PUT")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60).close()

    def put_folder(self, bucket: str, folder: Path) -> None:
        """Create a bucket with the files of a folder."""
        self.put(bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{bucket}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def close_connections() -> None:
    """Close the connections of this process, which keep the variables with which they were opened."""
    CONNECTIONS.close_if_idle()
    CONNECTIONS.release()


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """Run moto's S3 server in a process of its own, with its data in memory."""
    close_connections()
    command = [sys.executable, "-c", MOTO_SCRIPT]
    pipe, ignore = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=ignore, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield S3Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            close_connections()
            process.stdin.close()
            process.kill()
            process.wait()
