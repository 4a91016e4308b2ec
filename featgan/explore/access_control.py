"""Who may talk to the page: this machine's browser and nobody through it; with a token, whoever holds it.

A page of another site that is open in the same browser could reach a server on the loopback too. It is refused by the
Host header (its own name, when it has that name point to 127.0.0.1: DNS rebinding), by the Origin header, and by what
the browser says of a request's origin (Sec-Fetch-Site).
"""

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from secrets import compare_digest
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PROTECTION = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Headers of every answer: nothing is loaded from elsewhere, shown elsewhere, or kept."""

NEEDS_TOKEN = "this page needs the address that `featgan explore` printed, with its token\n"


@dataclass(frozen=True)
class Access:
    """What a server is reached as, and the token it asks for (None: it does not)."""

    names: frozenset[str] = frozenset({"localhost"})
    any_address: bool = False  # any IP address is a right Host, not only those of the loopback
    token: str | None = None
    cookie: str = "featgan"


def access_for(host: str, address: str, port: int, token: str | None) -> Access:
    """Access to a server that was asked to listen on `host` and does so on the IP `address`."""
    own = frozenset(name.lower() for name in (host, "localhost", socket.gethostname(), socket.getfqdn()))
    local = ipaddress.ip_address(address).is_loopback
    # Cookies do not know ports: each server has one of its own name.
    return Access(frozenset({"localhost"}) if local else own, not local, token, f"featgan-{port}")


def knows_host(access: Access, host: str) -> bool:
    """Whether a Host header names this server; an IP address does, since no foreign name stands in for it."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in access.names
    return access.any_address or address.is_loopback


def refusal(access: Access, request: Request) -> tuple[int, str] | None:
    """Status and one line for a request that is not answered; None for one that is."""
    hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
    if len(hosts) != 1 or not knows_host(access, hosts[0]):
        return 403, "the Host header names another server\n"
    if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins):
        return 403, "requests from other sites are refused\n"
    opens_page = request.url.path == "/" and request.method == "GET"
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not opens_page:
        return 403, "requests from other sites are refused\n"
    if access.token is not None and not holds_token(access.token, access.cookie, request):
        return 401, NEEDS_TOKEN
    return None


def holds_token(token: str, cookie: str, request: Request) -> bool:
    """Whether the token comes as the cookie, in the Authorization header, or in the address of the page itself."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    shown = [request.cookies.get(cookie, ""), bearer if scheme.lower() == "bearer" else ""]
    if request.url.path == "/":
        shown.append(request.query_params.get("token", ""))
    return any([compare_digest(each.encode(), token.encode()) for each in shown])


class Guard:
    """Stands before the routes: refuses who may not talk, protects what is answered."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        headers = dict(PROTECTION)
        refused = refusal(self.access, request)
        if refused is None and self.access.token is not None and request.url.path == "/":
            # The page's own address carries the token; what the page asks for carries the cookie.
            headers["set-cookie"] = f"{self.access.cookie}={self.access.token}; HttpOnly; SameSite=Strict; Path=/"
        answer = self.app if refused is None else PlainTextResponse(refused[1], refused[0])
        await answer(scope, receive, protecting(send, headers))


def protecting(send: Send, headers: Mapping[str, str]) -> Send:
    """Adds headers to the answer."""

    async def protected(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return protected
