"""Downloads through fsspec: whole files, and streams that are read once from start to end.

An error that may pass is tried again until `retry_seconds` are over; the bytes that were read before are read again and
must be the same. This is the only module that imports fsspec. Its event loop runs in a thread, which is ended before
this process forks: a file system of fsspec must not be used in two processes.
"""

import asyncio
import hashlib
import io
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from urllib.parse import quote

from featgan.data.remote.fetch_errors import TransientError, convert_error
from featgan.data.remote.outages import Outage
from featgan.errors import UserError
from featgan.system.files import atomic_file, open_regular_file
from featgan.system.locations import HTTP_SCHEMES, Location
from featgan.system.signals import interrupt_waiting

CHUNK_BYTES = 4 << 20
"""Bytes that are read at a time."""

BLOCK_BYTES = 32 << 20
"""Bytes of one request to object storage."""

CONNECT_SECONDS = 30
"""Seconds to wait for a connection."""

READ_SECONDS = 60
"""Seconds to wait for the next bytes. There is no limit for a whole file, which may be large."""

RETRY_SECONDS = 900.0
"""Seconds to wait for a server, if the caller does not choose them."""

MAX_REDIRECTS = 10


@dataclass(frozen=True)
class FetchedFile:
    """What was downloaded: its sha256, and its size in bytes."""

    sha256: str
    size: int


class Connections:
    """The file systems of this process, and the thread of their event loop; threads may share an instance."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.filesystems: dict[tuple[str, bool], Any] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None
        self.num_open = 0
        self.abandoned: list[Any] = []

    def open(self, location: Location) -> Any:
        """Open a file for one sequential read. The errors are those of fsspec and of the system."""
        with self.lock:
            self.num_open += 1
        try:
            return open_once(location)
        except BaseException:
            with self.lock:
                self.num_open -= 1
            raise

    def close(self, file: Any) -> None:
        """Close a file."""
        with suppress(Exception):
            file.close()
        with self.lock:
            self.num_open -= 1

    def filesystem(self, scheme: str, is_encoded: bool) -> Any:
        """Return the file system of a scheme, which is created at its first use."""
        with self.lock:
            key = scheme, is_encoded
            if key not in self.filesystems:
                self.filesystems[key] = create_filesystem(scheme, is_encoded, self.start_loop())
            return self.filesystems[key]

    def start_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop of this process, which runs in a thread."""
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            self.loop.set_exception_handler(lambda loop, context: None)  # its messages contain complete URLs
            self.thread = threading.Thread(target=self.loop.run_forever, name="fetch", daemon=True)
            self.thread.start()
        return self.loop

    def close_if_idle(self) -> None:
        """Close all connections and end the thread, unless a file is open."""
        self.lock.acquire()  # released by `after_fork` in the parent
        if self.num_open or self.loop is None or self.thread is None:
            return
        for filesystem in self.filesystems.values():
            with suppress(Exception):
                close_filesystem(filesystem)
        self.filesystems.clear()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.loop = self.thread = None

    def release(self) -> None:
        """Continue in the parent after a fork."""
        self.lock.release()

    def start_in_child(self) -> None:
        """Start without connections in a forked process; those of the parent are kept so that nothing closes them."""
        abandoned = [*self.abandoned, self.filesystems, self.loop, self.thread]
        self.__init__()  # type: ignore[misc]
        self.abandoned = abandoned


CONNECTIONS = Connections()
os.register_at_fork(
    before=CONNECTIONS.close_if_idle,
    after_in_parent=CONNECTIONS.release,
    after_in_child=CONNECTIONS.start_in_child,
)


def create_filesystem(scheme: str, is_encoded: bool, loop: asyncio.AbstractEventLoop) -> Any:
    """Return a new file system of fsspec. Raises ImportError if a package is missing."""
    import fsspec

    filesystem = fsspec.get_filesystem_class(scheme)
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme in HTTP_SCHEMES:
        return filesystem(loop=loop, encoded=is_encoded, client_kwargs=http_client_options(), **options)
    if scheme == "s3":
        timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        return filesystem(loop=loop, config_kwargs=timeouts, **options)
    return filesystem(**options) if scheme == "hf" else filesystem(loop=loop, **options)


def http_client_options() -> dict[str, Any]:
    """Return the options of the session: timeouts, proxies and ~/.netrc of the user, and no unsafe redirect."""
    import aiohttp

    async def check_redirect(session: Any, context: SimpleNamespace, parameters: Any) -> None:
        target = parameters.response.headers.get("Location", "") or parameters.response.headers.get("URI", "")
        if parameters.url.scheme == "https" and target.lower().startswith("http:"):
            raise InsecureRedirectError

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(check_redirect)
    return {
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
        "trust_env": True,
        "trace_configs": [trace],
        "headers": {"Accept-Encoding": "identity", "User-Agent": "featgan"},
        "auto_decompress": False,
        "read_bufsize": CHUNK_BYTES,
    }


class InsecureRedirectError(Exception):
    """A server redirects from https to http."""


def close_filesystem(filesystem: Any) -> None:
    """Close the session of a file system for http; those of other file systems are closed with the object."""
    session = getattr(filesystem, "_session", None)
    if session is not None:
        asyncio.run_coroutine_threadsafe(session.close(), filesystem.loop).result(1.0)


class HttpFile:
    """The answer to one GET request, in the session of a file system of fsspec.

    The file object of fsspec sends a HEAD request first, and does not close the connection after an error status.
    """

    def __init__(self, filesystem: Any, url: str) -> None:
        self.loop = filesystem.loop
        self.response = self.wait_for(send_request(filesystem, url))

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return the result of a coroutine, which runs in the thread of the event loop."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def size(self) -> int | None:
        """The size that the server states."""
        text = str(self.response.headers.get("Content-Length", ""))
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    def read(self, num_bytes: int) -> bytes:
        """Return the next bytes; empty at the end."""
        data: bytes = self.wait_for(self.response.content.read(num_bytes))
        return data

    def close(self) -> None:
        """Close the connection."""
        self.loop.call_soon_threadsafe(self.response.close)


async def send_request(filesystem: Any, url: str) -> Any:
    """Send a GET request and return the response, after its headers were received."""
    session = await filesystem.set_session()
    response = await session.get(filesystem.encode_url(url))
    if response.status >= 400:
        response.close()
        response.raise_for_status()
    return response


def open_once(location: Location) -> Any:
    """Open a file of any scheme."""
    if not location.is_remote:
        return open_regular_file(location.path)
    url, is_encoded = location.raw, "?" in location.raw
    if location.scheme in HTTP_SCHEMES:
        # A URL with a signature is sent as it is; only characters that no URL contains are escaped.
        url = quote(url, safe="!#$%&'()*+,/:;=?@[]~") if is_encoded else url
        return HttpFile(CONNECTIONS.filesystem(location.scheme, is_encoded), url)
    options = {"block_size": 0} if location.scheme == "hf" else {"block_size": BLOCK_BYTES, "cache_type": "readahead"}
    return CONNECTIONS.filesystem(location.scheme, False).open(url, "rb", **options)


def expected_size(file: Any) -> int | None:
    """Return the size of an open file as the server states it."""
    size = getattr(file, "size", None)
    return size if isinstance(size, int) else None


class SequentialReader:
    """Reads a file once from start to end, over several connections if one is interrupted.

    It reads at most `max_bytes` and one byte more, which shows that the file is larger.
    """

    def __init__(self, location: Location, max_bytes: int, retry_seconds: float) -> None:
        self.location = location
        self.max_bytes = max_bytes
        self.position = 0
        self.hash = hashlib.sha256()
        self.outage = Outage(location, retry_seconds)
        self.file: Any = None
        self.file_position = 0

    def read(self, num_bytes: int = CHUNK_BYTES) -> bytes:
        """Return the next bytes; empty at the end of the file. Raises UserError if the file cannot be read."""
        with interrupt_waiting(f"{self.location}: stopped while waiting for the server"):
            while True:
                try:
                    data = self.convert_errors(lambda: self.read_once(num_bytes))
                except TransientError as error:
                    self.close()
                    self.outage.wait(error)
                else:
                    self.outage.end()
                    self.hash.update(data)
                    self.position += len(data)
                    return data

    def convert_errors(self, function: Callable[[], bytes]) -> bytes:
        """Call a function; its errors become TransientError and UserError."""
        try:
            return function()
        except InsecureRedirectError:
            raise UserError(f"{self.location}: the server redirects from https to http; use another URL") from None
        except Exception as error:
            converted = convert_error(error, self.location)
            if converted is error:
                raise
            raise converted from None

    def read_once(self, num_bytes: int) -> bytes:
        """Return the next bytes; open the file again after an interrupted connection."""
        if self.file is None:
            self.file = CONNECTIONS.open(self.location)
            self.file_position = 0
            self.skip_known_bytes()
        return self.read_file(min(num_bytes, self.max_bytes + 1 - self.position))

    def read_file(self, num_bytes: int) -> bytes:
        """Return the next bytes of the open file. Raises TransientError if it ends before its stated size."""
        data: bytes = self.file.read(num_bytes) if num_bytes else b""
        self.file_position += len(data)
        if num_bytes and not data and self.file_position < (expected_size(self.file) or 0):
            raise TransientError("the connection was interrupted")
        return data

    def skip_known_bytes(self) -> None:
        """Read the bytes that a previous connection read. Raises UserError if they have changed."""
        digest = hashlib.sha256()
        while self.file_position < self.position:
            data = self.read_file(min(CHUNK_BYTES, self.position - self.file_position))
            if not data:
                break
            digest.update(data)
        if digest.digest() != self.hash.digest():
            raise UserError(f"{self.location}: has changed while it was read; run the same command again")

    def close(self) -> None:
        """Close the connection."""
        if self.file is not None:
            CONNECTIONS.close(self.file)
            self.file = None


class RemoteStream(io.RawIOBase):
    """A file that is read once from start to end. Raises UserError if it is larger than `max_bytes`."""

    def __init__(self, reader: SequentialReader) -> None:
        self.reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.reader.read(len(buffer))
        if self.reader.position > self.reader.max_bytes:
            raise too_large_error(self.reader.location, self.reader.max_bytes)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.reader.close()
        super().close()


def too_large_error(location: Location, max_bytes: int) -> UserError:
    """Return the error of a file that is larger than its limit."""
    return UserError(f"{location}: is larger than {max_bytes:,} bytes; check the URL")


def open_stream(location: Location, max_bytes: int, retry_seconds: float = RETRY_SECONDS) -> io.BufferedReader:
    """Open a path or URL for reading from start to end, without seeking; the caller closes it.

    Raises UserError, also while it is read, if the file is missing or larger than `max_bytes`, or if its server cannot
    be reached for `retry_seconds`.
    """
    return io.BufferedReader(RemoteStream(SequentialReader(location, max_bytes, retry_seconds)), CHUNK_BYTES)


def finish_stream(stream: io.BufferedReader) -> FetchedFile:
    """Read the rest of an open stream, and return the hash and size of the whole file."""
    while stream.read(CHUNK_BYTES):
        pass
    assert isinstance(stream.raw, RemoteStream)
    return FetchedFile(stream.raw.reader.hash.hexdigest(), stream.raw.reader.position)


def fetch_file(
    location: Location, target: Path | BinaryIO, max_bytes: int, retry_seconds: float = RETRY_SECONDS
) -> FetchedFile:
    """Copy a file to `target`, a path or an open file, and return its hash and size.

    At most `max_bytes` are written; the returned size is larger if the file is. Raises UserError if the file is
    missing, or if its server cannot be reached for `retry_seconds`.
    """
    if isinstance(target, Path):
        with atomic_file(target) as file:
            return fetch_file(location, file, max_bytes, retry_seconds)
    reader = SequentialReader(location, max_bytes, retry_seconds)
    target.seek(0)
    try:
        while reader.position <= max_bytes and (data := reader.read()):
            target.write(data[: max_bytes + len(data) - reader.position] if reader.position > max_bytes else data)
    finally:
        reader.close()
    target.truncate()
    return FetchedFile(reader.hash.hexdigest(), reader.position)


def read_small(location: Location, max_bytes: int, retry_seconds: float = RETRY_SECONDS) -> bytes:
    """Return the content of a file. Raises UserError if it is larger than `max_bytes` or cannot be read."""
    buffer = io.BytesIO()
    if fetch_file(location, buffer, max_bytes, retry_seconds).size > max_bytes:
        raise too_large_error(location, max_bytes)
    return buffer.getvalue()
