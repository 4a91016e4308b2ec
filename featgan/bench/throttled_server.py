"""A simulated object storage: an HTTP server on loopback with a latency per request and a shared bandwidth."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 16
"""Bytes that one connection sends at once."""


class SharedBandwidth:
    """A limit in bytes per second that all connections share."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self.lock = threading.Lock()
        self.next_time = time.monotonic()

    def wait_for(self, num_bytes: int) -> None:
        """Wait until `num_bytes` may be sent. An unused second is not saved for later."""
        with self.lock:
            start = max(time.monotonic(), self.next_time)
            self.next_time = start + num_bytes / self.bytes_per_second
        time.sleep(max(0.0, start - time.monotonic()))


class ThrottledHandler(SimpleHTTPRequestHandler):
    """Sends the files of a folder after `latency` seconds, and not faster than `bandwidth`."""

    def __init__(
        self, *arguments: Any, latency: float, bandwidth: SharedBandwidth, requests: Counter[str], **options: Any
    ) -> None:
        self.latency, self.bandwidth, self.requests = latency, bandwidth, requests
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        self.requests[self.path] += 1
        time.sleep(self.latency)
        super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while chunk := source.read(CHUNK_BYTES):
            self.bandwidth.wait_for(len(chunk))
            outputfile.write(chunk)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


class QuietServer(ThreadingHTTPServer):
    """A server that ignores connections that the client closes early."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing."""


@contextmanager
def serve_throttled(
    folder: Path, latency: float, bytes_per_second: float, requests: Counter[str] | None = None
) -> Iterator[str]:
    """Serve a folder on a free port of 127.0.0.1 in a thread, and yield its URL.

    `latency` is in seconds per request. All connections together send at most `bytes_per_second`. `requests` receives
    the number of GET requests of each path.
    """
    handler = partial(
        ThrottledHandler,
        directory=str(folder),
        latency=latency,
        bandwidth=SharedBandwidth(bytes_per_second),
        requests=Counter() if requests is None else requests,
    )
    with QuietServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
