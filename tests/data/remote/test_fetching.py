"""Tests of downloads: faults of servers, retries, hashes, limits, signals and forks."""

import asyncio
import hashlib
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar

import pytest
from fsspec.registry import _registry

from featgan.data.remote import fetching
from featgan.data.remote.fetch_errors import TransientError
from featgan.data.remote.fetching import CONNECTIONS, FetchedFile, fetch_file, open_stream, read_small
from featgan.data.remote.outages import Outage
from featgan.errors import TrainingInterrupted, UserError
from featgan.system.locations import Location
from featgan.system.signals import StopSignal
from tests.helpers.servers import (
    AWS_ENVIRONMENT,
    Fault,
    FaultyHandler,
    FaultyServer,
    S3Server,
    close_connections,
    cut_body,
    drop_connection,
    redirect_to,
    send_bytes,
    send_status,
    serve_folder,
    serve_s3,
    wait_seconds,
)

CONTENT = bytes(range(256)) * 4000
FETCHED = FetchedFile(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide the waits between attempts by 20, and ignore the proxy of the machine."""
    monkeypatch.setattr("featgan.data.remote.outages.sleep", lambda seconds: time.sleep(seconds / 20))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.tar").write_bytes(CONTENT)
    (folder / "a b.tar").write_bytes(CONTENT)
    with serve_folder(folder) as http_server:
        yield http_server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with serve_s3() as s3_server:
        s3_server.put("bucket")
        s3_server.put("bucket/sets/a.tar", CONTENT)
        yield s3_server


def locate(server: FaultyServer, path: str = "/a.tar") -> Location:
    return Location.parse(server.url + path)


def fetch_error(location: Location, retry_seconds: float = 0.0) -> str:
    """Return the one-line message of a download that fails."""
    with pytest.raises(UserError) as error:
        fetch_file(location, io.BytesIO(), 1 << 30, retry_seconds)
    message = str(error.value)
    assert "\n" not in message and len(message) < 300 and message.startswith(f"{location.redacted}: ")
    return message


def test_download_to_a_path_and_to_a_file(server: FaultyServer, tmp_path: Path) -> None:
    path = tmp_path / "copy.tar"
    assert fetch_file(locate(server), path, len(CONTENT)) == FETCHED
    assert path.read_bytes() == CONTENT and [file.name for file in tmp_path.iterdir() if file.is_file()] == ["copy.tar"]
    assert fetch_file(locate(server, "/a%20b.tar"), io.BytesIO(), len(CONTENT)) == FETCHED
    assert server.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("name", ["a.tar", "missing.tar"])
def test_local_files(server: FaultyServer, name: str) -> None:
    for location in (Location.from_path(server.folder / name), Location.parse(f"file://{server.folder}/{name}")):
        if name == "a.tar":
            assert fetch_file(location, io.BytesIO(), len(CONTENT)) == FETCHED
        else:
            assert "no such file" in fetch_error(location)


def test_file_that_is_too_large_is_not_read_completely(server: FaultyServer) -> None:
    target = io.BytesIO()
    assert fetch_file(locate(server), target, 1000).size == 1001
    assert target.getvalue() == CONTENT[:1000]
    with pytest.raises(UserError, match="is larger than 1,000 bytes"):
        read_small(locate(server), 1000)
    with open_stream(locate(server), 1000) as stream, pytest.raises(UserError, match="is larger than 1,000 bytes"):
        stream.read()
    assert read_small(locate(server), len(CONTENT)) == CONTENT


def test_stream_is_read_in_pieces(server: FaultyServer) -> None:
    with open_stream(locate(server), len(CONTENT)) as stream:
        pieces = [stream.read(512), stream.read(100_000), stream.read()]
    assert b"".join(pieces) == CONTENT and len(pieces[0]) == 512


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (404, "no such file on the server; check the URL"),
        (410, "no such file on the server; check the URL"),
        (401, "access denied; write user and password to ~/.netrc"),
        (403, "access denied; write user and password to ~/.netrc"),
        (418, "the server answers with HTTP status 418; check the URL"),
    ],
)
def test_permanent_status_is_one_line_without_a_retry(server: FaultyServer, status: int, problem: str) -> None:
    server.fail("/a.tar", send_status(status))
    location = Location.parse(server.url.replace("//", "//user:secret@") + "/a.tar?sig=secret")
    assert fetch_error(location, 900).endswith(f"a.tar: {problem}")
    assert len(server.requests) == 1


def test_redirects(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fail("/a.tar", redirect_to("/a%20b.tar"))
    assert fetch_file(locate(server), io.BytesIO(), len(CONTENT)) == FETCHED
    server.fail("/a.tar", *[redirect_to("/a.tar")] * 100)
    assert fetch_error(locate(server), 900).endswith("the server redirects in a loop; check the URL")
    assert len(server.requests) < 20
    server.faults.clear()
    server.fail("/a.tar", redirect_to("file:///etc/passwd"), redirect_to("ftp://127.0.0.1/a"))
    assert fetch_error(locate(server), 900).endswith("not a valid URL; check the URL")
    assert fetch_error(locate(server), 900).endswith("not a valid URL; check the URL")


@pytest.mark.parametrize(
    "fault",
    [
        send_status(503),
        send_status(500),
        send_status(429, Retry_After="1"),
        send_status(408),
        drop_connection,
        cut_body(0),
        cut_body(1000),
        cut_body(700_000),
        send_bytes(CONTENT, len(CONTENT) + 1),
    ],
)
def test_interrupted_download_is_tried_again(server: FaultyServer, fault: Fault) -> None:
    server.fail("/a.tar", *[fault] * 2)
    target = io.BytesIO(b"earlier content" * 100_000)
    assert fetch_file(locate(server), target, len(CONTENT), 900) == FETCHED
    assert target.getvalue() == CONTENT and len(server.requests) == 3
    server.fail("/a.tar", fault)
    with open_stream(locate(server), len(CONTENT), 900) as stream:
        assert stream.read() == CONTENT


def test_file_that_changes_during_an_outage_is_reported(server: FaultyServer) -> None:
    server.fail("/a.tar", cut_body(700_000, pause=1.0), send_bytes(b"x" * len(CONTENT)))
    assert "has changed while it was read" in fetch_error(locate(server), 900)
    server.fail("/a.tar", cut_body(700_000, pause=1.0), send_bytes(b""))
    assert "has changed while it was read" in fetch_error(locate(server), 900)


def test_outage_is_bridged_with_one_message(server: FaultyServer, caplog: pytest.LogCaptureFixture) -> None:
    location, folder, port = locate(server), server.folder, server.server_port
    server.shutdown()
    server.server_close()

    def restart() -> None:
        time.sleep(3)
        with serve_folder(folder, port):
            finished.wait(60)

    finished = threading.Event()
    thread = threading.Thread(target=restart)
    thread.start()
    with caplog.at_level(logging.INFO):
        assert fetch_file(location, io.BytesIO(), len(CONTENT), 900) == FETCHED
    finished.set()
    thread.join()
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("featgan")]
    assert messages[0] == f"{location}: the connection was refused; trying again for up to 900 s"
    assert len(messages) == 2 and "available again after" in messages[1]


def test_answer_that_is_not_http_is_named(server: FaultyServer) -> None:
    def answer(handler: FaultyHandler) -> bool:
        handler.wfile.write(b"220 mail.example.org ESMTP\r\n\r\n")
        handler.close_connection = True
        return True

    server.fail("/a.tar", *[answer] * 1000)
    assert "the answer of the server is not valid HTTP; check the server" in fetch_error(locate(server))


def test_end_of_the_attempts_is_one_line(server: FaultyServer) -> None:
    server.fail("/a.tar", *[send_status(503)] * 1000)
    message = fetch_error(locate(server), 0.3)
    assert "the server answers with HTTP status 503 for 0 s; check the server" in message
    assert len(server.requests) >= 2
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        location = Location.parse(f"http://127.0.0.1:{unused.getsockname()[1]}/a.tar")
        assert "the connection was refused; check the server and the network" in fetch_error(location)


def test_waits_grow_and_follow_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    monkeypatch.setattr("featgan.data.remote.outages.sleep", sleep)
    monkeypatch.setattr("featgan.data.remote.outages.monotonic", lambda: now)
    outage = Outage(Location.parse("http://host/a"), 900)
    with pytest.raises(UserError, match="for 900 s"):
        while True:
            outage.wait(TransientError("reason", 45 if len(waits) == 1 else 0))
    assert 0.75 <= waits[0] <= 1.25 and waits[1] == 45 and 3 <= waits[2] <= 5 and max(waits) <= 75
    assert sum(waits) == pytest.approx(900) and len(waits) < 30


def test_slow_answer_is_not_an_error_and_a_hanging_server_is(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "READ_SECONDS", 1.5)
    close_connections()
    server.fail("/a.tar", wait_seconds(0.3))
    assert fetch_file(locate(server), io.BytesIO(), len(CONTENT), 0) == FETCHED
    server.fail("/a.tar", wait_seconds(4))
    assert "the server does not answer; check the server" in fetch_error(locate(server))
    close_connections()


def test_https_never_becomes_http(monkeypatch: pytest.MonkeyPatch, server: FaultyServer) -> None:
    class InsecureFile(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise fetching.InsecureRedirectError

    monkeypatch.setattr(fetching, "open_once", lambda location: InsecureFile())
    assert "redirects from https to http" in fetch_error(Location.parse("https://host/a"), 900)
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    trace = fetching.http_client_options()["trace_configs"][0]

    class Parameters:
        class url:  # noqa: N801
            scheme = "https"

        class response:  # noqa: N801
            headers: ClassVar = {"Location": "HTTP://host/a"}

    with pytest.raises(fetching.InsecureRedirectError):
        asyncio.run(trace.on_request_redirect[0](None, None, Parameters))


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    for name in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(_registry, scheme, raising=False)  # another test may have imported it
    close_connections()
    extra = {"s3": "s3", "gs": "gcs"}[scheme]
    assert fetch_error(Location.parse(f"{scheme}://bucket/a"), 900).endswith(f"pip install 'featgan[{extra}]'")


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    close_connections()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_object_storage(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, s3.environment)
    location = Location.parse("s3://bucket/sets").join("a.tar")
    assert fetch_file(location, io.BytesIO(), len(CONTENT), 0) == FETCHED
    assert read_small(location, len(CONTENT)) == CONTENT
    with open_stream(location, len(CONTENT)) as stream:
        assert stream.read(100) == CONTENT[:100]
    for name in ("s3://bucket/missing", "s3://missing/a"):
        assert fetch_error(Location.parse(name), 900).endswith("no such file on the server; check the URL")


def test_object_storage_without_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, s3.environment)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    message = fetch_error(Location.parse("s3://bucket/sets/a.tar"), 900)
    assert message.endswith("no valid credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")


def test_object_storage_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        set_environment(monkeypatch, {**AWS_ENVIRONMENT, "AWS_ENDPOINT_URL": url, "AWS_MAX_ATTEMPTS": "1"})
        assert "check the server and the network" in fetch_error(Location.parse("s3://bucket/a"))


def test_stop_signal_ends_a_wait_at_once(server: FaultyServer) -> None:
    server.fail("/a.tar", wait_seconds(30))
    with StopSignal() as stop_signal:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        start = time.monotonic()
        with pytest.raises(TrainingInterrupted, match=r"a\.tar: stopped while waiting") as error:
            fetch_file(locate(server), io.BytesIO(), len(CONTENT), 900)
        assert time.monotonic() - start < 15 and error.value.exit_code == 128 + signal.SIGTERM
        assert stop_signal.received_signal == signal.SIGTERM
        timer.join()
    assert fetch_file(locate(server), io.BytesIO(), len(CONTENT), 900) == FETCHED


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_process_that_waits(signal_number: int) -> None:
    script = """
import sys
from pathlib import Path
from featgan.data.remote.fetching import fetch_file
from featgan.system.locations import Location
fetch_file(Location.parse(sys.argv[1]), Path(sys.argv[2]), 100, 900)
"""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
        command = [sys.executable, "-c", script, url, os.devnull]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            silent.accept()  # the process has connected, and waits for the answer
            time.sleep(0.2)
            process.send_signal(signal_number)
            assert process.wait(30) == -signal_number


def test_process_can_fork_after_and_during_downloads(server: FaultyServer) -> None:
    assert fetch_file(locate(server), io.BytesIO(), len(CONTENT), 0) == FETCHED
    assert fetch_in_child(locate(server)) == 0
    assert not any(thread.name == "fetch" for thread in threading.enumerate()), "a fork closes the connections"
    with open_stream(locate(server), len(CONTENT), 0) as stream:
        assert stream.read(10) == CONTENT[:10]
        assert fetch_in_child(locate(server)) == 0
        assert stream.read() == CONTENT[10:]
    assert fetch_file(locate(server), io.BytesIO(), len(CONTENT), 0) == FETCHED


def fetch_in_child(location: Location) -> int:
    """Download a file in a forked process and return its exit code."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os._exit(0 if fetch_file(location, io.BytesIO(), len(CONTENT), 0) == FETCHED else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_threads_download_at_the_same_time(server: FaultyServer) -> None:
    results: list[FetchedFile] = []

    def fetch() -> None:
        results.append(fetch_file(locate(server), io.BytesIO(), len(CONTENT), 0))

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [FETCHED] * 8


def test_error_of_the_target_is_not_an_error_of_the_server(server: FaultyServer) -> None:
    class FullDisk(io.BytesIO):
        def write(self, data: object, /) -> int:
            raise OSError(28, "No space left on device")

    target: BinaryIO = FullDisk()
    with pytest.raises(OSError, match="No space left"):
        fetch_file(locate(server), target, len(CONTENT), 900)
    assert CONNECTIONS.num_open == 0


def test_an_outage_of_days_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featgan.data.remote.outages.sleep", lambda seconds: None)
    outage = Outage(Location.parse("http://host/a"), 1e9)
    for _ in range(1100):
        outage.wait(TransientError("is away"))
