"""Tests of the connections of the interactive page: idle, slow, invalid and disconnecting clients of a real server."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from featgan.explore import connections, routes
from featgan.explore.access_control import AccessPolicy
from featgan.explore.connections import MAX_CONNECTIONS
from featgan.explore.routes import build_app
from featgan.explore.serve import build_server, open_listener
from featgan.explore.session import ExploreSession, load_session
from tests.conftest import World
from tests.helpers.explore import encode_image, perfect_generator, train_run

ANSWER_SECONDS = 60.0
"""Time limit for what takes milliseconds on an idle machine."""

TOKEN = "a-token"
SLOW_UPLOAD = b"POST /images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nxx"


@pytest.fixture(scope="module")
def session(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExploreSession]:
    run = train_run(world, tmp_path_factory.mktemp("connections") / "run")
    with perfect_generator(world):
        yield load_session([run])


@dataclass(frozen=True)
class RunningServer:
    """A server in a thread of this process."""

    port: int

    def connect(self, content: bytes = b"") -> socket.socket:
        """Open a connection and send the content."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_SECONDS)
        client.sendall(content)
        return client

    def get(self, path: str, headers: str = "") -> bytes:
        """Return the whole response to a request in a new connection."""
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        with self.connect(request.encode()) as client:
            return read_to_end(client)


def read_to_end(client: socket.socket) -> bytes:
    """Return everything that a server sends until it closes the connection."""
    content = b""
    while True:
        try:
            chunk = client.recv(1 << 16)
        except ConnectionResetError:
            return content
        if not chunk:
            return content
        content += chunk


@contextmanager
def running_server(session: ExploreSession, token: str | None = None) -> Iterator[RunningServer]:
    """Serve the page of a session."""
    listener = open_listener("127.0.0.1", 0)
    server = build_server(build_app(session, AccessPolicy(token=token)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield RunningServer(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(ANSWER_SECONDS)
        listener.close()


@pytest.fixture
def server(session: ExploreSession) -> Iterator[RunningServer]:
    with running_server(session) as running:
        yield running


@pytest.mark.parametrize("content", [b"", b"GET / HTTP/1.1\r\nHost: loc", SLOW_UPLOAD])
def test_waiting_connections_do_not_block_others(server: RunningServer, content: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 6):
            stack.enter_context(server.connect(content))
            assert b"200 OK" in server.get("/")[:20]


def test_connections_without_the_token_do_not_block_others(session: ExploreSession) -> None:
    with running_server(session, TOKEN) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect(SLOW_UPLOAD)) for _ in range(MAX_CONNECTIONS)]
        assert b"200 OK" in server.get("/", f"Authorization: Bearer {TOKEN}\r\n")[:20]
        assert clients[-1].recv(100).startswith(b"HTTP/1.1 401"), "rejected before the body is received"


def test_unfinished_headers_time_out(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT_SECONDS", 0.5)
    with server.connect() as idle, server.connect(b"GET / HTTP/1.1\r\n") as unfinished:
        assert read_to_end(idle) == read_to_end(unfinished) == b""
    with server.connect(b"GET / HTTP/1.1\r\nHost: localhost\r\n") as trickling:
        deadline = time.monotonic() + ANSWER_SECONDS
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                trickling.sendall(b"X-Header: x\r\n")
                time.sleep(0.05)
    with server.connect(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT") as second_request:
        assert read_to_end(second_request).startswith(b"HTTP/1.1 200 OK"), "and then closed"


def test_slow_body_times_out(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "BODY_TIMEOUT_SECONDS", 0.2)
    with server.connect(SLOW_UPLOAD) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_body_that_never_ends_is_closed_after_the_response(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT_SECONDS", 0.5)
    head = b"POST /images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n"
    deadline = time.monotonic() + ANSWER_SECONDS
    with server.connect(head) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 413")
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                client.sendall(bytes(1000))
                time.sleep(0.02)


def test_client_that_does_not_read_is_disconnected(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_TIMEOUT_SECONDS", 0.2)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.settimeout(ANSWER_SECONDS)
    with client, pytest.raises(ConnectionError):
        while True:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)


def test_disconnecting_clients_leave_no_traceback(
    server: RunningServer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    image = encode_image("PNG", (400, 400))
    head = f"POST /images HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n".encode()
    chunked = b"POST /images HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    contents = [
        head,
        head + image[:-1],
        head + image,
        chunked + b"5\r\nab",
        chunked + b"no length\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n",
        b"GET /images?seed=1 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50,
        b"\x16\x03\x01" + bytes(200),
        b"GET " + b"/" * 100_000,
        b"POST /images HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ]
    with caplog.at_level(logging.WARNING):
        for content in contents * 3:
            with server.connect(content):
                pass
            client = server.connect(content)
            time.sleep(0.02)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # ends with a reset
            client.close()
        assert b"200 OK" in server.get("/")[:20]
    output = "\n".join(["".join(capfd.readouterr()), caplog.text])
    assert "Traceback" not in output and "Exception" not in output, output
    assert all(record.exc_info is None for record in caplog.records)


def test_number_of_uploads_in_progress_is_released(server: RunningServer) -> None:
    for _ in range(5):
        server.connect(SLOW_UPLOAD).close()
    image = encode_image("PNG")
    head = f"POST /images HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(image)}\r\n\r\n"
    deadline = time.monotonic() + ANSWER_SECONDS
    response = b""
    while not response.startswith(b"HTTP/1.1 200"):
        assert time.monotonic() < deadline, response
        with server.connect(head.encode() + image) as client:
            response = read_to_end(client)
