"""Open the store of a training on a free port and let the other processes find it.

Rank 0 opens torch's store on a port that the system chooses, so no other program can take the port before it is used.
A small server on the first free candidate port tells this port to the other processes. They try the same candidates in
the same order. The server of another training on one of them refuses them, because the identities differ.
"""

import contextlib
import os
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from featgan.distributed.rendezvous import Rendezvous
from featgan.errors import UserError

RESPONSE_TIMEOUT = 5.0
"""Seconds after which a program on a candidate port that does not respond is skipped."""

RETRY_INTERVAL = 0.5
"""Seconds between two rounds over the candidate ports."""

MAX_MESSAGE_BYTES = 512
"""Size of a message in bytes; both sides send one line."""

MAX_JOIN_SECONDS, JOIN_SHARE = 600.0, 0.9
"""Maximum time to wait for rank 0 at the start, also as a share of the hang timeout: the watchdog prints no reason."""


@contextlib.contextmanager
def join_processes(rendezvous: Rendezvous | None, hang_timeout: float) -> Iterator[None]:
    """Connect the processes in this context, on a port that they agree on. Raises UserError if they cannot connect."""
    timeout_seconds = min(MAX_JOIN_SECONDS, JOIN_SHARE * hang_timeout) if hang_timeout else MAX_JOIN_SECONDS
    try:
        with shared_store(rendezvous, timeout_seconds) if rendezvous else contextlib.nullcontext():
            yield
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        address = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        reason = "the port is in use" if "EADDRINUSE" in str(error) else str(error).strip().splitlines()[0]
        raise UserError(
            f"MASTER_ADDR, MASTER_PORT: the processes cannot connect at {address} ({reason}); use another port, or an"
            " address that all nodes can reach"
        ) from error


class DiscoveryServer(socketserver.ThreadingTCPServer):
    """Tells the processes of one training the port of its store."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, port: int, identity: str, store_port: int) -> None:
        """Raises OSError if the port is in use."""
        self.identity = identity
        self.store_port = store_port
        self.callers: dict[str, str] = {}
        """A name for each rank that has called; another process with the same rank belongs to another training."""
        if socket.has_dualstack_ipv6():
            self.address_family = socket.AF_INET6
        super().__init__(("", port), DiscoveryHandler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def answer(self, message: str) -> str:
        """Return the answer to a message; empty if its sender does not belong to this training."""
        identity, _, caller = message.rstrip("\n").rpartition(" ")
        rank, _, name = caller.partition(":")
        if identity != self.identity or not name or self.callers.setdefault(rank, name) != name:
            return ""
        return f"{self.identity} {self.store_port}\n"


class DiscoveryHandler(socketserver.StreamRequestHandler):
    """Answers one message."""

    server: DiscoveryServer
    timeout = RESPONSE_TIMEOUT

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the sender has ended, or is another program that waits for something
            message = self.rfile.readline(MAX_MESSAGE_BYTES).decode(errors="replace")
            self.wfile.write(self.server.answer(message).encode())


@contextlib.contextmanager
def shared_store(rendezvous: Rendezvous, timeout_seconds: float) -> Iterator[None]:
    """Set MASTER_PORT to the port of a store that rank 0 keeps open in the context.

    Leave the context when all processes have joined. Raises UserError if no candidate port is free, or if another
    process does not find the store within `timeout_seconds`.
    """
    if os.environ["RANK"] != "0":
        os.environ["MASTER_PORT"] = str(find_store(rendezvous, timeout_seconds))
        yield
        return
    # The store of the process group, which is opened later on the same port, shares the server of this one.
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        0,
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,
        timeout=timedelta(seconds=timeout_seconds),
    )
    with open_discovery_server(rendezvous, store.port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["MASTER_PORT"] = str(store.port)
        try:
            yield
        finally:
            server.shutdown()


def open_discovery_server(rendezvous: Rendezvous, store_port: int) -> DiscoveryServer:
    """Return a server on the first candidate port that is free."""
    for port in rendezvous.candidate_ports():
        with contextlib.suppress(OSError):
            return DiscoveryServer(port, rendezvous.identity, store_port)
    ports = ", ".join(map(str, sorted(rendezvous.candidate_ports())))
    raise UserError(
        f"{socket.gethostname()}: the ports {ports} are in use by other programs; set MASTER_PORT to a free port,"
        " the same in all processes"
    )


def find_store(rendezvous: Rendezvous, timeout_seconds: float) -> int:
    """Return the port of the store, once rank 0 has opened it."""
    host, caller = os.environ["MASTER_ADDR"], f"{os.environ['RANK']}:{uuid.uuid4().hex}"
    deadline = time.monotonic() + timeout_seconds
    while True:
        for port in rendezvous.candidate_ports():
            if (store_port := ask_for_store(host, port, rendezvous.identity, caller)) is not None:
                return store_port
        if time.monotonic() > deadline:
            raise UserError(
                f"rank {os.environ['RANK']}: rank 0 was not found on {host} within {timeout_seconds:.0f} s; read the"
                " log of rank 0, or set MASTER_ADDR to an address of its node that all nodes can reach"
            )
        time.sleep(RETRY_INTERVAL)


def ask_for_store(host: str, port: int, identity: str, caller: str) -> int | None:
    """Return the port of the store if a server of the same training responds on `port`, else None."""
    try:
        with socket.create_connection((host, port), RESPONSE_TIMEOUT) as connection:
            connection.sendall(f"{identity} {caller}\n".encode())
            with connection.makefile("rb") as answers:
                answer = answers.readline(MAX_MESSAGE_BYTES).decode(errors="replace")
    except OSError:
        return None
    answered_identity, _, number = answer.rstrip("\n").rpartition(" ")
    return int(number) if answered_identity == identity and number.isdecimal() else None
