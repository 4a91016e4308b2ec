"""`featgan explore`: load the runs, listen on the loopback, print the address, serve until stopped."""

import errno
import ipaddress
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from featgan.errors import UserError
from featgan.system.progress import console

MOST_CONNECTIONS = 64
SECONDS_TO_CLOSE = 2


def explore(
    runs: Sequence[Path],
    steps: Sequence[int | None] = (),
    blackboxes: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8765,
    ask_token: bool = False,
) -> None:
    """Serve the page of one run, or of two side by side, until it is stopped.

    Anywhere but on the loopback a token is asked for, and there with `ask_token`. UserError, before anything is
    loaded, for an address that cannot be listened on, and for a run that cannot be explored.
    """
    uvicorn = import_uvicorn()
    listener = listen(host, port)
    try:
        from featgan.explore.access_control import access_for
        from featgan.explore.routes import build_app
        from featgan.explore.session import open_session

        address, port = listener.getsockname()[:2]
        token = make_token(address, ask_token)
        session = open_session(runs, steps, blackboxes)
        for remark in (remark for run in session.runs for remark in run.remarks):
            console.print(remark, markup=False)
        app = build_app(session, access_for(host, address, port, token))
        config = uvicorn.Config(
            app, loop="asyncio", http="h11", ws="none", lifespan="off", log_level="warning", access_log=False,
            server_header=False, proxy_headers=False, limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=SECONDS_TO_CLOSE,
        )  # fmt: skip
        print(page_address(address, port, token), flush=True)
        console.print("Ctrl-C ends it.", markup=False)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()


def make_token(address: str, ask_token: bool) -> str | None:
    """What a page must be opened with; none on the loopback, unless it is wished for there too."""
    return secrets.token_urlsafe(24) if ask_token or not ipaddress.ip_address(address).is_loopback else None


def import_uvicorn() -> Any:
    """The server; UserError where what the page needs is not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(f"explore: {error.name} is not installed; pip install 'featgan[explore]'") from None
    return uvicorn


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; UserError when it cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host {host}: no such address; 127.0.0.1 is this machine alone") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port}: taken by another program; choose another, or 0 for any free one") from None
        if error.errno == errno.EACCES:
            raise UserError(f"--port {port}: not allowed to this user; choose one above 1023") from None
        raise UserError(f"--host {host}: cannot be listened on: {(error.strerror or str(error)).lower()}") from None
    return listener


def page_address(address: str, port: int, token: str | None) -> str:
    """What to open in a browser."""
    ip = ipaddress.ip_address(address)
    name = socket.gethostname() if ip.is_unspecified else f"[{address}]" if ip.version == 6 else address
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
