"""Connections of the page's server: clients that send nothing, or send too slowly, do not block others.

A connection is closed if its next request, or the rest of an unread one, takes longer than REQUEST_TIMEOUT_SECONDS, or
if its client stops reading. At most MAX_CONNECTIONS are open. If another one is opened, the
oldest connection that waits for its client is closed, at the address with the most such connections.
"""

import asyncio
import time
from collections import Counter
from contextlib import suppress

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 64
"""Maximum number of open connections; a browser opens at most six."""

REQUEST_TIMEOUT_SECONDS = 15.0
"""Time limit for the headers of a request."""

WRITE_TIMEOUT_SECONDS = 30.0
"""Time limit for a client that does not read its response."""

KEEP_ALIVE_SECONDS = 5
"""Time after which a connection without a further request is closed."""


class GuardedConnection(H11Protocol):
    """An HTTP connection with time limits that its client cannot extend."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.opened = time.monotonic()
        self.request_timer: asyncio.TimerHandle | None = None
        self.write_timer: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self.update_request_timer()
        if len(self.connections) > MAX_CONNECTIONS:
            choose_replaced(self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self.request_timer, self.write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def is_handling_request(self) -> bool:
        """Whether the headers of a request have arrived and its response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def waits_for_client(self) -> bool:
        """Whether the connection is open, and idle or in the middle of receiving a request."""
        return not self.transport.is_closing() and (not self.is_handling_request or self.cycle.more_body)

    def update_request_timer(self) -> None:
        """Start the time limit of the next request, unless it is running; stop it when the headers have arrived."""
        if self.is_handling_request and self.request_timer is not None:
            self.request_timer.cancel()
            self.request_timer = None
        elif not self.is_handling_request and self.request_timer is None:
            self.request_timer = self.loop.call_later(REQUEST_TIMEOUT_SECONDS, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.update_request_timer()

    def send_400_response(self, msg: str) -> None:
        """Reject an invalid request; if a response has begun already, only close the connection."""
        if self.is_handling_request:
            self.cycle.disconnected = True  # its handler must not send a second response
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.update_request_timer()

    def timeout_keep_alive_handler(self) -> None:
        with suppress(h11.LocalProtocolError):  # the client is still sending a request that was rejected
            super().timeout_keep_alive_handler()
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.write_timer is None:
            self.write_timer = self.loop.call_later(WRITE_TIMEOUT_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.write_timer is not None:
            self.write_timer.cancel()
            self.write_timer = None


def choose_replaced(newest: GuardedConnection) -> GuardedConnection:
    """Return the connection to close: the oldest waiting one of the address with most of them, or the newest itself."""
    waiting = [
        connection
        for connection in newest.connections
        if isinstance(connection, GuardedConnection) and connection.waits_for_client and connection is not newest
    ]
    counts = Counter(client_host(connection) for connection in waiting)
    return min(waiting, key=lambda item: (-counts[client_host(item)], item.opened), default=newest)


def client_host(connection: GuardedConnection) -> str:
    """Return the address of the client without its port; empty if it is unknown."""
    return connection.client[0] if connection.client else ""
