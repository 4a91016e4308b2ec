"""`featgan explore`: load the runs, print the address of the page, and serve it until interrupted."""

import errno
import ipaddress
import logging
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from featgan.config.trusted_callables import NO_CALLABLES, TrustedCallables
from featgan.errors import UserError
from featgan.system.plain_text import print_line

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_SECONDS = 2


def explore_runs(
    runs: Sequence[Path],
    steps: Sequence[int | None] = (),
    classifiers: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8765,
    require_token: bool = False,
    trusted: TrustedCallables = NO_CALLABLES,
) -> None:
    """Serve the page of one run, or of two runs side by side, until interrupted.

    `steps` and `classifiers` contain one value for each run, in order; missing ones have defaults. An access token is
    required unless the address is a loopback address; `require_token` requires it there as well.
    `trusted` are the callables that may be imported as classifiers.

    Raises UserError if the address is not available, before anything is loaded, or if a run cannot be loaded.
    """
    import_uvicorn()
    listener = open_listener(host, port)
    try:
        from featgan.explore.access_control import build_access_policy
        from featgan.explore.routes import build_app
        from featgan.explore.session import load_session

        address, port = listener.getsockname()[:2]
        token = make_token(address, require_token)
        session = load_session(runs, steps, classifiers, trusted)
        for run in session.runs:
            for notice in run.notices:
                logger.warning(f"{run.name}: {notice}" if len(session.runs) > 1 else notice)
        app = build_app(session, build_access_policy(host, address, port, token))
        server = build_server(app)
        print_line(page_url(address, port, token))
        logger.info("Press Ctrl-C to stop.")
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        listener.close()


def build_server(app: Any) -> Any:
    """Return the uvicorn server of an ASGI application."""
    from featgan.explore.connections import KEEP_ALIVE_SECONDS, GuardedConnection

    uvicorn = import_uvicorn()
    config = uvicorn.Config(
        app, loop="asyncio", http=GuardedConnection, ws="none", lifespan="off", log_level="error", access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_SECONDS,
    )  # fmt: skip
    return uvicorn.Server(config)


def make_token(address: str, require_token: bool) -> str | None:
    """Return a random access token, or None if the address is a loopback address and `require_token` is false."""
    return secrets.token_urlsafe(24) if require_token or not ipaddress.ip_address(address).is_loopback else None


def import_uvicorn() -> Any:
    """Import uvicorn.

    Raises UserError if the `explore` extra is not installed.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(f"explore: {error.name} is not installed; run `pip install 'featgan[explore]'`") from None
    return uvicorn


def open_listener(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address.

    Raises UserError if the address does not exist or is not available.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host {host}: no such address; use 127.0.0.1 to listen on this machine only") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--port {port}: in use by another program; choose another port, or 0 for any free port"
            ) from None
        if error.errno == errno.EACCES:
            raise UserError(f"--port {port}: permission denied; choose a port above 1023") from None
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"--host {host}: cannot listen on it ({reason}); use 127.0.0.1 to listen on this machine only"
        ) from None
    return listener


def page_url(address: str, port: int, token: str | None) -> str:
    """Return the address to open in a browser."""
    ip = ipaddress.ip_address(address)
    name = socket.gethostname() if ip.is_unspecified else f"[{address}]" if ip.version == 6 else address
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
